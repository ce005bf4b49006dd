"""The house of the demonstration: a registry, two instances of ``orders``, a caller, and their sidecars."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Self

import aiohttp

from demo.processes import Process, console_script, free_port

if TYPE_CHECKING:
    from pathlib import Path

START_TIMEOUT = 20.0
"""Seconds that a part may take until it answers."""


class Orders:
    """One instance of the sample application and the sidecar beside it."""

    def __init__(self, number: int, *, registry: int, directory: Path) -> None:
        self.name = f"orders-{number}"
        self.port = free_port(9000 + number)
        self.lookup_port = free_port(8850 + number)
        self.application = Process(
            self.name, sys.executable, "-m", "demo.orders", self.name, str(self.port), log=directory
        )
        self.sidecar = Process(
            f"{self.name}-sidecar",
            console_script("rollbook-sidecar"),
            log=directory,
            environment={
                "ROLLBOOK_REGISTRY": f"127.0.0.1:{registry}",
                "ROLLBOOK_LOOKUP_PORT": str(self.lookup_port),
                "ROLLBOOK_HOOKS_PORT": "0",
                "ROLLBOOK_SERVICE": "orders",
                "ROLLBOOK_PORTS": str(self.port),
                "ROLLBOOK_IP": "127.0.0.1",
                "ROLLBOOK_INSTANCE_ID": self.name,
            },
        )

    def freeze(self) -> None:
        """Hang, as a machine does: neither requests nor beats are answered."""
        self.sidecar.freeze()
        self.application.freeze()

    def thaw(self) -> None:
        """Come back."""
        self.application.thaw()
        self.sidecar.thaw()


class House:
    """All processes of the demonstration.

    Args:
        directory: for data and logs.
    """

    def __init__(self, directory: Path) -> None:
        self.registry_port = free_port(8848)
        self.session_port = free_port(7848)
        self.caller_port = free_port(8849)
        self.grpc_port = free_port(9848)
        self.registry = Process(
            "registry",
            console_script("rollbook-registry"),
            log=directory,
            environment={
                "ROLLBOOK_DATA_DIR": str(directory / "registry"),
                "ROLLBOOK_HTTP_PORT": str(self.registry_port),
                "ROLLBOOK_SESSION_PORT": str(self.session_port),
                "ROLLBOOK_GRPC_PORT": str(self.grpc_port),
            },
        )
        self.orders = [Orders(n, registry=self.session_port, directory=directory) for n in (1, 2)]
        self.caller = Process(
            "caller-sidecar",
            console_script("rollbook-sidecar"),
            log=directory,
            environment={
                "ROLLBOOK_REGISTRY": f"127.0.0.1:{self.session_port}",
                "ROLLBOOK_LOOKUP_PORT": str(self.caller_port),
                "ROLLBOOK_HOOKS_PORT": "0",
            },
        )

    @property
    def processes(self) -> list[Process]:
        """All of them, in the order of starting."""
        pairs = [p for o in self.orders for p in (o.application, o.sidecar)]
        return [self.registry, *pairs, self.caller]

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """What can be tried with curl, and what it shows."""
        registry, caller = (
            f"http://127.0.0.1:{self.registry_port}",
            f"http://127.0.0.1:{self.caller_port}",
        )
        return [
            ("the caller's sidecar: who serves orders", f"{caller}/services/orders"),
            ("the caller's sidecar: whom to ask now", f"{caller}/services/orders/pick"),
            ("the registry: all services", f"{registry}/services"),
            ("the registry: the same list", f"{registry}/services/orders"),
            ("the registry: metrics", f"{registry}/metrics"),
            *((f"{o.name}: the application", f"http://127.0.0.1:{o.port}/") for o in self.orders),
            *((f"{o.name}: its sidecar", f"http://127.0.0.1:{o.lookup_port}/services") for o in self.orders),
        ]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        async with aiohttp.ClientSession() as http, asyncio.timeout(START_TIMEOUT):
            await self.registry.start()
            await self._answers(http, f"http://127.0.0.1:{self.registry_port}/readyz")
            for process in self.processes[1:]:
                await process.start()
            await self._answers(http, f"http://127.0.0.1:{self.caller_port}/healthz")

    async def _answers(self, http: aiohttp.ClientSession, url: str) -> None:
        while True:
            self.check()
            try:
                async with http.get(url) as response:
                    if response.ok:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)  # nothing announces that a process listens

    def check(self) -> None:
        """Make sure that all are alive.

        Raises:
            RuntimeError: which one has ended, and its last words.
        """
        for process in self.processes:
            if process.failure:
                raise RuntimeError(process.failure)

    async def _stop(self) -> None:
        await asyncio.gather(*(p.stop() for p in reversed(self.processes)))
