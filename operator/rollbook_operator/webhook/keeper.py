"""Keeping the certificates: the Secret they are in, the configuration that trusts them, the server's context.

Each round reads the Secret (and makes or renews it), puts the authorities into the webhook configuration, and
only in a later round, when they are seen to be there, serves a new certificate: no API server is ever shown
one that it was not told to trust. Replicas do the same with the same Secret, in any order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import tempfile
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog

from rollbook.kube import STRATEGIC_MERGE, KubeError
from rollbook_operator import retry
from rollbook_operator.webhook import certs
from rollbook_operator.webhook.certs import Bundle

if TYPE_CHECKING:
    import datetime as dt
    import random
    from collections.abc import Callable, Iterator

    from rollbook.kube import KubeApi

log = structlog.get_logger("rollbook.webhook")

INTERVAL: Final = 30.0
"""Seconds between rounds: how soon what somebody took out of the configuration is put back."""

CHANGEOVER: Final = 5.0
"""Seconds that API servers get to learn of a new authority before its certificate is served."""


class Keeper:
    """Keeps one webhook's certificates.

    Args:
        kube: the API server.
        namespace: of the Secret and the Service.
        service: the Service by which the API server calls.
        secret: the Secret's name.
        configuration: the name of the MutatingWebhookConfiguration.
        now: the time of day.
        rng: where jitter comes from.
    """

    def __init__(
        self,
        kube: KubeApi,
        *,
        namespace: str,
        service: str,
        secret: str,
        configuration: str,
        now: Callable[[], dt.datetime],
        rng: random.Random,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = certs.service_name(service, namespace)
        self._secret = secret
        self._configuration = configuration
        self._now = now
        self._rng = rng
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.served: Bundle | None = None
        """What is shown to those who connect."""

        self.trusted = False
        """Whether the configuration trusts it, as far as is known."""

        self.changing = False
        """Whether a new certificate waits to be served until API servers have learned to trust it."""

    async def run(self) -> None:
        """Do a round every interval; one that fails is repeated soon."""
        failures = 0
        while True:
            try:
                await self.round()
            except retry.API_ERRORS as error:
                log.warning("certificates_not_kept", attempt=failures, error=str(error) or repr(error))
                await retry.pause(failures, self._rng)
                failures += 1
            else:
                failures = 0
                await asyncio.sleep(CHANGEOVER if self.changing else INTERVAL)

    async def round(self) -> None:
        """Bring Secret, configuration and server one step closer together.

        Raises:
            KubeError: the API server refused.
        """
        bundle = await self._kept()
        changed = await self._make_trusted(bundle)
        if self.served is None or (bundle != self.served and not changed):
            with as_file(bundle.certificate + bundle.key) as path:
                self.context.load_cert_chain(path)
            self.served = bundle
            log.info("certificate_served", expires=certs.expiry(bundle).isoformat())
        self.changing = bundle != self.served
        self.trusted = True

    async def _kept(self) -> Bundle:
        """Return what is in the Secret, after it has been made or renewed if need be."""
        path = f"/api/v1/namespaces/{self._namespace}/secrets"
        while True:
            try:
                secret: dict[str, Any] | None = await self._kube.get(f"{path}/{self._secret}")
            except KubeError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                secret = None
            bundle = None if secret is None else Bundle.from_secret(secret.get("data") or {})
            verdict = certs.judge(bundle, name=self._name, now=self._now())
            if bundle is not None and not verdict.renew:
                return bundle
            made = certs.make(name=self._name, now=self._now(), before=bundle or self.served)
            try:
                await self._write(path, secret, made)
            except KubeError as error:
                # Another replica was quicker: what it made is as good.
                if error.status != HTTPStatus.CONFLICT:
                    raise
                await retry.pause(0, self._rng)
            else:
                log.info("certificate_made", reason=verdict.reason, name=self._name, secret=self._secret)
                return made

    async def _write(self, path: str, secret: dict[str, Any] | None, bundle: Bundle) -> None:
        if secret is None:
            body = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": self._secret, "namespace": self._namespace},
                "type": "kubernetes.io/tls",
                "data": bundle.to_secret(),
            }
            await self._kube.request("POST", path, body=body)
        else:
            # With the resourceVersion that was read, so that only one replica's renewal counts.
            body = {**secret, "data": {**(secret.get("data") or {}), **bundle.to_secret()}}
            await self._kube.request("PUT", f"{path}/{self._secret}", body=body)

    async def _make_trusted(self, bundle: Bundle) -> bool:
        """Put the authorities into the configuration; say whether it had to be changed."""
        path = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{self._configuration}"
        try:
            configuration = await self._kube.get(path)
            patch = certs.bundle_patch(configuration, certs.trusted(bundle, self._now()))
            if patch is not None:
                await self._kube.request("PATCH", path, body=patch, content_type=STRATEGIC_MERGE)
                log.info("configuration_patched", name=self._configuration)
        except KubeError as error:
            # An API server that cannot be asked for a moment has not forgotten what it was told.
            if error.status == HTTPStatus.NOT_FOUND:
                self.trusted = False
            raise
        return patch is not None


@contextlib.contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """Lend the content as a file, which is the only form in which :mod:`ssl` reads keys.

    On Linux it is in memory only, so that it works on a read-only root file system and no key touches a disk.
    """
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("rollbook", os.MFD_CLOEXEC)
        try:
            os.write(number, content)
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
