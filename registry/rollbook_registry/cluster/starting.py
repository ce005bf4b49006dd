"""Starting: how a replica that begins with nothing, or with an old disk, comes by a book to be ready with.

A book that goes back to publishers without a break overrules any disk: a replica that meets a ready peer
takes its book, that peer's copy of its own leases among it, and what of its own disk that copy lacks has
ended. A disk does not overrule a disk: with none but those, everybody's copies add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rollbook_registry.cluster.messages import PODS
from rollbook_registry.cluster.reasons import Rank, Turn, Why

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook.names import LeaseId
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.catalog.records import LeaseWrite, PodRecord
    from rollbook_registry.cluster.following import Following
    from rollbook_registry.cluster.membership import Membership, Peer
    from rollbook_registry.cluster.orphans import Orphans
    from rollbook_registry.cluster.outbox import Outbox
    from rollbook_registry.cluster.timers import DistroTimings


class Saved(NamedTuple):
    """What the disk has from this replica's last life: leases with their origins, and pods."""

    writes: list[tuple[int, LeaseWrite]]
    pods: list[PodRecord]


class _Taking(NamedTuple):
    """The book of a peer that is being taken over.

    Attributes:
        boot: of the peer's life.
        rank: what its book is worth; a provisional one is only added to what our disk has.
        origins: what is still to be pulled.
    """

    source: int
    boot: str
    rank: Rank
    origins: list[int]


