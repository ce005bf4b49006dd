"""``rollbook-registry``: the console script."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys

import structlog

from rollbook import __version__, logs
from rollbook.settings import command
from rollbook_registry.runtime import Collector, Watch
from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings

log = structlog.get_logger("rollbook.registry")


async def serve(settings: RegistrySettings) -> None:
    """Serve until told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Bringing a large book back makes no garbage, but enough objects for the collector to look through all of
    # them again and again; that was two thirds of the time.
    gc.disable()
    async with Server(settings) as server:
        meter = server.book.metrics.runtime
        with (
            Collector(meter, interval=settings.collect_interval) as collector,
            Watch(meter, slow=settings.slow_step, each=collector.look, paused=lambda: collector.paused),
        ):
            await stop.wait()
    log.info("stopped")


@command(
    "rollbook-registry",
    RegistrySettings,
    summary="The registry: the book that Rollbook keeps of who serves what, and where.",
    version=__version__,
)
def main(settings: RegistrySettings) -> None:
    """Run the registry."""
    logs.set_up(settings.log_level, settings.log_format)
    try:
        if sys.platform == "win32":
            asyncio.run(serve(settings))
        else:
            import uvloop  # noqa: PLC0415  # not to be had on every platform

            uvloop.run(serve(settings))
    except (OSError, LookupError) as error:
        log.error("cannot_start", error=str(error))  # noqa: TRY400  # the message is the point
        sys.exit(1)
