"""Push latency: a registration is sent over a session; how long until subscribers have it.

One change is under way at a time: the next is sent a moment after the last subscriber has had the one before.
Publisher and subscribers are raw WebSockets in this process, so one clock measures both ends. Subscribers
acknowledge each change, as the protocol wants it. The limit gets a frame of the same size from the publisher,
sends as many bytes to as many WebSockets, and reads as many bytes of acknowledgement.

Beside the time, the bytes: what a subscriber of a service is sent when one of its instances changes.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import fleet
from benchmarks.process import Bare, Registry
from benchmarks.report import Result, Row, Spread
from benchmarks.web_socket import WebSocket, connect, masked
from rollbook import Instance, frames
from rollbook.names import instance_key
from rollbook_registry.connections.sockets import make_room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.rounds import Options
    from rollbook import Entry

SERVICE: Final = "orders"
PATIENCE: Final = 60.0
PAUSE: Final = 0.001
"""Seconds between a change's last arrival and the next change; acknowledgements are read meanwhile."""

WARM_UP: Final = 20
CHANGES_AT_100: Final = 1000
CHANGES_AT_1000: Final = 100
MANY: Final = 10_000
CHANGES_AT_MANY: Final = 10
ROUNDS_AT_MANY: Final = 2
AT_ONCE: Final = 50
"""Subscribers that connect at the same time."""

CHANGED: Final = 5
"""Which instance changes, so that it is the same one in services of any size."""

SIZES: Final = (10, 1000)
"""Instances of the services in which the bytes of a change are counted."""

_ROOM: Final = {"ROLLBOOK_MAX_SESSIONS": str(MANY + 100)}

_encode = msgspec.msgpack.Encoder().encode
_answers = frames.Codec(frames.MSGPACK)


