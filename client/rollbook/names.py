"""Names: what identifies a service, an instance, a lease, and which spellings are accepted.

The words and the limits are Nacos' own (its Open API guide), so that nothing which registers there is
refused here, with one exception: names may not contain ``/``, which would make them unreachable by URL.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Final, NamedTuple, NewType

from rollbook.problems import bad_value

LeaseId = NewType("LeaseId", str)
"""One publisher's presence; made at random by the client for its process."""

OwnerUid = NewType("OwnerUid", str)
"""The UID of the pod that an instance belongs to; empty where there is no pod."""

InstanceKey = NewType("InstanceKey", str)
"""``ip:port:cluster``, with ``:owner`` for pods; what the API's paths and the deltas use."""

DEFAULT_NAMESPACE: Final = "public"
DEFAULT_GROUP: Final = "DEFAULT_GROUP"
DEFAULT_CLUSTER: Final = "DEFAULT"

MAX_NAME_LENGTH: Final = 512
MAX_NAMESPACE_LENGTH: Final = 128
MAX_CLUSTER_LENGTH: Final = 64
MAX_HOST_LENGTH: Final = 253
MAX_ID_LENGTH: Final = 256
MAX_PORT: Final = 65535

NAMESPACE_FORM: Final = r"[0-9A-Za-z_-]+"
GROUP_FORM: Final = r"[0-9A-Za-z_.:-]+"
CLUSTER_FORM: Final = r"[0-9A-Za-z-]+"
# Two are named although `\s` has them, since to Python and to JSON Schema (ECMAScript) it is not the same.
SERVICE_FORM: Final = r"[^\s/\x00-\x1f\x7f\x85\ufeff]+"
_LABEL: Final = r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
HOSTNAME_FORM: Final = rf"{_LABEL}(?:\.{_LABEL})*"
ID_FORM: Final = r"[0-9A-Za-z._:/#@-]+"
OWNER_FORM: Final = r"[0-9A-Za-z._-]+"

_BYTE: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

_IPV4 = re.compile(rf"{_BYTE}(?:\.{_BYTE}){{3}}")
_NAMESPACE = re.compile(NAMESPACE_FORM)
_GROUP = re.compile(GROUP_FORM)
_CLUSTER = re.compile(CLUSTER_FORM)
# Lone surrogates cannot be written as UTF-8, so only a program of one's own can come up with them.
_SERVICE = re.compile(rf"(?![^\ud800-\udfff]*[\ud800-\udfff]){SERVICE_FORM}")
_HOSTNAME = re.compile(HOSTNAME_FORM)
_ID = re.compile(ID_FORM)
_OWNER = re.compile(OWNER_FORM)


class ServiceKey(NamedTuple):
    """A service: (namespace, group, name)."""

    namespace: str
    group: str
    name: str

    def __str__(self) -> str:
        """Write the key as Nacos does, ``group@@name``, below its namespace."""
        return f"{self.namespace}/{self.group}@@{self.name}"


@functools.lru_cache(maxsize=16_384)
def same_service_key(namespace: str, group: str, name: str) -> ServiceKey:
    """Return a service's key; of one that has been asked for lately the very object, since many keep it."""
    return ServiceKey(namespace, group, name)


@functools.lru_cache(maxsize=1024)
def check_namespace(value: str, field: str = "namespace") -> str:
    """Return a namespace's id if it is acceptable.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if len(value) > MAX_NAMESPACE_LENGTH or not _NAMESPACE.fullmatch(value):
        raise bad_value(field, value, f"1 to {MAX_NAMESPACE_LENGTH} of letters, digits, '-', '_'")
    return value


@functools.lru_cache(maxsize=1024)
def check_group(value: str, field: str = "group") -> str:
    """Return a group's name if it is acceptable.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if len(value) > MAX_NAMESPACE_LENGTH or not _GROUP.fullmatch(value):
        raise bad_value(field, value, f"1 to {MAX_NAMESPACE_LENGTH} of letters, digits, '-', '_', '.', ':'")
    return value


@functools.lru_cache(maxsize=16_384)
def check_service(value: str, field: str = "service") -> str:
    """Return a service's name if it is acceptable.

    Raises:
        Problem: 400 ``bad_value``.
    """
    # A path of dots is taken away by whoever normalises a URL.
    if len(value) > MAX_NAME_LENGTH or "@@" in value or value in {".", ".."} or not _SERVICE.fullmatch(value):
        raise bad_value(
            field, value, f"1 to {MAX_NAME_LENGTH} characters without spaces, '/' and '@@', not '.' or '..'"
        )
    return value


