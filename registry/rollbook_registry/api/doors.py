"""What all HTTP doors share: identities, bodies, queries and problems."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import structlog
from aiohttp import web

from rollbook.problems import CONTENT_TYPE, Problem, from_validation
from rollbook_registry.auth import ANONYMOUS, LOCAL
from rollbook_registry.book import Book
from rollbook_registry.connections import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rollbook_registry.auth import Identity
    from rollbook_registry.auth.tokens import Verifier

log = structlog.get_logger("rollbook.api")

T = TypeVar("T")

encode: Final = msgspec.json.Encoder().encode

BOOK: Final = web.AppKey("book", Book)
# Its type is not named at run time: its module loads a library of cryptography, which not everybody needs.
VERIFIER: Final[web.AppKey[Verifier | None]] = web.AppKey("verifier")

_LAST: Final = {"too_slow", "registry_full"}
"""After these the connection ends: what still comes of a slow body is not the next request."""

_HTTP_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def problem_response(problem: Problem) -> web.Response:
    """Write a problem as RFC 9457 wants it."""
    headers = {}
    if problem.status == web.HTTPUnauthorized.status_code:
        headers["WWW-Authenticate"] = "Bearer"
    elif problem.status in {429, 503}:
        headers["Retry-After"] = "1"
    response = web.Response(
        status=problem.status,
        body=encode(problem.details()),
        content_type=CONTENT_TYPE,
        headers=headers,
    )
    if problem.code in _LAST:
        response.force_close()
    return response


@web.middleware
async def problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every error, ours, aiohttp's or unexpected, as a problem; mark where requests begin and end."""
    connection = request.protocol
    # In tests others may make the connections.
    guarded = connection if isinstance(connection, Connection) else None
    try:
        if guarded is not None:
            guarded.asked(request.path)
        response = await handler(request)
        if guarded is not None and guarded.refused is not None:
            response.force_close()
        return response  # noqa: TRY300  # an else would be read as another case
    except Problem as problem:
        request.app[BOOK].metrics.refusals.labels(problem.code).inc()
        return problem_response(problem)
    except web.HTTPException as error:
        if error.status < web.HTTPBadRequest.status_code:
            raise
        code = _HTTP_CODES.get(error.status, "bad_value")
        detail = {
            "not_found": f"there is nothing at {request.path}",
            "method_not_allowed": f"{request.path} does not take {request.method}",
        }.get(code, error.reason)
        response = problem_response(Problem(code, detail))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:
        # That a client went away in the middle of it is no failure of ours, and there is nobody to answer.
        gone = request.transport is None or request.transport.is_closing()
        if not (gone and isinstance(error, ConnectionError)):
            log.exception("request_failed", method=request.method, path=request.path)
        return problem_response(Problem("internal", "the registry failed; its log says how"))
    finally:
        if guarded is not None:
            guarded.answered()


async def identity(request: web.Request) -> Identity:
    """Say who sends a request.

    Raises:
        Problem: 401 for a token that is not acceptable.
    """
    verifier = request.app[VERIFIER]
    if verifier is None:
        return LOCAL
    header = request.headers.get("Authorization")
    if header is None:
        return ANONYMOUS
    return await verifier.verify(bearer(header))


def bearer(authorization: str) -> str:
    """Return the token that an ``Authorization`` header shows.

    Raises:
        Problem: 401 for a header of another form.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem(
            "unauthenticated",
            "Authorization is not a bearer token",
            field="Authorization",
            accepted="Bearer TOKEN",
        )
    return token.strip()


async def payload(request: web.Request) -> bytes:
    """Read a body, which must come within ``--request-timeout``.

    Raises:
        Problem: 408 ``too_slow``; 413 ``too_large`` (raised by aiohttp as its own error).
    """
    # Nearly always it has come with the head, and then a timer would cost more than reading it.
    if request.content.is_eof():
        return await request.read()
    limit = request.app[BOOK].settings.request_timeout
    try:
        async with asyncio.timeout(limit):
            return await request.read()
    except TimeoutError:
        raise Problem(
            "too_slow", f"the body was not complete within {limit:g} s (--request-timeout)"
        ) from None


async def body(request: web.Request, type_: type[T]) -> T:
    """Read a JSON body.

    Raises:
        Problem: 400 ``bad_value`` naming the field that is wrong; and as :func:`payload`.
    """
    return read_body(await payload(request), type_)


def read_body(data: bytes, type_: type[T]) -> T:
    """Read a JSON body that is there.

    Raises:
        Problem: 400 ``bad_value`` naming the field that is wrong.
    """
    if not data:
        raise Problem("bad_value", "the body is empty", field="body", accepted="a JSON object")
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise from_validation(error) from None
    except (UnicodeDecodeError, RecursionError):
        raise Problem(
            "bad_value",
            "the body is not UTF-8, or nested too deeply",
            field="body",
            accepted="a JSON object",
        ) from None


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Write JSON."""
    return web.Response(status=status, body=encode(value), content_type="application/json", headers=headers)
