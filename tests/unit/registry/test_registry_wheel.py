"""The timing wheel: never early, at most one tick late, and it costs what is due."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rollbook_registry.expiry import Wheel

TICK = 0.25
quarters = st.integers(0, 4000).map(lambda n: n / 100)


def test_a_key_is_due_once_its_time_has_come_and_only_once():
    wheel = Wheel(0.0, tick=TICK)
    wheel.add("a", 1.0)
    assert wheel.advance(0.99) == []
    assert wheel.advance(1.0) == ["a"]
    assert wheel.advance(5.0) == []
    assert len(wheel) == 0


def test_what_is_already_past_is_due_at_the_next_tick():
    wheel = Wheel(10.0, tick=TICK)
    assert wheel.advance(10.0) == []
    wheel.add("a", 3.0)
    assert wheel.advance(10.0) == []
    assert wheel.advance(10.25) == ["a"]


def test_the_earlier_of_two_deadlines_counts_and_the_later_is_passed_over():
    wheel = Wheel(0.0, tick=TICK)
    wheel.add("a", 9.0)
    wheel.add("a", 2.0)
    wheel.add("a", 5.0)
    assert len(wheel) == 1
    assert wheel.advance(2.0) == ["a"]
    # Where it was before, nothing is due.
    wheel.add("a", 20.0)
    assert wheel.advance(19.0) == []
    assert wheel.advance(20.0) == ["a"]


def test_a_deadline_within_a_tick_is_due_at_its_end():
    wheel = Wheel(0.0, tick=TICK)
    wheel.add("a", 0.3)
    assert wheel.advance(0.25) == []
    assert wheel.advance(0.49) == []
    assert wheel.advance(0.5) == ["a"]


class Counting(dict):
    """Counts how often a slot is looked for."""

    looks = 0

    def __contains__(self, key):
        Counting.looks += 1
        return super().__contains__(key)


def test_a_long_pause_costs_what_is_due_and_not_the_ticks_that_passed():
    wheel = Wheel(0.0, tick=TICK)
    wheel._slots = Counting()
    wheel.add("a", 1.0)
    wheel.add("b", 1e9)
    Counting.looks = 0
    assert wheel.advance(1e8) == ["a"]
    assert Counting.looks < 10
    # A tick in which nothing is due costs one look, however many keys there are.
    for n in range(1000):
        wheel.add(n, 2e8 + n)
    Counting.looks = 0
    assert wheel.advance(1e8 + TICK) == []
    assert Counting.looks <= 1


@settings(max_examples=200)
@given(
    start=quarters,
    steps=st.lists(st.tuples(st.lists(st.tuples(st.sampled_from("abcd"), quarters), max_size=4), quarters)),
)
def test_it_agrees_with_a_list_of_deadlines(start, steps):
    """Never early, at most one tick late; of several deadlines of a key the earliest counts."""
    wheel = Wheel(start, tick=TICK)
    naive: dict[str, float] = {}
    now = start
    for additions, pause in steps:
        for key, ahead in additions:
            wheel.add(key, now + ahead)
            naive[key] = min(naive.get(key, float("inf")), now + ahead)
        assert len(wheel) == len(naive)
        before, now = now, now + pause
        due = wheel.advance(now)
        assert len(set(due)) == len(due)
        for key in due:
            assert naive.pop(key) <= now, "early"
        # What was added in the tick that is under way waits for the next.
        for key, at in naive.items():
            assert max(at, before) > now - TICK, f"{key} is late"
    assert sorted(wheel.advance(now + 100.0)) == sorted(naive)
    assert wheel._slots == {}
    assert len(wheel) == 0


def test_deadlines_that_are_brought_forward_leave_nothing_behind():
    wheel = Wheel(0.0, tick=0.25)
    for n in range(10_000):
        wheel.add("a", 86_400.0)
        wheel.add("a", n * 0.25)
        assert wheel.advance(n * 0.25) == ["a"]
    assert len(wheel) == 0
    assert wheel._slots == {}


def test_what_is_discarded_is_never_due_and_leaves_nothing():
    wheel = Wheel(0.0, tick=1.0)
    for key, at in (("a", 2.0), ("b", 2.0), ("c", 3.0)):
        wheel.add(key, at)
    for key in ("a", "c", "a", "unknown"):
        wheel.discard(key)
    assert wheel.advance(10.0) == ["b"]
    wheel.discard("b")
    assert (len(wheel), wheel._slots) == (0, {})
