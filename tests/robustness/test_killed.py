"""The unit tests' kills, many more of them: whatever moment the process dies at, promises are kept."""

from __future__ import annotations

import random

import pytest

from killkit import check_batches, check_life, lives, save_and_remove, write_batches
from rollbook_registry.store.sqlite import SqliteStore


@pytest.mark.parametrize("seed", [random.randrange(10**6) for _ in range(2)])
async def test_killed_200_times_right_after_the_answer_the_store_has_lost_nothing(tmp_path, seed):
    told: list[tuple[int, int, int]] = []
    lives(tmp_path, write_batches, count=200, seed=seed, after=told.extend)
    records: dict[str, bytes | None] = {}
    store = SqliteStore(tmp_path / "rollbook.db")
    await store.open(records.update)
    await store.close()
    check_batches(records, told)


@pytest.mark.parametrize("seed", [random.randrange(10**6) for _ in range(2)])
def test_killed_100_times_while_saving_it_begins_with_a_snapshot_and_without_what_was_removed(tmp_path, seed):
    told: list[tuple[str, str, list[tuple[str, int]]]] = []

    def after(heard):
        told.extend(heard)
        check_life(tmp_path, told)

    lives(tmp_path, save_and_remove, count=100, seed=seed, after=after)
