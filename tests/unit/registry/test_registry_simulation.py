"""A few seeds of the simulation of replicas, in every run; tests/simulation has thousands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation import simulate
from simulation.mutations import MUTATIONS
from simulation.run import many


def test_sixty_seeds_hold():
    broken = [str(r) for r in many(range(1, 61)) if r.broken]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("plan", ["rolling", "chaos", "disorder"])
def test_one_seed_is_one_run(plan):
    first, again = simulate(7, plan=plan), simulate(7, plan=plan)
    assert first == again
    assert first.fingerprint != simulate(8, plan=plan).fingerprint


def test_one_seed_is_one_run_in_every_process():
    """Nothing may depend on the order in which sets of strings are walked through."""
    program = "from simulation import simulate; print(*(simulate(s).fingerprint for s in range(1, 9)))"
    root = Path(__file__).parents[3]
    path = os.pathsep.join(str(root / p) for p in ("client", "registry", "tests/simulation"))
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("without_telling_marks", 10),
        ("hiding_at_once", 10),
        ("hiding_in_a_minority", 20),
        ("without_forwarding", 10),
        ("losing_content", 10),
    ],
)
def test_a_core_with_a_broken_rule_is_caught(name, seeds):
    assert any(simulate(seed, make=MUTATIONS[name]).broken for seed in range(1, seeds + 1))
