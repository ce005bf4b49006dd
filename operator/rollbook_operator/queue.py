"""A queue that remembers only the last thing said about each key.

A pod that changes a hundred times while the operator is busy costs one evaluation, and the queue is never
longer than there are pods.
"""

from __future__ import annotations

import asyncio
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Pending(NamedTuple, Generic[K, V]):
    """What waits under one key.

    Attributes:
        since: monotonic seconds at which the key began to wait; what is said later keeps it.
    """

    key: K
    value: V
    since: float


class ConflatingQueue(Generic[K, V]):
    """Keys wait in the order in which they were first put; the last value counts."""

    def __init__(self) -> None:
        self._items: dict[K, Pending[K, V]] = {}
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        """Look at what waits under a key."""
        waiting = self._items.get(key)
        return None if waiting is None else waiting.value

    def put(self, key: K, value: V, since: float) -> None:
        """Say something about a key, as of monotonic ``since``."""
        waiting = self._items.get(key)
        self._items[key] = Pending(key, value, since if waiting is None else waiting.since)
        self._filled.set()

    async def take(self, most: int) -> list[Pending[K, V]]:
        """Wait for something, and take up to ``most`` of what is there."""
        await self._filled.wait()
        taken = [self._items.pop(key) for key in list(self._items)[:most]]
        if not self._items:
            self._filled.clear()
        return taken
