"""The collector's shell: Python's own, set as :mod:`the plan <rollbook_registry.runtime.plan>` wants it."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Final, Literal, Self

from rollbook_registry.runtime.plan import Plan

if TYPE_CHECKING:
    from rollbook_registry.metrics import RuntimeMeter

_NEVER: Final = 2**31 - 1
"""Looks at the middle generation until Python looks at everything by itself."""


class Collector:
    """Python's collector under a plan, for as long as the ``with`` block lasts.

    Args:
        meter: counts pauses.
        interval: as the plan has it.

    Attributes:
        paused: seconds that all its looks have taken.
    """

    def __init__(self, meter: RuntimeMeter, *, interval: float) -> None:
        self._meter = meter
        self._plan = Plan(time.monotonic(), time.process_time(), interval=interval)
        self._began = 0.0
        self._thresholds = gc.get_threshold()
        self.paused = 0.0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._looked)
        gc.freeze()
        young, middle, _ = self._thresholds
        gc.set_threshold(young, middle, _NEVER)
        gc.enable()
        return self

    def __exit__(self, *exc: object) -> None:
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()
        gc.callbacks.remove(self._looked)

    def look(self) -> None:
        """Look at what is young, or at everything if it is time; to be called many times a second."""
        everything = self._plan.due(time.monotonic(), time.process_time())
        young = 1 if gc.get_count()[1] >= self._thresholds[1] else 0
        gc.collect(2 if everything else young)

    def _looked(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
            return
        took = time.perf_counter() - self._began
        self.paused += took
        self._meter.collected(info["generation"], took, info["collected"])
