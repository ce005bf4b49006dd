"""Reasons: why a replica is ready or not, why a peer was refused, why something was done; all by codes."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class Rank(IntEnum):
    """How much a replica's book is worth to others: a living book overrules any disk, a disk no disk."""

    EMPTY = 0
    """Starting, with nothing on its disk."""
    SAVED = 1
    """Starting, with a snapshot that nobody has seen yet."""
    PROVISIONAL = 2
    """Ready, but with a book from disk, or begun empty: publishers may still have to come back to it."""
    READY = 3
    """Ready, with a book that goes back to publishers without a break."""

    @property
    def serves(self) -> bool:
        """Whether a replica of this rank answers clients."""
        return self >= Rank.PROVISIONAL


class Why(StrEnum):
    """Why a replica is ready, or is not."""

    ALONE = "alone"
    """Ready: it is the only replica."""
    FROM_PEER = "from_peer"
    """Ready: it has the book of a peer that was."""
    FROM_DISK = "from_disk"
    """Ready: no ready peer was heard in time, so its own snapshot counts."""
    ALL_BOOKLESS = "all_bookless"
    """Ready: a majority is there, and none of it has a book: the first start."""
    SETTLED = "settled"
    """Ready: every publisher has had the time to come back to it."""
    LISTENING = "listening"
    """Not ready: it waits for a ready peer."""
    PULLING = "pulling"
    """Not ready: it is taking over the book of a ready peer."""
    NO_MAJORITY = "no_majority"
    """Not ready: it has no book, and too few peers are there to say that there is none."""
    WAITING_FOR_DISK = "waiting_for_disk"
    """Not ready: it has no book, but a peer has a snapshot and will soon be ready with it."""
    LEAVING = "leaving"
    """Not ready: it is about to end."""
    REPLACED = "replaced"
    """Not ready: another process has its ordinal."""


class Readiness(NamedTuple):
    """Whether a replica answers clients, and why or why not."""

    ready: bool
    why: Why


class Refused(StrEnum):
    """Why a peer's greeting was refused."""

    PROTO_TOO_OLD = "proto_too_old"
    PROTO_TOO_NEW = "proto_too_new"
    ORDINAL_TAKEN = "ordinal_taken"
    """A replica with this ordinal and another boot was heard a moment ago."""
    WRONG_ORDINAL = "wrong_ordinal"
    """It has our own ordinal, or greets under another than it is connected as."""


class Turn(StrEnum):
    """What happened in the cluster; logged and counted by this code."""

    PEER_FOUND = "peer_found"
    PEER_LOST = "peer_lost"
    PEER_LEFT = "peer_left"
    PEER_REBOOTED = "peer_rebooted"
    PEER_REFUSED = "peer_refused"
    REFUSED_BY_PEER = "refused_by_peer"
    ORPHANED = "orphaned"
    """An origin is lost: its leases are frozen."""
    ADOPTED = "adopted"
    """An origin is back, or its set was taken over anew: its leases are its own again."""
    HIDDEN = "hidden"
    """Orphans that nobody took up have left this replica's book."""
    HIDING_HELD_BACK = "hiding_held_back"
    """Orphans are past their time, but this is a minority and protection has no more budget."""
    CUT_OFF = "cut_off"
    """No majority has been there for a while: sessions are to look for another replica, once, and to come
    back if they find none. The others cannot see that these clients live."""
    PULLED_CHANGES = "pulled_changes"
    PULLED_ALL = "pulled_all"
    PULL_RETRIED = "pull_retried"
    PULL_GIVEN_UP = "pull_given_up"
    DIVERGED = "diverged"
    """A copy had its origin's position but not its content; it is pulled anew."""
    DIVERGED_VISIBLY = "diverged_visibly"
    """All positions and contents were equal, but what users see was not, twice in a row."""
    DISK_OVERRULED = "disk_overruled"
    """A lease restored from our disk had ended meanwhile, says a peer whose book lives."""
    BEAT_UNKNOWN = "beat_unknown"
    """A plain HTTP client's beat was passed on to us, and we don't know the instance."""
    READY = "ready"
