"""Clients in the simulation: publishers that beat and move on, an operator, subscribers with a view."""

from __future__ import annotations

from rollbook import frames
from rollbook.digest import spell
from rollbook.model import Entry
from rollbook.names import LeaseId, ServiceKey
from rollbook.problems import Problem
from rollbook.view import OutOfStep, View
from rollbook_registry.catalog.leases import Kind, http_lease
from simulation.replica import Unreachable

BEAT = 5.0
GIVE_UP = 5.0
"""Seconds without an answer after which a client moves on to another replica."""

ANCHOR = "anchor"
"""The service whose instances live all the while and can reach every replica."""


def service_key(name: str) -> ServiceKey:
    return ServiceKey("public", "DEFAULT_GROUP", name)


class Client:
    """What all clients have in common: a name, and a replica that they talk to.

    Attributes:
        alive: whether it goes on; a client that has died says nothing more.
        due: when its next beat is, so that nobody beats less often than every five seconds.
    """

    def __init__(self, world, network, nodes, name: str) -> None:
        self.world = world
        self.network = network
        self.nodes = nodes
        self.name = name
        self.alive = True
        self.node = None
        self.process = None
        self.heard = world.now

    def choose(self, *, other_than=None):
        """A replica, as a Service would choose one: any that is ready and can be reached."""
        ready = [
            n for n in self.nodes if n.process is not None and n.process.ready and n.process is not other_than
        ]
        return self.world.rng.choice(ready) if ready else None

    def start(self, delay: float = 0.0) -> None:
        self.world.after(delay, self.act)

    def die(self) -> None:
        """End without a word."""
        if self.alive:
            self.alive = False
            self.world.note(self.name, "dies")
            process, self.process = self.process, None
            if process is not None and self.network.passes(self.name, process.node.name):
                self.closed(process)

    def closed(self, process) -> None:
        """A replica notices that the connection is gone."""


class Publisher(Client):
    """A sidecar or an SDK with a session."""

    kind = Kind.SESSION
    epoch = 0

    def __init__(self, world, network, nodes, name, entries: list[Entry]) -> None:
        super().__init__(world, network, nodes, name)
        self.lease = LeaseId(f"lease-{name}")
        self.entries = entries
        self.term = 0
        self.refused = False
        self.pending = True

    def act(self) -> None:
        if not self.alive:
            return
        process = self.process
        if process is None:
            self.connect()
        elif process.node.process is not process:
            # It was killed, and this side has not been told: no answer to the next pings.
            if self.world.now - self.heard >= GIVE_UP:
                self.lose()
                self.connect()
        elif self.pending:
            self.connect(process.node)
            if self.pending and self.world.now - self.heard >= GIVE_UP:
                self.lose()
                self.connect()
        else:
            try:
                process.node.call(self.name, self.beat, ready=False)
                self.heard = self.world.now
            except Unreachable:
                if self.world.now - self.heard >= GIVE_UP:
                    self.lose()
                    self.connect()
            except Problem as problem:
                self.heard = self.world.now
                if problem.code.startswith("pod_"):
                    self.struck()
                else:
                    self.connect(process.node)
        connected = self.process is not None and self.world.now - self.heard < 1.0
        self.world.after(BEAT if connected else 1.0, self.act)

    def struck(self) -> None:
        """The pod may not speak any more."""
        self.refused = True

    def beat(self, process, now: float) -> None:
        process.catalog.beat(self.lease, term=self.term, down=frozenset(), now=now)

    def lose(self) -> None:
        process, self.process = self.process, None
        if process is not None and process.node.process is process:
            # The replica's side notices in its own time, long after the client has moved on.
            self.world.after(self.world.rng.random() * 10.0, self.closed, process)

    def closed(self, process) -> None:
        if process.node.process is process and self.process is not process:
            if self.world.now < process.stalled_until:
                self.world.at(process.stalled_until, self.closed, process)
                return
            process.do(lambda p, now: p.catalog.detach(self.lease, self.holder(process), now))

    def holder(self, process) -> object:
        return f"{self.name} at {process.boot}"

    def connect(self, node=None) -> None:
        node = node or self.choose()
        if node is None or self.refused:
            return
        process = node.process
        try:
            self.term = node.call(self.name, self.attach)
            node.call(self.name, self.register)
        except Unreachable:
            return
        except Problem as problem:
            if problem.code.startswith("pod_"):
                self.struck()
            return
        self.process = process
        self.heard = self.world.now
        self.pending = False
        self.world.note(self.name, "registered at", process.boot, "term", self.term)

    def attach(self, process, now: float) -> int:
        return process.catalog.attach(
            self.lease,
            kind=self.kind,
            term=self.term,
            holder=self.holder(process),
            now=now,
            epoch=self.epoch,
        ).term

    def register(self, process, now: float) -> None:
        process.catalog.register(self.lease, self.entries, now)

    def told_to_move(self, process) -> None:
        """The replica says that it is cut off: look for another one, and come back if there is none."""
        if self.alive and self.process is process:
            other = self.choose(other_than=process)
            if other is not None:
                before, self.process = process, None
                self.connect(other)
                if self.process is None:
                    self.process = before
                else:
                    self.closed(before)

    def change(self) -> None:
        """Register again, with another weight."""
        weight = float(self.world.rng.randint(1, 100))
        self.entries = [_with_weight(e, weight) for e in self.entries]
        self.pending = True
        if self.process is not None and self.alive:
            self.connect(self.process.node)

    def release(self) -> None:
        """Say goodbye."""
        process = self.process
        if not self.alive or process is None:
            return
        self.alive = False
        self.world.note(self.name, "releases")
        try:
            process.node.call(self.name, lambda p, now: p.catalog.release(self.lease, now), ready=False)
        except Unreachable:
            return


