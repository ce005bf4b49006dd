"""One connection: aiohttp's own protocol, which tells the guard what happens on it.

What aiohttp need not see is answered before it (:meth:`Connection._passed_by`): one plain request that came
whole, on a connection where nothing is under way and every byte before belonged to a request that was plain
too. So it is known where each request begins, however the bytes are cut, and there is one reader of
everything that could be read in two ways. The first bytes that are not plain to see give the connection to
aiohttp for good.

Nearly all that is used is documented: the callbacks of :class:`asyncio.Protocol`, that
:class:`aiohttp.web.RequestHandler` is one, made by a :class:`aiohttp.web.Server` with that server and its
options, and that it asks ``handle_error`` for the answer to what it cannot parse. What is not documented is
the queue of parsed requests, ``_messages``; ``_waiter``, the future that is pending while it waits for a
request; ``_request_count``; ``_force_close``; and when a resting connection is closed,
``_next_keepalive_close_time``. Tests notice if any of it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage

from rollbook_registry.connections import sockets

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from rollbook.problems import Problem
    from rollbook_registry.connections.census import Closing, Door
    from rollbook_registry.connections.guard import Guard
    from rollbook_registry.connections.plain import Bypass

log = structlog.get_logger("rollbook.connections")

PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""What a full registry still answers: being full is no reason to be restarted."""

LINGER: Final = 1.0
"""Seconds for which what still comes after the last answer is read and thrown away, so that it arrives."""


class Connection(web.RequestHandler):
    """A client's connection to one of the HTTP ports.

    Args:
        manager: aiohttp's server.
        guard: who watches.
        door: the port that it came to.
        bypass: the way past aiohttp; ``None`` at ports that have none.
        options: aiohttp's own.
    """

    __slots__ = (
        "_at_rest",
        "_awaited",
        "_bypass",
        "_door",
        "_linger",
        "_lost_cause",
        "_missing",
        "_socket",
        "_unread",
        "guard",
        "on_lost",
        "refused",
    )

    def __init__(
        self, manager: web.Server, *, guard: Guard, door: Door, bypass: Bypass | None, **options: Any
    ) -> None:
        super().__init__(manager, **options)
        self.guard = guard
        self._bypass = bypass
        self._missing = 0
        self._unread = False
        self._door = door
        self._at_rest = False
        self._awaited = True
        self._lost_cause = False
        self._linger: asyncio.TimerHandle | None = None
        self._socket: asyncio.Transport | None = None
        self.refused: Problem | None = None
        """Why it was not let in; its requests are answered so."""
        self.on_lost: Callable[[], None] | None = None
        """Called when it has gone, for a handler that waits for something else."""

    # --- asyncio's callbacks ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected."""
        # uvloop's transports have the interface, and not the base class.
        self._socket = stream = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        stays, self.refused = self.guard.admit(self, self._door, str(peer[0]) if peer else "")
        if not stays:
            stream.abort()
            return
        self._at_rest = True
        sockets.notice_the_dead(transport.get_extra_info("socket"), self.guard.tcp_keepalive)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._lost_cause:
            return
        # aiohttp calls this itself, with nothing, to go on with what it has.
        if data and self._bypass is not None and self._passed_by(self._bypass, data):
            return
        super().data_received(data)
        # What follows is all that a request costs here, so it asks for as little as it can.
        if self._messages:
            if not isinstance(self._messages[-1][0], RawRequestMessage):
                self._give_up()
        elif self._at_rest and data:
            # A request has begun, and its head did not come in one piece.
            self._at_rest = False
            self._awaited = True
            self.guard.census.began(self, self.guard.now)

    def _passed_by(self, bypass: Bypass, data: bytes) -> bool:
        """Answer without aiohttp if that can be done, and keep count of where the next request begins."""
        if self._missing:
            # The rest of a body whose request aiohttp has.
            self._missing -= len(data)
            if self._missing < 0:
                self._bypass = None
            return False
        waiter = self._waiter
        idle = not waiter.done() if waiter is not None else not self._request_count
        request = bypass.reader.read(data) if idle else None
        if request is None or self.refused is not None or self._force_close or self._close:
            self._bypass = None
            return False
        self._missing = request.missing
        if self._missing or self._unread:
            return False
        answer = bypass.answer(request)
        if answer is None or self._socket is None:
            return False
        self._socket.write(answer)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._awaited:
            self._awaited = False
            self.guard.census.completed(self)
        return True

    def _give_up(self) -> None:
        """Read no more of what is no HTTP: it will be answered so and closed.

        Until then aiohttp would take every further piece for another message, and keep it.
        """
        self._lost_cause = True
        if self._socket is not None:
            self._socket.pause_reading()

    def pause_writing(self) -> None:
        """The client does not take what it is sent, and the buffers are full."""
        super().pause_writing()
        self._unread = True
        self.guard.census.left_unread(self, self.guard.now)

    def resume_writing(self) -> None:
        """It takes it."""
        super().resume_writing()
        self._unread = False
        self.guard.census.took(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It has gone."""
        self.guard.census.leave(self)
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    # --- what the guard and the doors say --------------------------------------------------------------

    def asked(self, path: str) -> None:
        """A request's head is complete, and the request under way.

        Raises:
            Problem: 503 ``registry_full``: the connection was not let in, and the path is none of
                :data:`PROBES`.
        """
        self._at_rest = False
        if self._awaited:
            self._awaited = False
            self.guard.census.completed(self)
        if self.refused is not None and path not in PROBES:
            raise self.refused

    def answered(self) -> None:
        """A request has been answered: the next bytes are another."""
        self._at_rest = True

    def is_session(self) -> None:
        """It has become a session."""
        self.guard.census.is_session(self)

    def cut(self, why: Closing, answer: bytes = b"") -> None:
        """End it now.

        Args:
            why: is logged.
            answer: a whole HTTP response to send before, to a client that waits for one.
        """
        transport = self._socket
        if transport is None:
            return
        log.debug("connection_ended", why=why.value, peer=transport.get_extra_info("peername"))
        if not answer or transport.is_closing():
            # Closing would wait until what was not taken is taken.
            transport.abort()
            return
        transport.write(answer)
        if not transport.can_write_eof():
            transport.close()
            return
        # What it still sends would otherwise be answered with a reset, which discards our answer at its end.
        self._lost_cause = True
        transport.write_eof()
        self._linger = self._loop.call_later(LINGER, transport.abort)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse as a problem, and without a line in the log for each."""
        if status != web.HTTPBadRequest.status_code:
            return super().handle_error(request, status, exc, message)
        if exc is not None:
            # Its frames hold what was received, and it holds them.
            exc.__traceback__ = None
        return self.guard.unparsable(message or "")
