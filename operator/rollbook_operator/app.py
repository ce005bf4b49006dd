"""The operator, put together: the one place that knows all its parts."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import signal
import time
from typing import TYPE_CHECKING, Any, Final

import kopf
import structlog

from rollbook import events
from rollbook.client import Client
from rollbook_operator import lease, settings, watch
from rollbook_operator.cluster import Cluster
from rollbook_operator.complaints import Complaints
from rollbook_operator.health import make_app, serving
from rollbook_operator.metrics import Metrics
from rollbook_operator.reconcile import Reconciler
from rollbook_operator.sync import Sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from rollbook.kube import KubeApi
    from rollbook.problems import Problem
    from rollbook_operator.settings import OperatorSettings

log = structlog.get_logger("rollbook.operator")

KOPF_STOP: Final = 5.0
"""Seconds that kopf gets to end its watches."""


class Superseded(Exception):  # noqa: N818  # what happened, not an error in anything
    """The registry hears another operator, which took the Lease over after this one."""


class Operator:
    """One operator, from its start to its end.

    Args:
        chosen: its settings.
        kube: the API server.
        health_host: where probes are answered; ``None`` for all addresses.
        rng: where jitter comes from.
    """

    def __init__(
        self,
        chosen: OperatorSettings,
        kube: KubeApi,
        *,
        health_host: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = chosen
        self._kube = kube
        self._health_host = health_host
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._stop = asyncio.Event()
        self._superseded: Problem | None = None
        self.started = asyncio.Event()
        """Set once everything runs."""

        self.health_port = 0
        self.metrics = Metrics()

    def stop(self) -> None:
        """Ask it to end."""
        self._stop.set()

    async def run(self) -> None:
        """Do the work until asked to end.

        What it has entered stays in the book: a restart must not empty it.

        Raises:
            Superseded: another operator has taken over.
            Problem: 400 ``bad_value``, naming a flag.
            KubeError: it may not have its Lease.
            RuntimeError: one of its parts ended by itself.
        """
        chosen, kube = self._settings, self._kube
        me = settings.own_name()
        epoch = await lease.take_over(
            kube,
            namespace=settings.own_namespace(chosen.pod_namespace),
            name=chosen.lease_name,
            holder=me,
            now=_now,
            rng=self._rng,
        )
        self.metrics.epoch.set(epoch)
        client = Client(*chosen.registry, token=token_reader(chosen.token_file), kind="operator", epoch=epoch)
        cluster = Cluster(kube)
        complaints = Complaints(kube, instance=me, now=_now, rng=self._rng)
        sync = Sync(client, cluster, complaints, self.metrics, clock=time.monotonic, rng=self._rng)
        client.listen(sync.handle)
        client.listen(self._on_session)

        def forget() -> None:
            client.session.forget_pods(sync.outdated_fences())

        reconciler = Reconciler(
            cluster,
            sync,
            self.metrics,
            interval=chosen.reconcile_interval,
            synced=client.synced,
            forget=forget,
            rng=self._rng,
            clock=time.monotonic,
        )
        unmanaged = watch.UnmanagedWatch(cluster, sync, self.metrics, rng=self._rng)
        self._observe(client, sync)
        app = make_app(
            self.metrics.collector,
            live=lambda: {"pods": len(sync.pods), "queued": sync.queued, "epoch": epoch},
            ready=lambda: {
                "listed": reconciler.complete,
                "registry": client.connected and client.session.attached,
            },
        )
        parts: dict[str, Callable[[], Awaitable[Any]]] = {
            "sync": sync.run,
            "complaints": complaints.run,
            "reconciler": reconciler.run,
            "watch": unmanaged.run,
            "stop": self._stop.wait,
        }
        async with serving(app, port=chosen.health_port, host=self._health_host) as self.health_port:
            client.start()
            try:
                await self._run_parts(parts, sync)
            finally:
                await client.aclose(release=False)
        if self._superseded is not None:
            raise Superseded(self._superseded.detail)

    async def _run_parts(self, parts: dict[str, Callable[[], Awaitable[Any]]], sync: Sync) -> None:
        """Run all parts until one of them ends."""
        tasks = [asyncio.create_task(_run(start), name=name) for name, start in parts.items()]
        # What exists when kopf starts is not kopf's to cancel when it ends.
        before = asyncio.all_tasks()
        watching = await watch.start_kopf(self._kube, sync)
        self._take_signals()
        kopf_task = asyncio.create_task(kopf.run_tasks(watching, ignored=before), name="kopf")
        self.started.set()
        log.info("started", registry=",".join(self._settings.registry), health_port=self.health_port)
        done: set[asyncio.Task[Any]] = set()
        try:
            done, _ = await asyncio.wait([*tasks, kopf_task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            kopf_task.cancel()
            await asyncio.wait([kopf_task], timeout=KOPF_STOP)
        if not self._stop.is_set():
            ended = done.pop()
            raise RuntimeError(f"{ended.get_name()} ended by itself") from (
                None if ended.cancelled() else ended.exception()
            )

    def _take_signals(self) -> None:
        """Take SIGINT and SIGTERM back from kopf, which would cancel our tasks in no particular order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not in a thread other than the main one, nor on Windows: tests and developers.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)

    def _observe(self, client: Client, sync: Sync) -> None:
        self.metrics.pods.set_function(lambda: len(sync.pods))
        self.metrics.entries.set_function(lambda: sync.entries)
        self.metrics.queue.set_function(lambda: sync.queued)
        self.metrics.connected.set_function(lambda: client.connected and client.session.attached)

    def _on_session(self, event: events.Event) -> None:
        match event:
            case events.LeaseRefused(problem) if problem.code == "epoch_superseded":
                self._superseded = problem
                self._stop.set()
            case events.LeaseRefused(problem):
                log.error("registry_refuses_us", code=problem.code, detail=problem.detail)
            case events.Rebooted(boot):
                log.info("registry_restarted", boot=boot)
            case _:
                pass


def token_reader(path: Path | None) -> Callable[[], str | None]:
    """Make what reads the token at each connection; a file that can't be read is logged, and shows none."""

    def read() -> str | None:
        if path is None:
            return None
        try:
            return path.read_text().strip()
        except OSError as error:
            log.error("token_unreadable", file=str(path), error=str(error))  # noqa: TRY400  # the sentence says all
            return None

    return read


async def _run(start: Callable[[], Awaitable[Any]]) -> Any:
    return await start()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