class Push:
    """A publisher, its subscribers, and the stopwatch between them."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self._subscribers: list[WebSocket] = []
        self._publisher: WebSocket | None = None
        self._ready = asyncio.Event()
        self._all = asyncio.Event()
        self._wanted = 0
        self._expected = 0
        self._last = b""
        self._ack = b""

    @property
    def publisher(self) -> WebSocket:
        """The session that registers."""
        assert self._publisher is not None
        return self._publisher

    async def connect(self, port: int, subscribers: int) -> None:
        """Open all connections, and subscribe."""
        async with asyncio.timeout(PATIENCE):
            self._publisher = await connect(port, self.answered)
            await self.introduce()
            for first in range(0, subscribers, AT_ONCE):
                self._wanted = min(AT_ONCE, subscribers - first)
                self._ready.clear()
                some = await asyncio.gather(*(connect(port, self._subscribed) for _ in range(self._wanted)))
                for socket in some:
                    socket.write(self.subscription())
                await self._ready.wait()
                self._subscribers += some
        self._wanted = subscribers

    async def change(self, number: int) -> list[float]:
        """Make a change, and return how long it took to each subscriber, in seconds.

        Raises:
            RuntimeError: a connection ended, or what came was not this change.
        """
        self.arrivals, self._expected = [], number
        self._all.clear()
        frame = self.registration(number)
        began = time.perf_counter()
        self.publisher.write(frame)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._all.wait()
        except TimeoutError:
            failures = {s.failure for s in (self.publisher, *self._subscribers) if s.failure}
            raise RuntimeError(f"{len(self.arrivals)} of {self._wanted} got it; {failures}") from None
        await asyncio.sleep(PAUSE)
        return [arrival - began for arrival in self.arrivals]

    def close(self) -> None:
        """Be gone."""
        for socket in (self.publisher, *self._subscribers):
            socket.close()

    def _subscribed(self, socket: WebSocket, payload: bytes) -> None:
        socket.write(self.first_ack(payload))
        socket.heard = self._heard
        self._wanted -= 1
        if not self._wanted:
            self._ready.set()

    def _heard(self, socket: WebSocket, payload: bytes) -> None:
        now = time.perf_counter()
        if payload != self._last:  # all subscribers get the same bytes: they are read once
            self._last = payload
            self._ack = masked(self.ack(payload, self._expected))
        socket.write(self._ack)
        self.arrivals.append(now)
        if len(self.arrivals) == self._wanted:
            self._all.set()

    # --- what the two servers are told -----------------------------------------------------------------

    async def introduce(self) -> None:
        """Make the publisher ready to register."""
        self._ready.clear()
        self.publisher.write(masked(_encode(frames.Attach(lease="bench"))))
        await self._ready.wait()

    def answered(self, _: WebSocket, payload: bytes) -> None:
        """Take what the publisher is told."""
        match _answers.answer(payload):
            case frames.Attached() | frames.Done():
                self._ready.set()
            case other:
                raise RuntimeError(f"expected attached or done, got {other}")

    def subscription(self) -> bytes:
        """Return what a subscriber sends first."""
        return masked(_encode(frames.Subscribe(id=1, service=SERVICE)))

    def first_ack(self, payload: bytes) -> bytes:
        """Return what it answers to the first list."""
        answer = _answers.answer(payload)
        if not isinstance(answer, frames.Snapshot):
            raise TypeError(f"expected a snapshot, got {answer}")
        return masked(_encode(frames.Ack(service=SERVICE, revision=answer.revision)))

    def registration(self, number: int) -> bytes:
        """Return the frame that makes a change: a new instance."""
        return masked(_encode(frames.Register(id=number, entries=[fleet.entry(number, SERVICE)])))

    def ack(self, payload: bytes, number: int) -> bytes:
        """Return what answers a change.

        Raises:
            RuntimeError: it is not the change that was made.
        """
        answer = _answers.answer(payload)
        if not isinstance(answer, frames.Delta) or [i.ip for i in answer.put] != [fleet.address(number)]:
            raise RuntimeError(f"expected a delta with {fleet.address(number)}, got {answer}")
        return _encode(frames.Ack(service=SERVICE, revision=answer.revision))


class BarePush(Push):
    """The same against the limit.

    Args:
        register: bytes of a registration.
        delta: bytes of what a subscriber gets.
        ack: bytes of what it answers.
    """

    def __init__(self, *, register: int, delta: int, ack: int) -> None:
        super().__init__()
        self._sizes = register, delta, ack

    async def introduce(self) -> None:
        """Nobody needs to know."""

    def subscription(self) -> bytes:
        return masked(b"S")

    def first_ack(self, payload: bytes) -> bytes:
        return masked(b"D" + payload)

    def registration(self, number: int) -> bytes:
        register, delta, _ = self._sizes
        frame = b"B" + delta.to_bytes(4) + bytes(3) + number.to_bytes(8)
        return masked(frame + bytes(register - len(frame)))

    def ack(self, payload: bytes, number: int) -> bytes:
        if int.from_bytes(payload[:8]) != number:
            raise RuntimeError(f"expected broadcast {number}")
        return b"D" + bytes(self._sizes[2] - 1)


def _instance(entry: Entry) -> Instance:
    return Instance(
        key=instance_key(ip=entry.ip, port=entry.port, cluster=entry.cluster),
        ip=entry.ip,
        port=entry.port,
        instance_id=entry.instance_id,
        metadata=entry.metadata,
    )


def _sizes() -> dict[str, int]:
    """Return how many bytes the frames of one change have, roughly as the registry makes them."""
    entry = fleet.entry(500, SERVICE)
    revision = "01234567.500"
    delta = frames.Delta(
        service=SERVICE,
        base=revision,
        revision=revision,
        digest="0123456789abcdef",
        put=[_instance(entry)],
        at=time.time(),
    )
    return {
        "register": len(_encode(frames.Register(id=500, entries=[entry]))),
        "delta": len(_encode(delta)),
        "ack": len(_encode(frames.Ack(service=SERVICE, revision=revision))),
    }


class _Found:
    """All latencies of one side, in milliseconds."""

    def __init__(self) -> None:
        self.each: list[list[float]] = []
        self.last: list[list[float]] = []

    def begin(self) -> None:
        """Begin a round."""
        self.each.append([])
        self.last.append([])

    def add(self, seconds: list[float]) -> None:
        """Add a change."""
        self.each[-1].extend(s * 1000 for s in seconds)
        self.last[-1].append(max(seconds) * 1000)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class _Reader:
    """A publisher and a subscriber in one session, who counts the bytes that it is pushed.

    Args:
        service: which it follows.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._pushed: asyncio.Queue[bytes] = asyncio.Queue()

    async def change(self, port: int, size: int) -> int:
        """Fill the service, change one instance of it, and return the bytes of the frame that tells so.

        Raises:
            TypeError: it is not a delta.
        """
        entries = [fleet.entry(n, self._service) for n in range(size)]
        async with asyncio.timeout(PATIENCE):
            socket = await connect(port, lambda _, payload: self._pushed.put_nowait(payload))
            socket.write(masked(_encode(frames.Attach(lease=self._service))))
            await self._pushed.get()
            socket.write(masked(_encode(frames.Register(id=1, entries=entries))))
            await self._pushed.get()
            socket.write(masked(_encode(frames.Subscribe(id=2, service=self._service))))
            snapshot = _answers.answer(await self._pushed.get())
            if not isinstance(snapshot, frames.Snapshot) or len(snapshot.instances) != size:
                raise TypeError(f"expected a snapshot of {size}, got {snapshot}")
            socket.write(masked(_encode(frames.Ack(service=self._service, revision=snapshot.revision))))
            changed = msgspec.structs.replace(entries[CHANGED], weight=2.0)
            socket.write(masked(_encode(frames.Register(id=3, entries=[changed]))))
            await self._pushed.get()
            delta = await self._pushed.get()
            if not isinstance(_answers.answer(delta), frames.Delta):
                raise TypeError(f"expected a delta, got {delta!r}")
            socket.close()
        return len(delta)


