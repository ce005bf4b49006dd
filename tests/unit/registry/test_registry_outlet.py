"""The outlet: everybody gets every change once, encoded once, and nobody costs more for being slow."""

from __future__ import annotations

import pytest

from registrykit import ORDERS, Ledger, Patient, an_entry, key_of
from rollbook import frames
from rollbook.digest import spell
from rollbook.patterns import Pattern
from rollbook_registry.catalog import ServiceChanged, ServiceForgotten
from rollbook_registry.catalog.services import LOG_LENGTH
from rollbook_registry.push import Outlet, Subscriber


class Counting(frames.Codec):
    """Counts what it spells."""

    def __init__(self, subprotocol=frames.MSGPACK):
        super().__init__(subprotocol)
        spell_out = self.encode
        self.count = 0

        def encode(frame):
            self.count += 1
            return spell_out(frame)

        self.encode = encode


class Desk:
    """A ledger with an outlet, as the book joins them."""

    def __init__(self):
        self.ledger = Ledger()
        self.now = 0.0
        self.pushed = []
        self.conflated = 0
        self.outlet = Outlet(
            boot="b1", service=self.ledger.catalog.service,
            services=self.ledger.catalog.services.within, wall=lambda: 1000.0 + self.now,
            clock=lambda: self.now, pushed=self.pushed.append, conflated=self.conflate,
        )  # fmt: skip
        self.woken = 0
        self.outlet.wake = self.wake
        self.ledger.enter("a", an_entry())
        self.told()

    def wake(self):
        self.woken += 1

    def conflate(self, count):
        self.conflated += count

    def told(self):
        for event in self.ledger.take():
            if isinstance(event, ServiceChanged):
                self.outlet.changed(event)
            elif isinstance(event, ServiceForgotten):
                self.outlet.forgotten(event.service)

    def enter(self, *entries, lease="a"):
        self.ledger.enter(lease, *entries)
        self.told()

    def number(self, key=ORDERS):
        return self.ledger.catalog.service(key).number

    def revision(self, key=ORDERS):
        return self.outlet.revision(self.number(key))


class Reader:
    """A subscriber whose client acknowledges when a test says so."""

    def __init__(self, desk, codec=None, key=ORDERS, revision="", digest=""):
        self.desk = desk
        self.key = key
        self.codec = codec or Counting()
        self.subscriber = Patient(desk.outlet, self.codec)
        desk.outlet.subscribe(self.subscriber, key, revision=revision, digest=digest)

    def take(self):
        return [self.codec.answer(data) for data in self.subscriber.take()]

    def ack(self, revision=None):
        revision = revision or self.desk.revision(self.key)
        self.desk.outlet.acknowledge(self.subscriber, self.key, revision)

    def take_one(self):
        (frame,) = self.take()
        return frame


class Live(Subscriber):
    """A subscriber that is sent what there is for it, and acknowledges when a test says so."""

    def __init__(self, desk, *keys, codec=None, **limits):
        super().__init__(codec or Counting(), **limits)
        self.desk = desk
        self.got = []
        self.block_after = None
        for key in keys:
            desk.outlet.subscribe(self, key, revision="", digest="")

    def send(self, data):
        assert not self.blocked
        self.got.append(self.spelling.answer(data))
        if self.block_after is not None and len(self.got) >= self.block_after:
            self.blocked = True

    def take(self):
        taken, self.got = self.got, []
        return taken

    def ack(self):
        for key in list(self.subscriptions):
            self.desk.outlet.acknowledge(self, key, self.desk.revision(key))


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def reader(desk):
    reader = Reader(desk)
    reader.take()
    reader.ack()
    return reader


def test_a_new_subscriber_gets_the_whole_list_with_revision_and_digest(desk):
    reader = Reader(desk)
    snapshot = reader.take_one()
    assert [i.port for i in snapshot.instances] == [8080]
    assert snapshot.revision == desk.revision()
    assert snapshot.digest == spell(desk.ledger.catalog.service(ORDERS).digest)
    assert snapshot.settled is False
    desk.outlet.settle()
    assert Reader(desk).take_one().settled is True


