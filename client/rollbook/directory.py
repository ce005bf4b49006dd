"""Directory: the names of all services, read page by page over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from rollbook.model import ServicePage
from rollbook.names import ServiceKey
from rollbook.problems import Problem, ProblemDetails, from_details

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rollbook.model import ServiceCount

PAGE: Final = 1000
"""Services in one answer: as many as a registry gives."""

TIMEOUT: Final = 15.0
"""Seconds that one page may take."""


async def services(
    get: Callable[[str, dict[str, str], float], Awaitable[tuple[int, bytes]]],
    base: str,
    *,
    namespace: str,
    group: str | None,
) -> list[ServiceCount]:
    """Return all services of a namespace, each once; what comes or goes meanwhile may be among them or not.

    Args:
        get: sends a GET (URL, query, seconds) and returns status and body.
        base: of the API's URLs.
        namespace: whose services.
        group: theirs; ``None`` for all.

    Raises:
        Problem: what the registry answers; 503 ``registry_unreachable`` if none does.
    """
    query = {"namespace": namespace, "size": str(PAGE)} | ({} if group is None else {"group": group})
    found: dict[ServiceKey, ServiceCount] = {}
    number = 1
    while True:
        try:
            status, body = await get(f"{base}/services", query | {"page": str(number)}, TIMEOUT)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unreachable(base, str(error) or type(error).__name__) from None
        page = _read(base, status, body)
        found.update({ServiceKey(s.namespace, s.group, s.service): s for s in page.services})
        if number * PAGE >= page.total or not page.services:
            return list(found.values())
        number += 1


def _read(base: str, status: int, body: bytes) -> ServicePage:
    try:
        if status == 200:  # noqa: PLR2004  # OK
            return msgspec.json.decode(body, type=ServicePage)
        problem = from_details(msgspec.json.decode(body, type=ProblemDetails))
    except msgspec.DecodeError:
        raise _unreachable(base, f"status {status}, and not as a registry answers") from None
    raise problem


def _unreachable(base: str, reason: str) -> Problem:
    accepted = "http_port of the client: where its registry answers HTTP"
    return Problem("registry_unreachable", f"no registry answers at {base}: {reason}", accepted=accepted)
