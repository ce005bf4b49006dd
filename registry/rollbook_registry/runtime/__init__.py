"""Runtime: what this process owes to Python rather than to the book: its collector, its loop."""

from rollbook_registry.runtime.collector import Collector
from rollbook_registry.runtime.plan import Plan
from rollbook_registry.runtime.watch import Watch

__all__ = ["Collector", "Plan", "Watch"]
