"""The Distro core, one rule at a time; all of it together is in the simulation."""

from __future__ import annotations

import random

import msgspec
import pytest

from registrykit import a_ref, an_entry
from rollbook.frames import GonePod
from rollbook.problems import Problem
from rollbook_registry.catalog import Catalog, Timings
from rollbook_registry.catalog.events import PodsMarked, Written
from rollbook_registry.catalog.leases import Kind, http_lease
from rollbook_registry.cluster import Distro, DistroTimings, Rank, Saved, Turn, Why, rendezvous
from rollbook_registry.cluster.content import Copy
from rollbook_registry.cluster.messages import (
    PROTO,
    Change,
    Hello,
    Part,
    Ping,
    Pull,
    Refusal,
    decode,
    encode,
)
from rollbook_registry.cluster.reasons import Refused
from rollbook_registry.cluster.ringlog import RingLog
from rollbook_registry.cluster.stream import Stream
from rollbook_registry.cluster.transfer import whole


class Replica:
    """A core and its catalog; what it sends stays in ``out`` until the net carries it."""

    def __init__(self, net, ordinal, members, boot, *, saved=None, **timings):
        self.net = net
        self.catalog = Catalog(Timings(), ordinal=ordinal)
        self.ordinal = ordinal
        self.out = []
        self.told = []
        self.distro = Distro(
            ordinal=ordinal,
            boot=boot,
            members=frozenset(members),
            book=self.catalog,
            timings=DistroTimings(**timings),
            hide_share=0.15,
            rng=random.Random(ordinal),
            now=net.now,
            saved=saved,
        )
        self.pump()

    def do(self, command):
        try:
            return command(self)
        finally:
            self.pump()

    def pump(self):
        while events := self.catalog.take_events():
            writes = [e.write for e in events if isinstance(e, Written)]
            pods = [pod for e in events if isinstance(e, PodsMarked) for pod in e.pods]
            self.distro.written(writes, pods, self.net.now)
        self.told += self.distro.take_told()
        for send in self.distro.take_sends():
            self.out += [(to, decode(encode(send.message))) for to in send.to]

    def enter(self, lease, *entries):
        now = self.net.now
        self.do(lambda r: r.catalog.attach(lease, kind=Kind.SESSION, term=0, holder=lease, now=now))
        self.do(lambda r: r.catalog.register(lease, entries, now))

    @property
    def shown(self):
        return {i.port: i for s in self.catalog.services for i in s.instances.values()}

    def turns(self):
        return [t.turn for t in self.told]


class Net:
    """A few replicas, and a network that a test can cut."""

    def __init__(self):
        self.now = 100.0
        self.replicas = {}
        self.cut = set()
        self.lost = ()
        """Types of messages that do not arrive."""
        self.carried = []

    def start(self, ordinal, members=(0, 1, 2), boot=None, **options):
        replica = Replica(self, ordinal, members, boot or f"{ordinal}.1", **options)
        self.replicas[ordinal] = replica
        for other in list(self.replicas.values()):
            if other is not replica:
                other.do(lambda r: r.distro.up(ordinal, self.now))
                replica.do(lambda r, o=other.ordinal: r.distro.up(o, self.now))
        return replica

    def carry(self):
        """Deliver until nothing is on its way."""
        while any(r.out for r in self.replicas.values()):
            for replica in list(self.replicas.values()):
                out, replica.out = replica.out, []
                for to, message in out:
                    if to in self.replicas and (replica.ordinal, to) not in self.cut:
                        self.carried.append((replica.ordinal, to, message))
                        if isinstance(message, self.lost):
                            continue
                        peer = self.replicas[to]
                        peer.do(lambda r, s=replica.ordinal, m=message: r.distro.receive(s, m, self.now))

    def run(self, seconds):
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += 0.25
            for replica in list(self.replicas.values()):
                replica.do(lambda r: r.distro.tick(self.now))
            self.carry()

    def kill(self, ordinal):
        del self.replicas[ordinal]

    def isolate(self, ordinal):
        for other in self.replicas:
            self.cut |= {(ordinal, other), (other, ordinal)}

    def of(self, kind, sender=None):
        return [m for s, _, m in self.carried if isinstance(m, kind) and sender in {None, s}]


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def three(net):
    """Three replicas that have been up for long."""
    for ordinal in range(3):
        net.start(ordinal)
    net.run(40.0)
    assert [r.distro.rank for r in net.replicas.values()] == [Rank.READY] * 3
    net.carried.clear()
    return net


