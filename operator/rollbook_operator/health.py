"""What probes and Prometheus ask, over plain HTTP: ``/healthz``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from prometheus_client import CollectorRegistry


def make_app(
    collector: CollectorRegistry,
    *,
    live: Callable[[], Mapping[str, Any]],
    ready: Callable[[], Mapping[str, bool]],
) -> web.Application:
    """Make the application.

    Args:
        collector: what ``/metrics`` shows.
        live: what ``/healthz`` tells besides being alive, which answering at all proves.
        ready: conditions by name; ``/readyz`` is 200 if all hold, else 503, and tells them.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", **live()})

    async def readyz(_: web.Request) -> web.Response:
        conditions = dict(ready())
        return web.json_response(conditions, status=200 if all(conditions.values()) else 503)

    async def metrics(request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encoder(collector), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, *, port: int, host: str | None = None, **site: Any
) -> AsyncIterator[int]:
    """Serve an application for the length of a ``with`` block; gives the port.

    Args:
        app: what to serve.
        port: where; 0 for any.
        host: on which address; ``None`` for all, as probes and the API server come from outside the pod.
        site: for :class:`aiohttp.web.TCPSite`.

    Raises:
        OSError: the port is taken.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, **site).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
