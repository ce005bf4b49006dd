"""Following: the streams of all origins, how each is brought up to date, and how others are helped to it.

Everything is level-triggered: whoever is behind what a peer says it has pulls, one pull a peer at a time, and
asks again until it is there. Nobody is sent anything that he did not ask for, except the newest changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rollbook_registry.catalog.replication import Replicated
from rollbook_registry.cluster import transfer
from rollbook_registry.cluster.messages import PODS, Change, Digest, Part, Position, Pull
from rollbook_registry.cluster.reasons import Rank, Turn
from rollbook_registry.cluster.stream import Stream
from rollbook_registry.cluster.transfer import Transfer

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from rollbook.names import LeaseId
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.catalog.records import LeaseWrite
    from rollbook_registry.cluster.membership import Membership, Peer
    from rollbook_registry.cluster.outbox import Outbox
    from rollbook_registry.cluster.timers import DistroTimings

SECOND_THOUGHTS: Final = 2.0
"""Seconds after the end of a lease at which it is looked whether another origin still has it. By then whoever
it went to, or came from, has said so; at once, a lease could come back for a moment."""

ODD_ROUNDS: Final = 2
"""Digest rounds in a row with equal content and other lists that make a visible divergence."""


class Pulling:
    """A pull that was asked and not answered yet."""

    __slots__ = ("asked", "index", "n", "origin", "request", "source", "tries")

    def __init__(self, request: Pull, source: int, now: float) -> None:
        self.n = request.n
        self.origin = request.origin
        self.source = source
        self.request = request
        self.index = 0
        self.asked = now
        self.tries = 1


class Following:
    """All streams.

    Args:
        members: who is there.
        boot: of this replica's life.
        book: the catalog.
        timings: timers and bounds.
        outbox: for messages and news.
        rng: names pulls.
    """

    def __init__(
        self,
        members: Membership,
        *,
        boot: str,
        book: Catalog,
        timings: DistroTimings,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._members = members
        self._boot = boot
        self._book = book
        self._timings = timings
        self._post = outbox.post
        self._tell = outbox.tell
        self._n = rng.getrandbits(32)
        self.own = self._stream(boot, members.ordinal)
        self.own.complete = True
        self.streams: dict[int, Stream] = {}
        """Of all other origins."""
        self.pulls: dict[int, Pulling] = {}
        """By source."""
        self._transfers: dict[int, Transfer] = {}
        self._second_thoughts: dict[LeaseId, float] = {}
        self._loose: dict[LeaseId, tuple[int, float]] = {}
        """Yielded leases whose taker has not been heard of yet: their origin, and since when."""
        self.on_pulled: Callable[[int, int, float], None] = lambda _origin, _source, _now: None
        """Called when a pull has been answered."""
        self.mine: Stream | None = None
        """While a starting replica takes a book over: the peer's copy of this replica's own set."""
        self.rank = Rank.EMPTY

    # --- reading ---------------------------------------------------------------------------------------

    def all(self) -> Iterator[Stream]:
        """All streams that others may have from here."""
        if self.rank.serves:
            yield self.own
        yield from self.streams.values()

    def positions(self) -> dict[int, Position]:
        """How far each is known; not those of which only a mixture is here."""
        return {s.origin: s.position for s in self.all() if s.complete or not s.boot}

    def digest(self) -> Digest:
        """Return what there is, in numbers."""
        return Digest(
            boot=self._boot,
            streams={s.origin: s.sum for s in self.all() if s.complete},
            visible=self._book.digest,
            calm=self.calm,
        )

    @property
    def calm(self) -> bool:
        """Whether nothing is on its way, and no origin is lost."""
        return (
            self.rank is Rank.READY
            and not (self.pulls or self._loose or self._second_thoughts)
            and all(s.complete and s.orphaned is None for s in self.streams.values())
        )

    # --- own writes ------------------------------------------------------------------------------------

    def write(self, writes: list[LeaseWrite], now: float) -> list[Change]:
        """Number and keep own writes; returns the messages that tell them."""
        for write in writes:
            self.own.follow(write)
            if write.ended:
                self._gone(write.id, now)
        return self._changes(writes) if self.rank.serves else []

    def _changes(self, writes: list[LeaseWrite]) -> list[Change]:
        changes = []
        seq = self.own.seq - len(writes)
        batch: list[LeaseWrite] = []
        records = 0
        for write in writes:
            many = len(write.put) + len(write.drop) + 1
            if batch and records + many > self._timings.chunk_records:
                changes.append(Change(boot=self._boot, seq=seq, writes=batch))
                batch, records = [], 0
            batch.append(write)
            records += many
            seq += 1
        if batch:
            changes.append(Change(boot=self._boot, seq=seq, writes=batch))
        return changes

    # --- what peers send -------------------------------------------------------------------------------

    def changed(self, peer: Peer, change: Change, now: float) -> None:
        """A peer's own writes have come: the next ones, or it shows that some were missed."""
        stream = self.streams.get(peer.ordinal)
        claimed = peer.streams.get(peer.ordinal)
        if claimed is None or claimed.boot != change.boot or claimed.seq < change.seq:
            peer.streams[peer.ordinal] = Position(change.boot, change.seq)
        if stream is None or stream.boot != change.boot or not (stream.complete or stream.arriving):
            self.catch_up(now)
            return
        first = change.seq - len(change.writes) + 1
        if first > stream.seq + 1:
            self.catch_up(now)
            return
        for write in change.writes[stream.seq + 1 - first :]:
            self._apply(stream, stream.follow(write), now)
        if not (stream.complete or stream.arriving):
            self.catch_up(now)

    def compare(self, peer: Peer, digest: Digest, now: float) -> None:
        """A peer has said what it has: find out whether it is the same."""
        sums = {s.origin: s.sum for s in self.all() if s.complete}
        for origin, theirs in digest.streams.items():
            mine = sums.get(origin)
            if mine is None or mine[:2] != theirs[:2] or mine.xor == theirs.xor:
                continue
            self._tell(Turn.DIVERGED, origin)
            if origin == peer.ordinal:
                self.streams[origin].suspect = True
        alike = self.calm and digest.calm and sums == digest.streams and peer.pods == self._book.pods.digest
        if not alike or digest.visible == self._book.digest:
            peer.odd_rounds = 0
        else:
            peer.odd_rounds += 1
            if peer.odd_rounds >= ODD_ROUNDS:
                peer.odd_rounds = 0
                self._tell(Turn.DIVERGED_VISIBLY, peer.ordinal)
                self._mend(now)
        self.catch_up(now)

    def asked(self, peer: Peer, pull: Pull, now: float) -> None:
        """A peer wants to have something."""
        part = self._answer(peer.ordinal, pull, now)
        if part is not None:
            self._post(peer.ordinal, part)

    def answered(self, peer: Peer, part: Part, now: float) -> None:
        """A part of what was pulled has come."""
        pull = self.pulls.get(peer.ordinal)
        if pull is None or (pull.n, pull.origin, pull.index) != (part.n, part.origin, part.index):
            return
        pull.asked = now
        pull.tries = 1
        if part.origin == PODS:
            self._book.mark_pods(part.pods, now)
        elif part.whole:
            self._arrived(part, now)
        else:
            self._followed(part, now)
        if not part.last:
            pull.index += 1
            again = Pull(n=pull.n, origin=pull.origin, index=pull.index)
            self._post(peer.ordinal, again)
            return
        del self.pulls[peer.ordinal]
        stream = self.streams.get(part.origin)
        if stream is not None and stream.orphaned is not None:
            # What came is not a sign of life of its origin.
            self._book.orphan(part.origin, now)
        self._tell(Turn.PULLED_ALL if part.whole else Turn.PULLED_CHANGES, part.origin)
        self.on_pulled(part.origin, peer.ordinal, now)
        self.catch_up(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._retry(now)
        self._settle(now)
        self.catch_up(now)

    # --- pulling ---------------------------------------------------------------------------------------

    def pull(self, source: int, origin: int, now: float, *, position: Position | None = None) -> None:
        """Ask a peer for what follows a position, or for everything."""
        self._n = (self._n + 1) & 0xFFFF_FFFF
        boot, seq = position or ("", 0)
        request = Pull(n=self._n, origin=origin, boot=boot, seq=seq)
        self.pulls[source] = Pulling(request, source, now)
        self._post(source, request)

    def _retry(self, now: float) -> None:
        """Ask again for what was not answered; give up what nobody answers, or who is lost."""
        for source, pull in list(self.pulls.items()):
            if not self._members.hears(source, now):
                self.give_up(source)
            elif now - pull.asked >= self._timings.pull_retry:
                if pull.tries >= self._timings.pull_tries:
                    self.give_up(source)
                    continue
                pull.tries += 1
                pull.asked = now
                self._tell(Turn.PULL_RETRIED, pull.origin)
                again = (
                    pull.request if pull.index == 0 else Pull(n=pull.n, origin=pull.origin, index=pull.index)
                )
                self._post(source, again)

    def give_up(self, source: int) -> None:
        """Nothing more is expected of a peer; nor is anything kept ready for it."""
        self._transfers.pop(source, None)
        pull = self.pulls.pop(source, None)
        if pull is None:
            return
        self._tell(Turn.PULL_GIVEN_UP, pull.origin)
        stream = self.streams.get(pull.origin)
        if stream is not None and stream.arriving:
            stream.abandon()

    def catch_up(self, now: float) -> None:
        """Pull whatever a peer has and we don't."""
        if not self.rank.serves:
            return
        busy = {pull.origin for pull in self.pulls.values()}
        for peer in self._members.peers.values():
            if PODS not in busy and self._wants_pods(peer, now):
                busy.add(PODS)
                peer.pods_differ = now + self._timings.digest
                self.pull(peer.ordinal, PODS, now)
        origins = {o for peer in self._members.peers.values() for o in peer.streams}
        for origin in sorted(origins - busy - {self._members.ordinal}):
            source = self._source(origin, now)
            if source is None:
                continue
            stream = self.streams.get(origin)
            known = None
            if stream is not None and stream.complete and not stream.suspect:
                claim = source.streams[origin]
                known = stream.position if stream.boot == claim.boot else None
            self.pull(source.ordinal, origin, now, position=known)

    def _wants_pods(self, peer: Peer, now: float) -> bool:
        return (
            peer.pods_differ is not None
            and now >= peer.pods_differ
            and peer.rank.serves
            and peer.ordinal not in self.pulls
            and self._members.hears(peer.ordinal, now)
        )

    def _source(self, origin: int, now: float) -> Peer | None:
        """Return whom to pull an origin's writes from, if anybody has more of them than we."""
        stream = self.streams.get(origin)
        peers = self._members.peers
        direct = self._members.hears(origin, now)
        first = [peers[origin]] if origin in peers else []
        for peer in [*first, *(p for p in peers.values() if p.ordinal != origin)]:
            claim = peer.streams.get(origin)
            if (
                claim is None
                or not claim.boot
                or peer.ordinal in self.pulls
                or peer.rank < self.rank
                or not self._members.hears(peer.ordinal, now)
            ):
                continue
            itself = peer.ordinal == origin
            if stream is not None and stream.boot == claim.boot and stream.complete:
                # Within one life of the origin numbers can be compared, whoever has them.
                if claim.seq > stream.seq or (stream.suspect and itself):
                    return peer
            elif itself or (not direct and origin in peer.links):
                # Which of two lives is the later one, only those know who hear it.
                return peer
        return None

    # --- answers ---------------------------------------------------------------------------------------

    def _answer(self, peer: int, pull: Pull, now: float) -> Part | None:
        if not self.rank.serves:
            return None
        if pull.index == 0:
            stream = self.own if pull.origin == self._members.ordinal else self.streams.get(pull.origin)
            if stream is not None and stream.boot and not stream.complete:
                return None  # a mixture helps nobody; it asks again
            if stream is not None and pull.boot and pull.boot == stream.boot:
                part = self._range(stream, pull)
                if part is not None:
                    return part
            known = self._transfers.get(peer)
            if known is None or known.n != pull.n:
                self._transfers[peer] = Transfer(pull.n, pull.origin, self._whole(stream, pull, now))
        running = self._transfers.get(peer)
        if running is None or (running.n, running.origin) != (pull.n, pull.origin):
            return None
        part = running.part(pull.index)
        if part is not None and part.last and part.index == 0:
            del self._transfers[peer]
        return part

    def _range(self, stream: Stream, pull: Pull) -> Part | None:
        """The writes after a position, if the log reaches back so far."""
        writes: list[LeaseWrite] | None = []
        if pull.seq != stream.seq:
            writes = stream.after(
                pull.seq, max_records=self._timings.chunk_records, max_bytes=self._timings.chunk_bytes
            )
        if writes is None:
            return None
        seq = pull.seq + len(writes)
        return Part(n=pull.n, origin=pull.origin, boot=stream.boot, seq=seq, writes=writes, last=True)

    def _whole(self, stream: Stream | None, pull: Pull, now: float) -> Iterator[Part]:
        """Everything, in parts."""
        records = self._timings.chunk_records
        if pull.origin == PODS:
            return transfer.pods(list(self._book.pod_records(now)), pull.n, max_records=records)
        if stream is None:
            return iter([Part(n=pull.n, origin=pull.origin, whole=True, last=True)])
        return transfer.whole(stream, pull.n, max_records=records, max_bytes=self._timings.chunk_bytes)

    # --- applying --------------------------------------------------------------------------------------

    def _arrived(self, part: Part, now: float) -> None:
        if part.origin == self._members.ordinal:
            if self.mine is None:
                return
            stream = self.mine
        else:
            known = self.streams.get(part.origin)
            if known is None:
                known = self.streams[part.origin] = self._stream("", part.origin)
            stream = known
        if part.index == 0:
            stream.begin(part.boot, part.seq)
        last = len(part.writes) - 1
        for at, write in enumerate(part.writes):
            self._apply(stream, stream.arrive(write, split=part.split and at == last), now)
        if part.last:
            for write in stream.finish():
                self._apply(stream, write, now)

    def _followed(self, part: Part, now: float) -> None:
        stream = self.streams.get(part.origin)
        if stream is None or stream.boot != part.boot:
            return
        first = part.seq - len(part.writes) + 1
        if first <= stream.seq + 1:
            for write in part.writes[stream.seq + 1 - first :]:
                self._apply(stream, stream.follow(write), now)

    def _apply(self, stream: Stream, news: LeaseWrite | None, now: float) -> None:
        if news is None or stream is self.mine:
            return
        taken = self._book.replicate(news, origin=stream.origin, now=now)
        if taken is Replicated.NEEDS_WHOLE:
            # Another origin's record has counted so far; this one may count now.
            copy = stream.copies.get(news.id)
            if copy is not None:
                self._book.replicate(copy.record(), origin=stream.origin, now=now)
        if news.yielded:
            lease = self._book.lease(news.id)
            if lease is not None and lease.origin == stream.origin:
                self._loose[news.id] = (stream.origin, now)
        elif news.ended:
            self._gone(news.id, now)

    def _gone(self, id_: LeaseId, now: float) -> None:
        if id_ in self.own.copies or any(id_ in s.copies for s in self.streams.values()):
            self._second_thoughts[id_] = now + SECOND_THOUGHTS

    # --- what does not add up --------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Look again at leases that one origin ended while another had them, and at those nobody took up."""
        for id_ in [i for i, at in self._second_thoughts.items() if now >= at]:
            del self._second_thoughts[id_]
            self._offer(id_, now)
        for id_ in [i for i, (_, at) in self._loose.items() if now - at >= self._timings.hide_after]:
            self._let_loose(id_, now)
        for id_, (origin, _) in list(self._loose.items()):
            lease = self._book.lease(id_)
            if lease is None or lease.origin != origin:
                del self._loose[id_]  # its taker has been heard of

    def _let_loose(self, id_: LeaseId, now: float) -> None:
        origin, _ = self._loose.pop(id_)
        stream = self.streams.get(origin)
        if stream is None or id_ not in stream.copies:
            self._book.forget([id_], origin=origin, now=now)
            self._offer(id_, now)

    def _offer(self, id_: LeaseId, now: float) -> None:
        """Have the book look at everybody's record of a lease again."""
        for stream in self.streams.values():
            copy = stream.copies.get(id_)
            if copy is not None:
                self._book.replicate(copy.record(), origin=stream.origin, now=now)
                if stream.orphaned is not None:
                    self._book.orphan(stream.origin, now)

    def _mend(self, now: float) -> None:
        """Make the book from the streams again; it costs a look at everything."""
        for stream in self.streams.values():
            stray = [i for i in self._book.foreign(stream.origin) if i not in stream.copies]
            self._book.forget(stray, origin=stream.origin, now=now)
        for stream in self.streams.values():
            for copy in list(stream.copies.values()):
                self._book.replicate(copy.record(), origin=stream.origin, now=now)

    # --- inside ----------------------------------------------------------------------------------------

    def keep(self, origin: int, write: LeaseWrite) -> None:
        """Take another replica's lease from our disk, until somebody knows better."""
        stream = self.streams.get(origin)
        if stream is None:
            stream = self.streams[origin] = self._stream("", origin)
        stream.keep(write)

    def begin_mine(self) -> None:
        """A peer's copy of our own set is about to come."""
        self.mine = self._stream("", self._members.ordinal)

    def _stream(self, boot: str, origin: int) -> Stream:
        return Stream(
            origin, boot=boot, max_changes=self._timings.log_changes, max_bytes=self._timings.log_bytes
        )
