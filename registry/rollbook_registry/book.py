"""The book: the catalog with its clock, its wheel and its outlets; the one way to change it.

``api -> catalog -> events -> {push, expiry, store, metrics}``: :meth:`Book.apply` runs a command and hands
what comes of it on, in order, before anything else runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from rollbook.clock import AttentiveClock
from rollbook.problems import Problem
from rollbook_registry.catalog import (
    Catalog,
    Deadline,
    Happened,
    LeaseChanged,
    PodsMarked,
    Quotas,
    Reason,
    ServiceChanged,
    ServiceForgotten,
    Timings,
    Written,
    disagreements,
)
from rollbook_registry.catalog.history import History
from rollbook_registry.expiry import Expiry, Protected, Protection, Wheel
from rollbook_registry.metrics import BookCollector, Metrics
from rollbook_registry.push import Outlet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rollbook.names import ServiceKey
    from rollbook_registry.catalog import Event
    from rollbook_registry.settings import RegistrySettings

log = structlog.get_logger("rollbook.registry")

T = TypeVar("T")

GONE_TOLD: Final = 600.0
"""Seconds for which a registry that has started tells subscribers of pods that its last life saw go: those
who were away meanwhile, or whom the last push did not reach any more, may still hold them."""

SWEEP_INTERVAL: Final = 5.0
"""Seconds between looks at what is only remembered."""

_TOLD: Final = {
    Reason.SILENT,
    Reason.EXPIRED,
    Reason.RECOVERED,
    Reason.PROTECTED,
    Reason.ADDRESS_FENCED,
    Reason.FORCED,
    Reason.HIDDEN,
    Reason.OVERRIDDEN,
    Reason.OVERRIDE_LIFTED,
}
"""What is logged of entries when nobody asks for more; the rest at level debug."""


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
            ),
            Quotas(max_instances=settings.max_instances, max_services=settings.max_services),
        )
        self.history = History(settings.max_events)
        self.outlet = Outlet(
            boot=self.boot,
            service=self.catalog.service,
            services=self.catalog.services.within,
            wall=wall,
            clock=clock,
            pushed=self.metrics.push.observe,
            conflated=self.metrics.conflated.inc,
            threshold=self.catalog.rulings.protect_threshold,
        )
        self.metrics.registry.register(BookCollector(self))
        self._clock = clock
        self._wall = wall
        self._started = clock()
        # Some ticks may be late without harm; a gap that is longer was a stall.
        self._attentive = AttentiveClock(self._started, max_step=max(1.0, 4 * settings.expiry_tick))
        self.expiry = Expiry(
            self.catalog,
            Wheel(self._started, tick=settings.expiry_tick),
            Protection(
                Protected(
                    share=settings.protection_share,
                    floor=settings.protection_floor,
                    window=settings.protection_window,
                ),
                random.Random(),  # noqa: S311  # fairness, not secrecy
            ),
        )
        self._swept = self._started
        self._deferred: deque[tuple[Callable[[Catalog, float], object], int]] = deque()
        self._deferred_entries = 0
        self._deferral = asyncio.Event()
        self._log = log.bind()
        # Asked once: a log that is closed for these is asked for every registration otherwise.
        self._detailed: bool = self._log.is_enabled_for(logging.DEBUG)
        self._hand_on: dict[type, Callable[[Any], None]] = {
            ServiceChanged: self._tell_change,
            ServiceForgotten: lambda event: self.outlet.forgotten(event.service),
            Deadline: lambda event: self.expiry.watch(event.lease, event.at),
            Happened: self._tell,
            LeaseChanged: self._tell_lease,
            Written: self._record,
            PodsMarked: self._tell_pods,
        }
        self.on_settled: Callable[[], None] = lambda: None
        self.gone: dict[str, None] = {}
        """Pods that were closed or fenced before the book was settled: it may never have shown them."""
        self.changes: list[Callable[[ServiceKey], None]] = []
        """Are told, beside the outlet, which service's list has changed."""
        self.recorders: list[Callable[[Event], None]] = []
        """Are told what leases' records have become, and which pods were closed or fenced."""
        self.flushes: list[Callable[[], None]] = []
        """Are called when the recorders have been told all that came of a command, before it is answered."""
        self.listeners: list[Callable[[Event], None]] = []
        """Are told which pods were closed or fenced."""

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

    def disagreements(self) -> dict[disagreements.Disagreement, int]:
        """Count where Kubernetes and the book do not agree."""
        return disagreements.count(self.catalog, self.now(), stuck_after=self.settings.stuck_after)

    def defer(self, command: Callable[[Catalog, float], object], *, entries: int = 1) -> None:
        """Have a command run soon, off the path of the request that asks for it.

        Args:
            command: as :meth:`apply` takes it.
            entries: how many instances it would enter.

        Raises:
            Problem: 429 ``limit_reached``: too many wait already; the client's next beat carries them again.
        """
        limit = self.settings.max_deferred
        if self._deferred_entries + entries > limit:
            raise Problem(
                "limit_reached",
                f"{self._deferred_entries} instances from beats wait for this registry to enter them, and "
                f"{limit} may (--max-deferred); {entries} more came",
            )
        self._deferred.append((command, entries))
        self._deferred_entries += entries
        self._deferral.set()

    async def run(self) -> None:
        """Turn the wheel, and carry out what was deferred, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._turn(), name="expiry")
            tasks.create_task(self._work_off(), name="deferred")

    def tick(self) -> None:
        """Look at whose deadline has come."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """Do what a tick is for; between two steps others may have their turn."""
        now = self._look()
        protected = self.expiry.protection.active
        for _ in self.expiry.steps(now):
            self._publish()
            yield
            self._look()
        self._tell_protection(before=protected)
        if now - self._swept >= SWEEP_INTERVAL:
            self._swept = now
            self.catalog.sweep(now)
        self._publish()
        if not self.outlet.settled and now - self._started >= self.settings.remove_after:
            self.outlet.settle()
            self.gone.clear()
            log.info("settled", services=len(self.catalog.services), leases=self.catalog.leases)
            self.on_settled()

    def _look(self) -> float:
        """Look at the clock, and tell what was missed since the last look."""
        lost = self._attentive.lost
        now = self._attentive.look(self._clock())
        if self._attentive.lost > lost:
            missed = self._attentive.lost - lost
            self.metrics.loop_lag_lost.inc(missed)
            log.warning("stalled", seconds=round(missed, 3), effect="nobody is judged by this time")
        return now

    async def _turn(self) -> None:
        tick = self.settings.expiry_tick
        while True:
            due = self._clock() + tick
            await asyncio.sleep(tick)
            self.metrics.loop_lag.set(max(0.0, self._clock() - due))
            for _ in self.steps():
                await asyncio.sleep(0)

    async def _work_off(self) -> None:
        while True:
            await self._deferral.wait()
            self._deferral.clear()
            while self._deferred:
                command, entries = self._deferred.popleft()
                self._deferred_entries -= entries
                try:
                    self.apply(command)
                except Problem as problem:
                    log.info("beat_not_registered", code=problem.code, detail=problem.detail)
                await asyncio.sleep(0)

    def _publish(self) -> None:
        events = self.catalog.take_events()
        if not events:
            return  # nearly always: a beat
        for event in events:
            self._hand_on[type(event)](event)
        for flush in self.flushes:
            flush()

    def _record(self, event: Event) -> None:
        for recorder in self.recorders:
            recorder(event)

    def _tell_change(self, event: ServiceChanged) -> None:
        self.outlet.changed(event)
        for change in self.changes:
            change(event.service)

    def _tell_pods(self, event: PodsMarked) -> None:
        if not self.outlet.settled:
            self.gone.update(dict.fromkeys(p.uid for p in event.pods if p.age <= GONE_TOLD))
        self._record(event)
        for listener in self.listeners:
            listener(event)

    def _tell_lease(self, event: LeaseChanged) -> None:
        if self._detailed:
            self._log.debug("lease", lease=event.lease, term=event.term, reason=event.reason.value)

    def _tell_protection(self, *, before: bool) -> None:
        protection = self.expiry.protection
        if protection.active and not before:
            self._log.warning(
                "protection_begins",
                kept=protection.kept,
                effect="so many are silent at once that most of them stay in the book for now",
            )
        elif before and not protection.active:
            self._log.warning("protection_ends")

    def _tell(self, event: Happened) -> None:
        reason = event.reason
        # The catalog is through with the command: this is the list in which it shows.
        service = self.catalog.service(event.service)
        self.history.note(event, at=self._wall(), number=service.number if service else 0)
        self.metrics.events.counts[reason,] += 1
        if reason is Reason.SILENT:
            self.metrics.expirations.labels("unhealthy").inc()
        elif reason is Reason.EXPIRED:
            self.metrics.expirations.labels("removed").inc()
        if reason in _TOLD:
            self._log.info(reason.value, service=str(event.service), instance=event.key)
        elif self._detailed:
            self._log.debug(reason.value, service=str(event.service), instance=event.key)
