"""Entries and instances: what a publisher says, and what the book shows.

An :class:`Entry` holds the fields one publisher speaks for. An :class:`Instance` is the merge of the entries
about one endpoint, as everybody sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from rollbook import limits, names
from rollbook.names import DEFAULT_CLUSTER, DEFAULT_GROUP, DEFAULT_NAMESPACE, InstanceKey, ServiceKey
from rollbook.problems import Problem, bad_value, from_validation, inside

if TYPE_CHECKING:
    from collections.abc import Iterable

# Per-instance timings travel in metadata, in milliseconds, under the keys that Nacos clients know
# (com.alibaba.nacos.api.naming.PreservedMetadataKeys).
HEARTBEAT_INTERVAL_KEY: Final = "preserved.heart.beat.interval"
UNHEALTHY_AFTER_KEY: Final = "preserved.heart.beat.timeout"
REMOVE_AFTER_KEY: Final = "preserved.ip.delete.timeout"
TIMING_KEYS: Final = (HEARTBEAT_INTERVAL_KEY, UNHEALTHY_AFTER_KEY, REMOVE_AFTER_KEY)

_TIMING_KEYS: Final = frozenset(TIMING_KEYS)

_MAX_UTF8: Final = 4
"""Bytes that a character takes at most."""

MAX_TIMING_MS: Final = 24 * 3600 * 1000
"""A day; longer silence is not ephemeral any more."""


class EntryRef(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Names one entry of a lease: the endpoint in its service.

    Its hash is not kept, as msgspec can: its texts keep theirs, and putting those together takes less time
    than 44 bytes an instance are worth.
    """

    service: str
    ip: str
    port: int
    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP
    cluster: str = DEFAULT_CLUSTER
    owner: str = ""

    @property
    def service_key(self) -> ServiceKey:
        """The service it is in."""
        return names.same_service_key(self.namespace, self.group, self.service)

    @property
    def key(self) -> InstanceKey:
        """Its key in the service; see :func:`rollbook.names.instance_key`."""
        return names.instance_key(ip=self.ip, port=self.port, cluster=self.cluster, owner=self.owner)