# --- messages -----------------------------------------------------------------------------------------------


def test_a_message_of_an_unknown_type_is_ignored():
    assert decode(msgspec.msgpack.encode({"t": "gossip", "x": 1})) is None


def test_an_unknown_field_is_ignored():
    data = msgspec.msgpack.encode({"t": "hello", "proto": 2, "ordinal": 1, "boot": "b", "mood": "good"})
    assert decode(data) == Hello(proto=2, ordinal=1, boot="b")


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\x00", msgspec.msgpack.encode({"t": "hello"}), msgspec.msgpack.encode([1]), b"\x81" * 5000],
)
def test_a_damaged_message_is_a_clear_error(data):
    with pytest.raises(Problem) as caught:
        decode(data)
    assert caught.value.code == "bad_frame"


# --- greetings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proto", "refused"),
    [
        (PROTO - 2, Refused.PROTO_TOO_OLD),
        (PROTO - 1, None),
        (PROTO, None),
        (PROTO + 1, None),
        (PROTO + 2, Refused.PROTO_TOO_NEW),
    ],
)
def test_one_version_of_skew_is_accepted(net, proto, refused):
    replica = net.start(0)
    replica.do(lambda r: r.distro.up(1, net.now))
    replica.out.clear()
    replica.do(lambda r: r.distro.receive(1, Hello(proto=proto, ordinal=1, boot="x"), net.now))
    refusals = [m.reason for _, m in replica.out if isinstance(m, Refusal)]
    assert refusals == ([refused] if refused else [])
    assert replica.distro.members.peer(1).boot == ("" if refused else "x")


def test_two_that_refuse_each_other_do_not_talk_each_other_to_death(net):
    old = net.start(0)
    new = net.start(1)
    for replica in (old, new):
        replica.distro._refusal = lambda *_: Refused.PROTO_TOO_NEW
    net.run(10.0)
    assert old.distro.members.links(net.now) == []
    assert len(net.carried) < 300  # greetings, their refusals and a ping each way, twice a second


def test_an_ordinal_that_is_heard_cannot_be_taken_by_another_process(three):
    replica = three.replicas[0]
    replica.do(lambda r: r.distro.receive(1, Hello(proto=PROTO, ordinal=1, boot="other"), three.now))
    assert [m.reason for _, m in replica.out if isinstance(m, Refusal)] == [Refused.ORDINAL_TAKEN]
    assert replica.distro.members.peer(1).boot == "1.1"


def test_who_is_refused_as_replaced_is_not_ready_until_a_peer_knows_it_again(three):
    replica = three.replicas[1]
    replica.do(lambda r: r.distro.receive(0, Refusal(reason=Refused.ORDINAL_TAKEN), three.now))
    assert replica.distro.readiness(three.now) == (False, Why.REPLACED)
    three.run(1.0)
    assert replica.distro.readiness(three.now).ready


def test_who_has_not_greeted_is_not_listened_to(net):
    replica = net.start(0)
    replica.do(lambda r: r.distro.receive(1, Change(boot="x", seq=1, writes=[]), net.now))
    replica.do(lambda r: r.distro.receive(1, Pull(n=1, origin=0), net.now))
    assert replica.out == []


# --- changes ------------------------------------------------------------------------------------------------


def test_a_change_is_with_all_peers_after_one_message_each(three):
    three.replicas[0].enter("a", an_entry())
    three.carry()
    assert all(8080 in r.shown for r in three.replicas.values())
    assert len(three.of(Change)) == 4  # attached, registered; to two peers each
    assert not three.of(Pull)


def test_a_lost_change_is_pulled_within_a_ping(three):
    three.cut = {(0, 1)}
    three.replicas[0].enter("a", an_entry())
    three.carry()
    three.cut = set()
    assert 8080 not in three.replicas[1].shown
    three.run(0.5)
    assert 8080 in three.replicas[1].shown
    (answer,) = [m for m in three.of(Part) if m.writes]
    assert not answer.whole  # what was missed, not everything
    assert three.replicas[1].distro.counts[Turn.PULLED_CHANGES] >= 1


