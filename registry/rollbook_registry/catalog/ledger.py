"""The ledger: the book's state, and the few ways in which a command may change it.

What is here keeps the maps in agreement with each other and works out what a change means: which instances
everybody sees, which records other replicas and the disk are to have, and why. Which changes are allowed is
decided by the commands, in :mod:`~rollbook_registry.catalog.catalog` for clients and in
:mod:`~rollbook_registry.catalog.replication` for other replicas.
"""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from rollbook.model import REMOVE_AFTER_KEY, UNHEALTHY_AFTER_KEY, EntryRef, timing_ms
from rollbook.problems import Problem
from rollbook_registry.catalog.events import (
    Deadline,
    Event,
    Happened,
    LeaseChanged,
    PodsMarked,
    Reason,
    ServiceChanged,
    Written,
)
from rollbook_registry.catalog.groups import Groups, group_key, is_pod
from rollbook_registry.catalog.leases import DEFINITIONS, Held, Kind, Lease
from rollbook_registry.catalog.pods import Pods
from rollbook_registry.catalog.quotas import Quotas
from rollbook_registry.catalog.records import EntryRecord, LeaseWrite
from rollbook_registry.catalog.rulings import Rulings
from rollbook_registry.catalog.services import Service, Services
from rollbook_registry.catalog.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rollbook.model import Entry, Instance
    from rollbook.names import InstanceKey, LeaseId, ServiceKey
    from rollbook_registry.catalog.groups import GroupKey
    from rollbook_registry.catalog.records import PodRecord

ENDED_KEPT: Final = 600.0
"""Seconds for which an ended lease's term is remembered, so that its late beats are told from new ones."""

MAX_ENDED: Final = 100_000
"""Ended leases, and ended instances of plain HTTP clients, that are remembered; then the oldest are not."""

K = TypeVar("K")

_NO_ENDS: Final = {Reason.HIDDEN, Reason.RESTORED}
"""Why an entry leaves this book though nobody said that it has ended: its client's beats are heard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timings:
    """The timers of the book, in seconds; each is a setting.

    Attributes:
        unhealthy_after: silence after which an entry is not alive.
        remove_after: silence after which it leaves the book.
        operator_remove_after: silence after which what an operator entered leaves the book.
        empty_kept: how long a service without instances stays listed.
    """

    unhealthy_after: float = 15.0
    remove_after: float = 30.0
    operator_remove_after: float = 600.0
    empty_kept: float = 60.0


class Ended(NamedTuple):
    """What is remembered of a lease that has ended."""

    term: int
    at: float
    owner: str


class _Changes(msgspec.Struct, gc=False, eq=False):
    """What a command has changed in one lease's record so far."""

    whole: bool = False
    put: dict[EntryRef, None] = {}
    drop: dict[EntryRef, None] = {}
    reason: str = ""


