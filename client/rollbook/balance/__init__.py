"""Balancing: choosing one instance of several.

A strategy gets the eligible instances (see :func:`eligible`) and chooses one. It may remember what it chose,
so each subscriber has its own. Randomness is passed in.

A list changes far more seldom than it is picked from. So eligible instances are a tuple, which can't change,
and a strategy prepares itself once for each: whether it is the same one costs a comparison of identities.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Protocol

from rollbook.balance.chance import Random
from rollbook.balance.rotation import RoundRobin
from rollbook.balance.smooth import SmoothWeightedRoundRobin
from rollbook.model import is_protected
from rollbook.problems import bad_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rollbook.model import Instance

__all__ = [
    "DEFAULT_STRATEGY",
    "STRATEGIES",
    "Random",
    "RoundRobin",
    "SmoothWeightedRoundRobin",
    "Strategy",
    "eligible",
    "strategy",
]


class Strategy(Protocol):
    """Chooses one of the eligible instances.

    An implementation of one's own may be given wherever a strategy is; it is called once a pick, on the
    thread of the event loop, and must neither block nor raise.
    """

    def pick(self, instances: tuple[Instance, ...]) -> Instance | None:
        """Return the chosen one; ``None`` only if there is none.

        Args:
            instances: those that may get traffic, each with a weight above 0. The same object as at the
                last call means that nothing has changed since.
        """
        ...


def eligible(instances: Sequence[Instance], protect_threshold: float | None = None) -> tuple[Instance, ...]:
    """Return those that may get traffic: healthy, enabled, with a weight.

    Where so few are healthy that the list is protected, the others may too: better to try them than to send
    everything to the few (:func:`rollbook.model.is_protected`).
    """
    protected = is_protected(instances, protect_threshold)
    return tuple([i for i in instances if (i.healthy or protected) and i.enabled and i.weight > 0])


STRATEGIES: Final[dict[str, Callable[[random.Random], Strategy]]] = {
    "smooth-weighted-round-robin": SmoothWeightedRoundRobin,
    "round-robin": RoundRobin,
    "random": Random,
}
"""Every strategy by the name that settings and queries use; the first is the default."""

DEFAULT_STRATEGY: Final = "smooth-weighted-round-robin"


def strategy(name: str = DEFAULT_STRATEGY, *, rng: random.Random | None = None) -> Strategy:
    """Make a strategy by its name.

    Args:
        name: one of :data:`STRATEGIES`.
        rng: where chance comes from; one of its own if not given.

    Raises:
        Problem: 400 ``bad_value`` naming those there are.
    """
    make = STRATEGIES.get(name)
    if make is None:
        raise bad_value("strategy", name, ", ".join(STRATEGIES))
    return make(rng or random.Random())  # noqa: S311  # spreading load, not a secret
