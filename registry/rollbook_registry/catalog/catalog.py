"""The catalog: the one place where the book is changed, by commands.

Every command takes the (attentive) time, checks everything before it changes anything, and leaves behind
events, which :meth:`Catalog.take_events` hands out in order.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.model import REMOVE_AFTER_KEY, UNHEALTHY_AFTER_KEY, Instance, timing_ms
from rollbook.names import LeaseId, instance_key
from rollbook.problems import Problem
from rollbook_registry.catalog.events import (
    Deadline,
    Event,
    History,
    LeaseChanged,
    Reason,
    ServiceChanged,
)
from rollbook_registry.catalog.leases import Held, Kind, Lease
from rollbook_registry.catalog.merge import Visible, marked, merge_endpoint, merge_pod
from rollbook_registry.catalog.pods import Pods
from rollbook_registry.catalog.services import Service, Services

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from rollbook.frames import GonePod
    from rollbook.model import Entry, EntryRef
    from rollbook.names import InstanceKey, ServiceKey

ENDED_KEPT: Final = 600.0
"""Seconds for which an ended lease's term is remembered, so that its late beats are told from new ones."""


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


class Attachment(NamedTuple):
    """What attaching gave."""

    term: int
    resumed: bool


class _Ended(NamedTuple):
    term: int
    at: float
    owner: str


class _Group:
    """The entries that are merged with each other: those of one pod, or of one endpoint without an owner."""

    __slots__ = ("held", "merge", "visible")

    def __init__(self, merge: Callable[[Collection[Held]], Visible]) -> None:
        self.merge = merge
        self.held: dict[tuple[LeaseId, EntryRef], Held] = {}
        self.visible: Visible = {}


_GroupKey = tuple[object, ...]


def _group_key(ref: EntryRef) -> _GroupKey:
    if ref.owner:
        return (ref.owner,)
    return (ref.namespace, ref.group, ref.service, ref.ip, ref.port, ref.cluster)


