"""What was acknowledged is there after a SIGKILL that comes right after the answer, every time."""

from __future__ import annotations

import random

from durabilitykit import killed_and_back

ROUNDS = 20


async def test_nothing_that_was_acknowledged_is_lost_when_the_registry_is_killed(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    answered = await killed_and_back(tmp_path, rounds=ROUNDS, seed=seed)
    assert answered >= 10 * ROUNDS
