"""Round robin: one after the other, weights ignored."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from rollbook.model import Instance
    from rollbook.names import InstanceKey


def _key(instance: Instance) -> InstanceKey:
    return instance.key


class RoundRobin:
    """One after the other in the order of keys, weights ignored.

    After a change of the list it goes on behind the key that was chosen last, so that changes do not make it
    begin anew; a pick costs the same however long the list is.

    Args:
        rng: where the first pick is drawn, so that callers which start together do not all begin with the
            same instance; without it they begin with the first key.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng
        self._of: tuple[Instance, ...] = ()
        self._order: list[Instance] = []
        self._next = 0
        self._last: InstanceKey | None = None

    def pick(self, instances: tuple[Instance, ...]) -> Instance | None:
        """Return the one after the last chosen."""
        if instances is not self._of:
            self._prepare(instances)
        if not instances:
            return None
        at = self._next
        self._next = (at + 1) % len(self._order)
        return self._order[at]

    def _prepare(self, instances: tuple[Instance, ...]) -> None:
        if self._order:
            self._last = self._order[self._next - 1].key
        self._of = instances
        self._order = sorted(instances, key=_key)
        count = len(self._order)
        if self._last is not None:
            self._next = bisect.bisect(self._order, self._last, key=_key) % (count or 1)
        else:
            self._next = self._rng.randrange(count) if self._rng and count else 0