def test_where_the_log_is_too_short_everything_is_pulled(net):
    for ordinal in range(3):
        net.start(ordinal, log_changes=2)
    net.run(40.0)
    net.cut = {(0, 1)}
    for port in range(1, 6):
        net.replicas[0].enter(f"lease{port}", an_entry(port))
    net.carry()
    net.cut = set()
    net.run(1.0)
    assert set(net.replicas[1].shown) == {1, 2, 3, 4, 5}
    assert any(m.whole and m.writes for m in net.of(Part))


def test_only_one_pull_a_peer_is_outstanding_and_it_is_repeated_slowly(three):
    three.cut = {(0, 1)}
    three.replicas[0].enter("a", an_entry())
    three.carry()
    three.cut, three.lost = set(), Part
    three.run(10.0)
    # Of two that could help; each is asked again after 2 s, and dropped for the other after three times.
    assert 4 <= len(three.of(Pull, sender=1)) <= 10
    three.lost = ()
    three.run(2.5)
    assert 8080 in three.replicas[1].shown


def test_a_copy_with_other_content_is_found_within_two_digest_rounds_and_mended(three):
    three.replicas[0].enter("a", an_entry(weight=1.0))
    three.carry()
    stream = three.replicas[1].distro.following.streams[0]
    copy = stream.copies["a"]
    before = stream.xor
    stream.xor ^= copy.xor
    (record,) = copy.entries()
    copy.put(msgspec.structs.replace(record, entry=an_entry(weight=9.0)))
    stream.xor ^= copy.xor
    assert stream.xor != before
    three.run(10.0)
    assert stream.xor == before
    assert three.replicas[1].distro.counts[Turn.DIVERGED] == 1


def test_another_list_for_the_same_content_is_told_after_two_rounds_and_mended(three):
    three.replicas[0].enter("a", an_entry())
    three.carry()
    three.run(6.0)
    lost = three.replicas[1]
    lost.do(lambda r: r.catalog.forget(["a"], origin=0, now=three.now))
    assert 8080 not in lost.shown
    three.run(25.0)
    assert 8080 in lost.shown
    assert sum(r.distro.counts[Turn.DIVERGED_VISIBLY] for r in three.replicas.values()) >= 1


# --- loss ---------------------------------------------------------------------------------------------------


def test_a_silent_peer_is_lost_after_two_seconds_and_its_leases_stay_as_they_were(three):
    three.replicas[0].enter("a", an_entry())
    three.carry()
    three.kill(0)
    three.run(1.5)
    assert Turn.ORPHANED not in three.replicas[1].turns()
    three.run(1.0)
    assert Turn.ORPHANED in three.replicas[1].turns()
    three.run(40.0)
    assert three.replicas[1].shown[8080].healthy


def test_orphans_are_hidden_after_45_seconds_by_a_majority(three):
    three.replicas[0].enter("a", an_entry())
    three.carry()
    three.kill(0)
    three.run(46.0)
    assert 8080 in three.replicas[1].shown
    three.run(2.0)
    assert all(r.shown == {} for r in three.replicas.values())


def test_one_that_is_cut_off_keeps_its_book_and_asks_its_sessions_to_look_elsewhere(three):
    three.replicas[0].enter("a", an_entry())
    three.carry()
    three.isolate(2)
    three.run(11.0)
    assert Turn.CUT_OFF not in three.replicas[2].turns()
    three.run(2.0)
    assert Turn.CUT_OFF in three.replicas[2].turns()
    three.run(600.0)
    assert 8080 in three.replicas[2].shown
    assert Turn.HIDING_HELD_BACK in three.replicas[2].turns()
    assert all(Turn.CUT_OFF not in three.replicas[o].turns() for o in (0, 1))


def test_in_a_minority_few_orphans_are_hidden_for_few_do_die(three):
    three.replicas[0].enter("a", an_entry(1))
    three.replicas[2].enter("b", *(an_entry(port) for port in range(100, 110)))
    for n in range(9):
        three.replicas[2].enter(f"c{n}", an_entry(200 + n))
    three.carry()
    three.isolate(2)
    three.run(50.0)
    assert 1 not in three.replicas[2].shown


