"""Datagrams: pushes to those who can only be told over UDP (Nacos' 1.x clients).

No I/O: a socket's shell asks for the datagrams that are due, and reports acknowledgements. What a subscriber
costs is bounded, as at the :mod:`outlet <rollbook_registry.push.outlet>`: while a push to it has not been
acknowledged, later changes are not queued; they are in the next one.

A datagram carries the whole list, so what is sent again is always the newest list and never the datagram that
was lost. It carries a **token** that its acknowledgement repeats: higher for each new list, one for all who
get the same bytes. An acknowledgement of an older token than the last one sent says that the network has
turned the two around and the client may hold the old list, since some clients take whatever comes: it is told
the newest once more.

Whoever sends a datagram can put any sender's address into it, so no datagram makes anybody a subscriber;
requests do, and only for the address that they came from. Each acknowledgement can cause one push at most,
and a silent client gets a bounded number of them.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rollbook.problems import Problem, bad_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rollbook.names import ServiceKey

MAX_DATAGRAM: Final = 65_507
"""Bytes that one datagram carries at most: 65,535 less the headers of IPv4 and UDP (RFC 768, RFC 791)."""

MIN_PORT: Final = 1024
"""Ports below it are servers' (RFC 6335), which nobody may have this registry write to."""

MAX_PORT: Final = 65_535

_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")

REMEMBERED: Final = 8
"""Tokens of one subscriber by which an acknowledgement that comes late is known."""


class Terms(NamedTuple):
    """What subscribers may expect, and may cost.

    Attributes:
        time_to_live: seconds for which a subscriber that asks no more is told of changes.
        interval: seconds until a push that is not acknowledged is followed by another.
        tries: pushes without an acknowledgement after which a subscriber is forgotten.
        most: subscriptions in all.
        most_per_address: subscriptions of one address.
        version: of the Internet protocol that the socket speaks, 4 or 6.
        loopback: whether this machine's own addresses may subscribe.
    """

    time_to_live: float = 30.0
    interval: float = 1.0
    tries: int = 3
    most: int = 20_000
    most_per_address: int = 1000
    version: int = 4
    loopback: bool = False


class Outcome(StrEnum):
    """What becomes of pushes, as it is counted."""

    SENT = "sent"
    REPEATED = "repeated"
    """Sent because the one before was not acknowledged."""
    CONFLATED = "conflated"
    """A change was merged into the next push."""
    ACKNOWLEDGED = "acknowledged"
    STALE = "stale"
    """An older push was acknowledged; the newest is sent once more."""
    UNKNOWN = "unknown"
    """Something came that acknowledges nothing that was sent."""
    TOO_LARGE = "too_large"
    """A list does not fit into a datagram."""
    FORGOTTEN = "forgotten"
    """A subscriber never acknowledged."""
    ERROR = "error"
    """The system said that a datagram could not be delivered."""


class Encode(Protocol):
    """Makes the bytes of a push; they are sent as they are."""

    def __call__(self, service: ServiceKey, clusters: str, token: int) -> bytes:
        """Return a service's list as it is now, for subscribers that asked for these clusters."""


class Meter(Protocol):
    """Counts what becomes of pushes."""

    def pushed(self, seconds: float) -> None:
        """Count an acknowledgement, so long after the change."""

    def counted(self, outcome: Outcome) -> None:
        """Count what became of a push: one of :class:`Outcome`."""


class Datagram(NamedTuple):
    """What is to be sent, and where."""

    address: str
    port: int
    data: bytes


class _Feed:
    """What all who ask for the same clusters of a service get; the bytes are made once for a change."""

    __slots__ = ("clusters", "data", "fresh", "oversized", "service", "subscribers", "token")

    def __init__(self, service: ServiceKey, clusters: str) -> None:
        self.service = service
        self.clusters = clusters
        self.subscribers: dict[tuple[str, int], _Subscriber] = {}
        """By address and port."""
        self.fresh = False
        """Whether token and data are of the list as it is now."""
        self.token = 0
        self.data: bytes | None = None
        """``None``: they fit into no datagram."""
        self.oversized = False
        """Whether that is known already, and told."""


class _Subscriber:
    """One client's subscription to one feed."""

    __slots__ = ("address", "changed_at", "feed", "pending_at", "port", "tokens", "tries")

    def __init__(self, address: str, port: int, feed: _Feed) -> None:
        self.address = address
        self.port = port
        self.feed = feed
        self.tries = 0
        """Pushes since it was heard of last."""
        self.tokens: dict[int, None] = {}
        """Those that it was sent, the newest last."""
        self.changed_at = 0.0
        """When the first change was made of those that are in flight, or about to be."""
        self.pending_at: float | None = None
        """When the first of those was made that wait behind what is in flight; ``None``: there are none."""


