"""Sessions: one WebSocket for attach, register, beat, subscribe and push.

What a session costs beyond its bookkeeping is a connection: frames are carried out as they come, answers and
pushes are written as they arise, one flush tells all subscribers of a change, and one sweeper looks after all
who are silent or do not acknowledge.
"""

from __future__ import annotations

import asyncio
import enum
import math
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import WSCloseCode

from rollbook import frames
from rollbook.limits import MAX_FRAME_BYTES
from rollbook.problems import Problem, bad_value
from rollbook_registry.api.doors import identity
from rollbook_registry.api.routes import Answer, Route
from rollbook_registry.api.session import Session
from rollbook_registry.auth import policy
from rollbook_registry.catalog import PodsMarked
from rollbook_registry.connections import Connection
from rollbook_registry.connections.websocket import BINARY, TEXT, Upgrade, frame
from rollbook_registry.expiry import Wheel
from rollbook_registry.push import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiohttp import web

    from rollbook.names import ServiceKey
    from rollbook_registry.api.routes import Values
    from rollbook_registry.api.session import Timer
    from rollbook_registry.auth import Identity
    from rollbook_registry.book import Book
    from rollbook_registry.catalog import Event
    from rollbook_registry.connections.websocket import WebSocket

log = structlog.get_logger("rollbook.session")

MAX_ANSWERS: Final = 1000
"""Answers that may wait for a client that asks without reading; then its requests are read no more."""

MAX_UNSENT_BYTES: Final = 4 * 1024 * 1024
"""Bytes of answers that may wait for a client that asks without reading; then its session ends."""

PER_TURN: Final = 256
"""Subscribers that are told before whatever else came has its turn, in a few milliseconds."""

GOODBYE_PATIENCE: Final = 1.0
"""Seconds that clients have to answer when the registry stops."""


class Closing(enum.IntEnum):
    """Why the registry ends a session: the close frame's code, and the metric's reason."""

    TOKEN_EXPIRED = 4001
    IDLE = 4002
    NOT_ACKNOWLEDGING = 4003
    NOT_READING = 4004


class Dialect:
    """A subprotocol as its sockets carry it: frames with the WebSocket's header.

    Args:
        subprotocol: which one.
    """

    def __init__(self, subprotocol: str) -> None:
        self.subprotocol = subprotocol
        codec = self.codec = frames.Codec(subprotocol)
        opcode = BINARY if codec.binary else TEXT
        self.encode: Callable[[frames.Answer], bytes] = lambda said: frame(opcode, codec.encode(said))


DIALECTS: Final = {subprotocol: Dialect(subprotocol) for subprotocol in frames.SUBPROTOCOLS}


