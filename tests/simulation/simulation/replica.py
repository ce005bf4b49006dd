"""A replica in the simulation: the real catalog, expiry and Distro core, under a clock of its own."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rollbook.clock import AttentiveClock
from rollbook_registry.catalog import Catalog, ServiceChanged, Timings
from rollbook_registry.catalog.events import Deadline, PodsMarked, Written
from rollbook_registry.cluster import DistroTimings, Saved, Turn
from rollbook_registry.cluster.messages import decode, encode
from rollbook_registry.expiry import Expiry, Protected, Protection, Wheel

if TYPE_CHECKING:
    from simulation.world import Network, World

TICK = 0.25
IMAGE_EVERY = 5.0
"""Seconds between two images on disk; what came after the last is lost with the process."""


class Unreachable(Exception):  # noqa: N818  # a state of the network, which clients handle
    """No answer."""


class Process:
    """One life of a replica."""

    def __init__(self, node: Node, boot: str, saved: Saved | None) -> None:
        world = node.world
        self.node = node
        self.boot = boot
        self.clock = AttentiveClock(node.local(world.now), max_step=1.0)
        now = self.clock.read(node.local(world.now))
        self.catalog = Catalog(Timings(), ordinal=node.ordinal)
        # The floor would let a book as small as this one be emptied by silence alone.
        protection = Protection(Protected(floor=1), random.Random(world.rng.getrandbits(32)))
        self.expiry = Expiry(self.catalog, Wheel(now, tick=TICK), protection)
        self.distro = node.make(
            ordinal=node.ordinal,
            boot=boot,
            members=node.members,
            book=self.catalog,
            timings=node.timings,
            hide_share=0.15,
            rng=random.Random(world.rng.getrandbits(32)),
            now=now,
            saved=saved,
        )
        self.stalled_until = 0.0
        self.swept = self.imaged = now
        self.subscribers: list = []
        self.was_ready = False
        self.pump(now)

    def now(self) -> float:
        return self.clock.look(self.node.local(self.node.world.now))

    def do(self, command):
        """Run a command as the book does: whatever comes of it goes on before anything else."""
        now = self.now()
        try:
            return command(self, now)
        finally:
            self.pump(now)

    def pump(self, now: float) -> None:
        node = self.node
        changed: list[ServiceChanged] = []
        while events := self.catalog.take_events():
            writes, pods = [], []
            for event in events:
                if isinstance(event, Deadline):
                    self.expiry.watch(event.lease, event.at)
                elif isinstance(event, Written):
                    writes.append(event.write)
                elif isinstance(event, PodsMarked):
                    pods.extend(event.pods)
                elif isinstance(event, ServiceChanged):
                    changed.append(event)
            if writes or pods:
                self.distro.written(writes, pods, now)
        for told in self.distro.take_told():
            node.told(self, told)
        for send in self.distro.take_sends():
            data = encode(send.message)
            for to in send.to:
                node.post(self, to, data)
        for event in changed:
            node.observer.changed(self, event)
            for subscriber in list(self.subscribers):
                subscriber.changed(self, event)

    @property
    def ready(self) -> bool:
        return self.distro.readiness(self.clock.read(self.node.local(self.node.world.now))).ready

    @property
    def settled(self) -> bool:
        return self.distro.rank.name == "READY"


class Node:
    """A replica across its lives."""

    def __init__(self, world: World, network: Network, ordinal: int, *, members, make, observer) -> None:
        self.world = world
        self.network = network
        self.ordinal = ordinal
        self.name = f"r{ordinal}"
        self.members = members
        self.make = make
        self.observer = observer
        self.timings = DistroTimings()
        self.process: Process | None = None
        self.others: list[Node] = []
        self.clients: list = []
        self.lives = 0
        self.rate = 1.0
        self.offset = 0.0
        self.disk: Saved | None = None
        self.counts: dict = {}

    def local(self, now: float) -> float:
        return self.offset + self.rate * now

    # --- life ------------------------------------------------------------------------------------------

    def start(self, *, disk: bool) -> None:
        if self.process is not None:
            return
        self.lives += 1
        if not disk:
            self.disk = None
        process = Process(self, f"{self.ordinal}.{self.lives}", self.disk)
        self.process = process
        self.world.note(self.name, "starts", process.boot, "with disk" if self.disk else "empty")
        for other in self.others:
            if other.process is not None:
                self.connect(process, other.process)
        self.world.after(self.world.rng.random() * TICK, self.tick, process)

    def connect(self, one: Process, other: Process) -> None:
        if self.passes_both(one.node.name, other.node.name):
            self.world.after(0.001, self.join, one, other)
        else:
            self.world.after(1.0, self.try_again, one, other)

    def passes_both(self, a: str, b: str) -> bool:
        return self.network.passes(a, b) and self.network.passes(b, a)

    def try_again(self, one: Process, other: Process) -> None:
        if one.node.process is one and other.node.process is other:
            self.connect(one, other)

    def join(self, one: Process, other: Process) -> None:
        if one.node.process is one and other.node.process is other:
            one.do(lambda p, now: p.distro.up(other.node.ordinal, now))
            other.do(lambda p, now: p.distro.up(one.node.ordinal, now))

    def crash(self, *, told: bool) -> None:
        """End without a word. ``told``: peers and clients see their connections break at once."""
        process, self.process = self.process, None
        if process is None:
            return
        self.world.note(self.name, "crashes")
        for turn, number in process.distro.counts.items():
            self.counts[turn] = self.counts.get(turn, 0) + number
        for other in self.others:
            if other.process is not None and told:
                other.process.do(lambda p, _: p.distro.down(self.ordinal))
        for subscriber in list(process.subscribers):
            subscriber.broken(told=told)

    def leave(self) -> None:
        """Say goodbye, then end."""
        process = self.process
        if process is not None:
            self.world.note(self.name, "leaves")
            process.do(lambda p, _: p.distro.leave())
            self.world.after(0.5, self.end, process)

    def end(self, process: Process) -> None:
        if self.process is process:
            self.crash(told=True)

    def stall(self, seconds: float) -> None:
        if self.process is not None:
            self.world.note(self.name, "stalls", f"{seconds:.1f}")
            self.process.stalled_until = self.world.now + seconds

    # --- what happens to it ----------------------------------------------------------------------------

    def tick(self, process: Process) -> None:
        if self.process is not process:
            return
        if self.world.now < process.stalled_until:
            self.world.at(process.stalled_until, self.tick, process)
            return
        process.do(self._turn)
        if process.ready and not process.was_ready:
            process.was_ready = True
            self.world.note(self.name, "ready", process.distro.readiness(0.0).why.value)
        self.world.after(TICK, self.tick, process)

    def _turn(self, process: Process, now: float) -> None:
        process.expiry.turn(now)
        process.distro.tick(now)
        if now - process.swept >= 10.0:
            process.swept = now
            process.catalog.sweep(now)
        if now - process.imaged >= IMAGE_EVERY and process.ready:
            process.imaged = now
            self.disk = self.image(process, now)

    def image(self, process: Process, now: float) -> Saved:
        """What the store would have written: every lease with its owner, and the pods."""
        catalog = process.catalog
        ids = [(lease.origin, lease.id) for lease in catalog._leases.values()]
        return Saved([(origin, catalog.record(id_)) for origin, id_ in ids], list(catalog.pod_records(now)))

    def told(self, process: Process, told) -> None:
        """The core says that something has happened."""
        self.world.note(self.name, told.turn.value, told.ordinal, told.number)
        if told.turn is Turn.CUT_OFF:
            for client in self.clients:
                self.world.after(self.world.rng.random(), client.told_to_move, process)

    def post(self, process: Process, to: int, data: bytes) -> None:
        other = self.others[[o.ordinal for o in self.others].index(to)]
        self.network.send(self.name, other.name, other.deliver, process, other.process, data)

    def deliver(self, sender: Process, addressee: Process | None, data: bytes) -> None:
        process = self.process
        if process is None or process is not addressee or sender.node.process is not sender:
            return  # the connection has ended with one of them
        if self.world.now < process.stalled_until:
            self.world.at(process.stalled_until, self.deliver, sender, addressee, data)
            return
        message = decode(data)
        process.do(lambda p, now: p.distro.receive(sender.node.ordinal, message, now))

    def call(self, client: str, command, *, ready: bool = True):
        """A client's request and its answer.

        Raises:
            Unreachable: one of them did not arrive. It may have been carried out all the same.
            Problem: it was refused.
        """
        process = self.process
        if (
            process is None
            or self.world.now < process.stalled_until
            or not self.network.passes(client, self.name)
            or (ready and not process.ready)
        ):
            raise Unreachable
        result = process.do(command)
        if not self.network.passes(self.name, client):
            raise Unreachable
        return result
