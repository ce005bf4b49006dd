"""What administrators lay down: overrides, services' settings, namespaces, and persistent instances.

Each answer to a write says that the store has committed it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from aiohttp import web

from rollbook.limits import MAX_DESCRIPTION_LENGTH
from rollbook.model import Instance, check_metadata, check_weight
from rollbook.problems import Problem, bad_value
from rollbook_registry.api import parameters, schemas
from rollbook_registry.api.doors import body, identity, json_response
from rollbook_registry.api.routes import Answer, Body, Route
from rollbook_registry.auth import policy
from rollbook_registry.catalog import Reason
from rollbook_registry.catalog.definitions import (
    Check,
    Configured,
    Defined,
    Named,
    Namespace,
    Overridden,
    Override,
    ServiceSettings,
    check_check,
)
from rollbook_registry.catalog.explain import explain
from rollbook_registry.catalog.leases import DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollbook.model import Entry, EntryRef
    from rollbook.names import ServiceKey
    from rollbook_registry.api.routes import Values
    from rollbook_registry.book import Book
    from rollbook_registry.catalog.definitions import Definition, Ruling
    from rollbook_registry.rulebook import Rulebook

MAX_QUOTA: Final = 2**53

_Weight = Annotated[float, msgspec.Meta(extra_json_schema=schemas.WEIGHT)]
_Text = Annotated[str, msgspec.Meta(extra_json_schema={"maxLength": MAX_DESCRIPTION_LENGTH})]
_Share = Annotated[float, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": 1})]
_Quota = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": MAX_QUOTA})]
_Metadata = Annotated[dict[str, str], msgspec.Meta(extra_json_schema=schemas.METADATA)]


class OverrideBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What shall stand above what an instance's publishers say; what is absent is as they say."""

    enabled: bool | None = None
    weight: _Weight | None = None
    reason: _Text = ""


class ReasonBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why, for people."""

    reason: _Text = ""


class SettingsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A service's settings, all of them; what is absent is as by default."""

    protect_threshold: _Share | None = None
    metadata: _Metadata = {}
    check: Check | None = None


class NamespaceBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A namespace's record; what is absent is as by default."""

    title: _Text = ""
    description: _Text = ""
    max_services: _Quota | None = None
    max_instances: _Quota | None = None


class OverrideShown(msgspec.Struct, kw_only=True):
    """An override, and the instance under it, if it is in the book."""

    key: str
    override: Override
    instance: Instance | None


class OverrideListed(msgspec.Struct, kw_only=True):
    """An override."""

    namespace: str
    group: str
    service: str
    key: str
    override: Override


class Overrides(msgspec.Struct, kw_only=True):
    """All overrides of a namespace."""

    overrides: list[OverrideListed]


class NamespaceShown(msgspec.Struct, kw_only=True):
    """A namespace, and how much is in it.

    Attributes:
        record: what was laid down about it; ``None``: it exists because it has services.
    """

    namespace: str
    services: int
    instances: int
    record: Namespace | None


class Namespaces(msgspec.Struct, kw_only=True):
    """All namespaces."""

    namespaces: list[NamespaceShown]


_INSTANCE: Final = "/services/{service}/instances/{key}"
_SETTINGS: Final = "/services/{service}/settings"
_OF_INSTANCE: Final = (parameters.KEY, *parameters.OF_SERVICE)
_LAID: Final = ("store_unavailable",)
_SAYS_SOMETHING: Final = {
    "anyOf": [
        {"required": ["enabled"], "properties": {"enabled": {"type": "boolean"}}},
        {"required": ["weight"], "properties": {"weight": {"type": "number"}}},
    ]
}