class Sessions:
    """All sessions of this registry.

    Args:
        book: the book.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._open: dict[Line, None] = {}
        self._stopping = ""
        """Why nobody is let in any more."""
        self._look = min(1.0, book.settings.ack_timeout / 4, book.settings.idle_timeout / 4)
        """Seconds between looks at those who may be late, or silent."""
        self._wheel: Wheel[Line] = Wheel(time.monotonic(), tick=self._look)
        self._late: dict[tuple[Subscriber, ServiceKey], float] = {}
        book.listeners.append(self._heard)
        book.outlet.wake = self._flush_soon

    def routes(self) -> list[Route]:
        """Return what is served here."""
        return [
            Route(
                method="GET",
                path="/session",
                handler=self.session,
                answers=(Answer(status=101, about="The WebSocket stands; docs/api.md has its frames."),),
                writes=True,
                open_query=True,
                problems=("bad_value", "not_ready"),
            )
        ]

    async def session(self, request: web.Request, _: Values) -> web.StreamResponse:
        """Take up a session: a WebSocket of the subprotocol `rollbook.v1.msgpack` or `rollbook.v1.json`."""
        who = await identity(request)
        policy.may_open_session(who)
        if self._stopping:
            raise Problem("not_ready", f"{self._stopping}; go elsewhere, or come again")
        limit = self._book.settings.max_sessions
        if len(self._open) >= limit:
            raise Problem(
                "registry_full", f"this registry has {limit} sessions and may have no more (--max-sessions)"
            )
        offered = [
            p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if p.strip()
        ]
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_value("Upgrade", request.headers.get("Upgrade", ""), "websocket")
        if not set(offered) & set(frames.SUBPROTOCOLS):
            raise bad_value("Sec-WebSocket-Protocol", offered, " or ".join(frames.SUBPROTOCOLS))
        upgrade = Upgrade(
            lambda socket: self._begin(socket, who),
            subprotocols=frames.SUBPROTOCOLS,
            max_message=MAX_FRAME_BYTES,
        )
        await upgrade.prepare(request)
        if isinstance(request.protocol, Connection):
            request.protocol.is_session()
        # The connection goes on without the handler.
        return upgrade

    def _begin(self, socket: WebSocket, who: Identity) -> Line:
        line = Line(self._book, socket, who, over=self._over)
        self._open[line] = None
        self._watch(line)
        if self._stopping:
            # It was let in before, but its handshake was answered too late for the goodbye.
            line.abort()
        return line

    def _over(self, line: Line) -> None:
        del self._open[line]
        self._wheel.discard(line)

    # --- pushing ---------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        # After whatever is under way: what changes meanwhile goes along, and answers go before.
        asyncio.get_running_loop().call_soon(self._book.outlet.flush, PER_TURN)

    # --- looking after them ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after those who are silent or do not acknowledge, until cancelled."""
        while True:
            await asyncio.sleep(self._look)
            try:
                self.look()
            except Exception:
                # Nobody else looks after them.
                log.exception("look_failed")

    def look(self) -> None:
        """Close the sessions that are silent, not let in any longer, or do not acknowledge.

        Who does not acknowledge gets nothing more, and holds barriers up. Who is late or silent is closed at
        the second look only: if it was this process that did not read, it has done so by then.
        """
        settings = self._book.settings
        now, wall = time.monotonic(), time.time()
        for line in self._wheel.advance(now):
            if line.expires <= wall:
                line.end(Closing.TOKEN_EXPIRED, "token expired")
            elif line.heard_at + settings.idle_timeout > now:
                self._watch(line)
            elif line.suspect == line.heard_at:
                line.end(Closing.IDLE, "idle")
            else:
                line.suspect = line.heard_at
                self._watch(line)
        patience = settings.ack_timeout
        late = {(who, key): since for who, key, since in self._book.outlet.unacknowledged(patience)}
        for (who, key), since in late.items():
            if isinstance(who, Line) and self._late.get((who, key)) == since:
                who.end(
                    Closing.NOT_ACKNOWLEDGING,
                    f"{key.name} not acknowledged for {patience:g} s (--ack-timeout)",
                )
        self._late = late

    def _watch(self, line: Line) -> None:
        """Have a session looked at when it may be silent for too long, or its token expires."""
        at = line.heard_at + self._book.settings.idle_timeout
        if line.expires < math.inf:
            at = min(at, time.monotonic() + line.expires - time.time())
        # One that is silent already is looked at once more, when it has been read again.
        self._wheel.add(line, max(at, time.monotonic() + self._look))

    def settled(self) -> None:
        """Tell everybody that the book is settled."""
        self._tell(frames.Settled(), iter(list(self._open)))

    def _heard(self, event: Event) -> None:
        """Tell everybody of pods that are gone while some may hold them that this book never knew."""
        if isinstance(event, PodsMarked) and not self._book.outlet.settled:
            gone = frames.Gone(owners=[pod.uid for pod in event.pods])
            self._tell(gone, iter([line for line in self._open if line.session.follows]))

    def _tell(self, frame: frames.Answer, lines: Iterator[Line]) -> None:
        """Send the same to many, so many a turn."""
        part = list(islice(lines, PER_TURN))
        for line in part:
            if line in self._open:
                line.answer(frame)
        if len(part) == PER_TURN:
            asyncio.get_running_loop().call_soon(self._tell, frame, lines)

    async def goodbye(self, reason: str) -> None:
        """Ask everybody to go elsewhere, close, and let nobody in any more."""
        self._stopping = reason
        parting = {}
        for line in list(self._open):
            try:
                parting[line.goodbye(reason)] = line
            except Exception as error:  # noqa: BLE001  # it is logged, and the others are to hear of it
                line.fail(error)
        if parting:
            _, late = await asyncio.wait(parting, timeout=GOODBYE_PATIENCE)
            for future in late:
                parting[future].abort()

    async def close(self) -> None:
        """End whatever is still open, once nothing new can come."""
        parting = [line.abort() for line in list(self._open)]
        if parting:
            await asyncio.wait(parting)

    def __len__(self) -> int:
        return len(self._open)