def test_who_meets_the_first_of_the_others_again_does_not_give_up_the_rest_at_once(three):
    three.replicas[0].enter("a", an_entry(1))
    three.carry()
    three.isolate(2)
    three.run(100.0)
    three.cut = {(0, 2), (2, 0), (0, 1), (1, 0)}  # 1 and 2 are a majority now
    three.run(40.0)
    assert 1 in three.replicas[2].shown
    three.run(10.0)
    assert 1 not in three.replicas[2].shown


def test_a_peer_that_says_goodbye_is_lost_at_once(three):
    three.replicas[0].enter("a", an_entry())
    three.replicas[0].do(lambda r: r.distro.leave())
    three.carry()
    assert three.replicas[1].distro.following.streams[0].orphaned is not None
    assert three.replicas[0].distro.readiness(three.now) == (False, Why.LEAVING)


def test_a_peer_that_another_one_hears_is_not_lost_and_its_changes_come_through_that_one(three):
    three.replicas[0].enter("a", an_entry(1))
    three.carry()
    three.cut = {(0, 1), (1, 0)}
    three.run(60.0)
    three.replicas[0].enter("b", an_entry(2))
    three.run(1.5)
    assert set(three.replicas[1].shown) == {1, 2}
    assert Turn.ORPHANED not in three.replicas[1].turns()


def test_a_stall_of_ours_loses_nobody(three):
    """What is silent while we do not look has not been silent: time is attentive, so it has not passed."""
    replica = three.replicas[1]
    for _ in range(3):
        replica.do(lambda r: r.distro.tick(three.now))
    assert replica.distro.members.links(three.now) == [0, 2]


# --- starting -----------------------------------------------------------------------------------------------


def test_a_single_one_is_ready_at_once(net):
    assert net.start(0, members=[0]).distro.readiness(net.now) == (True, Why.ALONE)


def test_the_first_start_waits_for_a_majority_that_is_as_empty(net):
    first = net.start(0)
    net.run(20.0)
    assert first.distro.readiness(net.now) == (False, Why.NO_MAJORITY)
    net.start(1)
    net.run(6.0)
    assert first.distro.readiness(net.now) == (True, Why.ALL_BOOKLESS)


def test_who_has_nothing_waits_for_a_disk_that_is_there(net):
    donor = net.start(0)
    net.start(1)
    net.run(8.0)
    donor.enter("a", an_entry())
    saved = Saved([(0, donor.catalog.record("a"))], [])
    net.replicas.clear()
    empty = net.start(1, boot="1.2", snapshot_after=1.0)
    net.start(0, boot="0.2", saved=saved)
    net.run(2.0)
    assert empty.distro.readiness(net.now) == (False, Why.WAITING_FOR_DISK)
    net.run(6.0)
    assert empty.distro.readiness(net.now) == (True, Why.FROM_PEER)
    assert 8080 in empty.shown


def test_a_restarted_replica_has_its_own_leases_back_from_a_peer_and_nobody_sees_them_go(three):
    three.replicas[0].enter("a", an_entry())
    three.carry()
    three.kill(0)
    three.run(3.0)
    again = three.start(0, boot="0.2")
    numbers = {o: three.replicas[o].catalog.service(an_entry().service_key).number for o in (1, 2)}
    three.run(1.0)
    assert again.distro.readiness(three.now) == (True, Why.FROM_PEER)
    lease = again.catalog.lease("a")
    assert (lease.origin, lease.holder, lease.orphan) == (0, None, False)
    three.run(2.0)
    assert all(not three.replicas[o].catalog.lease("a").orphan for o in (1, 2))
    assert numbers == {o: three.replicas[o].catalog.service(an_entry().service_key).number for o in (1, 2)}


def test_an_old_disk_brings_nothing_back_that_a_ready_peer_has_seen_end(three):
    replica = three.replicas[0]
    replica.enter("a", an_entry(1))
    replica.enter("b", an_entry(2))
    three.carry()
    saved = Saved([(0, replica.catalog.record(i)) for i in ("a", "b")], [])
    replica.do(lambda r: r.catalog.release("a", three.now))
    three.carry()
    three.kill(0)
    three.run(5.0)
    again = three.start(0, boot="0.2", saved=saved)
    three.run(2.0)
    assert set(again.shown) == {2}
    assert set(three.replicas[1].shown) == {2}


