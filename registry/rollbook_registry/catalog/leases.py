"""Leases: one publisher's presence, and the entries that it holds."""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from rollbook.model import Entry, EntryRef
from rollbook.names import LeaseId

HTTP_LEASES: Final = "http/"
"""What the ids of plain HTTP clients' leases begin with (``http/ip:port``); no session may take one."""


class Kind(Enum):
    """What sort of publisher holds a lease."""

    SESSION = "session"
    """A sidecar or an SDK with a long connection."""
    HTTP = "http"
    """A plain HTTP client; it has no connection, and beats each of its instances by itself."""
    OPERATOR = "operator"
    """Speaks for Kubernetes: settings and readiness."""


class Held(msgspec.Struct, gc=False, kw_only=True, eq=False):
    """An entry as its lease holds it.

    Attributes:
        order: grows with every registration; of two that speak for the same, the newer counts.
        term: of the lease when it was entered; a plain HTTP client has one for each of its instances.
        seen: attentive time of the last sign of life for this entry alone.
        unhealthy_after: seconds of silence after which it is not alive.
        remove_after: seconds of silence after which it is out.
        down: its publisher says that the application does not work, or does not know yet.
        proven: its publisher has said once whether the application works.
        silent: it was silent for ``unhealthy_after``.
    """

    entry: Entry
    lease: LeaseId
    operator: bool
    epoch: int
    order: int
    term: int
    seen: float
    unhealthy_after: float
    remove_after: float
    down: bool = False
    proven: bool = True
    silent: bool = False

    @property
    def alive(self) -> bool:
        """What its publisher's beats and checks say."""
        return not (self.silent or self.down)

    @property
    def patience(self) -> float:
        """Seconds of silence after which something happens to it next."""
        return self.remove_after if self.silent else min(self.unhealthy_after, self.remove_after)


class Lease:
    """One publisher's presence.

    Attributes:
        term: the incarnation; see ``docs/architecture.md``.
        holder: the session that it is attached to; ``None`` while it is detached or plain HTTP.
        seen: attentive time of the last beat.
        owner: the pod that it speaks for, once it has entered something for one.
        down: what the last beat named as not working, to see at a glance that nothing changed.
        quiet: how many of its entries are silent.
    """

    __slots__ = ("down", "entries", "epoch", "holder", "id", "kind", "owner", "quiet", "seen", "term")

    def __init__(self, id_: LeaseId, *, kind: Kind, term: int, epoch: int, seen: float) -> None:
        self.id = id_
        self.kind = kind
        self.term = term
        self.epoch = epoch
        self.holder: object | None = None
        self.seen = seen
        self.owner = ""
        self.entries: dict[EntryRef, Held] = {}
        self.down: frozenset[EntryRef] = frozenset()
        self.quiet = 0

    def last_seen(self, held: Held) -> float:
        """When an entry last gave a sign of life: by a beat of the whole lease, or its own."""
        return max(self.seen, held.seen)

    def deadline(self) -> float | None:
        """When the first of its entries will have been silent for too long; ``None`` with no entries."""
        return min((self.last_seen(held) + held.patience for held in self.entries.values()), default=None)
