"""Lookups: the read API on localhost, answered from memory.

The URLs mean what they mean at the registry. Every list carries ``Age`` (seconds since the registry was last
heard) and ``X-Rollbook-Stale``: with the registry gone the last known list goes on being answered, and says
so. A service whose list never came is answered 503, never by an empty list.

``GET /services`` lists the services that this sidecar follows, not all that the registry has.

The usual lookup finds its parsed form by its raw URL and its bytes ready made: nothing is parsed or encoded
twice.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from rollbook import names, selector
from rollbook.balance import DEFAULT_STRATEGY
from rollbook.filters import Filter, parse_clusters
from rollbook.model import ServicePage
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, ServiceKey
from rollbook.problems import Problem, bad_value
from rollbook.settings import parse_duration
from rollbook_sidecar import metrics as metrics_module
from rollbook_sidecar.answers import answering, as_json, as_problem, elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook.selector import Selector
    from rollbook_sidecar.cache import Cache, Listing
    from rollbook_sidecar.metrics import Metrics
    from rollbook_sidecar.registrar import Registrar

MAX_WAIT: Final = 60.0
"""Seconds that a long poll may ask for, here as at the registry."""

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000
"""Services on one page."""

MAX_PARSED: Final = 4096
"""URLs of lists, and of picks, whose meaning is remembered; then it starts anew."""

_BOOLEANS: Final = {"true": True, "false": False}


class Ask(NamedTuple):
    """What the URL of a list asks for.

    Attributes:
        revision: what a long poll has already; ``None`` if it is none.
        wait: seconds that a long poll waits for another revision.
    """

    service: ServiceKey
    wanted: Filter
    revision: str | None
    wait: float


class Choice(NamedTuple):
    """What the URL of a pick asks for."""

    service: ServiceKey
    strategy: str
    among: Selector


class Lookups:
    """The handlers.

    Args:
        cache: where lists come from.
        registrar: whose state ``/healthz`` shows.
        metrics: where times go.
        rng: for strategies that need it.
        clock: seconds, for measuring.
    """

    def __init__(
        self,
        cache: Cache,
        registrar: Registrar,
        metrics: Metrics,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cache = cache
        self._registrar = registrar
        self._metrics = metrics
        self._rng = rng or random.Random()  # noqa: S311  # spreading load, not a secret
        self._clock = clock
        self._asks: dict[str, Ask] = {}
        self._choices: dict[str, Choice] = {}

    def app(self) -> web.Application:
        """Return the application that serves them."""
        app = web.Application()
        app.router.add_get("/services/{service}", answering(self.list))
        app.router.add_get("/services/{service}/pick", answering(self.pick))
        app.router.add_get("/services", answering(self.services))
        app.router.add_get("/metrics", answering(self.metrics))
        app.router.add_get("/healthz", answering(self.healthz))
        app.router.add_route("*", "/{path:.*}", answering(elsewhere))
        return app

    async def list(self, request: web.Request) -> web.Response:
        """``GET /services/{service}``: a service's instances."""
        started = self._clock()
        ask = self._asks.get(request.raw_path) or self._read_ask(request)
        cached = self._cache.get(ask.service) or await self._cache.first(ask.service)
        listing = cached.known
        if ask.revision is None:
            self._metrics.listed.observe(self._clock() - started)
        else:
            listing = await self._cache.differing(cached, ask.revision, ask.wait)
        headers = self._headers(listing)
        condition = request.headers.get("If-None-Match")
        if condition is not None and _matches(condition, listing.revision):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        return web.Response(body=listing.body(ask.wanted), headers=headers)

    async def pick(self, request: web.Request) -> web.Response:
        """``GET /services/{service}/pick``: one instance to send a request to."""
        started = self._clock()
        service, name, wanted = self._choices.get(request.raw_path) or self._read_choice(request)
        cached = self._cache.get(service) or await self._cache.first(service)
        strategy = cached.strategy(name, self._rng, wanted)
        listing = cached.known
        chosen = strategy.pick(listing.eligible(wanted))
        headers = self._headers(listing)
        # It is a choice, not a representation of the list.
        del headers["ETag"]
        if chosen is None:
            del headers["Content-Type"]
            problem = Problem(
                "no_instance",
                f"{service} has {len(listing.instances)} instances, none healthy and enabled with a weight"
                + (" that the selector takes" if wanted.terms else ""),
            )
            return as_problem(problem, headers)
        self._metrics.picked.observe(self._clock() - started)
        return web.Response(body=msgspec.json.encode(chosen), headers=headers)

    async def services(self, request: web.Request) -> web.Response:
        """``GET /services``: what this sidecar follows."""
        query = _query(request, ("namespace", "group", "page", "size"))
        namespace = names.check_namespace(query.get("namespace", DEFAULT_NAMESPACE))
        group = names.check_group(query["group"]) if "group" in query else None
        page = _whole(query, "page", default=1, most=1_000_000)
        size = _whole(query, "size", default=DEFAULT_PAGE_SIZE, most=MAX_PAGE_SIZE)
        found = [
            listing
            for listing in self._cache.listings()
            if listing.service.namespace == namespace and group in {None, listing.service.group}
        ]
        shown = found[(page - 1) * size : page * size]
        answer = ServicePage(total=len(found), page=page, size=size, services=[s.count() for s in shown])
        return as_json(answer, headers=self._freshness())

    async def metrics(self, _: web.Request) -> web.Response:
        """``GET /metrics``: for Prometheus."""
        return web.Response(
            body=self._metrics.exposition(), headers={"Content-Type": metrics_module.CONTENT_TYPE}
        )

    async def healthz(self, _: web.Request) -> web.Response:
        """``GET /healthz``: 200 as long as the process answers, with or without a registry."""
        return as_json(
            {
                "status": "ok",
                "connected": self._cache.connected,
                "age": int(self._cache.age),
                "registration": self._registrar.state,
                "services": len(self._cache),
            }
        )

    # --- inside ----------------------------------------------------------------------------------------

    def _read_ask(self, request: web.Request) -> Ask:
        query = _query(request, ("namespace", "group", "cluster", "healthy", "selector", "wait", "revision"))
        healthy = query.get("healthy")
        if healthy is not None and healthy not in _BOOLEANS:
            raise bad_value("healthy", healthy, "true or false")
        wait = _wait(query)
        ask = Ask(
            service=_service(request, query),
            wanted=Filter(
                parse_clusters(query["cluster"]) if "cluster" in query else None,
                None if healthy is None else _BOOLEANS[healthy],
                selector.parse(query.get("selector", "")),
            ),
            revision=query.get("revision") if wait else None,
            wait=wait,
        )
        if len(self._asks) >= MAX_PARSED:
            self._asks.clear()
        self._asks[request.raw_path] = ask
        return ask

    def _read_choice(self, request: web.Request) -> Choice:
        query = _query(request, ("strategy", "selector", "namespace", "group"))
        choice = Choice(
            service=_service(request, query),
            strategy=query.get("strategy", DEFAULT_STRATEGY),
            among=selector.parse(query.get("selector", "")),
        )
        if len(self._choices) >= MAX_PARSED:
            self._choices.clear()
        self._choices[request.raw_path] = choice
        return choice

    def _freshness(self) -> dict[str, str]:
        connected = self._cache.connected
        return {
            "Age": "0" if connected else str(int(self._cache.age)),
            "X-Rollbook-Stale": "false" if connected else "true",
        }

    def _headers(self, listing: Listing) -> CIMultiDict[str]:
        headers = CIMultiDict(self._freshness())
        headers["Content-Type"] = "application/json"
        headers["ETag"] = f'"{listing.revision}"'
        return headers


