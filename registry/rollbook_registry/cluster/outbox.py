"""The outbox: what the core wants sent, and what it has to tell; nothing leaves it by itself."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rollbook_registry.cluster.membership import Membership
    from rollbook_registry.cluster.messages import AnyMessage
    from rollbook_registry.cluster.reasons import Turn

MAX_TOLD: Final = 1000
"""Turns that wait to be logged; beyond it the oldest are only counted."""


class Send(NamedTuple):
    """A message to be sent; encode it once for all of them."""

    to: tuple[int, ...]
    message: AnyMessage


class Told(NamedTuple):
    """Something happened: what, to which replica, and how many it was about."""

    turn: Turn
    ordinal: int
    number: int


class Outbox:
    """Messages and news, in order.

    Attributes:
        counts: how often each turn has happened.
    """

    def __init__(self, members: Membership) -> None:
        self._members = members
        self._sends: list[Send] = []
        self._told: deque[Told] = deque(maxlen=MAX_TOLD)
        self.counts: Counter[Turn] = Counter()

    def post(self, to: int, message: AnyMessage) -> None:
        """Send something to a peer, if there is a connection."""
        if self._members.peer(to).connected:
            self._sends.append(Send((to,), message))

    def send(self, message: AnyMessage) -> None:
        """Send something to all peers that have greeted."""
        peers = self._members.peers.values()
        to = tuple(p.ordinal for p in peers if p.connected and p.boot and not p.left)
        if to:
            self._sends.append(Send(to, message))

    def tell(self, turn: Turn, ordinal: int, number: int = 1) -> None:
        """Count something, and have it logged."""
        self.counts[turn] += 1
        self._told.append(Told(turn, ordinal, number))

    def take_sends(self) -> list[Send]:
        """Return the messages to be sent now."""
        taken, self._sends = self._sends, []
        return taken

    def take_told(self) -> list[Told]:
        """Return what has happened since the last call."""
        taken = list(self._told)
        self._told.clear()
        return taken
