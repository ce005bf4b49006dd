"""The session: what it wants is made true, whatever happens to connection, lease and registry."""

from __future__ import annotations

import pytest

from registrykit import ORDERS, a_ref, an_entry, key_of
from rollbook import events, frames, session
from rollbook.clock import AttentiveClock
from rollbook.digest import digest, spell
from rollbook.model import Instance
from rollbook.names import LeaseId
from rollbook.problems import Problem

CLOSED = Problem("pod_terminating", "pod u is terminating")


class Talk:
    """A session and a registry that answers as told."""

    def __init__(self, **options):
        self.session = session.Session(LeaseId("lease"), **options)
        self.now = 0.0
        self.attentive = AttentiveClock(0.0)
        self.term = 0

    def connect(self, boot="b1", **attached):
        """Connect and attach; returns what is sent after that."""
        self.session.connected(self.now)
        before = self.sent()
        assert isinstance(before[0], frames.Attach)
        return before[1:] + self.attach(boot, **attached)

    def attach(self, boot="b1", *, resumed=False, settled=True, beat_interval=5.0):
        self.term += 1
        return self.receive(
            frames.Attached(
                boot=boot, term=self.term, resumed=resumed, settled=settled, beat_interval=beat_interval,
                unhealthy_after=15.0, remove_after=30.0,
            )
        )  # fmt: skip

    def receive(self, frame):
        self.session.received(frame, self.now)
        return self.sent()

    def done(self, frame):
        return self.receive(frames.Done(id=frame.id, term=self.term))

    def refuse(self, frame, problem):
        return self.receive(frames.Refused(id=getattr(frame, "id", 0), problem=problem.details()))

    def sent(self):
        return self.session.take_frames()

    def told(self, kind=object):
        return [e for e in self.session.take_events() if isinstance(e, kind)]

    def wait(self, seconds, step=0.25):
        """Let time pass in the client's ticks."""
        frames_sent = []
        end = self.now + seconds
        while self.now + step <= end:
            self.now += step
            self.session.tick(self.now, self.attentive.look(self.now))
            frames_sent += self.sent()
        return frames_sent


def snapshot(revision, *instances, settled=True):
    return frames.Snapshot(
        service="orders", revision=revision, digest=spell(digest(instances)), settled=settled,
        instances=list(instances),
    )  # fmt: skip


def an_instance(n):
    return Instance(key=f"10.0.0.{n}:80:DEFAULT", ip=f"10.0.0.{n}", port=80)


def kinds(sent):
    return [type(f).__name__ for f in sent]


@pytest.fixture
def talk():
    return Talk()


@pytest.fixture
def operator():
    return Talk(kind="operator", epoch=3)


# --- attaching and registering --------------------------------------------------------------------------


def test_who_wants_nothing_sends_nothing_and_who_subscribes_only_needs_no_lease(talk):
    talk.session.connected(0.0)
    assert talk.sent() == []
    talk.session.subscribe(ORDERS)
    assert talk.sent() == [frames.Subscribe(id=1, service="orders")]
    assert not talk.session.attached


def test_an_entry_is_registered_once_attached_and_then_confirmed(talk):
    talk.session.put([an_entry()])
    assert talk.sent() == []
    talk.session.connected(0.0)
    assert talk.sent() == [frames.Attach(lease="lease")]
    (register,) = talk.attach()
    assert register.entries == [an_entry()]
    assert not talk.session.is_confirmed(a_ref())
    talk.done(register)
    assert talk.session.is_confirmed(a_ref())
    assert talk.told() == [events.Confirmed((a_ref(),))]


def test_the_first_wish_on_a_standing_connection_attaches(talk):
    talk.session.connected(0.0)
    talk.session.put([an_entry()])
    talk.session.put([an_entry(81)])
    assert talk.sent() == [frames.Attach(lease="lease")]
    (register,) = talk.attach()
    assert register.entries == [an_entry(), an_entry(81)]


