"""Distro: the state machine that keeps this replica's book and its peers' the same.

Pure: it is told what happens (:meth:`Distro.receive`, :meth:`Distro.tick`, :meth:`Distro.written`, ...), it
changes the catalog by its commands, and leaves messages behind, which :meth:`Distro.take_sends` hands out.
The rules and their reasons are on the page ``docs/distro.md``.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.problems import Problem
from rollbook_registry.cluster import rendezvous
from rollbook_registry.cluster.following import Following
from rollbook_registry.cluster.membership import Membership
from rollbook_registry.cluster.messages import (
    PODS,
    PROTO,
    Change,
    Digest,
    Forward,
    Hello,
    HttpBeat,
    Leave,
    Marks,
    Part,
    Ping,
    Pull,
    Refusal,
)
from rollbook_registry.cluster.reasons import Rank, Readiness, Refused, Turn, Why

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from rollbook.model import EntryRef
    from rollbook.names import LeaseId
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.catalog.records import LeaseWrite, PodRecord
    from rollbook_registry.cluster.membership import Peer
    from rollbook_registry.cluster.messages import AnyMessage
    from rollbook_registry.cluster.stream import Stream
    from rollbook_registry.cluster.timers import DistroTimings

MAX_TOLD: Final = 1000
"""Turns that wait to be logged; beyond it the oldest are only counted."""


class Send(NamedTuple):
    """A message to be sent; encode it once for all of them."""

    to: tuple[int, ...]
    message: AnyMessage


class Told(NamedTuple):
    """Something happened: what, to which replica, and how many it was about."""

    turn: Turn
    ordinal: int
    number: int


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


class Distro:
    """One replica's side of the protocol.

    Args:
        ordinal: which replica this is; its identity, whatever its address.
        boot: a random name of this life.
        members: ordinals of all replicas that there should be.
        book: the catalog.
        timings: timers and bounds.
        hide_share: in a minority orphans are hidden only while they are at most this share of the book.
        rng: spreads the digest rounds.
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
        self.members = Membership(ordinal=ordinal, members=members, lost_after=timings.lost_after)
        self.counts: Counter[Turn] = Counter()
        self._book = book
        self._timings = timings
        self._hide_share = hide_share
        self._sends: list[Send] = []
        self._told: deque[Told] = deque(maxlen=MAX_TOLD)
        self._beats: dict[tuple[int, bool], dict[HttpBeat, None]] = {}
        self._why = Why.LISTENING
        self._leaving = False
        self._replaced: float | None = None
        self._started = self._ready_since = self._restored = now
        self._next_ping = now
        self._next_digest = now + timings.digest * (0.5 + rng.random())
        self._held_back = now
        self._majority_since: float | None = None
        self._minority_since: float | None = None
        self._cut_off = False
        self._taking: _Taking | None = None
        self._saved = saved
        self._from_disk = self._told_mine = False
        self._merged: set[int] = set()
        self.following = Following(
            self.members,
            boot=boot,
            book=book,
            timings=timings,
            rng=rng,
            post=self._post,
            tell=self._tell,
        )
        self.following.on_pulled = self._pulled
        self.rank = Rank.EMPTY if saved is None else Rank.SAVED
        if saved is not None:
            # Both sets only grow: whatever else turns out about the disk, these are true.
            book.mark_pods(saved.pods, now)
        if self.members.members == {ordinal}:
            self._restore(now)
            self._become(Rank.READY, Why.ALONE, now)

    # --- reading ---------------------------------------------------------------------------------------

    @property
    def rank(self) -> Rank:
        """What this replica's book is worth."""
        return self.following.rank

    @rank.setter
    def rank(self, rank: Rank) -> None:
        self.following.rank = rank

    def readiness(self, now: float) -> Readiness:
        """Say whether clients are to be answered, and why or why not."""
        if self._leaving:
            return Readiness(ready=False, why=Why.LEAVING)
        if self._replaced is not None and now - self._replaced < self._timings.lost_after:
            return Readiness(ready=False, why=Why.REPLACED)
        return Readiness(self.rank.serves, self._why)

    def take_sends(self) -> list[Send]:
        """Return the messages to be sent now, in order."""
        taken, self._sends = self._sends, []
        return taken

    def take_told(self) -> list[Told]:
        """Return what has happened since the last call, for the log."""
        taken = list(self._told)
        self._told.clear()
        return taken

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
                self._tell(Turn.REFUSED_BY_PEER, ordinal, 1)
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
                for beat in message.beats:
                    self._route(beat, now, sender=ordinal, relayed=message.relayed)
            case Leave(boot=boot):
                if boot == peer.boot:
                    peer.left = True
                    self.following.give_up(ordinal)
                    self._tell(Turn.PEER_LEFT, ordinal, 1)
                    self._survey(now)

    # --- what happens here -----------------------------------------------------------------------------

    def written(self, writes: list[LeaseWrite], pods: Iterable[PodRecord], now: float) -> None:
        """The catalog has written own leases, or marked pods."""
        if not self.members.peers:
            return
        news = list(pods)
        if news:
            self._send(Marks(pods=news))
        for change in self.following.write(writes, now):
            self._send(change)

    def beat_http(self, lease: LeaseId, ref: EntryRef, *, term: int, now: float) -> None:
        """A plain HTTP client beats here. Whose lease it is to be hears of it.

        Raises:
            Problem: as :meth:`~rollbook_registry.catalog.Catalog.beat_http`.
        """
        known = self._book.lease(lease)
        owner = self.owner(lease, now)
        if (
            owner == self.ordinal
            or known is None
            or known.origin == self.ordinal
            or ref not in known.entries
            or (term and term < known.entries[ref].term)
        ):
            # A beat that is passed on counts here too, as long as the lease is ours.
            self._book.beat_http(lease, ref, term=term, now=now)
        if owner != self.ordinal:
            self._route(HttpBeat(lease, ref), now, sender=self.ordinal, relayed=False)

    def owner(self, lease: LeaseId, now: float) -> int:
        """Return the replica that is to own a plain HTTP client's lease."""
        return rendezvous.owner(lease, self._serving(now))

    def leave(self) -> None:
        """This replica is about to end: others need not wait for its silence."""
        self._leaving = True
        self._send(Leave(boot=self.boot))

    def tick(self, now: float) -> None:
        """Time has passed. To be called at least every half ``ping``."""
        self._survey(now)
        if self.rank.serves:
            self._mature(now)
        else:
            self._start(now)
        self.following.retry(now)
        self.following.settle(now)
        self.following.catch_up(now)
        self._count(now)
        self._hide(now)
        self._flush_beats()
        if now >= self._next_ping:
            self._next_ping = now + self._timings.ping
            for peer in self.members.peers.values():
                if not peer.knows_us:
                    self._greet(peer)
                peer.knows_us = False
                self._ping(peer, now)
        if now >= self._next_digest:
            self._next_digest = now + self._timings.digest
            if self.rank.serves and not self._leaving:
                self._send(self.following.digest())

    # --- greetings and pings ---------------------------------------------------------------------------

    def _greet(self, peer: Peer) -> None:
        self._post(peer.ordinal, Hello(proto=PROTO, ordinal=self.ordinal, boot=self.boot))

    def _greeted(self, peer: Peer, hello: Hello, now: float) -> None:
        refused = None
        if hello.ordinal != peer.ordinal or hello.ordinal == self.ordinal:
            refused = Refused.WRONG_ORDINAL
        elif hello.proto < PROTO - 1:
            refused = Refused.PROTO_TOO_OLD
        elif hello.proto > PROTO + 1:
            refused = Refused.PROTO_TOO_NEW
        elif peer.boot not in {"", hello.boot} and self.members.hears(peer.ordinal, now):
            refused = Refused.ORDINAL_TAKEN
        peer.refused = refused
        if refused is not None:
            self._tell(Turn.PEER_REFUSED, peer.ordinal, 1)
            detail = f"protocol {PROTO}, and one less or more, is spoken here; got {hello.proto}"
            self._post(
                peer.ordinal, Refusal(reason=refused, detail=detail if "proto" in refused.value else "")
            )
            return
        if peer.boot != hello.boot:
            if peer.boot:
                self._tell(Turn.PEER_REBOOTED, peer.ordinal, 1)
            self.following.give_up(peer.ordinal)
            peer.begin(hello.boot)
            self._greet(peer)
        self._ping(peer, now)

    def _ping(self, peer: Peer, now: float) -> None:
        if self._leaving:
            return
        hears = [o for o in self.members.peers if self.members.hears(o, now)]
        self._post(
            peer.ordinal,
            Ping(
                boot=self.boot,
                to=peer.boot,
                rank=self.rank,
                hears=hears,
                links=self.members.links(now),
                streams=self.following.positions(),
                pods=self._book.pods.digest,
            ),
        )

    def _pinged(self, peer: Peer, ping: Ping, now: float) -> None:
        if ping.to != self.boot:
            self._greet(peer)
        else:
            peer.knows_us = True
            self._replaced = None
        if ping.boot != peer.boot:
            self._ping(peer, now)  # names the boot that we know, and so asks for a greeting
            return
        if peer.left:
            return
        peer.pinged(ping, now)
        if ping.pods == self._book.pods.digest:
            peer.pods_differ = None
        elif peer.pods_differ is None:
            # At once when it has come back; else only if that stays, for news may be on its way.
            peer.pods_differ = now if not peer.present else now + self._timings.digest
        if not peer.present:
            self._survey(now)
        self.following.catch_up(now)

    def _survey(self, now: float) -> None:
        """Find out who is there, and mark the leases of those who are not."""
        alive = self.members.alive(now)
        for peer in self.members.peers.values():
            present = peer.ordinal in alive or self.members.hears(peer.ordinal, now)
            if present != peer.present:
                peer.present = present
                self._tell(Turn.PEER_FOUND if present else Turn.PEER_LOST, peer.ordinal, 1)
        for stream in self.following.streams.values():
            vouched = self._vouched(stream.origin, stream.boot, now)
            if stream.orphaned is None and not vouched:
                stream.orphaned = now
                self._book.orphan(stream.origin, now)
                self._tell(Turn.ORPHANED, stream.origin, len(stream.copies))
            elif stream.orphaned is not None and vouched and stream.complete:
                stream.orphaned = None
                self._book.adopted(stream.origin, now)
                self._tell(Turn.ADOPTED, stream.origin, len(stream.copies))

    def _vouched(self, origin: int, boot: str, now: float) -> bool:
        """Whether somebody hears the very life of an origin that a stream is about."""
        if not boot:
            return False
        if self.members.hears(origin, now):
            return self.members.peers[origin].boot == boot
        peer = self.members.peers.get(origin)
        if peer is not None and peer.left:
            return False
        return any(
            (position := voucher.streams.get(origin)) is not None and position.boot == boot
            for voucher in self.members.vouchers(origin, now)
        )

    # --- orphans ---------------------------------------------------------------------------------------

    def _count(self, now: float) -> None:
        """Find out whether a majority is there, and since when or how long not."""
        if self.members.is_majority(self._serving(now)):
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
            if self.rank.serves:
                self._tell(Turn.CUT_OFF, self.ordinal, 1)

    def _hide(self, now: float) -> None:
        """Hide orphans that nobody took up in time.

        The time runs only while a majority is there: whoever was cut off for long, and now hears the first of
        the others again, must hear from the rest too before it gives them up.
        """
        lost = [s for s in self.following.streams.values() if s.orphaned is not None]
        if not lost:
            return
        after = self._timings.hide_after
        since = self._majority_since
        if since is not None:
            due = [s for s in lost if now - max(since, s.orphaned or 0.0) >= after]
        else:
            due = [s for s in lost if now - (s.orphaned or 0.0) >= after]
            if not due or now < self._held_back:
                return
            left = sum(len(self._book.foreign(s.origin)) for s in due)
            if left > self._hide_share * self._book.leases:
                # So many at once did not die: it is we who are cut off. They stay as last known.
                self._held_back = now + self._timings.digest
                self._tell(Turn.HIDING_HELD_BACK, self.ordinal, left)
                return
        for stream in due:
            self._forget_stream(stream, now)

    def _forget_stream(self, stream: Stream, now: float) -> None:
        ids = self._book.foreign(stream.origin)
        self._book.forget(ids, origin=stream.origin, now=now)
        del self.following.streams[stream.origin]
        self._tell(Turn.HIDDEN, stream.origin, len(ids))

    # --- starting --------------------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        """Find a book to be ready with."""
        if self._taking is not None:
            self._check_taking(now)
            return
        links = [self.members.peers[o] for o in self.members.links(now)]
        best = max((p for p in links if p.rank.serves), key=lambda p: (p.rank, -p.ordinal), default=None)
        if best is not None and (best.rank is Rank.READY or self.rank is Rank.EMPTY):
            self._take(best, now)
            return
        if now - self._started < self._timings.snapshot_after:
            return
        if self.rank is Rank.SAVED:
            self._restore(now)
            # What others have of ours, from their disks or from before we ended, is as good as our disk.
            more = [p for p in links if p.rank.serves and p.ordinal not in self._merged]
            if more:
                self._take(more[0], now)
            else:
                self._become(Rank.PROVISIONAL, Why.FROM_DISK, now)
        elif any(p.rank is Rank.SAVED for p in links):
            self._why = Why.WAITING_FOR_DISK
        elif self.members.is_majority({self.ordinal, *(p.ordinal for p in links)}):
            self._become(Rank.PROVISIONAL, Why.ALL_BOOKLESS, now)
        else:
            self._why = Why.NO_MAJORITY

    def _mature(self, now: float) -> None:
        """A book from disk, or begun empty, becomes a living one: with time, or by a peer that has one."""
        if self.rank is Rank.READY:
            return
        if self._taking is not None:
            self._check_taking(now)
        elif now - self._ready_since >= self._timings.provisional:
            self._become(Rank.READY, Why.SETTLED, now)
        else:
            for ordinal in self.members.links(now):
                peer = self.members.peers[ordinal]
                if peer.rank is Rank.READY and ordinal not in self.following.pulls:
                    self._take(peer, now)
                    return

    def _take(self, peer: Peer, now: float) -> None:
        """Take over a peer's book: first who may not speak, then our own leases, then the others'."""
        others = sorted(o for o in peer.streams if o != self.ordinal)
        merging = self.rank is Rank.SAVED and peer.rank is not Rank.READY
        origins = [PODS, self.ordinal] + ([] if self.rank.serves or merging else others)
        self._taking = _Taking(peer.ordinal, peer.boot, peer.rank, origins)
        if not self.rank.serves:
            self._why = Why.PULLING
        self.following.begin_mine()
        self.following.pull(peer.ordinal, PODS, now)

    def _check_taking(self, now: float) -> None:
        taking = self._taking
        if taking is None:
            return
        peer = self.members.peers[taking.source]
        if peer.boot != taking.boot or taking.source not in self.following.pulls:
            self._taking = None  # it is lost, or does not answer: try another, or the same again
            self.following.mine = None
            if not self.rank.serves:
                self._why = Why.LISTENING
                self._started = max(self._started, now - self._timings.snapshot_after / 2)

    def _pulled(self, origin: int, source: int, now: float) -> None:
        taking = self._taking
        if taking is None or taking.source != source or origin != taking.origins[0]:
            return
        if origin == self.ordinal:
            self._take_mine(taking.rank, now)
        del taking.origins[0]
        if taking.origins:
            self.following.pull(source, taking.origins[0], now)
            return
        self._taking = None
        if self.rank is Rank.SAVED and taking.rank is not Rank.READY:
            self._merged.add(source)
            return
        for stream in [s for s in self.following.streams.values() if not s.boot]:
            if stream.origin not in self.members.peers[source].streams:
                # On our disk only: it was hidden long ago.
                self._forget_stream(stream, now)
        self._become(taking.rank, Why.FROM_PEER, now)

    def _take_mine(self, rank: Rank, now: float) -> None:
        """A peer's copy of our own set has come: it says what our leases were when we were last heard."""
        mine = self.following.mine
        if mine is None:
            return
        self.following.mine = None
        self._told_mine = self._told_mine or rank is Rank.READY
        self._book.restore([(self.ordinal, copy.record()) for copy in mine.copies.values()], [], now)
        if rank is Rank.READY and self._from_disk:
            unheard = [id_ for id_ in self._book.own() if id_ not in mine.copies and self._unheard(id_)]
            if unheard:
                self._book.overrule(unheard, now)
                self._tell(Turn.DISK_OVERRULED, self.ordinal, len(unheard))

    def _unheard(self, id_: LeaseId) -> bool:
        """Whether an own lease came from our disk, and its client has not been heard since."""
        lease = self._book.lease(id_)
        return (
            lease is not None
            and lease.holder is None
            and lease.seen <= self._restored
            and all(held.seen <= self._restored for held in lease.entries.values())
        )

    def _restore(self, now: float) -> None:
        """Begin with what the disk has, except where a peer whose book lives has already said what is so."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        known = {s.origin for s in self.following.streams.values() if s.boot}
        if self._told_mine:
            known.add(self.ordinal)
        writes = [(origin, write) for origin, write in saved.writes if origin not in known]
        self._restored = now
        self._from_disk = True
        self._book.restore(writes, (), now)
        for origin, write in writes:
            if origin != self.ordinal:
                self.following.keep(origin, write)

    def _become(self, rank: Rank, why: Why, now: float) -> None:
        if not self.rank.serves:
            self._ready_since = now
        self.rank = rank
        self._why = why
        self._saved = None
        self._tell(Turn.READY, self.ordinal, rank)
        for peer in self.members.peers.values():
            self._ping(peer, now)

    # --- plain HTTP clients ----------------------------------------------------------------------------

    def _route(self, beat: HttpBeat, now: float, *, sender: int, relayed: bool) -> None:
        """Bring a beat to the replica that is to own its lease; it may go through one other."""
        owner = self.owner(beat.lease, now)
        way = None if relayed or owner in {self.ordinal, sender} else self.members.way_to(owner, now)
        if way is not None and way != sender:
            self._beats.setdefault((way, sender != self.ordinal), {})[beat] = None
            return
        try:
            self._book.beat_http(beat.lease, beat.ref, term=0, now=now)
        except Problem:
            # It has ended here, or is not here yet; the next beat finds out which.
            self._tell(Turn.BEAT_UNKNOWN, sender, 1)

    def _flush_beats(self) -> None:
        beats, self._beats = self._beats, {}
        for (to, relayed), batch in beats.items():
            self._post(to, Forward(beats=list(batch), relayed=relayed))

    # --- inside ----------------------------------------------------------------------------------------

    def _serving(self, now: float) -> set[int]:
        """Replicas that are there with a book, this one in any case."""
        return {
            o
            for o in self.members.alive(now)
            # Of those that only others hear it is not known; most of the time they have one.
            if o == self.ordinal or self.members.peer(o).rank.serves or not self.members.hears(o, now)
        }

    def _send(self, message: AnyMessage) -> None:
        to = tuple(p.ordinal for p in self.members.peers.values() if p.connected and p.boot and not p.left)
        if to:
            self._sends.append(Send(to, message))

    def _post(self, to: int, message: AnyMessage) -> None:
        if self.members.peer(to).connected:
            self._sends.append(Send((to,), message))

    def _tell(self, turn: Turn, ordinal: int, number: int) -> None:
        self.counts[turn] += 1
        self._told.append(Told(turn, ordinal, number))
