"""Forms: the written forms of settings that hold more than one value, read and checked.

Each function returns what the text means, or raises a ``Problem`` that names the flag and the accepted form.
"""

from __future__ import annotations

import ipaddress
import re
import string
from typing import Final, Literal, NamedTuple

import msgspec

from rollbook import names
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, MAX_PORT, ServiceKey
from rollbook.problems import bad_value

_PORT_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
_PATH: Final = re.compile(r"/\S*")
_PORTS_FORM: Final = f"8080 or http=8080,grpc=9090: ports from 1 to {MAX_PORT}, each with a name if several"
_METADATA_FORM: Final = 'a JSON object of texts, such as {"version": "2"}, or version=2,zone=a'

PLACEHOLDERS: Final = ("service", "port", "host", "pod", "node", "namespace")
"""What an instance id's template may refer to."""


class NamedPort(NamedTuple):
    """A port of the application; the name is empty if it has none."""

    name: str
    port: int


class HealthCheck(NamedTuple):
    """How the application is checked; the path is for HTTP only."""

    kind: Literal["tcp", "http", "none"]
    path: str = ""


def _number(text: str, whole: str, field: str) -> int:
    # At most five digits, since int() of a very long text is slow.
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_PORT:
        raise bad_value(field, whole, _PORTS_FORM)
    return int(text)


def ports(text: str, field: str = "--ports") -> tuple[NamedPort, ...]:
    """Read ``8080`` or ``http=8080,grpc=9090``.

    Raises:
        Problem: 400 ``bad_value``.
    """
    parts = [part.strip() for part in text.split(",")]
    if parts == [""]:
        return ()
    if len(parts) == 1 and "=" not in parts[0]:
        return (NamedPort("", _number(parts[0], text, field)),)
    found = []
    for part in parts:
        name, equals, number = part.partition("=")
        if not equals or not _PORT_NAME.fullmatch(name.strip()):
            raise bad_value(field, text, _PORTS_FORM)
        found.append(NamedPort(name.strip(), _number(number.strip(), text, field)))
    if len({p.name for p in found}) < len(found) or len({p.port for p in found}) < len(found):
        raise bad_value(field, text, "each name and each port once")
    return tuple(found)


def metadata(text: str, field: str = "--metadata") -> dict[str, str]:
    """Read a JSON object of texts, or ``k=v,k2=v2``.

    Raises:
        Problem: 400 ``bad_value``.
    """
    text = text.strip()
    if not text:
        return {}
    if text.startswith("{"):
        try:
            return msgspec.json.decode(text, type=dict[str, str])
        except msgspec.DecodeError as error:
            raise bad_value(field, text, f"{_METADATA_FORM} ({error})") from None
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise bad_value(field, text, _METADATA_FORM)
        if key in found:
            raise bad_value(field, text, f"each key once ({key!r} is there twice)")
        found[key] = value.strip()
    return found


def health_check(text: str, field: str = "--health-check") -> HealthCheck:
    """Read ``tcp``, ``http:/path`` or ``none``.

    Raises:
        Problem: 400 ``bad_value``.
    """
    kind, _, path = text.partition(":")
    if text == "tcp":
        return HealthCheck("tcp")
    if text == "none":
        return HealthCheck("none")
    if kind == "http" and _PATH.fullmatch(path):
        return HealthCheck("http", path)
    raise bad_value(field, text, "tcp, none, or http:/path without spaces")


def check_template(text: str, field: str = "--instance-id") -> str:
    """Return an instance id's template if it refers only to what there is.

    Raises:
        Problem: 400 ``bad_value`` naming the placeholders there are.
    """
    accepted = "a text with any of " + ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        raise bad_value(field, text, accepted) from None
    for _, name, spec, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise bad_value(field, text, accepted)
    return text


def service(text: str, field: str = "--subscribe") -> ServiceKey:
    """Read ``orders``, ``group@@orders`` or ``namespace/group@@orders``.

    Raises:
        Problem: 400 ``bad_value``.
    """
    namespace, slash, rest = text.rpartition("/")
    group, at, name = rest.rpartition("@@")
    if (slash and not at) or (at and not group) or (slash and not namespace):
        raise bad_value(field, text, "service, group@@service, or namespace/group@@service")
    return ServiceKey(
        names.check_namespace(namespace or DEFAULT_NAMESPACE, f"{field} (its namespace)"),
        names.check_group(group or DEFAULT_GROUP, f"{field} (its group)"),
        names.check_service(name, field),
    )


def is_loopback(host: str) -> bool:
    """Say whether only this machine (or pod) can reach a listener on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
