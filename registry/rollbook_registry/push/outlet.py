"""The outlet: who subscribed to what, how far each has got, and the bytes that bring it further.

No I/O: what is due is handed to the subscribers in slices (:meth:`Outlet.flush`), as whoever runs it has time
for. What a subscriber costs is bounded: two numbers a service. While a change is on its way to it, later ones
are not queued; once it has acknowledged, it gets all that has changed since in one delta (or, too far behind,
the list). One that takes no more for now is left alone until it does.

A change costs nothing when it is made but to note which service it was, so a publisher never waits for those
who follow; they are told afterwards, and of all that has changed by then. What has to be told to one
subscriber alone, as the first list, is noted by subscriber.

A subscriber may also follow a **pattern**: then every matching service is subscribed, when the pattern comes
or when the service does. That costs nothing where a service that is known changes, and where a new one comes,
a look at each pattern of its namespace.
"""

from __future__ import annotations

import enum
import math
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

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


class Spelling(Protocol):
    """How frames become bytes. Subscribers with the same spelling share them."""

    @property
    def encode(self) -> Callable[[frames.Answer], bytes]:
        """Spell a frame."""

    @property
    def subprotocol(self) -> str:
        """Tell spellings apart."""


class Offer(NamedTuple):
    """A list that a subscriber says it holds."""

    revision: str = ""
    digest: str = ""


_NOTHING = Offer()


class Subscriber:
    """One who follows services; whoever carries bytes to it makes a class of its own with :meth:`send`.

    Args:
        spelling: of its frames.
        most: services that it may follow at once.
        most_patterns: patterns that it may follow at once.

    Attributes:
        blocked: whether it takes nothing for now. Who lifts this says so: :meth:`Outlet.unblocked`.
        subscriptions: how far it has got, for each service that it follows.
        patterns: the patterns that it follows.
        crowded: whether there may be services that match, but are not followed for want of room.
    """

    __slots__ = ("blocked", "crowded", "most", "most_patterns", "patterns", "spelling", "subscriptions")

    def __init__(
        self, spelling: Spelling, *, most: float = math.inf, most_patterns: float = math.inf
    ) -> None:
        self.spelling = spelling
        self.most = most
        self.most_patterns = most_patterns
        self.blocked = False
        self.subscriptions: dict[ServiceKey, _Subscription] = {}
        self.patterns: tuple[Pattern, ...] = ()
        self.crowded = False

    def send(self, data: bytes) -> None:
        """Carry a frame to it. Called only while it is not blocked; it may be afterwards."""
        raise NotImplementedError

    def matches(self, key: ServiceKey) -> bool:
        """Say whether one of its patterns means a service."""
        return any(pattern.matches(key) for pattern in self.patterns)


class _Topic:
    """A service that somebody follows, and the bytes that tell of its list as it is now.

    Attributes:
        followers: in the order in which they came.
        at: Unix time of the last change.
    """

    __slots__ = ("_number", "_settled", "at", "by_base", "followers", "key")

    def __init__(self, key: ServiceKey) -> None:
        self.key = key
        self.followers: dict[_Subscription, None] = {}
        self.at = 0.0
        self.by_base: dict[tuple[int, str], bytes] = {}
        """By the number that they lead from, and the spelling."""
        self._number = _NEVER
        self._settled = False

    def cache(self, number: int, *, settled: bool) -> dict[tuple[int, str], bytes]:
        """Return the bytes that lead to a number; those that lead to any other are forgotten."""
        if number != self._number or settled != self._settled:
            self._number, self._settled = number, settled
            self.by_base = {}
        return self.by_base


class _Subscription:
    """How far a subscriber has got with one service.

    Attributes:
        named: whether it follows the service by name; otherwise only a pattern brought it.
        sent: the number of the list that it was sent last.
        acked: the one that it has said it has; while they differ, something is on its way.
        changed_at: when the change that is on its way, or is to be sent next, was made.
        pending_at: when the first of those that wait behind it was made.
        left: whether it is over.
    """

    __slots__ = ("acked", "changed_at", "left", "named", "pending_at", "sent", "subscriber", "topic")

    def __init__(self, subscriber: Subscriber, topic: _Topic) -> None:
        self.subscriber = subscriber
        self.topic = topic
        self.named = False
        self.left = False
        self.sent = _NEVER
        self.acked = _NEVER
        self.changed_at: float | None = None
        self.pending_at: float | None = None


class _Walk(NamedTuple):
    """A change that is being told, when it was made, and who is still to hear of it."""

    topic: _Topic
    at: float
    followers: Iterator[_Subscription]


