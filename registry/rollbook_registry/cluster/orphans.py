"""Orphans: leases whose owner is lost. They stay as last known, until taken up, or until their time is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook_registry.cluster.reasons import Turn

if TYPE_CHECKING:
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.cluster.following import Following
    from rollbook_registry.cluster.membership import Membership
    from rollbook_registry.cluster.outbox import Outbox
    from rollbook_registry.cluster.stream import Stream
    from rollbook_registry.cluster.timers import DistroTimings


class Orphans:
    """Who is lost, and what becomes of what they owned.

    Args:
        members: who is there.
        following: the streams.
        outbox: for news.
        book: the catalog.
        timings: timers.
        hide_share: in a minority orphans are hidden only while they are at most this share of the book.
    """

    def __init__(
        self,
        members: Membership,
        following: Following,
        *,
        outbox: Outbox,
        book: Catalog,
        timings: DistroTimings,
        hide_share: float,
    ) -> None:
        self._members = members
        self._following = following
        self._outbox = outbox
        self._book = book
        self._timings = timings
        self._hide_share = hide_share
        self._majority_since: float | None = None
        self._minority_since: float | None = None
        self._cut_off = False
        self._look_again = 0.0

    def tick(self, now: float) -> None:
        """Time has passed."""
        self.survey(now)
        self._count(now)
        self._hide(now)

    def survey(self, now: float) -> None:
        """Find out who is there, and mark the leases of those who are not."""
        alive = self._members.alive(now)
        for peer in self._members.peers.values():
            present = peer.ordinal in alive or self._members.hears(peer.ordinal, now)
            if present != peer.present:
                peer.present = present
                self._outbox.tell(Turn.PEER_FOUND if present else Turn.PEER_LOST, peer.ordinal)
        for stream in self._following.streams.values():
            vouched = self._vouched(stream.origin, stream.boot, now)
            if stream.orphaned is None and not vouched:
                stream.orphaned = now
                self._book.orphan(stream.origin, now)
                self._outbox.tell(Turn.ORPHANED, stream.origin, len(stream.copies))
            elif stream.orphaned is not None and vouched and stream.complete:
                stream.orphaned = None
                self._book.adopted(stream.origin, now)
                self._outbox.tell(Turn.ADOPTED, stream.origin, len(stream.copies))

    def forget(self, stream: Stream, now: float) -> None:
        """Leave out what a replica owned that stayed away."""
        ids = self._book.foreign(stream.origin)
        self._book.forget(ids, origin=stream.origin, now=now)
        del self._following.streams[stream.origin]
        self._outbox.tell(Turn.HIDDEN, stream.origin, len(ids))

    def _vouched(self, origin: int, boot: str, now: float) -> bool:
        """Whether somebody hears the very life of an origin that a stream is about."""
        if not boot:
            return False
        if self._members.hears(origin, now):
            return self._members.peers[origin].boot == boot
        peer = self._members.peers.get(origin)
        if peer is not None and peer.left:
            return False
        return any(
            (position := voucher.streams.get(origin)) is not None and position.boot == boot
            for voucher in self._members.vouchers(origin, now)
        )

    def _count(self, now: float) -> None:
        """Find out whether a majority is there, and since when, or since when not."""
        if self._members.is_majority(self._members.serving(now)):
            self._minority_since = None
            if self._majority_since is None:
                self._majority_since = now
            return
        self._majority_since = None
        if self._minority_since is None:
            self._minority_since = now
            self._cut_off = False
        if not self._cut_off and now - self._minority_since >= self._timings.cut_off_after:
            self._cut_off = True
            if self._following.rank.serves:
                self._outbox.tell(Turn.CUT_OFF, self._members.ordinal)

    def _hide(self, now: float) -> None:
        """Hide orphans that nobody took up in time.

        In a majority the time runs only while it is there: whoever was cut off for long, and now hears the
        first of the others again, must have the time to hear from the rest before it gives them up.
        """
        after, since = self._timings.hide_after, self._majority_since or 0.0
        due = [
            s
            for s in self._following.streams.values()
            if s.orphaned is not None and now - max(since, s.orphaned) >= after
        ]
        if not due:
            return
        if self._majority_since is None:
            if now < self._look_again:
                return
            left = sum(len(self._book.foreign(s.origin)) for s in due)
            if left > self._hide_share * self._book.leases:
                # So many at once did not die: it is we who are cut off. They stay as last known.
                self._look_again = now + self._timings.digest
                self._outbox.tell(Turn.HIDING_HELD_BACK, self._members.ordinal, left)
                return
        for stream in due:
            self.forget(stream, now)
