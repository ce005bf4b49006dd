"""Rulings as the store keeps them: a readable key, and JSON.

    instance/NAMESPACE/GROUP/SERVICE/KEY    a persistent instance   (KEY: ip:port:cluster[:owner])
    override/NAMESPACE/GROUP/SERVICE/KEY    an administrator's word about an instance
    service/NAMESPACE/GROUP/SERVICE         a service's settings
    namespace/NAMESPACE                     a namespace's record

No name can contain ``/``, so no two rulings share a key. Values are read tolerantly: fields that a newer
version has written are passed over, and a record that makes no sense is reported and skipped.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, get_args

import msgspec

from rollbook import names
from rollbook.limits import MAX_WEIGHT
from rollbook.model import EntryRef, check_entry
from rollbook.problems import Problem, bad_value
from rollbook_registry.catalog.definitions import (
    MIN_CHECK_INTERVAL,
    Check,
    Configured,
    Defined,
    Definition,
    Named,
    Namespace,
    Overridden,
    Override,
    Ruling,
    ServiceSettings,
)
from rollbook_registry.store.store import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.names import ServiceKey

INSTANCE: Final = "instance"
OVERRIDE: Final = "override"
SERVICE: Final = "service"
NAMESPACE: Final = "namespace"

_SERVICE_PARTS: Final = 3
_INSTANCE_PARTS: Final = 4


class Fault(StrEnum):
    """Why a record cannot be read; logged and counted by this code."""

    UNKNOWN_KIND = "unknown_kind"
    """Its key begins with a word that this version does not know."""
    BAD_KEY = "bad_key"
    BAD_VALUE = "bad_value"
    OTHER_INSTANCE = "other_instance"
    """Its value is about another instance than its key."""


class Unreadable(NamedTuple):
    """A record that is skipped, and why."""

    key: str
    fault: Fault
    detail: str


class _FaultError(Exception):
    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def write(ruling: Ruling) -> Change:
    """Return a ruling as a change of the store.

    Raises:
        Problem: 400 ``bad_value``: it could not be read again as it is.
    """
    record: msgspec.Struct | None
    match ruling:
        case Defined(ref, record):
            key = f"{INSTANCE}/{_instance(ref)}"
        case Overridden(ref, record):
            key = f"{OVERRIDE}/{_instance(ref)}"
        case Configured(service, record):
            key = f"{SERVICE}/{_service(service)}"
        case Named(namespace, record):
            key = f"{NAMESPACE}/{namespace}"
    try:
        change = Change(key, None if record is None else msgspec.json.encode(record))
    except UnicodeEncodeError as error:
        raise bad_value(key, error.object, "text that can be written as UTF-8") from None
    # What is acknowledged must be there after a restart: so it is read once before it is promised.
    again = read_one(change)
    if isinstance(again, Unreadable):
        raise bad_value(key, again.detail, "what can be read again")
    if again != ruling:
        raise bad_value(key, ruling, "names in their canonical spelling, and finite numbers")
    return change


def read(changes: Iterable[Change]) -> tuple[list[Ruling], list[Unreadable]]:
    """Return the rulings that changes of the store are, in order, and those that cannot be read."""
    rulings: list[Ruling] = []
    unreadable: list[Unreadable] = []
    for change in changes:
        found = read_one(change)
        if isinstance(found, Unreadable):
            unreadable.append(found)
        else:
            rulings.append(found)
    return rulings, unreadable


def read_one(change: Change) -> Ruling | Unreadable:
    """Return the ruling that a change of the store is."""
    try:
        return _read(change)
    except _FaultError as fault:
        return Unreadable(change.key, fault.fault, str(fault))


def _read(change: Change) -> Ruling:
    kind, _, rest = change.key.partition("/")
    parts = rest.split("/")
    try:
        match kind:
            case "instance" if len(parts) == _INSTANCE_PARTS:
                return _defined(_ref(parts), change.value)
            case "override" if len(parts) == _INSTANCE_PARTS:
                return Overridden(_ref(parts), _overriding(change.value))
            case "service" if len(parts) == _SERVICE_PARTS:
                return Configured(_key(parts), _configuring(change.value))
            case "namespace" if len(parts) == 1:
                return Named(names.check_namespace(parts[0]), _record(change.value, Namespace))
            case "instance" | "override" | "service" | "namespace":
                raise _FaultError(Fault.BAD_KEY, f"the key has {len(parts)} parts after {kind!r}")
            case _:
                raise _FaultError(Fault.UNKNOWN_KIND, f"{kind!r} is none of {_KINDS}")
    except Problem as problem:
        raise _FaultError(Fault.BAD_KEY, problem.detail) from None


_KINDS: Final = f"{INSTANCE}, {OVERRIDE}, {SERVICE}, {NAMESPACE}"


def _defined(ref: EntryRef, value: bytes | None) -> Defined:
    definition = _record(value, Definition)
    if definition is None:
        return Defined(ref, None)
    entry = definition.entry
    try:
        # Whether it is ephemeral says nothing here; everything in this store stays.
        check_entry(msgspec.structs.replace(entry, ephemeral=True), "entry.")
    except Problem as problem:
        raise _FaultError(Fault.BAD_VALUE, problem.detail) from None
    _sound(definition.check, "check")
    if entry.ref != ref:
        raise _FaultError(Fault.OTHER_INSTANCE, f"the value is about {entry.ref}")
    return Defined(ref, definition)


def _overriding(value: bytes | None) -> Override | None:
    override = _record(value, Override)
    if override is not None and override.weight is not None and not 0 <= override.weight <= MAX_WEIGHT:
        raise _FaultError(Fault.BAD_VALUE, f"weight is {override.weight}, beyond 0 to {MAX_WEIGHT:g}")
    return override


def _configuring(value: bytes | None) -> ServiceSettings | None:
    settings = _record(value, ServiceSettings)
    threshold = settings.protect_threshold if settings is not None else None
    if threshold is not None and not 0 <= threshold <= 1:
        raise _FaultError(Fault.BAD_VALUE, f"protect_threshold is {threshold}, beyond 0 to 1")
    _sound(settings.check if settings is not None else None, "check")
    return settings


# --- keys ----------------------------------------------------------------------------------------------


def _service(service: ServiceKey) -> str:
    return f"{service.namespace}/{service.group}/{service.name}"


def _instance(ref: EntryRef) -> str:
    return f"{_service(ref.service_key)}/{ref.key}"


def _key(parts: list[str]) -> ServiceKey:
    return names.service_key(parts[2], namespace=parts[0], group=parts[1])


def _ref(parts: list[str]) -> EntryRef:
    service = _key(parts)
    ip, port, cluster, owner = names.parse_instance_key(parts[3])
    ref = EntryRef(
        service=service.name,
        ip=ip,
        port=port,
        namespace=service.namespace,
        group=service.group,
        cluster=names.check_cluster(cluster),
        owner=owner,
    )
    # One instance, one key: another spelling of the same address would be a second record about it.
    if _instance(ref) != "/".join(parts):
        raise _FaultError(Fault.BAD_KEY, f"the canonical spelling is {_instance(ref)}")
    return ref


# --- values --------------------------------------------------------------------------------------------

R = TypeVar("R", bound=msgspec.Struct)


def _record(value: bytes | None, type_: type[R]) -> R | None:
    if value is None:
        return None
    try:
        return msgspec.convert(_known(msgspec.json.decode(value), type_), type_)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _FaultError(Fault.BAD_VALUE, str(error)) from None


def _known(raw: Any, type_: type[msgspec.Struct]) -> Any:
    """Leave out the fields that this version does not know, all the way down."""
    if not isinstance(raw, dict):
        return raw
    kept = {}
    for field in msgspec.structs.fields(type_):
        if field.encode_name in raw:
            value = raw[field.encode_name]
            inner = next((t for t in (field.type, *get_args(field.type)) if _is_struct(t)), None)
            kept[field.encode_name] = value if inner is None else _known(value, inner)
    return kept


def _is_struct(type_: object) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _sound(check: Check | None, field: str) -> None:
    """Refuse a check that nobody could carry out."""
    if check is None:
        return
    if not check.interval >= MIN_CHECK_INTERVAL:
        raise _FaultError(
            Fault.BAD_VALUE, f"{field}.interval is {check.interval}, below {MIN_CHECK_INTERVAL} s"
        )
    for name in ("timeout", "failures", "successes"):
        if not getattr(check, name) > 0:
            raise _FaultError(Fault.BAD_VALUE, f"{field}.{name} is {getattr(check, name)}, not above 0")
    if check.port is not None and not 1 <= check.port <= names.MAX_PORT:
        raise _FaultError(Fault.BAD_VALUE, f"{field}.port is {check.port}, beyond 1 to {names.MAX_PORT}")
