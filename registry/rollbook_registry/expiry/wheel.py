"""The timing wheel: deadlines in slots of one tick each; the cost of a tick is what is due in it.

Beats do not touch it. A key is looked at when the deadline that it had at the time comes; whoever looks finds
out whether it has beaten since, and puts it in again for its new deadline ("lazy" renewal: one slot entry a
lease, however often it beats). After Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), with
a dictionary in the place of the hierarchy.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

K = TypeVar("K")


class Wheel(Generic[K]):
    """Deadlines of keys.

    Args:
        now: the time at which it starts, in seconds.
        tick: seconds a slot; a key is due up to one tick after its deadline, never before.
    """

    def __init__(self, now: float, *, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, dict[K, None]] = {}
        self._slot_of: dict[K, int] = {}
        self._next = math.floor(now / tick)

    def __len__(self) -> int:
        return len(self._slot_of)

    def add(self, key: K, at: float) -> None:
        """Have a key looked at once ``at`` has come, or earlier if it already was to be."""
        slot = max(math.ceil(at / self._tick), self._next)
        known = self._slot_of.get(key)
        if known is not None:
            if slot >= known:
                return
            # Who falls silent and recovers again and again, with a long time to its removal, leaves nothing.
            keys = self._slots[known]
            del keys[key]
            if not keys:
                del self._slots[known]
        self._slot_of[key] = slot
        self._slots.setdefault(slot, {})[key] = None

    def advance(self, now: float) -> list[K]:
        """Return the keys whose time has come; they are not in the wheel any more."""
        due: list[K] = []
        last = math.floor(now / self._tick)
        if last - self._next > len(self._slots):
            # A long time has passed: visit the slots there are rather than every tick.
            slots = sorted(slot for slot in self._slots if slot <= last)
        else:
            slots = [slot for slot in range(self._next, last + 1) if slot in self._slots]
        for slot in slots:
            for key in self._slots.pop(slot):
                del self._slot_of[key]
                due.append(key)
        self._next = max(self._next, last + 1)
        return due

    def discard(self, key: K) -> None:
        """Forget a key's deadline, if it has one."""
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            keys = self._slots[slot]
            del keys[key]
            if not keys:
                del self._slots[slot]
