"""App: puts the parts together and runs them for as long as the process is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import time
from typing import TYPE_CHECKING, Final

import structlog

from rollbook import Client
from rollbook_sidecar import address, answers, forms, health, registration
from rollbook_sidecar.cache import Cache
from rollbook_sidecar.drain import Drain
from rollbook_sidecar.hooks import Hooks
from rollbook_sidecar.lookups import Lookups
from rollbook_sidecar.metrics import Metrics
from rollbook_sidecar.registrar import Registrar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from rollbook.events import Event
    from rollbook.model import Entry
    from rollbook_sidecar.settings import Settings

log = structlog.get_logger("rollbook.sidecar")

OUTAGE_AFTER: Final = 5.0
"""Seconds without a connection after which that is worth a warning; shorter ones are a registry's restart."""

ADDRESS_RETRY: Final = 5.0
"""Seconds until the choice of an address is tried again, if the registry's name cannot be resolved."""


class Sidecar:
    """One sidecar.

    Args:
        settings: of it.
    """

    def __init__(self, settings: Settings) -> None:
        rng = random.Random()  # noqa: S311  # jitter and spreading load, not a secret
        self.settings = settings
        self.lookup_port = 0
        """The port that lookups are served on, once they are."""
        self.hooks_port = 0
        """The port that the hooks are served on, once they are; 0 if they are not wanted."""
        self.client = Client(
            *settings.registry, token=_token(settings.token_file) if settings.token_file else None, rng=rng
        )
        self.metrics = Metrics()
        self.registrar = Registrar(
            self.client,
            rng=rng,
            later=lambda seconds, call: asyncio.get_running_loop().call_later(seconds, call),
            beat_interval=registration.beat_interval(settings),
        )
        self.cache = Cache(
            self.client,
            boot=secrets.token_hex(4),
            most=settings.max_services,
            patience=settings.first_lookup_timeout,
            clock=time.monotonic,
        )
        self.drain = Drain(
            self.client,
            self.registrar,
            services=registration.services(settings),
            timeout=settings.drain_timeout,
            linger=settings.linger,
            metrics=self.metrics,
        )
        self._rng = rng

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it for the length of a ``with`` block; at its end the application is out of the book.

        Raises:
            CannotListen: a port cannot be had.
        """
        settings = self.settings
        self.metrics.observe(self.cache, self.registrar)
        self.client.listen(self._heard)
        self.cache.pin(forms.service(item) for item in settings.subscribe)
        async with contextlib.AsyncExitStack() as stack:
            lookups = Lookups(self.cache, self.registrar, self.metrics, rng=self._rng)
            runner, self.lookup_port = await answers.serve(
                lookups.app(),
                host=settings.lookup_host,
                port=settings.lookup_port,
                flag="--lookup-port",
                cancel=True,
            )
            stack.push_async_callback(runner.cleanup)
            stack.callback(self.cache.close)
            if settings.hooks_port:
                hooks = Hooks(self.drain, serving=lambda: self.lookup_port > 0, secret=settings.drain_secret)
                runner, self.hooks_port = await answers.serve(
                    hooks.app(),
                    host=settings.hooks_address,
                    port=settings.hooks_port,
                    flag="--hooks-port",
                )
                stack.push_async_callback(runner.cleanup)
            stack.push_async_callback(self.drain.aclose)
            stack.push_async_callback(self.client.aclose)
            self.client.start()
            log.info(
                "serving",
                lookups=f"{settings.lookup_host} port {self.lookup_port}",
                hooks=f"{settings.hooks_address} port {self.hooks_port}" if self.hooks_port else "none",
                registry=list(settings.registry),
                service=settings.service or "none",
            )
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._register(), name="rollbook-register"),
                    tasks.create_task(self._reread(), name="rollbook-reread"),
                    tasks.create_task(self._mind_outages(), name="rollbook-outages"),
                ]
                try:
                    yield
                finally:
                    for task in background:
                        task.cancel()

    def _heard(self, event: Event) -> None:
        self.cache.heard(event)
        self.registrar.heard(event)

    async def _register(self) -> None:
        """Register the application and watch it, until it has left."""
        if not self.settings.service:
            return
        running = asyncio.create_task(self._answer_the_roll(), name="rollbook-roll")
        over = asyncio.create_task(self.registrar.over.wait(), name="rollbook-roll-over")
        try:
            await asyncio.wait([running, over], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            running.cancel()
            over.cancel()
            await asyncio.gather(running, over, return_exceptions=True)

    async def _answer_the_roll(self) -> None:
        settings = self.settings
        ip = settings.ip or await self._choose_address()
        entries = registration.entries(settings, ip=ip, host=socket.gethostname())
        self.registrar.start(entries)
        await self._watch(entries)

    async def _watch(self, entries: Sequence[Entry]) -> None:
        settings = self.settings
        async with health.http_session() as http, asyncio.TaskGroup() as watches:
            for target in health.targets(settings, entries, http):
                judgement = health.Judgement(
                    failures=settings.check_failures, interval=settings.check_interval
                )
                watches.create_task(
                    health.watch(target, judgement, self.registrar.tell, timeout=settings.check_timeout)
                )

    async def _choose_address(self) -> str:
        told = False
        while True:
            try:
                ip = await address.local_address(self.settings.registry)
            except OSError as error:
                if not told:
                    told = True
                    log.warning(
                        "no_address", reason=str(error), accepted="--ip says it", again_in=ADDRESS_RETRY
                    )
                await asyncio.sleep(ADDRESS_RETRY)
            else:
                log.info("address_chosen", ip=ip)
                return ip

    async def _mind_outages(self) -> None:
        """Warn once of each outage; the client itself tells only of connections that stood."""
        while True:
            try:
                async with asyncio.timeout(OUTAGE_AFTER):
                    await self.client.wait_connected()
            except TimeoutError:
                log.warning(
                    "registry_unreachable",
                    registry=list(self.settings.registry),
                    reason=self.client.last_error,
                    then="trying on, and answering from memory",
                )
                await self.client.wait_connected()
            await self.client.wait_disconnected()

    async def _reread(self) -> None:
        while True:
            # Spread a little, so that the sidecars of a deployment do not all ask at the same moment.
            await asyncio.sleep(self.settings.reread_interval * self._rng.uniform(0.9, 1.1))
            self.cache.reread()


def _read_token(path: Path) -> str:
    token = path.read_bytes().decode("ascii", "replace").strip()
    if not (token and token.isascii() and token.isprintable()):
        raise OSError("it does not hold a token")
    return token


def _token(path: Path) -> Callable[[], str]:
    told = False

    def read() -> str:
        nonlocal told
        try:
            token = _read_token(path)
        except OSError as error:
            # The client takes it for a failed attempt and comes again; only the first is worth a line.
            if not told:
                told = True
                log.warning("token_unreadable", file=str(path), reason=error.strerror or str(error))
            raise
        told = False
        return token

    return read
