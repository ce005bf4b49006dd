"""Parameters that several doors have: each with the function that reads it and the form that describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rollbook import selector
from rollbook.filters import MAX_CLUSTERS, Filter, parse_clusters
from rollbook.limits import MAX_SELECTOR_LENGTH
from rollbook.model import EntryRef
from rollbook.names import (
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    MAX_CLUSTER_LENGTH,
    KeyParts,
    ServiceKey,
    check_group,
    check_namespace,
    check_service,
    parse_instance_key,
)
from rollbook.problems import bad_value
from rollbook.settings import parse_duration
from rollbook_registry.api import schemas
from rollbook_registry.api.routes import Parameter

if TYPE_CHECKING:
    from rollbook_registry.api.routes import Values

MAX_WAIT: Final = 60.0
"""Seconds that a long poll may ask to wait."""


def whole_number(name: str, default: int, *, low: int, high: int, about: str) -> Parameter[int]:
    """Make the parameter of a number."""

    def read(text: str) -> int:
        digits = text.isascii() and text.isdigit() and len(text) <= len(str(high))
        if not digits or not low <= int(text) <= high:
            raise bad_value(name, text, f"a whole number from {low} to {high}")
        return int(text)

    return Parameter(
        name=name,
        about=about,
        schema={"type": "integer", "minimum": low, "maximum": high, "default": default},
        read=read,
        default=default,
    )


def truth(name: str, about: str) -> Parameter[bool | None]:
    """Make the parameter that is ``true``, ``false`` or not given."""

    def read(text: str) -> bool:
        if text not in {"true", "false"}:
            raise bad_value(name, text, "true or false")
        return text == "true"

    return Parameter(name=name, about=about, schema={"type": "boolean"}, read=read, default=None)


def _wait(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise bad_value("wait", text, str(error)) from None
    if seconds > MAX_WAIT:
        raise bad_value("wait", text, f"at most {MAX_WAIT:g}s")
    return seconds


SERVICE: Final = Parameter(
    name="service",
    about="The service's name.",
    schema=schemas.SERVICE,
    read=check_service,
    default="",
    where="path",
    example="orders",
)
NAMESPACE: Final = Parameter(
    name="namespace",
    about="The namespace.",
    schema={**schemas.NAMESPACE, "default": DEFAULT_NAMESPACE},
    read=check_namespace,
    default=DEFAULT_NAMESPACE,
    example=DEFAULT_NAMESPACE,
)
THE_NAMESPACE: Final = Parameter(
    name="namespace",
    about="The namespace.",
    schema=schemas.NAMESPACE,
    read=check_namespace,
    default="",
    where="path",
    example="test",
)
GROUP: Final = Parameter(
    name="group",
    about="The service's group.",
    schema={**schemas.GROUP, "default": DEFAULT_GROUP},
    read=check_group,
    default=DEFAULT_GROUP,
    example=DEFAULT_GROUP,
)
ONLY_GROUP: Final[Parameter[str | None]] = Parameter(
    name="group",
    about="Only services of this group.",
    schema=schemas.GROUP,
    read=check_group,
    default=None,
    example=DEFAULT_GROUP,
)
KEY: Final = Parameter(
    name="key",
    about="The instance: ip:port[:cluster[:owner]], an IPv6 address in brackets.",
    schema=schemas.KEY,
    read=parse_instance_key,
    default=KeyParts("", 0, "", ""),
    where="path",
    example="10.0.0.7:8080",
)
CLUSTER: Final[Parameter[frozenset[str] | None]] = Parameter(
    name="cluster",
    about=f"Only instances of this cluster; several, at most {MAX_CLUSTERS}, with commas.",
    schema={
        "type": "string",
        "pattern": f"^{schemas.CLUSTER_FORM}(,{schemas.CLUSTER_FORM}){{0,{MAX_CLUSTERS - 1}}}$",
        "maxLength": MAX_CLUSTERS * (MAX_CLUSTER_LENGTH + 1) - 1,
    },
    read=parse_clusters,
    default=None,
    example="eu-1,eu-2",
)
HEALTHY: Final = truth("healthy", "Only instances that are healthy, or only those that aren't.")
SELECTOR: Final = Parameter(
    name="selector",
    about="Only instances whose metadata satisfies this, in the grammar of Kubernetes' label selectors.",
    schema={"type": "string", "maxLength": MAX_SELECTOR_LENGTH, "pattern": selector.PATTERN},
    read=selector.parse,
    default=selector.EVERYTHING,
    example="version in (1,2),!canary",
)
WAIT: Final = Parameter(
    name="wait",
    about=f"Wait for a revision other than `revision`, at most this long: 500ms, 30s, up to {MAX_WAIT:g}s.",
    schema={
        "type": "string",
        "pattern": r"^[ \t]*(?:(?:[0-5]?[0-9](?:\.[0-9]+)?|60)s?|[0-5]?[0-9]{1,4}(?:\.[0-9]+)?ms"
        r"|0(?:\.[0-9]+)?m|1m)[ \t]*$",
    },
    read=_wait,
    default=0.0,
    example="1ms",
)
REVISION: Final[Parameter[str | None]] = Parameter(
    name="revision",
    about="With `wait`: the revision that the caller has.",
    schema={"type": "string"},
    read=str,
    default=None,
    example="3cf37261.7",
)

OF_SERVICE: Final[tuple[Parameter[Any], ...]] = (SERVICE, NAMESPACE, GROUP)
FILTER: Final[tuple[Parameter[Any], ...]] = (CLUSTER, HEALTHY, SELECTOR)


def service_of(values: Values) -> ServiceKey:
    """Return the service that :data:`OF_SERVICE` names."""
    return ServiceKey(values[NAMESPACE], values[GROUP], values[SERVICE])


def ref_of(values: Values) -> EntryRef:
    """Return the name of the instance that :data:`KEY` and :data:`OF_SERVICE` name."""
    namespace, group, name = service_of(values)
    ip, port, cluster, owner = values[KEY]
    return EntryRef(
        service=name, namespace=namespace, group=group, ip=ip, port=port, cluster=cluster, owner=owner
    )


def filter_of(values: Values) -> Filter:
    """Return the part of a list that :data:`FILTER` asks for."""
    return Filter(values[CLUSTER], values[HEALTHY], values[SELECTOR])