def test_a_service_that_nobody_entered_has_an_empty_list(desk):
    snapshot = Reader(desk, key=key_of("none")).take_one()
    assert (snapshot.instances, snapshot.revision, snapshot.digest) == ([], "b1.0", spell(0))


def test_a_change_is_a_delta_from_what_was_sent(desk, reader):
    before = desk.revision()
    desk.now = 5.0
    desk.enter(an_entry(81))
    delta = reader.take_one()
    assert (delta.base, delta.revision, delta.at) == (before, desk.revision(), 1005.0)
    assert ([i.port for i in delta.put], delta.drop) == ([81], [])
    assert reader.take() == []


def test_all_at_the_same_base_share_one_encoding(desk):
    shared = Counting()
    readers = [Reader(desk, shared) for _ in range(100)]
    for reader in readers:
        reader.take()
        reader.ack()
    assert shared.count == 1
    desk.enter(an_entry(81))
    for reader in readers:
        reader.take()
    assert shared.count == 2
    other = Reader(desk, Counting(frames.JSON))
    other.take()
    assert (other.codec.count, shared.count) == (1, 2)


def test_changes_while_one_is_on_its_way_are_merged_into_the_next(desk, reader):
    desk.enter(an_entry(81))
    first = reader.take_one()
    for port in (82, 83, 84):
        desk.enter(an_entry(port))
        # Nothing is queued for it meanwhile.
        assert reader.take() == []
    desk.ledger.deregister("a", an_entry(82).ref)
    desk.told()
    assert reader.take() == []
    assert desk.conflated == 4
    reader.ack(first.revision)
    second = reader.take_one()
    assert second.base == first.revision
    assert sorted(i.port for i in second.put) == [83, 84]
    reader.ack()
    assert reader.take() == []


def test_changes_before_the_session_can_write_are_merged_too(desk, reader):
    for port in (81, 82):
        desk.enter(an_entry(port))
        desk.outlet.flush(1)
    delta = reader.take_one()
    assert sorted(i.port for i in delta.put) == [81, 82]
    assert desk.conflated == 1


def test_a_frame_is_made_when_it_can_be_written_so_that_the_latest_is_in_it(desk):
    desk.enter(an_entry(81, service="invoices"))
    reader = Reader(desk)
    desk.outlet.subscribe(reader.subscriber, key_of("invoices"), revision="", digest="")
    writing = reader.subscriber.take()
    next(writing)
    desk.enter(an_entry(82, service="invoices"))
    second = reader.codec.answer(next(writing))
    assert sorted(i.port for i in second.instances) == [81, 82]
    assert list(writing) == []


def test_who_is_too_far_behind_gets_the_list(desk, reader):
    desk.enter(an_entry(81))
    first = reader.take_one()
    for n in range(LOG_LENGTH):
        desk.enter(an_entry(82, weight=float(n + 2)))
    reader.ack(first.revision)
    assert isinstance(reader.take_one(), frames.Delta)
    for n in range(LOG_LENGTH + 1):
        desk.enter(an_entry(82, weight=float(n + 1000)))
    reader.ack()
    reader.take()
    slow = Reader(desk, revision=first.revision, digest="0" * 15 + "1")
    snapshot = slow.take_one()
    assert sorted(i.port for i in snapshot.instances) == [81, 82, 8080]


@pytest.mark.parametrize("revision", ["b1.1", "another.7", "", "nonsense"])
def test_who_holds_the_very_list_is_told_that_it_is_current(desk, revision):
    digest = spell(desk.ledger.catalog.service(ORDERS).digest)
    reader = Reader(desk, revision=revision, digest=digest)
    assert reader.take() == []
    current = desk.outlet.current(ORDERS, reader.subscriber)
    assert (current.revision, current.digest, current.settled) == (desk.revision(), digest, False)
    desk.enter(an_entry(81))
    assert desk.outlet.current(ORDERS, reader.subscriber) is None
    assert reader.take_one().base == current.revision


