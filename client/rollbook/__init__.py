"""Rollbook: a service registry for Kubernetes.

This package is the vocabulary that registry, sidecar and operator share, and the Python SDK::

    from rollbook import Client, Entry

Importing it is cheap: the SDK (and with it aiohttp) is only loaded when :class:`Client` is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from rollbook.model import Entry, EntryRef, Instance, ServiceCount
from rollbook.names import ServiceKey
from rollbook.patterns import Pattern
from rollbook.problems import Problem

if TYPE_CHECKING:
    from rollbook.client import Client
    from rollbook.following import Update
    from rollbook.subscription import Matching, Selection, Subscription

__all__ = [
    "Client",
    "Entry",
    "EntryRef",
    "Instance",
    "Matching",
    "Pattern",
    "Problem",
    "Selection",
    "ServiceCount",
    "ServiceKey",
    "Subscription",
    "Update",
    "__version__",
]

__version__ = "0.1.0"


_LATER: Final = {
    "Client": "client",
    "Matching": "subscription",
    "Selection": "subscription",
    "Subscription": "subscription",
    "Update": "following",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # aiohttp costs 100 ms that most importers of the vocabulary need not pay.
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
