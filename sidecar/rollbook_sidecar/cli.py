"""The command ``rollbook-sidecar``."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING

import click

from rollbook import __version__, logs
from rollbook.settings import command
from rollbook_sidecar.answers import CannotListen
from rollbook_sidecar.app import Sidecar
from rollbook_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable


@command(
    "rollbook-sidecar",
    Settings,
    summary="Answer the roll for an application, and look services up for it on localhost.",
    version=__version__,
)
def main(chosen: Settings) -> None:
    """Run until SIGTERM or SIGINT; then leave the book and end with status 0."""
    logs.set_up(chosen.log_level, chosen.log_format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(chosen))
    except CannotListen as error:
        raise click.ClickException(str(error)) from None


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Sidecar(settings).running():
        # What is there now stays: the collector need not look at it again during lookups.
        gc.freeze()
        await stop.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # quicker, but not there on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
