"""The checker: asks each persistent instance in its own rhythm, so many at a time, and reports verdicts.

It judges by what it heard and never by what it was too slow to hear: a check that begins late, or that comes
to nothing through a fault of this process, is counted and leaves the verdict as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog

from rollbook_registry.checks.schedule import Schedule
from rollbook_registry.checks.verdict import Answer, Finding, Judge, Reason, Target, Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rollbook.model import Entry, EntryRef
    from rollbook_registry.catalog.definitions import Check
    from rollbook_registry.checks.schedule import Due

log = structlog.get_logger("rollbook.checks")

_NO_NEWS: Final = frozenset({Reason.FIRST_SUCCESS, Reason.CONFIRMED, Reason.UNCHECKED})
"""Not worth a line of the log: all is well from the beginning, or as it was."""


class Ask(Protocol):
    """Asks once; :meth:`rollbook_registry.checks.probes.Probes.ask` is one."""

    def __call__(self, target: Target, *, timeout: float) -> Awaitable[Answer]:
        """Return what was found, within ``timeout`` seconds."""


class Meter(Protocol):
    """Counts checks."""

    def began(self, late: float) -> None:
        """Count a check that begins ``late`` seconds after it was due."""

    def ended(self, kind: str, finding: Finding, seconds: float) -> None:
        """Count a check of this kind (``tcp``, ``http``), what it found and how long it took."""

    def missed(self, turns: int) -> None:
        """Count checks that were never made, because the ones before them were too late."""


class Account(NamedTuple):
    """What the checker knows about one instance, for whoever asks why it is (not) alive.

    Attributes:
        alive: the verdict; ``None``: no conclusive check yet.
        reason: for the verdict.
        against: how many checks in a row contradict it.
        last: what the last check found; ``None``: there was none yet.
        ago: attentive seconds since the last check ended.
    """

    check: Check
    target: Target
    alive: bool | None
    reason: Reason | None
    against: int
    last: Answer | None
    ago: float


class _Watched:
    """One instance, and one question about it."""

    __slots__ = ("check", "judge", "last", "last_at", "owned", "reason", "ref", "target", "task")

    def __init__(self, ref: EntryRef, check: Check, target: Target) -> None:
        self.ref = ref
        self.check = check
        self.target = target
        self.judge = Judge()
        self.reason: Reason | None = None
        self.last: Answer | None = None
        self.last_at = 0.0
        self.owned = False
        self.task: asyncio.Task[None] | None = None


def _everybody(_: EntryRef) -> bool:
    return True


def _nothing(_: EntryRef) -> None:
    return None


class Checker:
    """Checks persistent instances.

    Args:
        default: how an instance is checked that has no check of its own.
        ask: asks an instance once.
        report: takes verdicts: the first of each instance, and each that differs from the one before. What it
            raises is logged, and it is called with the same verdicts again after the next check.
        meter: counts.
        clock: attentive seconds.
        rng: random numbers from 0 up to, not including, 1.
        concurrency: checks that may be under way at a time.
        first_rate: first checks a second, at most.
        owns: whether this replica checks an instance; asked when it is defined, and by :meth:`reassign`.
        known: the verdict that the book has about an instance whose checks begin; ``None``: none. It stands
            until as many checks as its thresholds say contradict it; the first that agrees is reported.
    """

    def __init__(
        self,
        *,
        default: Check,
        ask: Ask,
        report: Callable[[list[Verdict]], None],
        meter: Meter,
        clock: Callable[[], float],
        rng: Callable[[], float],
        concurrency: int = 100,
        first_rate: float = 1000.0,
        owns: Callable[[EntryRef], bool] = _everybody,
        known: Callable[[EntryRef], bool | None] = _nothing,
    ) -> None:
        self._default = default
        self._ask = ask
        self._report = report
        self._meter = meter
        self._clock = clock
        self._concurrency = concurrency
        self._owns = owns
        self._known = known
        self._watched: dict[EntryRef, _Watched] = {}
        self._schedule: Schedule[EntryRef] = Schedule(rng=rng, first_rate=first_rate)
        self._tasks: set[asyncio.Task[None]] = set()
        self._verdicts: dict[EntryRef, Verdict] = {}
        self._news = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Checks that are under way."""
        return len(self._tasks)

    @property
    def checked(self) -> int:
        """Instances that are checked here."""
        return len(self._schedule)

    def define(self, ref: EntryRef, entry: Entry, check: Check | None) -> None:
        """Check an instance from now on, or differently than before.

        Another target, or another kind of check, is another question: it is asked at once, and its first
        answer decides. Another interval, timeout or threshold leaves the verdict as it is.

        Args:
            ref: its name.
            entry: its definition.
            check: its own, or its service's; ``None``: the default.
        """
        check = check or self._default
        path = check.path if check.type == "http" else ""
        target = Target(check.type, entry.ip, check.port or entry.port, path)
        known = self._watched.get(ref)
        if known is not None and known.target == target:
            before, known.check = known.check, check
            if known.owned and check.type != "none" and before.interval != check.interval:
                self._schedule.pace(ref, check.interval, now=self._clock())
                self._news.set()
            return
        if known is not None:
            self._stop(known)
        self._watched[ref] = watched = _Watched(ref, check, target)
        if self._owns(ref):
            # What the book knows answers the old question.
            self._begin(watched, known=None if known is not None else self._known(ref))

    def undefine(self, ref: EntryRef) -> None:
        """Check an instance no more, and say nothing more about it."""
        watched = self._watched.pop(ref, None)
        if watched is not None:
            self._stop(watched)

    def reassign(self) -> list[EntryRef]:
        """Ask again which instances this replica checks; return those that it has let go of.

        What is newly its own is checked at once.
        """
        gone = []
        for ref, watched in self._watched.items():
            owned = self._owns(ref)
            if owned and not watched.owned:
                self._begin(watched, known=self._known(ref))
            elif watched.owned and not owned:
                self._stop(watched)
                gone.append(ref)
        return gone

    def account(self, ref: EntryRef) -> Account | None:
        """Return what is known about an instance; ``None`` if it isn't checked here."""
        watched = self._watched.get(ref)
        if watched is None or not watched.owned:
            return None
        return Account(
            check=watched.check,
            target=watched.target,
            alive=watched.judge.alive,
            reason=watched.reason,
            against=watched.judge.against,
            last=watched.last,
            ago=self._clock() - watched.last_at if watched.last else 0.0,
        )

    async def run(self) -> None:
        """Check until cancelled; then no check is under way any more."""
        try:
            while True:
                self._news.clear()
                pause = self.turn()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._news.wait()
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def turn(self) -> float | None:
        """Begin what is due, as far as there is room, and hand on verdicts.

        Returns:
            Seconds until there is something to do again; ``None``: not before there is news.
        """
        self._hand_on()
        now = self._clock()
        for due in self._schedule.take(now=now, limit=self._concurrency - len(self._tasks)):
            self._start(due, now)
        at = self._schedule.next_at()
        if at is None or len(self._tasks) >= self._concurrency:
            return None
        return max(0.0, at - now)

    def _begin(self, watched: _Watched, *, known: bool | None) -> None:
        watched.owned = True
        watched.judge = Judge(known=known)
        if watched.target.type == "none":
            watched.judge.alive = True
            self._rule(watched, Reason.UNCHECKED, Answer(Finding.PASSED))
        else:
            self._schedule.begin(watched.ref, watched.check.interval, now=self._clock())
        self._news.set()

    def _stop(self, watched: _Watched) -> None:
        watched.owned = False
        watched.judge = Judge()
        watched.reason = watched.last = None
        self._schedule.end(watched.ref)
        self._verdicts.pop(watched.ref, None)
        if watched.task is not None:
            watched.task.cancel()
            watched.task = None

    def _start(self, due: Due[EntryRef], now: float) -> None:
        watched = self._watched[due.key]
        self._meter.began(now - due.at)
        task = asyncio.create_task(self._check(watched))
        watched.task = task
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._news.set()

    async def _check(self, watched: _Watched) -> None:
        began = self._clock()
        target, check = watched.target, watched.check
        try:
            answer = await self._ask(target, timeout=check.timeout)
        except Exception as error:
            log.exception("check_broken", service=str(watched.ref.service_key), target=target.authority)
            answer = Answer(Finding.OWN_FAULT, repr(error))
        if watched.task is not asyncio.current_task():
            return  # it was stopped, and the answer came nevertheless
        now = self._clock()
        watched.task, watched.last, watched.last_at = None, answer, now
        self._meter.ended(target.type, answer.finding, now - began)
        missed = self._schedule.done(watched.ref, now=now)
        if missed:
            self._meter.missed(missed)
        # The thresholds as they are now: they may have been changed while it was under way.
        reason = watched.judge.take(
            answer.finding, failures=watched.check.failures, successes=watched.check.successes
        )
        if reason is not None:
            self._rule(watched, reason, answer)

    def _rule(self, watched: _Watched, reason: Reason, answer: Answer) -> None:
        watched.reason = reason
        alive = bool(watched.judge.alive)
        ref = watched.ref
        self._verdicts[ref] = Verdict(ref, alive, reason, answer.finding, answer.detail)
        say = log.debug if reason in _NO_NEWS else log.info
        say(
            "check_verdict",
            service=str(ref.service_key),
            target=watched.target.authority,
            check=watched.target.type,
            alive=alive,
            reason=reason.value,
            finding=answer.finding.value,
            detail=answer.detail,
        )

    def _hand_on(self) -> None:
        if not self._verdicts:
            return
        verdicts = list(self._verdicts.values())
        try:
            self._report(verdicts)
        except Exception:
            log.exception("verdicts_not_taken", verdicts=len(verdicts))
        else:
            for verdict in verdicts:
                if self._verdicts.get(verdict.ref) is verdict:
                    del self._verdicts[verdict.ref]