class Line(Subscriber):
    """One client's connection: its socket on one side, its session and the outlet on the other.

    Args:
        book: the book.
        socket: the client's.
        who: the client.
        over: called when it has ended.

    Attributes:
        expires: when its token does, as Unix time.
        suspect: when it had been heard of last when it seemed to be silent.
    """

    __slots__ = ("_book", "_over", "_socket", "_unsent", "_unsent_bytes", "expires", "session", "suspect")

    def __init__(self, book: Book, socket: WebSocket, who: Identity, *, over: Callable[[Line], None]) -> None:
        dialect = DIALECTS[socket.subprotocol]
        super().__init__(
            dialect, most=book.settings.max_subscriptions, most_patterns=book.settings.max_patterns
        )
        self.blocked = socket.blocked
        self._book = book
        self._socket = socket
        self._over = over
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self.expires = who.expires or math.inf
        self.suspect = -math.inf
        self.session = Session(book, who, codec=dialect.codec, subscriber=self, outward=self)

    @property
    def heard_at(self) -> float:
        """When the client was last heard of, by the monotonic clock."""
        return self._socket.heard_at

    def end(self, why: Closing, reason: str) -> None:
        """End it, and say so; its client may come back at once."""
        if self._socket.open:
            self._book.metrics.sessions_closed.labels(why.name.lower()).inc()
            log.info(
                "session_ended",
                why=why.name.lower(),
                who=self.session.who.name,
                lease=self.session.lease,
                reason=reason,
            )
            self._socket.close(why, reason)

    def goodbye(self, reason: str) -> asyncio.Future[None]:
        """Tell the client to go elsewhere, and close; the future is done when it has gone."""
        self.answer(frames.Goodbye(reason=reason))
        self._socket.close(WSCloseCode.GOING_AWAY, reason)
        return self._socket.parted()

    def abort(self) -> asyncio.Future[None]:
        """End the connection without another word; the future is done when it has gone."""
        self._socket.abort()
        return self._socket.parted()

    # --- for the outlet, and the session ---------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Carry a frame to the client; if that fails, it is this client alone that pays for it."""
        try:
            self._socket.send(data)
        except Exception as error:  # noqa: BLE001  # it is logged, and others are told behind this one
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Give up a client for what went wrong with it."""
        log.error("session_failed", who=self.session.who.name, lease=self.session.lease, exc_info=error)
        self.blocked = True
        self._socket.abort()

    def answer(self, frame: frames.Answer) -> None:
        """Have a frame sent, now or before anything else."""
        data = self.spelling.encode(frame)
        if not self.blocked:
            self.send(data)
            return
        if self._socket.deaf:
            return
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._unsent.clear()
            self._socket.deaf = True
            # Not at once: whoever answers is not done with the session yet.
            asyncio.get_running_loop().call_soon(
                self.end, Closing.NOT_READING, f"more than {MAX_UNSENT_BYTES >> 20} MiB of answers not read"
            )
        elif len(self._unsent) > MAX_ANSWERS:
            self._socket.hold()

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Have a function called."""
        return asyncio.get_running_loop().call_later(seconds, call)

    # --- for the socket --------------------------------------------------------------------------------

    @property
    def heard(self) -> Callable[[bytes | str], None]:
        """What carries out a frame; the socket asks once, and spares itself a call for each."""
        return self.session.take

    def block(self) -> None:
        """The client does not take what it is sent."""
        self.blocked = True

    def unblock(self) -> None:
        """It has taken it: it gets the answers that wait, and then what has changed."""
        self.blocked = False
        if self._unsent:
            unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
            self._socket.send(b"".join(unsent))
        self._socket.go_on()
        self._book.outlet.unblocked(self)

    def ended(self) -> None:
        """Nobody is there any more."""
        self._over(self)
        self.session.leave()
