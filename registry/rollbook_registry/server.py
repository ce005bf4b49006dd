"""The registry's servers: which door is on which port, and the order of starting and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Final, Self, cast

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rollbook.kube import KubeApi
from rollbook.limits import MAX_BODY_BYTES
from rollbook_registry.api import doors
from rollbook_registry.api.direct import Direct
from rollbook_registry.api.insight import Insight
from rollbook_registry.api.native import Native
from rollbook_registry.api.openapi import described
from rollbook_registry.api.prometheus import Prometheus
from rollbook_registry.api.routes import TEXT, Answer, Route
from rollbook_registry.api.rulings import Rulings
from rollbook_registry.api.sessions import Sessions
from rollbook_registry.book import Book
from rollbook_registry.checks import Checker, Probes
from rollbook_registry.connections import Door, Guard
from rollbook_registry.metrics import GuardCollector
from rollbook_registry.rulebook import Rulebook
from rollbook_registry.store.keeper import Keeper
from rollbook_registry.store.lock import held
from rollbook_registry.store.snapshot import SLICE
from rollbook_registry.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from rollbook_registry.api.routes import Values
    from rollbook_registry.auth.tokens import Verifier
    from rollbook_registry.connections import Connection, Plain
    from rollbook_registry.settings import RegistrySettings

log = structlog.get_logger("rollbook.registry")

BACKLOG = 4096
"""Connections that may wait to be accepted: all clients at once, after a restart."""

STOP_GRACE = 2.0
"""Seconds that requests under way have at the end."""


class Server:
    """A running registry.

    Args:
        settings: the registry's settings.
        api: the API server, where tokens are asked for.
    """

    def __init__(self, settings: RegistrySettings, api: KubeApi | None = None) -> None:
        self.settings = settings
        self.book = Book(settings, clock=time.monotonic, wall=time.time)
        self.sessions = Sessions(self.book)
        store = SqliteStore(
            settings.data_dir / "rulings.db",
            timeout=settings.store_timeout,
            counted=lambda outcome: self.book.metrics.store.labels(outcome.value).inc(),
        )
        self.rulebook = Rulebook(self.book, store)
        self.guard = Guard(settings, self.book.metrics, clock=time.monotonic)
        self.book.metrics.registry.register(
            GuardCollector(lambda: dict(self.guard.census.counts), lambda: len(self.sessions))
        )
        self.book.on_settled = self.sessions.settled
        self._api = api
        self._stack = contextlib.AsyncExitStack()
        self._running: asyncio.Task[None] | None = None
        self.application: web.Application
        """What the HTTP port serves, once it does."""
        self.connections: dict[Door, Callable[[], Connection]] = {}
        """What makes the connections of each port, once it is open."""
        self.http_port = 0
        self.session_port = 0
        self.grpc_port = 0

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self.settings
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        verifier = None
        if settings.needs_identity:
            from rollbook_registry.auth.tokens import Verifier  # noqa: PLC0415  # 9 MiB of cryptography

            api = await self._stack.enter_async_context(self._api or KubeApi.in_cluster())
            verifier = Verifier(api, audience=settings.audience, accounts=settings.accounts, wall=time.time)
        await self._recall()
        await self._lay_out()
        self._running = asyncio.create_task(self._run_book(), name="book")
        self._stack.push_async_callback(_end, self._running)
        for work, name in ((self.guard.run(), "guard"), (self.sessions.run(), "sessions")):
            self._stack.push_async_callback(_end, asyncio.create_task(_told(work, name), name=name))
        everything = self.application = self._application(verifier)
        routes = self.routes()
        everything.add_routes(route.definition() for route in routes)
        # Whatever stands when the doors are shut; they are opened, and so shut, after this.
        self._stack.push_async_callback(self.sessions.close)
        sessions = self._application(verifier)
        sessions.add_routes(route.definition() for route in self.sessions.routes())
        self.session_port = await self._serve(sessions, Door.SESSION, settings.session_port)
        if settings.nacos_grpc:
            self.grpc_port = await self._serve_nacos(settings.grpc_port)
        # Last, because this one says that the registry is ready.
        direct = Direct(routes, verifier)
        self.http_port = await self._serve(everything, Door.HTTP, settings.http_port, direct.answer)
        self._stack.push_async_callback(self.sessions.goodbye, "the registry is stopping")
        log.info(
            "serving",
            host=settings.host,
            http=self.http_port,
            sessions=self.session_port,
            grpc=self.grpc_port or "off",
            boot=self.book.boot,
            identity="required" if verifier else "not asked for",
            connections=self.guard.census.limits.connections,
        )
        if self.guard.census.limits.connections < settings.max_connections:
            log.warning(
                "few_descriptors",
                connections=self.guard.census.limits.connections,
                effect="the system allows no more (ulimit -n), whatever --max-connections says",
            )

    def routes(self) -> list[Route]:
        """Return all that the HTTP port serves, its description included."""
        upkeep = [
            Route(
                method="GET",
                path="/metrics",
                handler=self.metrics,
                answers=(Answer(status=200, about="Prometheus' text format.", type=str, media=TEXT),),
                open_query=True,
            ),
            Route(
                method="GET",
                path="/healthz",
                handler=self.healthz,
                answers=(_OK, _STOPPED),
                open_query=True,
            ),
            Route(
                method="GET",
                path="/readyz",
                handler=self.readyz,
                answers=(_OK, _STOPPED),
                open_query=True,
            ),
        ]
        rulings = Rulings(self.book, self.rulebook)
        return described(
            [
                *Native(self.book, rulings).routes(),
                *rulings.routes(),
                *Insight(self.book).routes(),
                *Prometheus(self.book).routes(),
                *self.sessions.routes(),
                *upkeep,
            ]
        )

    async def _recall(self) -> None:
        """Begin with the book as it was saved: everybody in it has a full grace period from now on."""
        settings, book = self.settings, self.book
        self._stack.enter_context(held(settings.data_dir))
        keeper = self.keeper = Keeper(
            settings.data_dir,
            interval=settings.snapshot_interval,
            boot=book.boot,
            ordinal=book.catalog.ordinal,
            leases=lambda: book.catalog.pieces(SLICE),
            pods=lambda: book.catalog.pod_records(book.now()),
            wall=time.time,
            counted=lambda what: book.metrics.snapshots.labels(what.value).inc(),
        )
        saved = await keeper.load()
        self._stack.push_async_callback(keeper.close)
        book.apply(lambda c, now: c.restore(saved.writes, saved.pods, now))
        book.recorders.append(keeper.take)
        book.flushes.append(keeper.flush)
        book.metrics.snapshot_time.set_function(lambda: keeper.saved_at or 0.0)
        book.metrics.snapshot_size.set_function(lambda: keeper.size)

    async def _lay_out(self) -> None:
        """Bring what is laid down into the book, and have it checked."""
        settings, book = self.settings, self.book
        await self.rulebook.open()
        self._stack.push_async_callback(self.rulebook.close)
        probes = self._stack.enter_context(Probes(settings.reach))
        self._checker = Checker(
            default=settings.default_check,
            ask=probes.ask,
            report=self.rulebook.judge,
            meter=book.metrics.checks,
            clock=book.now,
            rng=random.random,
            concurrency=settings.check_concurrency,
            first_rate=settings.check_first_rate,
            known=self.rulebook.verdict,
        )
        book.metrics.checks.in_flight.set_function(lambda: self._checker.in_flight)
        book.metrics.checks.instances.set_function(lambda: self._checker.checked)
        self.rulebook.check_with(self._checker)

    async def _run_book(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.book.run(), name="book")
                tasks.create_task(self._checker.run(), name="checks")
                tasks.create_task(self.keeper.run(), name="keeper")
        except Exception:
            log.exception("book_stopped")

    def _application(self, verifier: Verifier | None) -> web.Application:
        application = web.Application(middlewares=[doors.problems], client_max_size=MAX_BODY_BYTES)
        application[doors.BOOK] = self.book
        application[doors.VERIFIER] = verifier
        return application

    async def _serve(
        self,
        application: web.Application,
        door: Door,
        port: int,
        answer: Callable[[Plain], bytes | None] | None = None,
    ) -> int:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_GRACE)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        # Not by a TCPSite of aiohttp's: the guard makes the connections.
        make = self.connections[door] = self.guard.factory(cast("web.Server", runner.server), door, answer)
        with _listening(self.settings.host, port, f"--{door.value}-port"):
            listener = await asyncio.get_running_loop().create_server(
                make, self.settings.host, port, backlog=BACKLOG
            )
        self._stack.callback(listener.close)
        return int(listener.sockets[0].getsockname()[1])

    async def _serve_nacos(self, port: int) -> int:
        from rollbook_registry.api.nacos.door import Door  # noqa: PLC0415  # loads gRPC: only with the port

        door = Door(lambda code: self.book.metrics.refusals.labels(code).inc())
        with _listening(self.settings.host, port, "--grpc-port"):
            taken = await door.open(self.settings.host, port)
        self._stack.push_async_callback(door.close)
        return taken

    async def metrics(self, _: web.Request, __: Values) -> web.Response:
        """Show the registry's metrics, for Prometheus."""
        return web.Response(
            body=generate_latest(self.book.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def readyz(self, request: web.Request, values: Values) -> web.Response:
        """Say whether the registry has the book."""
        return await self.healthz(request, values)

    async def healthz(self, _: web.Request, __: Values) -> web.Response:
        """Say whether the registry works."""
        # One replica without peers has the book that there is, from the first moment. But a book whose wheel
        # has stopped turning strikes nobody out any more: then only a restart helps.
        if self._running is None or self._running.done():
            return web.Response(status=503, text="expiry has stopped; the log says why\n")
        return web.Response(text="ok\n")


_OK: Final = Answer(status=200, about="It does.", type=str, media=TEXT)
_STOPPED: Final = Answer(status=503, about="It doesn't; the text says why.", type=str, media=TEXT)


@contextlib.contextmanager
def _listening(host: str, port: int, flag: str) -> Iterator[None]:
    """Name the flag of a port that can't be had.

    Raises:
        OSError: with the host, the port and the flag in its text.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port} ({flag}): {error.strerror or error}") from None


async def _told(work: Coroutine[None, None, None], name: str) -> None:
    """Run what should never end, and say so if it does."""
    try:
        await work
    except Exception:
        log.exception("stopped", what=name)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
