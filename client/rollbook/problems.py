"""Problems: every error that crosses a door of Rollbook, as RFC 9457 problem details.

One class for all parts: the registry raises it, HTTP answers and session frames carry it, the SDK raises
it again at the caller. ``code`` is stable and meant for programs; ``detail`` is meant for people.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec

CONTENT_TYPE: Final = "application/problem+json"

_SHOWN_VALUE_LENGTH: Final = 80

STATUS: Final[dict[str, HTTPStatus]] = {
    "bad_value": HTTPStatus.BAD_REQUEST,
    "bad_frame": HTTPStatus.BAD_REQUEST,
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
    "token_expired": HTTPStatus.UNAUTHORIZED,
    "forbidden": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "unknown_instance": HTTPStatus.NOT_FOUND,
    "lease_ended": HTTPStatus.CONFLICT,
    "stale_term": HTTPStatus.CONFLICT,
    "epoch_superseded": HTTPStatus.CONFLICT,
    "conflict": HTTPStatus.CONFLICT,
    "pod_terminating": HTTPStatus.GONE,
    "pod_gone": HTTPStatus.GONE,
    "too_slow": HTTPStatus.REQUEST_TIMEOUT,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "head_too_large": HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "limit_reached": HTTPStatus.TOO_MANY_REQUESTS,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "registry_full": HTTPStatus.SERVICE_UNAVAILABLE,
    "not_ready": HTTPStatus.SERVICE_UNAVAILABLE,
    "store_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "registry_unreachable": HTTPStatus.SERVICE_UNAVAILABLE,
    "no_instance": HTTPStatus.SERVICE_UNAVAILABLE,
    # These two are the SDK's own, and never cross a door.
    "not_followed": HTTPStatus.NOT_FOUND,
    "client_closed": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Every code there is, and the HTTP status that goes with it."""


class ProblemDetails(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The problem as it is written on the wire (RFC 9457, section 3.1)."""

    type: str = ""
    title: str = ""
    status: int = 0
    code: str
    detail: str = ""
    field: str = ""
    accepted: str = ""


class Problem(Exception):  # noqa: N818  # RFC 9457's own word for it
    """An error with a stable code.

    Args:
        code: one of :data:`STATUS`.
        detail: what happened, for people.
        field: the part of the input that was wrong, if it was the input.
        accepted: the form that would have been right.
    """

    def __init__(self, code: str, detail: str, *, field: str = "", accepted: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.accepted = accepted

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return int(STATUS.get(self.code, HTTPStatus.INTERNAL_SERVER_ERROR))

    def details(self) -> ProblemDetails:
        """Return the problem for the wire."""
        return ProblemDetails(
            type=f"urn:rollbook:problem:{self.code}",
            title=self.code.replace("_", " "),
            status=self.status,
            code=self.code,
            detail=self.detail,
            field=self.field,
            accepted=self.accepted,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.code, self.detail, self.field, self.accepted))


def _rebuild(code: str, detail: str, field: str, accepted: str) -> Problem:
    return Problem(code, detail, field=field, accepted=accepted)


def from_details(details: ProblemDetails) -> Problem:
    """Turn what came over the wire into an exception again."""
    return Problem(details.code, details.detail, field=details.field, accepted=details.accepted)


def bad_value(field: str, value: object, accepted: str) -> Problem:
    """Say which field is wrong, what it was, and what it may be."""
    shown = repr(value)
    if len(shown) > _SHOWN_VALUE_LENGTH:
        shown = f"{shown[:_SHOWN_VALUE_LENGTH]}…"
    return Problem("bad_value", f"{field} is {shown}; accepted: {accepted}", field=field, accepted=accepted)


def inside(prefix: str, problem: Problem) -> Problem:
    """Return what :func:`bad_value` said of a part, as said of the whole: ``port`` as ``entries[3].port``."""
    return Problem(
        problem.code,
        f"{prefix}{problem.detail}",
        field=f"{prefix}{problem.field}",
        accepted=problem.accepted,
    )


def from_validation(error: msgspec.ValidationError | msgspec.DecodeError) -> Problem:
    """Turn msgspec's complaint into ours, with the path of the field that it names."""
    text = str(error)
    message, _, path = text.partition(" - at `")
    field = path.rstrip("`").removeprefix("$.").removeprefix("$") or "body"
    if "missing required field" in message or "unknown field" in message:
        name = message.split("`")[1] if "`" in message else ""
        field = name if field == "body" else f"{field}.{name}"
    return Problem("bad_value", f"{field}: {message}", field=field, accepted=message)
