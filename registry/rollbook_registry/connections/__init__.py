"""Connections: who is let in, and who takes too long. The census decides, connection and guard carry out.

:mod:`rollbook_registry.connections.udp` is what goes out without one.
"""

from rollbook_registry.connections.census import Census, Closing, Door, Limits, Refusal
from rollbook_registry.connections.connection import Connection
from rollbook_registry.connections.guard import Guard
from rollbook_registry.connections.plain import Head, Plain

__all__ = ["Census", "Closing", "Connection", "Door", "Guard", "Head", "Limits", "Plain", "Refusal"]
