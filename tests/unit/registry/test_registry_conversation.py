"""A session's state machine without sockets: frames in, answers out, in time that a test lets pass."""

from __future__ import annotations

import pytest

from registrykit import ORDERS, a_ref, an_entry
from rollbook import frames
from rollbook_registry.api.session import Session
from rollbook_registry.auth import LOCAL
from rollbook_registry.book import Book
from rollbook_registry.push import Subscriber
from rollbook_registry.settings import RegistrySettings

CODEC = frames.Codec(frames.MSGPACK)


class Timer:
    def __init__(self, at, call):
        self.at, self.call = at, call

    def cancel(self):
        self.call = None


class Talk(Subscriber):
    """A client's session, and all that it heard in order: answers and pushes."""

    def __init__(self, desk):
        super().__init__(CODEC)
        self.desk = desk
        self.heard = []
        self.timers = []
        self.session = Session(desk.book, LOCAL, codec=CODEC, subscriber=self, outward=self)

    def send(self, data):
        self.heard.append(CODEC.answer(data))

    def answer(self, frame):
        self.heard.append(frame)

    def later(self, seconds, call):
        self.timers.append(Timer(self.desk.now + seconds, call))
        return self.timers[-1]

    def say(self, *said):
        """Say frames; returns what was heard before anything was pushed."""
        before = len(self.heard)
        for frame in said:
            self.session.take(CODEC.encode(frame))
        return self.heard[before:]

    def attach(self, lease="a"):
        (attached,) = self.say(frames.Attach(lease=lease))
        return attached

    def pushed(self):
        """What is pushed now."""
        before = len(self.heard)
        self.desk.book.outlet.flush(1000)
        return self.heard[before:]

    def pending(self):
        return [t for t in self.timers if t.call is not None]


class Desk:
    def __init__(self, directory):
        self.now = 1000.0
        settings = RegistrySettings(data_dir=directory, auth="none")
        self.book = Book(settings, clock=lambda: self.now, wall=lambda: self.now)

    def passes(self, seconds, *talks):
        self.now += seconds
        for talk in talks:
            for timer in talk.pending():
                if timer.at <= self.now:
                    timer.call()


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture
def provider(desk):
    talk = Talk(desk)
    talk.attach()
    return talk


@pytest.fixture
def caller(desk):
    """Somebody who has the empty list of orders."""
    talk = Talk(desk)
    assert talk.say(frames.Subscribe(id=1, service="orders")) == []
    (snapshot,) = talk.pushed()
    talk.say(frames.Ack(service="orders", revision=snapshot.revision))
    return talk


def test_an_answer_comes_before_what_is_pushed_because_of_it(provider):
    provider.say(frames.Subscribe(id=1, service="orders"))
    answers = provider.say(frames.Register(id=2, entries=[an_entry()]), frames.Ping(n=3))
    assert [type(a) for a in answers] == [frames.Done, frames.Pong]
    assert [type(p) for p in provider.pushed()] == [frames.Snapshot]


def test_all_changes_of_a_packet_are_one_push_additions_before_removals(provider, caller):
    provider.say(frames.Register(id=1, entries=[an_entry(1)]))
    (first,) = caller.pushed()
    caller.say(frames.Ack(service="orders", revision=first.revision))
    provider.say(
        frames.Register(id=2, entries=[an_entry(2)]),
        frames.Deregister(id=3, entries=[a_ref(1)]),
        frames.Register(id=4, entries=[an_entry(3)]),
    )
    (delta,) = caller.pushed()
    assert sorted(i.port for i in delta.put) == [2, 3]
    assert delta.drop == ["10.0.0.1:1:DEFAULT"]


def test_a_barrier_that_nobody_holds_up_is_answered_at_once_and_leaves_no_timer(provider):
    (done,) = provider.say(frames.Barrier(id=5, services=[tuple(ORDERS)], timeout=9.0))
    assert (done.id, done.complete) == (5, True)
    assert provider.pending() == []


def test_a_barrier_is_answered_when_all_have_acknowledged(desk, provider, caller):
    provider.say(frames.Register(id=1, entries=[an_entry()]))
    assert provider.say(frames.Barrier(id=5, services=[tuple(ORDERS)], timeout=9.0)) == []
    (delta,) = caller.pushed()
    caller.say(frames.Ack(service="orders", revision=delta.revision))
    assert provider.heard[-1] == frames.Done(id=5, complete=True)
    assert provider.pending() == []
    assert not desk.book.outlet._barriers


def test_a_barrier_whose_time_is_up_says_so_once(desk, provider, caller):
    provider.say(frames.Register(id=1, entries=[an_entry()]))
    provider.say(frames.Barrier(id=5, services=[tuple(ORDERS)], timeout=9.0))
    desk.passes(8.9, provider)
    assert [f.id for f in provider.heard if isinstance(f, frames.Done)] == [1]
    desk.passes(0.2, provider)
    assert provider.heard[-1] == frames.Done(id=5, complete=False)
    (delta,) = caller.pushed()
    caller.say(frames.Ack(service="orders", revision=delta.revision))
    assert [f.id for f in provider.heard if isinstance(f, frames.Done)] == [1, 5]


def test_who_leaves_takes_its_barriers_along_and_detaches(desk, provider, caller):
    provider.say(frames.Register(id=1, entries=[an_entry()]))
    provider.say(frames.Barrier(id=5, services=[tuple(ORDERS)], timeout=9.0))
    provider.session.leave()
    assert provider.pending() == []
    assert not desk.book.outlet._barriers
    assert desk.book.catalog.lease("a").holder is None
    assert [type(f) for f in provider.heard] == [frames.Attached, frames.Done]


def test_who_leaves_holds_the_barriers_of_others_up_no_more(provider, caller):
    provider.say(frames.Register(id=1, entries=[an_entry()]))
    provider.say(frames.Barrier(id=5, services=[tuple(ORDERS)], timeout=9.0))
    caller.session.leave()
    assert provider.heard[-1] == frames.Done(id=5, complete=True)


def test_an_acknowledgement_of_what_is_not_followed_is_none_and_of_what_cannot_be_is_refused(caller):
    assert caller.say(frames.Ack(service="invoices", revision="x.1")) == []
    (refused,) = caller.say(frames.Ack(service="a b", revision="x.1"))
    assert (refused.problem.code, refused.problem.field) == ("bad_value", "service")


def test_a_beat_that_is_heard_has_no_answer(desk, provider):
    provider.say(frames.Register(id=1, entries=[an_entry()]))
    desk.now += 20.0
    assert provider.say(frames.Beat(term=1)) == []
    refused, ended = provider.say(frames.Beat(term=1, down=[a_ref(0)]), frames.Beat(term=0))
    assert (refused.problem.code, refused.problem.field) == ("bad_value", "down[0].port")
    assert isinstance(ended, frames.LeaseEnded)
