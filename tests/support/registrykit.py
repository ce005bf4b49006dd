"""A catalog with its wheel and an injected clock, as the book runs them, and small makers of its inputs."""

from __future__ import annotations

import random
import sys

import msgspec

from rollbook.digest import digest
from rollbook.model import Entry, EntryRef, Instance
from rollbook.names import InstanceKey, LeaseId, ServiceKey
from rollbook.problems import Problem
from rollbook_registry.catalog import (
    Catalog,
    Deadline,
    Happened,
    LeaseChanged,
    PodsMarked,
    ServiceChanged,
    Timings,
    Written,
)
from rollbook_registry.catalog.leases import Kind, http_lease
from rollbook_registry.catalog.records import EntryRecord, LeaseWrite, PodRecord
from rollbook_registry.expiry import Expiry, Protected, Protection, Wheel
from rollbook_registry.push import Subscriber

ORDERS = ServiceKey("public", "DEFAULT_GROUP", "orders")
TICK = 0.25


def key_of(service: str) -> ServiceKey:
    return ServiceKey("public", "DEFAULT_GROUP", service)


def an_entry(port: int = 8080, **fields) -> Entry:
    return Entry(**{"service": "orders", "ip": "10.0.0.1", "port": port, **fields})


def a_ref(port: int = 8080, **fields) -> EntryRef:
    return EntryRef(**{"service": "orders", "ip": "10.0.0.1", "port": port, **fields})


def tried(command):
    """What a command returned, and the code of the problem if it was refused."""
    try:
        return command(), None
    except Problem as problem:
        return None, problem.code


def a_write(*entries, lease="a", term=1, n=1, order=1, **fields):
    """Another replica's whole record of a lease."""
    put = [EntryRecord(entry=e, order=order + i, since=order + i, term=term) for i, e in enumerate(entries)]
    return LeaseWrite(
        **{
            "id": lease,
            "kind": Kind.SESSION,
            "term": term,
            "n": n,
            "whole": True,
            "attached": True,
            "put": put,
        }
        | fields
    )


class Patient(Subscriber):
    """A subscriber that is sent nothing, so that a test takes what there is for it when it likes."""

    def __init__(self, outlet, codec, **limits):
        super().__init__(codec, **limits)
        self.blocked = True
        self._outlet = outlet

    def take(self):
        """Yield the frames that it would be sent now, each made when it is asked for."""
        self._outlet.flush(1000)
        return self._outlet.take(self)


class Disk:
    """What a disk that takes every write holds: each lease whole, and the pods that may not speak."""

    def __init__(self) -> None:
        self.leases: dict[LeaseId, tuple[int, LeaseWrite]] = {}
        self._pods: dict[str, tuple[float, PodRecord]] = {}

    def write(self, origin: int, write: LeaseWrite) -> None:
        """Take a lease's whole record, or put a difference into the one that is here."""
        if write.ended:
            self.leases.pop(write.id, None)
            return
        entries = {}
        if not write.whole:
            entries = {r.entry.ref: r for r in self.leases[write.id][1].put}
        entries |= {r.entry.ref: r for r in write.put}
        for ref in write.drop:
            entries.pop(ref, None)
        whole = msgspec.structs.replace(write, whole=True, put=list(entries.values()), drop=[])
        self.leases[write.id] = origin, whole

    def mark(self, pods: tuple[PodRecord, ...], now: float) -> None:
        for pod in pods:
            self._pods[pod.uid] = now - pod.age, pod

    def pods(self, now: float) -> list[PodRecord]:
        return [msgspec.structs.replace(pod, age=now - at) for at, pod in self._pods.values()]


