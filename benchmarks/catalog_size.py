"""The catalog and the wheel by size: what one operation costs in a book of 1,000, 10,000 and 100,000.

The pure core alone, without sockets: commands, the merge, digests, change logs and what is written for other
replicas. All sizes take turns, round by round, so that each is compared with the smallest beside it. Rates
are by processor time, which others on the machine disturb less.
"""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import fleet
from benchmarks.report import Result, Row, Spread
from rollbook.model import Entry, EntryRef
from rollbook.names import LeaseId
from rollbook_registry.catalog import Catalog, Deadline, Quotas, Timings
from rollbook_registry.catalog.leases import Kind, http_lease
from rollbook_registry.expiry import Expiry, Protected, Protection, Wheel
from rollbook_registry.expiry.expiry import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Options

SIZES: Final = (1_000, 10_000, 100_000)
SMALLEST: Final = SIZES[0]
TICK: Final = 0.25
DUE: Final = 100
"""Leases that are due in one tick of the wheel, whatever the size."""

OPERATOR: Final = LeaseId("operator")

_decode = msgspec.json.Decoder(Entry).decode
_encode = msgspec.json.Encoder().encode


class Book:
    """A catalog with its wheel, and so many instances: each of a session of its own, ten to a service.

    Half as many again are told by one operator's lease, for pods, to see what a large lease costs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.now = 0.0
        self.catalog = Catalog(Timings(), Quotas(max_instances=10 * size))
        self.wheel: Wheel[LeaseId] = Wheel(0.0, tick=TICK)
        self.expiry = Expiry(
            self.catalog,
            self.wheel,
            Protection(Protected(share=1.0), random.Random(1)),  # seeded
        )
        self.fresh = 2 * size
        for number in range(size):
            self.enter(number)
        self.catalog.attach(OPERATOR, kind=Kind.OPERATOR, term=0, holder=self, now=0.0)
        self.told = [self.pod(number) for number in range(size // 2)]
        self.catalog.register(OPERATOR, self.told, 0.0)
        self.drain()
        self.bare = {_lease(number): _Bare() for number in range(size)}

    def drain(self) -> None:
        """Take the events as the registry does."""
        for event in self.catalog.take_events():
            if isinstance(event, Deadline):
                self.expiry.watch(event.lease, event.at)

    def enter(self, number: int) -> None:
        """Attach a session, and register an instance of it."""
        lease = _lease(number)
        self.catalog.attach(lease, kind=Kind.SESSION, term=0, holder=self, now=self.now)
        # By way of the wire: what is decoded is nobody else's.
        entry = _decode(_encode(fleet.entry(number, f"orders-{number // fleet.PER_SERVICE}")))
        self.catalog.register(lease, [entry], self.now)
        self.drain()

    def leave(self, number: int) -> None:
        self.catalog.release(_lease(number), self.now)
        self.drain()

    def pod(self, number: int, weight: float = 1.0) -> Entry:
        return Entry(
            service=f"pods-{number // fleet.PER_SERVICE}",
            ip=fleet.address(number),
            port=fleet.PORT,
            owner=f"uid-{number}",
            weight=weight,
            ready=True,
        )


def _lease(number: int) -> LeaseId:
    return LeaseId(f"lease-{number}")


def _register(book: Book, count: int) -> float:
    first, book.fresh = book.fresh, book.fresh + count
    began = time.process_time()
    for number in range(first, first + count):
        book.enter(number)
    took = time.process_time() - began
    for number in range(first, first + count):
        book.leave(number)
    return took


def _deregister(book: Book, count: int) -> float:
    first, book.fresh = book.fresh, book.fresh + count
    for number in range(first, first + count):
        book.enter(number)
    began = time.process_time()
    for number in range(first, first + count):
        book.leave(number)
    return time.process_time() - began


def _beat(book: Book, count: int) -> float:
    # As they come in reality: in no order that memory knows.
    leases = [_lease(n) for n in random.Random(1).choices(range(book.size), k=count)]
    nothing: frozenset[EntryRef] = frozenset()
    began = time.process_time()
    for lease in leases:
        book.catalog.beat(lease, term=1, down=nothing, now=book.now)
        book.drain()
    return time.process_time() - began


class _Bare:
    """What the limit of beats looks up."""

    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = 0.0


def _bare_beat(book: Book, count: int) -> float:
    """A dict of as many objects as there are leases, looked up in the same order; one attribute is set."""
    leases = [_lease(n) for n in random.Random(1).choices(range(book.size), k=count)]
    began = time.process_time()
    for lease in leases:
        book.bare[lease].seen = book.now
    return time.process_time() - began


def _tell(book: Book, count: int) -> float:
    numbers = [n * (len(book.told) // count or 1) % len(book.told) for n in range(count)]
    changed = [book.pod(number, weight=book.now + 2.0 + n) for n, number in enumerate(numbers)]
    began = time.process_time()
    for entry in changed:
        book.catalog.register(OPERATOR, [entry], book.now)
        book.drain()
    return time.process_time() - began


def _look(book: Book, count: int) -> float:
    """Ticks in which so many deadlines come, of leases that have beaten since."""
    wheel: Wheel[LeaseId] = Wheel(0.0, tick=TICK)
    for number in range(book.size):
        # All but those that come are spread over a minute that is far away.
        wheel.add(_lease(number), 1000.0 + number % 240 * TICK)
    expiry = Expiry(book.catalog, wheel, Protection(Protected(share=1.0), random.Random(1)))
    took = 0.0
    for turn in range(1, count // DUE + 1):
        for number in range(DUE):
            wheel.add(_lease(number), turn * TICK)
        began = time.process_time()
        expiry.turn(turn * TICK)
        took += time.process_time() - began
        book.catalog.take_events()
    return took


def _expire(book: Book, count: int) -> float:
    """Silence of so many at once: all turn, then all go. The others beat."""
    first, book.fresh = book.fresh, book.fresh + count
    for number in range(first, first + count):
        book.enter(number)
    nothing: frozenset[EntryRef] = frozenset()
    took = 0.0
    for _ in range(2):
        book.now += 15.0
        for number in range(book.size):
            book.catalog.beat(_lease(number), term=1, down=nothing, now=book.now)
        book.catalog.beat(OPERATOR, term=1, down=nothing, now=book.now)
        book.drain()
        # Those that have beaten are looked at lazily; that is not this row's.
        due = book.wheel.advance(book.now)
        mine = [_lease(number) for number in range(first, first + count)]
        rest = set(due) - set(mine)
        began = time.process_time()
        for start in range(0, count, SLICE):
            book.catalog.expire(mine[start : start + SLICE], book.now)
        took += time.process_time() - began
        book.drain()
        book.catalog.look(rest, book.now)
        book.drain()
    if book.catalog.lease(_lease(first)) is not None:
        raise AssertionError("what was silent is still there")
    return took


OPERATIONS: Final[dict[str, tuple[Callable[[Book, int], float], int]]] = {
    "attach and register": (_register, 2_000),
    "goodbye": (_deregister, 2_000),
    "beat": (_beat, 20_000),
    "operator's word about one pod": (_tell, 2_000),
    f"deadlines looked at, {DUE} a tick": (_look, 10_000),
    "silences: not alive, then out": (_expire, 1_000),
}
"""What is measured, and how many of it in a round."""


def _bytes_each(kind: str, size: int) -> float:
    """What an instance costs, as Python's allocator counts."""
    numbers = range(size)
    bodies = [_encode(fleet.entry(n, f"orders-{n // fleet.PER_SERVICE}")) for n in numbers]
    gc.collect()
    tracemalloc.start()
    try:
        catalog, wheel = Catalog(Timings()), Wheel[LeaseId](0.0, tick=TICK)
        for number in numbers:
            entry = _decode(bodies[number])
            if kind == "http":
                lease = http_lease(entry.ref)
                catalog.register_http(lease, entry, term=0, now=0.0)
            else:
                lease = LeaseId(f"lease-{number // 100:032x}")
                if number % 100 == 0:
                    catalog.attach(lease, kind=Kind.SESSION, term=0, holder=catalog, now=0.0)
                catalog.register(lease, [entry], 0.0)
            for event in catalog.take_events():
                if isinstance(event, Deadline):
                    wheel.add(event.lease, event.at)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / size
    finally:
        tracemalloc.stop()


