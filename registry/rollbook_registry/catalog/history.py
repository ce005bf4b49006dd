"""History: what has happened to a service, and why; bounded, in memory, oldest out first."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from rollbook.model import EntryRef
from rollbook_registry.catalog.events import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rollbook.names import InstanceKey, ServiceKey
    from rollbook_registry.catalog.events import Happened

PER_SERVICE: Final = 200
"""Events of one service that are remembered at most."""


class Past(msgspec.Struct, frozen=True, gc=False):
    """Something that has happened to an instance.

    Attributes:
        at: Unix time in seconds.
        number: the service's list as it was afterwards; the second part of its revision.
    """

    at: float
    ref: EntryRef
    reason: Reason
    lease: str
    number: int

    @property
    def key(self) -> InstanceKey:
        """The instance's key."""
        return self.ref.key


class History:
    """What has happened lately.

    Args:
        capacity: events in all; beyond it the oldest of all services are forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # Lists, though what goes is their first: an empty deque takes more room than a dozen events.
        self._by_service: dict[ServiceKey, list[Past]] = {}
        self._order: deque[ServiceKey] = deque()

    def note(self, event: Happened, *, at: float, number: int) -> None:
        """Remember an event."""
        events = self._by_service.get(event.service)
        if events is None:
            events = self._by_service[event.service] = []
        events.append(Past(at, event.ref, event.reason, event.lease, number))
        if len(events) > PER_SERVICE:
            # It takes over the place of its own oldest, so that a busy service pushes nobody else's out.
            del events[0]
        else:
            self._order.append(event.service)
        while len(self._order) > self._capacity:
            self._forget(self._order.popleft())

    def _forget(self, service: ServiceKey) -> None:
        events = self._by_service[service]
        del events[0]
        if not events:
            del self._by_service[service]

    def of(self, service: ServiceKey) -> Iterator[Past]:
        """What is remembered of a service, the newest first."""
        yield from reversed(self._by_service.get(service, ()))

    def __len__(self) -> int:
        return len(self._order)
