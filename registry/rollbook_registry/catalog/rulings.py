"""Rulings: what the store has laid down: definitions, overrides, settings, namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rollbook.model import EntryRef
from rollbook_registry.catalog.merge import Shown

if TYPE_CHECKING:
    from rollbook.model import Instance
    from rollbook.names import ServiceKey
    from rollbook_registry.catalog.definitions import Definition, Namespace, Override, ServiceSettings
    from rollbook_registry.catalog.merge import Visible


def ref_of(service: ServiceKey, instance: Instance) -> EntryRef:
    """Return the name of an instance as it is shown; overrides are laid down under it."""
    return EntryRef(
        service=service.name,
        namespace=service.namespace,
        group=service.group,
        ip=instance.ip,
        port=instance.port,
        cluster=instance.cluster,
        owner=instance.owner,
    )


class Rulings:
    """What has been laid down. Only the catalog changes it, by :meth:`Catalog.rule`."""

    def __init__(self) -> None:
        self.definitions: dict[EntryRef, Definition] = {}
        self.overrides: dict[EntryRef, Override] = {}
        self.services: dict[ServiceKey, ServiceSettings] = {}
        self.namespaces: dict[str, Namespace] = {}

    def override(self, visible: Visible) -> Visible:
        """Put the administrators' word above what was merged."""
        if not self.overrides:
            return visible
        return tuple(Shown(one.service, self._overridden(one.service, one.instance)) for one in visible)

    def _overridden(self, service: ServiceKey, instance: Instance) -> Instance:
        override = self.overrides.get(ref_of(service, instance))
        if override is None:
            return instance
        return msgspec.structs.replace(
            instance,
            enabled=instance.enabled if override.enabled is None else override.enabled,
            weight=instance.weight if override.weight is None else override.weight,
        )

    def protect_threshold(self, service: ServiceKey) -> float | None:
        """Return at which share of healthy instances a service's list is marked; ``None``: never."""
        settings = self.services.get(service)
        return settings.protect_threshold if settings is not None else None
