"""The native HTTP API: lists and plain HTTP clients. The read URLs are the sidecar's too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from aiohttp import web

from rollbook.model import (
    TIMING_KEYS,
    Entry,
    Instance,
    ServiceCount,
    ServiceList,
    ServicePage,
    check_entry,
)
from rollbook.names import (
    DEFAULT_CLUSTER,
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    InstanceKey,
    LeaseId,
    ServiceKey,
)
from rollbook.problems import Problem, bad_value
from rollbook_registry.api import parameters, schemas
from rollbook_registry.api.doors import body, encode, identity, json_response, payload, read_body
from rollbook_registry.api.lists import Lists
from rollbook_registry.api.routes import Answer, Body, Reply, Route
from rollbook_registry.auth import Role, policy
from rollbook_registry.catalog.definitions import Check, Definition, check_check
from rollbook_registry.catalog.leases import Kind, http_lease
from rollbook_registry.connections import Connection

if TYPE_CHECKING:
    from rollbook.filters import Filter
    from rollbook.model import EntryRef
    from rollbook_registry.api.routes import AtOnce, Values
    from rollbook_registry.api.rulings import Rulings
    from rollbook_registry.auth import Identity
    from rollbook_registry.book import Book
    from rollbook_registry.catalog import Catalog
    from rollbook_registry.connections import Plain

MAX_PAGE: Final = 1000
"""Services on one page of ``GET /services``."""

PAGE: Final = parameters.whole_number("page", 1, low=1, high=1_000_000, about="Which page, from 1.")
SIZE: Final = parameters.whole_number("size", 100, low=1, high=MAX_PAGE, about="Services on a page.")
FORCE: Final = parameters.truth("force", "Whoever entered it, the operator and the store included.")
TERM: Final = parameters.whole_number(
    "term", 0, low=0, high=2**53, about="The term that registering answered; 0 does not compare it."
)

Port = Annotated[int, msgspec.Meta(extra_json_schema=schemas.PORT)]
Ip = Annotated[str, msgspec.Meta(extra_json_schema=schemas.IP)]
Cluster = Annotated[str, msgspec.Meta(extra_json_schema=schemas.CLUSTER)]
Weight = Annotated[float, msgspec.Meta(extra_json_schema=schemas.WEIGHT)]
Metadata = Annotated[dict[str, str], msgspec.Meta(extra_json_schema=schemas.METADATA)]
InstanceId = Annotated[str, msgspec.Meta(extra_json_schema=schemas.INSTANCE_ID)]
Owner = Annotated[str, msgspec.Meta(extra_json_schema=schemas.OWNER)]


class InstanceBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An instance, as its publisher describes it; the service is in the URL.

    Attributes:
        ephemeral: false lays it down: it stays until it is taken back, and the registry checks it.
        check: how it is checked. Only for what is laid down.
    """

    ip: Ip
    port: Port
    cluster: Cluster = DEFAULT_CLUSTER
    weight: Weight = 1.0
    enabled: bool = True
    metadata: Metadata = {}
    instance_id: InstanceId = ""
    owner: Owner = ""
    alive: bool = True
    ephemeral: bool = True
    check: Check | None = None

    def entry(self, key: ServiceKey) -> Entry:
        """Return the checked entry.

        Raises:
            Problem: 400 ``bad_value``.
        """
        entry = check_entry(
            Entry(
                service=key.name,
                namespace=key.namespace,
                group=key.group,
                ip=self.ip,
                port=self.port,
                cluster=self.cluster,
                weight=self.weight,
                enabled=self.enabled,
                metadata=self.metadata,
                instance_id=self.instance_id,
                owner=self.owner,
                alive=self.alive,
                ephemeral=self.ephemeral,
            )
        )
        if self.check is not None:
            if self.ephemeral:
                raise bad_value("check", self.check.type, "nothing: what is ephemeral lives by its beats")
            check_check(self.check, "check")
        if not self.ephemeral:
            check_persistent(entry)
        return entry


def check_persistent(entry: Entry) -> None:
    """Refuse what cannot be laid down.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if entry.owner:
        raise bad_value("owner", entry.owner, "nothing: a pod's instance lives by its beats")
    for key in TIMING_KEYS:
        if key in entry.metadata:
            raise bad_value(f"metadata.{key}", entry.metadata[key], "nothing: silence does not end it")


class Change(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be changed of an instance; what is absent stays."""

    weight: Weight | None = None
    enabled: bool | None = None
    metadata: Metadata | None = None
    check: Check | None = None