async def run(options: Options) -> Result:
    """Measure."""
    books = [Book(size) for size in SIZES]
    gc.collect()
    gc.freeze()
    try:
        rows = [row for name in OPERATIONS for row in _rows(name, books, options)]
    finally:
        gc.unfreeze()
    del books
    memory = [
        Row(
            name=f"an instance of {name}", unit="bytes", ours=Spread((_bytes_each(kind, 20_000),)), limit=None
        )
        for kind, name in (("http", "a plain HTTP client"), ("session", "a session of a hundred"))
    ]
    return Result(
        rows=rows + memory,
        limit=(
            f"the same operation in a book of {SMALLEST:,}, in the same round; of beats: as many objects in "
            "a dict, looked up in the same order, one attribute set"
        ),
        notes=[
            "one process, no sockets; rates are per second of its processor time",
            "each instance has a session of its own, ten to a service; half as many more are one operator's",
            "bytes are what Python's allocator gave out for 20,000 instances with metadata, divided by them",
        ],
    )


def _rows(name: str, books: list[Book], options: Options) -> list[Row]:
    operation, count = OPERATIONS[name]
    found: dict[int, list[float]] = {book.size: [] for book in books}
    bare: dict[int, list[float]] = {book.size: [] for book in books}
    for turn in range(options.rounds + 1):
        for book in books:
            took = operation(book, count)
            if turn:  # the first is to get warm
                found[book.size].append(count / took)
                if operation is _beat:
                    bare[book.size].append(count / _bare_beat(book, count))

    def _limit(size: int) -> list[float]:
        return bare[size] or (found[SMALLEST] if size != SMALLEST else [])

    return [
        Row(
            name=f"{name}, {size:,}",
            unit="/s",
            ours=Spread(tuple(rates)),
            limit=Spread(tuple(limit)) if (limit := _limit(size)) else None,
        )
        for size, rates in found.items()
    ]
