"""The native HTTP API: lists and plain HTTP clients. The read URLs are the sidecar's too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from rollbook import selector
from rollbook.filters import Filter, parse_clusters
from rollbook.model import Entry, EntryRef, Instance, ServiceCount, ServicePage, check_entry
from rollbook.names import (
    DEFAULT_CLUSTER,
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    LeaseId,
    ServiceKey,
    check_namespace,
    parse_instance_key,
    service_key,
)
from rollbook.problems import Problem, bad_value
from rollbook.settings import parse_duration
from rollbook_registry.api.doors import body, identity, json_response, query, truth, whole_number
from rollbook_registry.api.lists import Lists
from rollbook_registry.auth import Role, policy
from rollbook_registry.catalog.leases import HTTP_LEASES, Kind

if TYPE_CHECKING:
    from rollbook_registry.book import Book
    from rollbook_registry.catalog import Catalog

MAX_PAGE: Final = 1000
"""Services on one page of ``GET /services``."""

MAX_WAIT: Final = 60.0
"""Seconds that a long poll may ask to wait."""


class InstanceBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ``POST .../instances`` and a full beat carry; the service is in the URL."""

    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    weight: float = 1.0
    enabled: bool = True
    metadata: dict[str, str] = {}
    instance_id: str = ""
    owner: str = ""
    alive: bool = True
    ephemeral: bool = True

    def entry(self, key: ServiceKey) -> Entry:
        """Return the checked entry.

        Raises:
            Problem: 400 ``bad_value``.
        """
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return check_entry(Entry(service=key.name, namespace=key.namespace, group=key.group, **fields))