def test_a_disk_that_was_believed_is_overruled_by_a_living_book(three):
    replica = three.replicas[0]
    replica.enter("a", an_entry(1))
    replica.enter("b", an_entry(2))
    three.carry()
    saved = Saved([(0, replica.catalog.record(i)) for i in ("a", "b")], [])
    replica.do(lambda r: r.catalog.release("a", three.now))
    three.carry()
    three.kill(0)
    three.run(5.0)
    three.isolate(0)
    again = three.start(0, boot="0.2", saved=saved)
    three.cut = {(0, 1), (1, 0), (0, 2), (2, 0)}
    three.run(6.0)
    assert again.distro.readiness(three.now) == (True, Why.FROM_DISK)
    assert set(again.shown) == {1, 2}
    three.cut = set()
    three.run(2.0)
    assert set(again.shown) == {2}
    assert set(three.replicas[1].shown) == {2}
    assert Turn.DISK_OVERRULED in again.turns()


def test_what_was_heard_since_is_not_overruled(three):
    saved = Saved([], [])
    three.kill(0)
    three.run(3.0)
    three.cut = {(0, 1), (1, 0), (0, 2), (2, 0)}
    again = three.start(0, boot="0.2", saved=saved)
    three.run(6.0)
    again.enter("new", an_entry(7))
    three.cut = set()
    three.run(2.0)
    assert all(set(r.shown) == {7} for r in three.replicas.values())


def test_two_disks_add_up(net):
    donor = net.start(0)
    net.start(1)
    net.run(8.0)
    donor.enter("a", an_entry(1))
    donor.enter("b", an_entry(2))
    older, newer = donor.catalog.record("a"), donor.catalog.record("b")
    net.replicas.clear()
    net.start(1, boot="1.2", saved=Saved([(0, older), (0, newer)], []))
    net.run(6.0)
    again = net.start(0, boot="0.2", saved=Saved([(0, older)], []))
    net.run(7.0)
    assert set(again.shown) == {1, 2}
    assert set(net.replicas[1].shown) == {1, 2}


# --- pods ---------------------------------------------------------------------------------------------------


def test_a_fence_is_told_to_everybody_and_learnt_by_who_was_away(three):
    three.replicas[1].enter("zombie", an_entry(owner="u"))
    three.carry()
    three.isolate(1)
    fence = [GonePod(uid="u", ips=["10.0.0.1"])]
    three.replicas[0].do(lambda r: r.catalog.fence_pods(fence, three.now))
    three.run(5.0)
    assert "u" in three.replicas[2].catalog.pods
    assert 8080 in three.replicas[1].shown
    three.cut = set()
    three.run(1.5)
    assert all("u" in r.catalog.pods and r.shown == {} for r in three.replicas.values())


def test_a_restarted_replica_knows_what_is_fenced_before_it_is_ready(three):
    three.replicas[0].do(lambda r: r.catalog.close_pods(["u"], three.now))
    three.carry()
    three.kill(2)
    three.run(3.0)
    again = three.start(2, boot="2.2")
    three.run(1.0)
    assert again.distro.readiness(three.now).ready
    assert "u" in again.catalog.pods


# --- plain HTTP ---------------------------------------------------------------------------------------------


def owned_by(ordinal, replicas=(0, 1, 2)):
    """An entry whose lease rendezvous gives to a replica."""
    entries = (an_entry(port) for port in range(1, 1000))
    return next(e for e in entries if rendezvous.owner(http_lease(e.ref), replicas) == ordinal)


def test_a_registration_is_taken_where_it_comes_and_goes_to_its_owner_with_the_next_beat(three):
    entry = owned_by(1)
    lease = http_lease(entry.ref)
    here = three.replicas[0]
    here.do(lambda r: r.catalog.register_http(lease, entry, term=0, now=three.now))
    assert here.catalog.lease(lease).origin == 0
    three.carry()
    here.do(lambda r: r.distro.beat_http(lease, entry.ref, term=0, now=three.now))
    three.run(1.0)
    assert {r.catalog.lease(lease).origin for r in three.replicas.values()} == {1}
    assert all(entry.port in r.shown for r in three.replicas.values())


