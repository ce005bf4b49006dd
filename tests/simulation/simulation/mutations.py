"""Mutations: cores in which one rule is broken. A simulation that can't tell them apart is worth nothing."""

from __future__ import annotations

import dataclasses

import msgspec

from rollbook_registry.catalog.replication import Replicated
from rollbook_registry.cluster import Distro, Rank
from rollbook_registry.cluster.messages import PODS


def _mutation(change):
    def make(**arguments) -> Distro:
        distro = Distro(**arguments)
        change(distro)
        return distro

    return make


def _without_pulling_gaps(distro: Distro) -> None:
    """A lost change is not asked for again; what comes after it is applied as if nothing had happened."""
    following = distro.following
    changed = following.changed

    def jump(peer, change, now):
        stream = following.streams.get(peer.ordinal)
        if stream is not None and stream.boot == change.boot and stream.complete:
            stream.seq = max(stream.seq, change.seq - len(change.writes))
        changed(peer, change, now)

    following.changed = jump
    pull = following.pull

    def only_whole(source, origin, now, *, position=None):
        if position is None:
            pull(source, origin, now)

    following.pull = only_whole


def _without_telling_marks(distro: Distro) -> None:
    """Closed and fenced pods stay this replica's secret."""
    written = distro.written
    distro.written = lambda writes, _pods, now: written(writes, [], now)
    pull = distro.following.pull

    def other(source, origin, now, *, position=None):
        if origin != PODS or not distro.rank.serves:
            pull(source, origin, now, position=position)

    distro.following.pull = other


def _resurrecting(distro: Distro) -> None:
    """What a peer says is taken into the book although its pod is closed or fenced here."""
    book = distro._book
    replicate = book.replicate

    def forgetful(write, *, origin, now):
        pods, book.pods = book.pods, type(book.pods)()
        try:
            return replicate(write, origin=origin, now=now)
        finally:
            book.pods = pods

    book.replicate = forgetful


def _hiding_at_once(distro: Distro) -> None:
    """Orphans are hidden when their replica is lost."""
    distro.orphans._timings = dataclasses.replace(distro._timings, hide_after=0.0)


def _hiding_in_a_minority(distro: Distro) -> None:
    """A replica that is alone thinks that it is the world."""
    distro.members.is_majority = lambda _replicas: True


def _trusting_its_disk(distro: Distro) -> None:
    """A restarted replica is ready with its own disk, or with nothing, whatever its peers know."""
    if not distro.rank.serves:
        distro.starting._restore(0.0)
        distro.starting._become(Rank.READY, distro.starting.why, 0.0)


def _without_its_own_set(distro: Distro) -> None:
    """A restarted replica does not ask for its own leases."""
    distro.starting._take_ours = lambda _rank, _now: setattr(distro.following, "mine", None)


def _keeping_what_a_set_lacks(distro: Distro) -> None:
    """When an origin's whole set has arrived, what it lacks stays."""
    following = distro.following
    make = following._stream

    def stream(boot, origin):
        made = make(boot, origin)
        finish = made.finish

        def keep():
            arrived = made._arrived
            made._arrived = {*(arrived or ()), *made.copies}
            return finish()

        made.finish = keep
        return made

    following._stream = stream


def _without_one_step(distro: Distro) -> None:
    """A peer that only others hear is lost."""
    distro.members.vouchers = lambda _ordinal, _now: []


def _without_forwarding(distro: Distro) -> None:
    """Beats of plain HTTP clients count nowhere but at the replica that owns their lease."""
    distro.forwarding.flush = distro.forwarding._waiting.clear


def _without_orphans(distro: Distro) -> None:
    """A lost replica's leases are left as they were, as if it were there."""
    distro._book.orphan = lambda _origin, _now: None
    distro.orphans._hide = lambda _now: None


def _ending_what_is_yielded(distro: Distro) -> None:
    """A lease that its owner gave up to another replica ends in the others' books."""
    book = distro._book
    replicate = book.replicate

    def end(write, *, origin, now):
        if write.yielded:
            write = msgspec.structs.replace(write, reason="released")
        return replicate(write, origin=origin, now=now)

    book.replicate = end


def _losing_a_write(distro: Distro) -> None:
    """Now and then a write is counted as taken and forgotten."""
    following = distro.following
    apply = following._apply
    counter = iter(range(1_000_000))

    def careless(stream, news, now):
        if news is not None and next(counter) % 13 == 12:
            return
        apply(stream, news, now)

    following._apply = careless


def _losing_content(distro: Distro) -> None:
    """Now and then a stream takes a number without its write."""
    following = distro.following
    make = following._stream
    counter = iter(range(1_000_000))

    def stream(boot, origin):
        made = make(boot, origin)
        take = made._take
        made._take = lambda write: None if next(counter) % 17 == 16 else take(write)
        return made

    following._stream = stream


def _taking_any_record(distro: Distro) -> None:
    """The last record of a lease that arrives counts, whatever its term."""
    book = distro._book

    def replicate(write, *, origin, now):
        lease = book.lease(write.id)
        if lease is not None and write.whole and lease.origin not in {origin, book.ordinal}:
            lease.term = 0
            for held in lease.entries.values():
                held.order = 0
        return real(write, origin=origin, now=now) if write else Replicated.TAKEN

    real = book.replicate
    book.replicate = replicate


def _believing_hearsay(distro: Distro) -> None:
    """Two replicas keep a dead one alive by each other's word."""
    members = distro.members
    direct = members.links

    def links(now):
        said = {o for link in direct(now) for o in members.peers[link].links}
        return sorted({*direct(now), *said} - {members.ordinal})

    members.links = links


MUTATIONS = {
    change.__name__[1:]: _mutation(change)
    for change in (
        _without_pulling_gaps,
        _without_telling_marks,
        _resurrecting,
        _hiding_at_once,
        _hiding_in_a_minority,
        _trusting_its_disk,
        _without_its_own_set,
        _keeping_what_a_set_lacks,
        _without_one_step,
        _without_forwarding,
        _without_orphans,
        _ending_what_is_yielded,
        _losing_a_write,
        _losing_content,
        _taking_any_record,
        _believing_hearsay,
    )
}
