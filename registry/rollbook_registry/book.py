"""The book: the catalog with its clock, its wheel and its outlets; the one way through which it is changed.

``api -> catalog -> events -> {push, expiry, metrics}``: :meth:`Book.apply` runs a command and hands what
comes of it on, in order, before anything else runs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from rollbook.clock import AttentiveClock
from rollbook.problems import Problem
from rollbook_registry.catalog import Catalog, History, LeaseChanged, Reason, ServiceChanged, Timings
from rollbook_registry.expiry import Wheel
from rollbook_registry.metrics import BookCollector, Metrics
from rollbook_registry.push import Outlet

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook.names import LeaseId
    from rollbook_registry.settings import RegistrySettings

log = structlog.get_logger("rollbook.registry")

T = TypeVar("T")

MAX_DEFERRED: Final = 10_000
"""Registrations by full beats that may wait; beyond it such a beat is refused and the client comes again."""

SWEEP_INTERVAL: Final = 5.0
"""Seconds between looks at what is only remembered."""


class Book:
    """The catalog and what surrounds it.

    Args:
        settings: the registry's settings.
        clock: monotonic seconds.
        wall: Unix time, in seconds.
    """

    def __init__(
        self, settings: RegistrySettings, *, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self.settings = settings
        self.boot = secrets.token_hex(4)
        self.metrics = Metrics()
        self.catalog = Catalog(
            Timings(
                unhealthy_after=settings.unhealthy_after,
                remove_after=settings.remove_after,
                operator_remove_after=settings.operator_remove_after,
                empty_kept=settings.empty_service_after,
            )
        )
        self.outlet = Outlet(
            boot=self.boot,
            service=self.catalog.service,
            wall=wall,
            clock=clock,
            pushed=self.metrics.push.observe,
            conflated=self.metrics.conflated.inc,
        )
        self.metrics.registry.register(BookCollector(self))
        self._clock = clock
        self._started = clock()
        # Some ticks may be late without harm; a gap that is longer was a stall.
        self._attentive = AttentiveClock(self._started, max_step=max(1.0, 4 * settings.expiry_tick))
        self._wheel: Wheel[LeaseId] = Wheel(self._started, tick=settings.expiry_tick)
        self._swept = self._started
        self._deferred: deque[Callable[[Catalog, float], object]] = deque()
        self._deferral = asyncio.Event()
        # Looked up once: a labelled child costs more to find than to count.
        self._counted = {reason: self.metrics.events.labels(reason.value) for reason in Reason}
        self._log = log.bind()
        self.on_settled: Callable[[], None] = lambda: None

    def now(self) -> float:
        """Return the attentive time that the catalog lives by."""
        return self._attentive.read(self._clock())

    def apply(self, command: Callable[[Catalog, float], T]) -> T:
        """Run a command and hand on what comes of it.

        Raises:
            Problem: whatever the command says; nothing was changed then.
        """
        try:
            return command(self.catalog, self.now())
        finally:
            self._publish()

    def defer(self, command: Callable[[Catalog, float], object]) -> None:
        """Have a command run soon, off the path of the request that asks for it.

        Raises:
            Problem: 429 ``limit_reached``: too many wait already.
        """
        if len(self._deferred) >= MAX_DEFERRED:
            raise Problem("limit_reached", f"{MAX_DEFERRED} registrations by beats are waiting already")
        self._deferred.append(command)
        self._deferral.set()

    async def run(self) -> None:
        """Turn the wheel, and carry out what was deferred, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._turn(), name="expiry")
            tasks.create_task(self._work_off(), name="deferred")

    def tick(self) -> None:
        """Look at whose deadline has come."""
        lost = self._attentive.lost
        now = self._attentive.look(self._clock())
        if self._attentive.lost > lost:
            missed = self._attentive.lost - lost
            self.metrics.loop_lag_lost.inc(missed)
            log.warning("stalled", seconds=round(missed, 3), effect="nobody is judged by this time")
        for lease in self._wheel.advance(now):
            self.catalog.expire(lease, now)
        if now - self._swept >= SWEEP_INTERVAL:
            self._swept = now
            self.catalog.sweep(now)
        self._publish()
        if not self.outlet.settled and now - self._started >= self.settings.remove_after:
            self.outlet.settle()
            log.info("settled", services=len(self.catalog.services), leases=self.catalog.leases)
            self.on_settled()

    async def _turn(self) -> None:
        tick = self.settings.expiry_tick
        while True:
            due = self._clock() + tick
            await asyncio.sleep(tick)
            self.metrics.loop_lag.set(max(0.0, self._clock() - due))
            self.tick()

    async def _work_off(self) -> None:
        while True:
            await self._deferral.wait()
            self._deferral.clear()
            while self._deferred:
                try:
                    self.apply(self._deferred.popleft())
                except Problem as problem:
                    log.info("beat_not_registered", code=problem.code, detail=problem.detail)
                await asyncio.sleep(0)

    def _publish(self) -> None:
        for event in self.catalog.take_events():
            match event:
                case ServiceChanged():
                    self.outlet.changed(event)
                case History():
                    self._tell(event)
                case LeaseChanged(lease, term, reason):
                    self._log.debug("lease", lease=lease, term=term, reason=reason.value)
                case _:
                    self._wheel.add(event.lease, event.at)

    def _tell(self, event: History) -> None:
        reason = event.reason
        self._counted[reason].inc()
        if reason is Reason.SILENT:
            self.metrics.expirations.labels("unhealthy").inc()
        elif reason is Reason.EXPIRED:
            self.metrics.expirations.labels("removed").inc()
        if reason in {Reason.SILENT, Reason.EXPIRED, Reason.RECOVERED, Reason.ADDRESS_FENCED}:
            self._log.info(reason.value, service=str(event.service), instance=event.key)
        else:
            self._log.debug(reason.value, service=str(event.service), instance=event.key)
