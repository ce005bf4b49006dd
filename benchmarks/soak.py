"""Soak: ten minutes of a fleet that lives, with the registry's own timings, and whether all went well.

``python -m benchmarks.soak [--seconds 600] [--scale 1.0] [--seed N] [--profile] [--out FILE]``

A fleet of 20,000 instances, most held by sessions and some by plain HTTP clients that beat for themselves,
and 500 subscribers that keep lists and check each change's digest. Meanwhile instances come and go, change
their metadata, stop working and work again; sessions of both kinds break and come back. Nobody is really
silent for as long as the registry waits, so whatever it strikes out, it strikes out wrongly.

It prints a verdict on each promise and writes ``build/benchmarks/soak.json``; exit status 1 if one is broken.
What the churn does follows from the seed; when, from the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import heapq
import json
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
import uvloop

from benchmarks import fleet, machine, process, report
from benchmarks.process import Bare, Registry
from benchmarks.report import Result, Row, Spread
from benchmarks.soak_clients import Arrivals, Follower, Publisher
from benchmarks.soak_ledger import LOST_AFTER, Ledger, percentile
from benchmarks.web_socket import WebSocket, connect, masked
from rollbook import ServiceKey
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, instance_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rollbook import Entry
    from rollbook.names import InstanceKey

BEAT: Final = 5.0
"""Seconds between beats: the registry's default."""

UNHEALTHY_AFTER: Final = 15.0
"""The registry's default: a silence of this process that is longer proves nothing against it."""

PING: Final = 20.0
BREAK: Final = 4.0
"""Seconds for which a session that breaks stays away, at most: two beats may be missed, but not three."""

WATCH: Final = 10.0
"""Seconds between looks at the memory."""

ROUND_TRIP: Final = 0.05
MAX_PUSH_P99: Final = 0.020
MAX_GROWTH: Final = 0.05
"""The memory's growth, from the third fifth of the time to the last, that still counts as flat."""

WIDE: Final = "wide"
"""A service that many follow; it has no more churn than others, or it would have most of the pushes."""

