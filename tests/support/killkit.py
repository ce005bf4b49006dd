"""Processes that are killed while they do something to a directory, and tell by a pipe what they were told.

They are forked from a server that has imported everything once, so that a hundred of them take seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import random
import resource
import time
from pathlib import Path

from rollbook.model import Entry
from rollbook.names import LeaseId
from rollbook.problems import Problem
from rollbook_registry.catalog import Catalog, Timings
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.store.keeper import Disk, Keeper, Kept
from rollbook_registry.store.snapshot import SLICE
from rollbook_registry.store.sqlite import SqliteStore
from rollbook_registry.store.store import Change

CONTEXT = multiprocessing.get_context("forkserver")
# By names that the server can import: the tests' own directories are not on its path.
CONTEXT.set_forkserver_preload(
    ["rollbook_registry.store.sqlite", "rollbook_registry.store.keeper", "rollbook_registry.catalog"]
)


def lives(directory, doing, *, count, seed, after=lambda told: None):
    """Have a process do something, kill it at a random moment, and so on.

    Args:
        directory: where it is done.
        doing: called in each process with the directory, the number of its life, and how to tell.
        count: how many times.
        seed: of the moments.
        after: called after each death with what that process has told.
    """
    print("seed of the kills:", seed)
    moments = random.Random(seed)
    for life in range(count):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_live, args=(doing, directory, life, theirs), daemon=True)
        process.start()
        theirs.close()
        told = [ours.recv() for _ in range(moments.randrange(1, 40))]
        # Not always right after it told something.
        if moments.random() < 0.7:
            process.join(moments.random() * 0.01)
        process.kill()
        process.join()
        assert process.exitcode == -9, f"seed {seed}: it ended by itself"
        # What is in the pipe was told before it died.
        while True:
            try:
                told.append(ours.recv())
            except EOFError:
                break
        after(told)


def _live(doing, directory, life, pipe):
    doing(Path(directory), life, pipe.send)


def write_batches(directory, life, tell):
    """Three writers, each batch of which belongs together: two new records, and a marker that moves."""

    async def write(store, writer):
        for n in range(1_000_000):
            name = f"{life}/{writer}"
            marks = [Change(f"{name}/mark{n}", b"")] + ([Change(f"{name}/mark{n - 1}", None)] if n else [])
            await store.write([Change(f"{name}/a{n}", b"v" * 50), Change(f"{name}/b{n}", b"v" * 50), *marks])
            tell((life, writer, n))

    async def main():
        store = SqliteStore(directory / "rollbook.db")
        await store.open(lambda changes: None)
        await asyncio.gather(*(write(store, writer) for writer in range(3)))

    asyncio.run(main())


def apart(doing, *arguments):
    """Run something in a process of its own, and return what it returns."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_report, args=(doing, arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    result = ours.recv()
    process.join()
    return result


def _report(doing, arguments, pipe):
    pipe.send(doing(*arguments))


def write_on_a_small_disk(directory):
    """Write until no file may grow any more, then let them grow again; returns what became of each write."""
    limit = 300_000

    async def main():
        memory = {}
        store = SqliteStore(directory / "rollbook.db")
        await store.open(memory.update)
        outcomes = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for n in range(200):
            if n == 150:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            try:
                await store.write([Change(f"k{n}", b"v" * 4000), Change(f"l{n}", b"v" * 4000)])
                outcomes.append("committed")
            except Problem as problem:
                outcomes.append(problem.code)
        await store.close()
        return outcomes, memory

    return asyncio.run(main())


def keeper_of(catalog, directory, **options):
    """A keeper of a catalog."""
    defaults = {
        "interval": 3600.0,
        "boot": "boot",
        "ordinal": 0,
        "leases": lambda: catalog.pieces(SLICE),
        "pods": lambda: catalog.pod_records(0.0),
        "wall": time.time,
    }
    return Keeper(directory, **{**defaults, **options})


def save_and_remove(directory, life, tell):
    """Fill a book, then remove one thing after the other, while one snapshot after the other is saved.

    It tells of every snapshot when it is done, and of what was removed when it is answered for.
    """
    chance = random.Random(life)
    catalog = Catalog(Timings())
    keeper = keeper_of(catalog, directory)

    def done():
        for event in catalog.take_events():
            keeper.take(event)
        keeper.flush()

    def fill(lease):
        id_ = LeaseId(lease)
        catalog.attach(id_, kind=Kind.SESSION, term=0, holder=lease, now=0.0)
        pod = f"pod-{lease}"
        for n in range(20):
            owner = pod if n < 3 else ""
            catalog.register(id_, [Entry(service=lease, ip="10.0.0.1", port=n + 1, owner=owner)], 0.0)
        done()

    async def save():
        for n in itertools.count():
            assert await keeper.save()
            tell(("saved", n, []))

    async def remove():
        for n in itertools.count():
            lease = f"{life}-{n}"
            fill(lease)
            await asyncio.sleep(0)
            old = f"{life}-{n - chance.randrange(1, 4)}"
            held = catalog.lease(LeaseId(old))
            if held is None:
                continue
            refs = list(held.entries)
            what = chance.choice(["entries", "lease", "pod"])
            if what == "entries":
                gone = chance.sample(refs, len(refs) // 2)
                catalog.deregister(held.id, gone, 0.0)
            elif what == "lease":
                gone = refs
                catalog.release(held.id, 0.0)
            else:
                gone = [ref for ref in refs if ref.owner]
                catalog.close_pods([f"pod-{old}"], 0.0)
            done()
            tell((what, old, [(ref.service, ref.port) for ref in gone]))
            await asyncio.sleep(0)

    async def main():
        saved = await keeper.load()
        catalog.restore(saved.writes, saved.pods, 0.0)
        done()
        await asyncio.gather(save(), remove())

    asyncio.run(main())


def check_batches(records, told):
    """Every batch that was promised is there, and no half of any."""
    found: dict[str, dict[str, set[int]]] = {}
    for key in records:
        life, writer, name = key.split("/")
        kind = name.rstrip("0123456789")
        found.setdefault(f"{life}/{writer}", {"a": set(), "b": set(), "mark": set()})[kind].add(
            int(name.removeprefix(kind))
        )
    for parts in found.values():
        last = max(parts["a"])
        assert parts["a"] == parts["b"] == set(range(last + 1))
        assert parts["mark"] == {last}
    for life, writer, n in told:
        assert n in found[f"{life}/{writer}"]["a"], f"lost {life}/{writer} {n}"


def check_life(directory, told):
    """Whenever it was killed, there is a snapshot to be read, and nothing in it that was removed."""
    found = Disk(directory).load(time.time())
    assert {note.what for note in found.notes} <= {Kept.JOURNAL_TORN}
    there = {(r.entry.service, r.entry.port) for _, w in found.saved.writes for r in w.put}
    marked = {pod.uid for pod in found.saved.pods}
    for what, name, gone in told:
        if what == "saved":
            assert found.saved.header is not None
        else:
            assert not there & set(gone)
            if what == "pod":
                assert f"pod-{name}" in marked