def test_who_comes_back_a_little_behind_gets_a_delta(desk):
    before, digest = desk.revision(), spell(desk.ledger.catalog.service(ORDERS).digest)
    desk.enter(an_entry(81))
    delta = Reader(desk, revision=before, digest=digest).take_one()
    assert (delta.base, [i.port for i in delta.put]) == (before, [81])


@pytest.mark.parametrize("revision", ["another.1", "b1.", "b1.x", "b1.99999", "b1.²"])
def test_who_comes_back_with_a_revision_of_another_life_gets_the_list(desk, revision):
    assert isinstance(Reader(desk, revision=revision, digest="f" * 16).take_one(), frames.Snapshot)


def test_who_holds_another_list_at_the_same_revision_gets_the_list(desk):
    reader = Reader(desk, revision=desk.revision(), digest="f" * 16)
    assert isinstance(reader.take_one(), frames.Snapshot)


def test_a_service_that_was_dropped_and_made_again_never_confuses_an_old_subscriber(desk, reader):
    desk.ledger.release("a")
    desk.told()
    assert len(reader.take_one().drop) == 1
    reader.ack()
    desk.ledger.wait(61.0)
    assert desk.ledger.catalog.service(ORDERS) is None
    newcomer = Reader(desk)
    newcomer.take()
    newcomer.ack("b1.0")
    desk.enter(an_entry(81), lease="b")
    snapshot = reader.take_one()
    assert [i.port for i in snapshot.instances] == [81]
    delta = newcomer.take_one()
    assert (delta.base, [i.port for i in delta.put]) == ("b1.0", [81])


def test_acknowledging_anything_but_the_last_frame_counts_for_nothing(desk, reader):
    old = desk.revision()
    desk.enter(an_entry(81))
    reader.take()
    desk.enter(an_entry(82))
    for revision in (old, "b1.99", "x.1", "", desk.revision()):
        reader.ack(revision)
        assert reader.take() == []
    desk.outlet.acknowledge(reader.subscriber, key_of("none"), old)


def test_the_time_from_a_change_to_its_acknowledgement_is_measured_for_each_subscriber(desk, reader):
    desk.now = 10.0
    desk.enter(an_entry(81))
    first = reader.take_one()
    desk.now = 10.5
    desk.enter(an_entry(82))
    desk.now = 11.0
    reader.ack(first.revision)
    assert desk.pushed == [1.0]
    reader.take()
    desk.now = 12.0
    reader.ack()
    # The merged one counts from the first of the changes in it.
    assert desk.pushed == [1.0, 1.5]


def test_who_unsubscribes_or_leaves_gets_nothing_more_and_leaves_nothing_behind(desk, reader):
    desk.outlet.subscribe(reader.subscriber, key_of("none"), revision="", digest="")
    assert desk.outlet.subscriptions == 2
    desk.outlet.unsubscribe(reader.subscriber, ORDERS)
    desk.outlet.unsubscribe(reader.subscriber, ORDERS)
    desk.enter(an_entry(81))
    assert [f.service for f in reader.take()] == ["none"]
    desk.outlet.leave(reader.subscriber)
    assert desk.outlet.subscriptions == 0
    assert desk.outlet._topics == desk.outlet._changed == desk.outlet._news == desk.outlet._ready == {}
    assert list(desk.outlet.unacknowledged(-1.0)) == []


def test_a_watcher_is_told_once_of_a_change_or_of_the_book_settling(desk):
    calls = []
    desk.outlet.watch(ORDERS, lambda: calls.append("change"))
    cancelled = desk.outlet.watch(ORDERS, lambda: calls.append("never"))
    desk.outlet.watch(key_of("none"), lambda: calls.append("settled"))
    cancelled()
    cancelled()
    desk.enter(an_entry(81))
    desk.enter(an_entry(82))
    assert calls == ["change"]
    desk.outlet.settle()
    assert calls == ["change", "settled"]
    desk.outlet.watch(ORDERS, lambda: calls.append("never"))()
    assert desk.outlet._watchers == {}


# --- telling in slices ----------------------------------------------------------------------------------