EVENTS: Final = 5000
"""What ``/events`` remembers: full before the clock starts, so that what grows later is something else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything.

    Attributes:
        seconds: of churn.
        seed: of the churn.
        sessions: that hold instances.
        entries: instances of each.
        plain: instances of plain HTTP clients.
        services: that they are spread over; few enough for each to have had as many changes as the registry
            remembers of a service when the last third of the time begins: what grows then is something else.
        followers: that keep lists.
        follows: services that each follows, the wide one included if it does.
        wide_followers: those that follow the wide service too.
        changes: a second.
        breaks: of sessions, a second.
    """

    seconds: float = 600.0
    seed: int = 0
    sessions: int = 250
    entries: int = 78
    plain: int = 500
    services: int = 200
    followers: int = 500
    follows: int = 4
    wide_followers: int = 100
    changes: float = 100.0
    breaks: float = 1.0

    def scaled(self, by: float) -> Plan:
        """Return a smaller one."""
        sized = {
            name: max(2, round(getattr(self, name) * by))
            for name in ("sessions", "plain", "services", "followers", "wide_followers")
        }
        return dataclasses.replace(self, **sized, changes=self.changes * by)

    def __str__(self) -> str:
        return (
            f"{self.sessions * self.entries + self.plain:,} instances over {self.sessions} sessions and "
            f"{self.plain} plain HTTP clients, {self.followers} subscribers; seed {self.seed}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What came of it.

    Attributes:
        result: the figures.
        promises: what was promised, and whether it was kept.
        failures: what must not have happened, the first of them.
    """

    result: Result
    promises: dict[str, bool]
    failures: list[str]


class Schedule:
    """Actions at their times, one task for all."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, float, Callable[[], None]]] = []
        self._count = 0
        self.lateness: list[float] = []

    def every(self, interval: float, action: Callable[[], None], *, first: float) -> None:
        """Do something again and again, for the first time after so many seconds."""
        self._count += 1
        heapq.heappush(self._due, (time.monotonic() + first, self._count, interval, action))

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        while True:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                due, order, interval, action = self._due[0]
                self.lateness.append(now - due)
                action()
                # A stall of this process is not made good by a burst.
                heapq.heapreplace(self._due, (max(due, now - interval) + interval, order, interval, action))
            await asyncio.sleep(max(0.0, min(0.01, self._due[0][0] - now)) if self._due else 0.01)


class Plain:
    """Plain HTTP clients: each instance beats for itself."""

    def __init__(self, http: aiohttp.ClientSession, url: str, failed: Callable[[str], None]) -> None:
        self._http = http
        self._url = url
        self._failed = failed
        self._terms: dict[Entry, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._beat_at: dict[str, float] = {}
        self.longest_silence = 0.0

    async def enter(self, entry: Entry) -> Callable[[], None]:
        """Register an instance; return what beats for it."""
        body = {"ip": entry.ip, "port": entry.port, "instance_id": entry.instance_id}
        url = f"{self._url}/services/{entry.service}/instances"
        async with self._http.post(url, json=body) as answer:
            term = (await answer.json())["term"]
        path = f"{url}/{_key(entry)}/beat?term={term}"
        self._beat_at[path] = time.monotonic()
        return lambda: self._begin(path)

    def _begin(self, path: str) -> None:
        task = asyncio.create_task(self._beat(path))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _beat(self, path: str) -> None:
        now = time.monotonic()
        self.longest_silence = max(self.longest_silence, now - self._beat_at[path])
        self._beat_at[path] = now
        try:
            async with self._http.put(path) as answer:
                if answer.status != 202:
                    self._failed(f"a beat was answered {answer.status}: {await answer.text()}")
        except aiohttp.ClientError as error:
            self._failed(f"a beat was not answered: {error}")


class Soak:
    """One run.

    Args:
        plan: how much.
        registry: the registry.
        bare: the limit, for round trips.
    """

    def __init__(self, plan: Plan, registry: Registry, bare: Bare) -> None:
        self._plan = plan
        self._registry = registry
        self._bare = bare
        self._rng = random.Random(plan.seed)
        self._ledger = Ledger()
        self._schedule = Schedule()
        self._followed_by: dict[str, set[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[str] = []
        names = [WIDE, *(f"orders-{n}" for n in range(plan.services - 1))]
        self._services = [ServiceKey(DEFAULT_NAMESPACE, DEFAULT_GROUP, name) for name in names]
        self._followed_by = {name: set() for name in names}
        self._publishers = [self._publisher(n) for n in range(plan.sessions)]
        self._followers = [
            self._follower(n, arrivals) for arrivals in (Arrivals(),) for n in range(plan.followers)
        ]
        self._differing = 0
        self._memory: list[float] = []
        self._trips: list[float] = []
        self._changed = 0
        self._broken = 0

    async def run(self) -> Findings:
        """Soak."""
        async with aiohttp.ClientSession() as http:
            plain = Plain(http, f"http://127.0.0.1:{self._registry.port}", self._failed)
            keeping = asyncio.create_task(self._schedule.run(), name="schedule")
            try:
                await self._enter(plain)
                used, began = self._registry.cpu_seconds or 0.0, time.monotonic()
                await self._churn()
                took = time.monotonic() - began
                busy = ((self._registry.cpu_seconds or 0.0) - used) / took
                await self._settle()
                metrics = _Metrics(
                    await (await http.get(f"http://127.0.0.1:{self._registry.port}/metrics")).text()
                )
            finally:
                keeping.cancel()
        silence = max(plain.longest_silence, *(p.longest_silence for p in self._publishers))
        return self._findings(metrics, busy=busy, took=took, silence=silence)

    # --- who there is ----------------------------------------------------------------------------------

    def _entry(self, number: int, service: int) -> Entry:
        return fleet.entry(number, self._services[service].name)

    def _publisher(self, number: int) -> Publisher:
        first = number * self._plan.entries
        # One of each session's is in the wide service; the others follow each other through the rest.
        others = self._plan.services - 1
        entries = [
            self._entry(n, 0 if n == first else 1 + n % others)
            for n in range(first, first + self._plan.entries)
        ]
        return Publisher(number, entries, self._failed)

    def _follower(self, number: int, arrivals: Arrivals) -> Follower:
        wide = number < self._plan.wide_followers
        count = min(self._plan.follows, self._plan.services - 1) - wide
        services = [*self._rng.sample(self._services[1:], count), *(self._services[:1] if wide else ())]
        return Follower(
            number,
            services,
            arrivals=arrivals,
            ledger=self._ledger,
            followers=self._followed_by,
            failed=self._failed,
        )

    async def _enter(self, plain: Plain) -> None:
        """Have everybody come, and begin to beat at once, each at its own phase."""
        port = self._registry.session_port
        for publisher in self._publishers:
            await publisher.enter(port)
            self._schedule.every(BEAT, self._beating(publisher), first=self._rng.uniform(0, BEAT))
        first = self._plan.sessions * self._plan.entries
        for n in range(first, first + self._plan.plain):
            beat = await plain.enter(self._entry(n, 1 + n % (self._plan.services - 1)))
            self._schedule.every(BEAT, beat, first=self._rng.uniform(0, BEAT))
        for follower in self._followers:
            await follower.come(port)
            self._schedule.every(PING, self._pinging(follower), first=self._rng.uniform(0, PING))

    @staticmethod
    def _beating(publisher: Publisher) -> Callable[[], None]:
        return lambda: publisher.beat() if publisher.ready else None

    @staticmethod
    def _pinging(follower: Follower) -> Callable[[], None]:
        return lambda: follower.ping() if follower.ready else None

    # --- what happens ----------------------------------------------------------------------------------

    async def _churn(self) -> None:
        """Let the fleet live."""
        plan = self._plan
        trips = asyncio.create_task(self._round_trips(), name="round trips")
        self._schedule.every(1.0, self._look, first=1.0)
        self._schedule.every(WATCH if plan.seconds > 10 * WATCH else 1.0, self._weigh, first=0.0)
        end = time.monotonic() + plan.seconds
        change = broken = time.monotonic()
        while (now := time.monotonic()) < end:
            while change <= now:
                self._change()
                change += self._rng.expovariate(plan.changes)
            while broken <= now:
                self._break()
                broken += self._rng.expovariate(plan.breaks)
            await asyncio.sleep(max(0.0, min(change, broken, end) - time.monotonic()))
        trips.cancel()

    def _change(self) -> None:
        """Change one instance that everybody knows as it is."""
        publisher = self._rng.choice(self._publishers)
        index = self._rng.randrange(len(publisher.entries))
        kind = self._rng.random()
        entry = publisher.entries[index]
        service, key = entry.service, _key(entry)
        if not publisher.ready or self._ledger.is_open(service, key):
            return
        self._changed += 1
        self._ledger.changed(service, key, self._followed_by[service], time.perf_counter())
        if index in publisher.absent:
            publisher.register(index, entry)
        elif index in publisher.down or kind < 0.4:
            # What is down is mended before anything else: registering it would say that it works.
            publisher.flip(index)
        elif kind < 0.8:
            metadata = {**fleet.METADATA, "change": str(self._changed)}
            publisher.register(index, msgspec.structs.replace(entry, metadata=metadata))
        else:
            publisher.deregister(index)

    def _break(self) -> None:
        """Break a session, which comes back in a moment."""
        publishes = self._rng.random() < 0.5
        pool: Sequence[Publisher | Follower] = self._publishers if publishes else self._followers
        client = self._rng.choice(pool)
        away = self._rng.uniform(0.0, BREAK)
        if client.ready:
            self._broken += 1
            client.go()
            task = asyncio.create_task(self._return(client, away))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _return(self, client: Publisher | Follower, away: float) -> None:
        await asyncio.sleep(away)
        try:
            async with asyncio.timeout(LOST_AFTER):
                await client.come(self._registry.session_port)
        except (OSError, TimeoutError) as error:
            self._failed(f"{type(client).__name__} could not come back: {error!r}")

    async def _round_trips(self) -> None:
        """Measure what a bare WebSocket on the registry's core takes for an answer, all the while."""
        answered = asyncio.Event()

        def heard(_: WebSocket, __: bytes) -> None:
            self._trips.append(time.perf_counter() - sent)
            answered.set()

        socket = await connect(self._bare.port, heard)
        frame = masked(b"P" + bytes(200))
        try:
            while True:
                answered.clear()
                sent = time.perf_counter()
                socket.write(frame)
                await answered.wait()
                await asyncio.sleep(ROUND_TRIP)
        finally:
            socket.close()

    def _look(self) -> None:
        self._ledger.give_up(time.perf_counter())
        clients: list[Publisher | Follower] = [*self._publishers, *self._followers]
        for client in clients:
            if client.cut_off:
                self._failed(f"{type(client).__name__} was cut off: {client.cut_off}")

    def _weigh(self) -> None:
        self._memory.append(machine.resident_mib(self._registry.pid))

    def _failed(self, why: str) -> None:
        self.failures.append(why)

    async def _settle(self) -> None:
        """Wait until everybody is back and has heard of everything, and compare all lists."""
        if self._tasks:
            await asyncio.gather(*self._tasks)
        until = time.monotonic() + 2 * LOST_AFTER
        while not self._ledger.quiet and time.monotonic() < until:
            await asyncio.sleep(0.05)
            self._ledger.give_up(time.perf_counter())
        for follower in self._followers:
            self._differing += await follower.compare()

    # --- what came of it -------------------------------------------------------------------------------

    def _findings(self, metrics: _Metrics, *, busy: float, took: float, silence: float) -> Findings:
        expired = metrics.sum("rollbook_expirations_total")
        closed = metrics.sum("rollbook_sessions_closed_total")
        latencies = self._ledger.latencies
        fifth = max(1, len(self._memory) // 5)
        before = statistics.median(self._memory[2 * fifth : 3 * fifth] or self._memory)
        after = statistics.median(self._memory[-fifth:])
        pushes = sum(f.pushes for f in self._followers)
        p99 = percentile(latencies, 0.99)
        promises = {
            "no false expiry": expired == 0 or silence >= UNHEALTHY_AFTER,
            "no lost push": not self._ledger.lost and bool(latencies),
            "every list equals the registry's": self._differing == 0,
            "no session ended by the registry": closed == 0,
            "nothing else went wrong": not self.failures,
            "flat memory": after <= before * (1 + MAX_GROWTH),
            "p99 of pushes under 20 ms": p99 < MAX_PUSH_P99,
        }
        rows = [
            Row(
                name=f"push, {name}",
                unit="ms",
                ours=Spread((percentile(latencies, share) * 1000,)),
                limit=Spread((percentile(self._trips, share) * 1000,)),
            )
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("the longest", 1.0))
        ]
        figures = (
            ("changes", "/s", self._changed / took),
            ("pushes", "/s", pushes / took),
            ("sessions broken and back", "/s", self._broken / took),
            ("registry's core busy", "%", busy * 100),
            ("memory, third fifth of the time", "MiB", before),
            ("memory, last fifth", "MiB", after),
            ("expirations", "", expired),
            ("lost pushes", "", len(self._ledger.lost)),
            ("lists that differed at the end", "", self._differing),
            ("longest silence of a client", "s", silence),
            ("lateness of the load, p99", "ms", percentile(self._schedule.lateness, 0.99) * 1000),
        )
        rows += [Row(name=n, unit=u, ours=Spread((float(v),)), limit=None) for n, u, v in figures]
        return Findings(
            result=Result(
                rows=rows,
                limit="a bare aiohttp WebSocket on the registry's core answers 200 bytes, all the while",
                notes=[
                    f"{took:.0f} s; {self._plan}",
                    f"memory, MiB, from the beginning: {', '.join(f'{m:.0f}' for m in self._memory)}",
                ],
            ),
            promises=promises,
            failures=[*self._ledger.lost[:10], *self.failures[:10]],
        )


def _key(entry: Entry) -> InstanceKey:
    return instance_key(ip=entry.ip, port=entry.port, cluster=entry.cluster, owner=entry.owner)


class _Metrics:
    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def sum(self, name: str) -> float:
        """Return the sum of a metric over all its labels."""
        found = (re.fullmatch(rf"{name}(?:\{{.*\}})? (\S+)", line) for line in self._lines)
        return sum(float(match[1]) for match in found if match)


async def soak(plan: Plan) -> Findings:
    """Run one, with a registry and a limit of its own."""
    with Registry({"ROLLBOOK_MAX_EVENTS": str(EVENTS)}) as registry, Bare() as bare:
        return await Soak(plan, registry, bare).run()


def main() -> None:
    """Read the command line, soak, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of churn")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the fleet, and of its churn")
    parser.add_argument("--seed", type=int, default=None, help="of the churn; none: any")
    parser.add_argument("--profile", action="store_true", help="sample what the registry does meanwhile")
    parser.add_argument("--out", type=Path, default=None, help="the file to write")
    given = parser.parse_args()
    if given.seconds <= 0 or not 0 < given.scale <= 10:
        parser.error("--seconds must be positive, --scale too and at most 10")
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    plan = Plan(seconds=given.seconds, seed=seed).scaled(given.scale)
    out = process.ROOT / "build" / "benchmarks"
    if given.profile:
        process.profile_directory = out / "profile" / "soak"
    machine.pin_load()
    print(f"soaking for {plan.seconds:g} s, seed {seed}", flush=True)
    watch = machine.Watch()
    findings = uvloop.run(soak(plan))
    others = watch.others()
    print(report.table("soak", findings.result, others))
    for failure in findings.failures:
        print(f"! {failure}")
    for promise, kept in findings.promises.items():
        print(f"{'kept  ' if kept else 'BROKEN'}  {promise}")
    path = given.out or out / "soak.json"
    report.save(path, "soak", findings.result, watch=watch, others=others, options=plan)
    document = json.loads(path.read_text()) | {"promises": findings.promises, "failures": findings.failures}
    path.write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(0 if all(findings.promises.values()) else 1)


if __name__ == "__main__":
    main()
