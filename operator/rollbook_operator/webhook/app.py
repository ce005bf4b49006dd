"""The webhook, put together."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import secrets
import signal
from typing import TYPE_CHECKING

import structlog

from rollbook_operator import health
from rollbook_operator.settings import own_namespace
from rollbook_operator.webhook import certs, server
from rollbook_operator.webhook.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook.kube import KubeApi
    from rollbook_operator.webhook.settings import WebhookSettings

log = structlog.get_logger("rollbook.webhook")


class Webhook:
    """One webhook, from its start to its end.

    Args:
        chosen: its settings.
        kube: the API server.
        host: where it listens; ``None`` for all addresses.
        now: the time of day.
        rng: where jitter comes from.
    """

    def __init__(
        self,
        chosen: WebhookSettings,
        kube: KubeApi,
        *,
        host: str | None = None,
        now: Callable[[], dt.datetime] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = chosen
        self._host = host
        self._stop = asyncio.Event()
        self.metrics = server.Metrics()
        self.keeper = Keeper(
            kube,
            namespace=own_namespace(chosen.pod_namespace),
            service=chosen.service_name,
            secret=chosen.secret_name,
            configuration=chosen.configuration_name,
            now=now or (lambda: dt.datetime.now(dt.UTC)),
            rng=rng or random.Random(),  # noqa: S311  # jitter, not a secret
        )
        self.serving = False
        self.port = 0
        self.health_port = 0
        self.started = asyncio.Event()
        """Set once it listens on both ports."""

    def stop(self) -> None:
        """Ask it to end."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until asked to end.

        Raises:
            OSError: a port is taken.
            RuntimeError: the keeper of the certificates ended by itself.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not in a thread other than the main one, nor on Windows: tests and developers.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
        chosen = self._settings
        app = server.make_app(chosen.sidecar(), self.metrics, lambda: secrets.token_hex(16))
        self.metrics.expiry.set_function(self._expiry)
        probes = health.make_app(
            self.metrics.collector,
            live=dict,
            ready=lambda: {
                "serving": self.serving and self.keeper.served is not None,
                "trusted": self.keeper.trusted,
            },
        )
        async with (
            health.serving(probes, port=chosen.health_port, host=self._host) as self.health_port,
            # Until the keeper has a certificate, connections are refused by the handshake.
            health.serving(
                app, port=chosen.https_port, host=self._host, ssl_context=self.keeper.context
            ) as self.port,
        ):
            self.serving = True
            log.info("started", port=self.port, health_port=self.health_port)
            self.started.set()
            keeping = asyncio.create_task(self.keeper.run(), name="keeper")
            stopping = asyncio.create_task(self._stop.wait(), name="stop")
            try:
                await asyncio.wait([keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (keeping, stopping):
                    task.cancel()
                await asyncio.gather(keeping, stopping, return_exceptions=True)
        if not self._stop.is_set():
            raise RuntimeError("the keeper of the certificates ended by itself") from (
                None if keeping.cancelled() else keeping.exception()
            )

    def _expiry(self) -> float:
        served = self.keeper.served
        return 0.0 if served is None else certs.expiry(served).timestamp()
