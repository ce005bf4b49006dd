"""Tokens: verifying a projected service account token with the API server's public keys (JWKS).

The keys are read from the API server's OpenID discovery and kept; a token signed with a key that is not known
has them read again, at most every few seconds. Where they cannot be read, the API server is asked about the
token itself (TokenReview). Answers are remembered by the token's hash until it expires, so that a client's
requests cost one verification.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import jwt
import structlog

from rollbook.kube import KubeApi, KubeError
from rollbook.problems import Problem
from rollbook_registry.auth.identity import Identity, from_claims, from_review

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook_registry.auth.identity import Accounts

log = structlog.get_logger("rollbook.auth")

KEYS_REREAD: Final = 10.0
"""Seconds between readings of the keys for the sake of tokens whose key is not known."""

REMEMBERED: Final = 20_000
"""Tokens whose answer is remembered."""

LEEWAY: Final = 10.0
"""Seconds by which clocks may differ."""


def _bad_token(detail: str) -> Problem:
    return Problem("unauthenticated", f"the token is not acceptable: {detail}", field="Authorization")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Verifier:
    """Turns tokens into identities.

    Args:
        api: the API server.
        audience: what tokens must be made for.
        accounts: who may do more than speak for its pod.
        wall: Unix time in seconds.
    """

    def __init__(self, api: KubeApi, *, audience: str, accounts: Accounts, wall: Callable[[], float]) -> None:
        self._api = api
        self._audience = audience
        self._accounts = accounts
        self._wall = wall
        self._issuer = ""
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._known: OrderedDict[bytes, Identity] = OrderedDict()

    async def verify(self, token: str) -> Identity:
        """Say whose token it is.

        Raises:
            Problem: 401 ``unauthenticated`` or ``token_expired``; 503 ``not_ready`` when nobody can be asked.
        """
        known = self.remembered(token)
        if known is not None:
            return known
        identity = await self._verify(token)
        self._known[_hash(token)] = identity
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return identity

    def remembered(self, token: str) -> Identity | None:
        """Say whose token it is if that was found out before, and it has not expired since."""
        hashed = _hash(token)
        known = self._known.get(hashed)
        if known is None or (known.expires and self._wall() >= known.expires + LEEWAY):
            return None
        self._known.move_to_end(hashed)
        return known

    async def _verify(self, token: str) -> Identity:
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
        except jwt.InvalidTokenError as error:
            raise _bad_token(str(error)) from None
        key = await self._key(kid)
        if key is None:
            return await self._review(token)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["RS256", "ES256", "ES384", "ES512", "RS384", "RS512"],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Problem("token_expired", "the token has expired", field="Authorization") from None
        except jwt.InvalidTokenError as error:
            raise _bad_token(str(error)) from None
        return from_claims(claims, self._accounts)

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        if kid in self._keys:
            return self._keys[kid]
        async with self._reading:
            if kid not in self._keys and self._wall() - self._read_at > KEYS_REREAD:
                self._read_at = self._wall()
                try:
                    await self._read_keys()
                except (KubeError, aiohttp.ClientError, OSError, LookupError, ValueError) as error:
                    log.warning("keys_unreadable", error=str(error), effect="asking TokenReview instead")
        return self._keys.get(kid)

    async def _read_keys(self) -> None:
        discovery = await self._api.get("/.well-known/openid-configuration")
        keys = await self._api.get("/openid/v1/jwks", accept="application/jwk-set+json, application/json")
        self._issuer = discovery["issuer"]
        usable = {}
        for key in keys["keys"]:
            try:
                usable[key["kid"]] = jwt.PyJWK(key)
            except jwt.PyJWTError as error:
                log.warning("key_unusable", kid=key["kid"], error=str(error))
        self._keys = usable
        log.info("keys_read", issuer=self._issuer, keys=len(self._keys))

    async def _review(self, token: str) -> Identity:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._api.request(
                "POST", "/apis/authentication.k8s.io/v1/tokenreviews", body=body, timeout=10.0
            )
        except (KubeError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Problem("not_ready", f"the token cannot be checked now: {error}") from None
        status = answer.get("status", {})
        if not status.get("authenticated") or self._audience not in status.get("audiences", []):
            raise _bad_token(status.get("error") or "the API server does not know it")
        # The API server has vouched for the whole token, so its own word on its end can be believed.
        claims = jwt.decode(token, options={"verify_signature": False})
        return from_review(status, expires=float(claims.get("exp", 0)), accounts=self._accounts)
