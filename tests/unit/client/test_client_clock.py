"""The attentive clock: what was slept through does not count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollbook.clock import AttentiveClock


def test_time_that_was_looked_at_counts_in_full():
    clock = AttentiveClock(100.0)
    assert [clock.look(100.0 + n / 4) for n in (1, 2, 3, 4)] == [100.25, 100.5, 100.75, 101.0]
    assert clock.lost == 0


def test_a_stall_counts_for_no_more_than_the_longest_step():
    clock = AttentiveClock(0.0, max_step=1.0)
    assert clock.look(0.5) == 0.5
    assert clock.look(40.5) == 1.5
    assert clock.lost == 39.0
    assert clock.look(40.75) == 1.75


def test_reading_takes_no_notice():
    clock = AttentiveClock(0.0)
    assert clock.read(0.5) == 0.5
    assert clock.read(10.0) == clock.read(20.0) == 1.0
    assert clock.look(10.0) == 1.0
    assert clock.lost == 9.0


def test_a_clock_that_goes_back_does_not_take_time_back():
    clock = AttentiveClock(10.0)
    assert clock.look(11.0) == 11.0
    assert clock.look(5.0) == 11.0
    assert clock.read(5.0) == 11.0
    assert clock.look(11.5) == 11.5


@given(st.lists(st.floats(0, 20), max_size=50), st.floats(0.1, 5))
def test_it_never_goes_back_never_runs_fast_and_accounts_for_all(gaps, max_step):
    clock = AttentiveClock(0.0, max_step=max_step)
    real = before = 0.0
    for gap in gaps:
        real += gap
        assert clock.read(real) == clock.look(real)
        time = clock.read(real)
        assert before <= time <= before + min(gap, max_step) + 1e-9
        before = time
    assert abs(real - before - clock.lost) < 1e-6
