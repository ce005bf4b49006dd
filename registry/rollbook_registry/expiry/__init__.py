"""Expiry: when to look at which lease again, and how many may go at once."""

from __future__ import annotations

from rollbook_registry.expiry.expiry import Expiry
from rollbook_registry.expiry.protection import Protected, Protection
from rollbook_registry.expiry.wheel import Wheel

__all__ = ["Expiry", "Protected", "Protection", "Wheel"]
