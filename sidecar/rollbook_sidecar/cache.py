"""Cache: the lists that the sidecar follows, ready to be answered.

Each change of a list makes a new :class:`Listing`, and everything that callers get is made from that one
object: its revision, its instances, the bytes of each filtered form (encoded once, when first asked for).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from rollbook import balance, events
from rollbook.filters import UNFILTERED, Filter
from rollbook.model import ServiceCount, ServiceList
from rollbook.problems import Problem
from rollbook.selector import EVERYTHING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator

    from rollbook.model import Instance
    from rollbook.names import ServiceKey
    from rollbook.selector import Selector
    from rollbook.view import View

MAX_FORMS: Final = 64
"""Parts of one listing, and strategies of one service, that are kept; beyond it the oldest is let go."""

K = TypeVar("K")
V = TypeVar("V")


class Follower(Protocol):
    """The part of :class:`rollbook.Client` that is needed here."""

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        ...

    @property
    def last_heard(self) -> float:
        """Monotonic seconds at which the registry was last heard; 0 if never."""
        ...

    def follow(self, service: ServiceKey) -> Followed:
        """Want a service's list."""
        ...

    def unfollow(self, service: ServiceKey) -> None:
        """Stop wanting it."""
        ...

    def refresh(self, service: ServiceKey) -> None:
        """Compare it with the registry's."""
        ...


class Followed(Protocol):
    """The part of :class:`rollbook.Subscription` that is needed here."""

    @property
    def view(self) -> View:
        """The list as the session keeps it."""
        ...


