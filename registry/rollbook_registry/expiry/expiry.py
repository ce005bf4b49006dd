"""Expiry: who has been silent for too long, within what protection allows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rollbook.names import LeaseId
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.expiry.protection import Protection
    from rollbook_registry.expiry.wheel import Wheel

SLICE: Final = 256
"""Entries that are looked at before others have their turn: a few milliseconds if all of them go."""


class Expiry:
    """What happens to the catalog as time passes.

    Args:
        catalog: the book.
        wheel: has the deadlines of its leases.
        protection: limits how many go at once.
    """

    def __init__(self, catalog: Catalog, wheel: Wheel[LeaseId], protection: Protection) -> None:
        self._catalog = catalog
        self._wheel = wheel
        self.protection = protection

    def watch(self, lease: LeaseId, at: float) -> None:
        """Have a lease looked at once its deadline has come."""
        self._wheel.add(lease, at)

    def turn(self, now: float) -> None:
        """Look at everybody whose deadline has come."""
        for _ in self.steps(now):
            pass

    def steps(self, now: float) -> Iterator[None]:
        """Look at everybody whose deadline has come; between two steps others may have their turn.

        Who is silent is found first, and then it is judged at one time for all who may go; whoever beats
        before that is carried out stays.
        """
        catalog, protection = self._catalog, self.protection
        again = protection.due(now)
        overdue: dict[LeaseId, None] = {}
        for leases in self._slices(again):
            # Some beat, or were taken out, while they were kept.
            overdue.update((lease, None) for lease in leases if catalog.overdue(lease, now))
            yield
        for leases in self._slices(self._wheel.advance(now)):
            overdue.update(dict.fromkeys(catalog.look(leases, now)))
            yield
        if not overdue and not again:
            return
        # Who has beaten since, while others had their turn, is none of those that protection counts.
        silent = catalog.look(overdue, now)
        judged = protection.judge(silent, leases=catalog.speaking, now=now)
        for leases in self._slices(judged.out):
            catalog.expire(leases, now)
            yield
        for leases in self._slices(judged.kept):
            catalog.expire(leases, now, remove=False)
            yield

    def _slices(self, leases: Iterable[LeaseId]) -> Iterator[list[LeaseId]]:
        """Divide leases so that not much more than :data:`SLICE` entries come together."""
        taken: list[LeaseId] = []
        size = 0
        for id_ in leases:
            lease = self._catalog.lease(id_)
            taken.append(id_)
            size += len(lease.entries) if lease is not None else 1
            if size >= SLICE:
                yield taken
                taken, size = [], 0
        if taken:
            yield taken
