"""The soak's clients: sessions that hold instances, and sessions that keep lists of them.

Raw WebSockets with the SDK's own views: in one process, a thousand clients must cost less than the registry.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.web_socket import WebSocket, connect, masked
from rollbook import frames
from rollbook.view import OutOfStep, View

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.soak_ledger import Ledger
    from rollbook import Entry, EntryRef
    from rollbook.frames import Frame
    from rollbook.names import ServiceKey

SLICE: Final = 25
"""Frames that are read in one go: in between, the arrival of others is seen."""

_encode = msgspec.msgpack.Encoder().encode
_codec = frames.Codec(frames.MSGPACK)


def _spelled(frame: Frame) -> bytes:
    return masked(_encode(frame))


class Publisher:
    """A session that holds instances, and beats for them.

    Args:
        number: names its lease.
        entries: its instances as they are at first.
        failed: told what must not happen.
    """

    def __init__(self, number: int, entries: list[Entry], failed: Callable[[str], None]) -> None:
        self.entries = entries
        self.absent: set[int] = set()
        """Those of them that are deregistered, by index."""
        self.down: dict[int, EntryRef] = {}
        """Those whose application does not work."""
        self._lease = f"soak-{number}"
        self._failed = failed
        self._term = 0
        self._asked = 0
        self._socket: WebSocket | None = None
        self._attached = asyncio.Event()
        self._entered = asyncio.Event()
        self.beat_at = time.monotonic()
        self.longest_silence = 0.0
        """The longest that this process let the registry wait for a beat, in seconds."""

    @property
    def ready(self) -> bool:
        """Whether it is there to change anything."""
        return self._socket is not None and not self._socket.failure and self._attached.is_set()

    async def enter(self, port: int) -> None:
        """Attach, and register everything."""
        await self.come(port)
        self.say(frames.Register(id=self._next(), entries=self.entries))
        await self._entered.wait()

    async def come(self, port: int) -> None:
        """Attach, for the first time or again."""
        self._attached.clear()
        self._socket = await connect(port, self._heard)
        self.say(frames.Attach(lease=self._lease, term=self._term))
        await self._attached.wait()
        self.beat()

    @property
    def cut_off(self) -> str:
        """Why it has no connection although it did not break it; empty if it has."""
        return self._socket.failure if self._socket is not None and self._attached.is_set() else ""

    def go(self) -> None:
        """Break the connection, as a crash of the network does."""
        assert self._socket is not None
        self._attached.clear()
        self._socket.close()

    def beat(self) -> None:
        """Answer the roll for all, except what is down."""
        now = time.monotonic()
        self.longest_silence = max(self.longest_silence, now - self.beat_at)
        self.beat_at = now
        self.say(frames.Beat(term=self._term, down=list(self.down.values())))

    def register(self, index: int, entry: Entry) -> None:
        """Enter one instance, for the first time or as it is now."""
        self.entries[index] = entry
        self.absent.discard(index)
        self.say(frames.Register(id=self._next(), entries=[entry]))

    def deregister(self, index: int) -> None:
        """Take one out."""
        self.absent.add(index)
        self.down.pop(index, None)
        self.say(frames.Deregister(id=self._next(), entries=[self.entries[index].ref]))

    def flip(self, index: int) -> None:
        """Say that one works no more, or works again."""
        if self.down.pop(index, None) is None:
            self.down[index] = self.entries[index].ref
        self.beat()

    def say(self, frame: Frame) -> None:
        """Send a frame."""
        assert self._socket is not None
        self._socket.write(_spelled(frame))

    def _next(self) -> int:
        self._asked += 1
        return self._asked

    def _heard(self, socket: WebSocket, payload: bytes) -> None:
        match _codec.answer(payload):
            case frames.Attached(term=term, resumed=resumed):
                if self._term and not resumed:
                    self._failed(f"{self._lease}: its lease had ended when it came back in time")
                self._term = term
                self._attached.set()
            case frames.Done():
                self._entered.set()
            case frames.Settled() | frames.Pong():
                pass
            case other:
                if not socket.failure:
                    self._failed(f"{self._lease}: {other}")


class Arrivals:
    """Takes the time of each frame when it arrives, and has it read a little later.

    Reading costs more than arriving: if each were read at once, those behind it would seem to be late.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Follower, WebSocket, bytes]] = deque()
        self._soon: asyncio.Handle | None = None

    def add(self, follower: Follower, socket: WebSocket, payload: bytes) -> None:
        """Have a frame read."""
        self._waiting.append((time.perf_counter(), follower, socket, payload))
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._read)

    def _read(self) -> None:
        self._soon = None
        for _ in range(min(SLICE, len(self._waiting))):
            at, follower, socket, payload = self._waiting.popleft()
            follower.read(at, socket, payload)
        if self._waiting:
            self._soon = asyncio.get_running_loop().call_soon(self._read)


