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
        self._confirmed = 0
        self.protection = protection

    def watch(self, lease: LeaseId, at: float) -> None:
        """Have a lease looked at once its deadline has come."""
        self._wheel.add(lease, at)

    def turn(self, now: float) -> None:
        """Look at everybody whose deadline has come."""
        catalog, protection = self._catalog, self.protection
        protection.confirm(catalog.confirmed - self._confirmed)
        self._confirmed = catalog.confirmed
        overdue = []
        for lease in self._wheel.advance(now):
            if catalog.overdue(lease, now):
                overdue.append(lease)
            else:
                catalog.expire(lease, now)
        again = protection.active and now >= protection.window_ends
        if not overdue and not again:
            return
        judged = protection.judge(overdue, leases=lambda: sum(1 for _ in catalog.own()), now=now)
        for lease in judged.out:
            catalog.expire(lease, now)
        for lease in judged.kept:
            catalog.expire(lease, now, remove=False)
            self._wheel.add(lease, protection.window_ends)
