"""Rollbook: a service registry for Kubernetes.

This package is the vocabulary that registry, sidecar and operator share, and the Python SDK::

    from rollbook import Client, Entry

Importing it is cheap: the SDK (and with it aiohttp) is only loaded when :class:`Client` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollbook.model import Entry, EntryRef, Instance
from rollbook.names import ServiceKey
from rollbook.patterns import Pattern
from rollbook.problems import Problem

if TYPE_CHECKING:
    from rollbook.client import Client, Matching, Subscription

__all__ = [
    "Client",
    "Entry",
    "EntryRef",
    "Instance",
    "Matching",
    "Pattern",
    "Problem",
    "ServiceKey",
    "Subscription",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in {"Client", "Matching", "Subscription"}:
        from rollbook import client  # noqa: PLC0415  # aiohttp costs 100 ms that most importers need not pay

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
