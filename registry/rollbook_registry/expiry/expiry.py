"""Expiry: who has been silent for too long, within what protection allows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollbook.names import LeaseId
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.expiry.protection import Protection
    from rollbook_registry.expiry.wheel import Wheel


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
        catalog, protection = self._catalog, self.protection
        again = protection.due(now)
        # Some beat, or were taken out, while they were kept.
        overdue = {lease: None for lease in again if catalog.overdue(lease, now)}
        for lease in self._wheel.advance(now):
            if catalog.overdue(lease, now):
                overdue[lease] = None
            else:
                catalog.expire(lease, now)
        if not overdue and not again:
            return
        judged = protection.judge(list(overdue), leases=catalog.speaking, now=now)
        for lease in judged.out:
            catalog.expire(lease, now)
        for lease in judged.kept:
            catalog.expire(lease, now, remove=False)
