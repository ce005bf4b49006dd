"""Clocks: all time in the cores comes in as an argument; this is what shells pass."""

from __future__ import annotations


class AttentiveClock:
    """Time during which this process was paying attention.

    It follows a monotonic clock, but no gap between two looks counts for more than ``max_step``. A process
    that was stopped, starved or collecting garbage for ten seconds did not *see* ten seconds of silence, so
    it must not judge anybody by them. (The idea is Lifeguard's: Dadgar, Phillips, Currey, "Lifeguard: Local
    Health Awareness for More Accurate Failure Detection", 2018; here as a clock instead of a score.)

    Args:
        now: the monotonic time, in seconds, at which it starts.
        max_step: the longest gap, in seconds, that counts in full. It must be longer than the interval at
            which :meth:`look` is called, or the clock runs slow.
    """

    def __init__(self, now: float, *, max_step: float = 1.0) -> None:
        self._max_step = max_step
        self._last = now
        self._time = now
        self.lost = 0.0
        """Seconds that were not counted, in all."""

    def look(self, now: float) -> float:
        """Take notice that it is ``now``, and return the attentive time."""
        gap = max(0.0, now - self._last)
        step = min(gap, self._max_step)
        self.lost += gap - step
        self._last = max(self._last, now)
        self._time += step
        return self._time

    def read(self, now: float) -> float:
        """Return the attentive time without taking notice."""
        gap = now - self._last
        if 0.0 <= gap <= self._max_step:
            return self._time + gap
        return self._time if gap < 0.0 else self._time + self._max_step
