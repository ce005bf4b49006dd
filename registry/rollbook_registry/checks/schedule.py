"""The schedule: which instance is to be checked when.

Each has a rhythm of its own: an interval, and a phase that chance gives it after its first check, so that
instances that were defined together, or came back together after a restart, are not checked together for
ever. The first check is made at once, but so many a second and no more. The phase survives whatever delays a
check: it is due next at the next beat of its own rhythm, and what was missed is not made up for.

A heap of due times; whoever is taken out of it costs the logarithm of how many there are, and whoever is not
due costs nothing. What was superseded stays in the heap until its time comes, or until most of the heap is
such (then it is built anew).
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")


class Due(NamedTuple, Generic[K]):
    """A key whose time has come, and when that was."""

    key: K
    at: float


class _Plan:
    """When a key is due next; ``taken``: its check is under way, and it is in the heap no more."""

    __slots__ = ("at", "first", "interval", "number", "taken")

    def __init__(self, interval: float, at: float) -> None:
        self.interval = interval
        self.at = at
        self.first = True
        self.taken = False
        self.number = 0


class Schedule(Generic[K]):
    """Keys and their rhythms. All times are attentive seconds.

    Args:
        rng: random numbers from 0 up to, not including, 1.
        first_rate: first checks a second, at most.
    """

    def __init__(self, *, rng: Callable[[], float], first_rate: float) -> None:
        self._rng = rng
        self._pause = 1.0 / first_rate
        self._gate = -math.inf
        self._plans: dict[K, _Plan] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._plans)

    def begin(self, key: K, interval: float, *, now: float) -> None:
        """Have a key checked at once (as the rate of first checks allows), and then every ``interval``.

        One that waits for its first check keeps its place; a rhythm that it had is forgotten.
        """
        known = self._plans.get(key)
        if known is not None and known.first and not known.taken:
            known.interval = interval
            return
        at = max(self._gate, now)
        self._gate = at + self._pause
        self._plans[key] = plan = _Plan(interval, at)
        self._push(key, plan)

    def pace(self, key: K, interval: float, *, now: float) -> None:
        """Give a key another interval; its next check is at most one of them away.

        Raises:
            KeyError: it is not in the schedule.
        """
        plan = self._plans[key]
        plan.interval = interval
        if not plan.taken and plan.at > now + interval:
            plan.at = now + interval
            self._push(key, plan)

    def end(self, key: K) -> None:
        """Forget a key, if it is there."""
        self._plans.pop(key, None)

    def take(self, *, now: float, limit: int) -> list[Due[K]]:
        """Return at most ``limit`` keys whose time has come, the one that waits longest first.

        They come again only after :meth:`done`.
        """
        due: list[Due[K]] = []
        while len(due) < limit and self._next() is not None and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            self._plans[key].taken = True
            due.append(Due(key, at))
        return due

    def done(self, key: K, *, now: float) -> int:
        """Say that a check has ended; return how many beats of its rhythm went by without one.

        Raises:
            KeyError: it is not in the schedule.
        """
        plan = self._plans[key]
        missed = 0
        if plan.first:
            plan.first = False
            # From more than 0 to 1: the interval is never exceeded.
            plan.at = now + plan.interval * (1.0 - self._rng())
        else:
            beats = max(1, math.floor((now - plan.at) / plan.interval) + 1)
            plan.at += beats * plan.interval
            missed = beats - 1
        plan.taken = False
        self._push(key, plan)
        return missed

    def next_at(self) -> float | None:
        """When the next key is due; that may be past. ``None``: none is waiting."""
        return self._next()

    def _next(self) -> float | None:
        heap = self._heap
        while heap:
            at, number, key = heap[0]
            plan = self._plans.get(key)
            if plan is not None and plan.number == number and not plan.taken:
                return at
            heapq.heappop(heap)
        return None

    def _push(self, key: K, plan: _Plan) -> None:
        self._number += 1
        plan.number = self._number
        heapq.heappush(self._heap, (plan.at, plan.number, key))
        if len(self._heap) > 2 * len(self._plans) + 64:
            self._heap = [(p.at, p.number, k) for k, p in self._plans.items() if not p.taken]
            heapq.heapify(self._heap)
