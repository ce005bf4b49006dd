"""The keeper: a restart begins with the book, without what had gone from it, whatever the disk does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killkit import check_life, keeper_of, lives, save_and_remove
from registrykit import a_ref, an_entry
from rollbook.names import LeaseId
from rollbook_registry.catalog import Catalog, Timings
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.catalog.records import PodRecord
from rollbook_registry.store import files
from rollbook_registry.store import keeper as module
from rollbook_registry.store.keeper import Disk, Kept
from rollbook_registry.store.snapshot import SLICE, Header

WALL = 1_000_000.0


def at(lease):
    """Each lease is on a machine of its own."""
    return {"ip": f"10.0.0.{ord(lease)}"}


class House:
    """A catalog with its keeper, as the book runs them, in a directory."""

    def __init__(self, directory, **options):
        self.directory = directory
        self.catalog = Catalog(Timings())
        self.counted = []
        self.wall = WALL
        self.keeper = keeper_of(
            self.catalog, directory, **{"wall": lambda: self.wall, "counted": self.counted.append, **options}
        )

    async def begin(self):
        self.saved = await self.keeper.load()
        self.do(lambda c: c.restore(self.saved.writes, self.saved.pods, 0.0))
        return self

    def do(self, command):
        command(self.catalog)
        for event in self.catalog.take_events():
            self.keeper.take(event)
        self.keeper.flush()

    def register(self, lease, *ports, **fields):
        def command(catalog):
            if catalog.lease(LeaseId(lease)) is None:
                catalog.attach(LeaseId(lease), kind=Kind.SESSION, term=0, holder=lease, now=0.0)
            catalog.register(LeaseId(lease), [an_entry(port, **at(lease), **fields) for port in ports], 0.0)

        self.do(command)

    def deregister(self, lease, *ports, **fields):
        self.do(
            lambda c: c.deregister(
                LeaseId(lease), [a_ref(port, **at(lease), **fields) for port in ports], 0.0
            )
        )

    @property
    def held(self):
        return held(self.catalog)


def held(catalog):
    """What is in a book, as sorted (lease, port)."""
    return sorted((id_, ref.port) for id_ in catalog.own() for ref in catalog.lease(id_).entries)


def on_disk(directory, wall=WALL):
    """What a registry that starts now would begin with."""
    found = Disk(directory).load(wall)
    assert not found.notes
    return sorted((w.id, r.entry.port) for _, w in found.saved.writes for r in w.put)


@pytest.fixture
async def begin(tmp_path):
    """Begin keeping a directory, as often as a test restarts; all of it ends with the test."""
    houses = []

    async def begin(**options):
        house = House(tmp_path, **options)
        houses.append(house)
        return await house.begin()

    yield begin
    for house in houses:
        house.keeper._changed = False
        await house.keeper.close()


async def test_without_files_there_is_nothing_and_nothing_is_said(begin, tmp_path):
    house = await begin()
    assert house.saved == ([], [], None)
    assert house.counted == [Kept.NOTHING_THERE]
    assert list(tmp_path.iterdir()) == []


async def test_a_restart_begins_with_the_book_as_it_was_saved(begin):
    house = await begin()
    house.register("a", 1, 2)
    house.register("b", 3, owner="pod-b")
    house.do(lambda c: c.close_pods(["pod-c"], 0.0))
    await house.keeper.close()
    again = await begin()
    assert again.held == [("a", 1), ("a", 2), ("b", 3)]
    assert "pod-c" in again.catalog.pods
    assert again.counted == [Kept.LOADED]
    assert all(write.whole for _, write in again.saved.writes)
    assert again.saved.header == Header(
        saved=WALL, boot="boot", ordinal=0, generation=again.saved.header.generation
    )


async def test_what_was_removed_since_the_snapshot_does_not_come_back(begin):
    house = await begin()
    for lease in "abcd":
        house.register(lease, 1, 2)
    house.register("e", 3, 4, owner="pod-e")
    house.register("f", 5, owner="pod-f")
    assert await house.keeper.save()
    house.deregister("a", 1)
    house.do(lambda c: c.release(LeaseId("b"), 0.0))
    house.do(lambda c: c.close_pods(["pod-e"], 0.0))
    house.wall += 100
    # No goodbye: it was killed.
    again = await begin(wall=lambda: WALL + 160)
    assert again.held == house.held == [("a", 2), ("c", 1), ("c", 2), ("d", 1), ("d", 2), ("f", 5)]
    assert again.saved.pods == [PodRecord(uid="pod-e", age=160.0)]


async def test_what_is_dropped_while_the_client_attaches_again_does_not_come_back(begin):
    house = await begin()
    house.register("a", 1, 2)
    assert await house.keeper.save()

    def attach_without(catalog):
        # One command, one record: a whole one, in which the drop would not show by itself.
        catalog._open(LeaseId("a"), kind=Kind.SESSION, term=1, epoch=0, now=0.0)
        catalog.deregister(LeaseId("a"), [a_ref(1, **at("a"))], 0.0)

    house.do(attach_without)
    assert (await begin()).held == [("a", 2)]


async def test_what_is_registered_again_after_a_removal_is_saved_and_stays(begin):
    house = await begin()
    house.register("a", 1)
    assert await house.keeper.save()
    house.deregister("a", 1)
    house.register("a", 1)
    assert on_disk(house.directory) == []
    assert await house.keeper.save()
    assert on_disk(house.directory) == [("a", 1)]


async def test_fences_outlive_a_snapshot_that_cannot_be_used(begin, tmp_path):
    house = await begin()
    house.register("a", 1)
    assert await house.keeper.save()
    house.do(lambda c: c.close_pods(["pod-e"], 0.0))
    (tmp_path / "snapshot").write_bytes(b"RLBKSNAP something else")
    again = await begin()
    assert again.held == []
    assert "pod-e" in again.catalog.pods


async def test_ages_go_on_while_nobody_runs_and_never_backwards(begin):
    house = await begin()
    house.do(lambda c: c.mark_pods([PodRecord(uid="p", fenced=True, age=50.0)], 0.0))
    await house.keeper.close()
    assert (await begin(wall=lambda: WALL + 1000)).saved.pods == [PodRecord(uid="p", fenced=True, age=1050.0)]
    assert (await begin(wall=lambda: WALL - 1000)).saved.pods == [PodRecord(uid="p", fenced=True, age=1050.0)]


async def test_a_large_lease_goes_to_the_disk_in_pieces_and_comes_back_whole(begin):
    house = await begin()
    ports = range(1, 4 * SLICE)
    house.register("a", *ports)
    assert all(len(write.put) <= SLICE for _, write in house.catalog.pieces(SLICE))
    assert await house.keeper.save()
    again = await begin()
    assert len(again.saved.writes) == 1
    assert again.held == [("a", port) for port in ports]


async def test_without_changes_nothing_is_saved(begin, monkeypatch):
    house = await begin(interval=0.01)
    saves = asyncio.Queue()
    save = house.keeper.save

    async def counted():
        saves.put_nowait(await save())

    monkeypatch.setattr(house.keeper, "save", counted)
    running = asyncio.create_task(house.keeper.run())
    house.register("a", 1)
    await asyncio.wait_for(saves.get(), 5)
    await asyncio.sleep(0.1)
    assert saves.empty()
    house.deregister("a", 1)
    await asyncio.wait_for(saves.get(), 5)
    running.cancel()


async def test_removals_go_to_the_journal_by_themselves_when_the_turn_ends(begin, tmp_path):
    house = await begin()
    house.register("a", 1, 2)
    assert await house.keeper.save()
    # Nobody calls flush.
    house.catalog.deregister(LeaseId("a"), [a_ref(1, **at("a"))], 0.0)
    for event in house.catalog.take_events():
        house.keeper.take(event)
    await asyncio.sleep(0)
    assert on_disk(tmp_path) == [("a", 2)]


async def test_a_registry_has_noted_a_removal_before_it_answers(start, tmp_path):
    server = (await start()).server
    server.book.apply(lambda c, now: c.attach(LeaseId("a"), kind=Kind.SESSION, term=0, holder="a", now=now))
    server.book.apply(lambda c, now: c.register(LeaseId("a"), [an_entry(1), an_entry(2)], now))
    assert await server.keeper.save()
    # Nothing else has its turn between the command and the look at the disk.
    server.book.apply(lambda c, now: c.deregister(LeaseId("a"), [a_ref(1)], now))
    assert on_disk(tmp_path) == [("a", 2)]


async def test_many_removals_are_one_write(begin, monkeypatch):
    house = await begin()
    house.register("a", *range(1, 100))
    writes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(len(data)) or write(fd, data))
    house.do(lambda c: c.close_pods([f"pod-{n}" for n in range(100)], 0.0))
    assert len(writes) == 1


# --- what cannot be used -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"ELF or so", "foreign"),
        (b"RLBKSNAP\xff\xff and more", "future_version"),
        (b"RLBKSNAP\x00\x01" + bytes(50), "damaged"),
    ],
)
async def test_a_snapshot_that_cannot_be_used_is_set_aside_and_one_line_says_why(
    begin, tmp_path, monkeypatch, data, reason
):
    lines = []
    monkeypatch.setattr(
        module.log, "warning", lambda event, **fields: lines.append((event, fields)), raising=False
    )
    (tmp_path / "snapshot").write_bytes(data)
    house = await begin()
    assert house.held == []
    assert house.counted == [Kept.SET_ASIDE, Kept.NOTHING_THERE]
    ((event, fields),) = lines
    assert event == "set_aside"
    assert fields["file"] == str(tmp_path / "snapshot")
    assert fields["reason"] == reason
    assert "snapshot.damaged-1" in fields["detail"]
    assert (tmp_path / "snapshot.damaged-1").read_bytes() == data
    house.register("a", 1)
    assert await house.keeper.save()
    assert on_disk(tmp_path) == [("a", 1)]


async def test_it_starts_whatever_byte_is_changed_and_believes_all_or_nothing(begin, tmp_path):
    house = await begin()
    house.register("a", 1, 2)
    house.register("b", 3)
    assert await house.keeper.save()
    good = (tmp_path / "snapshot").read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (tmp_path / "snapshot").write_bytes(bad)
        loaded = Disk(tmp_path).load(WALL)
        assert loaded.saved.writes == []
        assert [note.what for note in loaded.notes] == [Kept.SET_ASIDE]
    assert len(list(tmp_path.glob("snapshot.damaged-*"))) == files.DAMAGED_KEPT
    assert (tmp_path / f"snapshot.damaged-{len(good)}").exists()


async def test_a_torn_journal_counts_up_to_where_it_is_torn(begin, tmp_path):
    house = await begin()
    house.register("a", 1, 2, 3)
    assert await house.keeper.save()
    house.deregister("a", 1)
    house.deregister("a", 2)
    (path,) = tmp_path.glob("journal-*")
    path.write_bytes(path.read_bytes()[:-5])
    again = await begin()
    assert again.held == [("a", 2), ("a", 3)]
    assert again.counted == [Kept.JOURNAL_TORN, Kept.LOADED]
    # And what is removed now does not end up behind the tear.
    again.deregister("a", 3)
    assert (await begin()).held == [("a", 2)]


async def test_a_foreign_journal_is_set_aside(begin, tmp_path):
    (tmp_path / "journal-3").write_bytes(b"not one of ours")
    house = await begin()
    assert house.counted == [Kept.SET_ASIDE, Kept.NOTHING_THERE]
    assert (tmp_path / "journal.damaged-1").exists()


async def test_half_written_files_are_cleaned_up(begin, tmp_path):
    (tmp_path / "snapshot.tmp").write_bytes(b"half")
    await begin()
    assert not (tmp_path / "snapshot.tmp").exists()


async def test_a_file_that_cannot_be_read_is_left_alone(begin, tmp_path):
    (tmp_path / "snapshot").mkdir()
    house = await begin()
    assert house.counted == [Kept.UNREADABLE, Kept.NOTHING_THERE]
    assert (tmp_path / "snapshot").is_dir()


# --- a disk that fails ---------------------------------------------------------------------------------


def failing(monkeypatch, name, error=errno.ENOSPC):
    """Have a call of the system fail until told otherwise."""
    real = getattr(os, name)
    state = {"failing": True}

    def call(*arguments, **options):
        if state["failing"]:
            raise OSError(error, os.strerror(error))
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, call)
    return state


@pytest.mark.parametrize("name", ["open", "write", "fsync"])
async def test_a_failing_disk_is_logged_once_counted_and_tried_again(begin, tmp_path, monkeypatch, name):
    lines = []
    monkeypatch.setattr(module.log, "error", lambda event, **fields: lines.append(event), raising=False)
    house = await begin()
    house.register("a", 1, 2)
    assert await house.keeper.save()
    disk = failing(monkeypatch, name)
    for _ in range(3):
        assert not await house.keeper.save()
    assert lines == ["save_failed"]
    assert house.counted.count(Kept.SAVE_FAILED) == 3
    disk["failing"] = False
    # The former snapshot, with its journals, is what counts meanwhile.
    house.deregister("a", 1)
    assert on_disk(tmp_path) == [("a", 2)]
    assert not list(tmp_path.glob("*.tmp"))
    assert await house.keeper.save()
    assert on_disk(tmp_path) == [("a", 2)]
    assert len(list(tmp_path.glob("journal-*"))) <= 1


async def test_a_removal_that_could_not_be_noted_is_made_good_by_a_snapshot_at_once(
    begin, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "MIN_PAUSE", 0.01)
    house = await begin()
    house.register("a", 1, 2)
    assert await house.keeper.save()
    disk = failing(monkeypatch, "write")
    house.deregister("a", 1)
    assert Kept.JOURNAL_FAILED in house.counted
    disk["failing"] = False
    assert on_disk(tmp_path) == [("a", 1), ("a", 2)]
    running = asyncio.create_task(house.keeper.run())
    async with asyncio.timeout(10):
        while house.counted.count(Kept.SAVED) < 2:
            await asyncio.sleep(0.01)
    running.cancel()
    assert on_disk(tmp_path) == [("a", 2)]


async def test_an_append_that_was_cut_short_is_taken_back(begin, tmp_path, monkeypatch):
    house = await begin()
    house.register("a", 1, 2, 3)
    assert await house.keeper.save()
    house.deregister("a", 1)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        house.deregister("a", 2)
    assert Kept.JOURNAL_FAILED in house.counted
    house.deregister("a", 3)
    assert on_disk(tmp_path) == [("a", 2)]


async def test_a_long_journal_asks_for_a_snapshot_and_never_fills_the_disk(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONG_JOURNAL", 2_000)
    monkeypatch.setattr(module, "MAX_JOURNALS", 5_000)
    house = await begin()
    await house.keeper.save()
    disk = failing(monkeypatch, "fsync")
    for n in range(1000):
        house.do(lambda c, n=n: c.close_pods([f"pod-{n}"], 0.0))
        if n % 20 == 0:
            assert not await house.keeper.save()
    assert sum(path.stat().st_size for path in tmp_path.glob("journal-*")) <= 5_000
    assert house.keeper._hurry.is_set() is False, "as long as the disk fails, hurrying is no use"
    disk["failing"] = False
    assert await house.keeper.save()
    for n in range(100):
        house.do(lambda c, n=n: c.close_pods([f"other-{n}"], 0.0))
    assert house.keeper._hurry.is_set()
    house.keeper.flush()
    assert len(Disk(tmp_path).load(WALL).saved.pods) == 1100


async def test_a_mistake_while_saving_does_not_end_it(begin, monkeypatch):
    monkeypatch.setattr(module, "MIN_PAUSE", 0.01)
    house = await begin(interval=0.01)
    leases = house.keeper._leases
    calls = []

    def wrong():
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("a mistake")
        return leases()

    house.keeper._leases = wrong
    running = asyncio.create_task(house.keeper.run())
    house.register("a", 1)
    async with asyncio.timeout(10):
        while Kept.SAVED not in house.counted:
            await asyncio.sleep(0.01)
    running.cancel()
    assert Kept.SAVE_FAILED in house.counted


async def test_a_save_that_is_cancelled_leaves_the_former_one_and_is_done_again_at_the_end(begin, tmp_path):
    house = await begin()
    house.register("a", 1)
    assert await house.keeper.save()
    house.register("b", 2)
    reached = asyncio.Event()
    leases = house.keeper._leases

    def slow():
        reached.set()
        yield from leases()

    house.keeper._leases = slow
    saving = asyncio.create_task(house.keeper.save())
    await reached.wait()
    saving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await saving
    assert saving.cancelled()
    assert on_disk(tmp_path) == [("a", 1)]
    await house.keeper.close()
    assert on_disk(tmp_path) == [("a", 1), ("b", 2)]
    assert not list(tmp_path.glob("*.tmp"))


async def test_files_are_nobody_elses_to_read(begin, tmp_path):
    house = await begin()
    house.register("a", 1, 2)
    await house.keeper.save()
    house.deregister("a", 1)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


# --- any order of events -------------------------------------------------------------------------------

keys = st.tuples(st.sampled_from("abc"), st.integers(1, 6))
steps = st.one_of(
    st.tuples(st.just("register"), keys),
    st.tuples(st.just("deregister"), keys),
    st.tuples(st.just("release"), keys),
    st.tuples(st.just("attach"), keys),
    st.tuples(st.just("close"), st.integers(1, 6)),
    st.tuples(st.sampled_from(["save", "fail", "kill", "kill before cleaning up"]), st.none()),
)


class Life:
    """Runs steps, some of them between the slices of a snapshot, and knows what a restart must bring back."""

    def __init__(self, directory):
        self.directory = directory
        self.closed = set()
        self.since = {}
        """Of what has been in the book all the time, since which snapshot it has been."""
        self.count = 0
        self.kept = 0

    async def run(self, steps):
        self.steps = iter(steps)
        self.house = await House(self.directory, leases=self.leases).begin()
        for step in self.steps:
            await self.step(step)
        await self.kill()

    def leases(self):
        for piece in self.house.catalog.pieces(2):
            yield piece
            step = next(self.steps, None)
            if step is not None and step[1] is not None:
                self.change(step)
            elif step is not None and step[0] == "fail":
                raise OSError(errno.EIO, "disk")

    async def step(self, step):
        if step[1] is not None:
            self.change(step)
        elif step[0].startswith("kill"):
            if step[0] != "kill":
                # Dies when the snapshot is in its place, and the old journals are still there.
                self.house.keeper._disk.drop_journals = lambda before: None
                await self.save()
            await self.kill()
        else:
            await self.save()

    async def save(self):
        self.count += 1
        if await self.house.keeper.save():
            self.kept = self.count

    def change(self, step):
        what, about = step
        house = self.house
        if what == "close":
            uid = f"pod-{about}"
            self.closed.add(uid)
            house.do(lambda c: c.close_pods([uid], 0.0))
        else:
            lease, port = about
            id_, owner = LeaseId(lease), f"pod-{port}" if port % 2 else ""
            if what == "register" and owner not in self.closed:
                house.register(lease, port, owner=owner)
            elif what == "attach":
                house.do(lambda c: c.attach(id_, kind=Kind.SESSION, term=0, holder=object(), now=0.0))
            elif house.catalog.lease(id_) is not None and house.catalog.lease(id_).holder is not None:
                if what == "deregister":
                    house.deregister(lease, port, owner=owner)
                elif what == "release":
                    house.do(lambda c: c.release(id_, 0.0))
        there = set(house.held)
        self.since = {key: self.since.get(key, self.count) for key in there}

    async def kill(self):
        """Die, and begin again with what is on the disk."""
        before = set(self.house.held)
        self.house.keeper._worker.shutdown()
        self.house = await House(self.directory, leases=self.leases).begin()
        after = set(self.house.held)
        assert after <= before, "something that was removed is back"
        # What was there before the snapshot that counts was begun, and all the time since, must be back.
        assert {key for key, since in self.since.items() if since < self.kept} <= after
        assert self.closed == {uid for uid in self.closed if uid in self.house.catalog.pods}
        assert not {Kept.SET_ASIDE, Kept.JOURNAL_TORN, Kept.UNREADABLE} & set(self.house.counted)
        self.since = {key: self.since[key] for key in after}


@settings(max_examples=150)
@given(steps=st.lists(steps, max_size=60))
def test_nothing_that_was_removed_comes_back_and_nothing_that_was_saved_is_missing(steps, tmp_path_factory):
    directory = tmp_path_factory.mktemp("life")
    asyncio.run(Life(directory).run(steps))
    shutil.rmtree(directory)


# --- killed --------------------------------------------------------------------------------------------


def test_killed_at_any_moment_it_begins_with_a_snapshot_and_without_what_was_removed(tmp_path):
    told: list[tuple[str, str, list[tuple[str, int]]]] = []

    def after(heard):
        told.extend(heard)
        check_life(tmp_path, told)

    lives(tmp_path, save_and_remove, count=25, seed=random.randrange(10**6), after=after)
    assert {what for what, _, _ in told} == {"saved", "entries", "lease", "pod"}