def test_a_beat_of_something_unknown_is_answered_where_it_comes(three):
    entry = owned_by(1)
    with pytest.raises(Problem) as caught:
        three.replicas[0].do(
            lambda r: r.distro.beat_http(http_lease(entry.ref), entry.ref, term=0, now=three.now)
        )
    assert caught.value.code == "unknown_instance"


def test_when_an_owner_is_lost_the_next_beat_finds_another(three):
    entry = owned_by(1)
    lease = http_lease(entry.ref)
    three.replicas[1].do(lambda r: r.catalog.register_http(lease, entry, term=0, now=three.now))
    three.carry()
    three.kill(1)
    three.run(3.0)
    assert three.replicas[0].catalog.lease(lease).orphan
    for ordinal in (0, 2):
        three.replicas[ordinal].do(lambda r: r.distro.beat_http(lease, entry.ref, term=0, now=three.now))
        three.run(1.0)
    heir = rendezvous.owner(lease, (0, 2))
    assert {r.catalog.lease(lease).origin for r in three.replicas.values()} == {heir}
    assert not three.replicas[0].catalog.lease(lease).orphan


def test_a_beat_goes_through_another_replica_where_the_direct_line_is_cut(three):
    entry = owned_by(1)
    lease = http_lease(entry.ref)
    three.replicas[1].do(lambda r: r.catalog.register_http(lease, entry, term=0, now=three.now))
    three.carry()
    three.cut = {(0, 1), (1, 0)}
    three.run(5.0)
    seen = three.replicas[1].catalog.lease(lease).entries[entry.ref].seen
    three.replicas[0].do(lambda r: r.distro.beat_http(lease, entry.ref, term=0, now=three.now))
    three.run(1.0)
    assert three.replicas[1].catalog.lease(lease).entries[entry.ref].seen > seen
    assert three.replicas[0].catalog.lease(lease).origin == 1


def test_two_registrations_at_once_by_one_address_are_both_kept(three):
    entries = [an_entry(service="orders"), an_entry(service="users")]
    for ordinal, entry in enumerate(entries):
        three.replicas[ordinal].do(
            lambda r, e=entry: r.catalog.register_http(http_lease(e.ref), e, term=0, now=three.now)
        )
    three.carry()
    for replica in three.replicas.values():
        assert {s.key.name for s in replica.catalog.services if s.instances} == {"orders", "users"}


def test_rendezvous_moves_only_what_a_lost_replica_had():
    leases = [http_lease(a_ref(port)) for port in range(1, 2001)]
    before = {lease: rendezvous.owner(lease, [0, 1, 2]) for lease in leases}
    after = {lease: rendezvous.owner(lease, [0, 2]) for lease in leases}
    assert all(after[lease] == before[lease] for lease in leases if before[lease] != 1)
    share = [list(before.values()).count(o) / len(leases) for o in (0, 1, 2)]
    assert all(0.28 < s < 0.39 for s in share)


# --- bounds -------------------------------------------------------------------------------------------------


def writes_of(catalog):
    return [e.write for e in catalog.take_events() if isinstance(e, Written)]


def test_the_ring_log_is_bounded_by_count_and_by_bytes():
    catalog = Catalog(Timings())
    catalog.attach("a", kind=Kind.SESSION, term=0, holder=1, now=0.0)
    (write,) = writes_of(catalog)
    log = RingLog(max_changes=10, max_bytes=1000)
    for seq in range(1, 101):
        log.append(seq, write, 300)
    assert len(log) == 3
    assert log.bytes == 900
    assert log.after(97, max_records=99, max_bytes=9999) == [write] * 3
    assert log.after(96, max_records=99, max_bytes=9999) is None
    assert log.after(100, max_records=99, max_bytes=9999) is None
    assert log.after(97, max_records=99, max_bytes=1) == [write]
    log.append(200, write, 1)
    assert log.after(198, max_records=99, max_bytes=9999) is None
    assert log.after(199, max_records=99, max_bytes=9999) == [write]