class Follower:
    """A session that keeps the lists of some services.

    Args:
        number: names it.
        services: what it follows.
        arrivals: reads what arrives.
        ledger: told what it hears.
        followers: by service, who has its list and hears of its changes.
        failed: told what must not happen.
    """

    def __init__(
        self,
        number: int,
        services: list[ServiceKey],
        *,
        arrivals: Arrivals,
        ledger: Ledger,
        followers: dict[str, set[int]],
        failed: Callable[[str], None],
    ) -> None:
        self.number = number
        self._views = {key.name: View(key) for key in services}
        self._arrivals = arrivals
        self._ledger = ledger
        self._followers = followers
        self._failed = failed
        self._socket: WebSocket | None = None
        self._asked: set[str] = set()
        """Services whose list has been asked for and has not come."""
        self._answered = asyncio.Event()
        self._gone = False
        self._lists = 0
        self.pushes = 0

    @property
    def ready(self) -> bool:
        """Whether it has all its lists, and a connection."""
        return self._socket is not None and not self._socket.failure and not self._asked

    async def come(self, port: int) -> None:
        """Connect and follow, for the first time or again: what it still holds it shows."""
        self._socket = await connect(port, self._heard)
        self._gone = False
        await self.compare()

    async def compare(self) -> int:
        """Ask for all lists by what is held; return how many differed, once all have come.

        What is on its way meanwhile counts as a difference.
        """
        self._lists = 0
        self._answered.clear()
        for name, view in self._views.items():
            self._ask(name, view)
        await self._answered.wait()
        return self._lists

    @property
    def cut_off(self) -> str:
        """Why it has no connection although it did not break it; empty if it has."""
        return self._socket.failure if self._socket is not None and not self._gone else ""

    def go(self) -> None:
        """Break the connection."""
        assert self._socket is not None
        self._gone = True
        self._socket.close()
        for name in self._views:
            self._followers[name].discard(self.number)
        self._ledger.left(self.number, list(self._views))

    def ping(self) -> None:
        """Show that it is there."""
        assert self._socket is not None
        self._socket.write(_spelled(frames.Ping()))

    def _ask(self, name: str, view: View) -> None:
        assert self._socket is not None
        self._asked.add(name)
        digest = view.digest if view.known else ""
        self._socket.write(
            _spelled(frames.Subscribe(id=1, service=name, revision=view.revision, digest=digest))
        )

    def _heard(self, socket: WebSocket, payload: bytes) -> None:
        self._arrivals.add(self, socket, payload)

    def read(self, at: float, socket: WebSocket, payload: bytes) -> None:
        """Take a frame that arrived at a time."""
        if socket is not self._socket or socket.failure:
            return
        match _codec.answer(payload):
            case frames.Delta() as delta:
                self._delta(at, delta)
            case frames.Snapshot() as snapshot:
                change = self._views[snapshot.service].snapshot(snapshot)
                self._lists += 1
                keys = [*(i.key for i in change.put), *change.drop]
                self._ledger.heard(self.number, snapshot.service, keys, at)
                self._ack(snapshot.service, snapshot.revision)
                self._has(snapshot.service)
            case frames.Current() as current:
                try:
                    self._views[current.service].current(current)
                except OutOfStep:
                    # A change was on its way when it asked.
                    self._ask(current.service, self._views[current.service])
                else:
                    self._has(current.service)
            case frames.Settled():
                for view in self._views.values():
                    view.settle()
            case frames.Pong() | frames.Done():
                pass
            case other:
                self._failed(f"subscriber {self.number}: {other}")

    def _delta(self, at: float, delta: frames.Delta) -> None:
        self.pushes += 1
        view = self._views[delta.service]
        try:
            change = view.delta(delta)
        except OutOfStep as why:
            if delta.service not in self._asked:
                self._failed(f"subscriber {self.number}: {delta.service}: {why}")
            self._ask(delta.service, view)
            return
        keys = [*(i.key for i in change.put), *change.drop]
        self._ledger.heard(self.number, delta.service, keys, at)
        self._ack(delta.service, delta.revision)
        if delta.service in self._asked:
            # What it asked with is a list that it is only behind with.
            self._lists += 1
            self._has(delta.service)

    def _ack(self, service: str, revision: str) -> None:
        assert self._socket is not None
        self._socket.write(_spelled(frames.Ack(service=service, revision=revision)))

    def _has(self, service: str) -> None:
        self._asked.discard(service)
        self._followers[service].add(self.number)
        if not self._asked:
            self._answered.set()
