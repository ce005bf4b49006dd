"""The watch: how late the loop comes round, and what it was that held it.

asyncio's own debug mode times every callback, which costs more than most of them. Here a timer of the
kernel's is wound up twenty times a second; only if the loop does not come round to wind it up again does it
go off, in the middle of whatever holds the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from rollbook_registry.metrics import RuntimeMeter

log = structlog.get_logger("rollbook.registry")

BEAT: Final = 0.05
"""Seconds between looks."""

SHOWN: Final = 3
"""Callers that are named, the innermost first."""

QUIET: Final = 60.0
"""Seconds between two lines of log about it."""

_OURS: Final = str(Path(__file__).parent.parent)


class Watch:
    """Looks at the loop, for as long as the ``with`` block lasts.

    Where the system has no such timer, or this is not the main thread, what held the loop is not named.

    Args:
        meter: counts.
        slow: seconds for which one step may hold the loop.
        each: called at every look.
        paused: the seconds that the collector has taken so far.
    """

    def __init__(
        self,
        meter: RuntimeMeter,
        *,
        slow: float,
        each: Callable[[], None] = lambda: None,
        paused: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._meter = meter
        self._slow = slow
        self._each = each
        self._paused = paused
        self._step = ""
        self._told_at: float | None = None
        self._untold = 0
        self._named = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
        self._task: asyncio.Task[None]

    def __enter__(self) -> Self:
        if self._named:
            self._before = signal.signal(signal.SIGALRM, self._alarm)
            # What threads have the system do meanwhile, such as writing to the store, is not broken off.
            signal.siginterrupt(signal.SIGALRM, False)  # noqa: FBT003  # as the library has it
        self._task = asyncio.get_running_loop().create_task(self._run(), name="watch")
        return self

    def __exit__(self, *exc: object) -> None:
        self._task.cancel()
        if self._named:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    async def _run(self) -> None:
        while True:
            self._step = ""
            due, used, paused = time.monotonic() + BEAT, time.process_time(), self._paused()
            if self._named:
                signal.setitimer(signal.ITIMER_REAL, BEAT + self._slow)
            self._each()
            await asyncio.sleep(BEAT)
            late = max(0.0, time.monotonic() - due)
            self._meter.late(late)
            if late > self._slow:
                self._tell(late, cpu=time.process_time() - used, collector=self._paused() - paused)

    def _alarm(self, _: int, frame: FrameType | None) -> None:
        # Nothing is logged here: it may have interrupted the very writing of a log. Nor raised.
        with contextlib.suppress(Exception):
            self._step = _spelled(frame)

    def _tell(self, late: float, *, cpu: float, collector: float) -> None:
        self._meter.held.inc()
        now = time.monotonic()
        if self._told_at is not None and now - self._told_at < QUIET:
            self._untold += 1
            return
        log.warning(
            "loop_held",
            seconds=round(late, 3),
            cpu=round(cpu, 3),
            collector=round(collector, 3),
            step=self._step or "unknown",
            untold=self._untold,
        )
        self._told_at, self._untold = now, 0


def _spelled(frame: FrameType | None) -> str:
    """Name a step by the innermost of our functions in it, and who called them."""
    named: list[str] = []
    while frame is not None and len(named) < SHOWN:
        path = frame.f_code.co_filename
        if path.startswith(_OURS):
            place = path.removeprefix(_OURS).lstrip("/")
            named.append(f"{place}:{frame.f_lineno} {frame.f_code.co_qualname}")
        frame = frame.f_back
    return " < ".join(named)