class Change(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ``PATCH`` may change; what is absent stays."""

    weight: float | None = None
    enabled: bool | None = None
    metadata: dict[str, str] | None = None


class Stored(msgspec.Struct, kw_only=True):
    """What registering answers: the instance as the book shows it, and the term to echo in beats."""

    instance: Instance
    term: int


def http_lease(ip: str, port: int) -> LeaseId:
    """Return the lease of the plain HTTP client at an address."""
    host = f"[{ip}]" if ":" in ip else ip
    return LeaseId(f"{HTTP_LEASES}{host}:{port}")


def _service(request: web.Request, values: dict[str, str]) -> ServiceKey:
    return service_key(
        request.match_info["service"],
        namespace=values.get("namespace", DEFAULT_NAMESPACE),
        group=values.get("group", DEFAULT_GROUP),
    )


class Native:
    """The handlers.

    Args:
        book: the book.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._lists = Lists(book)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        instances = "/services/{service}/instances"
        return [
            web.get("/services", self.services),
            web.get("/services/{service}", self.service),
            web.post(instances, self.register),
            web.put(instances + "/{key}/beat", self.beat),
            web.patch(instances + "/{key}", self.change),
            web.delete(instances + "/{key}", self.deregister),
        ]

    async def services(self, request: web.Request) -> web.Response:
        """List the services of a namespace, with counts."""
        values = query(request, "namespace", "group", "page", "size")
        namespace = check_namespace(values.get("namespace", DEFAULT_NAMESPACE))
        group = values.get("group")
        page = whole_number(values, "page", 1, low=1, high=1_000_000)
        size = whole_number(values, "size", 100, low=1, high=MAX_PAGE)
        found = sorted(
            (s for s in self._book.catalog.services.within(namespace) if group in {None, s.key.group}),
            key=lambda s: s.key,
        )
        counts = [
            ServiceCount(
                namespace=s.key.namespace,
                group=s.key.group,
                service=s.key.name,
                instances=len(s.instances),
                healthy=s.healthy,
            )
            for s in found[(page - 1) * size : page * size]
        ]
        return json_response(ServicePage(total=len(found), page=page, size=size, services=counts))

    async def service(self, request: web.Request) -> web.Response:
        """List a service's instances; an unknown service has none, and is no error."""
        values = query(request, "namespace", "group", "cluster", "healthy", "selector", "wait", "revision")
        key = _service(request, values)
        wanted = Filter(
            parse_clusters(values["cluster"]) if "cluster" in values else None,
            truth(values, "healthy"),
            selector.parse(values.get("selector", "")),
        )
        wait = _wait(values)
        if wait and values.get("revision") == self._lists.etag(key):
            await self._changed(key, wait)
        etag = f'"{self._lists.etag(key)}"'
        if etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(
            body=self._lists.encoded(key, wanted),
            content_type="application/json",
            headers={"ETag": etag},
        )

    async def _changed(self, key: ServiceKey, seconds: float) -> None:
        changed = asyncio.Event()
        call_off = self._book.outlet.watch(key, changed.set)
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            call_off()

    async def register(self, request: web.Request) -> web.Response:
        """Enter an instance for a plain HTTP client."""
        who = await identity(request)
        key = _service(request, query(request, "namespace", "group"))
        entry = (await body(request, InstanceBody)).entry(key)
        policy.may_enter(who, [entry], operator=False)
        lease = http_lease(entry.ip, entry.port)
        term = self._book.apply(lambda c, now: c.register_http(lease, entry, term=0, now=now))
        shown = self._book.catalog.instance(entry.ref, lease)
        if shown is None:
            # What is refused must not come up when the operator has gone.
            self._book.apply(lambda c, now: c.deregister(lease, [entry.ref], now))
            raise Problem("forbidden", "the operator speaks for this pod, and does not name this instance")
        return json_response(Stored(instance=shown, term=term), status=201)

    async def beat(self, request: web.Request) -> web.Response:
        """Hear an instance; one that is unknown and carried by the beat is registered, a little later."""
        who = await identity(request)
        values = query(request, "namespace", "group", "term")
        ref = _ref(request, values)
        policy.may_speak_for(who, ref.owner)
        term = whole_number(values, "term", 0, low=0, high=2**53)
        lease = http_lease(ref.ip, ref.port)
        result = "refused"
        try:
            result = await self._beat(request, lease, ref, term)
        finally:
            self._book.metrics.beats.labels("http", result).inc()
        return web.Response(status=202)

    async def _beat(self, request: web.Request, lease: LeaseId, ref: EntryRef, term: int) -> str:
        carried = None
        if request.can_read_body:
            carried = (await body(request, InstanceBody)).entry(ref.service_key)
            if carried.ref != ref:
                raise bad_value("body", carried.ref, f"the instance that the URL names, {ref}")
        try:
            self._book.apply(lambda c, now: c.beat_http(lease, ref, term=term, now=now))
        except Problem as problem:
            if problem.code != "unknown_instance" or carried is None:
                raise
            entry = carried
            self._book.defer(lambda c, now: _register_unknown(c, lease, entry, now))
            return "registered"
        return "heard"

    async def change(self, request: web.Request) -> web.Response:
        """Change what a plain HTTP client said about its instance."""
        who = await identity(request)
        values = query(request, "namespace", "group")
        ref = _ref(request, values)
        policy.may_speak_for(who, ref.owner)
        wanted = await body(request, Change)
        lease_id = http_lease(ref.ip, ref.port)
        lease = self._book.catalog.lease(lease_id)
        held = lease.entries.get(ref) if lease is not None and lease.kind is Kind.HTTP else None
        if lease is None or held is None:
            raise Problem(
                "unknown_instance",
                "no instance was registered over HTTP under this key; sessions change their own",
            )
        new = {
            name: value for name in wanted.__struct_fields__ if (value := getattr(wanted, name)) is not None
        }
        entry = check_entry(msgspec.structs.replace(held.entry, alive=not held.down, **new))
        self._book.apply(lambda c, now: c.register(lease_id, [entry], now))
        shown = self._book.catalog.instance(ref, lease_id)
        if shown is None:
            raise Problem("forbidden", "the operator speaks for this pod, and does not name this instance")
        return json_response(Stored(instance=shown, term=held.term))

    async def deregister(self, request: web.Request) -> web.Response:
        """Take an instance out of the book."""
        who = await identity(request)
        ref = _ref(request, query(request, "namespace", "group"))
        policy.may_speak_for(who, ref.owner)
        operators = who.role is not Role.POD
        gone = self._book.apply(lambda c, now: c.deregister_everywhere(ref, operators=operators, now=now))
        if not gone:
            raise Problem("unknown_instance", f"{ref.service} has no such instance")
        return web.Response(status=204)


def _register_unknown(catalog: Catalog, lease: LeaseId, entry: Entry, now: float) -> None:
    """Register what a full beat carried, unless it has ended or been registered in the meantime."""
    known = catalog.lease(lease)
    if not catalog.has_ended(lease, entry.ref) and (known is None or entry.ref not in known.entries):
        catalog.register_http(lease, entry, term=0, now=now)


def _ref(request: web.Request, values: dict[str, str]) -> EntryRef:
    key = _service(request, values)
    ip, port, cluster, owner = parse_instance_key(request.match_info["key"])
    return EntryRef(
        service=key.name,
        namespace=key.namespace,
        group=key.group,
        ip=ip,
        port=port,
        cluster=cluster,
        owner=owner,
    )


def _wait(values: dict[str, str]) -> float:
    text = values.get("wait")
    if text is None:
        return 0.0
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise bad_value("wait", text, str(error)) from None
    if seconds > MAX_WAIT:
        raise bad_value("wait", text, f"at most {MAX_WAIT:g}s")
    if "revision" not in values:
        raise Problem(
            "bad_value", "wait is given without revision", field="revision", accepted="a list's revision"
        )
    return seconds
