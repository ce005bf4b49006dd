"""The outlet: who subscribed to what, how far each has got, and the bytes that bring it further.

No I/O: a session asks for its next frames when it can write, and reports acknowledgements. What a subscriber
costs is bounded: two numbers a service. While a change is on its way to it, later ones are not queued; once
it has acknowledged, it gets all that has changed since in one delta (or, too far behind, the list).

A subscriber may also follow a **pattern**: then every matching service is subscribed, when the pattern comes
or when the service does. That costs nothing where a service that is known changes, and where a new one comes,
a look at each pattern of its namespace.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rollbook import frames
from rollbook.digest import spell
from rollbook.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rollbook.model import Instance
    from rollbook.names import InstanceKey, ServiceKey
    from rollbook.patterns import Pattern
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


class Offer(NamedTuple):
    """A list that a subscriber says it holds."""

    revision: str = ""
    digest: str = ""


_NOTHING = Offer()


class _Bytes(NamedTuple):
    number: int
    settled: bool
    by_base: dict[tuple[int, str], bytes]


class Subscriber:
    """One session's subscriptions.

    Args:
        codec: how its frames are spelled.
        wake: called when there is something for it; it then asks :meth:`Outlet.take`.
        most: services that it may follow at once.
        most_patterns: patterns that it may follow at once.

    Attributes:
        positions: how far it has got, for each service that it follows.
        named: those of them that it follows by name; the others only patterns brought.
        patterns: the patterns that it follows.
        dirty: services that it is to be told of.
        vanished: services that it is to be told have vanished.
        omitted: services that match, came when it had reached its limit, and that it is to be told of.
    """

    def __init__(
        self,
        codec: frames.Codec,
        wake: Callable[[], None],
        *,
        most: float = math.inf,
        most_patterns: float = math.inf,
    ) -> None:
        self.codec = codec
        self.wake = wake
        self.most = most
        self.most_patterns = most_patterns
        self.positions: dict[ServiceKey, _Position] = {}
        self.named: set[ServiceKey] = set()
        self.patterns: dict[Pattern, None] = {}
        self.dirty: dict[ServiceKey, None] = {}
        self.vanished: dict[ServiceKey, None] = {}
        self.omitted: dict[ServiceKey, None] = {}

    def matches(self, key: ServiceKey) -> bool:
        """Say whether one of its patterns means a service."""
        return any(pattern.matches(key) for pattern in self.patterns)


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
        services: all services of a namespace.
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
        services: Callable[[str], Iterable[Service]],
        wall: Callable[[], float],
        clock: Callable[[], float],
        pushed: Callable[[float], None],
        conflated: Callable[[], None],
        threshold: Callable[[ServiceKey], float | None] = lambda _: None,
    ) -> None:
        self._boot = boot
        self._service = service
        self._services = services
        self._wall = wall
        self._clock = clock
        self._pushed = pushed
        self._conflated = conflated
        self._threshold = threshold
        self._followers: dict[ServiceKey, dict[Subscriber, None]] = {}
        self._patterns: dict[str, dict[Pattern, dict[Subscriber, None]]] = {}
        """By namespace: who follows which pattern."""
        self._cache: dict[ServiceKey, _Bytes] = {}
        self._changed_at: dict[ServiceKey, float] = {}
        self._barriers: dict[tuple[Subscriber, ServiceKey], dict[_Barrier, int]] = {}
        """Who holds which barriers up, and the number that it has to acknowledge."""
        self._unacknowledged: dict[tuple[Subscriber, ServiceKey], float] = {}
        """Since when an acknowledgement is missing; the oldest first."""
        self._watchers: dict[ServiceKey, dict[object, Callable[[], None]]] = {}
        self.settled = False
        self.subscriptions = 0
        self.patterns = 0

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
        """Have a session follow a service; what it says that it holds decides what it gets first.

        Raises:
            Problem: 429 ``limit_reached``.
        """
        if key not in subscriber.positions and len(subscriber.positions) >= subscriber.most:
            raise _full(subscriber, f"{key} is not followed")
        subscriber.named.add(key)
        self._take_up(subscriber, key, Offer(revision, digest))

    def compare(self, subscriber: Subscriber, key: ServiceKey, *, revision: str, digest: str) -> None:
        """As :meth:`subscribe`, of a service that a pattern brought; it becomes no wish of its own.

        If it is not followed any more, the session is told that it has vanished.
        """
        if key in subscriber.positions:
            self._take_up(subscriber, key, Offer(revision, digest))
        else:
            subscriber.vanished[key] = None
            subscriber.wake()

    def _take_up(self, subscriber: Subscriber, key: ServiceKey, offer: Offer) -> None:
        position = subscriber.positions.get(key)
        if position is None:
            position = subscriber.positions[key] = _Position()
            self._followers.setdefault(key, {})[subscriber] = None
            self.subscriptions += 1
            subscriber.vanished.pop(key, None)
            subscriber.omitted.pop(key, None)
        revision, digest = offer
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

    def follow(
        self, subscriber: Subscriber, pattern: Pattern, held: Mapping[ServiceKey, Offer]
    ) -> tuple[list[ServiceKey], Problem | None]:
        """Have a session follow every service that matches, now or later.

        Where more match than it may follow, it gets what it held first and the others by name: a session
        that comes back must not lose its lists because there are more services now.

        Args:
            subscriber: the session.
            pattern: which services.
            held: lists that it has by this pattern, of services that match; they are followed even if they
                are not there, so that their emptiness is told as that of any other.

        Returns:
            Those of now that it follows, and why there are others that it doesn't.

        Raises:
            Problem: 429 ``limit_reached``: it follows too many patterns, and this is none of them.
        """
        if pattern not in subscriber.patterns:
            if len(subscriber.patterns) >= subscriber.most_patterns:
                raise Problem(
                    "limit_reached",
                    f"a session may follow at most {subscriber.most_patterns} patterns (--max-patterns)",
                )
            subscriber.patterns[pattern] = None
            self._patterns.setdefault(pattern.namespace, {}).setdefault(pattern, {})[subscriber] = None
            self.patterns += 1
        # A service that nobody has entered yet, but only laid settings down for, has no list to follow.
        there = sorted(
            s.key for s in self._services(pattern.namespace) if s.number and pattern.matches(s.key)
        )
        omitted = 0
        for key in dict.fromkeys((*held, *there)):
            if key not in subscriber.positions and len(subscriber.positions) >= subscriber.most:
                omitted += 1
                if key in held:
                    subscriber.omitted[key] = None
            elif key in held or key not in subscriber.positions:
                self._take_up(subscriber, key, held.get(key, _NOTHING))
                self._let_go(subscriber, key)
        problem = _full(subscriber, f"{pattern} matches {omitted} more services") if omitted else None
        return [key for key in there if key in subscriber.positions], problem

    def unfollow(self, subscriber: Subscriber, pattern: Pattern) -> None:
        """Have a session follow a pattern no more; what it follows for another reason stays."""
        if pattern not in subscriber.patterns:
            return
        self._forget_pattern(subscriber, pattern)
        for key in list(subscriber.positions):
            if key not in subscriber.named and pattern.matches(key) and not subscriber.matches(key):
                self._leave(subscriber, key)

    def _forget_pattern(self, subscriber: Subscriber, pattern: Pattern) -> None:
        del subscriber.patterns[pattern]
        self.patterns -= 1
        within = self._patterns[pattern.namespace]
        followers = within[pattern]
        del followers[subscriber]
        if not followers:
            del within[pattern]
        if not within:
            del self._patterns[pattern.namespace]

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
        """Have a session follow a service by name no more; a pattern that matches goes on following it."""
        subscriber.named.discard(key)
        if key not in subscriber.positions:
            return
        if subscriber.matches(key):
            self._let_go(subscriber, key)
        else:
            self._leave(subscriber, key)

    def _leave(self, subscriber: Subscriber, key: ServiceKey) -> None:
        del subscriber.positions[key]
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
        for pattern in list(subscriber.patterns):
            self._forget_pattern(subscriber, pattern)
        for key in list(subscriber.positions):
            self._leave(subscriber, key)
        subscriber.named.clear()

    def _let_go(self, subscriber: Subscriber, key: ServiceKey) -> None:
        """Tell a session of a service that has vanished, if only a pattern had it followed.

        Not before it knows that the list is empty: barriers wait for that. Nor before the book is settled:
        until then an absence proves nothing.
        """
        position = subscriber.positions[key]
        followed = key in subscriber.named or self._service(key) is not None or not self.settled
        if followed or key in subscriber.dirty or position.sent != position.acked:
            return
        self._leave(subscriber, key)
        subscriber.vanished[key] = None
        subscriber.wake()

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
        elif service is None:
            self._let_go(subscriber, key)

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
        now = self._clock()
        followers = self._followers.get(key)
        if followers:
            self._changed_at[key] = self._wall()
            self._mark(key, followers, now)
        else:
            self._changed_at.pop(key, None)
        if not change.base:
            self._welcome(key, now)

    def _mark(self, key: ServiceKey, followers: Iterable[Subscriber], now: float) -> None:
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

    def _welcome(self, key: ServiceKey, now: float) -> None:
        """Have a service that is new followed by whoever follows a pattern that it matches."""
        for pattern, subscribers in self._patterns.get(key.namespace, {}).items():
            if pattern.matches(key):
                for subscriber in subscribers:
                    if key in subscriber.positions:
                        continue
                    if len(subscriber.positions) >= subscriber.most:
                        subscriber.omitted[key] = None
                        subscriber.wake()
                        continue
                    self._take_up(subscriber, key, _NOTHING)
                    subscriber.positions[key].changed_at = now

    def forgotten(self, key: ServiceKey) -> None:
        """Take notice that a service that was empty is in the book no more."""
        for subscriber in list(self._followers.get(key, ())):
            self._let_go(subscriber, key)

    def settle(self) -> None:
        """Take notice that the book is settled: whoever waits for a list's change is told."""
        self.settled = True
        for key in [k for k in self._followers if self._service(k) is None]:
            self.forgotten(key)
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
        while subscriber.dirty or subscriber.vanished or subscriber.omitted:
            if not subscriber.dirty:
                yield subscriber.codec.encode(_farewell(subscriber))
                continue
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


def _full(subscriber: Subscriber, what: str) -> Problem:
    return Problem(
        "limit_reached",
        f"{what}: a session may hold at most {subscriber.most} subscriptions (--max-subscriptions)",
    )


def _farewell(subscriber: Subscriber) -> frames.Vanished | frames.Omitted:
    """Return the next frame about a service that the session does not follow, or not any more."""
    if subscriber.vanished:
        key = next(iter(subscriber.vanished))
        del subscriber.vanished[key]
        return frames.Vanished(namespace=key.namespace, group=key.group, service=key.name)
    key = next(iter(subscriber.omitted))
    del subscriber.omitted[key]
    problem = _full(subscriber, f"{key} matches a pattern, but is not followed")
    return frames.Omitted(
        namespace=key.namespace, group=key.group, service=key.name, problem=problem.details()
    )
