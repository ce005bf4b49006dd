"""The direct way: plain requests for what is asked all day, answered as soon as they are read.

A route that can be answered without waiting for anything says so by :attr:`Route.direct`. What is answered
here is answered by the same functions as on aiohttp's way, and only where it goes well: whatever is refused,
unusual or wrong is left to aiohttp, which then says why. So there is no second place for errors, and the two
ways cannot differ in what they refuse, but only in what it costs.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp.http import SERVER_SOFTWARE

from rollbook.problems import Problem
from rollbook_registry.api.doors import bearer
from rollbook_registry.api.routes import JSON
from rollbook_registry.auth import ANONYMOUS, LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rollbook_registry.api.routes import AtOnce, Reply, Route, Values
    from rollbook_registry.auth import Identity
    from rollbook_registry.auth.tokens import Verifier
    from rollbook_registry.connections.plain import Plain

log = structlog.get_logger("rollbook.api")

REMEMBERED: Final = 4096
"""First lines of requests that are remembered with what answers them; those least lately asked go first."""

# No percent signs, plus signs or other characters that a parser of URLs would have an opinion about.
_TARGET = re.compile(rb"([A-Z]+) ((?:/[0-9A-Za-z_.:@~\-\[\]]+)+)(?:\?([0-9A-Za-z_.:,@~=&\-]+))? HTTP/1\.1")
_VARIABLE = re.compile(r"\{(\w+)\}")


class _Pattern:
    """The path of one route, segment by segment."""

    def __init__(self, route: Route, make: Callable[[Values], AtOnce]) -> None:
        self.route = route
        self.make = make
        self._segments = route.path.split("/")

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """Return the parameters in a path, ``None`` if it is not this route's."""
        if len(segments) != len(self._segments):
            return None
        found = {}
        for wanted, given in zip(self._segments, segments, strict=True):
            variable = _VARIABLE.fullmatch(wanted)
            if variable is not None:
                found[variable[1]] = given
            elif wanted != given:
                return None
        return found


class Direct:
    """Answers plain requests.

    Args:
        routes: those that have a direct way are served here.
        verifier: knows tokens; ``None`` where nobody is asked for one.
        wall: Unix time in seconds.
    """

    def __init__(
        self, routes: Iterable[Route], verifier: Verifier | None, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._patterns: dict[str, list[_Pattern]] = {}
        for route in routes:
            if route.direct is not None:
                self._patterns.setdefault(route.method, []).append(_Pattern(route, route.direct))
        self._verifier = verifier
        self._wall = wall
        self._find = lru_cache(REMEMBERED)(self._look_up)
        self._second = 0
        self._end = b""

    def answer(self, request: Plain) -> bytes | None:
        """Return a whole response, or ``None`` for what is left to aiohttp; then nothing has happened.

        Unless it failed, which is logged, and may have happened half way: aiohttp's way then does it again.
        """
        known = self._find(request.line)
        if known is None:
            return None
        try:
            who = self._identify(request.head.authorization)
            reply = known(request, who) if who is not None else None
        except Problem:
            return None
        except Exception:
            # aiohttp's way meets it again, and has an answer for it.
            log.exception("direct_failed", line=request.line.decode(errors="replace"))
            return None
        return None if reply is None else self._spell(reply)

    def _look_up(self, line: bytes) -> AtOnce | None:
        found = _TARGET.fullmatch(line)
        if found is None:
            return None
        method, path, query = found[1].decode(), found[2].decode(), (found[3] or b"").decode()
        segments = path.split("/")
        for pattern in self._patterns.get(method, ()):
            given = pattern.match(segments)
            if given is None:
                continue
            pairs = [tuple(pair.split("=")) for pair in query.split("&")] if query else []
            # What is no pair is not the same to everybody who reads queries.
            if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004  # name and value
                return None
            try:
                values = pattern.route.read(given, pairs)
            except Problem:
                return None
            return pattern.make(values)
        return None

    def _identify(self, authorization: str) -> Identity | None:
        """Say who it is; ``None`` if that takes asking.

        Raises:
            Problem: 401 for what is no bearer token.
        """
        if self._verifier is None:
            return LOCAL
        if not authorization:
            return ANONYMOUS
        return self._verifier.remembered(bearer(authorization))

    def _spell(self, reply: Reply) -> bytes:
        now = int(self._wall())
        if now != self._second:
            self._second = now
            self._end = f"Date: {formatdate(now, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n".encode()
        return b"".join((_head(reply), self._end, reply.body))


_STATUS: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_EMPTY: Final = {status: line + b"Content-Length: 0\r\n" for status, line in _STATUS.items()}
_TYPE: Final = f"Content-Type: {JSON}\r\nContent-Length: ".encode()
_JSON: Final = {status: line + _TYPE for status, line in _STATUS.items()}


def _head(reply: Reply) -> bytes:
    status, body, etag = reply
    if etag:
        tagged = _STATUS[status] + f"ETag: {etag}\r\n".encode()
        return b"%b%b%d\r\n" % (tagged, _TYPE, len(body)) if body else tagged
    return b"%b%d\r\n" % (_JSON[status], len(body)) if body else _EMPTY[status]
