"""Promises: things that will happen or be refused, and those who wait for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from rollbook.following import fresh

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.problems import Problem

K = TypeVar("K")
V = TypeVar("V")


class Promises(Generic[K, V]):
    """What is waited for, by key; several may wait for the same, and each may be cancelled by itself."""

    def __init__(self) -> None:
        self._futures: dict[K, asyncio.Future[V]] = {}

    def expect(self, key: K) -> asyncio.Future[V]:
        """Return what comes to pass when it has been kept or broken; to be shielded from cancellation."""
        future = self._futures.get(key)
        if future is None:
            future = self._futures[key] = asyncio.get_running_loop().create_future()
        return future

    async def all(self, keys: Iterable[K]) -> None:
        """Wait until all of them have been kept.

        Raises:
            Problem: why one of them has been broken.
        """
        await asyncio.gather(*(asyncio.shield(self.expect(key)) for key in keys))

    def keep(self, key: K, value: V) -> None:
        """Let those who wait have what they wait for."""
        future = self._futures.pop(key, None)
        if future is not None:
            future.set_result(value)

    def break_(self, keys: Iterable[K], problem: Problem) -> None:
        """Tell those who wait why it will not happen."""
        for key in keys:
            future = self._futures.pop(key, None)
            if future is not None:
                future.set_exception(fresh(problem))
                # Whoever waits still is told; that nobody does is no news.
                future.exception()

    def break_all(self, problem: Problem) -> None:
        """Tell everybody."""
        self.break_(list(self._futures), problem)