class Entry(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What one publisher says about one instance.

    Attributes:
        service: the service's name; with ``namespace`` and ``group`` its key.
        ip: where it answers: an address or a host name.
        port: where it answers, 1 to 65535.
        cluster: the part of the service it belongs to, usually a zone.
        weight: its share in balancing, 0 to 10000; 0 gets no traffic.
        enabled: an administrator's switch.
        metadata: free pairs; Nacos' ``preserved.*`` keys set this instance's own timings (milliseconds).
        instance_id: a name for people; an attribute, not the key.
        owner: the UID of its pod, if there is one.
        ready: what Kubernetes says; only the operator speaks for it. ``None``: nobody has said.
        probed: the operator's word that a readiness probe of the application stands behind ``ready``.
        alive: what the publisher's own check of the application says; ``None``: it has not succeeded yet
            since the publisher started. Then a probed readiness counts, and nothing else.
        beats_required: the operator's word that this pod has a sidecar, so that only beats keep it.
        ephemeral: lives by beats (true), or is laid down to stay until it is taken back (false).
    """

    service: str
    ip: str
    port: int
    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP
    cluster: str = DEFAULT_CLUSTER
    weight: float = 1.0
    enabled: bool = True
    metadata: dict[str, str] = {}
    instance_id: str = ""
    owner: str = ""
    ready: bool | None = None
    probed: bool = False
    alive: bool | None = True
    beats_required: bool = False
    ephemeral: bool = True

    @property
    def service_key(self) -> ServiceKey:
        """The service it is in."""
        return names.same_service_key(self.namespace, self.group, self.service)

    @property
    def ref(self) -> EntryRef:
        """The name of this entry within its lease."""
        return EntryRef(
            service=self.service,
            ip=self.ip,
            port=self.port,
            namespace=self.namespace,
            group=self.group,
            cluster=self.cluster,
            owner=self.owner,
        )


class Instance(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One instance as the book shows it: the merge of all entries about it.

    Attributes:
        key: unique in its service; see :func:`rollbook.names.instance_key`.
        healthy: ``ready and alive``; balancing uses only healthy ones.
        ready: what Kubernetes says (true where nobody said).
        alive: what beats and checks say.
        unconfirmed: its publisher has gone silent and nobody else vouches for it; shown as last known.
    """

    key: InstanceKey
    ip: str
    port: int
    cluster: str = DEFAULT_CLUSTER
    weight: float = 1.0
    enabled: bool = True
    healthy: bool = True
    ready: bool = True
    alive: bool = True
    unconfirmed: bool = False
    ephemeral: bool = True
    instance_id: str = ""
    owner: str = ""
    metadata: dict[str, str] = {}

    @property
    def url_host(self) -> str:
        """``ip:port`` as a URL wants it."""
        return f"{names.url_host(self.ip)}:{self.port}"


class ServiceList(msgspec.Struct, kw_only=True):
    """A service's instances, as ``GET /services/{service}`` answers on registry and sidecar alike.

    Attributes:
        revision: opaque, ``boot.n`` of the answering replica; the ETag too.
        settled: whether the registry has been up long enough for every publisher to have come back to it;
            before that, an instance's absence proves nothing.
        protect_threshold: the service's setting; ``None``: none.
        protected: so few of these instances are healthy that callers had better use the others too, than
            send everything to the few. Health itself is never rewritten.
    """

    namespace: str
    group: str
    service: str
    revision: str
    settled: bool
    instances: list[Instance]
    protect_threshold: float | None = None
    protected: bool = False


def is_protected(instances: Iterable[Instance], threshold: float | None) -> bool:
    """Say whether the share of healthy ones among enabled instances is at or below a threshold.

    It is to be asked about what a caller has selected (Nacos' ``protectThreshold``, applied after clusters
    and selectors). Without a threshold nothing is protected; nor is an empty list.
    """
    if threshold is None:
        return False
    healthy = [i.healthy for i in instances if i.enabled]
    return bool(healthy) and sum(healthy) <= threshold * len(healthy)


class ServiceCount(msgspec.Struct, kw_only=True):
    """One service in ``GET /services``."""

    namespace: str
    group: str
    service: str
    instances: int
    healthy: int


class ServicePage(msgspec.Struct, kw_only=True):
    """``GET /services``."""

    total: int
    page: int
    size: int
    services: list[ServiceCount]


def check_metadata(metadata: dict[str, str], field: str = "metadata") -> None:
    """Hold metadata against its limits, and Nacos' timings in it against their form.

    Raises:
        Problem: 400 ``bad_value``, naming the pair and the accepted form.
    """
    if len(metadata) > limits.MAX_METADATA_PAIRS:
        raise bad_value(field, f"{len(metadata)} pairs", f"at most {limits.MAX_METADATA_PAIRS} pairs")
    characters = sum(map(len, metadata)) + sum(map(len, metadata.values()))
    if characters * _MAX_UTF8 > limits.MAX_METADATA_BYTES:
        size = sum(len(k.encode()) + len(v.encode()) for k, v in metadata.items())
        if size > limits.MAX_METADATA_BYTES:
            raise bad_value(field, f"{size} bytes", f"at most {limits.MAX_METADATA_BYTES} bytes")
    if _TIMING_KEYS.isdisjoint(metadata):
        return
    for key in TIMING_KEYS:
        if key in metadata:
            timing_ms(metadata, key, field)
    unhealthy, remove = metadata.get(UNHEALTHY_AFTER_KEY), metadata.get(REMOVE_AFTER_KEY)
    if unhealthy is not None and remove is not None and int(unhealthy) > int(remove):
        raise bad_value(
            f"{field}.{UNHEALTHY_AFTER_KEY}", unhealthy, f"at most {REMOVE_AFTER_KEY}, which is {remove}"
        )


def timing_ms(metadata: dict[str, str], key: str, field: str = "metadata") -> int | None:
    """Read one of Nacos' ``preserved.*`` timings; ``None`` if it isn't set.

    Raises:
        Problem: 400 ``bad_value``.
    """
    text = metadata.get(key)
    if text is None:
        return None
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_TIMING_MS))
    if not digits or not 1 <= int(text) <= MAX_TIMING_MS:
        raise bad_value(f"{field}.{key}", text, f"whole milliseconds from 1 to {MAX_TIMING_MS}")
    return int(text)


