"""The catalog: leases hold entries, instances are their merge. Pure: no I/O, time comes in as an argument."""

from __future__ import annotations

from rollbook_registry.catalog.catalog import Catalog
from rollbook_registry.catalog.events import (
    Deadline,
    Event,
    Happened,
    LeaseChanged,
    PodsMarked,
    Reason,
    ServiceChanged,
    ServiceForgotten,
    Written,
)
from rollbook_registry.catalog.ledger import Timings
from rollbook_registry.catalog.quotas import Quotas
from rollbook_registry.catalog.replication import Replicated
from rollbook_registry.catalog.services import Service

__all__ = [
    "Catalog",
    "Deadline",
    "Event",
    "Happened",
    "LeaseChanged",
    "PodsMarked",
    "Quotas",
    "Reason",
    "Replicated",
    "Service",
    "ServiceChanged",
    "ServiceForgotten",
    "Timings",
    "Written",
]