def _query(request: web.Request, accepted: tuple[str, ...]) -> dict[str, str]:
    """Return the query's pairs: each known, each once."""
    query = request.query
    found: dict[str, str] = {}
    for name, value in query.items():
        if name not in accepted:
            raise bad_value("query", name, ", ".join(accepted))
        if name in found:
            raise bad_value(name, query.getall(name), "one value")
        found[name] = value
    return found


def _service(request: web.Request, query: dict[str, str]) -> ServiceKey:
    return names.service_key(
        request.match_info["service"],
        namespace=query.get("namespace", DEFAULT_NAMESPACE),
        group=query.get("group", DEFAULT_GROUP),
    )


def _wait(query: dict[str, str]) -> float:
    text = query.get("wait")
    if text is None:
        return 0.0
    accepted = f"a length of time up to {MAX_WAIT:g} s, such as 500ms, 30s or 2m"
    try:
        seconds = parse_duration(text)
    except ValueError:
        raise bad_value("wait", text, accepted) from None
    if seconds > MAX_WAIT:
        raise bad_value("wait", text, accepted)
    if "revision" not in query:
        raise bad_value("revision", "", "the revision of a list, since wait is given")
    return seconds


def _whole(query: dict[str, str], name: str, *, default: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise bad_value(name, text, f"a whole number from 1 to {most}")
    return int(text)


def _matches(condition: str, revision: str) -> bool:
    """Say whether ``If-None-Match`` names the revision (RFC 9110, section 13.1.2: weakly compared)."""
    wanted = f'"{revision}"'
    tags = (tag.strip().removeprefix("W/") for tag in condition.split(","))
    return any(tag in {"*", wanted} for tag in tags)
