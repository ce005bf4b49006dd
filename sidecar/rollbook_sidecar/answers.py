"""Answers: what the sidecar's two HTTP servers have in common."""

from __future__ import annotations

import functools
import hashlib
import hmac
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import structlog
from aiohttp import web

from rollbook.problems import CONTENT_TYPE, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

Handler: TypeAlias = "Callable[[web.Request], Awaitable[web.StreamResponse]]"

log = structlog.get_logger("rollbook.sidecar")

SHUTDOWN_TIMEOUT: Final = 2.0
"""Seconds that requests in flight have when the process ends."""


_TRY_AGAIN: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class CannotListen(Exception):  # noqa: N818  # what it says to people
    """A port or an address cannot be had; the text says which, and the flag."""


def as_json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


def as_problem(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with problem details."""
    answer = web.Response(
        body=msgspec.json.encode(problem.details()),
        status=problem.status,
        headers=headers,
        content_type=CONTENT_TYPE,
    )
    if problem.status in _TRY_AGAIN:
        answer.headers["Retry-After"] = "1"
    return answer


def answering(handler: Handler) -> Handler:
    """Turn what a handler raises into an answer; a wrapper, since middleware costs every request."""

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Problem as problem:
            return as_problem(problem)
        except web.HTTPException:
            raise
        except Exception:
            log.exception("request_failed", path=request.path)
            return as_problem(Problem("internal", "the sidecar's log has more about it"))

    return answer


async def elsewhere(request: web.Request) -> web.Response:
    """Answer what no route answers."""
    if request.method in {"GET", "HEAD"}:
        return as_problem(Problem("not_found", f"there is nothing at {request.path}"))
    return as_problem(
        Problem(
            "method_not_allowed",
            f"{request.method} is not possible at the sidecar; instances are changed at the registry",
            accepted="GET, HEAD",
        ),
        {"Allow": "GET, HEAD"},
    )


def same_secret(given: str, expected: str) -> bool:
    """Compare two secrets in a time that does not tell where, or in what length, they differ."""
    return hmac.compare_digest(_hashed(given), _hashed(expected))


def _hashed(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


async def serve(
    app: web.Application, *, host: str, port: int, flag: str, cancel: bool = False
) -> tuple[web.AppRunner, int]:
    """Start to serve, and return what stops it (``cleanup``) and the port.

    Args:
        app: what to serve.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        flag: what sets the port, for errors.
        cancel: whether a handler ends when its caller goes away.

    Raises:
        CannotListen: somebody else does, or there is no such address.
    """
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=cancel, shutdown_timeout=SHUTDOWN_TIMEOUT
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise CannotListen(
            f"cannot listen on {host} port {port} ({flag}): {error.strerror or error}"
        ) from None
    return runner, int(runner.addresses[0][1])
