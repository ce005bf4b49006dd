"""Drain: leaving without dropping a request, by asking instead of sleeping.

Deregister, wait until all current subscribers of the application's services have acknowledged it (the
registry's ``barrier``), then linger for requests to addresses that were looked up just before. Without a
registry there is nobody to ask: then it only lingers.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec
import structlog

from rollbook.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rollbook.names import ServiceKey
    from rollbook.session import Session
    from rollbook_sidecar.metrics import Metrics
    from rollbook_sidecar.registrar import Registrar

log = structlog.get_logger("rollbook.sidecar")

Outcome = Literal["acknowledged", "timeout", "unreachable", "refused", "nothing"]
"""How the wait for subscribers ended; ``nothing``: this sidecar registers nothing, so nobody is asked."""

ATTACH_PATIENCE: Final = 1.0
"""Seconds that a connection which has only just been made gets to take up the lease, before the barrier is
asked for; a barrier that overtakes the deregistration would mean nothing."""

BARRIER_MOST: Final = 30.0
"""Seconds that the registry is asked to wait at a time; it has a limit of its own."""

_LOOK: Final = 0.02


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """What ``GET /drain/wait`` answers.

    Attributes:
        outcome: how the wait for subscribers ended.
        waited: seconds that it took.
        lingered: seconds after that.
    """

    outcome: Outcome
    waited: float
    lingered: float


class Barrier(Protocol):
    """The part of :class:`rollbook.Client` that is needed here."""

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        ...

    @property
    def session(self) -> Session:
        """The client's state."""
        ...

    async def barrier(self, *services: ServiceKey, timeout: float) -> bool:
        """Wait until all subscribers know."""
        ...


class Drain:
    """One drain, however often and from wherever it is asked for.

    Args:
        client: through which the barrier is asked for.
        registrar: what has to leave.
        services: which the application is registered in.
        timeout: seconds to wait for subscribers, at most.
        linger: seconds to wait afterwards.
        metrics: where its duration goes.
        sleep: how to linger.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: Barrier,
        registrar: Registrar,
        *,
        services: tuple[ServiceKey, ...],
        timeout: float,
        linger: float,
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._registrar = registrar
        self._services = services
        self._timeout = timeout
        self._linger = linger
        self._metrics = metrics
        self._sleep = sleep
        self._clock = clock
        self._task: asyncio.Task[Drained] | None = None

    def deregister(self) -> None:
        """Leave the book, at once and for good."""
        self._registrar.leave()

    async def wait(self) -> Drained:
        """Leave the book, and wait until it is safe to die. A caller that goes away does not stop it."""
        self.deregister()
        if self._task is None:
            self._task = asyncio.create_task(self._drain(), name="rollbook-drain")
        return await asyncio.shield(self._task)

    async def aclose(self) -> None:
        """Give it up: the process ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self) -> Drained:
        started = self._clock()
        outcome = await self._subscribers_know()
        waited = self._clock() - started
        await self._sleep(self._linger)
        took = self._clock() - started
        self._metrics.drains.labels(outcome).observe(took)
        drained = Drained(outcome=outcome, waited=round(waited, 3), lingered=round(took - waited, 3))
        log.info("drained", outcome=outcome, waited=drained.waited, lingered=drained.lingered)
        return drained

    async def _subscribers_know(self) -> Outcome:
        if not self._services:
            return "nothing"
        if not self._client.connected:
            return "unreachable"
        try:
            async with asyncio.timeout(self._timeout):
                await self._taken_up()
                complete = await self._barrier()
        except TimeoutError:
            return "timeout"
        except Problem as problem:
            log.warning("barrier_refused", code=problem.code, reason=problem.detail)
            return "unreachable" if problem.code == "registry_unreachable" else "refused"
        return "acknowledged" if complete else "timeout"

    async def _barrier(self) -> bool:
        until = self._clock() + self._timeout
        while True:
            asked = max(0.0, min(BARRIER_MOST, until - self._clock()))
            if await self._client.barrier(*self._services, timeout=asked):
                return True
            if asked < BARRIER_MOST:
                return False

    async def _taken_up(self) -> None:
        if not self._registrar.withdrawing:
            return
        until = self._clock() + ATTACH_PATIENCE
        while self._client.connected and not self._client.session.attached and self._clock() < until:  # noqa: ASYNC110  # the client has no event for it
            await asyncio.sleep(_LOOK)
