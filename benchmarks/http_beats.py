"""HTTP beats: ``PUT .../beat`` of 1,000 instances in turn, over keep-alive connections."""

from __future__ import annotations

import itertools

from benchmarks import fleet
from benchmarks.http_load import CONNECTIONS, HttpLoad
from benchmarks.process import Bare, Registry
from benchmarks.report import Result
from benchmarks.rounds import Options, Side, compare

INSTANCES = 1000


async def run(options: Options) -> Result:
    """Measure."""
    beats = [fleet.beat(n) for n in range(INSTANCES)]
    with Registry(fleet.LONG) as registry, Bare() as bare:
        await fleet.register(registry.port, range(INSTANCES))
        row = await compare(
            "light beats",
            Side(registry, lambda: HttpLoad(registry.port, itertools.cycle(beats), 202)),
            Side(bare, lambda: HttpLoad(bare.port, itertools.cycle(beats), 202)),
            options,
        )
    return Result(
        rows=[row],
        limit="a bare aiohttp application that answers the same requests with an empty 202",
        notes=[f"{CONNECTIONS} connections, one request under way on each; {INSTANCES} instances in turn"],
    )