def test_a_beat_names_nothing_whose_name_the_registry_does_not_take(talk):
    talk.session.put([an_entry(port, alive=False) for port in (80, 81, 82)])
    (together,) = talk.connect()
    taken, held, odd = talk.refuse(together, Problem("bad_value", "no", field="entries[2].ip"))
    talk.done(taken)
    # What was put before may be in the book still.
    talk.refuse(held, Problem("limit_reached", "no"))
    talk.refuse(odd, Problem("bad_value", "no", field="entries[0].ip"))
    (beat,) = talk.wait(5.0, step=5.0)[:1]
    assert beat.down == [a_ref(80), a_ref(81)]


def test_what_is_only_equal_to_an_entrys_name_is_sent_as_the_entry_was_put(talk):
    talk.session.put([an_entry(80)])
    talk.done(*talk.connect())
    talk.session.set_down([a_ref(80.0)], talk.now)
    (beat,) = talk.sent()
    assert [type(ref.port) for ref in beat.down] == [int]
    talk.session.drop([a_ref(80.0)])
    (deregister,) = talk.sent()
    assert [type(ref.port) for ref in deregister.entries] == [int]


def test_of_names_that_are_withdrawn_together_only_those_stay_that_the_registry_refuses(talk):
    refs = [a_ref(port) for port in (80, 81, 82)]
    talk.session.put([an_entry(ref.port) for ref in refs])
    talk.done(*talk.connect())
    talk.session.drop(refs)
    (together,) = talk.sent()
    # What has been put again is not to be taken out behind its new offer.
    talk.session.put([an_entry(82)])
    talk.sent()
    talk.told()
    good, bad = talk.refuse(together, Problem("bad_value", "entries[1].port is wrong"))
    assert [good.entries, bad.entries] == [refs[:1], refs[1:2]]
    talk.done(good)
    # What the registry cannot read it does not have either.
    assert talk.refuse(bad, Problem("bad_value", "entries[0].port is wrong")) == []
    assert talk.told() == [events.Withdrawn((refs[0],)), events.Withdrawn((refs[1],))]
    assert not talk.session.leaving


def test_more_names_than_a_frame_holds_are_withdrawn_though_one_frame_is_refused(talk, monkeypatch):
    monkeypatch.setattr(session, "MAX_ENTRIES_PER_FRAME", 1)
    talk.session.put([an_entry(80), an_entry(81)])
    talk.done(*talk.connect())
    talk.session.drop([a_ref(80), a_ref(81)])
    (first,) = talk.sent()
    (second,) = talk.refuse(first, Problem("bad_value", "entries[0].port is wrong"))
    assert second.entries == [a_ref(81)]


def test_the_acknowledgement_of_an_older_withdrawal_does_not_speak_for_a_newer_one(talk):
    talk.session.put([an_entry()])
    talk.done(*talk.connect())
    talk.session.drop([a_ref()])
    (first,) = talk.sent()
    talk.session.put([an_entry()])
    talk.session.drop([a_ref()])
    *_, second = talk.sent()
    talk.told()
    talk.done(first)
    assert talk.told() == [events.Withdrawn(())]
    talk.done(second)
    assert talk.told() == [events.Withdrawn((a_ref(),))]


def test_the_refusal_of_an_older_put_does_not_speak_for_a_newer_one(talk):
    talk.session.put([an_entry()])
    (first,) = talk.connect()
    talk.session.put([an_entry(weight=2.0)])
    (second,) = talk.sent()
    talk.refuse(first, CLOSED)
    assert talk.told() == []
    assert talk.session.rejection(a_ref()) is None
    talk.done(second)
    assert talk.told() == [events.Confirmed((a_ref(),))]


def test_what_a_put_says_of_the_application_holds(talk):
    talk.session.put([an_entry()])
    talk.done(*talk.connect())
    talk.session.set_down([a_ref()], talk.now)
    talk.session.put([an_entry(weight=2.0)])
    *_, register = talk.sent()
    assert register.entries[0].alive is True
    talk.done(register)
    assert [f.down for f in talk.wait(5.0, step=5.0) if isinstance(f, frames.Beat)] == [[]]


