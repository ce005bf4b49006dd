"""The store and the keeper: what acknowledged writes cost, and a snapshot of 100,000 instances."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from benchmarks.report import Result, Row, Spread
from rollbook import logs
from rollbook.model import Entry
from rollbook.names import LeaseId
from rollbook_registry.catalog import Catalog, Timings
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.catalog.quotas import Quotas
from rollbook_registry.catalog.records import LeaseWrite
from rollbook_registry.store import snapshot
from rollbook_registry.store.keeper import Keeper
from rollbook_registry.store.sqlite import SqliteStore
from rollbook_registry.store.store import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Options

VALUE: Final = b"v" * 250
"""About as long as a persistent instance's record."""

TOGETHER: Final = 100
INSTANCES: Final = 100_000
PER_LEASE: Final = (1, 20_000)
"""Instances a lease: a sidecar each, and an operator that answers for many."""


async def _writes(store: SqliteStore, seconds: float, writers: int) -> float:
    """Return acknowledged writes per second, by so many who each wait for the answer."""
    done = 0
    end = time.perf_counter() + seconds

    async def write(writer: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await store.write([Change(f"instance/public/g/s/{writer}-{done % 1000}", VALUE)])
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(write(n) for n in range(writers)))
    return done / (time.perf_counter() - began)


def _appends(path: Path, seconds: float) -> float:
    """Return appends per second of the same bytes, each flushed: what the disk can do."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        os.write(descriptor, VALUE)
        os.fdatasync(descriptor)
        done += 1
    rate = done / (time.perf_counter() - began)
    os.close(descriptor)
    return rate


async def _store_rows(directory: Path, options: Options) -> list[Row]:
    found: dict[str, list[float]] = {"alone": [], "together": [], "limit": []}
    store = SqliteStore(directory / "rollbook.db")
    await store.open(lambda _: None)
    for n in range(options.rounds + 1):
        measured = {
            "alone": await _writes(store, options.seconds, 1),
            "together": await _writes(store, options.seconds, TOGETHER),
            "limit": await asyncio.to_thread(_appends, directory / "appended", options.seconds),
        }
        if n:
            for name, rate in measured.items():
                found[name].append(rate)
    await store.close()
    limit = Spread(tuple(found["limit"]))
    return [
        Row(name="writes, one after the other", unit="/s", ours=Spread(tuple(found["alone"])), limit=limit),
        Row(
            name=f"writes, {TOGETHER} at a time",
            unit="/s",
            ours=Spread(tuple(found["together"])),
            limit=limit,
        ),
    ]


def _book(per_lease: int) -> Catalog:
    catalog = Catalog(Timings(), Quotas(max_instances=2 * INSTANCES))
    for lease in range(INSTANCES // per_lease):
        id_ = LeaseId(f"lease-{lease}")
        catalog.attach(id_, kind=Kind.SESSION, term=0, holder=catalog, now=0.0)
        entries = [_entry(lease * per_lease + n) for n in range(per_lease)]
        catalog.register(id_, entries, 0.0)
        catalog.take_events()
    return catalog


def _entry(n: int) -> Entry:
    return Entry(
        service=f"service-{n % 1000}",
        ip=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}",
        port=8080,
        owner=f"00000000-0000-0000-0000-{n:012d}",
        metadata={"version": "1.2.3", "zone": "a"},
    )


async def _keeper_rows(directory: Path, per_lease: int, options: Options) -> list[Row]:
    catalog = _book(per_lease)
    figures: dict[str, list[float]] = {}

    def note(name: str, began: float, factor: float = 1.0) -> None:
        figures.setdefault(name, []).append((time.perf_counter() - began) * factor)

    def keeper(leases: Callable[[], Any]) -> Keeper:
        return Keeper(
            directory, interval=3600.0, boot="b", ordinal=0, leases=leases, pods=list, wall=time.time
        )

    header = snapshot.Header(saved=0.0, boot="b", ordinal=0, generation=1)
    for _ in range(options.rounds):
        longest = 0.0
        slices = snapshot.encode(header, leases=catalog.pieces(snapshot.SLICE), pods=[])
        while True:
            began = time.thread_time()
            if next(slices, None) is None:
                break
            longest = max(longest, time.thread_time() - began)
        figures.setdefault("slice", []).append(longest * 1000)
        saving = keeper(lambda: catalog.pieces(snapshot.SLICE))
        await saving.load()
        began = time.perf_counter()
        await saving.save()
        note("save", began)
        figures.setdefault("size", []).append(saving.size / 2**20)
        await saving.close()
        loading = keeper(list)
        began = time.perf_counter()
        saved = await loading.load()
        note("load", began)
        await loading.close()
        began = time.perf_counter()
        whole = msgspec.msgpack.encode(saved.writes)
        note("encode", began)
        began = time.perf_counter()
        msgspec.msgpack.decode(whole, type=list[tuple[int, LeaseWrite]])
        note("decode", began)
    spread = {name: Spread(tuple(values)) for name, values in figures.items()}
    what = f"{INSTANCES:,} instances in leases of {per_lease:,}"
    return [
        Row(name=f"{what}: saving", unit="s", ours=spread["save"], limit=spread["encode"]),
        Row(name=f"{what}: longest hold of the event loop", unit="ms", ours=spread["slice"], limit=None),
        Row(name=f"{what}: loading", unit="s", ours=spread["load"], limit=spread["decode"]),
        Row(name=f"{what}: size", unit="MiB", ours=spread["size"], limit=None),
    ]


async def run(options: Options) -> Result:
    """Measure."""
    logs.set_up("warning", "json")
    directory = Path(tempfile.mkdtemp(dir=Path.cwd()))
    try:
        rows = await _store_rows(directory, options)
        for per_lease in PER_LEASE:
            rows += await _keeper_rows(directory, per_lease, options)
    finally:
        shutil.rmtree(directory)
    return Result(
        rows=rows,
        limit="of writes: appending the same bytes to a file and flushing each; of a snapshot: encoding or "
        "decoding the same records at once, without a disk",
        notes=["the longest hold is processor time of one slice: encoding goes on between other work"],
    )
