"""``make demo``; ``DEMO_SECONDS=60 make demo`` ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from demo.house import House
from demo.screen import Screen
from demo.story import Story


def limit() -> float | None:
    """Read ``DEMO_SECONDS``: how long to play; nothing for until Ctrl-C."""
    text = os.environ.get("DEMO_SECONDS", "")
    if not text:
        return None
    try:
        seconds = float(text)
        if 0 < seconds < float("inf"):
            return seconds
    except ValueError:
        pass
    sys.exit(f"DEMO_SECONDS is {text!r}; accepted: a number of seconds above 0")


async def play(seconds: float | None) -> int:
    """Play the demonstration, and say what was seen."""
    screen = Screen()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="rollbook-demo-") as directory:
        try:
            async with House(Path(directory)) as house:
                story = Story(house, screen.tell)
                tasks = [asyncio.create_task(story.run()), asyncio.create_task(screen.show(house, story))]
                ending = asyncio.create_task(stop.wait())
                await asyncio.wait([*tasks, ending], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                broken = [t.exception() for t in tasks if t.done() and not t.cancelled()]
                for task in (*tasks, ending):
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(*tasks, ending, return_exceptions=True)
                house.check()
        except (RuntimeError, TimeoutError) as error:
            screen.console.print(f"the demonstration broke: {error}", markup=False)
            return 1
    if broken:
        screen.console.print(f"the demonstration broke: {broken[0]!r}", markup=False)
        return 1
    screen.console.print("\nwhat was seen:", *story.saw, sep="\n", highlight=False, soft_wrap=True)
    total = sum(story.answers.values())
    spread = ", ".join(f"{name} {count}" for name, count in sorted(story.answers.items()))
    screen.console.print(
        f"{total} requests answered ({spread}), {story.retried} of them sent again elsewhere first, "
        f"{story.failed} failed; everything has been stopped",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(play(limit())))
