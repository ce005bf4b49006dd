"""Replication: what other replicas, and this one's own past, bring into the book.

A lease is written by the replica that owns it; the others follow. Where two claim the same lease, because its
client went from one to the other, the higher term counts; of equal terms the one that a session holds; then
the lower ordinal. Of a plain HTTP client's, the later registration counts first: cut off from each other, two
replicas may take it up by its beats any number of times, and what it has said last must not depend on that.
Whoever hears that its own does not count lets go of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from rollbook_registry.catalog.events import LeaseChanged, Reason, Written
from rollbook_registry.catalog.leases import Held, Kind, Lease
from rollbook_registry.catalog.ledger import Ended, Ledger
from rollbook_registry.catalog.records import YIELDED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.names import LeaseId
    from rollbook_registry.catalog.records import EntryRecord, LeaseWrite, PodRecord


class Replicated(StrEnum):
    """What became of another replica's write."""

    TAKEN = "taken"
    OLDER = "older"
    """Another record of the lease counts: of a higher term, or attached, or of a lower ordinal."""
    SUPERSEDED = "superseded"
    """A newer operator has said that its list is complete."""
    NEEDS_WHOLE = "needs_whole"
    """It is a difference to a record that is not here."""


class ReplicatedLedger(Ledger):
    """The ledger, with the commands of other replicas."""

    def replicate(self, write: LeaseWrite, *, origin: int, now: float) -> Replicated:
        """Take what another replica wrote about a lease that it owns."""
        taken = self._replicate(write, origin, now)
        self._commit(now)
        return taken

    def mark_pods(self, records: Iterable[PodRecord], now: float) -> None:
        """Close and fence pods that a peer, or the disk, knows to be closed and fenced."""
        self._mark_pods(records, now)
        self._commit(now)

    def orphan(self, origin: int, now: float) -> None:
        """A replica is lost: its leases stay as last known until somebody takes them up."""
        for lease in self._foreign(origin):
            if not lease.orphan:
                self._freeze(lease, orphan=True)
                lease.attached = False
                self._events.append(LeaseChanged(lease.id, lease.term, Reason.ORPHANED))
        self._commit(now)

    def adopted(self, origin: int, now: float) -> None:
        """A replica is back and answers for its leases again."""
        for lease in self._foreign(origin):
            if lease.orphan:
                self._freeze(lease, orphan=False)
                self._events.append(LeaseChanged(lease.id, lease.term, Reason.ADOPTED))
        self._commit(now)

    def forget(self, ids: Iterable[LeaseId], *, origin: int, now: float) -> None:
        """Leave out what a replica owned that stayed away, or what it does not own any more.

        It isn't remembered as ended: the replica may come back and assert it again.
        """
        for id_ in ids:
            lease = self._leases.get(id_)
            if lease is not None and lease.origin == origin != self.ordinal:
                for held in list(lease.entries.values()):
                    self._let_go(lease, held, Reason.HIDDEN, now)
                del self._leases[id_]
                self._events.append(LeaseChanged(id_, lease.term, Reason.HIDDEN))
        self._commit(now)

    def restore(
        self, writes: Iterable[tuple[int, LeaseWrite]], pods: Iterable[PodRecord], now: float
    ) -> None:
        """Begin with what the disk, or a peer's copy, holds: everybody has a full grace period from now on.

        What this replica owned is its own again, attached to nobody; the rest are orphans until their
        replicas assert them. What is known already and not older is left alone.
        """
        self._mark_pods(pods, now)
        writes = list(writes)
        self._synced = max([self._synced, *(w.epoch for _, w in writes if w.synced)])
        for origin, write in writes:
            known = self._leases.get(write.id)
            if (known is not None and not _outdates(write, origin, known)) or self._superseded(write):
                continue
            if known is not None:
                self._drop(known, Reason.RESTORED, now)
            self._restore(write, origin, now)
        self._commit(now)

    def overrule(self, ids: Iterable[LeaseId], now: float) -> None:
        """End own leases that came back from the disk: a peer whose book lives has them no more."""
        for id_ in ids:
            lease = self._leases.get(id_)
            if lease is not None and self._is_written(lease):
                self._end(lease, Reason.OVERRULED, now)
        self._commit(now)

    def foreign(self, origin: int) -> list[LeaseId]:
        """Return the leases in the book that another replica owns."""
        return [lease.id for lease in self._foreign(origin)]

    # --- inside ----------------------------------------------------------------------------------------

    def _foreign(self, origin: int) -> list[Lease]:
        if origin == self.ordinal:
            return []
        return [lease for lease in self._leases.values() if lease.origin == origin and lease.replicated]

    def _superseded(self, write: LeaseWrite) -> bool:
        """Whether it is an operator's whom another one has replaced, list and all."""
        return write.kind is Kind.OPERATOR and write.epoch < self._synced

    def _replicate(self, write: LeaseWrite, origin: int, now: float) -> Replicated:
        lease = self._leases.get(write.id)
        if self._superseded(write):
            return Replicated.SUPERSEDED
        if write.ended:
            self._hear_of_end(lease, write, origin, now)
            return Replicated.TAKEN
        if not write.whole and (lease is None or lease.origin != origin):
            return Replicated.NEEDS_WHOLE
        # What its own replica says is taken whatever its version: the order of its writes is the authority.
        if lease is not None and lease.origin != origin and not _beats(write, origin, lease):
            return Replicated.OLDER
        self._take(lease, write, origin, now)
        return Replicated.TAKEN

    def _take(self, lease: Lease | None, write: LeaseWrite, origin: int, now: float) -> None:
        if write.kind is Kind.OPERATOR:
            self._epoch = max(self._epoch, write.epoch)
        if lease is not None and lease.origin == self.ordinal:
            self._yield(lease, write, origin)
        if lease is None:
            lease = self._leases[write.id] = Lease(
                write.id, kind=write.kind, origin=origin, term=0, epoch=write.epoch, seen=now
            )
        complete = write.synced and not (lease.synced and lease.epoch == write.epoch)
        self._follow(lease, write, origin, now)
        if complete:
            self._operators_superseded_by(lease, now)

    def _hear_of_end(self, lease: Lease | None, write: LeaseWrite, origin: int, now: float) -> None:
        known = self._ended.get(write.id)
        # Whoever it was yielded to may have ended it already: its word came first.
        later = known is None or known.term < (write.successor if write.yielded else write.term)
        if lease is None:
            if later and not write.yielded:
                # For what others, who have not heard of it yet, may still say.
                self._remember(write.id, Ended(write.term, now, write.owner))
        elif lease.origin == origin and write.yielded and later and lease.entries:
            # Somebody else has it, whose word has not come yet; until then nothing of it may be missed.
            self._freeze(lease, orphan=True)
            lease.attached = False
        elif lease.origin == origin or (write.term > lease.term and not write.yielded):
            # It is over: by its owner's word, or by that of who took it up and ended it in one go.
            lease.term, lease.n = write.version
            self._end(lease, _reason(write, Reason.RELEASED), now)

    def _yield(self, lease: Lease, write: LeaseWrite, origin: int) -> None:
        """Give an own lease up to the replica that its client went to; what it holds stays where it is."""
        self._changed.pop(lease.id, None)
        lease.n += 1
        end = self._write(lease, ended=True, reason=YIELDED)
        self._events.append(Written(msgspec.structs.replace(end, successor=write.term)))
        self._events.append(LeaseChanged(lease.id, write.term, Reason.YIELDED))
        lease.holder = None
        lease.origin = origin
        lease.protected = False

    def _follow(self, lease: Lease, write: LeaseWrite, origin: int, now: float) -> None:
        """Bring another replica's lease to where its owner has it."""
        lease.origin = origin
        lease.term, lease.n = write.version
        lease.owner, lease.epoch, lease.synced = write.owner, write.epoch, write.synced
        lease.attached = write.attached
        if lease.orphan:
            self._freeze(lease, orphan=False)
        wanted = {record.entry.ref for record in write.put}
        dropped = [ref for ref in lease.entries if ref not in wanted] if write.whole else write.drop
        reason = _reason(write, Reason.DEREGISTERED)
        said = [
            self._follow_entry(lease, record, now)
            for record in write.put
            if not record.entry.owner or record.entry.owner not in self.pods
        ]
        self._supersede(lease, said, now)
        for ref in dropped:
            held = lease.entries.get(ref)
            if held is not None:
                self._let_go(lease, held, reason, now)

    def _follow_entry(self, lease: Lease, record: EntryRecord, now: float) -> Held:
        old = lease.entries.get(record.entry.ref)
        self._order = max(self._order, record.order)
        if old is not None:
            if old.silent != record.silent:
                self._note(old, Reason.SILENT if record.silent else Reason.RECOVERED)
            if old.down != record.down:
                self._note(old, Reason.APPLICATION_DOWN if record.down else Reason.APPLICATION_UP)
        held = self._held(lease, record, old, now)
        self._put(lease, held, old)
        return held

    def _held(self, lease: Lease, record: EntryRecord, old: Held | None, now: float) -> Held:
        unhealthy_after, remove_after = self._patience(lease, record.entry)
        entry = self._kept(record.entry, old)
        return Held(
            entry=entry,
            ref=old.ref if old is not None else entry.ref,
            lease=lease.id,
            kind=lease.kind,
            epoch=record.epoch,
            order=record.order,
            since=record.since,
            term=record.term,
            seen=now,
            unhealthy_after=unhealthy_after,
            remove_after=remove_after,
            down=record.down,
            proven=record.proven,
            silent=record.silent,
            orphan=lease.orphan,
        )

    def _drop(self, lease: Lease, reason: Reason, now: float) -> None:
        """Take a lease away in favour of a later record of it."""
        for held in list(lease.entries.values()):
            self._let_go(lease, held, reason, now)
        self._changed.pop(lease.id, None)
        del self._leases[lease.id]

    def _restore(self, write: LeaseWrite, origin: int, now: float) -> None:
        own = origin == self.ordinal
        lease = Lease(write.id, kind=write.kind, origin=origin, term=write.term, epoch=write.epoch, seen=now)
        lease.n = write.n
        lease.owner, lease.synced = write.owner, write.synced
        lease.orphan = not own
        if write.kind is Kind.OPERATOR:
            self._epoch = max(self._epoch, write.epoch)
        self._leases[write.id] = lease
        for record in write.put:
            if not record.entry.owner or record.entry.owner not in self.pods:
                self._order = max(self._order, record.order)
                old = lease.entries.get(record.entry.ref)
                self._put(lease, self._held(lease, record, old, now), old, Reason.RESTORED)
        if own and not lease.entries:
            self._forget_lease(lease, Reason.RESTORED, now)
            return
        if own:
            self._change_of(lease).whole = True
        self._events.append(LeaseChanged(lease.id, lease.term, Reason.RESTORED))
        self._watch(lease)


_REASONS = {reason.value: reason for reason in Reason}


def _reason(write: LeaseWrite, otherwise: Reason) -> Reason:
    """Return why; another version of the registry may have reasons that are unknown here."""
    return _REASONS.get(write.reason, otherwise)


def _outdates(write: LeaseWrite, origin: int, lease: Lease) -> bool:
    """Whether a record from the past counts rather than what is here: a later one, attached to nobody."""
    if lease.origin == origin:
        return write.version > (lease.term, lease.n)
    return _beats(msgspec.structs.replace(write, attached=False), origin, lease)


def _beats(write: LeaseWrite, origin: int, lease: Lease) -> bool:
    """Whether another replica's record counts rather than the one that is here."""
    held = lease.holder is not None or lease.attached
    mine = theirs = 0
    if lease.kind is Kind.HTTP:
        mine = max((h.order for h in lease.entries.values()), default=0)
        theirs = max((record.order for record in write.put), default=0)
    return (theirs, write.term, True, write.attached, -origin) > (
        mine,
        lease.term,
        not lease.orphan,
        held,
        -lease.origin,
    )