@functools.lru_cache(maxsize=1024)
def check_cluster(value: str, field: str = "cluster") -> str:
    """Return a cluster's name if it is acceptable.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if len(value) > MAX_CLUSTER_LENGTH or not _CLUSTER.fullmatch(value):
        raise bad_value(field, value, f"1 to {MAX_CLUSTER_LENGTH} of letters, digits, '-'")
    return value


def check_ip(value: str, field: str = "ip") -> str:
    """Return an address (IPv4, IPv6 or a host name) in its canonical spelling.

    Raises:
        Problem: 400 ``bad_value``.
    """
    # Most are IPv4, of which there is one spelling; a book may have too many of them to be worth a cache.
    return value if _IPV4.fullmatch(value) else _check_ip(value, field)


@functools.lru_cache(maxsize=16_384)
def _check_ip(value: str, field: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        # All digits and dots is a mistyped IPv4 address, never a host name (RFC 1123, section 2.1).
        if (
            len(value) <= MAX_HOST_LENGTH
            and _HOSTNAME.fullmatch(value)
            and not re.fullmatch(r"[\d.]+", value)
        ):
            return value.lower()
        raise bad_value(field, value, "an IPv4 or IPv6 address, or a host name") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        # A zone (fe80::1%eth0) means something on one host only.
        raise bad_value(field, value, "an address without a zone")
    return str(address)


def check_port(value: int, field: str = "port") -> int:
    """Return a port if it is one.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if not 1 <= value <= MAX_PORT:
        raise bad_value(field, value, f"a whole number from 1 to {MAX_PORT}")
    return value


def check_id(value: str, field: str) -> str:
    """Return an identifier (a lease, an owner) if it is acceptable.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if len(value) > MAX_ID_LENGTH or not _ID.fullmatch(value):
        raise bad_value(field, value, f"1 to {MAX_ID_LENGTH} of letters, digits and ._:/#@-")
    return value


def check_owner(value: str, field: str = "owner") -> str:
    """Return an owner's UID if it is acceptable; it is a part of instance keys.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if len(value) > MAX_ID_LENGTH or not _OWNER.fullmatch(value):
        raise bad_value(field, value, f"1 to {MAX_ID_LENGTH} of letters, digits and ._-")
    return value


def service_key(name: str, *, namespace: str = DEFAULT_NAMESPACE, group: str = DEFAULT_GROUP) -> ServiceKey:
    """Make a checked :class:`ServiceKey`.

    Raises:
        Problem: 400 ``bad_value`` naming the part that is wrong.
    """
    return ServiceKey(check_namespace(namespace), check_group(group), check_service(name))


def url_host(host: str) -> str:
    """Return an address or a host name as a URL wants it: an IPv6 address in brackets (RFC 3986)."""
    return f"[{host}]" if ":" in host else host


def instance_key(*, ip: str, port: int, cluster: str, owner: str = "") -> InstanceKey:
    """Spell an instance's key: ``ip:port:cluster[:owner]``, an IPv6 address in brackets."""
    host = url_host(ip)
    return InstanceKey(f"{host}:{port}:{cluster}:{owner}" if owner else f"{host}:{port}:{cluster}")


_KEY = re.compile(
    r"(?P<ip>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(?P<port>[0-9]{1,5})"
    r"(?::(?P<cluster>[0-9A-Za-z-]+)(?::(?P<owner>[0-9A-Za-z._-]+))?)?(?:~[0-9a-f]+)?"
)


class KeyParts(NamedTuple):
    """An instance's key, taken apart."""

    ip: str
    port: int
    cluster: str
    owner: str


@functools.lru_cache(maxsize=32_768)
def parse_instance_key(value: str, field: str = "key") -> KeyParts:
    """Take ``ip:port[:cluster[:owner]]`` apart; the cluster defaults to ``DEFAULT``.

    Raises:
        Problem: 400 ``bad_value``.
    """
    found = _KEY.fullmatch(value)
    if found is None:
        raise bad_value(field, value, "ip:port[:cluster[:owner]], an IPv6 address in brackets")
    return KeyParts(
        check_ip(found["ip"].strip("[]"), field),
        check_port(int(found["port"]), field),
        found["cluster"] or DEFAULT_CLUSTER,
        found["owner"] or "",
    )
