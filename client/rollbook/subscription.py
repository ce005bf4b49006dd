"""Subscriptions: lists that a client keeps current, and how to choose, wait and follow changes in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook import balance
from rollbook.filters import UNFILTERED, Filter, parse_clusters
from rollbook.following import Watcher, fresh
from rollbook.problems import Problem
from rollbook.selector import EVERYTHING
from rollbook.selector import parse as parse_selector

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable

    from rollbook.balance import Strategy
    from rollbook.following import Following, Update
    from rollbook.model import Instance
    from rollbook.names import ServiceKey
    from rollbook.patterns import Pattern
    from rollbook.view import View


class Selection:
    """A part of a service's list, or all of it, and whose turn it is there.

    Made by :meth:`Subscription.where`; it costs little, and is meant to be kept and picked from often. It is
    current for as long as its subscription is.
    """

    def __init__(self, view: View, state: Following, wanted: Filter, strategy: Strategy) -> None:
        self._view = view
        self._state = state
        self._wanted = wanted
        self._strategy = strategy
        self._seen: tuple[Instance, ...] | None = None
        self._threshold: float | None = None
        self._eligible: tuple[Instance, ...] = ()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Its instances, those that get no traffic too."""
        shown = self._view.instances
        return shown if self._wanted is UNFILTERED else tuple(self._wanted.take(shown))

    def pick(self) -> Instance:
        """Choose an instance to send a request to: healthy, enabled, with a weight.

        While so few are healthy that the list is protected (its service's ``protect_threshold``), unhealthy
        ones are chosen too. A pick awaits nothing, and costs about a microsecond.

        Raises:
            Problem: 503 ``no_instance``: there is none at present; 503 ``not_ready``: the first list has not
                come; 503 ``client_closed`` or 404 ``not_followed``: the list is not kept current any more; or
                why the registry refuses to let the service be followed.
        """
        view = self._view
        if view.instances is not self._seen or view.protect_threshold != self._threshold:
            self._look()
        chosen = self._strategy.pick(self._eligible)
        if chosen is None or self._state.end is not None:
            raise self._nobody()
        return chosen

    def _look(self) -> None:
        shown, threshold = self._view.instances, self._view.protect_threshold
        wanted = self._wanted
        # The health that is asked for does not count towards protection: asking makes nobody healthy.
        meant = wanted._replace(healthy=None)
        chosen = balance.eligible(shown if meant == UNFILTERED else meant.take(shown), threshold)
        if wanted.healthy is not None:
            chosen = tuple([i for i in chosen if i.healthy is wanted.healthy])
        self._seen, self._threshold, self._eligible = shown, threshold, chosen

    def _nobody(self) -> Problem:
        view, state = self._view, self._state
        if state.end is not None:
            return fresh(state.end)
        if not view.known:
            if state.problem is not None:
                return fresh(state.problem)
            return Problem("not_ready", f"the list of {view.service} has not come yet")
        among = "" if self._wanted is UNFILTERED else " among those that are selected"
        return Problem(
            "no_instance",
            f"there is no healthy instance of {view.service}{among} that is enabled and has a weight; "
            f"in all it has {len(view.instances)}",
        )


