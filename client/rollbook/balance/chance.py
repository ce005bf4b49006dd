"""Random: any instance, with a probability proportional to its weight."""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from rollbook.model import Instance


class Random:
    """Any, with a probability proportional to weight.

    Args:
        rng: where it is drawn.
    """

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._of: tuple[Instance, ...] = ()
        self._sums: list[float] = []

    def pick(self, instances: tuple[Instance, ...]) -> Instance | None:
        """Return a random one."""
        if instances is not self._of:
            self._of = instances
            self._sums = list(itertools.accumulate(i.weight for i in instances))
        if not instances:
            return None
        sums = self._sums
        # Below the sum of all by definition, but rounding may reach it.
        return instances[bisect.bisect(sums, self._random() * sums[-1], 0, len(sums) - 1)]
