"""The rulebook: the way of what is laid down, to the store, and from the store into the book.

``api -> store -> catalog``: whoever lays something down waits until the store has committed it; the catalog
hears of it from the store alone, whoever wrote it, so there is one way in. The checks of persistent instances
hang on what the store says, and speak through a lease of their own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from rollbook.names import LeaseId
from rollbook_registry.catalog import PodsMarked
from rollbook_registry.catalog.definitions import Configured, Defined, Overridden
from rollbook_registry.catalog.leases import CHECKER_LEASES, Kind
from rollbook_registry.store import rulings as records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rollbook.model import EntryRef
    from rollbook_registry.book import Book
    from rollbook_registry.catalog import Event
    from rollbook_registry.catalog.definitions import Ruling
    from rollbook_registry.checks import Checker, Verdict
    from rollbook_registry.store.store import Change, Store

log = structlog.get_logger("rollbook.rulings")


class Rulebook:
    """What is laid down.

    Args:
        book: shows it.
        store: keeps it.
    """

    def __init__(self, book: Book, store: Store) -> None:
        self._book = book
        self._store = store
        self._checker: Checker | None = None
        self._lease = LeaseId(f"{CHECKER_LEASES}{book.catalog.ordinal}")
        self._errands: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Bring what the store holds into the book.

        Raises:
            CannotOpenError: naming the file and what to do.
        """
        await self._store.open(self._told)
        self._book.listeners.append(self._heard)

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

    async def close(self) -> None:
        """Finish what is under way."""
        await asyncio.gather(*self._errands, return_exceptions=True)
        await self._store.close()

    def judge(self, verdicts: Sequence[Verdict]) -> None:
        """Take verdicts about persistent instances into the book."""
        definitions = self._book.catalog.rulings.definitions
        entries = [
            msgspec.structs.replace(definitions[v.ref].entry, alive=v.alive)
            for v in verdicts
            if v.ref in definitions
        ]
        lease = self._book.catalog.lease(self._lease)
        if lease is None or lease.holder is not self:
            self._book.apply(
                lambda c, now: c.attach(self._lease, kind=Kind.CHECKER, term=0, holder=self, now=now)
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

    def _heard(self, event: Event) -> None:
        """Lift the overrides of pods that are gone for good: their names do not come back."""
        if not isinstance(event, PodsMarked):
            return
        fenced = {pod.uid for pod in event.pods if pod.fenced}
        gone = [Overridden(ref, None) for ref in self._book.catalog.rulings.overrides if ref.owner in fenced]
        if gone:
            errand = asyncio.ensure_future(self._lift(gone))
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)

    async def _lift(self, rulings: list[Overridden]) -> None:
        try:
            await self.lay_down(*rulings)
        except Exception as error:  # noqa: BLE001  # they do no harm where they are
            log.warning("overrides_of_gone_pods_stay", overrides=len(rulings), error=str(error))
