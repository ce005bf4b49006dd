"""Smooth weighted round robin: each instance in proportion to its weight, spread as evenly as can be.

The promise: while a list does not change, each instance has at every moment had its share of the picks, give
or take less than one. To keep it, an instance may be picked as soon as that would put it ahead of its share
by less than one pick, and of those that may, the one goes whose next pick is due soonest. That such a
schedule exists, and that this finds it, are results of R. Tijdeman ("The chairman assignment problem",
Discrete Mathematics 32, 1980) and of S. Baruah et al. ("Proportionate progress", Algorithmica 15, 1996).

A pick costs a few operations on two heaps, so it hardly depends on how many instances there are; and nothing
but an index where all weights are equal.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from rollbook.model import Instance
    from rollbook.names import InstanceKey


class SmoothWeightedRoundRobin:
    """Round robin in proportion to weights, evenly spread: weights 5, 1, 1 give a a a b a a c.

    After a change of the list, those that stay keep what they are ahead of or behind their shares by, and
    newcomers begin at theirs: a list that changes at every pick is shared as fairly as one that doesn't.

    Args:
        rng: where the order of the first list is drawn, so that callers which start together do not all
            begin with the same instance; without it those that are equally due go in the list's order.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng
        self._of: tuple[Instance, ...] = ()
        self._order: list[Instance] = []
        self._picks = 0
        self._total = 0.0
        self._even = True
        self._taken: list[float] = []
        """Picks of each, less those that were its share before this list."""
        self._ready: list[tuple[float, int]] = []
        """Those that may be picked, by when their next pick is due."""
        self._waiting: list[tuple[float, int]] = []
        """The others, by when they may. Times are rounds: picks divided by the sum of weights."""

    def pick(self, instances: tuple[Instance, ...]) -> Instance | None:
        """Return the one that is due soonest."""
        if instances is not self._of:
            self._prepare(instances)
        if not instances:
            return None
        picks = self._picks
        self._picks = picks + 1
        order = self._order
        if self._even:
            return order[picks % len(order)]
        now = (picks + 1) / self._total
        taken, ready, waiting = self._taken, self._ready, self._waiting
        # While a list does not change somebody may always be picked, as shares add up to picks. After a
        # change those that stayed may all be ahead of theirs; then the one that may soonest goes.
        while not ready or (waiting and waiting[0][0] < now):
            n = heapq.heappop(waiting)[1]
            heapq.heappush(ready, ((taken[n] + 1) / order[n].weight, n))
        n = heapq.heappop(ready)[1]
        taken[n] += 1
        # Divided each time, not added up: whole weights then stay exact for as long as the list does.
        heapq.heappush(waiting, (taken[n] / order[n].weight, n))
        return order[n]

    def _prepare(self, instances: tuple[Instance, ...]) -> None:
        ahead = self._ahead()
        order = list(instances)
        if ahead:
            order.sort(key=lambda i: ahead.get(i.key, 0.0))
        elif self._rng is not None:
            self._rng.shuffle(order)
        self._of = instances
        self._order = order
        self._picks = 0
        self._total = sum(i.weight for i in order)
        self._even = len({i.weight for i in order}) == 1
        self._taken = [ahead.get(i.key, 0.0) for i in order]
        self._ready = []
        self._waiting = []
        if not self._even:
            self._waiting = [
                (t / i.weight, n) for n, (t, i) in enumerate(zip(self._taken, order, strict=True))
            ]
            heapq.heapify(self._waiting)

    def _ahead(self) -> dict[InstanceKey, float]:
        """Say by how many picks each is ahead of its share."""
        picks, order = self._picks, self._order
        if not picks and not any(self._taken):
            return {}
        if not self._even:
            share = picks / self._total
            return {i.key: t - share * i.weight for i, t in zip(order, self._taken, strict=True)}
        rounds, more = divmod(picks, len(order))
        share = picks / len(order)
        return {
            i.key: t + rounds + (n < more) - share
            for n, (i, t) in enumerate(zip(order, self._taken, strict=True))
        }
