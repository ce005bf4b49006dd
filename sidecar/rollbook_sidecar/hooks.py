"""Hooks: what the kubelet calls on the pod's address: the startup probe, and the two preStop hooks.

The hooks act only for who knows the pod's own secret, so nobody else can drain it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from rollbook.problems import Problem
from rollbook_sidecar.answers import answering, as_json, elsewhere, same_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook_sidecar.drain import Drain

DRAIN_HEADER: Final = "X-Rollbook-Drain"


class Hooks:
    """The handlers.

    Args:
        drain: what they set off.
        serving: whether lookups are served.
        secret: what the header must hold; without one (on loopback only) everybody may drain.
    """

    def __init__(self, drain: Drain, *, serving: Callable[[], bool], secret: str) -> None:
        self._drain = drain
        self._serving = serving
        self._secret = secret

    def app(self) -> web.Application:
        """Return the application that serves them."""
        app = web.Application()
        app.router.add_get("/startup", answering(self.startup), allow_head=True)
        # A HEAD must not drain.
        app.router.add_get("/drain/self", answering(self.drain_self), allow_head=False)
        app.router.add_get("/drain/wait", answering(self.drain_wait), allow_head=False)
        app.router.add_route("*", "/{path:.*}", answering(elsewhere))
        return app

    async def startup(self, _: web.Request) -> web.Response:
        """``GET /startup``: 200 once lookups are served, with or without a registry."""
        if not self._serving():
            raise Problem("not_ready", "lookups are not served yet")
        return as_json({"status": "ok"})

    async def drain_self(self, request: web.Request) -> web.Response:
        """``GET /drain/self``: leave the book, and answer at once."""
        self._check(request)
        self._drain.deregister()
        return as_json({"deregistered": True})

    async def drain_wait(self, request: web.Request) -> web.Response:
        """``GET /drain/wait``: leave the book, and answer when it is safe to die."""
        self._check(request)
        return as_json(await self._drain.wait())

    def _check(self, request: web.Request) -> None:
        if self._secret and not same_secret(request.headers.get(DRAIN_HEADER, ""), self._secret):
            raise Problem(
                "forbidden",
                f"the header {DRAIN_HEADER} is missing or wrong",
                field=DRAIN_HEADER,
                accepted="this pod's drain secret",
            )
