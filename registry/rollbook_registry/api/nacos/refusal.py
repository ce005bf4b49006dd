"""What a Nacos client is told as long as its protocol is not spoken: an error in the protocol's own form.

That protocol does not use gRPC's own errors: the status is always OK, and the error is a Payload of type
``ErrorResponse``.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from rollbook_registry.api.nacos import payload
from rollbook_registry.api.nacos.payload import Payload, Unparsable

RESULT_FAILED: Final = 500
"""``resultCode`` of whatever failed; ``errorCode`` says more."""

LIMITS: Final = "see docs/limits.md"

_SHOWN_TYPE_LENGTH: Final = 80


class ErrorCode(enum.IntEnum):
    """Those of Nacos' error codes that are used here."""

    INVALID_SERVER_STATUS = 300
    """The server is not able to serve."""
    NO_HANDLER = 302
    """The server does not know this type of request."""
    UNPARSABLE = 502
    """The request cannot be read."""


class _Request(msgspec.Struct, rename="camel"):
    """What all requests have in common; the rest is not looked at."""

    request_id: str | None = None


class ErrorResponse(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """The body of an error, as it is on the wire."""

    result_code: int = RESULT_FAILED
    error_code: ErrorCode
    message: str
    # Always there and always a string: a client in a language without null can read it.
    request_id: str = ""
    success: bool = False


def refuse(data: bytes) -> ErrorResponse:
    """Say why a request is not answered otherwise.

    Args:
        data: the request as it came in; may be anything.
    """
    try:
        request = payload.decode(data)
        request_id = _request_id(request)
    except Unparsable as error:
        return ErrorResponse(error_code=ErrorCode.UNPARSABLE, message=str(error))
    if request.type == "ServerCheckRequest":
        return ErrorResponse(
            error_code=ErrorCode.INVALID_SERVER_STATUS,
            message=f"this version of Rollbook does not speak Nacos' naming protocol yet; {LIMITS}",
            request_id=request_id,
        )
    shown = request.type
    if len(shown) > _SHOWN_TYPE_LENGTH:
        shown = f"{shown[:_SHOWN_TYPE_LENGTH]}…"
    return ErrorResponse(
        error_code=ErrorCode.NO_HANDLER,
        message=f"there is no handler for {shown}: "
        f"this version of Rollbook does not speak Nacos' protocols yet; {LIMITS}",
        request_id=request_id,
    )


def encode(error: ErrorResponse) -> bytes:
    """Write it, in its envelope. Clients find the class of an answer by the envelope's type."""
    return payload.encode(Payload(ErrorResponse.__name__, msgspec.json.encode(error)))


def _request_id(request: Payload) -> str:
    if not request.body:
        return ""
    try:
        return msgspec.json.decode(request.body, type=_Request).request_id or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unparsable(
            f"the body of {request.type[:_SHOWN_TYPE_LENGTH]} is not accepted: {error}"
        ) from None
