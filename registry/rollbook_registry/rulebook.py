"""The rulebook: the way of what is laid down, to the store, and from the store into the book.

``api -> store -> catalog``: whoever lays something down waits until the store has committed it; the catalog
hears of it from the store alone, whoever wrote it, so there is one way in. The checks of persistent instances
hang on what the store says, and speak through a lease of their own.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar, cast

import msgspec
import structlog

from rollbook.names import LeaseId
from rollbook.problems import Problem
from rollbook_registry.catalog import PodsMarked
from rollbook_registry.catalog.definitions import Configured, Defined, Overridden
from rollbook_registry.catalog.leases import CHECKER_LEASES, Kind
from rollbook_registry.checks.verdict import Reason
from rollbook_registry.store import rulings as records
from rollbook_registry.store.store import MAX_CHANGES, Change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rollbook.model import EntryRef
    from rollbook_registry.book import Book
    from rollbook_registry.catalog import Event
    from rollbook_registry.catalog.definitions import Ruling
    from rollbook_registry.checks import Checker, Verdict
    from rollbook_registry.store.store import Store

log = structlog.get_logger("rollbook.rulings")

R = TypeVar("R", Defined, Overridden)

REVISIONS: Final = 10
"""How often a revision is tried anew because others were quicker, before it is given up."""

LIFT_PAUSE: Final = 10.0
"""Seconds until the overrides of pods that are gone are lifted again, if the store could not."""


class Rulebook:
    """What is laid down.

    Args:
        book: shows it.
        store: keeps it.
        lift_pause: see :data:`LIFT_PAUSE`.
    """

    def __init__(self, book: Book, store: Store, *, lift_pause: float = LIFT_PAUSE) -> None:
        self._book = book
        self._store = store
        self._lift_pause = lift_pause
        self._checker: Checker | None = None
        self._lease = LeaseId(f"{CHECKER_LEASES}{book.catalog.ordinal}")
        # A lease is out of the collector's sight, so its holder must not lead back to the book.
        self._holder = object()
        self._lifting: asyncio.Task[None] | None = None
        self._opened = False

    async def open(self) -> None:
        """Bring what the store holds into the book.

        Raises:
            CannotOpenError: naming the file and what to do.
        """
        await self._store.open(self._told)
        self._opened = True
        self._book.listeners.append(self._heard)
        self._lift_gone()

    def check_with(self, checker: Checker) -> None:
        """Have persistent instances checked from now on.

        What the snapshot has of the last life's verdicts goes on until there are new ones.
        """
        self._checker = checker
        definitions = self._book.catalog.rulings.definitions
        lease = self._book.catalog.lease(self._lease)
        verdicts = lease.entries if lease is not None else {}
        gone = [ref for ref in verdicts if ref not in definitions]
        self._book.apply(lambda c, now: c.deregister(self._lease, gone, now))
        for ref in definitions:
            self._check(ref)

    async def lay_down(self, *rulings: Ruling) -> None:
        """Have rulings committed, all or none, and brought into the book.

        Raises:
            Problem: 503 ``store_unavailable`` with the reason; nothing was laid down.
        """
        await self._store.write([records.write(ruling) for ruling in rulings])

    async def revise(self, blank: R, revised: Callable[[R], R | None]) -> None:
        """Lay down something that follows from what is laid down already.

        What others lay down at the same moment is neither lost nor brought back: the store takes a revision
        only of the record that it was made from, and otherwise it is made again.

        Args:
            blank: the ruling that says that there is no such record; it names which one is meant.
            revised: is given what the store has, and returns what it shall have; ``None``: let it be. What
                it raises comes through.

        Raises:
            Problem: 409 ``conflict``: others were quicker each time; 503 ``store_unavailable``.
        """
        key = records.write(blank).key
        for _ in range(REVISIONS):
            value = await self._store.read(key)
            known = records.read_one(Change(key, value))
            # What cannot be read is in nobody's book; laying it down anew is how to get rid of it.
            found = blank if isinstance(known, records.Unreadable) else cast("R", known)
            wanted = revised(found)
            if wanted is None:
                return
            try:
                await self._store.write([records.write(wanted)], expect={key: value})
            except Problem as problem:
                if problem.code != "conflict":
                    raise
            else:
                return
        raise Problem("conflict", "others have changed it at the same time, again and again")

    async def close(self) -> None:
        """Let go of the store, when what is under way is done."""
        if self._lifting is not None:
            self._lifting.cancel()
            await asyncio.gather(self._lifting, return_exceptions=True)
        await self._store.close()

    def judge(self, verdicts: Sequence[Verdict]) -> None:
        """Take verdicts about persistent instances into the book."""
        definitions = self._book.catalog.rulings.definitions
        # What is not checked is as its definition says; a verdict from when it was is one no more.
        unchecked = [v.ref for v in verdicts if v.reason is Reason.UNCHECKED]
        self._book.apply(lambda c, now: c.deregister(self._lease, unchecked, now))
        entries = [
            msgspec.structs.replace(definitions[v.ref].entry, alive=v.alive)
            for v in verdicts
            if v.ref in definitions and v.reason is not Reason.UNCHECKED
        ]
        if not entries:
            return
        lease = self._book.catalog.lease(self._lease)
        if lease is None or lease.holder is not self._holder:
            self._book.apply(
                lambda c, now: c.attach(self._lease, kind=Kind.CHECKER, term=0, holder=self._holder, now=now)
            )
        self._book.apply(lambda c, now: c.register(self._lease, entries, now))

    def verdict(self, ref: EntryRef) -> bool | None:
        """Return what the book has as the last verdict about an instance, of another life or replica too."""
        lease = self._book.catalog.lease(self._lease)
        held = lease.entries.get(ref) if lease is not None else None
        return None if held is None else held.alive

    # --- inside ----------------------------------------------------------------------------------------

    def _told(self, changes: Sequence[Change]) -> None:
        """Take what the store has committed."""
        rulings, unreadable = records.read(changes)
        for record in unreadable:
            log.error("ruling_unreadable", key=record.key, fault=record.fault.value, detail=record.detail)
        self._book.apply(lambda c, now: c.rule(rulings, now))
        if any(isinstance(ruling, Overridden) and ruling.ref.owner for ruling in rulings):
            self._lift_gone()
        if self._checker is None:
            return
        for ruling in rulings:
            match ruling:
                case Defined(ref, None):
                    self._checker.undefine(ref)
                    # After the definition: a dead instance must not show as alive for a moment.
                    self._drop_verdict(ref)
                case Defined(ref):
                    self._check(ref)
                case Configured(service):
                    for ref in self._book.catalog.rulings.definitions:
                        if ref.service_key == service:
                            self._check(ref)

    def _check(self, ref: EntryRef) -> None:
        rulings = self._book.catalog.rulings
        definition = rulings.definitions[ref]
        settings = rulings.services.get(ref.service_key)
        check = definition.check or (settings.check if settings is not None else None)
        if self._checker is not None:
            self._checker.define(ref, definition.entry, check)

    def _drop_verdict(self, ref: EntryRef) -> None:
        self._book.apply(lambda c, now: c.deregister(self._lease, [ref], now))

    # --- overrides of pods that are gone -----------------------------------------------------------------

    def _heard(self, event: Event) -> None:
        if isinstance(event, PodsMarked) and any(pod.fenced for pod in event.pods):
            self._lift_gone()

    def _lift_gone(self) -> None:
        """Have the overrides of pods that are gone for good lifted: their names do not come back."""
        idle = self._opened and (self._lifting is None or self._lifting.done())
        if idle and self._gone():
            self._lifting = asyncio.create_task(self._lift(), name="lift")

    def _gone(self) -> list[Overridden]:
        catalog = self._book.catalog
        overrides = catalog.rulings.overrides
        gone = (ref for ref in overrides if ref.owner and catalog.pods.state(ref.owner) == "fenced")
        return [Overridden(ref, None) for ref in islice(gone, MAX_CHANGES)]

    async def _lift(self) -> None:
        while gone := self._gone():
            try:
                await self.lay_down(*gone)
            except Problem as problem:
                # They do no harm where they are.
                log.warning("overrides_of_gone_pods_stay", overrides=len(gone), detail=problem.detail)
                await asyncio.sleep(self._lift_pause)
