"""The census: how many connections there are, of whom, and which of them have taken too long.

No I/O and no clock: it is told what connections do, and asked by one sweeper who is due. Of each kind of
patience all have the same amount, so those who wait for it stand in a queue by age: a look costs what is due
in it, and neither a request nor an idle connection costs a timer.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


class Door(enum.StrEnum):
    """Which port a connection came to."""

    HTTP = "http"
    SESSION = "session"


class Refusal(enum.StrEnum):
    """Why a connection is not let in."""

    REGISTRY_FULL = "registry_full"
    HTTP_FULL = "http_full"
    ADDRESS_FULL = "address_full"


class Closing(enum.StrEnum):
    """Why a connection is ended."""

    NEVER_ASKED = "never_asked"
    """It was opened, and nothing came."""
    SLOW_HEAD = "slow_head"
    """A request was begun, and its head not completed."""
    NOT_READING = "not_reading"
    """What was sent to it was not taken."""
    REFUSED = "refused"
    """It was not let in, and did not ask in time for anything that it could have been given all the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What connections may do; each is a setting.

    Attributes:
        connections: in all.
        sessions: those of them that plain HTTP cannot take away: it has the rest.
        per_address: of one client address; 0: as many as it likes.
        spare: beyond the limit, for those who are only told so, and for probes.
        request: seconds within which a request's head must be complete, from its first byte; and within
            which the first byte must come.
        write: seconds for which a client may leave what it was sent unread.
        refused: seconds that one which was not let in has to ask.
    """

    connections: int
    sessions: int
    per_address: int
    spare: int = 64
    request: float = 10.0
    write: float = 30.0
    refused: float = 1.0


@dataclasses.dataclass(slots=True)
class _Resident:
    door: Door
    address: str
    refused: bool


H = TypeVar("H", bound="Hashable")


class Census(Generic[H]):
    """All connections.

    Args:
        limits: what they may do.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._residents: dict[H, _Resident] = {}
        self._by_address: dict[str, int] = {}
        self.counts = dict.fromkeys(Door, 0)
        """Those that were let in: sessions, wherever they came in, and plain HTTP."""
        self.refused = 0
        """Those that are there only to be told that they were not let in."""
        # Each in order of age.
        self._fresh: dict[H, float] = {}
        self._heads: dict[H, float] = {}
        self._unread: dict[H, float] = {}
        self._turned_away: dict[H, float] = {}

    # --- coming and going ------------------------------------------------------------------------------

    def admit(self, who: H, *, door: Door, address: str, now: float) -> tuple[bool, Refusal | None]:
        """Count a connection that was made.

        Returns:
            Whether it may stay, and why not. One that may stay although there is a reason is to be told that
            reason, and has little time.
        """
        refusal = self._refusal(door, address)
        if refusal is not None and self.refused >= self.limits.spare:
            return False, refusal
        self._residents[who] = _Resident(door, address, refusal is not None)
        if refusal is None:
            self.counts[door] += 1
            self._by_address[address] = self._by_address.get(address, 0) + 1
            self._fresh[who] = now
        else:
            self.refused += 1
            self._turned_away[who] = now
        return True, refusal

    def _refusal(self, door: Door, address: str) -> Refusal | None:
        limits = self.limits
        if sum(self.counts.values()) >= limits.connections:
            return Refusal.REGISTRY_FULL
        if door is Door.HTTP and self.counts[Door.HTTP] >= limits.connections - limits.sessions:
            return Refusal.HTTP_FULL
        if limits.per_address and self._by_address.get(address, 0) >= limits.per_address:
            return Refusal.ADDRESS_FULL
        return None

    def is_session(self, who: H) -> None:
        """A connection that came in by the HTTP port has become a session."""
        resident = self._residents.get(who)
        if resident is not None and not resident.refused and resident.door is Door.HTTP:
            resident.door = Door.SESSION
            self.counts[Door.HTTP] -= 1
            self.counts[Door.SESSION] += 1

    def leave(self, who: H) -> None:
        """Count a connection no more."""
        resident = self._residents.pop(who, None)
        if resident is None:
            return
        for waiting in (self._fresh, self._heads, self._unread, self._turned_away):
            waiting.pop(who, None)
        if resident.refused:
            self.refused -= 1
            return
        self.counts[resident.door] -= 1
        left = self._by_address[resident.address] - 1
        if left:
            self._by_address[resident.address] = left
        else:
            del self._by_address[resident.address]

    # --- what they do ----------------------------------------------------------------------------------

    def began(self, who: H, now: float) -> None:
        """The first bytes of a request came."""
        self._fresh.pop(who, None)
        self._heads[who] = now

    def completed(self, who: H) -> None:
        """A request's head is complete."""
        self._fresh.pop(who, None)
        self._heads.pop(who, None)
        self._turned_away.pop(who, None)

    def left_unread(self, who: H, now: float) -> None:
        """A client does not take what it is sent."""
        self._unread[who] = now

    def took(self, who: H) -> None:
        """It has taken it."""
        self._unread.pop(who, None)

    def due(self, now: float) -> Iterator[tuple[H, Closing]]:
        """Yield whose patience with them is at its end, once each."""
        limits = self.limits
        for waiting, patience, why in (
            (self._fresh, limits.request, Closing.NEVER_ASKED),
            (self._heads, limits.request, Closing.SLOW_HEAD),
            (self._unread, limits.write, Closing.NOT_READING),
            (self._turned_away, limits.refused, Closing.REFUSED),
        ):
            while waiting:
                who = next(iter(waiting))
                if now - waiting[who] < patience:
                    break
                del waiting[who]
                yield who, why

    def __len__(self) -> int:
        return len(self._residents)