class Stored(msgspec.Struct, kw_only=True):
    """What registering answers: the instance as the book shows it, and the term to echo in beats.

    Attributes:
        term: 0 for what is laid down, and not beaten.
    """

    instance: Instance
    term: int


class Native:
    """The handlers.

    Args:
        book: the book.
        rulings: lays persistent instances down.
    """

    def __init__(self, book: Book, rulings: Rulings) -> None:
        self._book = book
        self._rulings = rulings
        self._lists = Lists(book)
        self._waiting = 0
        self._beats = book.metrics.beats.counts

    def routes(self) -> list[Route]:
        """Return what is served here."""
        instances = "/services/{service}/instances"
        revision = {"ETag": "The list's revision, in quotes."}
        return [
            Route(
                method="GET",
                path="/services",
                handler=self.services,
                parameters=(parameters.NAMESPACE, parameters.ONLY_GROUP, PAGE, SIZE),
                answers=(Answer(status=200, about="One page of the services, by name.", type=ServicePage),),
            ),
            Route(
                method="GET",
                path="/services/{service}",
                handler=self.service,
                direct=self.service_at_once,
                parameters=(
                    *parameters.OF_SERVICE,
                    *parameters.FILTER,
                    parameters.WAIT,
                    parameters.REVISION,
                ),
                answers=(
                    Answer(
                        status=200,
                        about="The instances, unhealthy ones too.",
                        type=ServiceList,
                        headers=revision,
                        example=_LIST,
                    ),
                    Answer(status=304, about="`If-None-Match` names the list's revision.", headers=revision),
                ),
                problems=("limit_reached",),
            ),
            Route(
                method="POST",
                path=instances,
                handler=self.register,
                direct=self.register_at_once,
                parameters=parameters.OF_SERVICE,
                body=Body(type=InstanceBody, about="The instance.", example=_BODY, also=_EPHEMERAL_OR_LAID),
                answers=(Answer(status=201, about="It is in the book.", type=Stored, example=_STORED),),
                problems=("pod_terminating", "pod_gone", "limit_reached", "store_unavailable", "conflict"),
                writes=True,
            ),
            Route(
                method="PUT",
                path=instances + "/{key}/beat",
                handler=self.beat,
                direct=self.beat_at_once,
                parameters=(parameters.KEY, *parameters.OF_SERVICE, TERM),
                body=Body(
                    type=InstanceBody,
                    about="The instance that the URL names: a full beat registers it if it is unknown.",
                    required=False,
                    example=_BODY,
                ),
                answers=(Answer(status=202, about="Heard, or soon registered."),),
                problems=(
                    "unknown_instance",
                    "lease_ended",
                    "stale_term",
                    "pod_terminating",
                    "pod_gone",
                    "limit_reached",
                ),
                writes=True,
            ),
            Route(
                method="PATCH",
                path=instances + "/{key}",
                handler=self.change,
                parameters=(parameters.KEY, *parameters.OF_SERVICE),
                body=Body(type=Change, about="What is to be different.", example={"weight": 2.0}),
                answers=(Answer(status=200, about="It is changed.", type=Stored, example=_STORED),),
                problems=("unknown_instance", "pod_terminating", "pod_gone", "store_unavailable", "conflict"),
                writes=True,
            ),
            Route(
                method="DELETE",
                path=instances + "/{key}",
                handler=self.deregister,
                parameters=(parameters.KEY, *parameters.OF_SERVICE, FORCE),
                answers=(Answer(status=204, about="It is out of the book."),),
                problems=("unknown_instance", "store_unavailable"),
                writes=True,
            ),
        ]

    async def services(self, _: web.Request, values: Values) -> web.Response:
        """List the services of a namespace, with counts."""
        group, page, size = values[parameters.ONLY_GROUP], values[PAGE], values[SIZE]
        within = self._book.catalog.services.within(values[parameters.NAMESPACE])
        found = sorted((s for s in within if group in {None, s.key.group}), key=lambda s: s.key)
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

    async def service(self, request: web.Request, values: Values) -> web.Response:
        """List a service's instances; an unknown service has none, and is no error."""
        key = parameters.service_of(values)
        wait, revision = values[parameters.WAIT], values[parameters.REVISION]
        if wait and revision is None:
            raise Problem(
                "bad_value", "wait is given without revision", field="revision", accepted="a list's revision"
            )
        if wait and revision == self._lists.etag(key):
            await self._changed(request, key, wait)
        held = request.headers.get("If-None-Match", "")
        return self._list(key, parameters.filter_of(values), held).response()

    def service_at_once(self, values: Values) -> AtOnce:
        """Make what answers a list that nobody waits for."""
        key, wanted, waits = (
            parameters.service_of(values),
            parameters.filter_of(values),
            values[parameters.WAIT],
        )

        def answer(request: Plain, _: Identity) -> Reply | None:
            return None if waits else self._list(key, wanted, request.head.if_none_match)

        return answer

    def _list(self, key: ServiceKey, wanted: Filter, held: str) -> Reply:
        etag = f'"{self._lists.etag(key)}"'
        if held and etag in held:
            return Reply(304, etag=etag)
        return Reply(200, self._lists.encoded(key, wanted), etag)

    async def _changed(self, request: web.Request, key: ServiceKey, seconds: float) -> None:
        limit = self._book.settings.max_long_polls
        if self._waiting >= limit:
            raise Problem(
                "limit_reached",
                f"{limit} requests wait for changes of this registry's lists (--max-long-polls)",
            )
        changed = asyncio.Event()
        call_off = self._book.outlet.watch(key, changed.set)
        connection = request.protocol
        if isinstance(connection, Connection):
            # Who has gone waits for nothing.
            connection.on_lost = changed.set
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
            call_off()
            if isinstance(connection, Connection):
                connection.on_lost = None

    async def register(self, request: web.Request, values: Values) -> web.Response:
        """Enter an instance for a plain HTTP client."""
        who = await identity(request)
        wanted = await body(request, InstanceBody)
        entry = wanted.entry(parameters.service_of(values))
        if entry.ephemeral:
            return self._enter(who, entry).response()
        laid = await self._rulings.define(request, Definition(entry=entry, check=wanted.check))
        return json_response(Stored(instance=laid, term=0), status=201)

    def register_at_once(self, values: Values) -> AtOnce:
        """Make what enters instances of a service that need no second look.

        What is laid down waits for the store, and what a pod enters may be taken back at once.
        """
        key = parameters.service_of(values)

        def answer(request: Plain, who: Identity) -> Reply | None:
            wanted = read_body(request.body, InstanceBody)
            settled = wanted.ephemeral and not wanted.owner
            return self._enter(who, wanted.entry(key)) if settled else None

        return answer

    def _enter(self, who: Identity, entry: Entry) -> Reply:
        policy.may_speak_for(who, entry.owner)
        ref = entry.ref
        lease = http_lease(ref)
        term = self._book.apply(lambda c, now: c.register_http(lease, entry, term=0, now=now))
        shown = self._book.catalog.instance(ref, lease)
        if shown is None:
            # What is refused must not come up when the operator has gone.
            self._book.apply(lambda c, now: c.deregister(lease, [ref], now))
            raise Problem("forbidden", "the operator speaks for this pod, and does not name this instance")
        return Reply(201, encode(Stored(instance=shown, term=term)))

    async def beat(self, request: web.Request, values: Values) -> web.Response:
        """Hear an instance; one that is unknown and carried by the beat is registered, a little later."""
        who = await identity(request)
        ref = parameters.ref_of(values)
        try:
            data = await payload(request)
            return self._hear(who, http_lease(ref), ref, values[TERM], data).response()
        except Problem:
            self._beats["http", "refused"] += 1
            raise

    def beat_at_once(self, values: Values) -> AtOnce:
        """Make what hears one instance."""
        ref, term = parameters.ref_of(values), values[TERM]
        lease = http_lease(ref)

        def answer(request: Plain, who: Identity) -> Reply:
            return self._hear(who, lease, ref, term, request.body)

        return answer

    def _hear(self, who: Identity, lease: LeaseId, ref: EntryRef, term: int, data: bytes) -> Reply:
        policy.may_speak_for(who, ref.owner)
        carried = None
        if data:
            carried = read_body(data, InstanceBody).entry(ref.service_key)
            if not carried.ephemeral:
                raise bad_value("ephemeral", False, "true: what is laid down is not beaten")  # noqa: FBT003
            if carried.ref != ref:
                raise bad_value(
                    "body", _named(carried.ref), f"the instance that the URL names, {_named(ref)}"
                )
        try:
            self._book.apply(lambda c, now: c.beat_http(lease, ref, term=term, now=now))
        except Problem as problem:
            if problem.code != "unknown_instance" or carried is None:
                raise
            entry = carried
            self._book.defer(lambda c, now: _register_unknown(c, lease, entry, now))
            self._beats["http", "registered"] += 1
        else:
            self._beats["http", "heard"] += 1
        return _HEARD

    async def change(self, request: web.Request, values: Values) -> web.Response:
        """Change what a plain HTTP client said about its instance, or a persistent instance."""
        who = await identity(request)
        ref = parameters.ref_of(values)
        policy.may_speak_for(who, ref.owner)
        wanted = await body(request, Change)
        new = {
            name: value
            for name in ("weight", "enabled", "metadata")
            if (value := getattr(wanted, name)) is not None
        }
        lease_id = http_lease(ref)
        lease = self._book.catalog.lease(lease_id)
        held = lease.entries.get(ref) if lease is not None and lease.kind is Kind.HTTP else None
        if lease is None or held is None:
            return await self._change_definition(request, ref, new, wanted.check)
        if wanted.check is not None:
            raise Problem(
                "conflict",
                "the instance is ephemeral: it lives by its beats, and is not checked",
                field="check",
                accepted="nothing, for an ephemeral instance",
            )
        entry = check_entry(msgspec.structs.replace(held.entry, alive=not held.down, **new))
        self._book.apply(lambda c, now: c.register(lease_id, [entry], now))
        shown = self._book.catalog.instance(ref, lease_id)
        if shown is None:
            raise Problem("forbidden", "the operator speaks for this pod, and does not name this instance")
        return json_response(Stored(instance=shown, term=held.term))

    async def _change_definition(
        self, request: web.Request, ref: EntryRef, new: dict[str, Any], check: Check | None
    ) -> web.Response:
        if self._rulings.definition(ref) is None:
            raise Problem(
                "unknown_instance",
                "no instance was registered over HTTP under this key; sessions change their own",
            )
        if check is not None:
            check_check(check, "check")

        def changed(known: Definition) -> Definition:
            entry = check_entry(msgspec.structs.replace(known.entry, **new))
            try:
                check_persistent(entry)
            except Problem as problem:
                # It is what the instance is that forbids it; for an ephemeral one it were all right.
                raise Problem(
                    "conflict", problem.detail, field=problem.field, accepted=problem.accepted
                ) from None
            return Definition(entry=entry, check=check or known.check)

        laid = await self._rulings.redefine(request, ref, changed)
        return json_response(Stored(instance=laid, term=0))

    async def deregister(self, request: web.Request, values: Values) -> web.Response:
        """Take an instance out of the book; with force, whoever entered it, its override too."""
        who = await identity(request)
        ref = parameters.ref_of(values)
        if values[FORCE]:
            gone = await self._rulings.force(request, ref)
        else:
            policy.may_speak_for(who, ref.owner)
            operators = who.role is not Role.POD
            gone = self._book.apply(lambda c, now: c.deregister_everywhere(ref, operators=operators, now=now))
            if not gone and self._rulings.definition(ref) is not None:
                await self._rulings.undefine(request, ref)
                gone = True
        if not gone:
            raise Problem("unknown_instance", f"{ref.service} has no such instance")
        return web.Response(status=204)


