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
        self._confirmed = 0
        self._spent = 0
        self.kept = 0
        """How many are kept though they are overdue, as of the last look."""

    @property
    def active(self) -> bool:
        """Whether somebody is kept who would otherwise be out."""
        return self.kept > 0

    @property
    def window_ends(self) -> float:
        """Attentive time at which the next window begins; 0 before the first."""
        return self._ends or 0.0

    @property
    def budget(self) -> int:
        """How many more may end by silence in this window."""
        base = max(0, self._base - self._confirmed)
        return max(self._limits.floor, math.floor(self._limits.share * base)) - self._spent

    def confirm(self, count: int) -> None:
        """Take notice of leases that ended otherwise than by silence."""
        self._confirmed += count

    def judge(self, overdue: Sequence[LeaseId], *, leases: Callable[[], int], now: float) -> Judged:
        """Say who of the overdue goes.

        Args:
            overdue: leases that have been silent for too long; those that are kept come again at the end of
                the window, with whoever is overdue by then.
            leases: counts the leases that there are, the overdue included; asked once a window.
            now: attentive time.
        """
        if self._ends is None or now >= self._ends:
            self._ends = now + self._limits.window
            self._base, self._confirmed, self._spent = leases(), 0, 0
            self.kept = 0
        left = max(0, self.budget)
        chosen = list(overdue)
        if len(chosen) > left:
            self._rng.shuffle(chosen)
        out, kept = chosen[:left], chosen[left:]
        self._spent += len(out)
        self.kept += len(kept)
        return Judged(out, kept)
