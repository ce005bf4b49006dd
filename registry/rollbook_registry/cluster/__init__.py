"""Cluster: how replicas keep one book (Distro). Pure: messages and time in, messages and commands out.

See ``docs/distro.md`` for the rules and their reasons.
"""

from __future__ import annotations

from rollbook_registry.cluster.distro import Distro
from rollbook_registry.cluster.outbox import Send, Told
from rollbook_registry.cluster.reasons import Rank, Readiness, Turn, Why
from rollbook_registry.cluster.starting import Saved
from rollbook_registry.cluster.timers import DistroTimings

__all__ = ["Distro", "DistroTimings", "Rank", "Readiness", "Saved", "Send", "Told", "Turn", "Why"]