def _register_unknown(catalog: Catalog, lease: LeaseId, entry: Entry, now: float) -> None:
    """Register what a full beat carried, unless it has ended or been registered in the meantime."""
    known = catalog.lease(lease)
    if not catalog.has_ended(lease, entry.ref) and (known is None or entry.ref not in known.entries):
        catalog.register_http(lease, entry, term=0, now=now)


def _named(ref: EntryRef) -> str:
    return f"{ref.key} of {ref.service_key}"


_HEARD: Final = Reply(202)
_EPHEMERAL_OR_LAID: Final = {
    "if": {"properties": {"ephemeral": {"const": False}}, "required": ["ephemeral"]},
    "then": {
        "properties": {
            "owner": {"const": ""},
            "metadata": {"properties": dict.fromkeys(TIMING_KEYS, False)},
        }
    },
    "else": {"properties": {"check": {"type": "null"}}},
}
_BODY: Final = {"ip": "10.0.0.7", "port": 8080, "metadata": {"version": "2"}}
_STORED: Final = Stored(
    instance=Instance(
        key=InstanceKey("10.0.0.7:8080:DEFAULT"), ip="10.0.0.7", port=8080, metadata={"version": "2"}
    ),
    term=1,
)
_LIST: Final = ServiceList(
    namespace=DEFAULT_NAMESPACE,
    group=DEFAULT_GROUP,
    service="orders",
    revision="3cf37261.7",
    settled=True,
    instances=[_STORED.instance],
)
