"""Silence of everybody at once: how long the event loop is held while 100,000 deadlines come together.

All are plain HTTP clients that gave their last sign of life in the same moment, so that one tick of the wheel
has to look at all of them. The book is driven by a clock of this program's, as fast as it can. What is told
is the processor's time, which others on the machine disturb less.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Final

from benchmarks import fleet
from benchmarks.report import Result, Row, Spread
from rollbook.logs import set_up
from rollbook_registry.book import Book
from rollbook_registry.catalog.leases import http_lease
from rollbook_registry.settings import RegistrySettings

if TYPE_CHECKING:
    from benchmarks.rounds import Options

INSTANCES: Final = 100_000
TIMES: Final = 3


class _Town:
    """A book with all of them in it, and the time."""

    def __init__(self, protection_share: float) -> None:
        self.now = 0.0
        settings = RegistrySettings(
            auth="none", max_instances=INSTANCES, max_services=INSTANCES, protection_share=protection_share
        )
        self.book = Book(settings, clock=self._clock, wall=self._clock)
        self.refs = []
        for number in range(INSTANCES):
            entry = fleet.entry(number, f"orders-{number // fleet.PER_SERVICE}")
            lease = http_lease(entry.ref)
            self.refs.append((lease, entry.ref))
            self.book.apply(lambda c, now: c.register_http(lease, entry, term=0, now=now))  # noqa: B023  # at once

    def _clock(self) -> float:
        return self.now

    def beat(self) -> None:
        for lease, ref in self.refs:
            self.book.apply(lambda c, now: c.beat_http(lease, ref, term=0, now=now))  # noqa: B023  # at once

    def wait(self, seconds: float) -> tuple[float, float]:
        """Let time pass; returns the longest hold of the loop, and all of it, in ms."""
        longest = total = 0.0
        end = self.now + seconds
        while self.now < end:
            self.now += self.book.settings.expiry_tick
            began = time.process_time()
            for _ in self.book.steps():
                held = time.process_time() - began
                longest, total = max(longest, held), total + held
                began = time.process_time()
            held = time.process_time() - began
            longest, total = max(longest, held), total + held
        return longest * 1000, total * 1000


class _Bare:
    __slots__ = ("alive", "seen")

    def __init__(self) -> None:
        self.seen = 0.0
        self.alive = True


def _bare(*, turn: bool) -> float:
    """A loop that looks at as many objects in a dict, in ms; it sets one attribute of those that turn."""
    objects = {f"lease-{number}": _Bare() for number in range(INSTANCES)}
    keys = list(objects)
    began = time.process_time()
    for key in keys:
        one = objects[key]
        if 15.0 - one.seen >= 15.0 and turn:
            one.alive = False
    return (time.process_time() - began) * 1000


def _measure(found: dict[str, list[tuple[float, float, float]]]) -> None:
    for share, protected in ((1.0, "without protection"), (0.15, "most are kept by protection")):
        town = _Town(share)
        gc.collect()
        gc.freeze()
        try:
            town.wait(10.0)
            town.beat()
            if share == 1.0:
                found.setdefault("all have beaten", []).append((*town.wait(10.0), _bare(turn=False)))
                found.setdefault("all turn", []).append((*town.wait(10.0), _bare(turn=True)))
            else:
                town.wait(20.0)
            found.setdefault(f"all are to go, {protected}", []).append((*town.wait(25.0), _bare(turn=True)))
        finally:
            gc.unfreeze()
        left = town.book.catalog.leases
        if left != round((1 - share) * INSTANCES):
            raise AssertionError(f"{left} of {INSTANCES} are left")


async def run(options: Options) -> Result:
    """Measure."""
    del options  # the number of times is its own
    set_up("error", "json")
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(TIMES):
        _measure(found)
    rows = []
    for name, times in found.items():
        longest, total, bare = (Spread(values) for values in zip(*times, strict=True))
        rows += [
            Row(name=f"{name}: the longest hold of the event loop", unit="ms", ours=longest, limit=None),
            Row(name=f"{name}: until the last has been dealt with", unit="ms", ours=total, limit=bare),
        ]
    return Result(
        rows=rows,
        limit="a loop that looks at as many objects in a dict, and sets an attribute of each that turns",
        notes=[
            f"{INSTANCES:,} plain HTTP clients, ten to a service, nobody subscribed; {TIMES} times",
            "ms of this process' time; between two holds the event loop is free for others",
        ],
    )
