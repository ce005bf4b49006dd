"""The plan for the collector: at what it looks, and when. Pure; it is told the time.

Python looks for garbage in cycles by generations, and at everything whenever the heap has grown by a quarter.
It finds nothing, since neither commands nor clients leave cycles behind
(``tests/unit/registry/test_registry_garbage.py`` holds that), and meanwhile nobody is answered. The book's
part of that is small, as nothing that an instance keeps is tracked; services, connections and sessions are:
with 100,000 plain HTTP clients 88,000 objects, and 85 ms. So:

- What is **young** Python looks at when there are 700 objects more than before: 2 ms at most, for what was
  made in passing. But where each new object takes an old one's place there are never more, and what is young
  comes to 100,000 objects and 50 ms. So it is looked at besides many times a second, mostly for nothing.
- What a **start** has made is frozen, out of the collector's sight for good.
- **Everything else** is looked at once in a long while, when there is little to do: for cycles of what lived
  long, which nobody knows of.
"""

from __future__ import annotations

from typing import Final

QUIET: Final = 0.5
"""Share of a core below which there is little to do."""

WINDOW: Final = 1.0
"""Seconds over which that share is taken."""

PATIENCE: Final = 2.0
"""How many intervals a look at everything is put off, at most, while there is much to do."""


class Plan:
    """Says when everything is to be looked at.

    Args:
        now: monotonic seconds.
        cpu: seconds of processor time that this process has used.
        interval: seconds between looks at everything; 0: there are none.
    """

    def __init__(self, now: float, cpu: float, *, interval: float) -> None:
        self._interval = interval
        self._looked = now
        self._window = (now, cpu)
        self._quiet = False

    def due(self, now: float, cpu: float) -> bool:
        """Say whether it is time; if it is, it is taken as done.

        Args:
            now: monotonic seconds.
            cpu: seconds of processor time that this process has used.
        """
        began, used = self._window
        if now - began >= WINDOW:
            self._quiet = cpu - used < QUIET * (now - began)
            self._window = now, cpu
        due = 0 < self._interval * (1.0 if self._quiet else PATIENCE) <= now - self._looked
        if due:
            self._looked = now
        return due
