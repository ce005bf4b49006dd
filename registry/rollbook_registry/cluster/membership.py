"""Membership: which replicas are there, as far as this one can tell. Pure; time comes in.

A peer is *heard* if a ping came within ``lost_after``; it is *linked* if it hears us too. One that we have no
link with is still *alive* if a linked peer has one with it: then only our line to it is cut, its writes reach
us through that peer, and nothing of it may be given up. Only one such step is believed, or two replicas could
keep a dead one alive by each other's word.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rollbook_registry.cluster.reasons import Rank

if TYPE_CHECKING:
    from rollbook_registry.cluster.messages import Ping, Position
    from rollbook_registry.cluster.reasons import Refused


class Peer:
    """Another replica.

    Attributes:
        boot: of the life that is known; empty before its first greeting.
        connected: whether there is a connection to send on.
        knows_us: whether its last ping named our boot.
        rank: what its book is worth.
        hears: whom it hears.
        links: who of those hears it.
        streams: how far it has each origin's writes.
        pods: its digest over closed and fenced pods.
        pods_differ: since when that is another than ours; ``None`` while it isn't.
        left: it has said that it is about to end.
        refused: why its greeting was refused, if it was.
        present: whether it was alive at the last look.
        odd_rounds: digest rounds in a row in which it showed another book for the same content.
    """

    __slots__ = (
        "boot",
        "connected",
        "heard",
        "hears",
        "knows_us",
        "left",
        "links",
        "odd_rounds",
        "ordinal",
        "pods",
        "pods_differ",
        "present",
        "rank",
        "refused",
        "streams",
    )

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.connected = False
        self.refused: Refused | None = None
        self.present = False
        self.begin("")

    def begin(self, boot: str) -> None:
        """A life of it begins; nothing is known about it yet."""
        self.boot = boot
        self.heard = -math.inf
        self.hears: frozenset[int] = frozenset()
        self.links: frozenset[int] = frozenset()
        self.streams: dict[int, Position] = {}
        self.rank = Rank.EMPTY
        self.knows_us = False
        self.pods = 0
        self.pods_differ: float | None = None
        self.left = False
        self.odd_rounds = 0

    def pinged(self, ping: Ping, now: float) -> None:
        """It said that it is there, and where it stands."""
        self.heard = now
        self.rank = ping.rank
        self.hears = frozenset(ping.hears)
        self.links = frozenset(ping.links)
        self.streams = dict(ping.streams)
        self.pods = ping.pods


class Membership:
    """Who is there.

    Args:
        ordinal: which replica this is.
        members: ordinals of all replicas that there should be, this one among them.
        lost_after: seconds of silence.
    """

    def __init__(self, *, ordinal: int, members: frozenset[int], lost_after: float) -> None:
        self.ordinal = ordinal
        self.members = members | {ordinal}
        self.lost_after = lost_after
        self.peers: dict[int, Peer] = {o: Peer(o) for o in sorted(self.members - {ordinal})}

    def peer(self, ordinal: int) -> Peer:
        """Return a peer; one that was not configured is learnt when it connects, as when scaling up."""
        known = self.peers.get(ordinal)
        if known is None:
            known = self.peers[ordinal] = Peer(ordinal)
        return known

    def hears(self, ordinal: int, now: float) -> bool:
        """Whether a peer is heard directly."""
        peer = self.peers.get(ordinal)
        return peer is not None and not peer.left and now - peer.heard < self.lost_after

    def linked(self, ordinal: int, now: float) -> bool:
        """Whether a peer is heard directly, and hears us."""
        return self.hears(ordinal, now) and self.ordinal in self.peers[ordinal].hears

    def links(self, now: float) -> list[int]:
        """All linked peers."""
        return [o for o in self.peers if self.linked(o, now)]

    def vouchers(self, ordinal: int, now: float) -> list[Peer]:
        """Linked peers that have a link with another one."""
        return [self.peers[o] for o in self.links(now) if ordinal in self.peers[o].links]

    def alive(self, now: float) -> set[int]:
        """All that are there: this one, its links, and theirs."""
        alive = {self.ordinal}
        for ordinal in self.links(now):
            alive.add(ordinal)
            alive |= self.peers[ordinal].links
        return {o for o in alive if o == self.ordinal or not self.peer(o).left}

    def serving(self, now: float) -> set[int]:
        """Replicas that are there with a book, this one in any case."""
        return {
            o
            for o in self.alive(now)
            # Of those that only others hear it is not known; most of the time they have one.
            if o == self.ordinal or self.peer(o).rank.serves or not self.hears(o, now)
        }

    def is_majority(self, replicas: set[int]) -> bool:
        """Whether these are more than half of all that there should be."""
        return 2 * len(replicas & self.members) > len(self.members)

    def way_to(self, ordinal: int, now: float) -> int | None:
        """Return the peer to send something for a replica to: itself, or one that has a link with it."""
        if self.linked(ordinal, now):
            return ordinal
        return next((p.ordinal for p in self.vouchers(ordinal, now)), None)
