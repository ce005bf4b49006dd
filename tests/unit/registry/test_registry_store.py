"""The store of what was laid down: acknowledged is on disk, whole or not at all, and the sink knows it."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from killkit import apart, check_batches, lives, write_batches, write_on_a_small_disk
from rollbook.problems import Problem
from rollbook_registry.store import sqlite as module
from rollbook_registry.store.lock import held
from rollbook_registry.store.sqlite import SqliteStore
from rollbook_registry.store.store import MAX_BATCH_BYTES, MAX_CHANGES, CannotOpenError, Change, Outcome


class Memory(dict):
    """What a sink would hold."""

    def __init__(self) -> None:
        self.heard: list[Change] = []

    def __call__(self, changes) -> None:
        for change in changes:
            self.heard.append(change)
            if change.value is None:
                self.pop(change.key, None)
            else:
                self[change.key] = change.value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rollbook.db"


@pytest.fixture
async def open_store(path):
    """Open stores on one file; all of them end with the test."""
    opened = []

    async def open_store(**options):
        store = SqliteStore(path, **options)
        opened.append(store)
        memory = Memory()
        await store.open(memory)
        return store, memory

    yield open_store
    for store in opened:
        await store.close()


async def refusal(awaitable, code):
    with pytest.raises(Problem) as caught:
        await awaitable
    assert caught.value.code == code, caught.value.detail
    return caught.value.detail


async def test_what_was_acknowledged_is_there_when_it_is_opened_again(open_store):
    store, memory = await open_store()
    await store.write([Change("a", b"1"), Change("b", b"2")])
    await store.write([Change("a", None), Change("c", b"")])
    assert memory == {"b": b"2", "c": b""}
    await store.close()
    again, reloaded = await open_store()
    assert reloaded == memory
    assert await again.read("b") == b"2"
    assert await again.read("a") is None


async def test_more_records_than_a_slice_come_back_all(open_store, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 10)
    store, memory = await open_store()
    await store.write([Change(f"k{n}", b"v") for n in range(25)])
    await store.close()
    _, reloaded = await open_store()
    assert reloaded == memory


async def test_the_sink_knows_what_was_written_before_the_writer_does_and_in_the_order_of_the_commits(
    open_store,
):
    store, memory = await open_store()

    async def write(n):
        await store.write([Change("last", str(n).encode()), Change(str(n), b"x")])
        assert str(n) in memory

    await asyncio.gather(*(write(n) for n in range(100)))
    order = [change.value for change in memory.heard if change.key == "last"]
    assert sorted(order, key=int) == [str(n).encode() for n in range(100)]
    assert await store.read("last") == order[-1]


async def test_writes_that_wait_are_committed_together(open_store):
    store, _ = await open_store()
    await asyncio.gather(*(store.write([Change(f"k{n}", b"v")]) for n in range(300)))
    assert store.commits < 30


async def test_a_conditional_write_holds_or_changes_nothing(open_store):
    counted = []
    store, memory = await open_store(counted=counted.append)
    await store.write([Change("a", b"1")], expect={"a": None})
    detail = await refusal(
        store.write([Change("a", b"2"), Change("b", b"2")], expect={"a": None}), "conflict"
    )
    assert detail.startswith("a ")
    await refusal(store.write([Change("b", b"2")], expect={"a": b"1", "c": b"9"}), "conflict")
    assert memory == {"a": b"1"}
    await store.write([Change("a", None)], expect={"a": b"1", "c": None})
    assert memory == {}
    assert await store.read("a") is None
    assert counted == [
        Outcome.COMMITTED, Outcome.CONFLICT, Outcome.CONFLICT, Outcome.COMMITTED, Outcome.COMMITTED,
    ]  # fmt: skip


async def test_of_two_that_expect_the_same_one_gets_it(open_store):
    store, memory = await open_store()
    results = await asyncio.gather(
        *(store.write([Change("a", str(n).encode())], expect={"a": None}) for n in range(20)),
        return_exceptions=True,
    )
    assert results.count(None) == 1
    assert memory["a"] == str(results.index(None)).encode()
    assert {r.code for r in results if r is not None} == {"conflict"}


async def test_a_write_that_is_too_large_or_repeats_a_key_names_the_limit(open_store):
    store, memory = await open_store()
    many = [Change(str(n), b"") for n in range(MAX_CHANGES + 1)]
    assert str(MAX_CHANGES) in await refusal(store.write(many), "too_large")
    assert str(MAX_BATCH_BYTES) in await refusal(
        store.write([Change("a", b"x" * MAX_BATCH_BYTES)]), "too_large"
    )
    await refusal(store.write([Change("a", b"1"), Change("a", b"2")]), "bad_value")
    await refusal(store.write([Change("\ud800", b"1")]), "bad_value")
    assert memory == {}


async def test_a_sink_that_fails_neither_loses_the_write_nor_the_next(open_store):
    store, memory = await open_store()
    heard = []

    def sink(changes):
        heard.append(changes)
        raise RuntimeError("a mistake")

    store._sink = sink
    await store.write([Change("a", b"1")])
    await store.write([Change("b", b"1")])
    assert len(heard) == 2
    await store.close()
    _, reloaded = await open_store()
    assert set(reloaded) == {"a", "b"}
    assert memory == {}


async def test_closing_finishes_what_was_accepted_and_refuses_what_comes_later(open_store):
    store, memory = await open_store()
    writes = [asyncio.create_task(store.write([Change(f"k{n}", b"v")])) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    assert len(memory) == 50
    assert "closed" in await refusal(store.write([Change("z", b"")]), "store_unavailable")
    await store.close()


async def test_a_cancellation_that_comes_with_the_result_is_not_lost(open_store):
    store, _ = await open_store()
    writing = asyncio.create_task(store.write([Change("a", b"1")]))
    await asyncio.sleep(0)
    time.sleep(0.3)  # the loop stands still, so that the result waits to be told
    asyncio.get_running_loop().call_soon(writing.cancel)
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_nothing_is_written_before_everything_is_loaded(open_store, path, monkeypatch):
    await filled(path)
    monkeypatch.setattr(module, "SLICE", 10)
    store = SqliteStore(path)
    heard = Memory()
    early = []

    def sink(changes):
        heard(changes)
        early.append(asyncio.create_task(store.write([Change("key0", b"newer")])))

    await store.open(sink)
    results = await asyncio.gather(*early[:5], return_exceptions=True)
    assert {result.code for result in results} == {"store_unavailable"}
    await asyncio.gather(*early, return_exceptions=True)
    assert heard["key0"] == await store.read("key0")
    await store.close()


async def test_it_flushes_at_every_commit(open_store):
    store, _ = await open_store()
    connection = store._database._connection
    seen = {}

    def look(jobs):
        seen.update(
            {
                name: module._pragma(connection, name)
                for name in ("synchronous", "journal_mode", "locking_mode")
            }
        )
        return work(jobs)

    work, store._database.work = store._database.work, look
    await store.write([Change("a", b"")])
    assert seen == {"synchronous": 2, "journal_mode": "wal", "locking_mode": "exclusive"}


# --- killed --------------------------------------------------------------------------------------------


async def test_killed_right_after_the_answer_it_has_lost_nothing_and_half_of_nothing(tmp_path, open_store):
    told: list[tuple[int, int, int]] = []
    lives(tmp_path, write_batches, count=30, seed=random.randrange(10**6), after=told.extend)
    assert len(told) > 300
    _, records = await open_store()
    check_batches(records, told)


# --- a disk that fails ---------------------------------------------------------------------------------


async def test_with_no_room_left_writes_are_refused_whole_and_go_on_when_there_is_room_again(
    tmp_path, open_store
):
    outcomes, memory = apart(write_on_a_small_disk, tmp_path)
    assert outcomes[0] == "committed"
    assert outcomes[149] == "store_unavailable"
    assert set(outcomes[150:]) == {"committed"}
    _, records = await open_store()
    assert records == memory
    assert set(records) == {f"{part}{n}" for n, o in enumerate(outcomes) if o == "committed" for part in "kl"}


def in_the_thread(store, function):
    """Have something done to the connection before the next jobs; only its own thread may touch it."""
    work = store._database.work

    entered = threading.Event()

    def changed(jobs):
        store._database.work = work
        entered.set()
        function(store._database._connection)
        work(jobs)

    store._database.work = changed
    return entered


async def test_a_write_that_does_not_fit_takes_no_other_with_it(open_store):
    counted = []
    store, memory = await open_store(counted=counted.append)
    await store.write([Change("a", b"1")])
    in_the_thread(
        store, lambda c: c.execute(f"PRAGMA max_page_count = {module._pragma(c, 'page_count') + 2}")
    )
    results = await asyncio.gather(
        store.write([Change("b", b"1")]),
        store.write([Change("large", b"x" * 100_000)]),
        store.write([Change("c", b"1")]),
        return_exceptions=True,
    )
    assert [getattr(r, "code", r) for r in results] == [None, "store_unavailable", None]
    assert "disk_full" in results[1].detail
    assert Outcome.DISK_FULL in counted
    assert set(memory) == {"a", "b", "c"}
    assert await store.read("large") is None


class Failing(sqlite3.Connection):
    """A connection whose disk fails when told so."""

    failing = False

    def execute(self, sql, *arguments):
        if Failing.failing and sql in {"COMMIT", "ROLLBACK"}:
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *arguments)


async def test_a_failing_disk_is_logged_once_and_the_store_recovers_with_it(open_store, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Failing))
    monkeypatch.setattr(Failing, "failing", False)
    lines = []
    monkeypatch.setattr(
        module.log, "error", lambda event, **fields: lines.append((event, fields["reason"])), raising=False
    )
    store, memory = await open_store()
    await store.write([Change("a", b"1")])
    Failing.failing = True
    for n in range(3):
        detail = await refusal(store.write([Change(f"k{n}", b"")]), "store_unavailable")
        assert "disk I/O error" in detail
        assert "rollbook.db" in detail
    assert lines == [("store_unavailable", "io_error")]
    assert memory == {"a": b"1"}
    Failing.failing = False
    await store.write([Change("b", b"1")])
    await store.close()
    _, reloaded = await open_store()
    assert reloaded == memory == {"a": b"1", "b": b"1"}


async def test_a_file_that_is_taken_away_is_noticed_and_taken_again_when_it_is_back(open_store, path):
    store, memory = await open_store()
    await store.write([Change("a", b"1")])
    moved = path.with_name("moved")
    path.rename(moved)
    assert "put it back" in await refusal(store.write([Change("b", b"1")]), "store_unavailable")
    await refusal(store.read("a"), "store_unavailable")
    assert not path.exists(), "an empty one in its place would be a lie"
    moved.rename(path)
    await store.write([Change("b", b"1")])
    assert await store.read("a") == b"1"
    assert set(memory) == {"a", "b"}


async def test_another_file_in_its_place_is_not_taken_for_it(open_store, path, tmp_path):
    (tmp_path / "older copy").write_bytes(await filled(path))
    store, _ = await open_store()
    await store.write([Change("key399", b"changed since")])
    await store.close()
    store, memory = await open_store()
    await store.write([Change("key1", b"changed since")])
    (tmp_path / "older copy").replace(path)
    before = dict(memory)
    for _ in range(2):
        await refusal(store.write([Change("b", b"1")]), "store_unavailable")
    assert memory == before


async def test_a_disk_that_does_not_answer_holds_nobody_for_longer_than_the_timeout(open_store):
    counted = []
    store, memory = await open_store(timeout=0.05, counted=counted.append)
    release = threading.Event()
    entered = in_the_thread(store, lambda _: release.wait(10))
    first = asyncio.create_task(store.write([Change("a", b"1")]))
    assert await asyncio.to_thread(entered.wait, 5)
    second = asyncio.create_task(store.write([Change("b", b"1")]))
    assert "may yet be committed" in await refusal(first, "store_unavailable")
    # What was still waiting was taken back: it was not written, and never will be.
    assert "may yet be committed" not in await refusal(second, "store_unavailable")
    assert counted == [Outcome.TIMEOUT, Outcome.TIMEOUT]
    store._timeout = 10.0
    release.set()
    assert await store.read("a") == b"1"
    assert await store.read("b") is None
    assert memory == {"a": b"1"}


async def test_too_many_that_wait_are_refused_at_once(open_store, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    store, memory = await open_store()
    release = threading.Event()
    entered = in_the_thread(store, lambda _: release.wait(10))
    first = asyncio.create_task(store.write([Change("a", b"1")]))
    assert await asyncio.to_thread(entered.wait, 5)
    waiting = [asyncio.create_task(store.write([Change(f"k{n}", b"")])) for n in range(3)]
    await asyncio.sleep(0)
    assert "overloaded" in await refusal(store.write([Change("z", b"")]), "store_unavailable")
    release.set()
    await asyncio.gather(first, *waiting)
    assert len(memory) == 4


# --- opening -------------------------------------------------------------------------------------------


async def refused(path):
    store = SqliteStore(path)
    with pytest.raises(CannotOpenError) as caught:
        await store.open(lambda changes: None)
    await store.close()
    assert str(path) in str(caught.value)
    return caught.value


async def test_a_second_registry_on_the_same_file_is_told_which_setting_to_change(open_store, path):
    await open_store()
    error = await refused(path)
    assert error.outcome is Outcome.LOCKED
    assert "--data-dir" in str(error)


async def test_the_file_is_nobody_elses_to_read(open_store, tmp_path):
    store, _ = await open_store()
    await store.write([Change("a", b"1")])
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "rollbook.db": 0o600,
        "rollbook.db-wal": 0o600,
    }


def test_a_directory_belongs_to_one_registry(tmp_path):
    with held(tmp_path):
        with pytest.raises(CannotOpenError, match=rf"process {os.getpid()}.*--data-dir") as caught:
            held(tmp_path).__enter__()
        assert caught.value.outcome is Outcome.LOCKED
    with held(tmp_path):
        pass


async def filled(path):
    store = SqliteStore(path)
    await store.open(lambda changes: None)
    for n in range(0, 400, 100):
        await store.write([Change(f"key{n + m}", b"value" * 10) for m in range(100)])
    await store.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [b"", b"not a database at all", lambda whole: whole[: len(whole) // 2]],
    ids=["empty", "text", "half"],
)
async def test_a_damaged_file_stops_the_start_and_stays_as_it_is(path, damage):
    whole = await filled(path)
    bad = damage(whole) if callable(damage) else damage
    path.write_bytes(bad)
    error = await refused(path)
    assert error.outcome is Outcome.DAMAGED
    assert "restore" in str(error)
    assert path.read_bytes() == bad


async def test_a_flipped_bit_is_found_or_harmless(path):
    whole = await filled(path)
    expected = Memory()
    store = SqliteStore(path)
    await store.open(expected)
    await store.close()
    chance = random.Random(7)
    found = 0
    for _ in range(60):
        place = chance.randrange(len(whole))
        bad = bytearray(whole)
        bad[place] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        memory = Memory()
        store = SqliteStore(path)
        try:
            await store.open(memory)
        except CannotOpenError:
            found += 1
        else:
            assert memory == expected, f"at byte {place}"
        await store.close()
    assert found > 40


async def test_a_newer_versions_file_is_left_alone(path):
    await filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    error = await refused(path)
    assert error.outcome is Outcome.NEWER
    assert "schema 7" in str(error)


async def test_somebody_elses_database_is_left_alone(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    assert (await refused(path)).outcome is Outcome.DAMAGED


async def test_a_log_without_its_file_is_not_begun_over(path):
    Path(f"{path}-wal").write_bytes(b"what was promised last")
    assert "-wal" in str(await refused(path))
    assert not path.exists()


async def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    error = await refused(tmp_path / "file" / "rollbook.db")
    assert "--data-dir" in str(error)


async def test_a_start_that_was_killed_half_way_is_begun_over(path, open_store):
    Path(f"{path}.new").write_bytes(b"half a file")
    store, _ = await open_store()
    await store.write([Change("a", b"1")])