class HttpPublisher(Client):
    """A plain HTTP client: light beats through any replica, each instance by itself."""

    def __init__(self, world, network, nodes, name, entries: list[Entry]) -> None:
        super().__init__(world, network, nodes, name)
        self.entries = entries
        self.acknowledged: set = set()
        self.refused = False
        self._next: dict = {}

    def act(self) -> None:
        if not self.alive:
            return
        for entry in self.entries:
            if self._next.get(entry.ref, 0.0) <= self.world.now:
                done = self.one(entry)
                self._next[entry.ref] = self.world.now + (BEAT if done else 1.0)
        self.world.after(max(0.1, min(self._next.values()) - self.world.now), self.act)

    def one(self, entry: Entry) -> bool:
        """Beat one instance, or register it; says whether it was answered."""
        node = self.choose()
        if node is None:
            return False
        lease = http_lease(entry.ref)
        try:
            if not self.beaten(node, lease, entry):
                node.call(self.name, lambda p, now: p.catalog.register_http(lease, entry, term=0, now=now))
                self.world.note(self.name, "registered", entry.service, "at", node.name)
        except Unreachable:
            return False
        except Problem:
            self.refused = True
            self.acknowledged.discard(entry.ref)
            return True
        self.acknowledged.add(entry.ref)
        return True

    def beaten(self, node, lease: LeaseId, entry: Entry) -> bool:
        """Beat; says whether that was enough."""
        if entry.ref not in self.acknowledged:
            return False
        try:
            node.call(self.name, lambda p, now: p.distro.beat_http(lease, entry.ref, term=0, now=now))
        except Problem as problem:
            if problem.code.startswith("pod_"):
                raise
            return False
        return True

    def change(self) -> None:
        weight = float(self.world.rng.randint(1, 100))
        self.entries = [_with_weight(e, weight) for e in self.entries]
        self.acknowledged.clear()

    def release(self) -> None:
        self.die()

    def told_to_move(self, process) -> None:
        pass


class Operator(Publisher):
    """Enters pods, closes and fences them, and says so again to every replica that it comes to."""

    kind = Kind.OPERATOR
    epoch = 1

    def __init__(self, world, network, nodes, name, entries) -> None:
        super().__init__(world, network, nodes, name, entries)
        self.closed_pods: list[str] = []
        self.fenced_pods: list[frames.GonePod] = []
        self.told: set[str] = set()
        """Boots of replicas that have acknowledged all of it."""

    def act(self) -> None:
        super().act()
        if self.process is not None:
            self.tell()

    def tell(self) -> None:
        process = self.process
        if process is None or process.boot in self.told:
            return
        try:
            process.node.call(self.name, self._tell, ready=False)
        except (Unreachable, Problem):
            return
        self.told.add(process.boot)
        self.world.note(self.name, "has told", process.boot)

    def _tell(self, process, now: float) -> None:
        process.catalog.close_pods(self.closed_pods, now)
        process.catalog.fence_pods(self.fenced_pods, now)

    def end_pod(self, uid: str, *, fence: bool) -> None:
        """A pod is terminating, or confirmed gone: its entries are withdrawn, and it is closed or fenced."""
        gone = [e for e in self.entries if e.owner == uid]
        self.entries = [e for e in self.entries if e.owner != uid]
        if fence:
            self.fenced_pods.append(frames.GonePod(uid=uid, ips=[e.ip for e in gone]))
        else:
            self.closed_pods.append(uid)
        self.told.clear()
        self.tell()
        process = self.process
        if process is not None:
            try:
                process.node.call(
                    self.name,
                    lambda p, now: p.catalog.deregister(self.lease, [e.ref for e in gone], now),
                    ready=False,
                )
            except (Unreachable, Problem):
                return

    def register(self, process, now: float) -> None:
        """Enter the complete list: what is not in it any more goes."""
        lease = process.catalog.lease(self.lease)
        wanted = {e.ref for e in self.entries}
        process.catalog.register(self.lease, self.entries, now)
        process.catalog.deregister(self.lease, [r for r in lease.entries if r not in wanted], now)


