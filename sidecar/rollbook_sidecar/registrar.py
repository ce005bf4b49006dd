"""Registrar: keeps the application's entries said to the registry, until they must not be said any more.

The client sees to connections, beats and registering afresh. What is left to decide is here: what an
instance's check means for its entry, what a refusal means, and that leaving is for good.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec
import structlog

from rollbook import events

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from rollbook.model import Entry, EntryRef
    from rollbook.problems import Problem
    from rollbook.session import Session

log = structlog.get_logger("rollbook.sidecar")

RETRY_FIRST: Final = 1.0
RETRY_MOST: Final = 60.0
"""Seconds until a refused registration is tried again: ``min(RETRY_MOST, RETRY_FIRST * 2 ** refusals)``,
times a random factor between a half and one."""

State = Literal["idle", "registering", "registered", "refused", "left", "dismissed"]
"""``idle``: nothing to register (yet). ``refused``: to be tried again. ``left``: drained, for good.
``dismissed``: the registry says that the pod is terminating or gone, for good."""

_FOR_GOOD: Final = ("left", "dismissed")


class Publisher(Protocol):
    """The part of :class:`rollbook.Client` that is needed here."""

    @property
    def session(self) -> Session:
        """The client's state."""
        ...

    def put(self, *entries: Entry) -> None:
        """Want entries in the book."""
        ...

    def drop(self, *refs: EntryRef) -> None:
        """Want them out of it."""
        ...

    def set_down(self, *refs: EntryRef) -> None:
        """Say which of them do not work."""
        ...


class Cancellable(Protocol):
    """What scheduling returns."""

    def cancel(self) -> None:
        """Do not do it."""
        ...


class Registrar:
    """The application's entries, and what the registry makes of them.

    Args:
        client: through which it speaks.
        rng: where jitter comes from.
        later: schedules a call after so many seconds.
        beat_interval: the longest time between beats, in seconds, if the entries' own timings need one.
    """

    def __init__(
        self,
        client: Publisher,
        *,
        rng: random.Random,
        later: Callable[[float, Callable[[], None]], Cancellable],
        beat_interval: float | None = None,
    ) -> None:
        self.state: State = "idle"
        self.over = asyncio.Event()
        """Set when nothing will be registered any more."""
        self._client = client
        self._rng = rng
        self._later = later
        self._beat_interval = beat_interval
        self._entries: dict[EntryRef, Entry] = {}
        self._refused: set[EntryRef] = set()
        self._refusals = 0
        self._retry: Cancellable | None = None

    def start(self, entries: Iterable[Entry]) -> None:
        """Register these from now on; those that are not alive are said to be down until :meth:`tell`."""
        if self.state != "idle":
            return
        self._entries = {e.ref: e for e in entries}
        if self._entries:
            self.state = "registering"
            self._client.put(*self._entries.values())

    def tell(self, refs: Iterable[EntryRef], alive: bool) -> None:  # noqa: FBT001  # the verdict itself
        """Take the verdict of a check: the registry hears of it at once."""
        for ref in refs:
            entry = self._entries.get(ref)
            if entry is not None:
                self._entries[ref] = msgspec.structs.replace(entry, alive=alive)
        if self.state not in _FOR_GOOD and self.state != "idle":
            # A difference is a beat, at once; what is registered afresh later says it too.
            self._client.set_down(*(ref for ref, entry in self._entries.items() if not entry.alive))

    @property
    def withdrawing(self) -> bool:
        """Whether entries were said before it left, so that the registry has to be told."""
        return self.state == "left" and bool(self._entries)

    def leave(self) -> None:
        """Take everything out of the book, for good."""
        self._end("left")

    def heard(self, event: events.Event) -> None:
        """Take notice of what happened at the client."""
        if self.state in _FOR_GOOD or self.state == "idle":
            return
        match event:
            case events.Confirmed(refs):
                self._on_confirmed(refs)
            case events.Rejected(ref, problem):
                self._on_refused((ref,), problem)
            case events.LeaseRefused(problem):
                self._on_refused(tuple(self._entries), problem)
            case events.Ended(term):
                self.state = "registering"
                log.warning("lease_ended", term=term, then="registering afresh")
            case events.Rebooted(boot):
                self.state = "registering"
                log.info("registry_restarted", boot=boot)
            case _:
                pass

    def _on_confirmed(self, refs: Iterable[EntryRef]) -> None:
        if self._beat_interval is not None:
            # Each attachment resets it to what the registry expects of everybody.
            state = self._client.session
            state.beat_interval = min(state.beat_interval, self._beat_interval)
        self._refused.difference_update(refs)
        if self._refused or not all(self._client.session.is_confirmed(ref) for ref in self._entries):
            return
        self._refusals = 0
        if self.state != "registered":
            self.state = "registered"
            log.info(
                "registered",
                entries=[f"{ref.service_key} {ref.ip} port {ref.port}" for ref in self._entries],
                term=self._client.session.term,
            )

    def _on_refused(self, refs: tuple[EntryRef, ...], problem: Problem) -> None:
        if problem.code in {"pod_terminating", "pod_gone"}:
            log.info("dismissed", code=problem.code, reason=problem.detail, then="never registering again")
            self._end("dismissed")
            return
        known = [ref for ref in refs if ref in self._entries]
        if not known:
            return
        self.state = "refused"
        self._refused.update(known)
        if self._retry is not None:
            return
        most = min(RETRY_MOST, RETRY_FIRST * 2 ** min(self._refusals, 10))
        pause = self._rng.uniform(most / 2, most)
        self._refusals += 1
        log.warning(
            "registration_refused",
            code=problem.code,
            reason=problem.detail,
            field=problem.field,
            again_in=round(pause, 1),
        )
        self._retry = self._later(pause, self._again)

    def _again(self) -> None:
        self._retry = None
        if self.state in _FOR_GOOD:
            return
        self._client.put(*(self._entries[ref] for ref in self._refused))

    def _end(self, state: State) -> None:
        if self.state in _FOR_GOOD:
            return
        self.state = state
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._client.drop(*self._entries)
        self.over.set()
