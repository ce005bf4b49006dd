"""Lists at the registry: ``GET /services/{service}`` with 10 and with 100 instances."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from benchmarks import fleet
from benchmarks.http_load import CONNECTIONS, HttpLoad, get, request
from benchmarks.process import Bare, Registry
from benchmarks.report import Result
from benchmarks.rounds import Options, Side, compare

if TYPE_CHECKING:
    from benchmarks.report import Row

SIZES = (10, 100)


async def run(options: Options) -> Result:
    """Measure."""
    with Registry(fleet.LONG) as registry:
        rows = [await _row(registry, size, options) for size in SIZES]
    return Result(
        rows=rows,
        limit="a bare aiohttp application that answers the same requests with as many prepared bytes",
        notes=[f"{CONNECTIONS} connections, one request under way on each; the list does not change"],
    )


async def _row(registry: Registry, size: int, options: Options) -> Row:
    path = f"/services/of-{size}"
    await fleet.register(registry.port, range(size), f"of-{size}")
    answer = get(registry.port, path)
    asks = itertools.cycle([request("GET", path)])
    with Bare(list=len(answer)) as bare:
        return await compare(
            f"list of {size} ({len(answer):,} bytes)",
            Side(registry, lambda: HttpLoad(registry.port, asks)),
            Side(bare, lambda: HttpLoad(bare.port, asks)),
            options,
        )
