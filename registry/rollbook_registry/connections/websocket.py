"""A WebSocket without tasks: aiohttp's handshake and aiohttp's parser, with a listener directly behind it.

aiohttp's own way is a queue of messages that a task awaits, and a coroutine for each frame that is sent. Here
a message is heard as soon as it is parsed, and a frame is written when it is sent. Whoever does not take what
is sent is ``blocked`` and to be sent no more; whoever sends more than can be dealt with at once is read in
slices, so that others have their turn.

After the handshake the transport gets another protocol, which is asyncio's documented way to change over.
aiohttp's handler ends then, and its task, the request and the response go. Its protocol stays, without the
transport, and hears of the connection's end and of writing that pauses, so that it and the guard clear up and
watch as for any other.

What is used of aiohttp beyond its documentation is all in this module, and tests notice if it changes:
:meth:`WebSocketResponse._post_start`, where the response would install its queue; of its protocol
``set_parser``, for what came right behind the handshake (it then reads on, if it had paused), and
``transport``, which it closes when a handler has ended, if it has one; and the parser, a ``WebSocketReader``
that feeds a ``WebSocketDataQueue`` and tells it what it could not parse.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger("rollbook.connections")

TEXT: Final = 0x1
BINARY: Final = 0x2
_CLOSE: Final = 0x8
_PONG: Final = 0xA
_FINAL: Final = 0x80

# An enumeration's members are slow to look up.
_IS_BINARY: Final = WSMsgType.BINARY
_IS_TEXT: Final = WSMsgType.TEXT

SLICE: Final = 16 * 1024
"""Bytes that are parsed in one go: some hundred small frames, or a part of a large one."""

CLOSE_PATIENCE: Final = 2.0
"""Seconds that a client has to answer a close frame."""

MAX_REASON_BYTES: Final = 123
"""Bytes of a reason that a close frame can carry (RFC 6455, 5.5)."""

_SHORT, _LONG = 126, 1 << 16


def frame(opcode: int, payload: bytes) -> bytes:
    """Spell a server's frame (RFC 6455, 5.2): it is not masked, so it is the same for everybody."""
    size = len(payload)
    if size < _SHORT:
        head = bytes((_FINAL | opcode, size))
    elif size < _LONG:
        head = bytes((_FINAL | opcode, 126)) + size.to_bytes(2)
    else:
        head = bytes((_FINAL | opcode, 127)) + size.to_bytes(8)
    return head + payload


class Listener(Protocol):
    """Whom a WebSocket serves. None of these is called after :meth:`ended`."""

    def heard(self, message: bytes | str) -> None:
        """Take a message: bytes of a binary one, a string of a text."""

    def block(self) -> None:
        """The client does not take what it is sent: send no more."""

    def unblock(self) -> None:
        """It has taken it."""

    def ended(self) -> None:
        """Nothing more can be heard or sent, whoever wanted it so."""


class _Sink(WebSocketDataQueue):
    """Where the parser puts messages; it is a queue only by name.

    What the queue is made of is left out, hence no ``super().__init__()``: most of it is memory.
    """

    __slots__ = ("_heard", "_socket")

    # What the parser asks whether it should stop for a queue that is full: this one never is.
    _size = 0
    _limit = 0

    def __init__(self, socket: WebSocket, heard: Callable[[bytes | str], None]) -> None:
        self._socket = socket
        self._heard = heard

    def feed_data(self, data: Any, size: int) -> None:  # noqa: ARG002  # the parser's signature
        """Take a message."""
        kind = data[0]
        if kind is _IS_BINARY or kind is _IS_TEXT:
            if self._socket.open and not self._socket.deaf:
                self._heard(data[1])
        else:
            self._socket.controlled(kind, data[1])

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:  # noqa: ARG002  # as above
        """Take notice that parsing failed, or the listener did."""
        self._socket.failed(exc)

    def feed_eof(self) -> None:
        """The connection has ended; who is told by asyncio need not be told again."""