class _News(enum.Enum):
    """What one subscriber is to be told of a service."""

    LIST = enum.auto()
    """How it gets from what it has to the list."""
    VANISHED = enum.auto()
    """That only a pattern had it followed, and it is in the book no more."""
    OMITTED = enum.auto()
    """That it matches, but is not followed."""


class _Barrier:
    """Waits until some subscribers have acknowledged what they were behind with when it was put up."""

    __slots__ = ("lift", "waiting")

    def __init__(self, waiting: set[_Subscription], lift: Callable[[], None]) -> None:
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
        conflated: told for how many subscribers a change was merged into a later one, as they are behind.
        threshold: a service's protect threshold.

    Attributes:
        wake: called when something is due, once until :meth:`flush` is; not from within anything that it
            could disturb, so it had better only note it.
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
        conflated: Callable[[int], None],
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
        self.wake: Callable[[], None] = lambda: None
        self._due = False
        self._topics: dict[ServiceKey, _Topic] = {}
        self._changed: dict[_Topic, float] = {}
        """What has changed and is to be told, and when its first change was made."""
        self._walk: _Walk | None = None
        self._news: dict[Subscriber, dict[ServiceKey, _News]] = {}
        self._ready: dict[Subscriber, None] = {}
        """Those who have news, and are not blocked."""
        self._patterns: dict[str, dict[Pattern, dict[Subscriber, None]]] = {}
        """By namespace: who follows which pattern."""
        self._barriers: dict[_Subscription, dict[_Barrier, int]] = {}
        """Who holds which barriers up, and the number that it has to acknowledge."""
        self._unacknowledged: dict[_Subscription, float] = {}
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
        if key not in subscriber.subscriptions and len(subscriber.subscriptions) >= subscriber.most:
            raise _full(subscriber, f"{key} is not followed")
        self._take_up(subscriber, key, Offer(revision, digest)).named = True

    def compare(self, subscriber: Subscriber, key: ServiceKey, *, revision: str, digest: str) -> None:
        """As :meth:`subscribe`, of a service that a pattern brought; it becomes no wish of its own.

        If it is not followed any more, the session is told that it has vanished.

        Raises:
            Problem: 429 ``limit_reached``: too much is to be told already.
        """
        if key in subscriber.subscriptions:
            self._take_up(subscriber, key, Offer(revision, digest))
        elif len(self._news.get(subscriber, ())) >= subscriber.most:
            # Whoever asks for names that it makes up, and does not read, is told so, and soon read no more.
            raise _full(subscriber, f"{key} is not followed")
        else:
            self._note(subscriber, key, _News.VANISHED)

    def _take_up(self, subscriber: Subscriber, key: ServiceKey, offer: Offer) -> _Subscription:
        subscription = subscriber.subscriptions.get(key)
        if subscription is None:
            topic = self._topics.get(key)
            if topic is None:
                topic = self._topics[key] = _Topic(key)
            subscription = subscriber.subscriptions[key] = _Subscription(subscriber, topic)
            topic.followers[subscription] = None
            self.subscriptions += 1
            # That it had vanished, or was not followed, is not worth telling any more.
            self._settle(subscriber, key)
        revision, digest = offer
        service = self._service(key)
        actual, current = (service.digest, service.number) if service else (0, 0)
        held = self.number(revision) if revision else None
        # Whatever was on its way is superseded, and so is its age.
        self._unacknowledged.pop(subscription, None)
        subscription.changed_at = subscription.pending_at = None
        if digest and digest == spell(actual):
            subscription.sent = subscription.acked = current
            self._settle(subscriber, key)
            self._pass(subscription, current)
        else:
            behind = held is not None and held != current and digest
            subscription.sent = subscription.acked = held if behind and held is not None else _NEVER
            self._note(subscriber, key, _News.LIST)
        return subscription

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
            subscriber.patterns = (*subscriber.patterns, pattern)
            self._patterns.setdefault(pattern.namespace, {}).setdefault(pattern, {})[subscriber] = None
            self.patterns += 1
        there = self._matching(pattern)
        omitted = 0
        for key in dict.fromkeys((*held, *there)):
            if key not in subscriber.subscriptions and len(subscriber.subscriptions) >= subscriber.most:
                omitted += 1
                subscriber.crowded = True
                if key in held:
                    self._note(subscriber, key, _News.OMITTED)
            elif key in held or key not in subscriber.subscriptions:
                self._let_go(self._take_up(subscriber, key, held.get(key, _NOTHING)))
        problem = _full(subscriber, f"{pattern} matches {omitted} more services") if omitted else None
        return [key for key in there if key in subscriber.subscriptions], problem

    def _matching(self, pattern: Pattern) -> list[ServiceKey]:
        # A service that nobody has entered yet, but only laid settings down for, has no list to follow.
        return sorted(s.key for s in self._services(pattern.namespace) if s.number and pattern.matches(s.key))

    def _fill(self, subscriber: Subscriber) -> None:
        """Have a session follow what it had no room for, as far as it has now."""
        if not subscriber.crowded:
            return
        for pattern in subscriber.patterns:
            for key in self._matching(pattern):
                if len(subscriber.subscriptions) >= subscriber.most:
                    return
                if key not in subscriber.subscriptions:
                    self._take_up(subscriber, key, _NOTHING)
        subscriber.crowded = False

    def unfollow(self, subscriber: Subscriber, pattern: Pattern) -> None:
        """Have a session follow a pattern no more; what it follows for another reason stays."""
        if pattern not in subscriber.patterns:
            return
        self._forget_pattern(subscriber, pattern)
        for key, subscription in list(subscriber.subscriptions.items()):
            if not subscription.named and pattern.matches(key) and not subscriber.matches(key):
                self._leave(subscription)
        self._fill(subscriber)

    def _forget_pattern(self, subscriber: Subscriber, pattern: Pattern) -> None:
        subscriber.patterns = tuple(p for p in subscriber.patterns if p != pattern)
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
        subscription = subscriber.subscriptions.get(key)
        service = self._service(key)
        if subscription is None or subscription.sent != (service.number if service else 0):
            return None
        namespace, group, name = key
        return frames.Current(
            namespace=namespace,
            group=group,
            service=name,
            revision=self.revision(subscription.sent),
            settled=self.settled,
            digest=spell(service.digest if service else 0),
            protect_threshold=self._threshold(key),
        )

    def unsubscribe(self, subscriber: Subscriber, key: ServiceKey) -> None:
        """Have a session follow a service by name no more; a pattern that matches goes on following it."""
        subscription = subscriber.subscriptions.get(key)
        if subscription is None:
            return
        subscription.named = False
        if subscriber.matches(key):
            self._let_go(subscription)
        else:
            self._leave(subscription)
        self._fill(subscriber)

    def _leave(self, subscription: _Subscription) -> None:
        subscriber, topic = subscription.subscriber, subscription.topic
        subscription.left = True
        del subscriber.subscriptions[topic.key]
        self._settle(subscriber, topic.key)
        self._unacknowledged.pop(subscription, None)
        del topic.followers[subscription]
        if not topic.followers:
            del self._topics[topic.key]
            self._changed.pop(topic, None)
        self.subscriptions -= 1
        self._pass(subscription, None)

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a session that has ended."""
        for pattern in subscriber.patterns:
            self._forget_pattern(subscriber, pattern)
        for subscription in list(subscriber.subscriptions.values()):
            self._leave(subscription)
        self._news.pop(subscriber, None)

    def _let_go(self, subscription: _Subscription) -> None:
        """Tell a session of a service that has vanished, if only a pattern had it followed.

        Not before it knows that the list is empty: barriers wait for that. Nor before the book is settled:
        until then an absence proves nothing.
        """
        subscriber, key = subscription.subscriber, subscription.topic.key
        followed = subscription.named or self._service(key) is not None or not self.settled
        if followed or key in self._news.get(subscriber, ()) or subscription.sent != subscription.acked:
            return
        self._leave(subscription)
        self._note(subscriber, key, _News.VANISHED)

    def acknowledge(self, subscriber: Subscriber, key: ServiceKey, revision: str) -> None:
        """Take notice of how far a session has got.

        Raises:
            Problem: as :meth:`compare`.
        """
        subscription = subscriber.subscriptions.get(key)
        if subscription is None:
            # On its way when the pattern that brought it was given up; now another means it, and it is gone.
            if subscriber.matches(key):
                self.compare(subscriber, key, revision=revision, digest="")
            return
        number = self.number(revision)
        if number is None or number != subscription.sent:
            return
        subscription.acked = number
        self._unacknowledged.pop(subscription, None)
        if subscription.changed_at is not None:
            self._pushed(self._clock() - subscription.changed_at)
            subscription.changed_at = None
        if self._barriers:
            self._pass(subscription, number)
        service = self._service(key)
        # A service that was let go as empty meanwhile is a change too: its list is number 0.
        if (service.number if service else 0) != number:
            # Or the change has not been told at all yet.
            since = self._changed.get(subscription.topic)
            subscription.changed_at = since if subscription.pending_at is None else subscription.pending_at
            subscription.pending_at = None
            self._note(subscriber, key, _News.LIST)
        elif service is None:
            self._let_go(subscription)
            self._fill(subscriber)

    def unacknowledged(self, seconds: float) -> Iterator[tuple[Subscriber, ServiceKey, float]]:
        """Yield who has not acknowledged what was sent so long ago, which service, and when it was sent."""
        before = self._clock() - seconds
        for subscription, since in self._unacknowledged.items():
            if since > before:
                return
            yield subscription.subscriber, subscription.topic.key, since

    # --- changes ---------------------------------------------------------------------------------------

    def changed(self, change: ServiceChanged) -> None:
        """Take notice of a change: whoever follows the service is told at the next :meth:`flush`."""
        key = change.service
        for watcher in self._watchers.pop(key, {}).values():
            watcher()
        topic = self._topics.get(key)
        if topic is not None:
            topic.at = self._wall()
            self._changed.setdefault(topic, self._clock())
            self._wake()
        if not change.base:
            self._welcome(key)

    def _welcome(self, key: ServiceKey) -> None:
        """Have a service that is new followed by whoever follows a pattern that it matches."""
        for pattern, subscribers in self._patterns.get(key.namespace, {}).items():
            if pattern.matches(key):
                for subscriber in subscribers:
                    if key in subscriber.subscriptions:
                        continue
                    if len(subscriber.subscriptions) >= subscriber.most:
                        subscriber.crowded = True
                        self._note(subscriber, key, _News.OMITTED)
                        continue
                    self._take_up(subscriber, key, _NOTHING).changed_at = self._clock()

    def forgotten(self, key: ServiceKey) -> None:
        """Take notice that a service that was empty is in the book no more."""
        topic = self._topics.get(key)
        if topic is None:
            return
        # That it became empty may not have been told yet, and has to be before anybody is let go.
        walked = self._walk is not None and self._walk.topic is topic
        if topic in self._changed or walked:
            self._tell(topic, self._changed.pop(topic, self._clock()), topic.followers)
        for subscription in list(topic.followers):
            self._let_go(subscription)
            self._fill(subscription.subscriber)

    def settle(self) -> None:
        """Take notice that the book is settled: whoever waits for a list's change is told."""
        self.settled = True
        for key in [k for k in self._topics if self._service(k) is None]:
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

    # --- telling ---------------------------------------------------------------------------------------

    def flush(self, most: int) -> None:
        """Tell what is due: at most so many pieces of news, then changes to at most so many.

        If that was not all, :attr:`wake` is called again; so it is if one of them fails, and the next time
        goes on behind it.
        """
        self._due = False
        try:
            self._flush_news(most)
            self._flush_changes(most)
        finally:
            if self._ready or self._walk or self._changed:
                self._wake()

    def _flush_news(self, most: int) -> None:
        left = most
        while left > 0 and self._ready:
            subscriber = next(iter(self._ready))
            del self._ready[subscriber]
            pieces = 0
            try:
                while pieces < left and not subscriber.blocked and subscriber in self._news:
                    pieces += 1
                    data = self._next_news(subscriber)
                    if data is not None:
                        subscriber.send(data)
            finally:
                # Who has more than fits into this turn goes on behind the others.
                if subscriber in self._news and not subscriber.blocked:
                    self._ready[subscriber] = None
            # Looking costs, too, though there be nothing to tell.
            left -= max(pieces, 1)

    def _flush_changes(self, most: int) -> None:
        left = most
        while left > 0 and (walk := self._next_walk()) is not None:
            told = self._tell(walk.topic, walk.at, islice(walk.followers, left))
            if told < left:
                self._walk = None
            left -= told

    def _next_walk(self) -> _Walk | None:
        """Return the walk that is under way, or begin the next."""
        if self._walk is None and self._changed:
            topic = next(iter(self._changed))
            self._walk = _Walk(topic, self._changed.pop(topic), iter(list(topic.followers)))
        return self._walk

    def _tell(self, topic: _Topic, at: float, followers: Iterable[_Subscription]) -> int:
        """Tell some of those who follow a service of a change, or note that they are to be told.

        Args:
            topic: the service.
            at: when the change was made.
            followers: of whom some may have left meanwhile, or know it already.

        Returns:
            How many that were.
        """
        service = self._service(topic.key)
        number = service.number if service else 0
        conflated = told = 0
        for subscription in followers:
            told += 1
            if subscription.left or subscription.sent == number:
                continue
            if subscription.sent != subscription.acked:
                conflated += 1
                if subscription.pending_at is None:
                    subscription.pending_at = at
                continue
            if subscription.changed_at is None:
                subscription.changed_at = at
            else:
                conflated += 1
            subscriber = subscription.subscriber
            if subscriber.blocked:
                self._note(subscriber, topic.key, _News.LIST)
            else:
                subscriber.send(self._advance(subscription, service, number))
        if conflated:
            self._conflated(conflated)
        return told

    def take(self, subscriber: Subscriber) -> Iterator[bytes]:
        """Yield the frames with the news of a subscriber.

        It is lazy: each is made when the one before has been sent, so that what changes in between is in.
        """
        while subscriber in self._news:
            data = self._next_news(subscriber)
            if data is not None:
                yield data

    def _next_news(self, subscriber: Subscriber) -> bytes | None:
        """Return the frame with the next piece of a subscriber's news, unless it knows already."""
        key, what = next(iter(self._news[subscriber].items()))
        self._settle(subscriber, key)
        if what is not _News.LIST:
            return subscriber.spelling.encode(_farewell(subscriber, key, what))
        subscription = subscriber.subscriptions[key]
        service = self._service(key)
        number = service.number if service else 0
        return None if subscription.sent == number else self._advance(subscription, service, number)

    def unblocked(self, subscriber: Subscriber) -> None:
        """Take notice that a subscriber takes frames again."""
        if subscriber in self._news:
            self._ready[subscriber] = None
            self._wake()

    def _note(self, subscriber: Subscriber, key: ServiceKey, what: _News) -> None:
        self._news.setdefault(subscriber, {})[key] = what
        if not subscriber.blocked:
            self._ready[subscriber] = None
            self._wake()

    def _settle(self, subscriber: Subscriber, key: ServiceKey) -> None:
        """Forget what a subscriber was to be told of a service."""
        news = self._news.get(subscriber)
        if news is not None:
            news.pop(key, None)
            if not news:
                del self._news[subscriber]

    def _wake(self) -> None:
        if not self._due:
            self._due = True
            self.wake()

    def _advance(self, subscription: _Subscription, service: Service | None, number: int) -> bytes:
        """Return the bytes that bring a subscriber to a number, and take them as sent."""
        base, subscription.sent = subscription.sent, number
        self._unacknowledged.setdefault(subscription, self._clock())
        return self._encoded(subscription.topic, service, base, subscription.subscriber.spelling)

    def _encoded(self, topic: _Topic, service: Service | None, base: int, spelling: Spelling) -> bytes:
        cache = topic.cache(service.number if service else 0, settled=self.settled)
        data = cache.get((base, spelling.subprotocol))
        if data is None:
            since = service.since(base) if service and base != _NEVER else None
            if since is None and base != _NEVER:
                # From a list that is forgotten, or was made up: the same bytes as from none.
                return self._encoded(topic, service, _NEVER, spelling)
            frame = self._frame(topic, service, base, since)
            data = cache[base, spelling.subprotocol] = spelling.encode(frame)
        return data

    def _frame(
        self,
        topic: _Topic,
        service: Service | None,
        base: int,
        since: tuple[list[Instance], list[InstanceKey]] | None,
    ) -> frames.Snapshot | frames.Delta:
        namespace, group, name = topic.key
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
                protect_threshold=self._threshold(topic.key),
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
            at=topic.at,
            protect_threshold=self._threshold(topic.key),
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
            topic = self._topics.get(key)
            for subscription in topic.followers if topic else ():
                if subscription.acked < number:
                    waiting[subscription] = number
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

    def _release(self, barrier: _Barrier, holder: _Subscription) -> None:
        held = self._barriers[holder]
        del held[barrier]
        if not held:
            del self._barriers[holder]

    def _pass(self, holder: _Subscription, number: int | None) -> None:
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


def _farewell(subscriber: Subscriber, key: ServiceKey, what: _News) -> frames.Vanished | frames.Omitted:
    """Return the frame about a service that the session does not follow, or not any more."""
    if what is _News.VANISHED:
        return frames.Vanished(namespace=key.namespace, group=key.group, service=key.name)
    problem = _full(subscriber, f"{key} matches a pattern, but is not followed")
    return frames.Omitted(
        namespace=key.namespace, group=key.group, service=key.name, problem=problem.details()
    )