class Catalog:
    """The book.

    Args:
        timings: its timers.
    """

    def __init__(self, timings: Timings) -> None:
        self.timings = timings
        self.services = Services()
        self.pods = Pods()
        self._leases: dict[LeaseId, Lease] = {}
        self._ended: dict[LeaseId, _Ended] = {}
        self._removed: dict[tuple[LeaseId, EntryRef], float] = {}
        """Of plain HTTP clients, who beat each instance by itself: what has ended while the lease goes on."""
        self._groups: dict[_GroupKey, _Group] = {}
        self._at_address: dict[str, set[_GroupKey]] = {}
        self._touched: dict[_GroupKey, None] = {}
        self._events: list[Event] = []
        self._order = 0
        self._number = 0
        self._epoch = 0
        self._empty: dict[ServiceKey, None] = {}

    # --- reading ---------------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """Return what has happened since the last call, in order."""
        taken, self._events = self._events, []
        return taken

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

    def instance(self, ref: EntryRef, id_: LeaseId) -> Instance | None:
        """Return what the book shows for a lease's entry; of a pod, its operator may show another cluster."""
        group = self._groups.get(_group_key(ref))
        if group is None:
            return None
        key = marked(instance_key(ip=ref.ip, port=ref.port, cluster=ref.cluster), id_)
        apart = group.visible.get((ref.service_key, key))
        if apart is not None:
            return apart
        for (service, _), instance in group.visible.items():
            if (service, instance.ip, instance.port) == (ref.service_key, ref.ip, ref.port):
                return instance
        return None

    def check_epoch(self, epoch: int) -> None:
        """Refuse an operator whom another one has replaced.

        Raises:
            Problem: 409 ``epoch_superseded``.
        """
        if epoch < self._epoch:
            raise Problem(
                "epoch_superseded",
                f"epoch is {epoch}, but an operator with epoch {self._epoch} has taken over",
                field="epoch",
                accepted=f"at least {self._epoch}",
            )

    # --- leases ----------------------------------------------------------------------------------------

    def attach(
        self, id_: LeaseId, *, kind: Kind, term: int, holder: object, now: float, epoch: int = 0
    ) -> Attachment:
        """Take up a lease, new or known, under the next term.

        Raises:
            Problem: 409 ``epoch_superseded`` for an operator older than the newest one seen; 403 for a lease
                of another kind.
        """
        if kind is Kind.OPERATOR:
            self.check_epoch(epoch)
        lease = self._open(id_, kind=kind, term=term, epoch=epoch, now=now)
        if kind is Kind.OPERATOR:
            self._epoch = epoch
        resumed = bool(lease.entries)
        lease.holder = holder
        lease.epoch = epoch
        self._heard(lease, now)
        self._events.append(LeaseChanged(id_, lease.term, Reason.ATTACHED))
        self._flush(now)
        return Attachment(lease.term, resumed)

    def detach(self, id_: LeaseId, holder: object, now: float) -> None:
        """A session broke: its lease waits for its client for as long as its silence is borne.

        Only the session that holds it can detach it: by the time that a broken connection is noticed, the
        client may long have come back by another.
        """
        lease = self._leases.get(id_)
        if lease is None or lease.holder is not holder:
            return
        lease.holder = None
        self._events.append(LeaseChanged(id_, lease.term, Reason.DETACHED))
        if not lease.entries:
            self._forget_lease(lease, Reason.DETACHED, now)

    def release(self, id_: LeaseId, now: float) -> None:
        """End a lease because its client says goodbye; its entries leave the book."""
        lease = self._leases.get(id_)
        if lease is not None:
            self._end(lease, Reason.RELEASED, now)
            self._flush(now)

    # --- entries ---------------------------------------------------------------------------------------

    def register(self, id_: LeaseId, entries: Iterable[Entry], now: float) -> int:
        """Enter instances under a lease that is attached, or change what it says about them.

        Returns:
            The lease's term.

        Raises:
            Problem: 409 ``lease_ended``, or ``epoch_superseded`` for an operator that another one has
                replaced; 410 for a closed or fenced pod. Nothing was changed.
        """
        lease = self._live(id_)
        entries = list(entries)
        for entry in entries:
            if entry.owner:
                self.pods.check(entry.owner)
        for entry in entries:
            self._hold(lease, entry, now)
        if lease.kind is not Kind.HTTP:
            self._heard(lease, now)
        self._watch(lease)
        self._flush(now)
        return lease.term

    def register_http(self, id_: LeaseId, entry: Entry, *, term: int, now: float) -> int:
        """Enter an instance for a plain HTTP client.

        Returns:
            The lease's term, one higher than any known or presented.

        Raises:
            Problem: 410 for a closed or fenced pod.
        """
        if entry.owner:
            self.pods.check(entry.owner)
        lease = self._open(id_, kind=Kind.HTTP, term=term, epoch=0, now=now)
        self._hold(lease, entry, now).term = lease.term
        self._watch(lease)
        self._flush(now)
        return lease.term

    def deregister(self, id_: LeaseId, refs: Iterable[EntryRef], now: float) -> None:
        """Take entries of a lease out of the book; unknown ones are no error."""
        lease = self._leases.get(id_)
        if lease is None:
            return
        for ref in refs:
            held = lease.entries.get(ref)
            if held is not None:
                self._let_go(lease, held, Reason.DEREGISTERED, now)
        if not lease.entries and lease.holder is None:
            self._forget_lease(lease, Reason.DEREGISTERED, now)
        self._flush(now)

    def deregister_everywhere(self, ref: EntryRef, *, operators: bool, now: float) -> bool:
        """Take an instance out of the book, whoever entered it; says whether it was there.

        Args:
            ref: which one.
            operators: whether that goes for what an operator entered too.
            now: attentive time.
        """
        group = self._groups.get(_group_key(ref))
        found = [
            (lease_id, held)
            for (lease_id, _), held in (group.held.items() if group else ())
            if (held.entry.service_key, held.entry.ip, held.entry.port) == (ref.service_key, ref.ip, ref.port)
            and (operators or not held.operator)
        ]
        for lease_id, held in found:
            lease = self._leases[lease_id]
            self._let_go(lease, held, Reason.DEREGISTERED, now)
            if not lease.entries and lease.holder is None:
                self._forget_lease(lease, Reason.DEREGISTERED, now)
        self._flush(now)
        return bool(found)

    # --- beats -----------------------------------------------------------------------------------------

    def beat(self, id_: LeaseId, *, term: int, down: frozenset[EntryRef], now: float) -> None:
        """Hear a whole lease: all of its entries live, except those that are down.

        Raises:
            Problem: 409 ``lease_ended`` (the beat was ignored); 410 for a closed or fenced pod.
        """
        lease = self._leases.get(id_)
        speaker = lease or self._ended.get(id_)
        if speaker is not None and speaker.owner:
            self.pods.check(speaker.owner)
        if lease is None or term < lease.term:
            raise Problem("lease_ended", f"lease {id_} has ended; attach and register again")
        self._heard(lease, now)
        if down != lease.down:
            for ref in down ^ lease.down:
                held = lease.entries.get(ref)
                if held is not None:
                    self._set_down(held, down=ref in down)
            lease.down = down
        self._flush(now)

    def beat_http(self, id_: LeaseId, ref: EntryRef, *, term: int, now: float) -> None:
        """Hear one instance of a plain HTTP client.

        Raises:
            Problem: 404 ``unknown_instance``; 409 ``lease_ended`` or ``stale_term``; 410 for a closed or
                fenced pod.
        """
        if ref.owner:
            self.pods.check(ref.owner)
        lease = self._leases.get(id_)
        held = lease.entries.get(ref) if lease is not None else None
        if lease is None or held is None:
            if self.has_ended(id_, ref):
                raise Problem("lease_ended", "the instance was removed; register it again")
            raise Problem("unknown_instance", "no such instance; register it, or send a beat that carries it")
        if term and term < held.term:
            raise Problem("stale_term", f"term is {term}, the instance's is {held.term}", field="term")
        held.seen = now
        if held.silent:
            self._recover(lease, held)
            self._watch(lease)
        if held.down:
            self._set_down(held, down=False)
        self._flush(now)

    def ended(self, id_: LeaseId) -> int | None:
        """Return the term of a lease that has ended and is still remembered."""
        ended = self._ended.get(id_)
        return None if ended is None else ended.term

    def has_ended(self, id_: LeaseId, ref: EntryRef) -> bool:
        """Say whether a plain HTTP client's instance has ended and that is still remembered."""
        return id_ in self._ended or (id_, ref) in self._removed

    def expire(self, id_: LeaseId, now: float) -> None:
        """Look at a lease whose deadline has come: silent entries turn, or go."""
        lease = self._leases.get(id_)
        if lease is None:
            return
        for held in list(lease.entries.values()):
            idle = now - lease.last_seen(held)
            if idle >= held.remove_after:
                self._let_go(lease, held, Reason.EXPIRED, now)
            elif idle >= held.unhealthy_after and not held.silent:
                held.silent = True
                lease.quiet += 1
                self._note(held, Reason.SILENT)
        if lease.entries:
            self._watch(lease)
        else:
            self._forget_lease(lease, Reason.EXPIRED, now)
        self._flush(now)

    # --- pods ------------------------------------------------------------------------------------------

    def close_pods(self, uids: Iterable[str], now: float) -> None:
        """Close terminating pods: their entries go at once, and nothing new is taken in their name."""
        for uid in uids:
            if self.pods.close(uid, now):
                self._strike((uid,), Reason.POD_CLOSED, now)
        self._flush(now)

    def fence_pods(self, gone: Iterable[GonePod], now: float) -> None:
        """Fence pods that are confirmed gone, and strike out what plain SDKs entered at their addresses."""
        for pod in gone:
            if not self.pods.fence(pod.uid, now):
                continue
            self._strike((pod.uid,), Reason.POD_FENCED, now)
            for ip in pod.ips:
                groups = self._at_address.get(ip, set())
                # The address may be another pod's by now; what that one registered by itself stays.
                if not any(len(key) == 1 for key in groups):
                    for key in list(groups):
                        self._strike(key, Reason.ADDRESS_FENCED, now)
        self._flush(now)

    def synced(self, id_: LeaseId, now: float) -> None:
        """An operator has entered a complete list: what other operators entered may go."""
        lease = self._live(id_)
        for other in [o for o in self._leases.values() if o.kind is Kind.OPERATOR and o is not lease]:
            if other.epoch <= lease.epoch:
                self._end(other, Reason.SUPERSEDED, now)
        self._flush(now)

    def sweep(self, now: float) -> None:
        """Let go of what is only remembered: empty services, ended leases, old fences."""
        self.pods.forget(now)
        while self._ended:
            id_ = next(iter(self._ended))
            if now - self._ended[id_].at < ENDED_KEPT:
                break
            del self._ended[id_]
        while self._removed:
            removed = next(iter(self._removed))
            if now - self._removed[removed] < ENDED_KEPT:
                break
            del self._removed[removed]
        for key in list(self._empty):
            service = self.services.get(key)
            if service is None or service.emptied is None:
                del self._empty[key]
            elif now - service.emptied >= self.timings.empty_kept:
                self.services.discard(key)
                del self._empty[key]

    # --- inside ----------------------------------------------------------------------------------------

    def _live(self, id_: LeaseId) -> Lease:
        lease = self._leases.get(id_)
        if lease is None:
            raise Problem("lease_ended", f"lease {id_} is not attached, or has ended; attach again")
        if lease.kind is Kind.OPERATOR:
            self.check_epoch(lease.epoch)
        return lease

    def _open(self, id_: LeaseId, *, kind: Kind, term: int, epoch: int, now: float) -> Lease:
        """Take up a lease under the next term: the known one, or a new one in the place of one that ended."""
        lease = self._leases.get(id_)
        if lease is None:
            ended = self._ended.pop(id_, None)
            lease = Lease(id_, kind=kind, term=ended.term if ended else 0, epoch=epoch, seen=now)
            self._leases[id_] = lease
        elif lease.kind is not kind:
            raise Problem("forbidden", f"lease {id_} is of kind {lease.kind.value}", field="kind")
        lease.term = max(lease.term, term) + 1
        return lease

    def _hold(self, lease: Lease, entry: Entry, now: float) -> Held:
        ref = entry.ref
        operator = lease.kind is Kind.OPERATOR
        old = lease.entries.get(ref)
        if old is not None and old.silent:
            lease.quiet -= 1
        self._order += 1
        unhealthy = timing_ms(entry.metadata, UNHEALTHY_AFTER_KEY) if entry.metadata else None
        remove = timing_ms(entry.metadata, REMOVE_AFTER_KEY) if entry.metadata else None
        remove_default = self.timings.operator_remove_after if operator else self.timings.remove_after
        held = Held(
            entry=entry,
            lease=lease.id,
            operator=operator,
            epoch=lease.epoch,
            order=self._order,
            term=old.term if old is not None else lease.term,
            seen=now,
            unhealthy_after=unhealthy / 1000 if unhealthy and not operator else self.timings.unhealthy_after,
            remove_after=remove / 1000 if remove and not operator else remove_default,
            down=entry.alive is not True,
            proven=entry.alive is not None,
        )
        lease.entries[ref] = held
        self._removed.pop((lease.id, ref), None)
        lease.owner = lease.owner or ("" if operator else entry.owner)
        if held.down != (ref in lease.down):
            lease.down ^= {ref}
        key = _group_key(ref)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(merge_pod if ref.owner else merge_endpoint)
        if not operator:
            self._supersede(lease, group, held)
        group.held[lease.id, ref] = held
        self._at_address.setdefault(ref.ip, set()).add(key)
        if old is None:
            self._note(held, Reason.REGISTERED)
        elif old.entry != entry or old.silent:
            self._note(held, Reason.UPDATED)
        self._touched[key] = None
        return held

    def _supersede(self, lease: Lease, group: _Group, held: Held) -> None:
        """Let go of what an earlier process at the same endpoint left behind, once its session is gone."""
        entry = held.entry
        for (other_id, _), other in list(group.held.items()):
            same = (other.entry.ip, other.entry.port) == (entry.ip, entry.port)
            if other_id != lease.id and same and not other.operator:
                holder = self._leases[other_id]
                if holder.holder is None and holder.kind is Kind.SESSION:
                    self._let_go(holder, other, Reason.SUPERSEDED, held.seen)
                    if not holder.entries:
                        self._forget_lease(holder, Reason.SUPERSEDED, held.seen)

    def _let_go(self, lease: Lease, held: Held, reason: Reason, now: float) -> None:
        ref = held.entry.ref
        del lease.entries[ref]
        if lease.kind is Kind.HTTP:
            self._removed[lease.id, ref] = now
        lease.quiet -= held.silent
        lease.down -= {ref}
        key = _group_key(ref)
        group = self._groups[key]
        del group.held[lease.id, ref]
        if not any(h.entry.ip == ref.ip for h in group.held.values()):
            groups = self._at_address[ref.ip]
            groups.discard(key)
            if not groups:
                del self._at_address[ref.ip]
        self._note(held, reason)

    def _strike(self, key: _GroupKey, reason: Reason, now: float) -> None:
        """Let go of all entries of a group, whoever holds them."""
        group = self._groups.get(key)
        for (lease_id, _), held in list(group.held.items()) if group else ():
            lease = self._leases[lease_id]
            self._let_go(lease, held, reason, now)
            if not lease.entries and lease.holder is None:
                self._forget_lease(lease, reason, now)

    def _end(self, lease: Lease, reason: Reason, now: float) -> None:
        for held in list(lease.entries.values()):
            self._let_go(lease, held, reason, now)
        self._forget_lease(lease, reason, now)

    def _forget_lease(self, lease: Lease, reason: Reason, now: float) -> None:
        del self._leases[lease.id]
        self._ended.pop(lease.id, None)
        self._ended[lease.id] = _Ended(lease.term, now, lease.owner)
        self._events.append(LeaseChanged(lease.id, lease.term, reason))

    def _heard(self, lease: Lease, now: float) -> None:
        lease.seen = now
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

    def _set_down(self, held: Held, *, down: bool) -> None:
        if held.down != down:
            held.down = down
            held.proven = True
            self._note(held, Reason.APPLICATION_DOWN if down else Reason.APPLICATION_UP)

    def _watch(self, lease: Lease) -> None:
        deadline = lease.deadline()
        if deadline is not None:
            self._events.append(Deadline(lease.id, deadline))

    def _note(self, held: Held, reason: Reason) -> None:
        entry = held.entry
        key = instance_key(ip=entry.ip, port=entry.port, cluster=entry.cluster, owner=entry.owner)
        self._events.append(History(entry.service_key, key, held.lease, reason))
        self._touched[_group_key(entry.ref)] = None

    def _flush(self, now: float) -> None:
        """Merge what was touched again, and tell each service's difference once: additions first."""
        if not self._touched:
            return
        put: dict[ServiceKey, list[Instance]] = {}
        drop: dict[ServiceKey, list[InstanceKey]] = {}
        for key in self._touched:
            group = self._groups.get(key)
            if group is None:
                continue
            before, group.visible = group.visible, group.merge(group.held.values())
            for where, instance in group.visible.items():
                if before.get(where) != instance:
                    put.setdefault(where[0], []).append(instance)
            for where in before:
                if where not in group.visible:
                    drop.setdefault(where[0], []).append(where[1])
            if not group.held:
                del self._groups[key]
        self._touched.clear()
        for name in {**put, **drop}:
            self._change(name, put.get(name, []), drop.get(name, []), now)

    def _change(self, name: ServiceKey, put: list[Instance], drop: list[InstanceKey], now: float) -> None:
        service = self.services.get(name)
        if service is None:
            service = Service(name, number=0, now=now)
            self.services.add(service)
        for instance in put:
            service.put(instance)
        for key in drop:
            service.drop(key)
        self._number += 1
        change = ServiceChanged(name, service.number, self._number, tuple(put), tuple(drop))
        service.record(change, now)
        if not service.instances:
            self._empty[name] = None
        self._events.append(change)