class Ledger:
    """A catalog whose time passes as a test says; it holds what a perfect subscriber would hold."""

    def __init__(
        self,
        *,
        ordinal: int = 0,
        protected: Protected | None = None,
        quotas=None,
        now: float = 0.0,
        **timings: float,
    ) -> None:
        self.catalog = Catalog(Timings(**timings), quotas, ordinal=ordinal)
        self.now = now
        self.disk = Disk()
        self.wheel: Wheel[LeaseId] = Wheel(self.now, tick=TICK)
        # Most tests are about one silence at a time; those about protection ask for it.
        self.protection = Protection(protected or Protected(share=1.0), random.Random(1))
        self.expiry = Expiry(self.catalog, self.wheel, self.protection)
        self.events: list = []
        self.told: list[LeaseWrite | PodsMarked] = []
        """For other replicas, in order."""
        self.mirror: dict[ServiceKey, dict[InstanceKey, Instance]] = {}
        self.numbers: dict[ServiceKey, int] = {}

    # --- commands --------------------------------------------------------------------------------------

    def do(self, command):
        """Run a command of the catalog with the time, and take its events; errors come through."""
        try:
            return command(self.catalog, self.now)
        finally:
            self.drain()

    def drain(self) -> None:
        for event in self.catalog.take_events():
            self.events.append(event)
            if isinstance(event, Deadline):
                self.expiry.watch(event.lease, event.at)
            elif isinstance(event, ServiceChanged):
                self._apply(event)
            elif isinstance(event, Written):
                self.disk.write(self.catalog.ordinal, event.write)
                self.told.append(event.write)
            elif isinstance(event, PodsMarked):
                self.disk.mark(event.pods, self.now)
                self.told.append(event)

    def _apply(self, change: ServiceChanged) -> None:
        # A service that was let go as empty starts from nothing again, at base 0.
        known = self.numbers.get(change.service, 0)
        assert change.base in {known, 0}
        listed = self.mirror.setdefault(change.service, {})
        if change.base == 0:
            assert not listed
        assert change.number > known
        for instance in change.put:
            assert listed.get(instance.key) != instance, "a change tells what is different, only"
            listed[instance.key] = instance
        for key in change.drop:
            del listed[key]
        self.numbers[change.service] = change.number

    def attach(self, lease="a", *, operator=False, kind=Kind.SESSION, term=0, holder=None, epoch=0):
        kind = Kind.OPERATOR if operator else kind
        holder = sys.intern(holder or f"session of {lease}")
        return self.do(
            lambda c, now: c.attach(LeaseId(lease), kind=kind, term=term, holder=holder, now=now, epoch=epoch)
        )

    def register(self, lease, *entries):
        return self.do(lambda c, now: c.register(LeaseId(lease), entries, now))

    def enter(self, lease, *entries, operator=False, epoch=0):
        """Attach if need be, and register."""
        if self.catalog.lease(LeaseId(lease)) is None:
            self.attach(lease, operator=operator, epoch=epoch)
        return self.register(lease, *entries)

    def register_http(self, entry, *, term=0):
        lease = http_lease(entry.ref)
        return self.do(lambda c, now: c.register_http(lease, entry, term=term, now=now))

    def beat(self, lease="a", *, term=None, down=()):
        if term is None:
            known = self.catalog.lease(LeaseId(lease))
            term = known.term if known is not None else 0
        self.do(lambda c, now: c.beat(LeaseId(lease), term=term, down=frozenset(down), now=now))

    def beat_http(self, ref, *, term=0):
        lease = http_lease(ref)
        self.do(lambda c, now: c.beat_http(lease, ref, term=term, now=now))

    def detach(self, lease="a", holder=None):
        self.do(lambda c, now: c.detach(LeaseId(lease), sys.intern(holder or f"session of {lease}"), now))

    def release(self, lease="a"):
        self.do(lambda c, now: c.release(LeaseId(lease), now))

    def deregister(self, lease, *refs):
        self.do(lambda c, now: c.deregister(LeaseId(lease), refs, now))

    def close(self, *uids):
        self.do(lambda c, now: c.close_pods(uids, now))

    def fence(self, *pods):
        self.do(lambda c, now: c.fence_pods(pods, now))

    def synced(self, lease):
        self.do(lambda c, now: c.synced(LeaseId(lease), now))

    def rule(self, *rulings):
        self.do(lambda c, now: c.rule(rulings, now))

    def delete(self, ref, *, operators=True):
        return self.do(lambda c, now: c.deregister_everywhere(ref, operators=operators, now=now))

    # --- other replicas ----------------------------------------------------------------------------------

    def hear(self, write: LeaseWrite, origin: int = 1) -> str:
        """Take what another replica wrote."""
        return self.do(lambda c, now: c.replicate(write, origin=origin, now=now)).value

    def mark(self, *pods: PodRecord) -> None:
        self.do(lambda c, now: c.mark_pods(pods, now))

    def orphan(self, origin: int = 1) -> None:
        self.do(lambda c, now: c.orphan(origin, now))

    def adopted(self, origin: int = 1) -> None:
        self.do(lambda c, now: c.adopted(origin, now))

    def forget(self, *ids: str, origin: int = 1) -> None:
        self.do(lambda c, now: c.forget([LeaseId(i) for i in ids], origin=origin, now=now))

    def restore(self, disk: Disk) -> None:
        """Begin with what a disk holds."""
        self.do(lambda c, now: c.restore(list(disk.leases.values()), disk.pods(now), now))

    # --- time ------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One tick of the wheel, as the book does it."""
        self.now += TICK
        self.do(lambda _, now: self.expiry.turn(now))

    def wait(self, seconds: float, *beating: str) -> None:
        """Let time pass; the leases named beat every 5 s, beginning now."""
        end = self.now + seconds
        started = self.now
        while True:
            if (self.now - started) % 5.0 == 0:
                for lease in beating:
                    self.beat(lease)
            if self.now + TICK > end:
                break
            self.step()
        self.do(lambda c, now: c.sweep(now))

    # --- looking ---------------------------------------------------------------------------------------

    def book(self) -> dict[ServiceKey, dict[InstanceKey, Instance]]:
        """Everything that is listed."""
        return {s.key: self.shown(s.key) for s in self.catalog.services if s.instances}

    def shown(self, service: ServiceKey = ORDERS) -> dict[InstanceKey, Instance]:
        found = self.catalog.service(service)
        listed = dict(found.instances) if found is not None else {}
        assert self.mirror.get(service, {}) == listed
        if found is not None:
            assert found.digest == digest(listed.values())
            assert found.healthy == sum(i.healthy for i in listed.values())
        return listed

    def only(self, service: ServiceKey = ORDERS) -> Instance:
        (instance,) = self.shown(service).values()
        return instance

    def keys(self, service: ServiceKey = ORDERS) -> list[str]:
        return sorted(self.shown(service))

    def take(self) -> list:
        taken, self.events = self.events, []
        return taken

    def changes(self) -> list[ServiceChanged]:
        return [e for e in self.take() if isinstance(e, ServiceChanged)]

    def reasons(self) -> list[str]:
        return [e.reason.value for e in self.take() if isinstance(e, (Happened, LeaseChanged))]
