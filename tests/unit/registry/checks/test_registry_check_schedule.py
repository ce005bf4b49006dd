"""When who is checked: rhythms of their own, spread by chance, and never more than was asked for."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rollbook_registry.checks import schedule as module
from rollbook_registry.checks.schedule import Due, Schedule


def schedule(*chances, first_rate=1000.0):
    """A schedule whose random numbers are these, over and over."""
    rng = itertools.cycle(chances or (0.0,))
    return Schedule(rng=lambda: next(rng), first_rate=first_rate)


def took(plan, now, limit=1000):
    return [due.key for due in plan.take(now=now, limit=limit)]


def test_the_first_check_is_due_at_once():
    plan = schedule()
    assert plan.next_at() is None
    plan.begin("a", 5.0, now=7.0)
    assert plan.next_at() == 7.0
    assert plan.take(now=7.0, limit=1) == [Due("a", 7.0)]
    assert plan.next_at() is None, "it comes again only when it is done"


def test_first_checks_come_so_many_a_second_in_the_order_of_their_definition():
    plan = schedule(first_rate=10.0)
    for n in range(30):
        plan.begin(n, 60.0, now=0.0)
    begun = [took(plan, tick / 10 + 0.001) for tick in range(30)]
    assert begun == [[n] for n in range(30)]
    # Who comes after the rush is not delayed by it.
    plan.begin("late", 60.0, now=50.0)
    assert took(plan, 50.0) == ["late"]


def test_chance_gives_the_phase_and_the_interval_is_never_exceeded():
    plan = schedule(0.0, 0.75)
    for key in "ab":
        plan.begin(key, 4.0, now=0.0)
    assert took(plan, 0.1) == ["a", "b"]
    for key in "ab":
        plan.done(key, now=0.1)
    assert plan.take(now=1.0, limit=9) == []
    assert plan.take(now=1.1, limit=9) == [Due("b", 1.1)]
    assert plan.take(now=4.1, limit=9) == [Due("a", 4.1)]


def test_what_came_together_is_not_checked_together():
    rng = random.Random(1)
    plan = Schedule(rng=rng.random, first_rate=1e9)
    for n in range(1000):
        plan.begin(n, 10.0, now=0.0)
    for key in took(plan, 0.001, limit=10_000):
        plan.done(key, now=0.001)
    tenths = [len(took(plan, 0.001 + tick / 10, limit=10_000)) for tick in range(1, 101)]
    assert sum(tenths) == 1000
    assert max(tenths) < 30, "ten in each tenth of a second would be even"


def test_the_rhythm_does_not_shift_however_long_checks_take():
    plan = schedule(0.0)
    plan.begin("a", 5.0, now=0.0)
    took(plan, 0.0)
    assert plan.done("a", now=1.0) == 0
    beats = []
    for late in (0.0, 0.3, 4.9, 0.1):
        [due] = plan.take(now=plan.next_at() + late, limit=1)
        beats.append(due.at)
        assert plan.done("a", now=due.at + late + 0.05) == 0
    assert beats == [6.0, 11.0, 16.0, 21.0]


def test_what_was_missed_is_counted_and_not_made_up_for():
    plan = schedule(0.0)
    plan.begin("a", 5.0, now=0.0)
    took(plan, 0.0)
    plan.done("a", now=0.0)
    assert took(plan, 17.0) == ["a"]
    assert plan.done("a", now=17.5) == 2
    assert plan.next_at() == 20.0


def test_who_waits_longest_comes_first_and_no_more_than_there_is_room_for():
    plan = schedule(0.9, 0.1, 0.5)
    for key in "abc":
        plan.begin(key, 10.0, now=0.0)
    for key in took(plan, 1.0):
        plan.done(key, now=1.0)
    assert plan.take(now=100.0, limit=0) == []
    assert took(plan, 100.0, limit=2) == ["a", "c"]
    assert took(plan, 100.0, limit=2) == ["b"]


def test_who_is_forgotten_never_comes_even_while_under_way():
    plan = schedule()
    for key in "ab":
        plan.begin(key, 5.0, now=0.0)
    plan.end("a")
    plan.end("unknown")
    assert took(plan, 1.0) == ["b"]
    plan.end("b")
    with pytest.raises(KeyError):
        plan.done("b", now=1.0)
    assert plan.next_at() is None
    assert len(plan) == 0


def test_a_shorter_interval_holds_at_once_and_a_longer_one_from_the_next_check():
    plan = schedule(0.0)
    plan.begin("a", 100.0, now=0.0)
    took(plan, 0.0)
    plan.done("a", now=0.0)
    assert plan.next_at() == 100.0
    plan.pace("a", 2.0, now=10.0)
    assert plan.next_at() == 12.0
    plan.pace("a", 50.0, now=11.0)
    assert took(plan, 12.0) == ["a"]
    plan.pace("a", 8.0, now=12.5)
    plan.done("a", now=13.0)
    assert plan.next_at() == 20.0


def test_who_is_begun_again_while_waiting_for_its_first_check_keeps_its_place():
    """Or a definition that is changed over and over would hold up everybody else's first check."""
    plan = schedule(first_rate=1.0)
    for key in "ab":
        plan.begin(key, 5.0, now=0.0)
    for _ in range(50):
        plan.begin("b", 5.0, now=0.0)
    plan.begin("c", 5.0, now=0.0)
    assert [took(plan, float(now)) for now in range(3)] == [["a"], ["b"], ["c"]]


