"""Picks: what choosing an instance costs a caller in the same process, and what a change costs its copy.

Of lists of 10, 100 and 1,000 instances: a pick by each strategy, and a pick after each change (one instance's
weight), which prepares the strategy anew. The limit of a pick is a call that chooses among as many with no
notion of health, weight or change: ``random.choice`` of the random strategy, ``next(itertools.cycle)`` of the
others. A delta is applied to the view and its digest compared, as a subscriber does; its limit is decoding
the frame that brings it. All by processor time, which others on the machine disturb less.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import fleet
from benchmarks.report import Result, Row, Spread
from rollbook import balance, frames
from rollbook.digest import digest, instance_digest, spell
from rollbook.model import Instance
from rollbook.names import ServiceKey, instance_key
from rollbook.view import View

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Options

SIZES: Final = (10, 100, 1_000)
CALLS: Final = 20_000
CHANGES: Final = 500
SERVICE: Final = ServiceKey("public", "DEFAULT_GROUP", "orders")


def _instance(n: int, weight: float) -> Instance:
    ip = fleet.address(n)
    key = instance_key(ip=ip, port=fleet.PORT, cluster="DEFAULT")
    return Instance(key=key, ip=ip, port=fleet.PORT, weight=weight)


def _list(size: int, *, even: bool) -> tuple[Instance, ...]:
    return tuple(_instance(n, 1.0 if even else 1.0 + n % 7) for n in range(size))


def _rate(call: Callable[[], object], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        call()
    return calls / (time.process_time() - began)


def _picks(name: str, instances: tuple[Instance, ...]) -> tuple[float, float]:
    pick = balance.strategy(name, rng=random.Random(1)).pick
    rng = random.Random(1)
    cycle = itertools.cycle(instances)
    limit = (lambda: rng.choice(instances)) if name == "random" else (lambda: next(cycle))
    pick(instances)
    return _rate(lambda: pick(instances), CALLS), _rate(limit, CALLS)


def _changing(name: str, instances: tuple[Instance, ...]) -> tuple[float, float]:
    """Pick once of each list, every one of which differs from the one before."""
    pick = balance.strategy(name, rng=random.Random(1)).pick
    lists = itertools.cycle([instances, (*instances[1:], _instance(0, 3.0))])
    return _rate(lambda: pick(next(lists)), CHANGES), _rate(lambda: list(next(lists)), CHANGES)


def _deltas(size: int) -> tuple[float, float]:
    """Apply changes of one instance to a list of so many."""
    view = View(SERVICE)
    instances = list(_list(size, even=True))
    total = digest(instances)
    view.snapshot(
        frames.Snapshot(
            service="orders", revision="b.0", digest=spell(total), settled=True, instances=instances
        )
    )
    codec = frames.Codec(frames.MSGPACK)
    sent = []
    for n in range(CHANGES):
        old = instances[n % size]
        new = instances[n % size] = msgspec.structs.replace(old, weight=float(n + 2))
        total ^= instance_digest(old) ^ instance_digest(new)
        sent.append(
            codec.encode(
                frames.Delta(
                    service="orders", base=f"b.{n}", revision=f"b.{n + 1}", digest=spell(total), put=[new]
                )
            )
        )
    began = time.process_time()
    deltas = [codec.answer(data) for data in sent]
    decoded = time.process_time()
    for delta in deltas:
        if isinstance(delta, frames.Delta):
            view.delta(delta)
    applied = time.process_time()
    if view.revision != f"b.{CHANGES}":
        raise RuntimeError("not every delta was applied")
    return CHANGES / (applied - decoded), CHANGES / (decoded - began)


async def run(options: Options) -> Result:
    """Measure."""
    subjects: dict[str, Callable[[], tuple[float, float]]] = {}
    for name, size, even in itertools.product(balance.STRATEGIES, SIZES, (True, False)):
        if even and name != balance.DEFAULT_STRATEGY:
            continue  # only that one has a way of its own for equal weights
        kind = f"{name} of {size:,}" + (", weights equal" if even else "")
        subjects[kind] = functools.partial(_picks, name, _list(size, even=even))
    for size in SIZES:
        kind = f"{balance.DEFAULT_STRATEGY} of {size:,}, another list each time"
        subjects[kind] = functools.partial(_changing, balance.DEFAULT_STRATEGY, _list(size, even=False))
    for size in SIZES:
        subjects[f"delta of one, to a list of {size:,}"] = functools.partial(_deltas, size)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for n in range(options.rounds + 1):
        for name, measure in subjects.items():
            rates = measure()
            if n:  # the first round warms up
                found[name].append(rates)
    return Result(
        rows=[
            Row(
                name=name,
                unit="/s",
                ours=Spread(tuple(ours for ours, _ in rates)),
                limit=Spread(tuple(limit for _, limit in rates)),
            )
            for name, rates in found.items()
        ],
        limit="random.choice, or the next of itertools.cycle; of another list its copy; of deltas decoding",
        notes=["per second of processor time; calls of a closure, on both sides"],
    )
