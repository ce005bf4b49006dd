"""Records: a lease as its owner writes it down, for other replicas, for the disk, and for nobody to change.

A lease is written by one replica only, its *origin*. Every write has a version, ``(term, n)``: the lease's
incarnation, and a number that grows with each write. Beat times are no part of it: whoever takes a lease up,
from a peer or from the disk, begins with a full grace period.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rollbook.model import Entry, EntryRef
from rollbook.names import LeaseId
from rollbook_registry.catalog.leases import Kind

YIELDED: Final = "yielded"
"""The reason of an end that is none: :attr:`~rollbook_registry.catalog.events.Reason.YIELDED`."""


class EntryRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An entry, and what its owner knows about it.

    Attributes:
        order: grows with every registration on any replica (a Lamport clock); of two publishers that speak
            for the same, the newer counts.
        since: ``order`` at its first registration under this lease; who registers again keeps its place.
        term: of the lease when it was entered.
        epoch: of the operator when it entered it.
        down: its publisher says that the application does not work, or does not know yet.
        proven: its publisher has said once whether the application works.
        silent: no beat came for ``unhealthy_after``.
    """

    entry: Entry
    order: int
    since: int
    term: int = 1
    epoch: int = 0
    down: bool = False
    proven: bool = True
    silent: bool = False


class LeaseWrite(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One write of a lease by its owner: everything about the lease, and what changed in its entries.

    Attributes:
        n: grows with every write of the lease, whatever its term.
        owner: UID of the pod that it speaks for, if any.
        epoch: of an operator's lease.
        synced: of an operator's lease: it has entered a complete list.
        attached: whether a session holds it now; of two leases with one id and term, the attached counts.
        whole: ``put`` is all that it holds, rather than what changed.
        put: entries that are new or different.
        drop: names of entries that are gone, in a whole write too: the disk notes them.
        ended: the lease is no more; nothing else matters then.
        successor: of a yielded one, the term of the record that counts instead.
        reason: of what it drops or ends, as a :class:`~rollbook_registry.catalog.events.Reason`'s code.
    """

    id: LeaseId
    kind: Kind
    term: int
    n: int
    owner: str = ""
    epoch: int = 0
    synced: bool = False
    attached: bool = False
    whole: bool = False
    put: list[EntryRecord] = []
    drop: list[EntryRef] = []
    ended: bool = False
    successor: int = 0
    reason: str = ""

    @property
    def yielded(self) -> bool:
        """Whether it ended here because its client went on at another replica, whose record is on its way."""
        return self.ended and self.reason == YIELDED

    @property
    def version(self) -> tuple[int, int]:
        """What a later write is compared by."""
        return (self.term, self.n)


class PodRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A pod that may not speak any more.

    Attributes:
        fenced: it is confirmed gone; else it is terminating.
        age: seconds since that was learnt.
        ips: of a fenced pod, the addresses at which nothing of it answers any more.
    """

    uid: str
    fenced: bool = False
    age: float = 0.0
    ips: list[str] = []
