"""A pod's annotations: how its owner says what is to be entered in the book, and how.

Pure. What is accepted is one list, :data:`KNOWN`; the operator reads it to make entries, the webhook to
configure the sidecar, so that both understand a pod in the same way.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import re
import string
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from rollbook import limits, names
from rollbook.model import (
    HEARTBEAT_INTERVAL_KEY,
    MAX_TIMING_MS,
    REMOVE_AFTER_KEY,
    UNHEALTHY_AFTER_KEY,
)
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE
from rollbook.problems import Problem
from rollbook.settings import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PREFIX: Final = "rollbook.io/"
METADATA_PREFIX: Final = "metadata.rollbook.io/"

MANAGED_LABEL: Final = "rollbook.io/managed"
"""A label, not an annotation: the API server can select by it."""

REGISTER: Final = f"{PREFIX}register"
SERVICE: Final = f"{PREFIX}service"
PORT: Final = f"{PREFIX}port"
NAMESPACE: Final = f"{PREFIX}namespace"
GROUP: Final = f"{PREFIX}group"
CLUSTER: Final = f"{PREFIX}cluster"
WEIGHT: Final = f"{PREFIX}weight"
INSTANCE_ID: Final = f"{PREFIX}instance-id"
PREFERRED_NETWORKS: Final = f"{PREFIX}preferred-networks"
HEALTH_CHECK: Final = f"{PREFIX}health-check"
HEARTBEAT_INTERVAL: Final = f"{PREFIX}heartbeat-interval"
UNHEALTHY_AFTER: Final = f"{PREFIX}unhealthy-after"
REMOVE_AFTER: Final = f"{PREFIX}remove-after"
SUBSCRIBE: Final = f"{PREFIX}subscribe"
INJECT: Final = f"{PREFIX}inject"
DRAIN_TIMEOUT: Final = f"{PREFIX}drain-timeout"
LINGER: Final = f"{PREFIX}linger"

KNOWN: Final = (
    REGISTER,
    SERVICE,
    PORT,
    NAMESPACE,
    GROUP,
    CLUSTER,
    WEIGHT,
    INSTANCE_ID,
    PREFERRED_NETWORKS,
    HEALTH_CHECK,
    HEARTBEAT_INTERVAL,
    UNHEALTHY_AFTER,
    REMOVE_AFTER,
    SUBSCRIBE,
    INJECT,
    DRAIN_TIMEOUT,
    LINGER,
)
"""Every annotation there is, besides ``metadata.rollbook.io/<key>``."""

SERVICE_LABELS: Final = ("app.kubernetes.io/name", "app")
"""Labels that name the service where no annotation does, in this order."""

PORT_NAME_KEY: Final = "port-name"
"""The metadata key that tells the instances of a pod with several ports apart."""

PLACEHOLDERS: Final = ("service", "port", "pod", "host", "namespace", "node")
"""What an instance id's template may contain; the sidecar knows the same ones. The host is the pod, and the
namespace is the registry's."""

DEFAULT_INSTANCE_ID: Final = "{service}:{port}:{pod}"