def test_a_refusal_of_the_lease_is_that_of_one_connection(talk):
    talk.session.put([an_entry()])
    talk.session.connected(0.0)
    talk.sent()
    talk.session.received(frames.Refused(id=0, problem=CLOSED.details()), 0.0)
    assert talk.session.lease_problem is not None
    talk.session.disconnected()
    assert talk.session.lease_problem is None


def test_a_newer_put_is_what_confirms(talk):
    talk.session.put([an_entry()])
    (first,) = talk.connect()
    talk.session.put([an_entry(weight=2.0)])
    (second,) = talk.sent()
    talk.done(first)
    assert not talk.session.is_confirmed(a_ref())
    talk.done(second)
    assert talk.session.is_confirmed(a_ref())


def test_additions_are_asked_for_before_removals(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    talk.session.disconnected()
    talk.session.drop([a_ref()])
    talk.session.put([an_entry(81)])
    assert kinds(talk.connect()) == ["Register", "Deregister"]


def test_many_entries_go_in_several_frames(talk):
    talk.session.put([an_entry(n + 1) for n in range(session.BATCH + 1)])
    assert [len(f.entries) for f in talk.connect()] == [session.BATCH, 1]


def test_what_was_dropped_and_put_again_stays(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    talk.session.drop([a_ref()])
    talk.session.put([an_entry()])
    assert kinds(talk.sent()) == ["Deregister", "Register"]
    talk.session.disconnected()
    (register,) = talk.connect()
    assert register.entries == [an_entry()]


def test_dropping_what_was_never_put_asks_for_nothing(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    talk.session.drop([a_ref(99)])
    assert talk.sent() == []


# --- beats ----------------------------------------------------------------------------------------------


def test_a_beat_goes_out_every_interval_that_the_registry_asks_for(talk):
    talk.session.put([an_entry()])
    talk.connect(beat_interval=3.0)
    beats = [f for f in talk.wait(10.0) if isinstance(f, frames.Beat)]
    assert beats == [frames.Beat(term=1)] * 3


def test_without_a_lease_nothing_beats(talk):
    talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    assert not [f for f in talk.wait(12.0) if isinstance(f, frames.Beat)]


def test_set_down_beats_at_once_and_only_when_it_is_news(talk):
    talk.session.put([an_entry(), an_entry(81)])
    talk.done(talk.connect()[0])
    talk.session.set_down([a_ref()], talk.now)
    assert talk.sent() == [frames.Beat(term=1, down=[a_ref()])]
    talk.session.set_down([a_ref(), a_ref(99)], talk.now)
    assert talk.sent() == []
    assert [f for f in talk.wait(5.0) if isinstance(f, frames.Beat)] == [frames.Beat(term=1, down=[a_ref()])]
    talk.session.set_down([], talk.now)
    assert talk.sent() == [frames.Beat(term=1)]


def test_what_is_down_is_registered_as_down_afresh(talk):
    talk.session.put([an_entry(), an_entry(81)])
    talk.connect()
    talk.session.set_down([a_ref()], talk.now)
    talk.session.disconnected()
    (register,) = talk.connect()
    assert [e.alive for e in register.entries] == [False, True]


def test_an_entry_that_was_put_as_down_beats_as_down(talk):
    talk.session.put([an_entry(alive=False)])
    talk.connect()
    beats = [f for f in talk.wait(5.0) if isinstance(f, frames.Beat)]
    assert beats == [frames.Beat(term=1, down=[a_ref()])]


def test_what_has_not_been_checked_yet_is_registered_so_until_a_verdict_is_known(talk):
    talk.session.put([an_entry(alive=None), an_entry(81, alive=None)])
    (register,) = talk.connect()
    assert [e.alive for e in register.entries] == [None, None]
    talk.session.set_down([a_ref()], talk.now)
    assert talk.sent() == [frames.Beat(term=1, down=[a_ref()])]
    talk.session.disconnected()
    (register,) = talk.connect()
    assert [e.alive for e in register.entries] == [None, True]


def test_a_verdict_after_the_goodbye_is_of_no_concern(talk):
    talk.session.put([an_entry()])
    talk.connect()
    talk.session.set_down([a_ref()], talk.now)
    talk.session.release()
    talk.sent()
    talk.session.set_down([], talk.now)
    talk.session.set_down([a_ref()], talk.now)
    assert talk.sent() == []


# --- what may happen to it ------------------------------------------------------------------------------


def test_after_a_lost_connection_everything_is_offered_again_under_the_known_term(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    talk.session.disconnected()
    assert not talk.session.attached
    talk.session.connected(talk.now)
    assert talk.sent() == [frames.Attach(lease="lease", term=1)]
    (register,) = talk.attach(resumed=True)
    assert register.entries == [an_entry()]
    assert talk.session.term == 2
    assert not talk.told(events.Rebooted)
    # What was confirmed before is so again when it has been acknowledged again.
    assert not talk.session.is_confirmed(a_ref())
    talk.done(register)
    assert talk.session.is_confirmed(a_ref())


def test_what_was_in_flight_when_the_connection_broke_is_asked_again(talk):
    talk.session.put([an_entry(), an_entry(81)])
    talk.connect()
    talk.session.drop([a_ref(81)])
    talk.sent()
    talk.session.disconnected()
    register, deregister = talk.connect()
    assert register.entries == [an_entry()]
    assert deregister.entries == [a_ref(81)]
    talk.done(deregister)
    talk.session.disconnected()
    assert kinds(talk.connect()) == ["Register"]


def test_a_dropped_entry_is_withdrawn_after_reconnecting_though_nothing_else_is_wanted(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    talk.session.disconnected()
    talk.session.drop([a_ref()])
    (deregister,) = talk.connect(boot="b2")
    assert deregister.entries == [a_ref()]


def test_an_ended_lease_is_attached_again_and_everything_registered_afresh(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    assert talk.receive(frames.LeaseEnded(lease="lease", term=7)) == [frames.Attach(lease="lease", term=7)]
    # A second beat of the old term may have been answered likewise.
    assert talk.receive(frames.LeaseEnded(lease="lease", term=7)) == []
    assert talk.told() == [events.Confirmed((a_ref(),)), events.Ended(7)]
    talk.term = 7
    (register,) = talk.attach()
    assert register.entries == [an_entry()]
    talk.done(register)
    assert talk.session.is_confirmed(a_ref())
    assert [f for f in talk.wait(5.0) if isinstance(f, frames.Beat)] == [frames.Beat(term=8)]


def test_another_leases_end_is_no_concern(talk):
    talk.session.put([an_entry()])
    talk.connect()
    assert talk.receive(frames.LeaseEnded(lease="other", term=7)) == []
    assert talk.session.attached


def test_a_reboot_is_told_and_everything_is_registered_again(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    talk.session.disconnected()
    (register,) = talk.connect("b2")
    assert register.entries == [an_entry()]
    assert talk.told(events.Rebooted) == [events.Rebooted("b2")]


def test_one_bad_entry_of_many_is_isolated_and_the_others_get_in(talk):
    talk.session.put([an_entry(n) for n in (81, 82, 83)])
    (register,) = talk.connect()
    singles = talk.refuse(register, CLOSED)
    assert [[e.port for e in f.entries] for f in singles] == [[81], [82], [83]]
    talk.done(singles[0])
    assert talk.refuse(singles[1], CLOSED) == []
    talk.done(singles[2])
    (rejected,) = talk.told(events.Rejected)
    assert (rejected.ref, rejected.problem.code) == (a_ref(82), "pod_terminating")
    assert [talk.session.is_confirmed(a_ref(n)) for n in (81, 82, 83)] == [True, False, True]
    # It is not offered again until it is put anew.
    assert not [f for f in talk.wait(10.0) if isinstance(f, frames.Register)]
    talk.session.put([an_entry(82)])
    assert [e.port for e in talk.sent()[0].entries] == [82]


def test_why_an_entry_was_rejected_is_remembered_until_it_is_offered_again(talk):
    talk.session.put([an_entry()])
    (register,) = talk.connect()
    assert talk.session.rejection(a_ref()) is None
    talk.refuse(register, CLOSED)
    assert talk.session.rejection(a_ref()).code == "pod_terminating"
    talk.session.put([an_entry()])
    assert talk.session.rejection(a_ref()) is None
    talk.refuse(talk.sent()[0], CLOSED)
    # A new connection offers everything again.
    talk.session.disconnected()
    (register,) = talk.connect()
    assert talk.session.rejection(a_ref()) is None
    talk.refuse(register, CLOSED)
    talk.session.drop([a_ref()])
    assert talk.session.rejection(a_ref()) is None


def test_what_was_refused_before_the_newest_put_is_not_held_against_that(talk):
    talk.session.put([an_entry()])
    (first,) = talk.connect()
    talk.session.put([an_entry(weight=2.0)])
    (second,) = talk.sent()
    talk.refuse(first, CLOSED)
    assert talk.session.rejection(a_ref()) is None
    talk.done(second)
    assert talk.session.is_confirmed(a_ref())


def test_a_withdrawal_is_told_when_it_is_acknowledged(talk):
    talk.session.put([an_entry(), an_entry(81)])
    talk.done(talk.connect()[0])
    assert a_ref() not in talk.session.leaving
    talk.session.drop([a_ref(), a_ref(81), a_ref(99)])
    (deregister,) = talk.sent()
    assert a_ref() in talk.session.leaving
    # What has been put again meanwhile does not leave.
    talk.session.put([an_entry(81)])
    talk.done(deregister)
    assert talk.told(events.Withdrawn) == [events.Withdrawn((a_ref(),))]
    assert a_ref() not in talk.session.leaving


def test_a_withdrawal_outlives_a_connection(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    talk.session.drop([a_ref()])
    talk.sent()
    talk.session.disconnected()
    assert a_ref() in talk.session.leaving
    (deregister,) = talk.connect()
    talk.done(deregister)
    assert talk.told(events.Withdrawn) == [events.Withdrawn((a_ref(),))]


def test_why_a_lease_is_refused_is_remembered_until_it_attaches_again(talk):
    talk.session.put([an_entry()])
    talk.session.connected(0.0)
    assert talk.session.attaching
    talk.refuse(talk.sent()[0], CLOSED)
    assert talk.session.lease_problem.code == "pod_terminating"
    assert not talk.session.attaching
    talk.session.put([an_entry()])
    assert talk.session.attaching
    assert talk.session.lease_problem is None


def test_a_refused_attachment_is_told(talk):
    talk.session.put([an_entry()])
    talk.session.connected(0.0)
    (attach,) = talk.sent()
    talk.refuse(attach, CLOSED)
    (refused,) = talk.told()
    assert refused.problem.code == "pod_terminating"
    # The next wish tries again.
    talk.session.put([an_entry(81)])
    assert kinds(talk.sent()) == ["Attach"]


def test_a_question_is_answered_or_fails_with_the_connection(talk):
    talk.session.put([an_entry()])
    talk.connect()
    first = talk.session.barrier([ORDERS], 3.0)
    (barrier,) = talk.sent()
    assert barrier == frames.Barrier(id=first, services=[tuple(ORDERS)], timeout=3.0)
    talk.receive(frames.Done(id=first, complete=False))
    second = talk.session.barrier([ORDERS], 3.0)
    talk.session.disconnected()
    third = talk.session.barrier([ORDERS], 3.0)
    answers = {e.id: e for e in talk.told(events.Answered)}
    assert answers[first].done.complete is False
    assert answers[second].problem.code == answers[third].problem.code == "registry_unreachable"
    assert kinds(talk.connect()) == ["Register"]


def test_release_forgets_what_was_wanted(talk):
    talk.session.put([an_entry()])
    talk.done(talk.connect()[0])
    released = talk.session.release()
    assert talk.sent() == [frames.Release(id=released)]
    talk.receive(frames.Done(id=released))
    assert talk.session.entries == {}
    assert talk.told(events.Answered)[-1].id == released


# --- life signs -----------------------------------------------------------------------------------------


def test_a_registry_that_says_nothing_for_2_s_is_pinged_and_given_up_after_5_more(talk):
    talk.session.put([an_entry()])
    talk.connect()
    assert "Ping" not in kinds(talk.wait(1.75))
    assert kinds(talk.wait(0.25)) == ["Ping"]
    assert kinds(talk.wait(4.75)) == ["Beat"]
    assert not talk.session.dead
    talk.wait(0.25)
    assert talk.session.dead
    talk.session.disconnected()
    talk.connect()
    assert not talk.session.dead


def test_any_frame_is_a_sign_of_life(talk):
    talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    for answer in (frames.Pong(), frames.Settled(), frames.Done(id=99)):
        talk.wait(6.75)
        talk.receive(answer)
    assert not talk.session.dead


def test_its_own_stall_does_not_kill_the_connection(talk):
    talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    talk.wait(2.0)
    # This process was stopped for a minute with a ping on its way: the answer may well be there to be read.
    talk.wait(60.0, step=60.0)
    assert not talk.session.dead
    talk.wait(3.75)
    assert not talk.session.dead
    talk.wait(0.5)
    assert talk.session.dead


def test_goodbye_ends_the_session(talk):
    talk.session.connected(0.0)
    talk.receive(frames.Goodbye(reason="stopping"))
    assert talk.session.dead
    assert talk.session.died_of == "the registry said goodbye: stopping"


# --- lists ----------------------------------------------------------------------------------------------


def test_a_list_is_acknowledged_and_told(talk):
    view = talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    talk.sent()
    a = an_instance(1)
    assert talk.receive(snapshot("b1.4", a)) == [frames.Ack(service="orders", revision="b1.4")]
    assert view.instances == (a,)
    (changed,) = talk.told()
    assert (changed.service, changed.change.put) == (ORDERS, [a])


def test_why_a_list_is_refused_is_remembered_until_it_comes(talk):
    talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    (subscribe,) = talk.sent()
    talk.refuse(subscribe, Problem("limit_reached", "too many"))
    assert talk.session.refusals[ORDERS].code == "limit_reached"
    assert [e.problem.code for e in talk.told(events.NotListed)] == ["limit_reached"]
    # What is told to all who follow says nothing about it.
    talk.receive(frames.Settled())
    assert ORDERS in talk.session.refusals
    talk.session.refresh(ORDERS)
    (again,) = talk.sent()
    talk.receive(snapshot("b1.1"))
    assert not talk.session.refusals
    talk.refuse(again, Problem("limit_reached", "too many"))
    talk.session.unsubscribe(ORDERS)
    assert not talk.session.refusals


def test_the_first_list_is_told_even_if_it_is_empty(talk):
    talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    talk.receive(snapshot("b1.0"))
    assert len(talk.told(events.ListChanged)) == 1


def test_after_reconnecting_it_says_what_it_holds(talk):
    talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    talk.sent()
    a = an_instance(1)
    talk.receive(snapshot("b1.4", a))
    talk.session.disconnected()
    talk.session.connected(1.0)
    (subscribe,) = talk.sent()
    assert (subscribe.revision, subscribe.digest) == ("b1.4", spell(digest([a])))
    assert not talk.session.views[ORDERS].settled


def test_a_frame_that_is_out_of_step_leads_to_a_fresh_snapshot(talk):
    view = talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    talk.sent()
    a, b = an_instance(1), an_instance(2)
    talk.receive(snapshot("b1.4", a))
    wrong = frames.Delta(service="orders", base="b1.5", revision="b1.6", digest=spell(0), drop=[a.key])
    (subscribe,) = talk.receive(wrong)
    assert (subscribe.service, subscribe.revision, subscribe.digest) == ("orders", "", "")
    assert view.instances == (a,)
    talk.told()
    talk.receive(snapshot("b1.6", b))
    (changed,) = talk.told()
    assert (changed.change.put, changed.change.drop) == ([b], [a.key])


def test_settled_lets_go_of_what_was_held_everywhere(talk):
    talk.session.subscribe(ORDERS)
    talk.session.subscribe(key_of("quiet"))
    talk.session.connected(0.0)
    talk.receive(snapshot("b1.1", an_instance(1)))
    talk.session.disconnected()
    talk.session.connected(1.0)
    talk.receive(snapshot("b2.0", settled=False))
    talk.told()
    assert talk.session.views[ORDERS].instances == (an_instance(1),)
    talk.receive(frames.Settled())
    # That a list is settled is news where nothing was held, too.
    told = {event.service.name: event.change.drop for event in talk.told()}
    assert told == {"orders": [an_instance(1).key], "quiet": []}
    assert all(view.settled for view in talk.session.views.values())


def test_a_list_that_nobody_wants_any_more_is_not_acknowledged(talk):
    talk.session.subscribe(ORDERS)
    talk.session.connected(0.0)
    talk.session.unsubscribe(ORDERS)
    assert kinds(talk.sent()) == ["Subscribe", "Unsubscribe"]
    assert talk.receive(snapshot("b1.4")) == []


def test_refresh_asks_with_what_is_held(talk):
    talk.session.subscribe(ORDERS)
    talk.session.refresh(ORDERS)
    assert talk.sent() == []
    talk.session.connected(0.0)
    talk.receive(snapshot("b1.4"))
    talk.session.refresh(ORDERS)
    (subscribe,) = talk.sent()
    assert (subscribe.revision, subscribe.digest) == ("b1.4", spell(0))


# --- operators ------------------------------------------------------------------------------------------


def test_an_operator_attaches_with_its_epoch_at_once(operator):
    operator.session.connected(0.0)
    assert operator.sent() == [frames.Attach(lease="lease", kind="operator", epoch=3)]


def test_closings_and_fences_are_told_once_and_repeated_to_a_new_boot(operator):
    operator.connect()
    operator.session.close_pods(["u1"])
    operator.session.close_pods(["u1"])
    (close,) = operator.sent()
    gone = frames.GonePod(uid="u2", ips=["10.0.0.2"])
    operator.session.fence_pods([gone])
    (fence,) = operator.sent()
    assert (close.uids, fence.pods) == (["u1"], [gone])
    operator.done(close)
    operator.done(fence)
    operator.session.disconnected()
    assert operator.connect("b1") == []
    operator.session.disconnected()
    close, fence = operator.connect("b2")
    assert (close.uids, fence.pods) == (["u1"], [gone])
    operator.done(close)
    operator.done(fence)
    operator.session.forget_pods(["u1", "u2"])
    operator.session.disconnected()
    assert operator.connect("b3") == []


def test_closings_and_fences_in_flight_are_told_again_after_a_lost_connection(operator):
    operator.connect()
    operator.session.close_pods(["u1"])
    operator.session.fence_pods([frames.GonePod(uid="u2")])
    operator.sent()
    operator.session.disconnected()
    assert kinds(operator.connect("b1")) == ["Close", "Fence"]


def test_a_pod_that_is_fenced_need_not_be_closed_any_more(operator):
    operator.session.close_pods(["u"])
    operator.session.fence_pods([frames.GonePod(uid="u")])
    assert kinds(operator.connect()) == ["Fence"]


def test_synced_is_said_when_all_that_was_put_has_arrived_and_again_to_a_new_boot(operator):
    operator.session.put([an_entry(owner="u")])
    operator.session.synced()
    (register,) = operator.connect()
    (synced,) = operator.done(register)
    assert isinstance(synced, frames.Synced)
    operator.done(synced)
    operator.session.disconnected()
    assert kinds(operator.connect("b1")) == ["Register"]
    operator.session.disconnected()
    (register,) = operator.connect("b2")
    assert kinds(operator.done(register)) == ["Synced"]
    operator.session.disconnected()
    (register,) = operator.connect("b2")
    assert kinds(operator.done(register)) == ["Synced"]


def test_synced_waits_for_the_entries_of_a_frame_that_was_refused(operator):
    operator.session.put([an_entry(81, owner="u1"), an_entry(82, owner="u2")])
    operator.session.synced()
    (register,) = operator.connect()
    first, second = operator.refuse(register, CLOSED)
    assert operator.done(first) == []
    assert kinds(operator.refuse(second, CLOSED)) == ["Synced"]


def test_an_empty_cluster_is_synced_too(operator):
    operator.connect()
    operator.session.synced()
    assert kinds(operator.sent()) == ["Synced"]