def check_weight(weight: float, field: str = "weight") -> float:
    """Return a weight if it is one.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if not 0 <= weight <= limits.MAX_WEIGHT:  # nor is "not a number"
        raise bad_value(field, weight, f"a number from 0 to {limits.MAX_WEIGHT:g}")
    return weight


def check_entry(entry: Entry, field: str = "") -> Entry:
    """Return the entry with its address in canonical spelling, if all of it is acceptable.

    Args:
        entry: what came in.
        field: a prefix for the names in errors, such as ``entries[3].``.

    Raises:
        Problem: 400 ``bad_value``, naming the field and the accepted form.
    """
    try:
        ip = _check_fields(entry)
    except Problem as problem:
        raise inside(field, problem) from None
    return entry if ip == entry.ip else msgspec.structs.replace(entry, ip=ip)


def _check_fields(entry: Entry) -> str:
    """Check each field, under its own name, and return the address in canonical spelling."""
    names.check_namespace(entry.namespace)
    names.check_group(entry.group)
    names.check_service(entry.service)
    names.check_cluster(entry.cluster)
    names.check_port(entry.port)
    ip = names.check_ip(entry.ip)
    check_weight(entry.weight)
    if entry.owner:
        names.check_owner(entry.owner)
    if len(entry.instance_id) > names.MAX_ID_LENGTH:
        raise bad_value("instance_id", entry.instance_id, f"at most {names.MAX_ID_LENGTH} characters")
    if entry.metadata:
        check_metadata(entry.metadata)
    return ip


def check_made(entry: Entry, field: str = "") -> Entry:
    """Return an entry that was made in Python, if all of it is acceptable and can be sent.

    What was decoded has been held against the types of its fields; what a program made has not. One such
    entry among others would make their whole frame unreadable, and with it all that its sender says.

    Args:
        entry: what was made.
        field: a prefix for the names in errors, such as ``entries[3].``.

    Raises:
        Problem: 400 ``bad_value``, naming the field and the accepted form.
    """
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=Entry)
    except msgspec.ValidationError as error:
        raise inside(field, from_validation(error)) from None
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        # Such an error tells what cannot be written, and not where it is.
        name = next(name for name in entry.__struct_fields__ if not _can_be_written(getattr(entry, name)))
        accepted = (
            "text that UTF-8 can spell" if isinstance(error, UnicodeEncodeError) else "a value of its type"
        )
        raise bad_value(f"{field}{name}", getattr(entry, name), accepted) from None
    check_entry(entry, field)
    return entry


def _can_be_written(value: object) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except (UnicodeEncodeError, OverflowError, TypeError):
        return False
    return True


def check_ref(ref: EntryRef, field: str = "") -> EntryRef:
    """Return the name of an entry with its address in canonical spelling, as :func:`check_entry` stores it.

    Args:
        ref: what came in.
        field: a prefix for the names in errors, such as ``down[3].``.

    Raises:
        Problem: 400 ``bad_value``, naming the field and the accepted form.
    """
    ip = names.check_ip(ref.ip, f"{field}ip")
    names.check_port(ref.port, f"{field}port")
    return ref if ip == ref.ip else msgspec.structs.replace(ref, ip=ip)