def test_who_is_begun_again_later_is_checked_at_once():
    plan = schedule()
    plan.begin("a", 60.0, now=0.0)
    took(plan, 0.0)
    plan.done("a", now=0.0)
    plan.begin("a", 60.0, now=3.0)
    assert took(plan, 3.0) == ["a"]
    assert took(plan, 60.0) == [], "the rhythm that it had is forgotten"


def test_a_look_costs_what_is_due(monkeypatch):
    plan = schedule(*(n / 1000 for n in range(1000)))
    for n in range(5000):
        plan.begin(n, 3600.0, now=0.0)
    for key in took(plan, 10.0, limit=10_000):
        plan.done(key, now=10.0)
    pops = []
    monkeypatch.setattr(
        module.heapq, "heappop", lambda heap, pop=module.heapq.heappop: pops.append(1) or pop(heap)
    )
    assert took(plan, 10.0) == []
    assert not pops
    # The greatest chance, 0.999, makes five of them due 3.6 s later.
    assert len(took(plan, 14.0)) == 5 == len(pops)


def test_what_was_superseded_does_not_pile_up():
    plan = schedule()
    for n in range(10):
        plan.begin(n, 60.0, now=0.0)
    for key in took(plan, 10.0):
        plan.done(key, now=10.0)
    for n in range(2000):
        plan.pace(n % 10, 50.0 - n / 50, now=10.0)
    assert len(plan._heap) <= 2 * len(plan) + 64


class Rhythms(RuleBasedStateMachine):
    """Beside a dictionary of due times: nobody is early, nobody is forgotten, nobody comes twice."""

    keys = st.sampled_from("abcd")
    intervals = st.sampled_from([0.5, 1.0, 3.0, 7.0])

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.rng = random.Random(7)
        self.plan = Schedule(rng=self.rng.random, first_rate=4.0)
        self.interval: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.earliest: dict[str, float] = {}
        self.taken: set[str] = set()
        self.fresh: set[str] = set()
        self.rush = 0

    @rule(key=keys, interval=intervals)
    def begin(self, key, interval):
        waits = key in self.fresh and key not in self.taken
        self.plan.begin(key, interval, now=self.now)
        self.interval[key] = interval
        if not waits:
            self.rush += 1
            self.taken.discard(key)
            self.fresh.add(key)
            self.earliest[key] = self.now
            # At worst every first check that was ever asked for stands before it.
            self.latest[key] = self.now + self.rush / 4.0

    @rule(key=keys)
    def end(self, key):
        self.plan.end(key)
        for known in (self.interval, self.latest, self.earliest):
            known.pop(key, None)
        self.taken.discard(key)
        self.fresh.discard(key)

    @precondition(lambda self: self.interval)
    @rule(data=st.data(), interval=intervals)
    def pace(self, data, interval):
        key = data.draw(st.sampled_from(sorted(self.interval)))
        self.plan.pace(key, interval, now=self.now)
        self.interval[key] = interval
        if key not in self.taken:
            self.latest[key] = min(self.latest[key], self.now + interval)
            self.earliest[key] = min(self.earliest[key], self.now)

    @rule(limit=st.integers(0, 4))
    def take(self, limit):
        due = self.plan.take(now=self.now, limit=limit)
        assert len(due) <= limit
        assert [d.at for d in due] == sorted(d.at for d in due)
        for key, at in due:
            assert key not in self.taken
            assert self.earliest[key] <= at <= self.now
            self.taken.add(key)
        if len(due) < limit:
            left = {key for key in self.interval if key not in self.taken}
            assert all(self.latest[key] > self.now or key in self.fresh for key in left)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def done(self, data):
        key = data.draw(st.sampled_from(sorted(self.taken)))
        assert self.plan.done(key, now=self.now) >= 0
        self.taken.discard(key)
        self.fresh.discard(key)
        self.earliest[key] = self.now
        self.latest[key] = self.now + self.interval[key] * (1 + 1e-9)

    @rule(step=st.sampled_from([0.1, 0.5, 2.0, 30.0]))
    def time(self, step):
        self.now += step

    @invariant()
    def the_next_is_known(self):
        waiting = self.interval.keys() - self.taken
        at = self.plan.next_at()
        assert (at is None) == (not waiting)
        if at is not None:
            assert at <= min(self.latest[key] for key in waiting)
        assert len(self.plan) == len(self.interval)


TestRhythms = Rhythms.TestCase
TestRhythms.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