class Starting:
    """The way to a living book.

    Args:
        members: who is there.
        following: the streams.
        orphans: what others owned who are not there.
        outbox: for news.
        book: the catalog.
        timings: timers.
        saved: what the disk has.
        now: attentive time at which this replica starts.

    Attributes:
        why: why it is ready, or is not.
        on_rank: called when its book is worth more than before.
    """

    def __init__(
        self,
        members: Membership,
        following: Following,
        orphans: Orphans,
        *,
        outbox: Outbox,
        book: Catalog,
        timings: DistroTimings,
        saved: Saved | None,
        now: float,
        on_rank: Callable[[float], None],
    ) -> None:
        self._members = members
        self._following = following
        self._orphans = orphans
        self._outbox = outbox
        self._book = book
        self._timings = timings
        self._saved = saved
        self._on_rank = on_rank
        self._listening_since = self._ready_since = self._restored_at = now
        self._from_disk = False
        self._told_of_ours = False
        """Whether a ready peer has said what our own leases were."""
        self._added: set[int] = set()
        """Provisional peers whose copies have been added to what our disk had."""
        self._taking: _Taking | None = None
        self.why = Why.LISTENING
        following.rank = Rank.EMPTY if saved is None else Rank.SAVED
        following.on_pulled = self._pulled
        if saved is not None:
            # Both sets only grow: whatever else turns out about the disk, these are true.
            book.mark_pods(saved.pods, now)
        if members.members == {members.ordinal}:
            self._restore(now)
            self._become(Rank.READY, Why.ALONE, now)

    @property
    def rank(self) -> Rank:
        """What this replica's book is worth."""
        return self._following.rank

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.rank is Rank.READY:
            return
        if self._taking is not None:
            self._check_taking(now)
        elif self.rank.serves:
            self._mature(now)
        else:
            self._find(now)

    # --- finding a book --------------------------------------------------------------------------------

    def _links(self, now: float) -> list[Peer]:
        return [self._members.peers[o] for o in self._members.links(now)]

    def _find(self, now: float) -> None:
        """Find a book to be ready with."""
        links = self._links(now)
        best = max((p for p in links if p.rank.serves), key=lambda p: (p.rank, -p.ordinal), default=None)
        if best is not None and (best.rank is Rank.READY or self.rank is Rank.EMPTY):
            self._take(best, now)
        elif now - self._listening_since < self._timings.snapshot_after:
            pass
        elif self.rank is Rank.SAVED:
            self._restore(now)
            # What others have of ours, from their disks or from before we ended, is as good as our disk.
            more = [p for p in links if p.rank.serves and p.ordinal not in self._added]
            if more:
                self._take(more[0], now)
            else:
                self._become(Rank.PROVISIONAL, Why.FROM_DISK, now)
        elif any(p.rank is Rank.SAVED for p in links):
            self.why = Why.WAITING_FOR_DISK
        elif self._members.is_majority({self._members.ordinal, *(p.ordinal for p in links)}):
            self._become(Rank.PROVISIONAL, Why.ALL_BOOKLESS, now)
        else:
            self.why = Why.NO_MAJORITY

    def _mature(self, now: float) -> None:
        """A book from disk, or begun empty, becomes a living one: with time, or by a peer that has one."""
        if now - self._ready_since >= self._timings.provisional:
            self._become(Rank.READY, Why.SETTLED, now)
            return
        for peer in self._links(now):
            if peer.rank is Rank.READY and peer.ordinal not in self._following.pulls:
                self._take(peer, now)
                return

    def _restore(self, now: float) -> None:
        """Begin with what the disk has, except where a peer whose book lives has already said what is so."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        # A set of which a peer has spoken is as that peer has it: two records of one version may differ.
        known = set(self._following.streams)
        if self._told_of_ours:
            known.add(self._members.ordinal)
        writes = [(origin, write) for origin, write in saved.writes if origin not in known]
        self._restored_at = now
        self._from_disk = True
        self._book.restore(writes, (), now)
        for origin, write in writes:
            if origin != self._members.ordinal:
                self._following.keep(origin, write)

    def _become(self, rank: Rank, why: Why, now: float) -> None:
        if not self.rank.serves:
            self._ready_since = now
        self._following.rank = rank
        self.why = why
        self._saved = None
        self._outbox.tell(Turn.READY, self._members.ordinal, rank)
        self._on_rank(now)

    # --- taking a peer's -------------------------------------------------------------------------------

    def _take(self, peer: Peer, now: float) -> None:
        """Take over a peer's book: first who may not speak, then our own leases, then the others'."""
        others = sorted(o for o in peer.streams if o != self._members.ordinal)
        adding = self.rank is Rank.SAVED and peer.rank is not Rank.READY
        origins = [PODS, self._members.ordinal] + ([] if self.rank.serves or adding else others)
        self._taking = _Taking(peer.ordinal, peer.boot, peer.rank, origins)
        if not self.rank.serves:
            self.why = Why.PULLING
        self._following.begin_mine()
        self._following.pull(peer.ordinal, PODS, now)

    def _check_taking(self, now: float) -> None:
        taking = self._taking
        if taking is None:
            return
        lost = taking.source not in self._following.pulls
        if lost or self._members.peers[taking.source].boot != taking.boot:
            self._taking = None  # try another, or the same again
            self._following.mine = None
            if not self.rank.serves:
                self.why = Why.LISTENING
                self._listening_since = max(self._listening_since, now - self._timings.snapshot_after / 2)

    def _pulled(self, origin: int, source: int, now: float) -> None:
        taking = self._taking
        if taking is None or taking.source != source or origin != taking.origins[0]:
            return
        if origin == self._members.ordinal:
            self._take_ours(taking.rank, now)
        del taking.origins[0]
        if taking.origins:
            self._following.pull(source, taking.origins[0], now)
            return
        self._taking = None
        if self.rank is Rank.SAVED and taking.rank is not Rank.READY:
            self._added.add(source)
            return
        for stream in [s for s in self._following.streams.values() if not s.boot]:
            if stream.origin not in self._members.peers[source].streams:
                self._orphans.forget(stream, now)  # on our disk only: the others have hidden it long ago
        self._become(taking.rank, Why.FROM_PEER, now)

    def _take_ours(self, rank: Rank, now: float) -> None:
        """A peer's copy of our own set has come: it says what our leases were when we were last heard."""
        mine, self._following.mine = self._following.mine, None
        if mine is None:
            return
        ours = self._members.ordinal
        self._book.restore([(ours, copy.record()) for copy in mine.copies.values()], (), now)
        if rank is not Rank.READY:
            return
        self._told_of_ours = True
        if self._from_disk:
            unheard = [id_ for id_ in self._book.own() if id_ not in mine.copies and self._unheard(id_)]
            if unheard:
                self._book.overrule(unheard, now)
                self._outbox.tell(Turn.DISK_OVERRULED, ours, len(unheard))

    def _unheard(self, id_: LeaseId) -> bool:
        """Whether an own lease came from our disk, and its client has not been heard since."""
        lease = self._book.lease(id_)
        return (
            lease is not None
            and lease.holder is None
            and lease.seen <= self._restored_at
            and all(held.seen <= self._restored_at for held in lease.entries.values())
        )
