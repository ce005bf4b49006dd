"""Two of the many rounds of ``tests/integration/test_durability.py``."""

from __future__ import annotations

from durabilitykit import killed_and_back


async def test_what_was_acknowledged_is_there_after_a_kill(tmp_path):
    assert await killed_and_back(tmp_path, rounds=2, seed=4) > 0
