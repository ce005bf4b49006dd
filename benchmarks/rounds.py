"""Rounds: ours and the limit in turns, A B A B, so that what disturbs one disturbs the other too."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Final, Protocol

from benchmarks.report import Row, Spread, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.process import Process


UNCOUNTED: Final = 0.5
"""Seconds of the first round of each side, in which the server gets warm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How long to measure.

    Attributes:
        rounds: of each, ours and the limit.
        seconds: of one round.
        warm_up: seconds before each round in which the load runs and nothing is counted.
    """

    rounds: int = 4
    seconds: float = 1.2
    warm_up: float = 0.2


class Load(Protocol):
    """Something that keeps a server as busy as it can."""

    async def start(self) -> None:
        """Begin."""

    def done(self) -> int:
        """Return how much has been answered so far."""

    async def stop(self) -> None:
        """End."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A server and the load for it; a load is made anew for each round."""

    process: Process
    load: Callable[[], Load]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Round:
    rate: float
    server_busy: float | None
    load_busy: float


async def _measure(side: Side, options: Options, times: int) -> _Round:
    load = side.load()
    await load.start()
    try:
        await asyncio.sleep(options.warm_up)
        side.process.profile_from_here()
        done, began = load.done(), time.perf_counter()
        used, own = side.process.cpu_seconds, time.process_time()
        await asyncio.sleep(options.seconds)
        done, took = load.done() - done, time.perf_counter() - began
        after, own = side.process.cpu_seconds, time.process_time() - own
    finally:
        await load.stop()
    return _Round(
        rate=done * times / took,
        server_busy=None if used is None or after is None else (after - used) / took,
        load_busy=own / took,
    )


async def compare(name: str, ours: Side, limit: Side, options: Options, *, times: int = 1) -> Row:
    """Measure both in turns, after a short round of each that does not count.

    Args:
        name: of the row.
        ours: Rollbook.
        limit: the limit.
        options: how long.
        times: what one answer counts for.
    """
    found: dict[Side, list[_Round]] = {ours: [], limit: []}
    for side in found:
        await _measure(side, dataclasses.replace(options, seconds=UNCOUNTED), times)
    for _ in range(options.rounds):
        for side, measured in found.items():
            measured.append(await _measure(side, options, times))
    a, b = found[ours], found[limit]
    return Row(
        name=name,
        unit="/s",
        ours=Spread(tuple(r.rate for r in a)),
        limit=Spread(tuple(r.rate for r in b)),
        more={
            "x limit per CPU s": spread(
                [
                    (x.rate / x.server_busy) / (y.rate / y.server_busy)
                    for x, y in zip(a, b, strict=True)
                    if x.server_busy and y.server_busy
                ]
            ),
            "server busy": spread([r.server_busy for r in a if r.server_busy is not None]),
            "load busy": spread([r.load_busy for r in a]),
            "limit busy": spread([r.server_busy for r in b if r.server_busy is not None]),
            "load at limit": spread([r.load_busy for r in b]),
        },
    )
