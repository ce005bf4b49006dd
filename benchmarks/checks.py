"""Checks: how many a second the checker makes, beside a loop that only opens connections.

Every instance is always due, so there are as many checks under way as may be, and each that ends makes room
for the next: the schedule, the verdicts and the counting are all in it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import time
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client import CollectorRegistry

from benchmarks.process import Bare
from benchmarks.report import Result, Row, Spread
from rollbook import logs
from rollbook.model import Entry
from rollbook_registry.catalog.definitions import Check
from rollbook_registry.checks import Checker, Probes, Reach
from rollbook_registry.metrics import CheckMeter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.rounds import Options
    from rollbook_registry.checks import Finding

UNDER_WAY: Final = 100
"""Checks at a time, ours and the limit's; the setting's default."""

INSTANCES: Final = 1000

ALWAYS: Final = 1e-6
"""Seconds between two checks of an instance: it is always due."""


class _Side(Protocol):
    def __call__(
        self, kind: str, port: int, done: collections.Counter[str]
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Check for as long as the context lasts, and count."""


class _Meter(CheckMeter):
    """Counts as the registry does, and for us."""

    def __init__(self, done: collections.Counter[str]) -> None:
        super().__init__(CollectorRegistry())
        self._done = done

    def ended(self, kind: str, finding: Finding | str, seconds: float) -> None:
        super().ended(kind, finding, seconds)
        self._done[finding] += 1


@contextlib.asynccontextmanager
async def _running(task: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def _ours(kind: str, port: int, done: collections.Counter[str]) -> AsyncIterator[None]:
    check = Check(type=kind, port=port, interval=ALWAYS, timeout=5.0)  # type: ignore[arg-type]  # tcp or http
    with Probes(Reach(allow=("127.0.0.0/8",))) as probes:
        checker = Checker(
            default=check,
            ask=probes.ask,
            report=lambda _: None,
            meter=_Meter(done),
            clock=time.monotonic,
            rng=random.random,
            concurrency=UNDER_WAY,
            first_rate=1e9,
        )
        for n in range(INSTANCES):
            entry = Entry(service="db", ip="127.0.0.1", port=n + 1, ephemeral=False)
            checker.define(entry.ref, entry, None)
        async with _running(asyncio.create_task(checker.run())):
            yield


@contextlib.asynccontextmanager
async def _limit(kind: str, port: int, done: collections.Counter[str]) -> AsyncIterator[None]:
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()

    async def work() -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if kind == "http":
                writer.write(request)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            done["passed"] += 1

    async def all_work() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(UNDER_WAY):
                tasks.create_task(work())

    async with _running(asyncio.create_task(all_work())):
        yield


async def _measure(side: _Side, kind: str, port: int, options: Options) -> tuple[float, float]:
    """Return checks per second, and per second of this process' processor time."""
    done: collections.Counter[str] = collections.Counter()
    async with side(kind, port, done):
        await asyncio.sleep(options.warm_up)
        before, began, used = done["passed"], time.perf_counter(), time.process_time()
        await asyncio.sleep(options.seconds)
        made = done["passed"] - before
        took, used = time.perf_counter() - began, time.process_time() - used
    if set(done) != {"passed"}:
        raise RuntimeError(f"not every check passed: {dict(done)}")
    return made / took, made / used


async def _row(kind: str, port: int, options: Options) -> Row:
    ours: list[tuple[float, float]] = []
    limit: list[tuple[float, float]] = []
    for n in range(options.rounds + 1):
        for side, found in ((_ours, ours), (_limit, limit)):
            measured = await _measure(side, kind, port, options)
            if n:  # in the first round both sides get warm
                found.append(measured)
    return Row(
        name=f"{kind} checks",
        unit="/s",
        ours=Spread(tuple(rate for rate, _ in ours)),
        limit=Spread(tuple(rate for rate, _ in limit)),
        more={
            "x limit per CPU s": Spread(tuple(a / b for (_, a), (_, b) in zip(ours, limit, strict=True))),
        },
    )


async def run(options: Options) -> Result:
    """Measure."""
    logs.set_up("warning", "json")  # the checker runs in this process, which has no logging of its own
    with Bare() as server:
        rows = [await _row(kind, server.port, options) for kind in ("tcp", "http")]
    return Result(
        rows=rows,
        limit="a loop that opens connections with asyncio's streams, asks and reads one line if it is HTTP, "
        "and closes them, as many at a time",
        notes=[
            f"{INSTANCES} instances that are always due, at most {UNDER_WAY} checks under way",
            "all of them ask one bare aiohttp server on loopback; both sides on uvloop",
        ],
    )
