"""A row of checks and what it says: the first decides at once, later ones by thresholds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbook_registry.checks.verdict import INCONCLUSIVE, Finding, Judge, Reason

PASS, FAIL, NOTHING = Finding.PASSED, Finding.REFUSED, Finding.OWN_FAULT


def judged(findings, *, failures=3, successes=2):
    judge = Judge()
    return [
        (judge.take(finding, failures=failures, successes=successes), judge.alive) for finding in findings
    ]


@pytest.mark.parametrize(
    ("finding", "reason", "alive"),
    [(PASS, Reason.FIRST_SUCCESS, True), (FAIL, Reason.FIRST_FAILURE, False)],
)
def test_the_first_check_decides_at_once(finding, reason, alive):
    assert judged([finding], failures=5, successes=5) == [(reason, alive)]


def test_it_takes_failures_in_a_row_to_fall_and_successes_in_a_row_to_rise():
    assert judged([PASS, FAIL, FAIL, FAIL, PASS, PASS]) == [
        (Reason.FIRST_SUCCESS, True),
        (None, True),
        (None, True),
        (Reason.FAILED, False),
        (None, False),
        (Reason.RECOVERED, True),
    ]


def test_one_check_that_agrees_begins_the_row_anew():
    assert [alive for _, alive in judged([PASS, FAIL, FAIL, PASS, FAIL, FAIL])] == [True] * 6
    assert [alive for _, alive in judged([FAIL, PASS, FAIL, PASS])] == [False] * 4


@pytest.mark.parametrize("nothing", sorted(INCONCLUSIVE))
def test_a_fault_of_ours_neither_continues_a_row_nor_breaks_it(nothing):
    assert judged([nothing]) == [(None, None)]
    changes = judged([nothing, PASS, FAIL, nothing, FAIL, nothing, FAIL])
    assert [reason for reason, _ in changes if reason] == [Reason.FIRST_SUCCESS, Reason.FAILED]
    assert changes[-1] == (Reason.FAILED, False)
    assert changes[-2] == (None, True)


@pytest.mark.parametrize("finding", sorted(set(Finding) - INCONCLUSIVE - {PASS}))
def test_whatever_else_a_check_finds_is_a_failure(finding):
    assert judged([PASS, finding], failures=1)[-1] == (Reason.FAILED, False)


def test_a_threshold_that_was_lowered_counts_what_has_failed_already():
    judge = Judge()
    for finding in (PASS, FAIL, FAIL):
        assert judge.take(finding, failures=10, successes=1) in {None, Reason.FIRST_SUCCESS}
    assert judge.take(FAIL, failures=2, successes=1) is Reason.FAILED


def test_a_verdict_from_before_is_not_overruled_by_one_check_and_confirmed_once():
    judge = Judge(known=True)
    heard = [judge.take(f, failures=2, successes=2) for f in (NOTHING, FAIL, PASS, PASS, FAIL, FAIL)]
    assert heard == [None, None, Reason.CONFIRMED, None, None, Reason.FAILED]
    judge = Judge(known=False)
    heard = [judge.take(f, failures=2, successes=2) for f in (PASS, PASS, PASS)]
    assert heard == [None, Reason.RECOVERED, None]
    assert Judge(known=False).take(FAIL, failures=2, successes=2) is Reason.CONFIRMED


@given(
    findings=st.lists(st.sampled_from([PASS, FAIL, Finding.TIMED_OUT, NOTHING]), max_size=60),
    failures=st.integers(1, 5),
    successes=st.integers(1, 5),
)
def test_the_verdict_is_what_the_whole_history_says(findings, failures, successes):
    """Beside it, the rule read off the history: the last row that was long enough decides."""
    judge = Judge()
    heard: list[bool] = []
    alive = None
    for finding in findings:
        before = judge.alive
        reason = judge.take(finding, failures=failures, successes=successes)
        if finding is not NOTHING:
            heard.append(finding is PASS)
            if alive is None:
                alive = heard[0]
            elif alive and not any(heard[-failures:]) and len(heard) > failures:
                alive = False
            elif not alive and all(heard[-successes:]) and len(heard) > successes:
                alive = True
        assert judge.alive is alive
        assert (reason is not None) == (before is not judge.alive), "a reason for each change and no other"
        if reason is not None:
            expected = {
                (None, True): Reason.FIRST_SUCCESS,
                (None, False): Reason.FIRST_FAILURE,
                (True, False): Reason.FAILED,
                (False, True): Reason.RECOVERED,
            }
            assert reason is expected[before, judge.alive]