class Listing:
    """A service's list as it was at one revision; never changes.

    Attributes:
        revision: this sidecar's own, opaque. It changes with every change of the list, also with those
            that came without a new revision of the registry's.
    """

    __slots__ = ("_bodies", "_eligible", "instances", "protect_threshold", "revision", "service", "settled")

    def __init__(self, view: View, revision: str) -> None:
        self.service = view.service
        self.revision = revision
        self.settled = view.settled
        self.instances = view.instances
        self.protect_threshold = view.protect_threshold
        self._bodies: dict[Filter, bytes] = {}
        self._eligible: dict[Selector, tuple[Instance, ...]] = {}

    def body(self, wanted: Filter = UNFILTERED) -> bytes:
        """Return the list, or a part of it, as JSON."""
        body = self._bodies.get(wanted)
        if body is None:
            body = self._encode(wanted)
            _keep(self._bodies, wanted, body)
        return body

    def eligible(self, selector: Selector = EVERYTHING) -> tuple[Instance, ...]:
        """Return the instances that may get traffic, all or those that are selected: each time the same."""
        eligible = self._eligible.get(selector)
        if eligible is None:
            selected = Filter(selector=selector).take(self.instances) if selector.terms else self.instances
            eligible = balance.eligible(selected, self.protect_threshold)
            _keep(self._eligible, selector, eligible)
        return eligible

    def count(self) -> ServiceCount:
        """Return its line in the list of services."""
        namespace, group, name = self.service
        return ServiceCount(
            namespace=namespace,
            group=group,
            service=name,
            instances=len(self.instances),
            healthy=sum(i.healthy for i in self.instances),
        )

    def _encode(self, wanted: Filter) -> bytes:
        namespace, group, name = self.service
        return msgspec.json.encode(
            ServiceList(
                namespace=namespace,
                group=group,
                service=name,
                revision=self.revision,
                settled=self.settled,
                instances=wanted.take(self.instances),
                protect_threshold=self.protect_threshold,
                protected=wanted.protects(self.instances, self.protect_threshold),
            )
        )


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Keep one more of what can be made again, letting the oldest go if there are too many."""
    if len(kept) >= MAX_FORMS:
        del kept[next(iter(kept))]
    kept[key] = value


class Cached:
    """A service that is followed; its listing is ``None`` until the first list has come."""

    __slots__ = ("_changed", "_strategies", "listing", "pinned", "service", "view", "waiting")

    def __init__(self, service: ServiceKey, view: View) -> None:
        self.service = service
        self.view = view
        self.listing: Listing | None = None
        self.pinned = False
        self.waiting = 0
        self._changed = asyncio.Event()
        self._strategies: dict[tuple[str, Selector], balance.Strategy] = {}

    @property
    def known(self) -> Listing:
        """The listing of a service whose first list has come, as :meth:`Cache.first` sees to."""
        if self.listing is None:
            raise RuntimeError("its first list has not come")
        return self.listing

    def strategy(self, name: str, rng: random.Random, selector: Selector = EVERYTHING) -> balance.Strategy:
        """Return the strategy of that name, which remembers what it chose here before.

        Each selector has its own: what was chosen among all says nothing about whose turn it is among some.

        Raises:
            Problem: 400 ``bad_value`` naming those there are.
        """
        chosen = self._strategies.get((name, selector))
        if chosen is None:
            chosen = balance.strategy(name, rng=rng)
            _keep(self._strategies, (name, selector), chosen)
        return chosen

    async def changed(self) -> None:
        """Wait for the next listing, or for the end."""
        await self._changed.wait()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Keep it from being dropped."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class Cache:
    """All services that are followed, the least recently asked first.

    Args:
        client: which follows them.
        boot: names this life of the sidecar, in revisions.
        most: services followed at once.
        patience: seconds to wait for a first list.
        clock: monotonic seconds, the client's.
    """

    def __init__(
        self,
        client: Follower,
        *,
        boot: str,
        most: int,
        patience: float,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._boot = boot
        self._most = most
        self._patience = patience
        self._clock = clock
        self._serial = 0
        self._services: OrderedDict[ServiceKey, Cached] = OrderedDict()
        self._tried: set[ServiceKey] = set()
        self._closed = False

    # --- asking ----------------------------------------------------------------------------------------

    def get(self, service: ServiceKey) -> Cached | None:
        """Return a service whose list is known, and remember that it was asked for; else ``None``."""
        cached = self._services.get(service)
        if cached is None or cached.listing is None:
            return None
        self._services.move_to_end(service)
        if cached.view.settled and not cached.listing.settled:
            # The registry's word that it knows everybody by now changes the list's text, but no event tells
            # it where no instance goes.
            self._renew(cached)
        return cached

    async def first(self, service: ServiceKey) -> Cached:
        """Return a service, following it if need be; wait for its first list.

        Everybody who asks meanwhile waits for the same list. Without a connection only the first ask waits
        (one may be about to stand); after that there is no point.

        Raises:
            Problem: 503 ``registry_unreachable`` if there is none in time; 429 ``limit_reached``.
        """
        cached = self._services.get(service) or self._add(service)
        self._services.move_to_end(service)
        waits = self._patience if self._client.connected or service not in self._tried else 0.0
        with cached.awaited(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(waits):
                while cached.listing is None and not self._closed:
                    await cached.changed()
        if cached.listing is not None:
            self._tried.discard(service)
            return cached
        self._tried.add(service)
        raise Problem(
            "registry_unreachable",
            f"there is no list of {service} yet: "
            + ("the registry has not sent it" if self._client.connected else "no registry can be reached"),
        )

    async def differing(self, cached: Cached, revision: str, wait: float) -> Listing:
        """Return a listing, at the latest after ``wait`` seconds; at once if its revision is another."""
        with cached.awaited(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                while cached.known.revision == revision and not self._closed:
                    await cached.changed()
        return cached.known

    def listings(self) -> list[Listing]:
        """Return all lists that are known, by name."""
        known = (c.listing for c in self._services.values() if c.listing is not None)
        return sorted(known, key=lambda listing: listing.service)

    @property
    def connected(self) -> bool:
        """Whether the lists are kept current at present."""
        return self._client.connected

    @property
    def age(self) -> float:
        """Seconds since the registry was last heard: 0 while connected, and if it never was."""
        heard = self._client.last_heard
        return 0.0 if self._client.connected or not heard else max(0.0, self._clock() - heard)

    def __len__(self) -> int:
        return len(self._services)

    # --- keeping ---------------------------------------------------------------------------------------

    def pin(self, services: Iterable[ServiceKey]) -> None:
        """Follow these from now on, whether or not they are asked for."""
        for service in services:
            cached = self._services.get(service) or self._add(service)
            cached.pinned = True

    def heard(self, event: events.Event) -> None:
        """Take notice of what happened at the client."""
        if isinstance(event, events.ListChanged):
            cached = self._services.get(event.service)
            if cached is not None and cached.view.known and self._differs(cached, event):
                self._renew(cached)

    def reread(self) -> None:
        """Compare all lists with the registry's."""
        for service in self._services:
            self._client.refresh(service)

    def close(self) -> None:
        """Answer everybody who waits."""
        self._closed = True
        for cached in self._services.values():
            cached.wake()

    # --- inside ----------------------------------------------------------------------------------------

    @staticmethod
    def _differs(cached: Cached, event: events.ListChanged) -> bool:
        listing = cached.listing
        if listing is None or event.change:
            return True
        now = (cached.view.settled, cached.view.protect_threshold)
        return now != (listing.settled, listing.protect_threshold)

    def _renew(self, cached: Cached) -> None:
        self._serial += 1
        cached.listing = Listing(cached.view, f"{self._boot}.{self._serial}")
        cached.wake()

    def _add(self, service: ServiceKey) -> Cached:
        if len(self._services) >= self._most:
            self._make_room()
        cached = Cached(service, self._client.follow(service).view)
        self._services[service] = cached
        if cached.view.known:
            self._renew(cached)
        return cached

    def _make_room(self) -> None:
        for service, cached in self._services.items():
            if not cached.pinned and not cached.waiting:
                del self._services[service]
                self._tried.discard(service)
                self._client.unfollow(service)
                return
        raise Problem(
            "limit_reached",
            f"all {self._most} services that this sidecar may follow are being waited for",
            accepted="fewer services at once, or a higher --max-services",
        )