class Ledger:
    """The book's state.

    Args:
        timings: its timers.
        quotas: how large it may become.
        ordinal: which replica this is.
    """

    def __init__(self, timings: Timings, quotas: Quotas | None = None, *, ordinal: int = 0) -> None:
        self.timings = timings
        self.quotas = quotas or Quotas()
        self.ordinal = ordinal
        self.services = Services()
        self.pods = Pods()
        self.groups = Groups()
        self.rulings = Rulings()
        self._leases: dict[LeaseId, Lease] = {}
        self._ended: dict[LeaseId, Ended] = {}
        self._removed: dict[tuple[LeaseId, EntryRef], float] = {}
        """Of plain HTTP clients, who beat each instance by itself: what has ended while the lease goes on."""
        self._changed: dict[LeaseId, _Changes] = {}
        self._events: list[Event] = []
        self._order = 0
        self._number = 0
        self._epoch = 0
        self._synced = -1
        """The highest epoch whose operator has said that its list is complete."""
        self._empty: dict[ServiceKey, None] = {}
        self._swept_pods = 0.0
        self._sharing = Sharing()

    # --- reading ---------------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """Return what has happened since the last call, in order."""
        taken, self._events = self._events, []
        return taken

    @property
    def digest(self) -> int:
        """XOR over all services' lists, to be compared with other replicas'."""
        return self.services.digest

    def service(self, key: ServiceKey) -> Service | None:
        """Return a service, if it is in the book. It is not to be changed."""
        return self.services.get(key)

    def lease(self, id_: LeaseId) -> Lease | None:
        """Return a lease, if it is there. It is not to be changed."""
        return self._leases.get(id_)

    @property
    def leases(self) -> int:
        """How many leases there are."""
        return len(self._leases)

    def ended(self, id_: LeaseId) -> int | None:
        """Return the term of a lease that has ended and is still remembered."""
        ended = self._ended.get(id_)
        return None if ended is None else ended.term

    def own(self) -> Iterator[LeaseId]:
        """The leases that this replica owns, and others hear of."""
        for lease in self._leases.values():
            if lease.origin == self.ordinal and lease.replicated:
                yield lease.id

    def record(self, id_: LeaseId) -> LeaseWrite | None:
        """Return a lease's whole record, if it is there."""
        lease = self._leases.get(id_)
        if lease is None:
            return None
        return self._write(lease, put=[_record(held) for held in lease.entries.values()], whole=True)

    def pieces(self, size: int) -> Iterator[tuple[int, LeaseWrite]]:
        """Walk through all leases that others and the disk hear of, with the ordinals of their owners.

        The book may change between two steps: each piece, of at most ``size`` entries, is true and has its
        lease's version when it is made. What is registered after the first step may be missing.
        """
        for id_ in list(self._leases):
            first = self._leases.get(id_)
            refs = list(first.entries) if first is not None else []
            for start in range(0, len(refs) or 1, size):
                # It may have ended since, and another may be there under the same id.
                lease = self._leases.get(id_)
                if lease is None or not lease.replicated:
                    break
                held = [lease.entries[ref] for ref in refs[start : start + size] if ref in lease.entries]
                yield lease.origin, self._write(lease, put=[_record(one) for one in held])

    def pod_records(self, now: float) -> Iterator[PodRecord]:
        """The pods that are closed or fenced."""
        return self.pods.records(now)

    # --- leases ----------------------------------------------------------------------------------------

    def _open(self, id_: LeaseId, *, kind: Kind, term: int, epoch: int, now: float) -> Lease:
        """Take up a lease under the next term: one's own, another replica's, or a new one.

        Raises:
            Problem: 403 for a lease of another kind.
        """
        lease = self._leases.get(id_)
        if lease is None:
            ended = self._ended.pop(id_, None)
            lease = Lease(
                id_, kind=kind, origin=self.ordinal, term=ended.term if ended else 0, epoch=epoch, seen=now
            )
            self._leases[id_] = lease
        elif lease.kind is not kind:
            raise Problem("forbidden", f"lease {id_} is of kind {lease.kind.value}", field="kind")
        elif lease.origin != self.ordinal:
            self._events.append(LeaseChanged(id_, lease.term, Reason.TAKEN_UP))
            lease.origin = self.ordinal
            lease.attached = False
            self._freeze(lease, orphan=False)
            for held in lease.entries.values():
                held.seen = now
            self._watch(lease)
        lease.term = max(lease.term, term) + 1
        # Whoever did not take the record of the former term has nothing to apply a difference to.
        self._change_of(lease).whole = True
        return lease

    def _freeze(self, lease: Lease, *, orphan: bool) -> None:
        lease.orphan = orphan
        for ref, held in lease.entries.items():
            held.orphan = orphan
            self.groups.touch(ref)

    def _forget_lease(self, lease: Lease, reason: Reason, now: float) -> None:
        del self._leases[lease.id]
        self._remember(lease.id, Ended(lease.term, now, lease.owner))
        if lease.origin == self.ordinal and lease.replicated:
            self._changed.pop(lease.id, None)
            lease.n += 1
            self._events.append(Written(self._write(lease, ended=True, reason=reason.value)))
        self._events.append(LeaseChanged(lease.id, lease.term, reason))

    def _remember(self, id_: LeaseId, ended: Ended) -> None:
        former = self._ended.pop(id_, None)
        if former is not None and former.term > ended.term:
            # Another replica's late word about an older life of it.
            ended = ended._replace(term=former.term)
        self._ended[id_] = ended
        if len(self._ended) > MAX_ENDED:
            _forget_oldest(self._ended)

    def _end(self, lease: Lease, reason: Reason, now: float) -> None:
        for held in list(lease.entries.values()):
            self._let_go(lease, held, reason, now)
        self._forget_lease(lease, reason, now)

    # --- entries ---------------------------------------------------------------------------------------

    def _hold(self, lease: Lease, entry: Entry, now: float) -> Held:
        """Enter what one's own client says."""
        ref = entry.ref
        old = lease.entries.get(ref)
        entry = self._kept(entry, old)
        operator = lease.kind is Kind.OPERATOR
        self._order += 1
        unhealthy_after, remove_after = self._patience(lease, entry)
        held = Held(
            entry=entry,
            ref=old.ref if old is not None else ref,
            lease=lease.id,
            kind=lease.kind,
            epoch=lease.epoch,
            order=self._order,
            since=old.since if old is not None else self._order,
            term=old.term if old is not None else lease.term,
            seen=now,
            unhealthy_after=unhealthy_after,
            remove_after=remove_after,
            down=entry.alive is not True,
            proven=entry.alive is not None,
        )
        lease.owner = lease.owner or ("" if operator else entry.owner)
        self._put(lease, held, old)
        if old is not None and old.silent:
            self._note(held, Reason.RECOVERED)
        return held

    def _kept(self, entry: Entry, old: Held | None) -> Entry:
        """Return an equal entry that takes as little room as may be."""
        return old.entry if old is not None and old.entry == entry else self._sharing.share(entry)

    def _patience(self, lease: Lease, entry: Entry) -> tuple[float, float]:
        """Seconds of silence until an entry is not alive, and until it is out: its own, or the book's."""
        timings, said = self.timings, entry.metadata
        if lease.kind is Kind.OPERATOR:
            return timings.unhealthy_after, timings.operator_remove_after
        unhealthy = timing_ms(said, UNHEALTHY_AFTER_KEY) if UNHEALTHY_AFTER_KEY in said else None
        remove = timing_ms(said, REMOVE_AFTER_KEY) if REMOVE_AFTER_KEY in said else None
        return (
            unhealthy / 1000 if unhealthy else timings.unhealthy_after,
            remove / 1000 if remove else timings.remove_after,
        )

    def _put(self, lease: Lease, held: Held, old: Held | None, new: Reason = Reason.REGISTERED) -> None:
        """Have a lease hold an entry, in the place of what it said before.

        Args:
            lease: holds it.
            held: the entry.
            old: what it held before under the same name.
            new: why, of an entry that it did not hold before.
        """
        ref = held.ref
        lease.quiet += held.silent - (old is not None and old.silent)
        lease.entries[ref] = held
        if held.down != (ref in lease.down):
            lease.down ^= {ref}
        self.groups.add(held, old)
        if old is None and self._removed:
            self._removed.pop((lease.id, ref), None)
        if held.kind is Kind.CHECKER:
            if old is None or old.down != held.down:
                self._note(held, Reason.CHECK_FAILED if held.down else Reason.CHECK_PASSED)
        elif old is None:
            self._note(held, new)
        elif old.entry != held.entry:
            self._note(held, Reason.UPDATED)
        self._changed_entry(lease, ref)

    def _is_known(self, id_: LeaseId, entry: Entry) -> bool:
        """Whether an entry is about an instance that is there already, for the quotas.

        Of a pod, whoever named that port of it. Without a pod entries stay apart, so that each lease has its
        own, unless they are equal, or the other is one that nobody holds any more and that makes way.
        """
        group = self.groups.get(group_key(entry.ref))
        if group is None:
            return False
        if entry.owner:
            at = (entry.service_key, entry.ip, entry.port)
            return any((h.entry.service_key, h.entry.ip, h.entry.port) == at for h in group.held)
        return any(
            held.lease == id_ or held.entry == entry or (id_ != DEFINITIONS and self._makes_way(held))
            for held in group.held
        )

    def _makes_way(self, held: Held) -> bool:
        lease = self._leases[held.lease]
        return held.kind is Kind.SESSION and lease.holder is None and not lease.attached

    def _supersede(self, lease: Lease, said: Iterable[Held], now: float) -> None:
        """Let go of what an earlier process at the same endpoints left behind, once its session is gone.

        Only of one's own leases: another replica does so with its own when it hears of the newer entry. And
        only by what somebody says now: after a restart nobody holds anything yet, and all may come back.

        Args:
            lease: who says it.
            said: all that it says at once.
            now: attentive time.
        """
        if lease.kind is not Kind.SESSION and lease.kind is not Kind.HTTP:
            return
        newest: dict[GroupKey, dict[tuple[str, int], int]] = {}
        for held in said:
            key = group_key(held.ref)
            group = self.groups.get(key)
            if group is not None and len(group.held) > 1:
                orders, at = newest.setdefault(key, {}), (held.entry.ip, held.entry.port)
                orders[at] = max(orders.get(at, 0), held.order)
        for key, orders in newest.items():
            group = self.groups.get(key)
            for other in group.held if group is not None else ():
                order = orders.get((other.entry.ip, other.entry.port), 0)
                if other.lease == lease.id or other.kind is not Kind.SESSION or other.order >= order:
                    continue
                former = self._leases[other.lease]
                if former.holder is None and former.origin == self.ordinal:
                    self._let_go(former, other, Reason.SUPERSEDED, now)
                    if not former.entries:
                        self._forget_lease(former, Reason.SUPERSEDED, now)

    def _let_go(self, lease: Lease, held: Held, reason: Reason, now: float) -> None:
        ref = held.ref
        del lease.entries[ref]
        if lease.kind is Kind.HTTP and reason not in _NO_ENDS:
            self._removed[lease.id, ref] = now
            if len(self._removed) > MAX_ENDED:
                _forget_oldest(self._removed)
        lease.quiet -= held.silent
        if ref in lease.down:
            lease.down -= {ref}
        self.groups.remove(held)
        if held.kind is not Kind.CHECKER:
            # That a verdict is no more has happened to the check, not to the instance.
            self._note(held, reason)
        if self._is_written(lease):
            changes = self._change_of(lease)
            changes.put.pop(ref, None)
            changes.drop[ref] = None
            changes.reason = reason.value

    def _strike(self, key: GroupKey, reason: Reason, now: float, *, every: bool) -> None:
        """Let go of the entries of a group.

        Args:
            key: of which group.
            reason: why.
            now: attentive time.
            every: whoever's they are. Else only of leases that this replica may write: its own and orphans.
        """
        group = self.groups.get(key)
        for held in group.held if group else ():
            lease = self._leases[held.lease]
            own = lease.origin == self.ordinal
            if not (own or every or lease.orphan) or not lease.expires:
                continue  # a persistent instance, and what a check says about it, is not the pod's word
            self._let_go(lease, held, reason, now)
            if own and not lease.entries and lease.holder is None:
                self._forget_lease(lease, reason, now)

    # --- pods ------------------------------------------------------------------------------------------

    def _mark_pods(self, records: Iterable[PodRecord], now: float) -> None:
        """Close and fence pods. What is no news does nothing."""
        news = []
        for record in records:
            at = now - record.age
            if not record.fenced:
                if self.pods.close(record.uid, at):
                    news.append(record)
                    self._strike(record.uid, Reason.POD_CLOSED, now, every=True)
                continue
            if not self.pods.fence(record.uid, at, tuple(record.ips)):
                continue
            news.append(record)
            self._strike(record.uid, Reason.POD_FENCED, now, every=True)
            # Learnt late, from a peer or from the disk, it says nothing about who is at the address today.
            if record.age <= self.timings.remove_after:
                for ip in record.ips:
                    self._fence_address(ip, now)
        if news:
            self._events.append(PodsMarked(tuple(news)))

    def _fence_address(self, ip: str, now: float) -> None:
        groups = self.groups.at_address(ip)
        # The address may be another pod's by now; what that one registered by itself stays.
        if not any(is_pod(key) for key in groups):
            for key in groups:
                self._strike(key, Reason.ADDRESS_FENCED, now, every=False)

    def _operators_superseded_by(self, lease: Lease, now: float) -> None:
        """An operator's list is complete: what older operators entered goes, whoever owns their leases.

        Two that claim one epoch must not strike each other out, each at the replica that hears of the other:
        of its own epoch only what this replica owns and nobody holds goes.
        """
        self._synced = max(self._synced, lease.epoch)
        for other in [o for o in self._leases.values() if o.kind is Kind.OPERATOR and o is not lease]:
            left = other.epoch == lease.epoch and other.origin == self.ordinal and other.holder is None
            if other.epoch < lease.epoch or left:
                self._end(other, Reason.SUPERSEDED, now)

    # --- health ----------------------------------------------------------------------------------------

    def _heard(self, lease: Lease, now: float) -> None:
        lease.seen = now
        lease.protected = False
        if lease.quiet:
            for held in lease.entries.values():
                if held.silent:
                    self._recover(lease, held)
            # The wheel looks again when it would have been removed; it can turn silent before.
            self._watch(lease)

    def _recover(self, lease: Lease, held: Held) -> None:
        held.silent = False
        lease.quiet -= 1
        self._note(held, Reason.RECOVERED)
        self._changed_entry(lease, held.ref)

    def _set_down(self, lease: Lease, held: Held, *, down: bool) -> None:
        if held.down != down:
            held.down = down
            held.proven = True
            self._note(held, Reason.APPLICATION_DOWN if down else Reason.APPLICATION_UP)
            self._changed_entry(lease, held.ref)

    def _watch(self, lease: Lease, entries: Iterable[Held] | None = None) -> None:
        """Have a lease looked at when the first of its entries, or of those given, will be silent."""
        if lease.origin == self.ordinal and lease.expires:
            deadline = lease.deadline(lease.entries.values() if entries is None else entries)
            if deadline is not None:
                self._events.append(Deadline(lease.id, deadline))

    # --- what comes of it ------------------------------------------------------------------------------

    def _note(self, held: Held, reason: Reason) -> None:
        ref = held.ref
        self._events.append(Happened(ref.service_key, ref, held.lease, reason))
        self.groups.touch(ref)

    def _is_written(self, lease: Lease) -> bool:
        return lease.origin == self.ordinal and lease.replicated

    def _change_of(self, lease: Lease) -> _Changes:
        changes = self._changed.get(lease.id)
        if changes is None:
            changes = self._changed[lease.id] = _Changes()
        return changes

    def _changed_entry(self, lease: Lease, ref: EntryRef) -> None:
        if self._is_written(lease):
            changes = self._change_of(lease)
            if changes.drop:
                changes.drop.pop(ref, None)
            changes.put[ref] = None

    def _write(
        self,
        lease: Lease,
        *,
        put: list[EntryRecord] | None = None,
        drop: list[EntryRef] | None = None,
        whole: bool = False,
        ended: bool = False,
        reason: str = "",
    ) -> LeaseWrite:
        return LeaseWrite(
            id=lease.id,
            kind=lease.kind,
            term=lease.term,
            n=lease.n,
            owner=lease.owner,
            epoch=lease.epoch,
            synced=lease.synced,
            attached=lease.holder is not None or lease.attached,
            whole=whole,
            put=put or [],
            drop=drop or [],
            ended=ended,
            reason=reason,
        )

    def _commit(self, now: float) -> None:
        """End a command: merge what was touched again, and tell what has changed, additions first."""
        if self.groups.touched:
            self._tell_services(now)
        if self._changed:
            changed, self._changed = self._changed, {}
            for id_, changes in changed.items():
                lease = self._leases[id_]
                lease.n += 1
                put: Iterable[EntryRef] = lease.entries if changes.whole else changes.put
                write = self._write(
                    lease,
                    put=[_record(lease.entries[ref]) for ref in put],
                    drop=list(changes.drop),
                    whole=changes.whole,
                    reason=changes.reason,
                )
                self._events.append(Written(write))

    def _tell_services(self, now: float) -> None:
        put: dict[ServiceKey, list[Instance]] = {}
        drop: dict[ServiceKey, list[InstanceKey]] = {}
        for before, after in self.groups.merge_touched(now, self.rulings.override):
            former = {(one.service, one.instance.key): one.instance for one in before}
            for one in after:
                if former.pop((one.service, one.instance.key), None) != one.instance:
                    put.setdefault(one.service, []).append(one.instance)
            for service, key in former:
                drop.setdefault(service, []).append(key)
        for service, instances in put.items():
            self._change_service(service, instances, drop.pop(service, ()), now)
        for service, keys in drop.items():
            self._change_service(service, (), keys, now)

    def _change_service(
        self, name: ServiceKey, put: Sequence[Instance], drop: Sequence[InstanceKey], now: float
    ) -> None:
        service = self.services.get(name)
        if service is None:
            service = Service(name, number=0, now=now)
            self.services.add(service)
        held = len(service.instances)
        for instance in put:
            service.put(instance)
        for key in drop:
            service.drop(key)
        self.services.changed(service, len(service.instances) - held)
        self._number += 1
        change = ServiceChanged(name, service.number, self._number, tuple(put), tuple(drop))
        service.record(change, now)
        if not service.instances:
            self._empty[name] = None
        self._events.append(change)


def _forget_oldest(memory: dict[K, Any]) -> None:
    """Forget a hundredth at once: to find a dictionary's first key means to pass by all that went before."""
    for key in list(islice(memory, MAX_ENDED // 100)):
        del memory[key]


def _record(held: Held) -> EntryRecord:
    return EntryRecord(
        entry=held.entry,
        order=held.order,
        since=held.since,
        term=held.term,
        epoch=held.epoch,
        down=held.down,
        proven=held.proven,
        silent=held.silent,
    )