async def _bytes_of_a_change() -> list[Row]:
    entry = fleet.entry(CHANGED, SERVICE)
    least = len(_encode(_instance(entry)))
    with Registry(fleet.LONG) as registry:
        return [
            Row(
                name=f"a change in a service of {size:,}: bytes to each subscriber",
                unit="bytes",
                ours=Spread((await _Reader(f"size-{size:05}").change(registry.session_port, size),)),
                limit=Spread((least,)),
            )
            for size in SIZES
        ]


async def run(options: Options) -> Result:
    """Measure."""
    rows: list[Row] = []
    sizes = _sizes()
    for subscribers, changes in ((100, CHANGES_AT_100), (1000, CHANGES_AT_1000)):
        with Registry(fleet.LONG) as registry, Bare() as bare:
            ours, limit = Push(), BarePush(**sizes)
            await ours.connect(registry.session_port, subscribers)
            await limit.connect(bare.port, subscribers)
            registry.profile_from_here()
            bare.profile_from_here()
            rows += await _measure(ours, limit, subscribers, changes, options)
            ours.close()
            limit.close()
    rows += await _measure_many(min(MANY, make_room(MANY)), sizes)
    rows += await _bytes_of_a_change()
    return Result(
        rows=rows,
        limit="bare aiohttp WebSockets that are sent and send as much; of bytes: the changed instance",
        notes=[
            f"{CHANGES_AT_100} changes with 100 subscribers, {CHANGES_AT_1000} with 1,000, one at a time",
            f"{CHANGES_AT_MANY} with {MANY:,} in each of {ROUNDS_AT_MANY} rounds, the limit in turns",
            f"a delta has {sizes['delta']} bytes",
            "the process that measures reads all sockets one after the other: part of each figure is its own",
        ],
    )


async def _measure_many(subscribers: int, sizes: dict[str, int]) -> list[Row]:
    """Measure with so many that only one side's connections fit into a process at a time."""
    ours, limit = _Found(), _Found()
    for _ in range(ROUNDS_AT_MANY):
        for found, process in ((ours, Registry({**fleet.LONG, **_ROOM})), (limit, Bare())):
            with process:
                push = Push() if isinstance(process, Registry) else BarePush(**sizes)
                port = process.session_port if isinstance(process, Registry) else process.port
                await push.connect(port, subscribers)
                await push.change(1)
                process.profile_from_here()
                found.begin()
                for n in range(CHANGES_AT_MANY):
                    found.add(await push.change(n + 2))
                push.close()
    return _rows(subscribers, ours, limit)


async def _measure(ours: Push, limit: Push, subscribers: int, changes: int, options: Options) -> list[Row]:
    found = {ours: _Found(), limit: _Found()}
    number = 0
    for _ in range(WARM_UP):
        number += 1
        for side in found:
            await side.change(number)
    for _ in range(options.rounds):
        for side, latencies in found.items():
            latencies.begin()
            for n in range(changes // options.rounds):
                latencies.add(await side.change(number + n + 1))
        number += changes // options.rounds
    return _rows(subscribers, found[ours], found[limit])


def _rows(subscribers: int, a: _Found, b: _Found) -> list[Row]:
    rows = []
    for what, x, y in (("any of them", a.each, b.each), ("the last", a.last, b.last)):
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            rows.append(
                Row(
                    name=f"{subscribers:,} subscribers, {what}: {name}",
                    unit="ms",
                    ours=Spread(tuple(percentile(r, share) for r in x)),
                    limit=Spread(tuple(percentile(r, share) for r in y)),
                )
            )
    return rows
