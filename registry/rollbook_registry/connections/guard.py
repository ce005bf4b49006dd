"""The guard: one sweeper for all connections of all ports.

aiohttp has a time limit for connections that rest between requests, and none for a head that does not come,
for an answer that is not taken, or for how many there are.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
from aiohttp import web

from rollbook.clock import AttentiveClock
from rollbook.limits import MAX_BODY_BYTES
from rollbook.problems import CONTENT_TYPE, Problem
from rollbook_registry.connections.census import Census, Closing, Door, Limits, Refusal
from rollbook_registry.connections.connection import LINGER, Connection
from rollbook_registry.connections.plain import Bypass, Reader
from rollbook_registry.connections.sockets import make_room

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook_registry.connections.plain import Plain
    from rollbook_registry.metrics import Metrics
    from rollbook_registry.settings import RegistrySettings

log = structlog.get_logger("rollbook.connections")

LINE_BYTES: Final = 8190
"""Bytes of a request's first line, and of one header; aiohttp's own default, and Apache's."""

HEADERS: Final = 128
"""Headers of one request."""


class Guard:
    """Watches over connections.

    Args:
        settings: the registry's settings.
        metrics: where refusals and endings are counted.
        clock: monotonic seconds.
    """

    def __init__(self, settings: RegistrySettings, metrics: Metrics, *, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        room = make_room(settings.max_connections)
        self.census: Census[Connection] = Census(
            Limits(
                connections=room,
                # With few descriptors both have less, rather than plain HTTP nothing.
                sessions=settings.max_sessions * room // settings.max_connections,
                per_address=settings.max_connections_per_address,
                request=settings.request_timeout,
                write=settings.write_timeout,
            )
        )
        self.interval = min(1.0, settings.request_timeout / 4, settings.write_timeout / 4)
        """Seconds between sweeps: so much later than due a connection may be ended, and no earlier."""
        # A client must not be judged by time during which this process did not read what it sent.
        self._attentive = AttentiveClock(clock(), max_step=2 * self.interval)
        self.now = 0.0
        """The attentive time of the next sweep: what begins before it is not ended early."""
        self._look()
        self.tcp_keepalive = settings.tcp_keepalive

    # --- connections -----------------------------------------------------------------------------------

    def factory(
        self, server: web.Server, door: Door, answer: Callable[[Plain], bytes | None] | None = None
    ) -> Callable[[], Connection]:
        """Return what makes the connections of one port, for ``loop.create_server``.

        Args:
            server: that answers their requests.
            door: which port it is.
            answer: answers plain requests before it, or returns ``None``.
        """
        bypass = Bypass(Reader(max_body=MAX_BODY_BYTES), answer) if answer is not None else None
        settings = self._settings
        loop = asyncio.get_running_loop()
        # Nobody has reason to rest at the session's port without a session. Twice, because aiohttp counts
        # from the connection's beginning, and the guard has an answer for who is slow.
        rest = settings.keepalive_timeout if door is Door.HTTP else 2 * settings.request_timeout

        def make() -> Connection:
            return Connection(
                server,
                guard=self,
                door=door,
                bypass=bypass,
                loop=loop,
                keepalive_timeout=rest,
                lingering_time=LINGER,
                access_log=None,
                max_line_size=LINE_BYTES,
                max_field_size=LINE_BYTES,
                max_headers=HEADERS,
            )

        return make

    def admit(self, who: Connection, door: Door, address: str) -> tuple[bool, Problem | None]:
        """Let a connection in, or not; see :meth:`Census.admit`."""
        stays, refusal = self.census.admit(who, door=door, address=address, now=self.now)
        if refusal is None:
            return stays, None
        self._metrics.connections_refused.labels(refusal.value).inc()
        return stays, self._problem(refusal, address)

    def _problem(self, refusal: Refusal, address: str) -> Problem:
        limits = self.census.limits
        match refusal:
            case Refusal.REGISTRY_FULL:
                said = f"this registry has {limits.connections} connections and may have no more"
                where = "--max-connections"
            case Refusal.HTTP_FULL:
                said = f"this registry has {self.census.counts[Door.HTTP]} connections that are no sessions"
                where = "--max-connections less --max-sessions"
            case Refusal.ADDRESS_FULL:
                said = f"address {address} has {limits.per_address} connections and may have no more"
                where = "--max-connections-per-address"
        return Problem("registry_full", f"{said} ({where})")

    def unparsable(self, said: str) -> web.Response:
        """Answer what is no HTTP, or more than may be."""
        # aiohttp's text goes on with what was sent.
        first = said.partition("\n")[0].partition(" when reading")[0].strip().rstrip(":")
        large = "more than" in first.lower() or "too many" in first.lower()
        code = "head_too_large" if large else "bad_value"
        self._metrics.refusals.labels(code).inc()
        accepted = f"HTTP/1.1 with at most {HEADERS} headers, and lines of at most {LINE_BYTES} bytes"
        problem = Problem(code, f"{first}; accepted: {accepted}", field="request", accepted=accepted)
        response = web.Response(
            status=problem.status, body=msgspec.json.encode(problem.details()), content_type=CONTENT_TYPE
        )
        response.force_close()
        return response

    # --- time ------------------------------------------------------------------------------------------

    def _look(self) -> float:
        now = self._attentive.look(self._clock())
        self.now = now + self.interval
        return now

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self.interval)
            self.sweep()

    def sweep(self) -> None:
        """End the connections whose time is up."""
        for connection, why in self.census.due(self._look()):
            self._metrics.connections_closed.labels(why.value).inc()
            answer = b""
            if why is Closing.SLOW_HEAD:
                within = f"{self.census.limits.request:g} s (--request-timeout)"
                answer = _spell(Problem("too_slow", f"the request was not complete within {within}"))
            elif why is Closing.REFUSED and connection.refused is not None:
                answer = _spell(connection.refused)
            connection.cut(why, answer)


def _spell(problem: Problem) -> bytes:
    """Write a problem as a whole response, for a connection whose request nobody handles."""
    body = msgspec.json.encode(problem.details())
    title = problem.code.replace("_", " ")
    head = (
        f"HTTP/1.1 {problem.status} {title}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
