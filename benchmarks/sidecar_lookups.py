"""Lookups at the sidecar: ``GET /services/{service}`` with 10 and 100 instances, and ``/pick`` of either."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from benchmarks import fleet
from benchmarks.http_load import CONNECTIONS, HttpLoad, get, request
from benchmarks.process import Bare, Registry, Sidecar
from benchmarks.report import Result
from benchmarks.rounds import Options, Side, compare

if TYPE_CHECKING:
    from benchmarks.report import Row

SIZES = (10, 100)


async def run(options: Options) -> Result:
    """Measure."""
    with Registry(fleet.LONG) as registry, Sidecar(registry.session_port) as sidecar:
        rows = []
        for size in SIZES:
            service = f"of-{size}"
            await fleet.register(registry.port, range(size), service)
            rows.append(await _row(sidecar, f"/services/{service}", f"list of {size}", options))
        rows += [
            await _row(sidecar, f"/services/of-{size}/pick", f"pick of {size}", options) for size in SIZES
        ]
    return Result(
        rows=rows,
        limit="a bare aiohttp application that answers the same requests with as many prepared bytes",
        notes=[f"{CONNECTIONS} connections, one request under way on each; the list does not change"],
    )


async def _row(sidecar: Sidecar, path: str, name: str, options: Options) -> Row:
    answer = get(sidecar.port, path)
    asks = itertools.cycle([request("GET", path)])
    with Bare(list=len(answer), pick=len(answer)) as bare:
        return await compare(
            f"{name} ({len(answer):,} bytes)",
            Side(sidecar, lambda: HttpLoad(sidecar.port, asks)),
            Side(bare, lambda: HttpLoad(bare.port, asks)),
            options,
        )
