"""Balancing: choosing one instance of several.

A strategy gets the eligible instances (see :func:`eligible`) and chooses one. It may remember what it chose,
so each subscriber has its own. Randomness is passed in.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Protocol

from rollbook.model import is_protected
from rollbook.problems import bad_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rollbook.model import Instance
    from rollbook.names import InstanceKey


class Strategy(Protocol):
    """Chooses one of the eligible instances."""

    def pick(self, instances: Sequence[Instance]) -> Instance | None:
        """Return the chosen one; ``None`` only if there is none."""
        ...


def eligible(instances: Sequence[Instance], protect_threshold: float | None = None) -> list[Instance]:
    """Return those that may get traffic: healthy, enabled, with a weight.

    Where so few are healthy that the list is protected, the others may too: better to try them than to send
    everything to the few (:func:`rollbook.model.is_protected`).
    """
    protected = is_protected(instances, protect_threshold)
    return [i for i in instances if (i.healthy or protected) and i.enabled and i.weight > 0]


class RoundRobin:
    """One after the other, weights ignored."""

    def __init__(self) -> None:
        self._last: InstanceKey | None = None

    def pick(self, instances: Sequence[Instance]) -> Instance | None:
        """Return the one after the last chosen, in the order of keys (so that changes do not restart it)."""
        if not instances:
            return None
        ordered = sorted(instances, key=lambda i: i.key)
        last = self._last
        chosen = next((i for i in ordered if last is not None and i.key > last), ordered[0])
        self._last = chosen.key
        return chosen


class Random:
    """Any, with a probability proportional to weight."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, instances: Sequence[Instance]) -> Instance | None:
        """Return a random one."""
        if not instances:
            return None
        return self._rng.choices(instances, weights=[i.weight for i in instances])[0]


class SmoothWeightedRoundRobin:
    """Round robin in proportion to weights, evenly spread: weights 5, 1, 1 give a a b a c a a.

    Each pick adds every instance's weight to its credit, takes the one with the most, and takes the total
    from it (nginx' upstream algorithm, 2012).
    """

    def __init__(self) -> None:
        self._credit: dict[InstanceKey, float] = {}

    def pick(self, instances: Sequence[Instance]) -> Instance | None:
        """Return the one with the most credit."""
        if not instances:
            return None
        credit = {i.key: self._credit.get(i.key, 0.0) + i.weight for i in instances}
        chosen = max(instances, key=lambda i: credit[i.key])
        credit[chosen.key] -= sum(i.weight for i in instances)
        self._credit = credit
        return chosen


STRATEGIES: Final[dict[str, Callable[[random.Random], Strategy]]] = {
    "smooth-weighted-round-robin": lambda _: SmoothWeightedRoundRobin(),
    "round-robin": lambda _: RoundRobin(),
    "random": Random,
}
"""Every strategy by the name that settings and queries use; the first is the default."""

DEFAULT_STRATEGY: Final = "smooth-weighted-round-robin"


def strategy(name: str = DEFAULT_STRATEGY, *, rng: random.Random | None = None) -> Strategy:
    """Make a strategy by its name.

    Raises:
        Problem: 400 ``bad_value`` naming those there are.
    """
    make = STRATEGIES.get(name)
    if make is None:
        raise bad_value("strategy", name, ", ".join(STRATEGIES))
    return make(rng or random.Random())  # noqa: S311  # spreading load, not a secret
