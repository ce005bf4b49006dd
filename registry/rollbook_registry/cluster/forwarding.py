"""Forwarding: beats of plain HTTP clients, from the replica that they reach to the one that owns their lease.

A client without a connection may come to any replica. Rendezvous hashing over those that are there says who
owns its lease; the others pass its beats on, a batch a tick. That one takes it up under the next term if it
is not its own yet, so a change of view moves leases with their next beats, and nothing else has to happen.
What a client *writes* is not passed on: whoever gets it takes the lease up and answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook.problems import Problem
from rollbook_registry.cluster import rendezvous
from rollbook_registry.cluster.messages import Forward, HttpBeat
from rollbook_registry.cluster.reasons import Turn

if TYPE_CHECKING:
    from rollbook.model import EntryRef
    from rollbook.names import LeaseId
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.cluster.membership import Membership
    from rollbook_registry.cluster.outbox import Outbox


class Forwarding:
    """Beats on their way.

    Args:
        members: who is there.
        outbox: where batches go.
        book: the catalog.
    """

    def __init__(self, members: Membership, *, outbox: Outbox, book: Catalog) -> None:
        self._members = members
        self._outbox = outbox
        self._book = book
        self._waiting: dict[tuple[int, bool], dict[HttpBeat, None]] = {}
        """By the peer that they go to, and whether they have been passed on before."""

    def owner(self, lease: LeaseId, now: float) -> int:
        """Return the replica that is to own a plain HTTP client's lease."""
        return rendezvous.owner(lease, self._members.serving(now))

    def beat(self, lease: LeaseId, ref: EntryRef, *, term: int, now: float) -> None:
        """A client beats here.

        Raises:
            Problem: as :meth:`~rollbook_registry.catalog.Catalog.beat_http`.
        """
        known = self._book.lease(lease)
        owner = self.owner(lease, now)
        held = known.entries.get(ref) if known is not None else None
        if (
            owner == self._members.ordinal
            or known is None
            or held is None
            or known.origin == self._members.ordinal
            or 0 < term < held.term
        ):
            # A beat that is passed on counts here too as long as the lease is ours; what is wrong with one
            # is for the book to say.
            self._book.beat_http(lease, ref, term=term, now=now)
        if owner != self._members.ordinal:
            self._route(HttpBeat(lease, ref), now, sender=self._members.ordinal, relayed=False)

    def received(self, forward: Forward, now: float, *, sender: int) -> None:
        """A peer has passed beats on."""
        for beat in forward.beats:
            self._route(beat, now, sender=sender, relayed=forward.relayed)

    def flush(self) -> None:
        """Send what has come together."""
        waiting, self._waiting = self._waiting, {}
        for (to, relayed), batch in waiting.items():
            self._outbox.post(to, Forward(beats=list(batch), relayed=relayed))

    def _route(self, beat: HttpBeat, now: float, *, sender: int, relayed: bool) -> None:
        """Bring a beat to the replica that is to own its lease; it may go through one other."""
        owner = self.owner(beat.lease, now)
        way = (
            None if relayed or owner in {self._members.ordinal, sender} else self._members.way_to(owner, now)
        )
        if way is not None and way != sender:
            self._waiting.setdefault((way, sender != self._members.ordinal), {})[beat] = None
            return
        try:
            self._book.beat_http(beat.lease, beat.ref, term=0, now=now)
        except Problem:
            # It has ended here, or is not here yet; the client's next beat finds out which.
            self._outbox.tell(Turn.BEAT_UNKNOWN, sender)
