"""Distro: the state machine that keeps this replica's book and its peers' the same.

Pure: it is told what happens (:meth:`Distro.receive`, :meth:`Distro.tick`, :meth:`Distro.written`, ...), it
changes the catalog by its commands, and leaves messages behind, which :meth:`Distro.take_sends` hands out.
The rules and their reasons are on the page ``docs/distro.md``. This module has the greetings and pings, and
hands everything else to the part whose concept it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook_registry.cluster.following import Following
from rollbook_registry.cluster.forwarding import Forwarding
from rollbook_registry.cluster.membership import Membership
from rollbook_registry.cluster.messages import (
    PROTO,
    Change,
    Digest,
    Forward,
    Hello,
    Leave,
    Marks,
    Part,
    Ping,
    Pull,
    Refusal,
)
from rollbook_registry.cluster.orphans import Orphans
from rollbook_registry.cluster.outbox import Outbox
from rollbook_registry.cluster.reasons import Readiness, Refused, Turn, Why
from rollbook_registry.cluster.starting import Starting

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Iterable

    from rollbook.model import EntryRef
    from rollbook.names import LeaseId
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.catalog.records import LeaseWrite, PodRecord
    from rollbook_registry.cluster.membership import Peer
    from rollbook_registry.cluster.messages import AnyMessage
    from rollbook_registry.cluster.outbox import Send, Told
    from rollbook_registry.cluster.reasons import Rank
    from rollbook_registry.cluster.starting import Saved
    from rollbook_registry.cluster.timers import DistroTimings


class Distro:
    """One replica's side of the protocol.

    Args:
        ordinal: which replica this is; its identity, whatever its address.
        boot: a random name of this life.
        members: ordinals of all replicas that there should be.
        book: the catalog.
        timings: timers and bounds.
        hide_share: in a minority orphans are hidden only while they are at most this share of the book.
        rng: names pulls, and spreads the digest rounds.
        now: attentive time at which it starts.
        saved: what the disk has.
    """

    def __init__(
        self,
        *,
        ordinal: int,
        boot: str,
        members: frozenset[int],
        book: Catalog,
        timings: DistroTimings,
        hide_share: float,
        rng: random.Random,
        now: float,
        saved: Saved | None = None,
    ) -> None:
        self.ordinal = ordinal
        self.boot = boot
        self._book = book
        self._timings = timings
        self._leaving = False
        self._replaced: float | None = None
        self._next_ping = now
        self._next_digest = now + timings.digest * (0.5 + rng.random())
        self.members = Membership(ordinal=ordinal, members=members, lost_after=timings.lost_after)
        self.outbox = Outbox(self.members)
        self.following = Following(
            self.members, boot=boot, book=book, timings=timings, outbox=self.outbox, rng=rng
        )
        self.forwarding = Forwarding(self.members, outbox=self.outbox, book=book)
        self.orphans = Orphans(
            self.members,
            self.following,
            outbox=self.outbox,
            book=book,
            timings=timings,
            hide_share=hide_share,
        )
        self.starting = Starting(
            self.members,
            self.following,
            self.orphans,
            outbox=self.outbox,
            book=book,
            timings=timings,
            saved=saved,
            now=now,
            on_rank=self._ping_all,
        )

    # --- reading ---------------------------------------------------------------------------------------

    @property
    def rank(self) -> Rank:
        """What this replica's book is worth. The list that it shows is settled when it is ``READY``."""
        return self.following.rank

    @property
    def counts(self) -> Counter[Turn]:
        """How often each turn has happened."""
        return self.outbox.counts

    def readiness(self, now: float) -> Readiness:
        """Say whether clients are to be answered, and why or why not."""
        if self._leaving:
            return Readiness(ready=False, why=Why.LEAVING)
        if self._replaced is not None and now - self._replaced < self._timings.lost_after:
            return Readiness(ready=False, why=Why.REPLACED)
        return Readiness(self.rank.serves, self.starting.why)

    def take_sends(self) -> list[Send]:
        """Return the messages to be sent now, in order."""
        return self.outbox.take_sends()

    def take_told(self) -> list[Told]:
        """Return what has happened since the last call, for the log."""
        return self.outbox.take_told()

    # --- connections -----------------------------------------------------------------------------------

    def up(self, ordinal: int, now: float) -> None:
        """A connection with a peer stands."""
        peer = self.members.peer(ordinal)
        peer.connected = True
        self._greet(peer)
        self._ping(peer, now)

    def down(self, ordinal: int) -> None:
        """A connection is gone. The peer is lost only when it has been silent for long enough."""
        self.members.peer(ordinal).connected = False
        self.following.give_up(ordinal)

    # One arm a message.
    def receive(self, ordinal: int, message: AnyMessage, now: float) -> None:  # noqa: C901, PLR0912
        """A peer has sent something."""
        if ordinal == self.ordinal:
            return
        peer = self.members.peer(ordinal)
        match message:
            case Hello():
                self._greeted(peer, message, now)
            case Refusal(reason=reason):
                self.outbox.tell(Turn.REFUSED_BY_PEER, ordinal)
                if reason is Refused.ORDINAL_TAKEN:
                    self._replaced = now
            case Ping():
                self._pinged(peer, message, now)
            case _ if not peer.boot or peer.left:
                pass  # who has not greeted is nobody
            case Change():
                if message.boot == peer.boot:
                    self.following.changed(peer, message, now)
            case Digest():
                if message.boot == peer.boot:
                    self.following.compare(peer, message, now)
            case Marks(pods=pods):
                self._book.mark_pods(pods, now)
            case Pull():
                self.following.asked(peer, message, now)
            case Part():
                self.following.answered(peer, message, now)
            case Forward():
                self.forwarding.received(message, now, sender=ordinal)
            case Leave(boot=boot):
                if boot == peer.boot:
                    peer.left = True
                    self.following.give_up(ordinal)
                    self.outbox.tell(Turn.PEER_LEFT, ordinal)
                    self.orphans.survey(now)

    # --- what happens here -----------------------------------------------------------------------------

    def written(self, writes: list[LeaseWrite], pods: Iterable[PodRecord], now: float) -> None:
        """The catalog has written own leases, or marked pods."""
        if not self.members.peers:
            return
        news = list(pods)
        if news:
            self.outbox.send(Marks(pods=news))
        for change in self.following.write(writes, now):
            self.outbox.send(change)

    def beat_http(self, lease: LeaseId, ref: EntryRef, *, term: int, now: float) -> None:
        """A plain HTTP client beats here. Whose lease it is to be hears of it.

        Raises:
            Problem: as :meth:`~rollbook_registry.catalog.Catalog.beat_http`.
        """
        self.forwarding.beat(lease, ref, term=term, now=now)

    def leave(self) -> None:
        """This replica is about to end: others need not wait for its silence."""
        self._leaving = True
        self.outbox.send(Leave(boot=self.boot))

    def tick(self, now: float) -> None:
        """Time has passed. To be called at least every half ``ping``."""
        self.orphans.tick(now)
        self.starting.tick(now)
        self.following.tick(now)
        self.forwarding.flush()
        if now >= self._next_ping:
            self._next_ping = now + self._timings.ping
            for peer in self.members.peers.values():
                if not peer.knows_us:
                    self._greet(peer)
                peer.knows_us = False
            self._ping_all(now)
        if now >= self._next_digest:
            self._next_digest = now + self._timings.digest
            if self.rank.serves and not self._leaving:
                self.outbox.send(self.following.digest())

    # --- greetings and pings ---------------------------------------------------------------------------

    def _greet(self, peer: Peer) -> None:
        self.outbox.post(peer.ordinal, Hello(proto=PROTO, ordinal=self.ordinal, boot=self.boot))

    def _greeted(self, peer: Peer, hello: Hello, now: float) -> None:
        peer.refused = self._refusal(peer, hello, now)
        if peer.refused is not None:
            self.outbox.tell(Turn.PEER_REFUSED, peer.ordinal)
            detail = (
                f"ordinal {hello.ordinal}, protocol {hello.proto}; {PROTO} is spoken here, and one next to it"
            )
            self.outbox.post(peer.ordinal, Refusal(reason=peer.refused, detail=detail))
            return
        if peer.boot != hello.boot:
            if peer.boot:
                self.outbox.tell(Turn.PEER_REBOOTED, peer.ordinal)
            self.following.give_up(peer.ordinal)
            peer.begin(hello.boot)
            self._greet(peer)
        self._ping(peer, now)

    def _refusal(self, peer: Peer, hello: Hello, now: float) -> Refused | None:
        """Why a greeting is not accepted, if it isn't."""
        if hello.ordinal != peer.ordinal:
            return Refused.WRONG_ORDINAL
        if hello.proto < PROTO - 1:
            return Refused.PROTO_TOO_OLD
        if hello.proto > PROTO + 1:
            return Refused.PROTO_TOO_NEW
        if peer.boot not in {"", hello.boot} and self.members.hears(peer.ordinal, now):
            return Refused.ORDINAL_TAKEN
        return None

    def _ping_all(self, now: float) -> None:
        for peer in self.members.peers.values():
            self._ping(peer, now)

    def _ping(self, peer: Peer, now: float) -> None:
        if self._leaving:
            return
        self.outbox.post(
            peer.ordinal,
            Ping(
                boot=self.boot,
                to=peer.boot,
                rank=self.rank,
                hears=[o for o in self.members.peers if self.members.hears(o, now)],
                links=self.members.links(now),
                streams=self.following.positions(),
                pods=self._book.pods.digest,
            ),
        )

    def _pinged(self, peer: Peer, ping: Ping, now: float) -> None:
        if ping.to == self.boot:
            peer.knows_us = True
            self._replaced = None
        else:
            self._greet(peer)
        if ping.boot != peer.boot or peer.left:
            # Our next ping names the boot that we know, which asks for a greeting. Nothing is answered at
            # once: two that refuse each other would do so for ever.
            return
        peer.pinged(ping, now)
        if ping.pods == self._book.pods.digest:
            peer.pods_differ = None
        elif peer.pods_differ is None:
            # At once when it has come back; else only if that stays, for news may be on its way.
            peer.pods_differ = now if not peer.present else now + self._timings.digest
        if not peer.present:
            self.orphans.survey(now)
        self.following.catch_up(now)
