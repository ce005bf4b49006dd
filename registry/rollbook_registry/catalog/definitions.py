"""Definitions: what somebody has laid down and what stays until somebody takes it back (the CP records).

They are kept by a store, acknowledged when they are committed there, and come to the catalog by the store's
watch. Nothing in them changes by silence.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec

from rollbook import names
from rollbook.model import Entry, EntryRef
from rollbook.problems import bad_value

if TYPE_CHECKING:
    from rollbook.names import ServiceKey

MIN_CHECK_INTERVAL: Final = 0.5
"""Seconds; checking more often than this is load, not news."""

MAX_CHECK_INTERVAL: Final = 3600.0
"""Seconds."""

MAX_CHECK_ROW: Final = 100
"""Checks in a row that a verdict may wait for."""

MAX_CHECK_PATH: Final = 1024
"""Characters of an HTTP check's path."""

# It is written into a request line as it is: what is printable and not a space, and no fragment.
CHECK_PATH_FORM: Final = r"/[!-\"$-~]*"
_CHECK_PATH = re.compile(CHECK_PATH_FORM)

_Row = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_CHECK_ROW})]


class Check(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """How the registry finds out whether a persistent instance works.

    Attributes:
        type: ``tcp`` (a connection), ``http`` (any answer from 200 to 399), or ``none``: it is as its
            definition says, alive unless that says otherwise.
        path: of the HTTP request.
        port: to check, if it isn't the instance's own.
        interval: seconds between two checks.
        timeout: seconds that one may take.
        failures: in a row, until it counts as not alive.
        successes: in a row, until it counts as alive again.
    """

    type: Literal["tcp", "http", "none"] = "tcp"
    path: Annotated[
        str,
        msgspec.Meta(extra_json_schema={"pattern": f"^{CHECK_PATH_FORM}$", "maxLength": MAX_CHECK_PATH}),
    ] = "/"
    port: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": names.MAX_PORT})] | None = (
        None
    )
    interval: Annotated[
        float,
        msgspec.Meta(extra_json_schema={"minimum": MIN_CHECK_INTERVAL, "maximum": MAX_CHECK_INTERVAL}),
    ] = 5.0
    timeout: Annotated[
        float, msgspec.Meta(extra_json_schema={"exclusiveMinimum": 0, "maximum": MAX_CHECK_INTERVAL})
    ] = 1.0
    failures: _Row = 3
    successes: _Row = 1


def check_check(check: Check, field: str = "check") -> Check:
    """Return a check if all of it is acceptable.

    Args:
        check: what came in.
        field: its name in errors.

    Raises:
        Problem: 400 ``bad_value``, naming the field and the accepted form.
    """
    if check.type not in {"tcp", "http", "none"}:  # who makes one in code is not held to the annotation
        raise bad_value(f"{field}.type", check.type, "tcp, http or none")
    if not MIN_CHECK_INTERVAL <= check.interval <= MAX_CHECK_INTERVAL:
        raise bad_value(
            f"{field}.interval",
            check.interval,
            f"seconds from {MIN_CHECK_INTERVAL:g} to {MAX_CHECK_INTERVAL:g}",
        )
    if not (math.isfinite(check.timeout) and 0 < check.timeout <= check.interval):
        raise bad_value(
            f"{field}.timeout",
            check.timeout,
            f"seconds, more than 0 and at most the interval, which is {check.interval:g}",
        )
    for name, value in (("failures", check.failures), ("successes", check.successes)):
        if not 1 <= value <= MAX_CHECK_ROW:
            raise bad_value(f"{field}.{name}", value, f"a whole number from 1 to {MAX_CHECK_ROW}")
    if len(check.path) > MAX_CHECK_PATH or not _CHECK_PATH.fullmatch(check.path):
        raise bad_value(
            f"{field}.path",
            check.path,
            f"a path that begins with '/', of at most {MAX_CHECK_PATH} printable ASCII characters, "
            "without spaces and '#' (others percent-encoded)",
        )
    if check.port is not None:
        names.check_port(check.port, f"{field}.port")
    return check


class Definition(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A persistent instance. ``check``: its own; else its service's, else the registry's default."""

    entry: Entry
    check: Check | None = None


class Override(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An administrator's word about an instance, above whatever its publishers say. ``None``: as they say.

    Attributes:
        reason: why, for people.
        at: Unix time in seconds at which it was laid down.
    """

    enabled: bool | None = None
    weight: float | None = None
    reason: str = ""
    at: float = 0.0


class ServiceSettings(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What is laid down about a service. A service that has settings is kept though it is empty.

    Attributes:
        protect_threshold: share of healthy instances at or below which the list is marked ``protected``;
            ``None``: never.
        metadata: free pairs about the service.
        check: of its persistent instances that have none of their own.
    """

    protect_threshold: float | None = None
    metadata: dict[str, str] = {}
    check: Check | None = None


class Namespace(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A namespace that somebody has named. Others exist while they have services.

    Attributes:
        title: its name for people.
        max_services: its quota; ``None``: the registry's default.
        max_instances: its quota; ``None``: the registry's default.
    """

    title: str = ""
    description: str = ""
    max_services: int | None = None
    max_instances: int | None = None


class Defined(NamedTuple):
    """A persistent instance was defined, or (``None``) taken back."""

    ref: EntryRef
    definition: Definition | None


class Overridden(NamedTuple):
    """An override was laid down, or (``None``) lifted."""

    ref: EntryRef
    override: Override | None


class Configured(NamedTuple):
    """A service's settings were laid down, or (``None``) taken back."""

    service: ServiceKey
    settings: ServiceSettings | None


class Named(NamedTuple):
    """A namespace was named, or (``None``) its record taken back."""

    namespace: str
    record: Namespace | None


Ruling = Defined | Overridden | Configured | Named
"""One change of the CP records."""
