"""Events: what happens to a client, as those who :meth:`rollbook.Client.listen` hear it, in order.

They are enough for a metric of anything: connections and why they broke, changes of lists and how long they
were under way, entries that were confirmed or refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rollbook.frames import Done
    from rollbook.model import EntryRef
    from rollbook.names import ServiceKey
    from rollbook.patterns import Pattern
    from rollbook.problems import Problem
    from rollbook.view import Change


class Connected(NamedTuple):
    """A session stands.

    Attributes:
        url: with whom.
    """

    url: str


class Disconnected(NamedTuple):
    """The session that stood does not any more; the client goes on by itself.

    Attributes:
        url: with whom it was.
        reason: why it ended, for people.
    """

    url: str
    reason: str


class Unreachable(NamedTuple):
    """An attempt to connect failed; the client goes on by itself, with its next address.

    Attributes:
        url: what was tried.
        reason: why it failed, for people.
    """

    url: str
    reason: str


class ListChanged(NamedTuple):
    """A subscribed service's list is different now, or has come.

    Attributes:
        service: whose.
        change: what callers see of it.
        at: Unix time in seconds at which the registry made the change; 0 where it was no single one.
    """

    service: ServiceKey
    change: Change
    at: float


class Answered(NamedTuple):
    """A request with an id was carried out, or why it wasn't."""

    id: int
    done: Done | None
    problem: Problem | None


class Confirmed(NamedTuple):
    """The registry has these entries."""

    refs: tuple[EntryRef, ...]


class Rejected(NamedTuple):
    """The registry will not have this entry; it is not offered again until it is put anew."""

    ref: EntryRef
    problem: Problem


class Withdrawn(NamedTuple):
    """The registry has acknowledged that these entries are not this client's any more."""

    refs: tuple[EntryRef, ...]


class LeaseRefused(NamedTuple):
    """The registry will not hear this lease: an older epoch, or (410) a pod that is terminating or gone."""

    problem: Problem


class Ended(NamedTuple):
    """The lease had ended by silence; everything is being registered afresh under a higher term."""

    term: int


class NotListed(NamedTuple):
    """The registry will not let this service be followed (a limit, or a name that it does not take)."""

    service: ServiceKey
    problem: Problem


class Found(NamedTuple):
    """A service that matches a pattern is followed from now on; its list comes with :class:`ListChanged`.

    Told once, when it is first followed, for whatever reason; a pattern that comes later finds it among
    the views.
    """

    service: ServiceKey


class Lost(NamedTuple):
    """A service that only patterns followed is in the book no more, and followed no more."""

    service: ServiceKey


class PatternAnswered(NamedTuple):
    """All services that match at present are known by name; or why the pattern, or some, are not followed.

    A pattern that was refused is asked for again at the next connection, until it is unfollowed.
    """

    pattern: Pattern
    problem: Problem | None


class Rebooted(NamedTuple):
    """The registry is another one, or another life of the same."""

    boot: str


Event = (
    Connected
    | Disconnected
    | Unreachable
    | ListChanged
    | NotListed
    | Found
    | Lost
    | PatternAnswered
    | Answered
    | Confirmed
    | Rejected
    | Withdrawn
    | LeaseRefused
    | Ended
    | Rebooted
)