def live(desk, count, **options):
    """So many who have the list."""
    subscribers = [Live(desk, ORDERS, **options) for _ in range(count)]
    desk.outlet.flush(1000)
    for subscriber in subscribers:
        subscriber.ack()
        subscriber.take()
    desk.woken = 0
    return subscribers


def told(subscribers):
    return [len(s.got) for s in subscribers]


def test_a_change_is_told_to_so_many_at_a_time_and_asks_for_more_turns_until_all_have_it(desk):
    subscribers = live(desk, 5)
    desk.enter(an_entry(81))
    assert (told(subscribers), desk.woken) == ([0] * 5, 1)
    for turn, expected in enumerate(([1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1] * 5), 1):
        desk.outlet.flush(2)
        assert told(subscribers) == expected
        assert desk.woken == min(turn + 1, 3)
    desk.outlet.flush(2)
    assert (told(subscribers), desk.woken) == ([1] * 5, 3)


def test_changes_of_one_turn_are_one_push(desk):
    subscribers = live(desk, 2)
    for port in (81, 82, 83):
        desk.enter(an_entry(port))
    assert desk.woken == 1
    desk.outlet.flush(1000)
    for subscriber in subscribers:
        (delta,) = subscriber.take()
        assert sorted(i.port for i in delta.put) == [81, 82, 83]


def test_a_change_while_another_is_being_told_reaches_everybody_once(desk):
    subscribers = live(desk, 4)
    desk.enter(an_entry(81))
    desk.outlet.flush(2)
    desk.enter(an_entry(82))
    for _ in range(4):
        desk.outlet.flush(2)
    first, _, third, _ = (s.take() for s in subscribers)
    assert [[i.port for i in f.put] for f in first] == [[81]]
    assert [sorted(i.port for i in f.put) for f in third] == [[81, 82]]
    for subscriber in subscribers:
        subscriber.desk.outlet.acknowledge(subscriber, ORDERS, first[0].revision)
        subscriber.ack()
    desk.outlet.flush(1000)
    assert [[i.port for i in f.put] for f in subscribers[0].take()] == [[82]]
    assert subscribers[2].take() == []
    assert list(desk.outlet.unacknowledged(-1.0)) != []
    subscribers[0].ack()
    subscribers[1].ack()
    assert list(desk.outlet.unacknowledged(-1.0)) == []


def test_who_leaves_or_comes_while_a_change_is_being_told_is_told_right(desk):
    subscribers = live(desk, 4)
    desk.enter(an_entry(81))
    desk.outlet.flush(1)
    desk.outlet.unsubscribe(subscribers[2], ORDERS)
    desk.outlet.leave(subscribers[3])
    newcomer = Live(desk, ORDERS)
    desk.outlet.subscribe(subscribers[2], ORDERS, revision="", digest="")
    desk.outlet.flush(1000)
    assert told([*subscribers, newcomer]) == [1, 1, 1, 0, 1]
    assert isinstance(subscribers[2].take()[0], frames.Snapshot)
    assert isinstance(newcomer.take()[0], frames.Snapshot)
    desk.outlet.flush(1000)
    assert told([*subscribers, newcomer]) == [1, 1, 0, 0, 0]


def test_who_takes_nothing_for_now_gets_all_in_one_when_it_does(desk):
    (subscriber,) = live(desk, 1)
    subscriber.blocked = True
    for port in (81, 82):
        desk.enter(an_entry(port))
        desk.outlet.flush(1000)
    assert told([subscriber]) == [0]
    desk.woken = 0
    subscriber.blocked = False
    desk.outlet.unblocked(subscriber)
    assert desk.woken == 1
    desk.outlet.flush(1000)
    (delta,) = subscriber.take()
    assert sorted(i.port for i in delta.put) == [81, 82]
    desk.outlet.unblocked(subscriber)
    desk.outlet.flush(1000)
    assert told([subscriber]) == [0]


