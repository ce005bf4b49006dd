"""Quotas: how much may be in the book, in all and per namespace."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rollbook.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rollbook.model import Entry
    from rollbook.names import ServiceKey
    from rollbook_registry.catalog.rulings import Rulings
    from rollbook_registry.catalog.services import Services


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quotas:
    """The limits of the whole book; each is a setting.

    Attributes:
        max_instances: instances in all.
        max_services: services in all, those that are empty but still listed included.
    """

    max_instances: int = 200_000
    max_services: int = 50_000


def check_quotas(
    entries: Iterable[Entry],
    *,
    known: Callable[[Entry], bool],
    quotas: Quotas,
    services: Services,
    rulings: Rulings,
) -> None:
    """Refuse what would make the book, or a namespace, larger than it may be.

    Args:
        entries: to be entered together.
        known: says whether an entry is about an instance that is there already; that may always be said
            again, at a full quota too.
        quotas: of the whole book.
        services: what there is.
        rulings: have the quotas of namespaces.

    Raises:
        Problem: 429 ``limit_reached``, naming the limit, whose it is, and where it is set.
    """
    entries = list(entries)
    if _has_room(entries, quotas=quotas, services=services, rulings=rulings):
        return
    instances: dict[str, set[object]] = {}
    names: dict[str, set[object]] = {}
    for entry in entries:
        if not known(entry):
            # A pod's port is one instance, whatever the cluster that it is said to be in.
            named = (entry.service_key, entry.ip, entry.port, entry.owner or entry.ref)
            instances.setdefault(entry.namespace, set()).add(named)
            if services.get(entry.service_key) is None:
                names.setdefault(entry.namespace, set()).add(entry.service_key)
    if not instances:
        return
    _check("instances", services.instances, sum(map(len, instances.values())), quotas.max_instances)
    _check("services", len(services), sum(map(len, names.values())), quotas.max_services)
    for namespace, new in instances.items():
        record = rulings.namespaces.get(namespace)
        if record is None:
            continue
        held = services.usage(namespace)
        if record.max_instances is not None:
            _check("instances", held.instances, len(new), record.max_instances, namespace)
        if record.max_services is not None and names.get(namespace):
            _check("services", held.services, len(names[namespace]), record.max_services, namespace)


def _has_room(entries: list[Entry], *, quotas: Quotas, services: Services, rulings: Rulings) -> bool:
    """Whether there is room for all of them, were every one a new instance in a service of its own.

    Nearly always there is, and then nobody has to find out which of them are known.
    """
    return (
        services.instances + len(entries) <= quotas.max_instances
        and len(services) + len(entries) <= quotas.max_services
        and not (rulings.namespaces and any(entry.namespace in rulings.namespaces for entry in entries))
    )


def check_service_quotas(
    keys: Iterable[ServiceKey], *, quotas: Quotas, services: Services, rulings: Rulings
) -> None:
    """Refuse services, to be listed though they are empty, that would be more than there may be.

    Raises:
        Problem: 429 ``limit_reached``, as above.
    """
    new: dict[str, set[object]] = {}
    for key in keys:
        if services.get(key) is None:
            new.setdefault(key.namespace, set()).add(key)
    _check("services", len(services), sum(map(len, new.values())), quotas.max_services)
    for namespace, names in new.items():
        record = rulings.namespaces.get(namespace)
        if record is not None and record.max_services is not None:
            held = services.usage(namespace).services
            _check("services", held, len(names), record.max_services, namespace)


def _check(what: str, held: int, new: int, limit: int, namespace: str = "") -> None:
    if new and held + new > limit:
        whose = f"namespace {namespace}" if namespace else "this registry"
        where = f"namespace {namespace}'s record" if namespace else f"--max-{what}"
        raise Problem(
            "limit_reached",
            f"{whose} holds {held} {what} and may hold {limit} ({where}); {new} more were to be entered",
            field="namespace" if namespace else "",
        )