class Subscriber(Client):
    """Holds the lists of some services, as the SDK does."""

    def __init__(self, world, network, nodes, name, services: list[str], observer) -> None:
        super().__init__(world, network, nodes, name)
        self.views = {service_key(s): View(service_key(s)) for s in services}
        self.observer = observer
        self.missed = False
        self.was_settled = False

    def act(self) -> None:
        if not self.alive:
            return
        process = self.process
        if process is None:
            self.connect()
        elif (
            process.node.process is not process
            or self.world.now < process.stalled_until
            or not self.network.passes(process.node.name, self.name)
            or not self.network.passes(self.name, process.node.name)
        ):
            if self.world.now - self.heard >= GIVE_UP:
                self.drop()
                self.connect()
        else:
            self.heard = self.world.now
            if self.missed:
                self.snapshots(process)
            elif process.settled and not self.was_settled:
                self.was_settled = True
                for view in self.views.values():
                    view.settle()
                    self.observer.seen(self, view)
        self.world.after(1.0, self.act)

    def told_to_move(self, process) -> None:
        """The replica says that it is cut off."""
        if self.process is process and self.choose(other_than=process) is not None:
            self.drop()
            self.connect(other_than=process)
            if self.process is None:
                self.connect()

    def drop(self) -> None:
        process, self.process = self.process, None
        if process is not None and self in process.subscribers:
            process.subscribers.remove(self)

    def broken(self, *, told: bool) -> None:
        """The replica was killed."""
        if told:
            self.drop()

    def connect(self, *, other_than=None) -> None:
        node = self.choose(other_than=other_than)
        if (
            node is None
            or self.world.now < node.process.stalled_until
            or not self.network.passes(node.name, self.name)
            or not self.network.passes(self.name, node.name)
        ):
            return
        self.process = node.process
        self.process.subscribers.append(self)
        self.heard = self.world.now
        self.snapshots(node.process)

    def snapshots(self, process) -> None:
        self.missed = False
        self.was_settled = process.settled
        for key, view in self.views.items():
            service = process.catalog.service(key)
            view.snapshot(
                frames.Snapshot(
                    namespace=key.namespace,
                    group=key.group,
                    service=key.name,
                    revision=f"{process.boot}.{service.number if service else 0}",
                    digest=spell(service.digest if service else 0),
                    settled=process.settled,
                    instances=list(service.instances.values()) if service else [],
                )
            )
            self.observer.seen(self, view)

    def changed(self, process, event) -> None:
        view = self.views.get(event.service)
        if view is None or process is not self.process:
            return
        if self.missed or not self.network.passes(process.node.name, self.name):
            self.missed = True
            return
        service = process.catalog.service(event.service)
        key = event.service
        if service.number != event.number:
            self.missed = True  # several changes at once: the list itself is simpler
            self.snapshots(process)
            return
        try:
            view.delta(
                frames.Delta(
                    namespace=key.namespace,
                    group=key.group,
                    service=key.name,
                    base=f"{process.boot}.{event.base}",
                    revision=f"{process.boot}.{event.number}",
                    digest=spell(service.digest),
                    put=list(event.put),
                    drop=list(event.drop),
                )
            )
        except OutOfStep:
            self.snapshots(process)
            return
        self.observer.seen(self, view)


def _with_weight(entry: Entry, weight: float) -> Entry:
    fields = {f: getattr(entry, f) for f in entry.__struct_fields__}
    return Entry(**{**fields, "weight": weight})
