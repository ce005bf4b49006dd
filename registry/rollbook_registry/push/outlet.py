"""The outlet: who subscribed to what, how far each has got, and the bytes that bring it further.

No I/O: a session asks for its next frames when it can write, and reports acknowledgements. What a subscriber
costs is bounded: two numbers a service. While a change is on its way to it, later ones are not queued; once
it has acknowledged, it gets all that has changed since in one delta (or, too far behind, the list).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rollbook import frames
from rollbook.digest import spell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rollbook.model import Instance
    from rollbook.names import InstanceKey, ServiceKey
    from rollbook_registry.catalog import Service, ServiceChanged

_NEVER = -1

_MAX_DIGITS = 18


class _Position:
    """How far a subscriber has got with one service."""

    __slots__ = ("acked", "changed_at", "pending_at", "sent")

    def __init__(self) -> None:
        self.sent = _NEVER
        self.acked = _NEVER
        self.changed_at: float | None = None
        """When the change that is on its way was made."""
        self.pending_at: float | None = None
        """When the first of those that wait behind it was made."""


class _Bytes(NamedTuple):
    number: int
    settled: bool
    by_base: dict[tuple[int, str], bytes]


class Subscriber:
    """One session's subscriptions.

    Args:
        codec: how its frames are spelled.
        wake: called when there is something for it; it then asks :meth:`Outlet.take`.
    """

    def __init__(self, codec: frames.Codec, wake: Callable[[], None]) -> None:
        self.codec = codec
        self.wake = wake
        self.positions: dict[ServiceKey, _Position] = {}
        self.dirty: dict[ServiceKey, None] = {}


class _Barrier:
    """Waits until some subscribers have acknowledged what they were behind with when it was put up."""

    def __init__(self, waiting: set[tuple[Subscriber, ServiceKey]], lift: Callable[[], None]) -> None:
        self.waiting = waiting
        self.lift = lift


class Outlet:
    """All subscriptions.

    Args:
        boot: names this life of the registry, in revisions.
        service: looks a service up.
        wall: Unix time in seconds.
        clock: monotonic seconds, for how long pushes take.
        pushed: told the seconds from a change to its acknowledgement, for each subscriber.
        conflated: told when changes are merged because a subscriber is behind.
        threshold: a service's protect threshold.
    """

    def __init__(
        self,
        *,
        boot: str,
        service: Callable[[ServiceKey], Service | None],
        wall: Callable[[], float],
        clock: Callable[[], float],
        pushed: Callable[[float], None],
        conflated: Callable[[], None],
        threshold: Callable[[ServiceKey], float | None] = lambda _: None,
    ) -> None:
        self._boot = boot
        self._service = service
        self._wall = wall
        self._clock = clock
        self._pushed = pushed
        self._conflated = conflated
        self._threshold = threshold
        self._followers: dict[ServiceKey, dict[Subscriber, None]] = {}
        self._cache: dict[ServiceKey, _Bytes] = {}
        self._changed_at: dict[ServiceKey, float] = {}
        self._barriers: dict[tuple[Subscriber, ServiceKey], dict[_Barrier, int]] = {}
        """Who holds which barriers up, and the number that it has to acknowledge."""
        self._unacknowledged: dict[tuple[Subscriber, ServiceKey], float] = {}
        """Since when an acknowledgement is missing; the oldest first."""
        self._watchers: dict[ServiceKey, dict[object, Callable[[], None]]] = {}
        self.settled = False
        self.subscriptions = 0

    def revision(self, number: int) -> str:
        """Spell a list's number as the revision that everybody outside sees."""
        return f"{self._boot}.{number}"

    def number(self, revision: str) -> int | None:
        """Read a revision of this life of this registry; ``None`` for any other."""
        boot, _, number = revision.rpartition(".")
        # Whoever made up a longer one can only be told the whole list.
        digits = number.isascii() and number.isdecimal() and len(number) <= _MAX_DIGITS
        return int(number) if boot == self._boot and digits else None

    # --- subscribers -----------------------------------------------------------------------------------

    def subscribe(self, subscriber: Subscriber, key: ServiceKey, *, revision: str, digest: str) -> None:
        """Have a session follow a service; what it says that it holds decides what it gets first."""
        position = subscriber.positions.get(key)
        if position is None:
            position = subscriber.positions[key] = _Position()
            self._followers.setdefault(key, {})[subscriber] = None
            self.subscriptions += 1
        service = self._service(key)
        actual, current = (service.digest, service.number) if service else (0, 0)
        held = self.number(revision) if revision else None
        if digest and digest == spell(actual):
            position.sent = position.acked = current
            self._unacknowledged.pop((subscriber, key), None)
            subscriber.dirty.pop(key, None)
            self._pass(subscriber, key, current)
        else:
            behind = held is not None and held != current and digest
            position.sent = position.acked = held if behind and held is not None else _NEVER
            subscriber.dirty[key] = None
        subscriber.wake()

    def current(self, key: ServiceKey, subscriber: Subscriber) -> frames.Current | None:
        """Return the answer to a subscription that holds the very list, else ``None``: it gets frames."""
        position = subscriber.positions.get(key)
        if position is None or key in subscriber.dirty:
            return None
        namespace, group, name = key
        service = self._service(key)
        return frames.Current(
            namespace=namespace,
            group=group,
            service=name,
            revision=self.revision(position.sent),
            settled=self.settled,
            digest=spell(service.digest if service else 0),
            protect_threshold=self._threshold(key),
        )

    def unsubscribe(self, subscriber: Subscriber, key: ServiceKey) -> None:
        """Have a session follow a service no more."""
        if subscriber.positions.pop(key, None) is None:
            return
        subscriber.dirty.pop(key, None)
        self._unacknowledged.pop((subscriber, key), None)
        followers = self._followers[key]
        del followers[subscriber]
        if not followers:
            del self._followers[key]
            self._cache.pop(key, None)
            self._changed_at.pop(key, None)
        self.subscriptions -= 1
        self._pass(subscriber, key, None)

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a session that has ended."""
        for key in list(subscriber.positions):
            self.unsubscribe(subscriber, key)

    def acknowledge(self, subscriber: Subscriber, key: ServiceKey, revision: str) -> None:
        """Take notice of how far a session has got."""
        position = subscriber.positions.get(key)
        number = self.number(revision)
        if position is None or number is None or number != position.sent:
            return
        position.acked = number
        self._unacknowledged.pop((subscriber, key), None)
        if position.changed_at is not None:
            self._pushed(self._clock() - position.changed_at)
            position.changed_at = None
        self._pass(subscriber, key, number)
        service = self._service(key)
        # A service that was let go as empty meanwhile is a change too: its list is number 0.
        if (service.number if service else 0) != number:
            subscriber.dirty[key] = None
            position.changed_at, position.pending_at = position.pending_at, None
            subscriber.wake()

    def unacknowledged(self, seconds: float) -> Iterator[tuple[Subscriber, ServiceKey, float]]:
        """Yield who has not acknowledged what was sent so long ago, which service, and when it was sent."""
        before = self._clock() - seconds
        for (subscriber, key), since in self._unacknowledged.items():
            if since > before:
                return
            yield subscriber, key, since

    # --- changes ---------------------------------------------------------------------------------------

    def changed(self, change: ServiceChanged) -> None:
        """Tell everybody who follows the service."""
        key = change.service
        for watcher in self._watchers.pop(key, {}).values():
            watcher()
        followers = self._followers.get(key)
        if not followers:
            self._changed_at.pop(key, None)
            return
        self._changed_at[key] = self._wall()
        now = self._clock()
        for subscriber in followers:
            position = subscriber.positions[key]
            if position.sent == position.acked:
                if key in subscriber.dirty:
                    self._conflated()
                else:
                    position.changed_at = now
                subscriber.dirty[key] = None
                subscriber.wake()
            else:
                self._conflated()
                if position.pending_at is None:
                    position.pending_at = now

    def settle(self) -> None:
        """Take notice that the book is settled: whoever waits for a list's change is told."""
        self.settled = True
        watchers, self._watchers = self._watchers, {}
        for waiting in watchers.values():
            for watcher in waiting.values():
                watcher()

    def watch(self, key: ServiceKey, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call a function at the next change of a service, once; returns one that calls it off."""
        watchers = self._watchers.setdefault(key, {})
        ticket = object()
        watchers[ticket] = watcher

        def call_off() -> None:
            watchers.pop(ticket, None)
            if not watchers and self._watchers.get(key) is watchers:
                del self._watchers[key]

        return call_off

    def take(self, subscriber: Subscriber) -> Iterator[bytes]:
        """Yield the frames that a session is to be sent now.

        It is lazy: each is made when the one before has been written, so that what changes in between is in.
        """
        while subscriber.dirty:
            key = next(iter(subscriber.dirty))
            del subscriber.dirty[key]
            position = subscriber.positions.get(key)
            if position is None:
                continue
            service = self._service(key)
            number = service.number if service else 0
            if position.sent == number:
                continue
            base = position.sent
            position.sent = number
            self._unacknowledged.setdefault((subscriber, key), self._clock())
            yield self._encoded(key, service, base, subscriber.codec)

    def _encoded(self, key: ServiceKey, service: Service | None, base: int, codec: frames.Codec) -> bytes:
        number = service.number if service else 0
        cached = self._cache.get(key)
        if cached is None or cached.number != number or cached.settled != self.settled:
            cached = self._cache[key] = _Bytes(number, self.settled, {})
        data = cached.by_base.get((base, codec.subprotocol))
        if data is None:
            since = service.since(base) if service and base != _NEVER else None
            if since is None and base != _NEVER:
                # From a list that is forgotten, or was made up: the same bytes as from none.
                return self._encoded(key, service, _NEVER, codec)
            frame = self._frame(key, service, base, since)
            data = cached.by_base[base, codec.subprotocol] = codec.encode(frame)
        return data

    def _frame(
        self,
        key: ServiceKey,
        service: Service | None,
        base: int,
        since: tuple[list[Instance], list[InstanceKey]] | None,
    ) -> frames.Snapshot | frames.Delta:
        namespace, group, name = key
        number, digest = (service.number, spell(service.digest)) if service else (0, spell(0))
        if since is None:
            return frames.Snapshot(
                namespace=namespace,
                group=group,
                service=name,
                revision=self.revision(number),
                digest=digest,
                settled=self.settled,
                instances=list(service.instances.values()) if service else [],
                protect_threshold=self._threshold(key),
            )
        return frames.Delta(
            namespace=namespace,
            group=group,
            service=name,
            base=self.revision(base),
            revision=self.revision(number),
            digest=digest,
            put=since[0],
            drop=since[1],
            at=self._changed_at.get(key, 0.0),
            protect_threshold=self._threshold(key),
        )

    # --- barriers --------------------------------------------------------------------------------------

    def barrier(self, keys: Iterable[ServiceKey], lift: Callable[[], None]) -> Callable[[], int]:
        """Call ``lift`` once every current subscriber of these services has all that changed so far.

        Returns:
            A function that takes the barrier away and says how many had not acknowledged.
        """
        waiting = {}
        for key in keys:
            service = self._service(key)
            number = service.number if service else 0
            for subscriber in self._followers.get(key, ()):
                if subscriber.positions[key].acked < number:
                    waiting[subscriber, key] = number
        barrier = _Barrier(set(waiting), lift)
        for holder, number in waiting.items():
            self._barriers.setdefault(holder, {})[barrier] = number
        if not waiting:
            lift()

        def remove() -> int:
            for holder in barrier.waiting:
                self._release(barrier, holder)
            return len(barrier.waiting)

        return remove

    def _release(self, barrier: _Barrier, holder: tuple[Subscriber, ServiceKey]) -> None:
        held = self._barriers[holder]
        del held[barrier]
        if not held:
            del self._barriers[holder]

    def _pass(self, subscriber: Subscriber, key: ServiceKey, number: int | None) -> None:
        holder = (subscriber, key)
        held = self._barriers.get(holder)
        for barrier, wanted in list(held.items()) if held else ():
            if number is None or number >= wanted:
                self._release(barrier, holder)
                barrier.waiting.discard(holder)
                if not barrier.waiting:
                    barrier.lift()
