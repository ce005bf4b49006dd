"""Start-up: from the start of a process to its first good answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Final

from benchmarks import fleet
from benchmarks.http_load import get
from benchmarks.process import Bare, Process, Registry, Sidecar
from benchmarks.report import Result, Row, Spread
from benchmarks.session_beats import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Options

TIMES: Final = 8
FULL_TIMES: Final = 3
INSTANCES: Final = 100_000
SESSIONS: Final = 1000
INTERVAL: Final = 0.001
"""Seconds between tries whether it answers."""

NOWHERE: Final = 9
"""A port at which no registry is: a sidecar starts without one."""


def _answers(make: Callable[[], Process]) -> float:
    process = make()
    began = time.perf_counter()
    try:
        process.start()
        process.wait_ready(INTERVAL)
        return (time.perf_counter() - began) * 1000
    finally:
        process.stop()


def _ends(*command: str) -> float:
    process = Process(*command, name="python")
    began = time.perf_counter()
    try:
        process.start()
        if process.wait():
            raise RuntimeError(f"{command} failed")
        return (time.perf_counter() - began) * 1000
    finally:
        process.stop()


def _python(code: str) -> float:
    return _ends(sys.executable, "-c", code)


async def _with_a_book() -> Spread:
    """Have a registry save a large book, and start it again and again."""
    registry = Registry(fleet.LONG)
    with contextlib.ExitStack() as stack:
        stack.callback(registry.stop)
        registry.start()
        registry.wait_ready()
        publishers = [Publisher(n, INSTANCES // SESSIONS, 1) for n in range(SESSIONS)]
        for publisher in publishers:
            await publisher.enter(registry.session_port)
        for publisher in publishers:
            publisher.close()
        took = []
        for _ in range(FULL_TIMES):
            registry.end()  # it saves its book as it ends
            began = time.perf_counter()
            registry.start()
            await asyncio.to_thread(registry.wait_ready, INTERVAL)
            took.append((time.perf_counter() - began) * 1000)
            counted = json.loads(get(registry.port, "/namespaces"))["namespaces"][0]["instances"]
            if counted != INSTANCES:
                raise RuntimeError(f"{counted} instances came back of {INSTANCES}")
    return Spread(tuple(took))


async def run(options: Options) -> Result:
    """Measure."""
    del options  # the number of starts is its own
    subjects: dict[str, Callable[[], float]] = {
        "bare": lambda: _answers(Bare),
        "pass": lambda: _python("pass"),
        "aiohttp": lambda: _python("import aiohttp"),
        "registry": lambda: _answers(Registry),
        "sidecar": lambda: _answers(lambda: Sidecar(NOWHERE)),
        "sdk": lambda: _python("from rollbook import Client"),
        "msgspec": lambda: _python("import msgspec"),
        "vocabulary": lambda: _python("import rollbook"),
    }
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for n in range(TIMES + 1):
        for name, measure in subjects.items():
            took = await asyncio.to_thread(measure)
            if n:  # the first start compiles, and fills the page cache
                found[name].append(took)
    spreads = {name: Spread(tuple(values)) for name, values in found.items()}
    spreads["full"] = await _with_a_book()

    def row(name: str, ours: str, limit: str) -> Row:
        return Row(name=name, unit="ms", ours=spreads[ours], limit=spreads[limit])

    return Result(
        rows=[
            row("registry: until /readyz answers (limit: bare server)", "registry", "bare"),
            row("registry with a snapshot of 100,000 instances (limit: bare server)", "full", "bare"),
            row("sidecar: until /healthz answers (limit: bare server)", "sidecar", "bare"),
            row("from rollbook import Client (limit: import aiohttp)", "sdk", "aiohttp"),
            row("import rollbook (limit: import msgspec)", "vocabulary", "msgspec"),
            row("bare server until it answers (limit: python -c pass)", "bare", "pass"),
        ],
        limit="named in each row",
        notes=[
            (
                f"{TIMES} starts each in turn, after one that does not count; the sidecar has no registry, "
                f"{FULL_TIMES} with a snapshot of {INSTANCES:,} in {SESSIONS:,} leases"
            )
        ],
    )
