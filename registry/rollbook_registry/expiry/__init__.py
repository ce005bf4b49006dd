"""Expiry: when to look at which lease again."""

from __future__ import annotations

from rollbook_registry.expiry.wheel import Wheel

__all__ = ["Wheel"]
