"""A run: a seed, the plan of faults that it draws, and what came of it."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from typing import TYPE_CHECKING, NamedTuple

from rollbook.model import Entry
from rollbook_registry.cluster import Distro, DistroTimings
from simulation import plans
from simulation.clients import ANCHOR, HttpPublisher, Operator, Publisher, Subscriber
from simulation.observer import Observer
from simulation.replica import Node
from simulation.world import Broken, Network, World

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEALING = 75.0
"""Seconds after the last fault: hiding (45), then expiry (30) of what only a restarted replica still had."""


class Result(NamedTuple):
    """What came of a seed."""

    seed: int
    plan: str
    broken: str
    fingerprint: str
    events: int
    counts: dict[str, int]

    def __str__(self) -> str:
        state = f"BROKEN: {self.broken}" if self.broken else "holds"
        again = f"python -m simulation {self.seed} --plan {self.plan} --trace"
        return f"seed {self.seed} ({self.plan}): {state}  [replay: {again}]"


class Run:
    """The replicas and clients of one run."""

    def __init__(self, seed: int, *, plan: str | None, trace: bool, make=Distro) -> None:
        self.world = world = World(seed, trace=trace)
        self.rng = rng = world.rng
        self.plan = plan or rng.choices(list(plans.PLANS), [p.weight for p in plans.PLANS.values()])[0]
        self.network = network = Network(world)
        self.observer = Observer(world)
        ordinals = range(rng.choices([3, 2, 5], [8, 1, 1])[0] if plans.PLANS[self.plan].any_size else 3)
        members = frozenset(ordinals)
        self.nodes = [
            Node(world, network, o, members=members, make=make, observer=self.observer) for o in ordinals
        ]
        for node in self.nodes:
            node.others = [n for n in self.nodes if n is not node]
            # So that books as small as these are too large for one message, and for the log, now and then.
            node.timings = DistroTimings(
                chunk_records=rng.choice([3, 2000]), log_changes=rng.choice([4, 8192])
            )
            node.rate = 1.0 + rng.uniform(-0.02, 0.02)
            node.offset = rng.uniform(0.0, 1e6)
        self.observer.nodes = self.nodes
        self.publishers: list = []
        self.subscribers: list = []
        self._people()
        for node in self.nodes:
            node.clients = [*self.publishers, *self.subscribers]

    def _people(self) -> None:
        rng, args = self.rng, (self.world, self.network, self.nodes)
        for n in range(3):
            entry = Entry(service=ANCHOR, ip=f"10.0.0.{n}", port=80)
            kind = HttpPublisher if n == 1 else Publisher
            self.publishers.append(kind(*args, f"anchor{n}", [entry]))
        for n in range(rng.randint(2, 5)):
            services = rng.sample(["orders", "invoices", "users"], rng.randint(1, 2))
            entries = [Entry(service=s, ip=f"10.0.1.{n}", port=80) for s in services]
            self.publishers.append(Publisher(*args, f"session{n}", entries))
        for n in range(rng.randint(1, 3)):
            services = rng.sample(["orders", "invoices", "users"], rng.randint(1, 2))
            entries = [Entry(service=s, ip=f"10.0.2.{n}", port=80) for s in services]
            self.publishers.append(HttpPublisher(*args, f"http{n}", entries))
        self.pods = [f"pod{n}" for n in range(rng.randint(1, 4))]
        told = []
        for n, uid in enumerate(self.pods):
            pod = {"service": "pods", "ip": f"10.0.3.{n}", "port": 80, "owner": uid}
            sidecar = rng.random() < 0.7
            told.append(Entry(**pod, ready=True, beats_required=sidecar))
            if sidecar:
                self.publishers.append(Publisher(*args, f"sidecar{n}", [Entry(**pod)]))
        self.operator = Operator(*args, "operator", told)
        self.publishers.append(self.operator)
        self.observer.publishers = self.publishers
        self.observer.operator = self.operator
        for n in range(2):
            name = f"subscriber{n}"
            self.subscribers.append(Subscriber(*args, name, [ANCHOR, "orders", "pods"], self.observer))

    def go(self) -> None:
        for node in self.nodes:
            self.world.after(self.rng.random() * 2.0, lambda n=node: n.start(disk=False))
        for client in (*self.publishers, *self.subscribers):
            client.start(8.0 + self.rng.random() * 5.0)
        self.world.run(20.0)
        plan = plans.PLANS[self.plan]
        plan.run(self)
        self.network.heal()
        for node in self.nodes:
            if node.process is not None:
                node.process.stalled_until = min(node.process.stalled_until, self.world.now)
            node.start(disk=True)
        self.world.note("healed")
        # Whoever was leaving a moment ago has ended by then.
        self.world.run(self.world.now + 1.0)
        for node in self.nodes:
            node.start(disk=True)
        self.world.run(self.world.now + HEALING)
        for _ in range(6):
            # Of several that died, protection strikes out some in each of its windows.
            if not any(n.process and self.observer.dead(n.process) for n in self.nodes):
                break
            self.world.run(self.world.now + 60.0)
        self.observer.check(orderly=plan.orderly, latest=not plan.forgetful)


def simulate(seed: int, *, plan: str | None = None, trace: bool = False, make=Distro) -> Result:
    """Run a seed.

    Args:
        seed: everything is drawn from it.
        plan: of faults; the seed's own, if it isn't given.
        trace: print what happens.
        make: what replicas have for a core, for mutations of it.
    """
    run = Run(seed, plan=plan, trace=trace, make=make)
    broken = ""
    try:
        run.go()
    except Broken as error:
        broken = str(error)
        run.world.note("broken", broken)
    except Exception:  # noqa: BLE001  # an error of the core is a finding like others, and has a seed
        broken = traceback.format_exc()
    counts: dict[str, int] = {}
    for node in run.nodes:
        known = [node.counts] + ([node.process.distro.counts] if node.process else [])
        for one in known:
            for turn, number in one.items():
                counts[turn.value] = counts.get(turn.value, 0) + number
    return Result(seed, run.plan, broken, run.world.fingerprint, run.world.events, counts)


def _one(args) -> Result:
    seed, plan = args
    return simulate(seed, plan=plan)


def many(seeds: Iterable[int], *, plan: str | None = None, processes: int | None = None) -> Iterator[Result]:
    """Run many seeds, over all cores."""
    work = [(seed, plan) for seed in seeds]
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        yield from map(_one, work)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(_one, work, chunksize=8)
