"""Registrations: ``POST .../instances`` of instances that are new, ten to a service."""

from __future__ import annotations

import itertools
import json

from benchmarks import fleet
from benchmarks.http_load import CONNECTIONS, HttpLoad, get
from benchmarks.process import Bare, Registry
from benchmarks.report import Result
from benchmarks.rounds import Options, Side, compare


async def run(options: Options) -> Result:
    """Measure."""
    # Each request registers an instance that the registry has not seen, in all rounds together.
    fresh = (fleet.registration(n) for n in itertools.count(1))
    same = (fleet.registration(n) for n in itertools.count(1))
    with Registry(fleet.LONG) as registry:
        await fleet.register(registry.port, range(1))
        instance = json.loads(get(registry.port, "/services/orders-0"))["instances"][0]
        size = len(json.dumps({"instance": instance, "term": 1}, separators=(",", ":")))
        with Bare(register=size) as bare:
            row = await compare(
                "registrations",
                Side(registry, lambda: HttpLoad(registry.port, fresh, 201)),
                Side(bare, lambda: HttpLoad(bare.port, same, 201)),
                options,
            )
    return Result(
        rows=[row],
        limit="a bare aiohttp application that reads the same bodies and answers with as many prepared bytes",
        notes=[
            f"{CONNECTIONS} connections, one request under way on each; every instance is new; no subscribers"
        ],
    )