class Subscription:
    """A service's list, kept current for as long as it is followed and the client is open.

    Made by :meth:`rollbook.Client.subscribe`; all who subscribe to a service at a client share one. With the
    registry gone the last known list stays, and is picked from.
    """

    def __init__(self, view: View, state: Following, strategy: Strategy, rng: random.Random) -> None:
        self._view = view
        self._state = state
        self._rng = rng
        self._whole = Selection(view, state, UNFILTERED, strategy)

    @property
    def service(self) -> ServiceKey:
        """Which service it is."""
        return self._view.service

    @property
    def problem(self) -> Problem | None:
        """Why the registry does not let the service be followed at present; ``None`` while all is well.

        It may be 429 ``limit_reached``. The list is the last known one then.
        """
        return self._state.problem

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All instances, unhealthy and disabled ones too: the same object until the list changes."""
        return self._view.instances

    @property
    def view(self) -> View:
        """The list with its revision and digest, and whether the registry's book is settled."""
        return self._view

    def pick(self) -> Instance:
        """Choose an instance to send a request to; see :meth:`Selection.pick`.

        Raises:
            Problem: 503 ``no_instance``, and as there.
        """
        return self._whole.pick()

    def balance_by(self, strategy: Strategy) -> None:
        """Have :meth:`pick` choose by another strategy from now on."""
        self._whole = Selection(self._view, self._state, UNFILTERED, strategy)

    def where(
        self,
        *,
        cluster: str = "",
        selector: str = "",
        healthy: bool | None = None,
        strategy: Strategy | str = balance.DEFAULT_STRATEGY,
    ) -> Selection:
        """Return a part of the list, which is picked from by itself. All that is given has to hold.

        ::

            near = orders.where(cluster="zone-a", selector="version in (2,3)")
            instance = near.pick()

        Args:
            cluster: a cluster (usually a zone), or several with commas; empty for all.
            selector: what the metadata must satisfy (:mod:`rollbook.selector`); empty for anything.
            healthy: true never picks an unhealthy one, not even from a protected list.
            strategy: how to choose: one of :data:`rollbook.balance.STRATEGIES`, or your own.

        Raises:
            Problem: 400 ``bad_value`` naming the argument.
        """
        wanted = Filter(parse_clusters(cluster) if cluster else None, healthy, parse_selector(selector))
        if isinstance(strategy, str):
            strategy = balance.strategy(strategy, rng=self._rng)
        whole = wanted == Filter(None, None, EVERYTHING)
        return Selection(self._view, self._state, UNFILTERED if whole else wanted, strategy)

    async def wait_for(self, condition: Callable[[tuple[Instance, ...]], bool]) -> tuple[Instance, ...]:
        """Wait until the list satisfies a condition, and return it; bound it with ``asyncio.timeout``.

        Raises:
            Problem: 503 ``client_closed`` or 404 ``not_followed``: it can't any more.
        """
        while not condition(self._view.instances):
            await self._state.changed()
        return self._view.instances

    async def changed(self) -> None:
        """Wait for the next change.

        Raises:
            Problem: 503 ``client_closed`` or 404 ``not_followed``: none comes any more.
        """
        await self._state.changed()

    async def changes(self) -> AsyncIterator[Update]:
        """Yield what changes, beginning with all that is there; what changes in between is merged.

        It ends when the client is closed, or the service followed no more.
        """
        watcher = Watcher(i.key for i in self._view.instances)
        self._state.watchers.append(watcher)
        try:
            while self._state.end is None:
                event = self._state.next
                update = watcher.look(self._view.get)
                if any(update):
                    yield update
                await event.wait()
        finally:
            self._state.watchers.remove(watcher)

    async def __aiter__(self) -> AsyncIterator[tuple[Instance, ...]]:
        """Yield the list now, and after each change; changes in between are merged.

        It ends when the client is closed, or the service followed no more.
        """
        while self._state.end is None:
            event = self._state.next
            yield self._view.instances
            await event.wait()


class Matching:
    """All services that match a pattern, each with its list, current for as long as the client is open.

    A service is among them from its first instance until it has been empty for so long that the registry lets
    go of it (``--empty-service-after``); an empty list before that is no reason to forget the service. One
    that comes back after that comes as a new :class:`Subscription`. What is subscribed by name and matches is
    among them too.
    """

    def __init__(
        self,
        pattern: Pattern,
        state: Following,
        find: Callable[[Pattern], dict[ServiceKey, Subscription]],
    ) -> None:
        self.pattern = pattern
        """What the services match."""
        self._state = state
        self._find = find

    @property
    def problem(self) -> Problem | None:
        """Why the pattern, or some of the services that match, are not followed; ``None`` if all are."""
        return self._state.problem

    @property
    def services(self) -> dict[ServiceKey, Subscription]:
        """The services of now."""
        return self._find(self.pattern)

    async def wait_for(
        self, condition: Callable[[dict[ServiceKey, Subscription]], bool]
    ) -> dict[ServiceKey, Subscription]:
        """Wait until the services satisfy a condition, and return them.

        Raises:
            Problem: 503 ``client_closed`` or 404 ``not_followed``: they can't any more.
        """
        while not condition(services := self.services):
            await self._state.changed()
        return services

    async def changed(self) -> None:
        """Wait until a service comes or goes.

        Raises:
            Problem: 503 ``client_closed`` or 404 ``not_followed``: none does any more.
        """
        await self._state.changed()

    async def __aiter__(self) -> AsyncIterator[dict[ServiceKey, Subscription]]:
        """Yield the services now, and after each that comes or goes; changes in between are merged.

        It ends when the client is closed, or the pattern followed no more.
        """
        while self._state.end is None:
            event = self._state.next
            yield self.services
            await event.wait()