def test_who_is_blocked_in_the_middle_of_its_news_gets_the_rest_later(desk):
    subscriber = Live(desk, *(key_of(f"s{n}") for n in range(5)))
    subscriber.block_after = 2
    desk.outlet.flush(1000)
    assert [f.service for f in subscriber.take()] == ["s0", "s1"]
    desk.outlet.flush(1000)
    assert subscriber.take() == []
    subscriber.block_after, subscriber.blocked = None, False
    desk.outlet.unblocked(subscriber)
    desk.outlet.flush(2)
    desk.outlet.flush(2)
    assert [f.service for f in subscriber.take()] == ["s2", "s3", "s4"]


def test_a_subscriber_with_very_many_news_holds_nobody_up(desk):
    many, few = [key_of(f"s{n}") for n in range(10)], [key_of("few")]
    busy, other = Live(desk), Live(desk)
    (follower,) = live(desk, 1)
    for subscriber, keys in ((busy, many), (other, few)):
        for key in keys:
            desk.outlet.subscribe(subscriber, key, revision="", digest="")
    desk.enter(an_entry(81))
    desk.outlet.flush(3)
    assert told([busy, other, follower]) == [3, 0, 1]
    # It goes on behind the others.
    desk.outlet.flush(3)
    assert told([busy, other, follower]) == [5, 1, 1]
    desk.outlet.flush(1000)
    assert told([busy, other, follower]) == [10, 1, 1]


def test_a_service_that_was_let_go_before_its_emptiness_was_told_is_told_as_empty_first(desk):
    desk.outlet.settle()
    (subscriber,) = live(desk, 1)
    desk.outlet.follow(subscriber, Pattern("public", "DEFAULT_GROUP", "orders*"), {})
    desk.outlet.unsubscribe(subscriber, ORDERS)
    desk.ledger.release("a")
    desk.ledger.wait(61.0)
    desk.told()
    desk.outlet.flush(1000)
    (empty,) = subscriber.take()
    assert (type(empty), empty.instances) == (frames.Snapshot, [])
    desk.outlet.acknowledge(subscriber, ORDERS, empty.revision)
    desk.outlet.flush(1000)
    assert [type(f) for f in subscriber.take()] == [frames.Vanished]
    assert desk.outlet.subscriptions == 0


def test_a_service_that_was_let_go_while_its_emptiness_was_being_told_is_told_as_empty_to_all(desk):
    desk.outlet.settle()
    pattern = Pattern("public", "DEFAULT_GROUP", "orders*")
    subscribers = [Live(desk) for _ in range(3)]
    for subscriber in subscribers:
        desk.outlet.follow(subscriber, pattern, {})
    desk.outlet.flush(1000)
    for subscriber in subscribers:
        subscriber.ack()
        subscriber.take()
    desk.ledger.release("a")
    desk.told()
    desk.outlet.flush(1)
    desk.ledger.wait(61.0)
    desk.told()
    desk.outlet.flush(1000)
    kinds = [[type(f) for f in s.take()] for s in subscribers]
    assert kinds == [[frames.Delta], [frames.Snapshot], [frames.Snapshot]]


def test_who_finds_the_list_that_is_about_to_be_told_is_told_nothing(desk):
    (other,) = live(desk, 1)
    desk.enter(an_entry(81))
    holder = Live(desk)
    digest = spell(desk.ledger.catalog.service(ORDERS).digest)
    desk.outlet.subscribe(holder, ORDERS, revision="elsewhere.1", digest=digest)
    desk.outlet.flush(1000)
    assert told([other, holder]) == [1, 0]


def test_push_times_count_from_the_first_change_that_had_to_wait(desk):
    (subscriber,) = live(desk, 1)
    desk.now = 10.0
    desk.enter(an_entry(81))
    desk.now = 11.0
    desk.enter(an_entry(82))
    desk.now = 12.0
    desk.outlet.flush(1000)
    # Another is made, and not told yet, when this one is acknowledged.
    (delta,) = subscriber.take()
    desk.now = 12.5
    desk.enter(an_entry(83))
    desk.now = 13.0
    desk.outlet.acknowledge(subscriber, ORDERS, delta.revision)
    desk.outlet.flush(1000)
    desk.now = 14.0
    subscriber.ack()
    assert desk.pushed == [3.0, 1.5]


