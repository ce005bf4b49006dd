"""Push: everybody who subscribed hears of every change, once, encoded once."""

from __future__ import annotations

from rollbook_registry.push.datagrams import Datagram, DatagramOutlet, Terms
from rollbook_registry.push.outlet import Offer, Outlet, Subscriber

__all__ = ["Datagram", "DatagramOutlet", "Offer", "Outlet", "Subscriber", "Terms"]