class Rulings:
    """The handlers.

    Args:
        book: the book.
        rulebook: takes what is laid down to the store.
    """

    def __init__(self, book: Book, rulebook: Rulebook) -> None:
        self._book = book
        self._rulebook = rulebook
        self._coming: dict[EntryRef, Entry] = {}
        """Persistent instances on their way to the store."""
        self._configuring: dict[ServiceKey, None] = {}
        """Services whose settings are."""

    def routes(self) -> list[Route]:
        """Return what is served here."""
        return [*self._override_routes(), *self._settings_routes(), *self._namespace_routes()]

    # --- persistent instances --------------------------------------------------------------------------

    def definition(self, ref: EntryRef) -> Definition | None:
        """Return the definition of a persistent instance."""
        return self._book.catalog.rulings.definitions.get(ref)

    async def define(self, request: web.Request, definition: Definition) -> Instance:
        """Lay down a persistent instance, and return it as the book shows it.

        Raises:
            Problem: 401, 403; 429 for a full book; 503 ``store_unavailable``.
        """
        policy.may_administer(await identity(request), "lay down a persistent instance")
        entry = definition.entry
        ref = entry.ref
        # Those on their way to the store count: else any number that come at once would find room.
        self._book.catalog.check_room(DEFINITIONS, [*self._coming.values(), entry])
        self._coming[ref] = entry
        try:
            await self._rulebook.lay_down(Defined(ref, definition))
        finally:
            if self._coming.get(ref) is entry:
                del self._coming[ref]
        return self._defined(ref)

    async def redefine(
        self, request: web.Request, ref: EntryRef, changed: Callable[[Definition], Definition]
    ) -> Instance:
        """Change a persistent instance, and return it as the book shows it.

        Args:
            request: who asks.
            ref: which instance.
            changed: makes of the definition that there is the one that there shall be.

        Raises:
            Problem: 401, 403; 404 ``unknown_instance``; 409 ``conflict``; 503 ``store_unavailable``.
        """
        policy.may_administer(await identity(request), "change a persistent instance")

        def revised(known: Defined) -> Defined:
            if known.definition is None:
                raise Problem("unknown_instance", f"{ref.key} of {ref.service} was taken back")
            return Defined(ref, changed(known.definition))

        await self._rulebook.revise(Defined(ref, None), revised)
        return self._defined(ref)

    async def undefine(self, request: web.Request, ref: EntryRef) -> None:
        """Take a persistent instance back."""
        policy.may_administer(await identity(request), "take a persistent instance back")
        await self._rulebook.lay_down(Defined(ref, None))

    async def force(self, request: web.Request, ref: EntryRef) -> bool:
        """Strike an instance out whoever entered it, with its definition and override; was there anything?"""
        policy.may_administer(await identity(request), "strike an instance out by force")
        rulings = self._book.catalog.rulings
        taken: list[Ruling] = []
        if ref in rulings.definitions:
            taken.append(Defined(ref, None))
        if ref in rulings.overrides:
            taken.append(Overridden(ref, None))
        if taken:
            await self._rulebook.lay_down(*taken)
        struck = self._book.apply(
            lambda c, now: c.deregister_everywhere(ref, operators=True, now=now, reason=Reason.FORCED)
        )
        return struck or bool(taken)

    # --- overrides -------------------------------------------------------------------------------------

    def _override_routes(self) -> list[Route]:
        shown = (Answer(status=200, about="It is laid down.", type=OverrideShown),)
        return [
            Route(
                method="GET",
                path="/overrides",
                handler=self.overrides,
                parameters=(parameters.NAMESPACE,),
                answers=(Answer(status=200, about="All overrides of a namespace.", type=Overrides),),
            ),
            Route(
                method="GET",
                path=f"{_INSTANCE}/override",
                handler=self.override,
                parameters=_OF_INSTANCE,
                answers=(Answer(status=200, about="What is laid down.", type=OverrideShown),),
                problems=("not_found",),
            ),
            Route(
                method="PUT",
                path=f"{_INSTANCE}/override",
                handler=self.lay_override,
                parameters=_OF_INSTANCE,
                body=Body(
                    type=OverrideBody,
                    about="What shall stand.",
                    example={"weight": 0.5},
                    also=_SAYS_SOMETHING,
                ),
                answers=shown,
                problems=("pod_gone", "conflict", *_LAID),
                writes=True,
            ),
            Route(
                method="DELETE",
                path=f"{_INSTANCE}/override",
                handler=self.lift_override,
                parameters=_OF_INSTANCE,
                answers=(Answer(status=204, about="Its publishers' word counts again."),),
                problems=("not_found", *_LAID),
                writes=True,
            ),
            Route(
                method="POST",
                path=f"{_INSTANCE}/offline",
                handler=self.offline,
                parameters=_OF_INSTANCE,
                body=Body(type=ReasonBody, about="Why.", required=False, example={"reason": "disk swap"}),
                answers=shown,
                problems=("pod_gone", "conflict", *_LAID),
                writes=True,
            ),
            Route(
                method="POST",
                path=f"{_INSTANCE}/online",
                handler=self.online,
                parameters=_OF_INSTANCE,
                answers=(Answer(status=204, about="Its publishers say again whether it is enabled."),),
                problems=("conflict", *_LAID),
                writes=True,
            ),
        ]

    async def overrides(self, _: web.Request, values: Values) -> web.Response:
        """List the overrides of a namespace."""
        namespace = values[parameters.NAMESPACE]
        found = [
            OverrideListed(
                namespace=ref.namespace,
                group=ref.group,
                service=ref.service,
                key=ref.key,
                override=override,
            )
            for ref, override in self._book.catalog.rulings.overrides.items()
            if ref.namespace == namespace
        ]
        return json_response(Overrides(overrides=found))

    async def override(self, _: web.Request, values: Values) -> web.Response:
        """Show what is laid down about an instance."""
        ref = parameters.ref_of(values)
        self._known_override(ref)
        return self._override_response(ref)

    async def lay_override(self, request: web.Request, values: Values) -> web.Response:
        """Lay down what stands above what an instance's publishers say, whether or not it is in the book."""
        policy.may_administer(await identity(request), "override an instance")
        ref = parameters.ref_of(values)
        wanted = await body(request, OverrideBody)
        _check_text("reason", wanted.reason)
        if wanted.weight is not None:
            check_weight(wanted.weight)
        if wanted.enabled is None and wanted.weight is None:
            raise Problem(
                "bad_value",
                "the override says nothing; to have none, DELETE it",
                field="body",
                accepted="enabled, weight, or both",
            )
        self._check_not_gone(ref)
        override = Override(
            enabled=wanted.enabled, weight=wanted.weight, reason=wanted.reason, at=time.time()
        )
        await self._rulebook.lay_down(Overridden(ref, override))
        return self._override_response(ref)

    async def lift_override(self, request: web.Request, values: Values) -> web.Response:
        """Lift an override."""
        policy.may_administer(await identity(request), "lift an override")
        ref = parameters.ref_of(values)
        self._known_override(ref)
        await self._rulebook.lay_down(Overridden(ref, None))
        return web.Response(status=204)

    async def offline(self, request: web.Request, values: Values) -> web.Response:
        """Take an instance out of balancing by hand; it stays so through restarts and registrations."""
        policy.may_administer(await identity(request), "take an instance offline")
        ref = parameters.ref_of(values)
        reason = (await body(request, ReasonBody)).reason if request.can_read_body else ""
        _check_text("reason", reason)
        self._check_not_gone(ref)

        def revised(known: Overridden) -> Overridden:
            weight = known.override.weight if known.override is not None else None
            return Overridden(ref, Override(enabled=False, weight=weight, reason=reason, at=time.time()))

        await self._rulebook.revise(Overridden(ref, None), revised)
        return self._override_response(ref)

    async def online(self, request: web.Request, values: Values) -> web.Response:
        """Take back that an instance is offline; whether it is enabled is its publishers' word again."""
        policy.may_administer(await identity(request), "take an instance online")
        ref = parameters.ref_of(values)

        def revised(known: Overridden) -> Overridden | None:
            before = known.override
            if before is None or before.enabled is None:
                return None
            if before.weight is None:
                return Overridden(ref, None)
            return Overridden(ref, msgspec.structs.replace(before, enabled=None))

        await self._rulebook.revise(Overridden(ref, None), revised)
        return web.Response(status=204)

    # --- services' settings ----------------------------------------------------------------------------

    def _settings_routes(self) -> list[Route]:
        of_service = parameters.OF_SERVICE
        shown = (Answer(status=200, about="The settings.", type=ServiceSettings),)
        return [
            Route(
                method="GET",
                path=_SETTINGS,
                handler=self.settings,
                parameters=of_service,
                answers=shown,
                problems=("not_found",),
            ),
            Route(
                method="PUT",
                path=_SETTINGS,
                handler=self.lay_settings,
                parameters=of_service,
                body=Body(
                    type=SettingsBody,
                    about="All settings of the service.",
                    example={"protect_threshold": 0.3},
                ),
                answers=shown,
                problems=("limit_reached", *_LAID),
                writes=True,
            ),
            Route(
                method="DELETE",
                path=_SETTINGS,
                handler=self.lift_settings,
                parameters=of_service,
                answers=(Answer(status=204, about="It has none of its own any more."),),
                problems=("not_found", *_LAID),
                writes=True,
            ),
        ]

    async def settings(self, _: web.Request, values: Values) -> web.Response:
        """Show a service's settings."""
        return json_response(self._known_settings(parameters.service_of(values)))

    async def lay_settings(self, request: web.Request, values: Values) -> web.Response:
        """Lay down a service's settings; it is kept from then on though it be empty."""
        policy.may_administer(await identity(request), "set a service up")
        key = parameters.service_of(values)
        wanted = await body(request, SettingsBody)
        threshold = wanted.protect_threshold
        if threshold is not None and not 0 <= threshold <= 1:
            raise bad_value("protect_threshold", threshold, "a share from 0 to 1, or nothing for never")
        check_metadata(wanted.metadata, "metadata")
        check = check_check(wanted.check, "check") if wanted.check is not None else None
        settings = ServiceSettings(protect_threshold=threshold, metadata=wanted.metadata, check=check)
        self._book.catalog.check_services([*self._configuring, key])
        self._configuring[key] = None
        try:
            await self._rulebook.lay_down(Configured(key, settings))
        finally:
            self._configuring.pop(key, None)
        return json_response(settings)

    async def lift_settings(self, request: web.Request, values: Values) -> web.Response:
        """Take a service's settings back."""
        policy.may_administer(await identity(request), "set a service up")
        key = parameters.service_of(values)
        self._known_settings(key)
        await self._rulebook.lay_down(Configured(key, None))
        return web.Response(status=204)

    # --- namespaces ------------------------------------------------------------------------------------

    def _namespace_routes(self) -> list[Route]:
        path = "/namespaces/{namespace}"
        return [
            Route(
                method="GET",
                path="/namespaces",
                handler=self.namespaces,
                answers=(
                    Answer(
                        status=200, about="Those with a record, and those with services.", type=Namespaces
                    ),
                ),
            ),
            Route(
                method="PUT",
                path=path,
                handler=self.lay_namespace,
                parameters=(parameters.THE_NAMESPACE,),
                body=Body(type=NamespaceBody, about="Its record.", example={"title": "Test"}),
                answers=(Answer(status=200, about="It is laid down.", type=NamespaceShown),),
                problems=_LAID,
                writes=True,
            ),
            Route(
                method="DELETE",
                path=path,
                handler=self.lift_namespace,
                parameters=(parameters.THE_NAMESPACE,),
                answers=(Answer(status=204, about="Its record is gone; its services stay."),),
                problems=("not_found", *_LAID),
                writes=True,
            ),
        ]

    async def namespaces(self, _: web.Request, values: Values) -> web.Response:
        """List the namespaces."""
        del values
        catalog = self._book.catalog
        found = sorted({*catalog.rulings.namespaces, *catalog.services.namespaces()})
        return json_response(Namespaces(namespaces=[self._namespace(name) for name in found]))

    async def lay_namespace(self, request: web.Request, values: Values) -> web.Response:
        """Lay down a namespace's record, with its quotas."""
        policy.may_administer(await identity(request), "name a namespace")
        namespace = values[parameters.THE_NAMESPACE]
        wanted = await body(request, NamespaceBody)
        for field in ("title", "description"):
            _check_text(field, getattr(wanted, field))
        for field in ("max_services", "max_instances"):
            quota = getattr(wanted, field)
            if quota is not None and not 0 <= quota <= MAX_QUOTA:
                raise bad_value(
                    field, quota, "a whole number from 0, or nothing for the registry's own limit"
                )
        record = Namespace(
            title=wanted.title,
            description=wanted.description,
            max_services=wanted.max_services,
            max_instances=wanted.max_instances,
        )
        await self._rulebook.lay_down(Named(namespace, record))
        return json_response(self._namespace(namespace))

    async def lift_namespace(self, request: web.Request, values: Values) -> web.Response:
        """Take a namespace's record back."""
        policy.may_administer(await identity(request), "name a namespace")
        namespace = values[parameters.THE_NAMESPACE]
        if namespace not in self._book.catalog.rulings.namespaces:
            raise Problem("not_found", f"namespace {namespace} has no record")
        await self._rulebook.lay_down(Named(namespace, None))
        return web.Response(status=204)

    # --- inside ----------------------------------------------------------------------------------------

    def _shown(self, ref: EntryRef) -> Instance | None:
        return explain(self._book.catalog, ref, self._book.now()).instance

    def _defined(self, ref: EntryRef) -> Instance:
        shown = self._shown(ref)
        if shown is None or ref not in self._book.catalog.rulings.definitions:
            raise Problem("conflict", "it was laid down, and another writer has taken it back since")
        return shown

    def _check_not_gone(self, ref: EntryRef) -> None:
        # It would be lifted at once.
        if ref.owner and self._book.catalog.pods.state(ref.owner) == "fenced":
            raise Problem("pod_gone", f"pod {ref.owner} is confirmed gone; there is nothing to override")

    def _known_override(self, ref: EntryRef) -> Override:
        override = self._book.catalog.rulings.overrides.get(ref)
        if override is None:
            raise Problem("not_found", f"nothing is laid down about {ref.key} of {ref.service}")
        return override

    def _override_response(self, ref: EntryRef) -> web.Response:
        override = self._book.catalog.rulings.overrides.get(ref)
        if override is None:
            raise Problem("conflict", "it was laid down, and another writer has lifted it since")
        return json_response(OverrideShown(key=ref.key, override=override, instance=self._shown(ref)))

    def _known_settings(self, key: ServiceKey) -> ServiceSettings:
        settings = self._book.catalog.rulings.services.get(key)
        if settings is None:
            raise Problem("not_found", f"{key} has no settings of its own")
        return settings

    def _namespace(self, namespace: str) -> NamespaceShown:
        catalog = self._book.catalog
        usage = catalog.services.usage(namespace)
        return NamespaceShown(
            namespace=namespace,
            services=usage.services,
            instances=usage.instances,
            record=catalog.rulings.namespaces.get(namespace),
        )


def _check_text(field: str, value: str) -> None:
    if len(value) > MAX_DESCRIPTION_LENGTH:
        raise bad_value(field, value, f"at most {MAX_DESCRIPTION_LENGTH} characters")
