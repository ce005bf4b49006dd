"""Kubernetes' API, as much of it as Rollbook uses: JSON over HTTP with the pod's own account.

The ``kubernetes`` package costs more memory than a whole registry with ten thousand instances, for generated
models that nothing here needs; this is one class over aiohttp. Tokens and certificates are re-read as they
rotate. Outside a cluster it reads a kubeconfig that an operator's developer names explicitly.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp

from rollbook.names import url_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_REREAD: Final = 60.0
"""Seconds for which a token that was read from disk is used; the kubelet renews it at 80 % of its life."""

METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA_ONE: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"


class KubeError(Exception):
    """The API server said no.

    Attributes:
        status: the HTTP status.
        reason: Kubernetes' reason, such as ``NotFound``, ``Conflict``, ``Expired``.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


class KubeApi:
    """The API server, with one identity.

    Args:
        base: ``https://host:port``.
        context: how to trust it (and a client certificate, from a kubeconfig).
        token_file: where the account's token is; ``None`` with a client certificate.
        token: a fixed token, from a kubeconfig.
    """

    def __init__(
        self,
        base: str,
        *,
        context: ssl.SSLContext | None,
        token_file: Path | None = None,
        token: str | None = None,
    ) -> None:
        self.base = base.rstrip("/")
        self._context = context
        self._token_file = token_file
        self._token = token
        self._read_at = float("-inf")
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    def in_cluster(cls) -> Self:
        """Use the pod's service account.

        Raises:
            LookupError: this is no pod, or it has no account mounted.
        """
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        token = ACCOUNT_DIR / "token"
        if not host or not token.exists():
            raise LookupError(f"not in a cluster: KUBERNETES_SERVICE_HOST or {token} is missing")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        context = ssl.create_default_context(cafile=str(ACCOUNT_DIR / "ca.crt"))
        return cls(f"https://{url_host(host)}:{port}", context=context, token_file=token)

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Use the current context of a kubeconfig (certificates or token; no exec plugins).

        Raises:
            LookupError: it has no such cluster or user, or one of a kind that is not supported.
        """
        import yaml  # noqa: PLC0415  # only developers outside a cluster need it; comes with kopf

        config = yaml.safe_load(path.read_text())
        try:
            context = _named(config["contexts"], config["current-context"])["context"]
            cluster = _named(config["clusters"], context["cluster"])["cluster"]
            user = _named(config["users"], context["user"])["user"]
        except KeyError as error:
            raise LookupError(f"{path}: {error} is missing") from None
        tls = None
        if cluster["server"].startswith("https"):
            ca = _material(cluster, "certificate-authority")
            tls = ssl.create_default_context(cadata=ca.decode() if ca else None)
            certificate, key = _material(user, "client-certificate"), _material(user, "client-key")
            if certificate and key:
                with tempfile.NamedTemporaryFile() as file:
                    file.write(certificate + b"\n" + key)
                    file.flush()
                    tls.load_cert_chain(file.name)
        return cls(cluster["server"], context=tls, token=user.get("token"))

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._context or True))
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._http is not None:
            await self._http.close()

    def new_session(self) -> aiohttp.ClientSession:
        """Open another session with the same trust and identity, for a library that speaks to the API itself.

        Each of its requests shows the token as it is then. Whoever asked for the session closes it.
        """

        async def show_identity(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            request.headers.update(self._identity())
            return await handler(request)

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._context or True, limit=0), middlewares=(show_identity,)
        )

    async def get(self, path: str, *, accept: str = "application/json", **params: str) -> Any:
        """GET an object or a list.

        Raises:
            KubeError: it answered with an error.
        """
        return await self.request("GET", path, params=params, accept=accept)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = 30.0,  # aiohttp's own
    ) -> Any:
        """Send any request.

        Raises:
            KubeError: it answered with an error.
        """
        headers = {**self._identity(), "Accept": accept, "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        async with self._session.request(
            method,
            self.base + path,
            params=params,
            data=data,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout),
        ) as response:
            await _raise(response)
            return await response.json(content_type=None)

    async def watch(
        self,
        path: str,
        *,
        accept: str = "application/json",
        timeout: int = 300,
        **params: str,
    ) -> AsyncIterator[dict[str, Any]]:
        """Follow a list's events until the server ends the watch, as it does every few minutes.

        Raises:
            KubeError: 410 when the resource version is too old; list again.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(timeout), **params}
        headers = {**self._identity(), "Accept": accept}
        async with self._session.get(
            self.base + path,
            params=query,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout + 30),
            read_bufsize=1 << 20,
        ) as response:
            await _raise(response)
            buffer = b""
            async for chunk in response.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if line:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            status = event["object"]
                            raise KubeError(
                                status.get("code", 500), status.get("reason", ""), status.get("message", "")
                            )
                        yield event

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use KubeApi as an async context manager")
        return self._http

    def _identity(self) -> dict[str, str]:
        if self._token_file is not None and time.monotonic() - self._read_at > TOKEN_REREAD:
            self._token = self._token_file.read_text().strip()
            self._read_at = time.monotonic()
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


async def _raise(response: aiohttp.ClientResponse) -> None:
    if response.ok:
        return
    text = await response.text()
    try:
        status = json.loads(text)
        raise KubeError(response.status, status.get("reason", ""), status.get("message", ""))
    except (ValueError, AttributeError):
        raise KubeError(response.status, response.reason or "", text[:200]) from None


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for item in items:
        if item["name"] == name:
            return item
    raise KeyError(name)


def _material(holder: dict[str, Any], key: str) -> bytes | None:
    if f"{key}-data" in holder:
        return base64.b64decode(holder[f"{key}-data"])
    if key in holder:
        return Path(holder[key]).read_bytes()
    return None
