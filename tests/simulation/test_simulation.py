"""Thousands of seeds; slow. Every invariant is a sentence of the project, in ``simulation/observer.py``.

``ROLLBOOK_SEEDS`` sets how many (2,000), ``ROLLBOOK_FIRST_SEED`` from which on (1).
"""

from __future__ import annotations

import os

import pytest

from simulation import simulate
from simulation.mutations import MUTATIONS
from simulation.plans import PLANS
from simulation.run import many

SEEDS = int(os.environ.get("ROLLBOOK_SEEDS", "2000"))
FIRST = int(os.environ.get("ROLLBOOK_FIRST_SEED", "1"))


@pytest.mark.timeout(1200)
def test_no_seed_breaks_an_invariant():
    results = list(many(range(FIRST, FIRST + SEEDS)))
    broken = [str(r) for r in results if r.broken]
    assert not broken, f"{len(broken)} of {SEEDS} seeds:\n" + "\n".join(broken)
    assert {r.plan for r in results} == set(PLANS), "every plan was drawn"
    happened = {turn for r in results for turn, number in r.counts.items() if number}
    # What the seeds are to be about did happen in them.
    assert happened >= {
        "adopted",
        "beat_unknown",
        "disk_overruled",
        "hidden",
        "hiding_held_back",
        "orphaned",
        "peer_left",
        "peer_rebooted",
        "pull_given_up",
        "pull_retried",
        "pulled_all",
        "pulled_changes",
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_core_with_a_broken_rule_is_caught(name):
    for seed in range(1, 300):
        if simulate(seed, make=MUTATIONS[name]).broken:
            return
    pytest.fail(f"{name} breaks no invariant in any of 299 seeds")