class DatagramOutlet:
    """All who are told over UDP.

    Args:
        encode: makes the bytes.
        clock: monotonic seconds.
        wake: called when there is something to send or to wait for; :meth:`take` has it then.
        meter: counts.
        oversized: told of a service whose list has become too large for a datagram, and of its bytes.
        terms: what is allowed.
        first_token: higher than any that a former life of this registry used, so that nothing which is still
            on its way to that one is taken for an answer to this one. Unix time in microseconds will do, and
            is exact in clients whose only numbers are doubles (up to 2 to the power of 53).
    """

    def __init__(
        self,
        encode: Encode,
        *,
        clock: Callable[[], float],
        wake: Callable[[], None],
        meter: Meter,
        oversized: Callable[[ServiceKey, int], None],
        terms: Terms,
        first_token: int,
    ) -> None:
        self._encode = encode
        self._clock = clock
        self._wake = wake
        self._meter = meter
        self._oversized = oversized
        self._terms = terms
        self._token = first_token - 1
        self._feeds: dict[ServiceKey, dict[str, _Feed]] = {}
        self._by_address: dict[str, int] = {}
        self._by_token: dict[tuple[str, int, int], _Subscriber] = {}
        """By address, port and token: who may acknowledge what."""
        self._asked: dict[_Subscriber, float] = {}
        """When each asked last; the longest ago first."""
        self._ready: dict[_Subscriber, None] = {}
        """Those to be sent something now."""
        self._flying: dict[_Subscriber, float] = {}
        """When each was sent what it has not acknowledged; the longest ago first."""

    def __len__(self) -> int:
        """Return the number of subscriptions."""
        return len(self._asked)

    # --- subscribers -----------------------------------------------------------------------------------

    def subscribe(self, service: ServiceKey, address: str, port: int, *, clusters: str = "") -> None:
        """Have a client told of changes from now on, until it has not asked for a while.

        The answer to the request by which it asks carries the list, so there is nothing to send yet.

        Args:
            service: which one.
            address: that the request came from; never one that the request only names.
            port: that the client listens on.
            clusters: as :class:`Encode` takes them, in one spelling: those who ask for the same share bytes.

        Raises:
            Problem: 400 ``bad_value``; 429 ``limit_reached``. Nothing has changed then.
        """
        address = self._accepted(address, port)
        feeds = self._feeds.get(service, {})
        feed = feeds.get(clusters)
        subscriber = feed.subscribers.get((address, port)) if feed is not None else None
        if subscriber is None:
            self._make_room(address)
            if feed is None:
                feed = self._feeds.setdefault(service, feeds)[clusters] = _Feed(service, clusters)
            subscriber = feed.subscribers[address, port] = _Subscriber(address, port, feed)
            self._by_address[address] = self._by_address.get(address, 0) + 1
        self._asked.pop(subscriber, None)
        self._asked[subscriber] = self._clock()
        if len(self._asked) == 1:
            self._wake()

    def unsubscribe(self, service: ServiceKey, address: str, port: int, *, clusters: str = "") -> None:
        """Have a client told no more; nothing happens if it is no subscriber."""
        feed = self._feeds.get(service, {}).get(clusters)
        subscriber = feed.subscribers.get((address, port)) if feed is not None else None
        if subscriber is not None:
            self._forget(subscriber)

    def _accepted(self, text: str, port: int) -> str:
        """Check who would be written to; return the address in the one spelling that datagrams come with."""
        if not MIN_PORT <= port <= MAX_PORT:
            raise bad_value("udp port", port, f"a port from {MIN_PORT} to {MAX_PORT}")
        version, loopback = self._terms.version, self._terms.loopback
        accepted = f"the IPv{version} address of one host" + ("" if loopback else " other than this one")
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise bad_value("udp address", text, accepted) from None
        if (
            address.version != version
            or address.is_multicast
            or address.is_unspecified
            or address == _BROADCAST
            or (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None)
            or (address.is_loopback and not loopback)
        ):
            raise bad_value("udp address", text, accepted)
        return str(address)

    def _make_room(self, address: str) -> None:
        """Check that there may be one more subscription, of this address.

        Raises:
            Problem: 429 ``limit_reached``.
        """
        most, most_per_address = self._terms.most, self._terms.most_per_address
        if self._by_address.get(address, 0) >= most_per_address:
            raise Problem(
                "limit_reached",
                f"{address} has {most_per_address} subscriptions over UDP, and no address may have more "
                "(--max-udp-per-address)",
            )
        if len(self._asked) >= most:
            raise Problem(
                "limit_reached",
                f"there are {most} subscriptions over UDP, and no more may be (--max-udp-subscriptions)",
            )

    def _forget(self, subscriber: _Subscriber) -> None:
        feed, address = subscriber.feed, subscriber.address
        for token in subscriber.tokens:
            del self._by_token[address, subscriber.port, token]
        del self._asked[subscriber]
        self._ready.pop(subscriber, None)
        self._flying.pop(subscriber, None)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        del feed.subscribers[address, subscriber.port]
        if not feed.subscribers:
            feeds = self._feeds[feed.service]
            del feeds[feed.clusters]
            if not feeds:
                del self._feeds[feed.service]

    # --- changes ---------------------------------------------------------------------------------------

    def changed(self, service: ServiceKey) -> None:
        """Take notice that a service's list has changed."""
        feeds = self._feeds.get(service)
        if feeds is None:
            return
        now = self._clock()
        for feed in feeds.values():
            feed.fresh = False
            for subscriber in feed.subscribers.values():
                if self._tell(subscriber, now):
                    self._meter.counted(Outcome.CONFLATED)
        self._wake()

    def acknowledge(self, address: str, port: int, token: int) -> None:
        """Take notice of an acknowledgement that came from this address and port."""
        subscriber = self._by_token.get((address, port, token))
        if subscriber is None:
            self._meter.counted(Outcome.UNKNOWN)
            return
        subscriber.tries = 0
        newest = next(reversed(subscriber.tokens))
        if token != newest:
            # It has taken a list that was sent before another, perhaps after that other. Once only: the
            # sender's address may be made up.
            self._meter.counted(Outcome.STALE)
            del subscriber.tokens[token], self._by_token[address, port, token]
            self._tell(subscriber, self._clock())
            self._wake()
        elif subscriber in self._flying:
            self._meter.counted(Outcome.ACKNOWLEDGED)
            self._meter.pushed(self._clock() - subscriber.changed_at)
            del self._flying[subscriber]
            if subscriber.pending_at is not None:
                self._tell(subscriber, subscriber.pending_at)
                self._wake()

    def _tell(self, subscriber: _Subscriber, changed_at: float) -> bool:
        """Have somebody sent the list as it is, as soon as may be; say whether that is to happen anyway."""
        if subscriber in self._ready:
            return True
        if subscriber not in self._flying:
            subscriber.changed_at, subscriber.pending_at = changed_at, None
            self._ready[subscriber] = None
            return False
        if subscriber.pending_at is None:
            subscriber.pending_at = changed_at
        return True

    # --- what is due -----------------------------------------------------------------------------------

    def take(self) -> Iterator[Datagram]:
        """Yield what is to be sent now.

        It is lazy: who stops in the middle asks again later, and what has changed in between is in then.
        """
        now = self._clock()
        self._expire(now)
        while self._ready:
            subscriber = next(iter(self._ready))
            del self._ready[subscriber]
            feed = subscriber.feed
            if not feed.fresh:
                self._make(feed)
            subscriber.pending_at = None
            if feed.data is None:
                self._meter.counted(Outcome.TOO_LARGE)
                continue
            self._remember(subscriber, feed.token)
            self._meter.counted(Outcome.REPEATED if subscriber.tries else Outcome.SENT)
            subscriber.tries += 1
            self._flying[subscriber] = now
            yield Datagram(subscriber.address, subscriber.port, feed.data)

    def next_due(self) -> float | None:
        """Return when :meth:`take` is to be asked next if nothing happens before; ``None``: never."""
        if self._ready:
            return self._clock()
        due = []
        if self._flying:
            due.append(next(iter(self._flying.values())) + self._terms.interval)
        if self._asked:
            due.append(next(iter(self._asked.values())) + self._terms.time_to_live)
        return min(due, default=None)

    def _expire(self, now: float) -> None:
        """Forget who asks no more or never answers; have the list sent again to others that do not answer."""
        while self._asked:
            subscriber, since = next(iter(self._asked.items()))
            if since + self._terms.time_to_live > now:
                break
            self._forget(subscriber)
        while self._flying:
            subscriber, since = next(iter(self._flying.items()))
            if since + self._terms.interval > now:
                break
            if subscriber.tries >= self._terms.tries:
                self._meter.counted(Outcome.FORGOTTEN)
                self._forget(subscriber)
            else:
                del self._flying[subscriber]
                self._ready[subscriber] = None

    def _make(self, feed: _Feed) -> None:
        self._token += 1
        data = self._encode(feed.service, feed.clusters, self._token)
        fits = len(data) <= MAX_DATAGRAM
        feed.fresh, feed.token, feed.data = True, self._token, data if fits else None
        if not (fits or feed.oversized):
            self._oversized(feed.service, len(data))
        feed.oversized = not fits

    def _remember(self, subscriber: _Subscriber, token: int) -> None:
        tokens, address, port = subscriber.tokens, subscriber.address, subscriber.port
        if token in tokens:
            return
        tokens[token] = None
        self._by_token[address, port, token] = subscriber
        if len(tokens) > REMEMBERED:
            oldest = next(iter(tokens))
            del tokens[oldest], self._by_token[address, port, oldest]
