"""The collector: for how long nobody is answered because of it, under the plan and by Python's defaults.

Each side is a registry of its own: sessions enter a hundred thousand instances, a few at a time, and then go
on changing them, while another session pings it two hundred times a second. A ping counts from the moment at
which it was due, so a pause is seen by all that come into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import fleet
from benchmarks.http_load import get
from benchmarks.process import Registry
from benchmarks.report import Result, Row, Spread
from benchmarks.soak_ledger import percentile
from benchmarks.web_socket import WebSocket, connect, masked
from rollbook import frames

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.rounds import Options
    from rollbook import Entry

INSTANCES: Final = 100_000
SESSIONS: Final = 100
CHANGES: Final = 50_000
AT_ONCE: Final = 20
"""Instances in a frame: few, so that frames do not hold the loop for longer than pauses."""

TIMES: Final = 2
PING: Final = 0.005

_encode = msgspec.msgpack.Encoder().encode
_answers = frames.Codec(frames.MSGPACK)


class _Pings:
    """A session that is answered, or has to wait."""

    def __init__(self) -> None:
        self._waits: list[tuple[float, float]] = []
        """When each was due, and how long it waited."""
        self._due: dict[int, float] = {}

    async def run(self, port: int) -> None:
        """Ping until cancelled."""
        socket = await connect(port, self._heard)
        try:
            began, n = time.perf_counter(), 0
            while True:
                n += 1
                self._due[n] = began + n * PING
                await asyncio.sleep(max(0.0, self._due[n] - time.perf_counter()))
                socket.write(masked(_encode(frames.Ping(n=n))))
        finally:
            socket.close()

    def _heard(self, _: WebSocket, payload: bytes) -> None:
        match _answers.answer(payload):
            case frames.Pong(n=n):
                due = self._due.pop(n)
                self._waits.append((due, time.perf_counter() - due))

    def since(self, began: float) -> list[float]:
        """Return how long those waited that were due since then."""
        return [wait for due, wait in self._waits if due >= began]


class _Publisher:
    """A session that enters instances, one frame after the other."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._socket: WebSocket | None = None
        self._done = asyncio.Event()

    async def come(self, port: int) -> None:
        """Attach."""
        self._socket = await connect(port, self._heard)
        await self._ask(frames.Attach(lease=f"bench-{self._number}"))

    async def enter(self, entries: Iterable[Entry]) -> None:
        """Register instances, or change them."""
        portion = list(entries)
        for at in range(0, len(portion), AT_ONCE):
            await self._ask(frames.Register(id=1, entries=portion[at : at + AT_ONCE]))

    async def _ask(self, frame: frames.Frame) -> None:
        assert self._socket is not None
        self._done.clear()
        self._socket.write(masked(_encode(frame)))
        await self._done.wait()

    def _heard(self, _: WebSocket, payload: bytes) -> None:
        answer = _answers.answer(payload)
        if isinstance(answer, frames.Refused):
            raise TypeError(f"expected attached or done, got {answer}")
        self._done.set()

    def close(self) -> None:
        """Be gone."""
        if self._socket is not None:
            self._socket.close()


async def _measure(registry: Registry) -> dict[str, float]:
    """Fill a registry, and change what is in it; return the figures."""
    pings = _Pings()
    pinging = asyncio.create_task(pings.run(registry.session_port))
    each = INSTANCES // SESSIONS
    publishers = [_Publisher(number) for number in range(SESSIONS)]
    entries = [
        [fleet.entry(n, f"orders-{n // fleet.PER_SERVICE}") for n in range(s * each, (s + 1) * each)]
        for s in range(SESSIONS)
    ]
    found: dict[str, float] = {}
    try:
        for publisher in publishers:
            await publisher.come(registry.session_port)
        registry.profile_from_here()
        for phase, count in (("filling", each), ("changing", CHANGES // SESSIONS)):
            changed = [
                [
                    msgspec.structs.replace(e, metadata={**fleet.METADATA, "in": phase})
                    for e in portion[:count]
                ]
                for portion in entries
            ]
            began = await asyncio.to_thread(_collected, registry)
            used, at = registry.cpu_seconds or 0.0, time.perf_counter()
            # A few at a time, as they come when a cluster starts.
            for first in range(0, SESSIONS, 4):
                several = zip(publishers[first : first + 4], changed[first : first + 4], strict=True)
                await asyncio.gather(*(p.enter(portion) for p, portion in several))
            waits = pings.since(at)
            found[f"{phase}: a ping waits, p99, ms"] = percentile(waits, 0.99) * 1000
            found[f"{phase}: a ping waits at most, ms"] = max(waits) * 1000
            found[f"{phase}: processor time, s"] = (registry.cpu_seconds or 0.0) - used
            collected = await asyncio.to_thread(_collected, registry) - began
            found[f"{phase}: of it the collector's, s"] = collected
    finally:
        pinging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pinging
        for publisher in publishers:
            publisher.close()
    return found


def _collected(registry: Registry) -> float:
    """Return the seconds that a registry's collector has taken so far."""
    text = get(registry.port, "/metrics").decode()
    found = re.findall(r'^rollbook_collector_pause_seconds_sum\{generation="."\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


async def run(_: Options) -> Result:
    """Measure."""
    sides: dict[str, list[dict[str, float]]] = {"plan": [], "defaults": []}
    defaults = (sys.executable, "-m", "benchmarks.default_collector")
    # This process has as many objects, and must not be what pings wait for.
    gc.disable()
    for _round in range(TIMES):
        for side, command in (("plan", ()), ("defaults", defaults)):
            with Registry(fleet.LONG, command=command) as registry:
                sides[side].append(await _measure(registry))
    gc.enable()
    return Result(
        rows=[
            Row(
                name=name.rpartition(", ")[0],
                unit=name.rpartition(", ")[2],
                ours=Spread(tuple(found[name] for found in sides["plan"])),
                limit=Spread(tuple(found[name] for found in sides["defaults"])),
            )
            for name in sides["plan"][0]
        ],
        limit="no limit but the other side: the same registry with Python's own thresholds",
        notes=[
            f"{INSTANCES:,} instances over {SESSIONS} sessions, {AT_ONCE} in a frame; {CHANGES:,} changes",
            "a ping counts from the moment at which it was due",
        ],
    )