def test_a_lease_larger_than_a_message_is_cut_and_put_together(three):
    source, target = three.replicas[0], three.replicas[1]
    source.enter("large", *(an_entry(port) for port in range(1, 5001)))
    three.carry()
    three.kill(1)
    three.run(3.0)
    target = three.start(1, boot="1.2")
    three.carried.clear()
    three.run(3.0)
    assert len(target.shown) == 5000
    parts = [m for m in three.of(Part) if m.origin == 0]
    assert len(parts) > 2
    assert all(len(w.put) <= 2000 for m in parts for w in m.writes)
    assert max(len(encode(m)) for m in parts) < 512 * 1024
    assert target.distro.following.streams[0].sum == source.distro.following.own.sum


def test_a_set_that_changes_while_it_is_on_its_way_arrives_as_it_is():
    """Every order of parts and later writes that one connection can deliver ends at the same content."""
    rng = random.Random(5)
    for _ in range(200):
        catalog = Catalog(Timings())
        own = Stream(0, boot="b", max_changes=1000, max_bytes=10**6)
        held: dict[str, set[int]] = {}

        def write(catalog=catalog, own=own, held=held):
            id_ = f"lease{rng.randrange(6)}"
            if id_ in held and rng.random() < 0.15:
                catalog.release(id_, 0.0)
                del held[id_]
            else:
                if id_ not in held:
                    catalog.attach(id_, kind=Kind.SESSION, term=0, holder=1, now=0.0)
                    held[id_] = set()
                port = rng.randrange(1, 9)
                catalog.register(id_, [an_entry(port, ip=f"10.0.0.{id_[-1]}", weight=rng.random())], 0.0)
                held[id_].add(port)
                if rng.random() < 0.3:
                    gone = rng.choice(sorted(held[id_]))
                    catalog.deregister(id_, [a_ref(gone, ip=f"10.0.0.{id_[-1]}")], 0.0)
                    held[id_].discard(gone)
            new = writes_of(catalog)
            for one in new:
                own.follow(one)
            return new

        for _ in range(30):
            write()
        copy = Stream(0, boot="old", max_changes=1000, max_bytes=10**6)
        for id_ in list(own.copies)[:3]:
            copy.keep(own.copies[id_].record())
        parts = whole(own, 1, max_records=3, max_bytes=10**6)
        for part in parts:
            if part.index == 0:
                copy.begin(part.boot, part.seq)
            for at, one in enumerate(part.writes):
                copy.arrive(one, split=part.split and at == len(part.writes) - 1)
            if part.last:
                copy.finish()
                break
            for _ in range(rng.randrange(3)):
                for one in write():
                    copy.follow(one)
        assert copy.complete
        assert copy.sum == own.sum
        assert {i: c.record() for i, c in copy.copies.items()}.keys() == own.copies.keys()


def test_the_digest_is_over_content():
    catalog = Catalog(Timings())
    catalog.attach("a", kind=Kind.SESSION, term=0, holder=1, now=0.0)
    catalog.register("a", [an_entry(port) for port in range(1, 30)], 0.0)
    record = catalog.record("a")
    copy, other = Copy(record), Copy(record)
    for entry in record.put:
        copy.put(entry)
    for entry in reversed(record.put):
        other.put(entry)
        other.put(entry)
    assert copy.xor == other.xor
    assert copy.size == other.size
    copy.put(msgspec.structs.replace(record.put[0], silent=True))
    assert copy.xor != other.xor
    copy.put(record.put[0])
    assert copy.xor == other.xor
    copy.drop(record.put[3].entry.ref)
    assert copy.xor != other.xor
    assert len(copy) == 28


def test_an_idle_cluster_says_little(three):
    for n in range(100):
        three.replicas[0].enter(f"lease{n}", an_entry(n + 1))
    three.carry()
    three.run(6.0)
    three.carried.clear()
    three.run(10.0)
    size = sum(len(encode(m)) for _, _, m in three.carried)
    assert not three.of(Change)
    assert len(three.of(Ping)) == 6 * 20
    assert size / 10.0 / 3 < 2048  # bytes a second and replica, whatever the size of the book
