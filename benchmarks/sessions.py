"""Sessions: ten thousand of them, each with one instance and three subscriptions, beating every five seconds.

What they cost when nothing changes: the share of a core, and memory. The limit has as many WebSockets, which
send as many frames of as many bytes at the same moments, and are discarded.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import fleet, machine
from benchmarks.process import Bare, Registry
from benchmarks.report import Result, Row, Spread
from benchmarks.web_socket import WebSocket, connect, masked
from rollbook import frames
from rollbook_registry.connections.sockets import make_room

if TYPE_CHECKING:
    from benchmarks.process import Process
    from benchmarks.rounds import Options

SESSIONS: Final = 10_000
SERVICES: Final = SESSIONS // fleet.PER_SERVICE
SUBSCRIPTIONS: Final = 3
INTERVAL: Final = 5.0
AT_ONCE: Final = 50
"""Sessions that are being opened at the same time."""

SLICES: Final = 500
"""Turns in which all beat once in an interval."""

TIMES: Final = 2
"""Intervals in each round."""

_SETTINGS: Final = {**fleet.LONG, "ROLLBOOK_MAX_SESSIONS": str(SESSIONS + 100)}
"""The first does not beat before the last has come."""

SETTLE: Final = 1.0
PATIENCE: Final = 60.0

_encode = msgspec.msgpack.Encoder().encode
_answers = frames.Codec(frames.MSGPACK)


class Resident:
    """One session that has entered its instance and has its lists.

    Args:
        number: which one.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._ready = asyncio.Event()
        self._missing = SUBSCRIPTIONS
        self._beat = b""
        self._socket: WebSocket | None = None

    async def enter(self, port: int) -> None:
        """Attach and register."""
        self._socket = await connect(port, self._answered)
        self._socket.write(masked(_encode(frames.Attach(lease=f"bench-{self._number}"))))
        await self._ready.wait()
        self._ready.clear()

    async def subscribe(self) -> None:
        """Follow three services, the first of which is its own, and acknowledge their lists."""
        assert self._socket is not None
        for n in range(SUBSCRIPTIONS):
            service = f"orders-{(self._number // fleet.PER_SERVICE + n) % SERVICES}"
            self._socket.write(masked(_encode(frames.Subscribe(id=n + 1, service=service))))
        await self._ready.wait()

    async def enter_bare(self, port: int) -> None:
        """Connect to the limit."""
        self._socket = await connect(port, self._answered)
        self._beat = masked(b"D" + bytes(len(_encode(frames.Beat(term=1))) - 1))

    def beat(self) -> None:
        """Beat.

        Raises:
            RuntimeError: the session has ended.
        """
        assert self._socket is not None
        if self._socket.failure:
            raise RuntimeError(self._socket.failure)
        self._socket.write(self._beat)

    def close(self) -> None:
        """Be gone."""
        if self._socket is not None:
            self._socket.close()

    def _answered(self, socket: WebSocket, payload: bytes) -> None:
        match _answers.answer(payload):
            case frames.Attached(term=term):
                self._beat = masked(_encode(frames.Beat(term=term)))
                entry = fleet.entry(self._number, f"orders-{self._number // fleet.PER_SERVICE}")
                socket.write(masked(_encode(frames.Register(id=1, entries=[entry]))))
            case frames.Done():
                self._ready.set()
            case frames.Snapshot(service=service, revision=revision):
                socket.write(masked(_encode(frames.Ack(service=service, revision=revision))))
                self._missing -= 1
                if not self._missing:
                    self._ready.set()
            case frames.Settled():
                pass
            case other:
                raise RuntimeError(f"expected attached, done or a list, got {other}")


async def _open(residents: list[Resident], port: int, *, bare: bool) -> None:
    async with asyncio.timeout(PATIENCE):
        for first in range(0, len(residents), AT_ONCE):
            some = residents[first : first + AT_ONCE]
            await asyncio.gather(*(r.enter_bare(port) if bare else r.enter(port) for r in some))
        # When all are there, so that nobody is told of anybody's coming.
        for first in range(0, 0 if bare else len(residents), AT_ONCE):
            await asyncio.gather(*(r.subscribe() for r in residents[first : first + AT_ONCE]))


async def _beat(residents: list[Resident]) -> None:
    """Have all beat once, evenly over an interval."""
    began = asyncio.get_running_loop().time()
    each = -(-len(residents) // SLICES)
    for n in range(SLICES):
        for resident in residents[n * each : (n + 1) * each]:
            resident.beat()
        await asyncio.sleep(began + (n + 1) * INTERVAL / SLICES - asyncio.get_running_loop().time())


class _Found:
    def __init__(self) -> None:
        self.busy: list[float] = []
        self.empty = 0.0
        self.full: list[float] = []

    async def measure(self, process: Process, residents: list[Resident]) -> None:
        """Measure one round.

        Raises:
            RuntimeError: the system does not tell processor time.
        """
        before, began = process.cpu_seconds, time.perf_counter()
        for _ in range(TIMES):
            await _beat(residents)
        after, took = process.cpu_seconds, time.perf_counter() - began
        if before is None or after is None:
            raise RuntimeError("this system does not tell what processor time a process has used")
        self.busy.append(100 * (after - before) / took)
        self.full.append(machine.resident_mib(process.pid))


async def run(options: Options) -> Result:
    """Measure."""
    count = min(SESSIONS, make_room(SESSIONS))
    found = {}
    for bare in (False, True):
        with Bare() if bare else Registry(_SETTINGS) as process:
            figures = found[bare] = _Found()
            await asyncio.sleep(SETTLE)
            figures.empty = machine.resident_mib(process.pid)
            residents = [Resident(n) for n in range(count)]
            port = process.session_port if isinstance(process, Registry) else process.port
            await _open(residents, port, bare=bare)
            process.profile_from_here()
            for _ in range(min(options.rounds, 2)):
                await figures.measure(process, residents)
            for resident in residents:
                resident.close()
    ours, limit = found[False], found[True]
    what = f"{count:,} sessions"
    return Result(
        rows=[
            Row(
                name=f"{what}: share of a core",
                unit="%",
                ours=Spread(tuple(ours.busy)),
                limit=Spread(tuple(limit.busy)),
            ),
            Row(
                name=f"{what}: memory",
                unit="MiB",
                ours=Spread(tuple(ours.full)),
                limit=Spread(tuple(limit.full)),
            ),
            Row(
                name="each of them",
                unit="KiB",
                ours=Spread(tuple((full - ours.empty) * 1024 / count for full in ours.full)),
                limit=Spread(tuple((full - limit.empty) * 1024 / count for full in limit.full)),
            ),
        ],
        limit="a bare aiohttp server with as many WebSockets, and as many frames of as many bytes discarded",
        notes=[
            f"each has one instance, and follows {SUBSCRIPTIONS} lists of {fleet.PER_SERVICE}",
            f"each beats every {INTERVAL:g} s, all of them evenly",
            "resident memory: what a registry has without sessions is in it, too",
        ],
    )
