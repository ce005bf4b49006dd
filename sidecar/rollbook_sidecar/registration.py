"""Registration: what the sidecar says about its application, as a pure function of its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rollbook.model import (
    HEARTBEAT_INTERVAL_KEY,
    REMOVE_AFTER_KEY,
    UNHEALTHY_AFTER_KEY,
    Entry,
    check_entry,
)
from rollbook.names import ServiceKey
from rollbook_sidecar import forms

if TYPE_CHECKING:
    from rollbook_sidecar.settings import Settings

DEFAULT_TEMPLATE: Final = "{service}:{port}:{host}"
"""The instance id: the service and port, made unique by the pod's or the host's name."""

PORT_NAME_KEY: Final = "port-name"
"""The metadata key under which a named port's name is found."""


def entries(settings: Settings, *, ip: str, host: str, field: str = "") -> tuple[Entry, ...]:
    """Return the entries to be registered, one a port; none without a service.

    They are not alive unless nothing is checked: the first check that succeeds makes them so.

    Args:
        settings: of this sidecar.
        ip: where others reach the application.
        host: this machine's name, for the instance id where no other is set.
        field: a prefix for the names in errors.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if not settings.service:
        return ()
    pairs = forms.metadata(settings.metadata)
    for key, seconds in (
        (HEARTBEAT_INTERVAL_KEY, settings.heartbeat_interval),
        (UNHEALTHY_AFTER_KEY, settings.unhealthy_after),
        (REMOVE_AFTER_KEY, settings.remove_after),
    ):
        if seconds:
            pairs[key] = str(round(seconds * 1000))
    unchecked = forms.health_check(settings.health_check).kind == "none"
    made = []
    for name, port in forms.ports(settings.ports):
        instance_id = settings.instance_id.format(
            service=settings.service,
            port=port,
            host=settings.pod_name or host,
            pod=settings.pod_name or host,
            node=settings.node_name or host,
            namespace=settings.namespace,
        )
        entry = Entry(
            service=settings.service,
            namespace=settings.namespace,
            group=settings.group,
            cluster=settings.cluster,
            ip=ip,
            port=port,
            weight=settings.weight,
            metadata={**pairs, PORT_NAME_KEY: name} if name else pairs,
            instance_id=instance_id,
            owner=settings.owner,
            alive=True if unchecked else None,
        )
        made.append(check_entry(entry, field))
    return tuple(made)


def services(settings: Settings) -> tuple[ServiceKey, ...]:
    """Return the services that the application is registered in."""
    if not settings.service:
        return ()
    return (ServiceKey(settings.namespace, settings.group, settings.service),)


def beat_interval(settings: Settings) -> float | None:
    """Return the longest time between beats, in seconds, that these settings allow; ``None``: any.

    An instance that turns unhealthy after a short silence must be heard more often than that: three beats in
    that time, as with the registry's own 5 and 15 seconds.
    """
    wanted = [settings.heartbeat_interval, settings.unhealthy_after / 3, settings.remove_after / 3]
    return min((seconds for seconds in wanted if seconds), default=None)
