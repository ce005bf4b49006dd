"""Deadlines that nobody misses because we were not listening.

A timer that comes late shows that this process was stopped, starved or busy just when the answer may have
arrived. Whoever waits gets that time back, so that what has arrived meanwhile is read first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SLACK: Final = 0.05
"""Seconds by which a timer may be late without anything being read into it."""

EXTENSIONS: Final = 3
"""How often in a row one deadline is put off; a process that is late every time is too slow to judge by."""


class LaggedError(TimeoutError):
    """The deadline has come, but this process was too slow to say that nothing had arrived before."""


@contextlib.asynccontextmanager
async def deadline(seconds: float, *, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[None]:
    """Limit what is awaited within to so many seconds of attention.

    Args:
        seconds: that it may take.
        clock: monotonic seconds.

    Raises:
        TimeoutError: it took longer.
        LaggedError: it may have taken longer, but the process was late each time it looked.
    """
    loop = asyncio.get_running_loop()
    extensions = 0
    lagged = False
    timer: asyncio.TimerHandle

    def wait(pause: float) -> None:
        nonlocal timer
        timer = loop.call_later(pause, come, clock() + pause)

    def come(due: float) -> None:
        nonlocal extensions, lagged
        late = clock() - due
        lagged = late > SLACK
        if lagged and extensions < EXTENSIONS:
            extensions += 1
            wait(min(late, seconds))
        else:
            limit.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as limit:
            wait(seconds)
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        if limit.expired() and lagged:
            raise LaggedError from None
        raise
