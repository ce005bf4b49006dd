"""The world: virtual time, the order of events, and the network between replicas and clients."""

from __future__ import annotations

import heapq
import random
from typing import Any

import xxhash


class Broken(Exception):  # noqa: N818  # an invariant that does not hold, not an error of the program
    """An invariant does not hold: its name, and what was seen."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


class World:
    """Virtual time; whatever happens is in one heap, so that a seed has one run."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._heap: list[tuple[float, int, Any, tuple]] = []
        self._count = 0
        self._hash = xxhash.xxh64()
        self._trace = trace
        self.events = 0

    def at(self, time: float, what, *args) -> None:
        """Have something done at a time."""
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.now), self._count, what, args))

    def after(self, delay: float, what, *args) -> None:
        """Have something done after so many seconds."""
        self.at(self.now + delay, what, *args)

    def run(self, until: float) -> None:
        """Let time pass."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, what, args = heapq.heappop(heap)
            self.events += 1
            what(*args)
        self.now = until

    def note(self, *what) -> None:
        """Put something into the trace; its hash is the run's fingerprint."""
        line = f"{self.now:9.3f} " + " ".join(map(str, what))
        self._hash.update(line.encode())
        if self._trace:
            print(line)

    @property
    def fingerprint(self) -> str:
        """The hash of all that was noted."""
        return self._hash.hexdigest()


class Network:
    """Who reaches whom, how late, and what gets lost.

    Attributes:
        cut: pairs (from, to) of names between which nothing passes.
        loss: share of messages between replicas that get lost.
        copies: share that arrive twice.
        disorder: whether messages of one link may overtake each other.
        slow: longest delay in seconds.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.cut: set[tuple[str, str]] = set()
        self.loss = 0.0
        self.copies = 0.0
        self.disorder = False
        self.slow = 0.005
        self._last: dict[tuple[str, str], float] = {}

    def passes(self, sender: str, receiver: str) -> bool:
        """Whether anything gets from one to the other."""
        return (sender, receiver) not in self.cut

    def separate(self, one, other, *, both: bool = True) -> None:
        """Cut what some send to others, and back."""
        for a in one:
            for b in other:
                self.cut.add((a, b))
                if both:
                    self.cut.add((b, a))

    def heal(self) -> None:
        """Everything passes again, in order and once."""
        self.cut.clear()
        self.loss = self.copies = 0.0
        self.disorder = False
        self.slow = 0.005

    def send(self, sender: str, receiver: str, deliver, *args) -> None:
        """Have something delivered, if the network lets it."""
        rng = self.world.rng
        if not self.passes(sender, receiver) or (self.loss and rng.random() < self.loss):
            return
        for _ in range(2 if self.copies and rng.random() < self.copies else 1):
            at = self.world.now + 0.0005 + rng.random() * self.slow
            if not self.disorder:
                at = max(at, self._last.get((sender, receiver), 0.0) + 1e-6)
                self._last[sender, receiver] = at
            self.world.at(at, deliver, *args)
