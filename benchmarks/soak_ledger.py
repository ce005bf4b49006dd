"""What was changed, who is to hear of it, and who has: the soak's bookkeeping, without I/O."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rollbook.names import InstanceKey

LOST_AFTER: Final = 15.0
"""Seconds after which a change that somebody has not heard of counts as lost."""


class _Change:
    """One change of one instance.

    Attributes:
        at: when it was sent, in seconds.
        waiting: who has not heard of it.
    """

    __slots__ = ("at", "waiting")

    def __init__(self, at: float, waiting: set[int]) -> None:
        self.at = at
        self.waiting = waiting


class Ledger:
    """All changes that somebody is still to hear of.

    An instance must not be changed again before its last change has been heard or lost.
    """

    def __init__(self) -> None:
        self._open: dict[str, dict[InstanceKey, _Change]] = {}
        self.latencies = array("d")
        """Seconds from each change to each subscriber, in the order of arrival."""
        self.changes = 0
        self.lost: list[str] = []

    def changed(self, service: str, key: InstanceKey, followers: set[int], at: float) -> None:
        """Note a change that is sent now, and who follows the service at this moment."""
        self.changes += 1
        if followers:
            self._open.setdefault(service, {})[key] = _Change(at, set(followers))

    def is_open(self, service: str, key: InstanceKey) -> bool:
        """Say whether the last change of an instance is still on its way to somebody."""
        return key in self._open.get(service, {})

    def heard(self, who: int, service: str, keys: Sequence[InstanceKey], at: float) -> None:
        """Note that a subscriber has been told of instances."""
        changes = self._open.get(service)
        if not changes:
            return
        for key in keys:
            change = changes.get(key)
            if change is None or who not in change.waiting:
                continue
            change.waiting.remove(who)
            self.latencies.append(at - change.at)
            if not change.waiting:
                del changes[key]

    def left(self, who: int, services: Sequence[str]) -> None:
        """Note that a subscriber is gone; what it missed it learns from the list when it is back."""
        for service in services:
            changes = self._open.get(service, {})
            for key, change in list(changes.items()):
                change.waiting.discard(who)
                if not change.waiting:
                    del changes[key]

    def give_up(self, now: float) -> None:
        """Note as lost what has not been heard for too long."""
        for service, changes in self._open.items():
            for key, change in list(changes.items()):
                if now - change.at > LOST_AFTER:
                    self.lost += [f"{service} {key} at {who}" for who in change.waiting]
                    del changes[key]

    @property
    def quiet(self) -> bool:
        """Whether everybody has heard of everything."""
        return not any(self._open.values())


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all does not exceed; 0 if there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