# --- barriers -------------------------------------------------------------------------------------------


class Gate:
    def __init__(self, desk, *keys):
        self.lifted = 0
        self.remove = desk.outlet.barrier(keys or [ORDERS], self.lift)

    def lift(self):
        self.lifted += 1


def test_a_barrier_is_lifted_at_once_when_everybody_has_everything(desk, reader):
    assert Gate(desk).lifted == 1
    assert Gate(desk, key_of("none")).lifted == 1


def test_a_barrier_waits_for_all_current_subscribers(desk, reader):
    second = Reader(desk)
    second.take()
    second.ack()
    desk.enter(an_entry(81))
    gate = Gate(desk)
    reader.take()
    reader.ack()
    assert gate.lifted == 0
    second.take()
    second.ack()
    assert gate.lifted == 1
    assert gate.remove() == 0
    assert not desk.outlet._barriers


def test_a_barrier_waits_for_what_had_changed_when_it_was_put_up_and_no_later_change(desk, reader):
    desk.enter(an_entry(81))
    gate = Gate(desk)
    first = reader.take_one()
    desk.enter(an_entry(82))
    reader.ack(first.revision)
    assert gate.lifted == 1


def test_a_later_list_passes_a_barrier_too(desk, reader):
    desk.enter(an_entry(81))
    gate = Gate(desk)
    desk.enter(an_entry(82))
    reader.take()
    reader.ack()
    assert gate.lifted == 1


def test_later_subscribers_are_not_waited_for(desk, reader):
    desk.enter(an_entry(81))
    gate = Gate(desk)
    Reader(desk)
    reader.take()
    reader.ack()
    assert gate.lifted == 1


def test_one_who_has_not_had_the_first_list_yet_is_waited_for(desk):
    reader = Reader(desk)
    gate = Gate(desk)
    reader.take()
    assert gate.lifted == 0
    reader.ack()
    assert gate.lifted == 1


@pytest.mark.parametrize("how", ["leave", "unsubscribe"])
def test_who_goes_does_not_hold_a_barrier_up(desk, reader, how):
    desk.enter(an_entry(81))
    gate = Gate(desk)
    if how == "leave":
        desk.outlet.leave(reader.subscriber)
    else:
        desk.outlet.unsubscribe(reader.subscriber, ORDERS)
    assert gate.lifted == 1


def test_a_barrier_over_several_services_waits_for_each(desk, reader):
    desk.enter(an_entry(81, service="invoices"))
    other = Reader(desk, key=key_of("invoices"))
    desk.enter(an_entry(82))
    gate = Gate(desk, ORDERS, key_of("invoices"))
    reader.take()
    reader.ack()
    assert gate.lifted == 0
    other.take()
    other.ack()
    assert gate.lifted == 1


def test_a_barrier_that_is_given_up_says_how_many_were_behind(desk, reader):
    second = Reader(desk)
    desk.enter(an_entry(81))
    gate = Gate(desk)
    second.take()
    second.ack()
    assert gate.remove() == 1
    reader.take()
    reader.ack()
    assert gate.lifted == 0


def test_who_subscribes_again_while_a_barrier_waits_passes_it_with_the_fresh_list(desk, reader):
    desk.enter(an_entry(81))
    gate = Gate(desk)
    reader.take()
    desk.outlet.subscribe(reader.subscriber, ORDERS, revision="", digest="")
    reader.ack()
    assert gate.lifted == 0
    assert isinstance(reader.take_one(), frames.Snapshot)
    reader.ack()
    assert gate.lifted == 1


def test_who_was_slow_while_a_service_emptied_and_was_dropped_hears_that_it_is_empty(desk, reader):
    desk.enter(an_entry(81))
    first = reader.take_one()
    desk.ledger.release("a")
    desk.told()
    desk.ledger.wait(61.0)
    assert desk.ledger.catalog.service(ORDERS) is None
    reader.ack(first.revision)
    snapshot = reader.take_one()
    assert (snapshot.revision, snapshot.instances) == ("b1.0", [])
    reader.ack(snapshot.revision)
    assert reader.take() == []


