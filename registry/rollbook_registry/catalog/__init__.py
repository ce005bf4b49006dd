"""The catalog: leases hold entries, instances are their merge. Pure: no I/O, time comes in as an argument."""

from __future__ import annotations

from rollbook_registry.catalog.catalog import Catalog, Timings
from rollbook_registry.catalog.events import Event, History, LeaseChanged, Reason, ServiceChanged
from rollbook_registry.catalog.services import Service

__all__ = [
    "Catalog",
    "Event",
    "History",
    "LeaseChanged",
    "Reason",
    "Service",
    "ServiceChanged",
    "Timings",
]
