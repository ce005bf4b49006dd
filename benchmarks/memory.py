"""Memory: the resident size of each process, idle and with something in it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Final

from benchmarks import fleet, machine
from benchmarks.http_load import get
from benchmarks.process import Bare, Process, Registry, Sidecar
from benchmarks.report import Result, Row, Spread, spread
from benchmarks.session_beats import Publisher

if TYPE_CHECKING:
    from benchmarks.rounds import Options

TIMES: Final = 3
SETTLE: Final = 0.5
"""Seconds from the last change to the look at the memory."""

SESSIONS: Final = 1000


class _Sizes:
    """Resident and private memory, by what was looked at."""

    def __init__(self) -> None:
        self.resident: dict[str, list[float]] = {}
        self.private: dict[str, list[float]] = {}

    async def look(self, name: str, process: Process) -> None:
        """Look at a process' memory, when it has come to rest."""
        await asyncio.sleep(SETTLE)
        self.resident.setdefault(name, []).append(machine.resident_mib(process.pid))
        private = machine.private_mib(process.pid)
        if private is not None:
            self.private.setdefault(name, []).append(private)

    def row(self, name: str, limit: str) -> Row:
        """Return what was found."""
        return Row(
            name=name,
            unit="MiB",
            ours=Spread(tuple(self.resident[name])),
            limit=Spread(tuple(self.resident[limit])) if limit else None,
            more={"of it private": spread(self.private.get(name, []))},
        )

    def growth(self, name: str, *, of: tuple[str, str], limit: tuple[str, str] | None, count: int) -> Row:
        """Return what one of so many costs: the difference of two looks, each round's own."""

        def each(before: str, after: str) -> Spread:
            pairs = zip(self.resident[before], self.resident[after], strict=True)
            return Spread(tuple((b - a) * 1024 / count for a, b in pairs))

        return Row(name=name, unit="KiB", ours=each(*of), limit=each(*limit) if limit else None)


async def _imported(sizes: _Sizes, name: str, code: str) -> None:
    with Process(sys.executable, "-c", f"{code}\nimport time; time.sleep(60)", name="python") as process:
        await sizes.look(name, process)


async def _sessions(count: int, registry: Registry | None, bare: Bare | None) -> list[Publisher]:
    publishers = [Publisher(n, 1, 1) for n in range(count)]
    for publisher in publishers:
        if registry is not None:
            await publisher.enter(registry.session_port)
        elif bare is not None:
            await publisher.listen_bare(bare.port)
    return publishers


async def _registry(sizes: _Sizes) -> None:
    with Registry(fleet.LONG) as registry:
        await sizes.look("registry, idle", registry)
        with contextlib.ExitStack() as open_:
            # Sessions of a hundred instances each, a service each.
            for first, last in ((0, 10), (10, 100), (100, 1000)):
                for n in range(first, last):
                    publisher = Publisher(n, 100, 1)
                    open_.callback(publisher.close)
                    await publisher.enter(registry.session_port)
                await sizes.look(f"registry, {last * 100:,} instances in {last} sessions", registry)
    with Registry(fleet.LONG) as registry:
        publishers = await _sessions(SESSIONS, registry, None)
        await sizes.look(f"registry, {SESSIONS:,} sessions with an instance each", registry)
        for publisher in publishers:
            publisher.close()


async def _sidecar(sizes: _Sizes) -> None:
    with Registry(fleet.LONG) as registry, Sidecar(registry.session_port) as sidecar:
        await sizes.look("sidecar, idle", sidecar)
        await fleet.register(registry.port, range(1000))
        for service in range(100):
            get(sidecar.port, f"/services/orders-{service}")
        await sizes.look("sidecar, 100 services of 10 instances", sidecar)


async def _bare(sizes: _Sizes) -> None:
    with Bare() as bare:
        await sizes.look("bare", bare)
        publishers = await _sessions(SESSIONS, None, bare)
        await sizes.look("bare with sessions", bare)
        for publisher in publishers:
            publisher.close()


async def run(options: Options) -> Result:
    """Measure."""
    del options  # the number of starts is its own
    sizes = _Sizes()
    for _ in range(TIMES):
        await _bare(sizes)
        await _registry(sizes)
        await _sidecar(sizes)
        await _imported(sizes, "from rollbook import Client", "from rollbook import Client")
        await _imported(sizes, "import aiohttp", "import aiohttp")
        await _imported(sizes, "pass", "pass")
    with_limits = {
        "registry, idle": "bare",
        "registry, 1,000 instances in 10 sessions": "bare",
        "registry, 10,000 instances in 100 sessions": "bare",
        "registry, 100,000 instances in 1000 sessions": "bare with sessions",
        f"registry, {SESSIONS:,} sessions with an instance each": "bare with sessions",
        "sidecar, idle": "bare",
        "sidecar, 100 services of 10 instances": "bare",
        "from rollbook import Client": "import aiohttp",
        "import aiohttp": "pass",
    }
    idle, _, full, largest, many, *_ = with_limits
    each = [
        sizes.growth("each of 10,000 instances", of=(idle, full), limit=None, count=10_000),
        sizes.growth("each of 100,000 instances", of=(idle, largest), limit=None, count=100_000),
        sizes.growth(
            f"each of {SESSIONS:,} sessions with an instance",
            of=(idle, many),
            limit=("bare", "bare with sessions"),
            count=SESSIONS,
        ),
    ]
    return Result(
        rows=[sizes.row(name, limit) for name, limit in with_limits.items()] + each,
        limit=f"a bare aiohttp server, idle or with {SESSIONS:,} WebSockets; of imports: aiohttp, pass",
        steady=True,
        notes=[f"{TIMES} processes of each kind; private is what no other process shares"],
    )
