"""The catalog: the one place where the book is changed, by commands.

Every command takes the (attentive) time, checks everything before it changes anything, and leaves behind
events, which :meth:`Catalog.take_events` hands out in order. This page has the commands of clients, of time
and of the store; those of other replicas are in :mod:`~rollbook_registry.catalog.replication`.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.names import instance_key
from rollbook.problems import Problem
from rollbook_registry.catalog.definitions import Configured, Defined, Named, Overridden
from rollbook_registry.catalog.events import Deadline, Happened, LeaseChanged, Reason, ServiceForgotten
from rollbook_registry.catalog.groups import group_key
from rollbook_registry.catalog.leases import DEFINITIONS, NOTHING, Held, Kind, Lease
from rollbook_registry.catalog.ledger import ENDED_KEPT
from rollbook_registry.catalog.merge import marked
from rollbook_registry.catalog.quotas import check_quotas, check_service_quotas
from rollbook_registry.catalog.records import PodRecord
from rollbook_registry.catalog.replication import ReplicatedLedger
from rollbook_registry.catalog.services import Service

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.frames import GonePod
    from rollbook.model import Entry, EntryRef, Instance
    from rollbook.names import LeaseId, ServiceKey
    from rollbook_registry.catalog.definitions import Definition, Ruling, ServiceSettings

PODS_SWEPT: Final = 60.0
"""Seconds between looks for fences that are long past."""


class Attachment(NamedTuple):
    """What attaching gave."""

    term: int
    resumed: bool


class Catalog(ReplicatedLedger):
    """The book."""

    # --- reading ---------------------------------------------------------------------------------------

    def instance(self, ref: EntryRef, id_: LeaseId) -> Instance | None:
        """Return what the book shows for a lease's entry; of a pod, its operator may show another cluster."""
        group = self.groups.get(group_key(ref))
        if group is None:
            return None
        there = group.shown_at(ref)
        if len(there) > 1:
            # Its own may be the one that is shown apart from the others'.
            key = marked(instance_key(ip=ref.ip, port=ref.port, cluster=ref.cluster), id_)
            there.sort(key=lambda instance: instance.key != key)
        return there[0] if there else None

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

    def check_room(self, id_: LeaseId, entries: Iterable[Entry]) -> None:
        """Refuse what would make the book, or a namespace, larger than it may be.

        Args:
            id_: the lease that it would be entered under; :data:`DEFINITIONS` for what would be laid down.
            entries: that would be entered.

        Raises:
            Problem: 429 ``limit_reached``, naming the limit and whose it is.
        """
        check_quotas(
            entries,
            known=lambda entry: self._is_known(id_, entry),
            quotas=self.quotas,
            services=self.services,
            rulings=self.rulings,
        )

    def check_services(self, keys: Iterable[ServiceKey]) -> None:
        """Refuse services, to be listed though they are empty, that would be more than there may be.

        Raises:
            Problem: 429 ``limit_reached``, naming the limit and whose it is.
        """
        check_service_quotas(keys, quotas=self.quotas, services=self.services, rulings=self.rulings)

    # --- leases ----------------------------------------------------------------------------------------

    def attach(
        self, id_: LeaseId, *, kind: Kind, term: int, holder: object, now: float, epoch: int = 0
    ) -> Attachment:
        """Take up a lease, new or known, here or at another replica, under the next term.

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
        if lease.epoch != epoch:
            # What was complete under another epoch need not be so any more.
            lease.epoch, lease.synced = epoch, False
        self._heard(lease, now)
        self._events.append(LeaseChanged(id_, lease.term, Reason.ATTACHED))
        self._commit(now)
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
        self._change_of(lease)
        self._events.append(LeaseChanged(id_, lease.term, Reason.DETACHED))
        if not lease.entries:
            self._forget_lease(lease, Reason.DETACHED, now)
        self._commit(now)

    def release(self, id_: LeaseId, now: float) -> None:
        """End a lease because its client says goodbye; its entries leave the book."""
        lease = self._leases.get(id_)
        if lease is not None and lease.origin == self.ordinal:
            self._end(lease, Reason.RELEASED, now)
            self._commit(now)

    # --- entries ---------------------------------------------------------------------------------------

    def register(self, id_: LeaseId, entries: Iterable[Entry], now: float) -> int:
        """Enter instances under a lease that is attached, or change what it says about them.

        Returns:
            The lease's term.

        Raises:
            Problem: 409 ``lease_ended``, or ``epoch_superseded`` for an operator that another one has
                replaced; 410 for a closed or fenced pod; 429 ``limit_reached`` for a full book. Nothing was
                changed.
        """
        lease = self._live(id_, now)
        entries = list(entries)
        self._check_entries(id_, entries, now, limited=lease.expires)
        held = [self._hold(lease, entry, now) for entry in entries]
        self._supersede(lease, held, now)
        if lease.kind is not Kind.HTTP:
            self._heard(lease, now)
        # The deadlines of what it held before are known; looking at all would cost what the lease is large.
        self._watch(lease, held)
        self._commit(now)
        return lease.term

    def register_http(self, id_: LeaseId, entry: Entry, *, term: int, now: float) -> int:
        """Enter an instance for a plain HTTP client.

        Returns:
            The lease's term, one higher than any known or presented.

        Raises:
            Problem: 410 for a closed or fenced pod; 429 ``limit_reached`` for a full book.
        """
        self._check_entries(id_, [entry], now, limited=True)
        lease = self._open(id_, kind=Kind.HTTP, term=term, epoch=0, now=now)
        held = [self._hold(lease, entry, now)]
        held[0].term = lease.term
        lease.protected = False
        self._supersede(lease, held, now)
        self._watch(lease, held)
        self._commit(now)
        return lease.term

    def deregister(self, id_: LeaseId, refs: Iterable[EntryRef], now: float) -> None:
        """Take entries of a lease out of the book; unknown ones are no error."""
        lease = self._leases.get(id_)
        if lease is None or lease.origin != self.ordinal:
            return
        for ref in refs:
            held = lease.entries.get(ref)
            if held is not None:
                self._let_go(lease, held, Reason.DEREGISTERED, now)
        self._forget_if_empty(lease, Reason.DEREGISTERED, now)
        self._commit(now)

    def deregister_everywhere(
        self, ref: EntryRef, *, operators: bool, now: float, reason: Reason = Reason.DEREGISTERED
    ) -> bool:
        """Take an ephemeral instance out of the book, whoever entered it; says whether it was there.

        What a session of another replica entered, only that one can take out; a lost replica's leases and
        plain HTTP clients' are taken up for it.

        Args:
            ref: which one.
            operators: whether that goes for what an operator entered too.
            now: attentive time.
            reason: why.
        """
        group = self.groups.get(group_key(ref))
        found = [
            (self._leases[held.lease], held)
            for held in (group.held if group else ())
            if (held.entry.service_key, held.entry.ip, held.entry.port) == (ref.service_key, ref.ip, ref.port)
            and held.entry.ephemeral
            and (self._is_ours(self._leases[held.lease]) or held.orphan)
            and (operators or held.kind is not Kind.OPERATOR)
        ]
        for lease, held in found:
            if lease.origin != self.ordinal:
                # A lost replica's, or a plain client's: the others are to miss it too.
                self._open(lease.id, kind=lease.kind, term=0, epoch=lease.epoch, now=now)
            self._let_go(lease, held, reason, now)
            self._forget_if_empty(lease, reason, now)
        self._commit(now)
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
            self.pods.check(speaker.owner, now)
        if lease is None or term < lease.term or lease.origin != self.ordinal:
            raise Problem("lease_ended", f"lease {id_} has ended; attach and register again")
        self._heard(lease, now)
        if down != lease.down:
            for ref in down ^ lease.down:
                held = lease.entries.get(ref)
                if held is not None:
                    self._set_down(lease, held, down=ref in down)
            lease.down = down or NOTHING
        self._commit(now)

    def beat_http(self, id_: LeaseId, ref: EntryRef, *, term: int, now: float) -> None:
        """Hear one instance of a plain HTTP client.

        Raises:
            Problem: 404 ``unknown_instance``; 409 ``lease_ended`` or ``stale_term``; 410 for a closed or
                fenced pod.
        """
        if ref.owner:
            self.pods.check(ref.owner, now)
        lease = self._leases.get(id_)
        held = lease.entries.get(ref) if lease is not None else None
        if lease is None or held is None:
            if self.has_ended(id_, ref):
                raise Problem("lease_ended", "the instance was removed; register it again")
            raise Problem("unknown_instance", "no such instance; register it, or send a beat that carries it")
        if term and term < held.term:
            raise Problem("stale_term", f"term is {term}, the instance's is {held.term}", field="term")
        if lease.origin != self.ordinal:
            # Its replica is lost, or it is this one's to own by now.
            lease = self._open(id_, kind=Kind.HTTP, term=0, epoch=0, now=now)
        held.seen = now
        lease.protected = False
        if held.silent:
            self._recover(lease, held)
            self._watch(lease)
        if held.down:
            self._set_down(lease, held, down=False)
        self._commit(now)

    def has_ended(self, id_: LeaseId, ref: EntryRef) -> bool:
        """Say whether a plain HTTP client's instance has ended and that is still remembered."""
        return id_ in self._ended or (id_, ref) in self._removed

    # --- time ------------------------------------------------------------------------------------------

    def look(self, ids: Iterable[LeaseId], now: float) -> list[LeaseId]:
        """Look at leases whose deadlines have come: entries that are silent turn.

        Returns:
            Those of which something has been silent for so long that it has to go. Nothing happens to them
            until somebody has judged that, and has them expire.
        """
        overdue = []
        for id_ in ids:
            lease = self._expiring(id_)
            if lease is None:
                continue
            deadline = lease.deadline(lease.entries.values())
            if deadline is not None and now < deadline:
                # Nearly all have beaten since.
                lease.protected = False
                self._events.append(Deadline(id_, deadline))
            elif lease.overdue(now):
                overdue.append(id_)
            else:
                self._expire(lease, now, remove=False)
        self._commit(now)
        return overdue

    def expire(self, ids: Iterable[LeaseId], now: float, *, remove: bool = True) -> None:
        """Have silence do to leases what it has to: entries turn, or go.

        Args:
            ids: which leases.
            now: attentive time.
            remove: whether what has been silent for too long may go; else it is kept as protected.
        """
        for id_ in ids:
            lease = self._expiring(id_)
            if lease is not None:
                self._expire(lease, now, remove=remove)
        self._commit(now)

    def _expiring(self, id_: LeaseId) -> Lease | None:
        """Return a lease if silence may do something to it here.

        It may have had entries when its deadline was set, and be held by a session all the same.
        """
        lease = self._leases.get(id_)
        known = lease is not None and lease.origin == self.ordinal and lease.expires and lease.entries
        return lease if known else None

    def _expire(self, lease: Lease, now: float, *, remove: bool) -> None:
        rest = []
        for held in list(lease.entries.values()):
            idle = now - lease.last_seen(held)
            overdue = idle >= held.remove_after
            if overdue and remove:
                self._let_go(lease, held, Reason.EXPIRED, now)
                continue
            if not held.silent and idle >= held.patience:
                held.silent = True
                lease.quiet += 1
                self._note(held, Reason.SILENT)
                self._changed_entry(lease, held.ref)
            if not overdue:
                rest.append(held)
            elif not lease.protected:
                self._note(held, Reason.PROTECTED)
        lease.protected = len(rest) < len(lease.entries)
        if not lease.entries:
            self._forget_lease(lease, Reason.EXPIRED, now)
        # What is kept is looked at again when whoever keeps it says.
        self._watch(lease, rest)

    def overdue(self, id_: LeaseId, now: float) -> bool:
        """Say whether something of a lease has been silent for so long that it has to go."""
        lease = self._leases.get(id_)
        return lease is not None and lease.origin == self.ordinal and lease.overdue(now)

    def speaking(self) -> int:
        """Count this replica's leases that hold something, and that silence ends."""
        own = self.ordinal
        return len([o for o in self._leases.values() if o.entries and o.origin == own and o.expires])

    def sweep(self, now: float) -> None:
        """Let go of what is only remembered: empty services, ended leases, old fences."""
        if now - self._swept_pods >= PODS_SWEPT:
            self._swept_pods = now
            self.pods.forget(now)
        # The oldest come first. They are found before the first of them goes: a dictionary passes by all that
        # has gone from its front each time that it is asked for its first key.
        long_ago = now - ENDED_KEPT
        for id_ in list(takewhile(lambda id_: self._ended[id_].at <= long_ago, self._ended)):
            del self._ended[id_]
        for one in list(takewhile(lambda one: self._removed[one] <= long_ago, self._removed)):
            del self._removed[one]
        for key in list(self._empty):
            service = self.services.get(key)
            if service is None or service.emptied is None:
                del self._empty[key]
            elif now - service.emptied >= self.timings.empty_kept and key not in self.rulings.services:
                self.services.discard(key)
                del self._empty[key]
                self._events.append(ServiceForgotten(key))

    # --- pods ------------------------------------------------------------------------------------------

    def close_pods(self, uids: Iterable[str], now: float) -> None:
        """Close terminating pods: their entries go at once, and nothing new is taken in their name."""
        self._mark_pods([PodRecord(uid=uid) for uid in uids], now)
        self._commit(now)

    def fence_pods(self, gone: Iterable[GonePod], now: float) -> None:
        """Fence pods that are confirmed gone, and strike out what plain SDKs entered at their addresses."""
        self._mark_pods([PodRecord(uid=pod.uid, fenced=True, ips=pod.ips) for pod in gone], now)
        self._commit(now)

    def synced(self, id_: LeaseId, now: float) -> None:
        """An operator has entered a complete list: what other operators entered may go."""
        lease = self._live(id_, now)
        lease.synced = True
        self._change_of(lease)
        self._operators_superseded_by(lease, now)
        self._commit(now)

    # --- rulings ---------------------------------------------------------------------------------------

    def rule(self, rulings: Iterable[Ruling], now: float) -> None:
        """Take what the store has laid down, or taken back."""
        for ruling in rulings:
            match ruling:
                case Defined(ref, definition):
                    self._define(ref, definition, now)
                case Overridden(ref, override):
                    known = self.rulings.overrides.pop(ref, None)
                    if override is not None:
                        self.rulings.overrides[ref] = override
                    if known != override:
                        self._note_override(ref, lifted=override is None)
                case Configured(service, settings):
                    self._configure(service, settings, now)
                case Named(namespace, record):
                    self.rulings.namespaces.pop(namespace, None)
                    if record is not None:
                        self.rulings.namespaces[namespace] = record
        self._commit(now)

    # --- inside ----------------------------------------------------------------------------------------

    def _live(self, id_: LeaseId, now: float) -> Lease:
        lease = self._leases.get(id_)
        if lease is None or not self._is_ours(lease):
            raise Problem("lease_ended", f"lease {id_} is not attached, or has ended; attach again")
        if lease.origin != self.ordinal:
            lease = self._open(id_, kind=Kind.HTTP, term=0, epoch=0, now=now)
        if lease.kind is Kind.OPERATOR:
            self.check_epoch(lease.epoch)
        return lease

    def _is_ours(self, lease: Lease) -> bool:
        """Whether this replica may write it: a plain HTTP client comes to any, and is taken up by it."""
        return lease.origin == self.ordinal or lease.kind is Kind.HTTP

    def _check_entries(self, id_: LeaseId, entries: list[Entry], now: float, *, limited: bool) -> None:
        for entry in entries:
            if entry.owner:
                self.pods.check(entry.owner, now)
        if limited:
            self.check_room(id_, entries)

    def _forget_if_empty(self, lease: Lease, reason: Reason, now: float) -> None:
        if not lease.entries and lease.holder is None and lease.origin == self.ordinal and lease.expires:
            self._forget_lease(lease, reason, now)

    def _define(self, ref: EntryRef, definition: Definition | None, now: float) -> None:
        lease = self._leases.get(DEFINITIONS)
        if definition is None:
            self.rulings.definitions.pop(ref, None)
            held = lease.entries.get(ref) if lease is not None else None
            if lease is not None and held is not None:
                self._let_go(lease, held, Reason.UNDEFINED, now)
                if not lease.entries:
                    del self._leases[DEFINITIONS]
            return
        if lease is None:
            lease = self._leases[DEFINITIONS] = Lease(
                DEFINITIONS, kind=Kind.DEFINITIONS, origin=self.ordinal, term=1, epoch=0, seen=now
            )
        self.rulings.definitions[ref] = definition
        entry = definition.entry
        old = lease.entries.get(ref)
        held = Held(
            entry=entry,
            ref=old.ref if old is not None else ref,
            lease=DEFINITIONS,
            kind=Kind.DEFINITIONS,
            epoch=0,
            order=0,
            since=0,
            term=1,
            seen=now,
            unhealthy_after=self.timings.unhealthy_after,
            remove_after=self.timings.remove_after,
            down=entry.alive is False,
        )
        self._put(lease, held, old, Reason.DEFINED)

    def _note_override(self, ref: EntryRef, *, lifted: bool) -> None:
        reason = Reason.OVERRIDE_LIFTED if lifted else Reason.OVERRIDDEN
        self._events.append(Happened(ref.service_key, ref, DEFINITIONS, reason))
        self.groups.touch(ref)

    def _configure(self, key: ServiceKey, settings: ServiceSettings | None, now: float) -> None:
        before = self.rulings.protect_threshold(key)
        self.rulings.services.pop(key, None)
        if settings is not None:
            self.rulings.services[key] = settings
            if self.services.get(key) is None:
                # Kept although it is empty; it goes with its settings.
                self.services.add(Service(key, number=0, now=now))
                self._empty[key] = None
        if self.rulings.protect_threshold(key) != before:
            # Nobody's instance has changed, but what their share of healthy ones means has.
            self._change_service(key, [], [], now)
