"""Leases: one publisher's presence, and the entries that it holds."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from rollbook.model import Entry, EntryRef
from rollbook.names import LeaseId, url_host

if TYPE_CHECKING:
    from collections.abc import Iterable

HTTP_LEASES: Final = "http/"
"""What the ids of plain HTTP clients' leases begin with."""

CHECKER_LEASES: Final = "checker/"
"""What the ids of the registry's own checkers begin with (``checker/ordinal``)."""

DEFINITIONS: Final = LeaseId("definitions")
"""The lease that holds the persistent instances, as the store has them."""

NOTHING: Final[frozenset[EntryRef]] = frozenset()
"""Of what is down, for most leases; an empty set of its own for each would be larger than the lease."""


class Kind(StrEnum):
    """What sort of publisher holds a lease."""

    SESSION = "session"
    """A sidecar or an SDK with a long connection."""
    HTTP = "http"
    """A plain HTTP client; it has no connection, and beats each of its instances by itself."""
    OPERATOR = "operator"
    """Speaks for Kubernetes: settings and readiness."""
    CHECKER = "checker"
    """A registry's own checks of persistent instances."""
    DEFINITIONS = "definitions"
    """The store: what has been defined to be there. Every replica reads it there by itself."""


def http_lease(ref: EntryRef) -> LeaseId:
    """Return the lease of a plain HTTP client's instance.

    Each has one of its own: registrations of two services by one address may reach two replicas at the same
    moment, and of two records of one lease only one counts.
    """
    where = f"{url_host(ref.ip)}:{ref.port}/{ref.cluster}/{ref.namespace}/{ref.group}@@{ref.service}"
    return LeaseId(f"{HTTP_LEASES}{where}/{ref.owner}" if ref.owner else f"{HTTP_LEASES}{where}")


def check_unreserved(id_: LeaseId) -> bool:
    """Say whether a client may give its lease this id."""
    return id_ != DEFINITIONS and not id_.startswith((HTTP_LEASES, CHECKER_LEASES))


class Held(msgspec.Struct, gc=False, kw_only=True, eq=False):
    """An entry as its lease holds it.

    Attributes:
        ref: its name; one object, wherever it is a key.
        order: grows with every registration on any replica; of two that speak for the same, the newer counts.
        since: ``order`` at its first registration under its lease.
        term: of the lease when it was entered; a plain HTTP client has one for each of its instances.
        seen: attentive time of the last sign of life for this entry alone.
        unhealthy_after: seconds of silence after which it is not alive.
        remove_after: seconds of silence after which it is out.
        down: its publisher says that the application does not work, or does not know yet.
        proven: its publisher has said once whether the application works.
        silent: it was silent for ``unhealthy_after``.
        orphan: the replica that owns its lease is lost; it stays as last known.
    """

    entry: Entry
    ref: EntryRef
    lease: LeaseId
    kind: Kind
    epoch: int
    order: int
    since: int
    term: int
    seen: float
    unhealthy_after: float
    remove_after: float
    down: bool = False
    proven: bool = True
    silent: bool = False
    orphan: bool = False

    @property
    def alive(self) -> bool:
        """What its publisher's beats and checks say."""
        return not (self.silent or self.down)

    @property
    def patience(self) -> float:
        """Seconds of silence after which something happens to it next."""
        return self.remove_after if self.silent else min(self.unhealthy_after, self.remove_after)


class Lease(msgspec.Struct, gc=False, eq=False):
    """One publisher's presence.

    Attributes:
        origin: the replica that owns it, and alone writes it.
        term: the incarnation; see ``docs/architecture.md``.
        n: grows with every write, whatever the term.
        holder: the session that it is attached to; ``None`` while it is detached or plain HTTP.
        attached: of another replica's lease: whether a session there holds it.
        orphan: its replica is lost.
        synced: of an operator: it has entered a complete list.
        seen: attentive time of the last beat.
        owner: the pod that it speaks for, once it has entered something for one.
        down: what the last beat named as not working, to see at a glance that nothing changed.
        quiet: how many of its entries are silent.
        protected: it is overdue, and only protection keeps it.
    """

    # The collector does not look into it: who holds a lease lets go of it when the session ends.
    id: LeaseId
    kind: Kind
    origin: int
    term: int
    epoch: int
    seen: float
    n: int = 0
    holder: object | None = None
    attached: bool = False
    orphan: bool = False
    synced: bool = False
    owner: str = ""
    entries: dict[EntryRef, Held] = {}
    down: frozenset[EntryRef] = NOTHING
    quiet: int = 0
    protected: bool = False

    @property
    def replicated(self) -> bool:
        """Whether other replicas hear of it from its owner."""
        return self.kind is not Kind.DEFINITIONS

    @property
    def expires(self) -> bool:
        """Whether silence ends it: the registry's own leases are never silent."""
        return self.kind is not Kind.DEFINITIONS and self.kind is not Kind.CHECKER

    def last_seen(self, held: Held) -> float:
        """When an entry last gave a sign of life: by a beat of the whole lease, or its own."""
        return max(self.seen, held.seen)

    def deadline(self, entries: Iterable[Held]) -> float | None:
        """When the first of some of its entries will have been silent for too long; ``None`` without any."""
        first = None
        for held in entries:
            at = self.last_seen(held) + held.patience
            if first is None or at < first:
                first = at
        return first

    def overdue(self, now: float) -> bool:
        """Whether one of its entries has been silent for so long that it has to go."""
        return self.expires and any(now - self.last_seen(h) >= h.remove_after for h in self.entries.values())
