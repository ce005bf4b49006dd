"""Protection: when very many fall silent at once, the fault is likely ours, so few of them are struck out.

After Eureka's self-preservation (``AbstractInstanceRegistry.evict``), with what its users suffer from mended
(Netflix/eureka#1067, #1073, #1247): in one window at most a set share of the leases that there were at its
start may end by silence, chosen at random, so that no service loses all it has first. Ends that somebody
vouches for (a deregistration, a pod confirmed gone) are not silence: they make the base smaller and use
nothing up. The base is counted anew at each window, so protection shrinks with what it protects, and ends by
itself: nobody has to switch it off.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from rollbook.names import LeaseId


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protected:
    """How much may end by silence; each is a setting.

    Attributes:
        share: of a window's leases; 1 protects nothing.
        floor: so many may end in a window in any case; a small book is judged by silence alone.
        window: seconds.
    """

    share: float = 0.15
    floor: int = 20
    window: float = 60.0


class Judged(NamedTuple):
    """Who of the overdue has to go now, and who is kept for the time being."""

    out: list[LeaseId]
    kept: list[LeaseId]


class Protection:
    """The budget of a window.

    Args:
        limits: how much may end by silence.
        rng: chooses who goes.
    """

    def __init__(self, limits: Protected, rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng
        self._ends: float | None = None
        self._base = 0
        self._spent = 0
        self._kept: dict[LeaseId, None] = {}

    @property
    def kept(self) -> int:
        """How many leases of this window were kept though they were overdue."""
        return len(self._kept)

    @property
    def active(self) -> bool:
        """Whether somebody is kept who would otherwise be out."""
        return bool(self._kept)

    def due(self, now: float) -> list[LeaseId]:
        """Who was kept until now, when their window has ended: they are to be judged again."""
        return list(self._kept) if self._is_over(now) else []

    def judge(self, overdue: Sequence[LeaseId], *, leases: Callable[[], int], now: float) -> Judged:
        """Say who of the overdue goes.

        Args:
            overdue: leases that have been silent for too long.
            leases: counts the leases that silence may end, the overdue included.
            now: attentive time.
        """
        if self._is_over(now):
            self._ends = now + self._limits.window
            there = self._base = leases()
            self._spent = 0
            self._kept = {}
            left = self._left(len(overdue), lambda: there)
        else:
            left = self._left(len(overdue), leases)
        out, kept = list(overdue), []
        if len(out) > left:
            chosen = set(self._rng.sample(range(len(overdue)), left))
            out = [lease for n, lease in enumerate(overdue) if n in chosen]
            kept = [lease for n, lease in enumerate(overdue) if n not in chosen]
        self._spent += len(out)
        self._kept.update(dict.fromkeys(kept))
        return Judged(out, kept)

    def _is_over(self, now: float) -> bool:
        return self._ends is None or now >= self._ends

    def _left(self, wanted: int, leases: Callable[[], int]) -> int:
        """How many of those wanted may go."""
        if self._limits.share >= 1:
            return wanted
        left = self._limits.floor - self._spent
        if left < wanted:
            # Whoever is gone without having been struck out was confirmed to be: that makes the base smaller.
            base = min(self._base, leases() + self._spent)
            left = max(left, math.floor(self._limits.share * base) - self._spent)
        return max(0, left)
