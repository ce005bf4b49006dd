"""The ring log: an origin's last writes, for peers that missed some. Bounded by count and by bytes."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollbook_registry.catalog.records import LeaseWrite


class RingLog:
    """Consecutive writes, the oldest of which fall out.

    Args:
        max_changes: writes, at most.
        max_bytes: their size, at most; the newest one is kept whatever its size.
    """

    def __init__(self, *, max_changes: int, max_bytes: int) -> None:
        self._writes: deque[tuple[LeaseWrite, int]] = deque()
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._last = 0
        self.bytes = 0
        """The size of what is kept."""

    def __len__(self) -> int:
        return len(self._writes)

    def append(self, seq: int, write: LeaseWrite, size: int) -> None:
        """Add the write with the next number; after a jump in numbers nothing older is kept."""
        if seq != self._last + 1:
            self.clear()
        self._last = seq
        self._writes.append((write, size))
        self.bytes += size
        while len(self._writes) > self._max_changes or (
            self.bytes > self._max_bytes and len(self._writes) > 1
        ):
            self.bytes -= self._writes.popleft()[1]

    def clear(self) -> None:
        """Forget all of them."""
        self._writes.clear()
        self.bytes = 0

    def after(self, seq: int, *, max_records: int, max_bytes: int) -> list[LeaseWrite] | None:
        """Return writes that follow a number, as many as fit (at least one); ``None``: they are not kept."""
        first = self._last - len(self._writes) + 1
        if not self._writes or not first <= seq + 1 <= self._last:
            return None
        taken: list[LeaseWrite] = []
        size = records = 0
        for write, bytes_ in islice(self._writes, seq + 1 - first, None):
            size += bytes_
            records += len(write.put) + len(write.drop) + 1
            if taken and (size > max_bytes or records > max_records):
                break
            taken.append(write)
        return taken