class Faulty(Live):
    """A subscriber that fails while a test wants it to."""

    failing = False

    def send(self, data):
        if self.failing:
            raise ValueError("a bug")
        super().send(data)


def flush_all(desk, most):
    """Flush as long as the outlet asks for it; returns how many times it failed."""
    failed, asked = 0, None
    while desk.woken != asked:
        asked = desk.woken
        try:
            desk.outlet.flush(most)
        except ValueError:
            failed += 1
    return failed


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_a_failure_in_a_change_takes_nothing_from_those_behind(desk, most):
    other = key_of("other")
    desk.enter(an_entry(service="other"))
    live = [Faulty(desk, ORDERS, other) for _ in range(5)]
    flush_all(desk, most)
    for each in live:
        each.ack()
        each.take()
    desk.enter(an_entry(81), an_entry(82, service="other"))
    live[1].failing = True
    assert flush_all(desk, most) == 2
    got = [sorted(frame.service for frame in each.take()) for each in live]
    assert got == [["orders", "other"], [], *[["orders", "other"]] * 3]


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_a_failure_in_news_takes_nothing_from_others_nor_from_what_follows(desk, most):
    live = [Faulty(desk, ORDERS, key_of("a"), key_of("b")) for _ in range(3)]
    desk.enter(an_entry(81))
    live[0].failing = True
    with pytest.raises(ValueError, match="a bug"):
        desk.outlet.flush(1)
    live[0].failing = False
    assert flush_all(desk, most) == 0
    assert [len(each.take()) for each in live] == [2, 3, 3]


def test_a_flush_looks_at_so_many_even_if_there_is_nothing_to_tell(desk):
    live = [Live(desk, ORDERS) for _ in range(10)]
    # What they say that they hold now is the very list: there is no news any more.
    held = spell(desk.ledger.catalog.service(ORDERS).digest)
    for each in live:
        desk.outlet.subscribe(each, ORDERS, revision=desk.revision(), digest=held)
    looked = desk.woken
    desk.outlet.flush(4)
    assert desk.woken == looked + 1, "there are more to be looked at"
    desk.outlet.flush(4)
    desk.outlet.flush(4)
    assert desk.woken == looked + 2
    assert [each.take() for each in live] == [[]] * 10


@pytest.mark.parametrize("behind", [True, False])
def test_who_subscribes_again_is_not_late_with_what_that_superseded(desk, behind):
    live = Live(desk, ORDERS)
    desk.outlet.flush(1000)
    live.ack()
    held = live.take()[0]
    desk.now = 10.0
    desk.enter(an_entry(81))
    desk.outlet.flush(1000)
    desk.now = 15.0
    desk.enter(an_entry(82))
    desk.now = 19.0
    offer = {"revision": held.revision, "digest": held.digest} if behind else {"revision": "", "digest": ""}
    desk.outlet.subscribe(live, ORDERS, **offer)
    assert list(desk.outlet.unacknowledged(0.0)) == [], "it has nothing to acknowledge"
    desk.now = 20.0
    desk.outlet.flush(1000)
    assert [since for *_, since in desk.outlet.unacknowledged(0.0)] == [20.0]
    desk.now = 21.0
    pushed = len(desk.pushed)
    live.ack()
    # What it was sent is an answer to it, or what changed last.
    assert all(took <= 6.0 for took in desk.pushed[pushed:])


def test_who_turns_out_to_hold_the_list_is_not_timed_by_what_went_before(desk):
    live = Live(desk, ORDERS)
    desk.outlet.flush(1000)
    live.ack()
    desk.now = 10.0
    desk.enter(an_entry(81))
    desk.outlet.flush(1000)
    held = spell(desk.ledger.catalog.service(ORDERS).digest)
    desk.outlet.subscribe(live, ORDERS, revision=desk.revision(), digest=held)
    desk.now = 100.0
    desk.enter(an_entry(82))
    desk.outlet.flush(1000)
    desk.now = 101.0
    live.ack()
    assert desk.pushed == [1.0]
