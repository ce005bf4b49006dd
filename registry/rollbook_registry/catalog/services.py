"""Services: ``Map<namespace, Map<group::service, Service>>``, each with its list, its number and its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import xxhash

from rollbook.digest import instance_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rollbook.model import Instance
    from rollbook.names import InstanceKey, ServiceKey
    from rollbook_registry.catalog.events import ServiceChanged

LOG_LENGTH: Final = 128
"""Changes of one service that are remembered; a subscriber that is further behind gets a snapshot."""


class Service:
    """One service's list.

    Attributes:
        number: which list this is; grows with every change, and never repeats in one life of the registry.
        digest: see :mod:`rollbook.digest`.
        emptied: when it became empty; ``None`` while it isn't.
    """

    __slots__ = (
        "_log",
        "digest",
        "emptied",
        "healthy",
        "instances",
        "key",
        "number",
        "persistent",
        "persistent_healthy",
    )

    def __init__(self, key: ServiceKey, *, number: int, now: float) -> None:
        self.key = key
        self.instances: dict[InstanceKey, Instance] = {}
        self.healthy = 0
        self.persistent = 0
        self.persistent_healthy = 0
        self.number = number
        self.digest = 0
        self.emptied: float | None = now
        self._log: list[tuple[int, *tuple[InstanceKey, ...]]] = []
        """Of each change: the list before it, and whose keys it was about."""

    def put(self, instance: Instance) -> None:
        """Enter an instance, or change it."""
        old = self.instances.get(instance.key)
        if old is not None:
            self._discount(old)
        self.instances[instance.key] = instance
        self.digest ^= instance_digest(instance)
        self.healthy += instance.healthy
        if not instance.ephemeral:
            self.persistent += 1
            self.persistent_healthy += instance.healthy

    def drop(self, key: InstanceKey) -> None:
        """Strike an instance out."""
        self._discount(self.instances.pop(key))

    def _discount(self, instance: Instance) -> None:
        self.digest ^= instance_digest(instance)
        self.healthy -= instance.healthy
        if not instance.ephemeral:
            self.persistent -= 1
            self.persistent_healthy -= instance.healthy

    def record(self, change: ServiceChanged, now: float) -> None:
        """Remember a change that has been made, for subscribers that are a little behind."""
        self.number = change.number
        # Not the change itself: it would keep instances that are long replaced.
        keys = (*[i.key for i in change.put], *change.drop)
        self._log.append((change.base, *keys))
        if len(self._log) > LOG_LENGTH:
            del self._log[0]
        self.emptied = None if self.instances else now

    def since(self, number: int) -> tuple[list[Instance], list[InstanceKey]] | None:
        """What changed since a list, merged: each key once, as it is now; ``None`` if that is forgotten."""
        if number == self.number:
            return [], []
        touched: dict[InstanceKey, None] = {}
        for base, *keys in reversed(self._log):
            touched.update(dict.fromkeys(keys))
            if base == number:
                break
        else:
            return None
        put = [self.instances[k] for k in touched if k in self.instances]
        return put, [k for k in touched if k not in self.instances]


def _list_digest(service: Service) -> int:
    """Return a list's part in the whole book's digest. An empty list is no list: it has none."""
    return xxhash.xxh64_intdigest(f"{service.key} {service.digest}".encode()) if service.digest else 0


class Usage:
    """How much is in a namespace."""

    __slots__ = ("instances", "services")

    def __init__(self) -> None:
        self.instances = 0
        self.services = 0


_NOTHING: Final = Usage()


class Services:
    """All services, by namespace."""

    def __init__(self) -> None:
        self._namespaces: dict[str, dict[ServiceKey, Service]] = {}
        self._usage: dict[str, Usage] = {}
        self._count = 0
        self.instances = 0
        """Instances in all services."""
        self._digest = 0
        self._parts: dict[ServiceKey, int] = {}
        """What each list has brought into the digest."""
        self._stale: dict[ServiceKey, None] = {}
        """Lists that have changed since."""

    @property
    def digest(self) -> int:
        """XOR over all lists, to be compared with other replicas'.

        It is worked out when somebody asks: replicas do every few seconds, and who is alone never does.
        """
        for key in self._stale:
            service = self.get(key)
            part = _list_digest(service) if service is not None else 0
            self._digest ^= self._parts.pop(key, 0) ^ part
            if part:
                self._parts[key] = part
        self._stale.clear()
        return self._digest

    def usage(self, namespace: str) -> Usage:
        """Return how much is in a namespace. It is not to be changed."""
        return self._usage.get(namespace, _NOTHING)

    def namespaces(self) -> Iterator[str]:
        """The namespaces that have services."""
        yield from self._namespaces

    def changed(self, service: Service, by: int) -> None:
        """Take notice that a list is another one, and how many more instances it has."""
        self._stale[service.key] = None
        if by:
            self.instances += by
            self._usage[service.key.namespace].instances += by

    def get(self, key: ServiceKey) -> Service | None:
        """Return a service, if it is there."""
        namespace = self._namespaces.get(key.namespace)
        return None if namespace is None else namespace.get(key)

    def add(self, service: Service) -> None:
        """Add a service that isn't there."""
        key = service.key
        self._namespaces.setdefault(key.namespace, {})[key] = service
        self._usage.setdefault(key.namespace, Usage()).services += 1
        self._count += 1

    def discard(self, key: ServiceKey) -> None:
        """Remove a service, and its namespace with the last one."""
        namespace = self._namespaces.get(key.namespace, {})
        if namespace.pop(key, None) is None:
            return
        if key not in self._parts:
            # Nobody was told of it while it had a list.
            self._stale.pop(key, None)
        self._count -= 1
        self._usage[key.namespace].services -= 1
        if not namespace:
            del self._namespaces[key.namespace]
            del self._usage[key.namespace]

    def __iter__(self) -> Iterator[Service]:
        for namespace in self._namespaces.values():
            yield from namespace.values()

    def within(self, namespace: str) -> Iterator[Service]:
        """All services of a namespace."""
        yield from self._namespaces.get(namespace, {}).values()

    def __len__(self) -> int:
        return self._count
