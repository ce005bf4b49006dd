"""As much of an API server as tokens need: keys, discovery, TokenReview; and tokens signed like its own."""

from __future__ import annotations

import json
import time

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

ISSUER = "https://kubernetes.default.svc.cluster.local"


class Key:
    """A signing key."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def public(self) -> dict:
        return {**json.loads(RSAAlgorithm.to_jwk(self.private.public_key())), "kid": self.kid, "use": "sig"}

    def token(
        self, *, uid="u", pod="orders-1", account="shop/default", expires=3600.0, audience="rollbook",
        issuer=ISSUER, kid=None, now=None, drop=(), algorithm="RS256",
    ) -> str:  # fmt: skip
        """Sign a token as the API server would for a projected volume."""
        namespace, name = account.split("/")
        now = time.time() if now is None else now
        claims = {
            "aud": [audience],
            "exp": int(now + expires),
            "iat": int(now),
            "iss": issuer,
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": name, "uid": "account-uid"},
                **({"pod": {"name": pod, "uid": uid}} if uid else {}),
            },
        }
        for claim in drop:
            del claims[claim]
        return jwt.encode(claims, self.private, algorithm=algorithm, headers={"kid": kid or self.kid})


class ApiServer:
    """The API server; its faults are switches."""

    def __init__(self, *keys: Key) -> None:
        self.keys = [k.public() for k in keys]
        self.keys_broken = False
        self.reviews_broken = False
        self.known: dict[str, dict] = {}
        """What TokenReview says of a token."""
        self.reads = 0
        self.reviewed: list[dict] = []
        app = web.Application()
        app.add_routes(
            [
                web.get("/.well-known/openid-configuration", self._discovery),
                web.get("/openid/v1/jwks", self._jwks),
                web.post("/apis/authentication.k8s.io/v1/tokenreviews", self._review),
            ]
        )
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def _discovery(self, _):
        self.reads += 1
        if self.keys_broken:
            return web.json_response({"reason": "Forbidden", "message": "no"}, status=403)
        return web.json_response({"issuer": ISSUER, "jwks_uri": "elsewhere"})

    async def _jwks(self, _):
        return web.json_response({"keys": self.keys}, content_type="application/jwk-set+json")

    async def _review(self, request):
        body = await request.json()
        self.reviewed.append(body)
        if self.reviews_broken:
            return web.json_response({"reason": "InternalError", "message": "no"}, status=500)
        said = self.known.get(body["spec"]["token"], {"authenticated": False, "error": "unknown token"})
        return web.json_response({**body, "status": said})


def vouched(*, uid="u", account="shop:default", audiences=("rollbook",)) -> dict:
    """A TokenReview's status that says yes."""
    return {
        "authenticated": True,
        "audiences": list(audiences),
        "user": {
            "username": f"system:serviceaccount:{account}",
            "extra": {"authentication.kubernetes.io/pod-uid": [uid]},
        },
    }