class _Early:
    """What aiohttp takes for its parser: what came right behind the handshake is taken as all that comes."""

    __slots__ = ("_socket",)

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take what aiohttp has read."""
        self._socket.data_received(data)
        return False, b""

    def feed_eof(self) -> None:
        """The connection has ended; the socket is told by asyncio."""


class WebSocket(asyncio.Protocol):
    """One client's end, once the handshake is done.

    Attributes:
        subprotocol: that was agreed upon.
        open: whether it can be sent to.
        blocked: whether it should not be, because the client does not take it.
        deaf: whether messages are thrown away; the listener sets it when it is about to close.
        heard_at: when it was last heard of, by the monotonic clock.
    """

    __slots__ = (
        "_connection",
        "_held",
        "_listener",
        "_loop",
        "_lost",
        "_pong",
        "_reader",
        "_reading",
        "_rest",
        "_transport",
        "blocked",
        "deaf",
        "heard_at",
        "open",
        "subprotocol",
    )

    def __init__(
        self, connection: web.RequestHandler, transport: asyncio.Transport, subprotocol: str
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection: web.RequestHandler | None = connection
        self._transport = transport
        self._listener: Listener | None = None
        self._reader: WebSocketReader | None = None
        self._rest = b""
        self._reading = True
        self._held = False
        self._pong: bytes | None = None
        self.subprotocol = subprotocol
        self.open = True
        self.deaf = False
        self.blocked = connection.writing_paused
        self.heard_at = time.monotonic()
        self._lost: asyncio.Future[None] | None = None

    def start(self, listener: Listener, max_message: int) -> None:
        """Take the connection over from aiohttp."""
        self._listener = listener
        sink = _Sink(self, listener.heard)
        self._reader = WebSocketReader(sink, max_message, compress=False, decode_text=True)
        self._transport.set_protocol(self)
        if self._connection is not None:
            self._connection.keep_alive(val=False)
            # It hands over what it has read already, and reads on if it had stopped.
            self._connection.set_parser(cast("WebSocketReader", _Early(self)))
            self._connection.transport = None
            if not self._reading and not self._transport.is_closing():
                self._transport.pause_reading()

    # --- what is sent ----------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write what :func:`frame` made."""
        if self.open and not self._transport.is_closing():
            self._transport.write(data)

    def close(self, code: int, reason: str = "") -> None:
        """Say goodbye, and end the connection when the client has, or :data:`CLOSE_PATIENCE` later.

        What still comes until then is read and thrown away: closed at once, the connection would be reset,
        and the client might not hear why.
        """
        if not self.open:
            return
        self._say_close(code, reason)
        self._loop.call_later(CLOSE_PATIENCE, self._transport.close)
        self._end()
        self.go_on()

    def parted(self) -> asyncio.Future[None]:
        """Return what is done when the connection is no more; asked of those that still are."""
        if self._lost is None:
            self._lost = self._loop.create_future()
        return self._lost

    def abort(self) -> None:
        """End the connection without another word."""
        self._transport.abort()

    def _say_close(self, code: int, reason: str = "") -> None:
        # Not more than fits, and no half of a character.
        fits = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        self._transport.write(frame(_CLOSE, code.to_bytes(2) + fits.encode()))

    def _end(self) -> None:
        self.open = False
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.ended()

    # --- what comes ------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Read no more, until :meth:`go_on`; what has been read already is heard for a slice at most.

        So is what came right behind the handshake.
        """
        self._held = True
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        self._held = False
        self._read_rest()
        if not self._held and not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self.heard_at = time.monotonic()
        if self._reader is None:
            return
        if not self._rest and not self._held and len(data) <= SLICE:
            self._reader.feed_data(data)
        else:
            self._rest += data
            self._read_rest()

    def _read_rest(self) -> None:
        """Parse a slice, and the next when others have had their turn."""
        if not self._rest or self._held or self._reader is None:
            return
        part, self._rest = self._rest[:SLICE], self._rest[SLICE:]
        self._reader.feed_data(part)
        if self._rest and not self._held:
            self.hold()
            self._loop.call_soon(self.go_on)

    def controlled(self, kind: WSMsgType, data: Any) -> None:
        """Take a control frame."""
        if kind is WSMsgType.PING and self.open:
            # Of several pings the last has to be answered (RFC 6455, 5.5.3), and none before it can be.
            if self.blocked:
                self._pong = data
            else:
                self._transport.write(frame(_PONG, data))
        elif kind is WSMsgType.CLOSE:
            if self.open:
                self._say_close(WSCloseCode.OK)
                self._end()
            self._transport.close()

    def failed(self, error: BaseException) -> None:
        """Take notice of what could not be parsed, or of what the listener failed at."""
        # It parses nothing more; what still comes is no message.
        self._reader, self._rest = None, b""
        if isinstance(error, WebSocketError):
            self.close(int(error.code))
        else:
            log.error("session_failed", exc_info=error)
            self.close(WSCloseCode.INTERNAL_ERROR)

    # --- asyncio's other callbacks ---------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client does not take what it is sent, and the buffers are full."""
        self.blocked = True
        if self._connection is not None:
            self._connection.pause_writing()
        if self._listener is not None:
            self._listener.block()

    def resume_writing(self) -> None:
        """It takes it."""
        self.blocked = False
        if self._connection is not None:
            self._connection.resume_writing()
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self.send(frame(_PONG, pong))
        if self._listener is not None and not self.blocked:
            self._listener.unblock()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        try:
            self._end()
        finally:
            # They hold each other.
            self._reader, self._rest = None, b""
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.connection_lost(exc)
            if self._lost is not None and not self._lost.done():
                self._lost.set_result(None)


class Upgrade(web.WebSocketResponse):
    """The answer that makes a connection a WebSocket.

    Args:
        listen: called when the handshake is done, before anything is heard; returns who listens.
        subprotocols: of which the client has to offer one.
        max_message: bytes of the largest message that is taken, less one.
    """

    def __init__(
        self, listen: Callable[[WebSocket], Listener], *, subprotocols: Iterable[str], max_message: int
    ) -> None:
        super().__init__(protocols=subprotocols, compress=False)
        self._listen = listen
        self._max_message = max_message

    def _post_start(self, request: web.BaseRequest, protocol: str | None, writer: Any) -> None:
        self._writer = writer  # by which the base class knows that the handshake is done
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the connection was lost")
        socket = WebSocket(request.protocol, transport, protocol or "")
        socket.start(self._listen(socket), self._max_message)

    async def write_eof(self, data: bytes = b"") -> None:
        """Leave the end to the :class:`WebSocket`."""