ACCEPTED_BOOL: Final = '"true" or "false"'
ACCEPTED_PORT: Final = (
    "a number from 1 to 65535, a container port's name, or a list such as http=8080,grpc=9090"
)
ACCEPTED_DURATION: Final = "a length of time such as 500ms, 15s or 2m"
ACCEPTED_CHECK: Final = "tcp, http:/path (printable, without spaces and '#') or none"
ACCEPTED_SUBSCRIBE: Final = (
    "services, each as name, group@@name or namespace/group@@name, such as orders,stock"
)
ACCEPTED_NETWORKS: Final = "networks such as 10.0.0.0/8,fd00::/8"
ACCEPTED_WEIGHT: Final = f"a number from 0 to {limits.MAX_WEIGHT:g}"
ACCEPTED_TEMPLATE: Final = "text with any of " + ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
ACCEPTED_METADATA: Final = (
    f"at most {limits.MAX_METADATA_PAIRS} pairs and {limits.MAX_METADATA_BYTES} bytes in all"
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_T = TypeVar("_T")

MAX_HOOK_SECONDS: Final = 3600
"""What the sidecar accepts for its hooks."""

_SHOWN_VALUE: Final = 80
_PORT_PART = re.compile(r"(?:(?P<name>[0-9A-Za-z][0-9A-Za-z._-]{0,62})=)?(?P<port>[0-9A-Za-z][0-9A-Za-z-]*)")
_CHECK = re.compile(r"tcp|none|http:/[!-\"$-~]*")


@dataclasses.dataclass(frozen=True)
class AnnotationProblem:
    """One annotation that cannot be followed.

    Attributes:
        annotation: which one.
        value: what it says; empty where it is missing.
        accepted: the form that would have been right.
    """

    annotation: str
    value: str
    accepted: str

    def __str__(self) -> str:
        """Tell people, in one line."""
        shown = f"{self.value[:_SHOWN_VALUE]}…" if len(self.value) > _SHOWN_VALUE else self.value
        return f"annotation {self.annotation} is {shown!r}; accepted: {self.accepted}"


class Port(NamedTuple):
    """A port to be entered; the name is empty where there is only one without a name."""

    name: str
    number: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a pod's annotations ask for.

    Attributes:
        register: whether it is to be in the book.
        inject: whether it shall have a sidecar; ``None``: nobody has said, so exactly if it registers.
        service: its service; empty if it doesn't register.
        ports: one instance each.
        cluster: empty where the node's zone decides.
        metadata: the free pairs and Nacos' ``preserved.*`` timings (milliseconds).
        preferred_networks: the first one that holds an address of the pod decides which it answers at.
        health_check: ``tcp``, ``http:/path`` or ``none``; empty for the sidecar's default.
        heartbeat_interval: seconds; so are the other timings.
        subscribe: services that the sidecar fetches before anybody asks.
        drain_timeout: seconds that the last hook may wait; ``None``: from the grace period.
        linger: seconds that it waits after that; ``None``: from the grace period.
    """

    register: bool = False
    inject: bool | None = None
    service: str = ""
    ports: tuple[Port, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP
    cluster: str = ""
    weight: float = 1.0
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instance_id: str = DEFAULT_INSTANCE_ID
    preferred_networks: tuple[Network, ...] = ()
    health_check: str = ""
    heartbeat_interval: float | None = None
    unhealthy_after: float | None = None
    remove_after: float | None = None
    subscribe: tuple[str, ...] = ()
    drain_timeout: float | None = None
    linger: float | None = None


class _Bad(Exception):  # noqa: N818  # it never leaves this module
    """A value is not acceptable; carries the accepted form."""


def ours(annotations: Mapping[str, str]) -> bool:
    """Say whether any annotation is meant for Rollbook, right or wrong."""
    return any(key.startswith((PREFIX, METADATA_PREFIX)) for key in annotations)


def parse(pod: Mapping[str, Any]) -> Wishes | list[AnnotationProblem]:
    """Read a pod's annotations: all of them, or what is wrong with each.

    Args:
        pod: the object as the API server sends it; only its metadata and its containers are looked at.
    """
    metadata = pod.get("metadata") or {}
    reader = _Reader(metadata.get("annotations") or {})
    register = reader.read(REGISTER, _bool, default=False)
    timings = {
        key: reader.read(annotation, _timing, default=None)
        for annotation, key in (
            (HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL_KEY),
            (UNHEALTHY_AFTER, UNHEALTHY_AFTER_KEY),
            (REMOVE_AFTER, REMOVE_AFTER_KEY),
        )
    }
    wishes = Wishes(
        register=register,
        inject=reader.read(INJECT, _bool, default=None),
        service=_service(reader, metadata.get("labels") or {}, needed=register),
        ports=_ports(reader, pod.get("spec") or {}, needed=register),
        namespace=reader.read(NAMESPACE, _checked(names.check_namespace), default=DEFAULT_NAMESPACE),
        group=reader.read(GROUP, _checked(names.check_group), default=DEFAULT_GROUP),
        cluster=reader.read(CLUSTER, _checked(names.check_cluster), default=""),
        weight=reader.read(WEIGHT, _weight, default=1.0),
        metadata={
            **reader.pairs(),
            **{key: str(round(seconds * 1000)) for key, seconds in timings.items() if seconds is not None},
        },
        instance_id=reader.read(INSTANCE_ID, _template, default=DEFAULT_INSTANCE_ID),
        preferred_networks=reader.read(PREFERRED_NETWORKS, _networks, default=()),
        health_check=reader.read(HEALTH_CHECK, _health_check, default=""),
        heartbeat_interval=timings[HEARTBEAT_INTERVAL_KEY],
        unhealthy_after=timings[UNHEALTHY_AFTER_KEY],
        remove_after=timings[REMOVE_AFTER_KEY],
        subscribe=reader.read(SUBSCRIBE, _services, default=()),
        drain_timeout=reader.read(DRAIN_TIMEOUT, _hook_time, default=None),
        linger=reader.read(LINGER, _hook_time, default=None),
    )
    reader.compare(wishes)
    reader.unknown()
    return reader.problems or wishes


def declared_ports(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the ports that the pod's lasting containers declare: regular ones and its own native sidecars."""
    containers: Iterable[Mapping[str, Any]] = [
        *(spec.get("containers") or []),
        *(c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"),
    ]
    return [port for container in containers for port in container.get("ports") or []]


class _Reader:
    """Reads one annotation after the other, and collects what is wrong."""

    def __init__(self, annotations: Mapping[str, str]) -> None:
        self.annotations = annotations
        self.problems: list[AnnotationProblem] = []

    def read(self, annotation: str, parser: Callable[[str], _T], *, default: _T) -> _T:
        text = self.annotations.get(annotation)
        if text is None:
            return default
        try:
            return parser(text.strip())
        except _Bad as bad:
            self.complain(annotation, str(bad))
            return default

    def complain(self, annotation: str, accepted: str) -> None:
        self.problems.append(AnnotationProblem(annotation, self.annotations.get(annotation, ""), accepted))

    def pairs(self) -> dict[str, str]:
        result = {}
        for annotation, value in self.annotations.items():
            if annotation.startswith(METADATA_PREFIX):
                key = annotation.removeprefix(METADATA_PREFIX)
                result[key] = value
                if key in {HEARTBEAT_INTERVAL_KEY, UNHEALTHY_AFTER_KEY, REMOVE_AFTER_KEY} and not (
                    value.isascii() and value.isdigit() and 1 <= int(value[:10]) <= MAX_TIMING_MS
                ):
                    self.complain(annotation, f"whole milliseconds from 1 to {MAX_TIMING_MS}")
        size = sum(len(k.encode()) + len(v.encode()) for k, v in result.items())
        if len(result) > limits.MAX_METADATA_PAIRS or size > limits.MAX_METADATA_BYTES:
            self.problems.append(
                AnnotationProblem(
                    f"{METADATA_PREFIX}*", f"{len(result)} pairs, {size} bytes", ACCEPTED_METADATA
                )
            )
        return result

    def compare(self, wishes: Wishes) -> None:
        """Hold the timings against each other."""
        beat, unhealthy, remove = wishes.heartbeat_interval, wishes.unhealthy_after, wishes.remove_after
        if beat is not None and unhealthy is not None and beat >= unhealthy:
            self.complain(HEARTBEAT_INTERVAL, f"less than {UNHEALTHY_AFTER}, which is {unhealthy:g}s")
        if unhealthy is not None and remove is not None and unhealthy > remove:
            self.complain(UNHEALTHY_AFTER, f"at most {REMOVE_AFTER}, which is {remove:g}s")

    def unknown(self) -> None:
        for annotation in self.annotations:
            if annotation.startswith(PREFIX) and annotation not in KNOWN:
                short = [known.removeprefix(PREFIX) for known in KNOWN]
                near = difflib.get_close_matches(annotation.removeprefix(PREFIX).lower(), short, n=1)
                hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
                self.complain(annotation, f"{hint}known are {', '.join(KNOWN)}, and {METADATA_PREFIX}<key>")


def _service(reader: _Reader, labels: Mapping[str, str], *, needed: bool) -> str:
    service = reader.read(SERVICE, _checked(names.check_service), default="")
    if service or not needed or SERVICE in reader.annotations:
        return service
    for label in SERVICE_LABELS:
        if labels.get(label):
            return labels[label]
    reader.complain(SERVICE, f"the service's name (or one of the labels {', '.join(SERVICE_LABELS)})")
    return ""


def _ports(reader: _Reader, spec: Mapping[str, Any], *, needed: bool) -> tuple[Port, ...]:
    declared = declared_ports(spec)
    if PORT in reader.annotations or not needed:
        return reader.read(PORT, lambda text: _parse_ports(text, declared), default=())
    numbers = {p["containerPort"] for p in declared if p.get("protocol", "TCP") == "TCP"}
    if len(numbers) == 1:
        return (Port("", numbers.pop()),)
    reader.complain(PORT, f"{ACCEPTED_PORT}; the pod declares {len(numbers)} TCP ports, so it must be said")
    return ()


def _parse_ports(text: str, declared: list[Mapping[str, Any]]) -> tuple[Port, ...]:
    by_name = {p["name"]: p["containerPort"] for p in declared if p.get("name")}
    ports = []
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        found = _PORT_PART.fullmatch(part)
        if found is None or (len(parts) > 1 and not found["name"]):
            raise _Bad(ACCEPTED_PORT)
        ports.append(Port(found["name"] or "", _port_number(found["port"], by_name)))
    if len({p.name for p in ports}) < len(ports) or len({p.number for p in ports}) < len(ports):
        raise _Bad("names and ports of which none comes twice")
    return tuple(ports)


def _port_number(text: str, by_name: Mapping[str, int]) -> int:
    if text.isascii() and text.isdigit():
        number = int(text[:10])
        if not 1 <= number <= names.MAX_PORT:
            raise _Bad(ACCEPTED_PORT)
        return number
    if text not in by_name:
        raise _Bad(f"{ACCEPTED_PORT}; the names are {', '.join(sorted(by_name)) or 'none'}")
    return by_name[text]


def _checked(check: Callable[[str], str]) -> Callable[[str], str]:
    def parser(text: str) -> str:
        try:
            return check(text)
        except Problem as problem:
            raise _Bad(problem.accepted) from None

    return parser


def _bool(text: str) -> bool:
    if text not in {"true", "false"}:
        raise _Bad(ACCEPTED_BOOL)
    return text == "true"


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise _Bad(ACCEPTED_WEIGHT) from None
    if not (math.isfinite(weight) and 0 <= weight <= limits.MAX_WEIGHT):
        raise _Bad(ACCEPTED_WEIGHT)
    return weight


def _duration(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        raise _Bad(ACCEPTED_DURATION) from None
    if seconds * 1000 > MAX_TIMING_MS:
        raise _Bad(f"{ACCEPTED_DURATION}, at most 24h")
    return seconds


def _hook_time(text: str) -> float:
    seconds = _duration(text)
    if seconds > MAX_HOOK_SECONDS:
        raise _Bad(f"{ACCEPTED_DURATION}, at most 1h")
    return seconds


def _timing(text: str) -> float:
    seconds = _duration(text)
    if round(seconds * 1000) < 1:
        raise _Bad(f"{ACCEPTED_DURATION}, at least 1ms")
    return seconds


def _template(text: str) -> str:
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        raise _Bad(ACCEPTED_TEMPLATE) from None
    for _, name, spec, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise _Bad(ACCEPTED_TEMPLATE)
    if not text or len(text) > names.MAX_ID_LENGTH:
        raise _Bad(f"1 to {names.MAX_ID_LENGTH} characters, {ACCEPTED_TEMPLATE}")
    return text


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(","))
    except ValueError:
        raise _Bad(ACCEPTED_NETWORKS) from None


def _health_check(text: str) -> str:
    if not _CHECK.fullmatch(text):
        raise _Bad(ACCEPTED_CHECK)
    return text


def _services(text: str) -> tuple[str, ...]:
    result = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        namespace, slash, rest = part.rpartition("/")
        group, at, name = rest.rpartition("@@")
        if (slash and not (namespace and at)) or (at and not group):
            raise _Bad(ACCEPTED_SUBSCRIBE)
        try:
            names.service_key(name, namespace=namespace or DEFAULT_NAMESPACE, group=group or DEFAULT_GROUP)
        except Problem:
            raise _Bad(ACCEPTED_SUBSCRIBE) from None
        result.append(part)
    return tuple(result)
