"""Prometheus' HTTP service discovery: the book as targets for scraping.

The format is Prometheus' own ("Writing HTTP Service Discovery" in its documentation): one group of one target
and its labels for each instance. All instances are there, disabled and unhealthy ones too, unless the URL
or a ``relabel_configs`` says otherwise: what is to be scraped is for Prometheus' side to say.

Prometheus keeps the targets that it has when it is answered an error. So while the book is not settled, and
an absence in it proves nothing, this answers 503 instead of a list that may lack most.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from rollbook.model import Instance
from rollbook.names import (
    DEFAULT_GROUP,
    DEFAULT_NAMESPACE,
    MAX_NAMESPACE_LENGTH,
    InstanceKey,
    ServiceKey,
)
from rollbook.patterns import ANY, Pattern, check_group_pattern, check_service_pattern
from rollbook.problems import Problem
from rollbook_registry.api import parameters
from rollbook_registry.api.routes import JSON, Answer, Parameter, Route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rollbook.filters import Filter
    from rollbook_registry.api.routes import Values
    from rollbook_registry.book import Book

PREFIX: Final = "__meta_rollbook_"
METADATA_PREFIX: Final = f"{PREFIX}metadata_"

_CHUNK: Final = 64 * 1024
"""Bytes that are made before others get their turn: a namespace of 100,000 instances must hold nobody up."""

_SPELT: Final = {True: "true", False: "false"}
_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")

GROUPS: Final = Parameter(
    name="group",
    about="Only services of this group, or of groups that match this pattern.",
    schema={"type": "string", "pattern": r"^[0-9A-Za-z_.:*-]+$", "maxLength": MAX_NAMESPACE_LENGTH},
    read=check_group_pattern,
    default=ANY,
    example=DEFAULT_GROUP,
)
SERVICES: Final = Parameter(
    name="service",
    about="Only this service, or those that match this pattern; `*` stands for any run of characters.",
    schema=parameters.SERVICE.schema,
    read=lambda text: check_service_pattern(text, "service"),
    default=ANY,
    example="orders-*",
)


class TargetGroup(msgspec.Struct, kw_only=True):
    """One instance, as Prometheus wants it.

    Attributes:
        targets: its address, ``ip:port``.
        labels: what is known of it, for relabelling.
    """

    targets: list[str]
    labels: dict[str, str]


def label_name(key: str) -> str:
    """Spell a metadata key as the end of a label's name: what a label can't hold becomes ``_``."""
    return _NO_LABEL.sub("_", key)


def metadata_labels(metadata: Mapping[str, str]) -> dict[str, str]:
    """Turn metadata into labels.

    Where several keys have one spelling, the key that is spelled so itself has the label, else the first of
    them by sorting: which one it is never depends on the order in which somebody said them.
    """
    labels: dict[str, str] = {}
    for key in sorted(metadata, key=lambda k: (label_name(k) != k, k)):
        labels.setdefault(METADATA_PREFIX + label_name(key), metadata[key])
    return labels


def target_group(service: ServiceKey, instance: Instance) -> TargetGroup:
    """Describe one instance."""
    return TargetGroup(
        targets=[instance.url_host],
        labels={
            f"{PREFIX}namespace": service.namespace,
            f"{PREFIX}group": service.group,
            f"{PREFIX}service": service.name,
            f"{PREFIX}cluster": instance.cluster,
            f"{PREFIX}instance_id": instance.instance_id,
            f"{PREFIX}owner": instance.owner,
            f"{PREFIX}healthy": _SPELT[instance.healthy],
            f"{PREFIX}enabled": _SPELT[instance.enabled],
            f"{PREFIX}ready": _SPELT[instance.ready],
            f"{PREFIX}alive": _SPELT[instance.alive],
            f"{PREFIX}ephemeral": _SPELT[instance.ephemeral],
            f"{PREFIX}weight": f"{instance.weight:.15g}",
            **metadata_labels(instance.metadata),
        },
    )


class Prometheus:
    """The handler.

    Args:
        book: the book.
    """

    def __init__(self, book: Book) -> None:
        self._book = book

    def routes(self) -> list[Route]:
        """Return what is served here."""
        return [
            Route(
                method="GET",
                path="/prometheus/sd",
                handler=self.prometheus_targets,
                parameters=(parameters.NAMESPACE, GROUPS, SERVICES, *parameters.FILTER),
                answers=(
                    Answer(
                        status=200,
                        about="One group of one target for each instance, in no order.",
                        type=list[TargetGroup],
                        example=[_EXAMPLE],
                    ),
                ),
                problems=("not_ready",),
            )
        ]

    async def prometheus_targets(self, request: web.Request, values: Values) -> web.StreamResponse:
        """List instances as targets, for Prometheus' `http_sd_configs`.

        Disabled and unhealthy ones are there too: `healthy=true`, or a relabelling, leaves them out. While
        the registry has not been up for long enough to know all instances, it answers 503, and Prometheus
        keeps the targets that it has.
        """
        if not self._book.outlet.settled:
            raise Problem(
                "not_ready",
                "the registry started a moment ago, and an absence proves nothing yet; come again",
            )
        response = web.StreamResponse(headers={"Content-Type": JSON, "Cache-Control": "no-store"})
        await response.prepare(request)
        if request.method != "HEAD":
            await self._write(
                response,
                Pattern(values[parameters.NAMESPACE], values[GROUPS], values[SERVICES]),
                parameters.filter_of(values),
            )
        return response

    async def _write(self, response: web.StreamResponse, pattern: Pattern, wanted: Filter) -> None:
        services = self._book.catalog.services
        encode = msgspec.json.Encoder().encode
        chunk = bytearray(b"[")
        between = b""
        # The services may change while others have their turn; each is read in one go.
        for key in [s.key for s in services.within(pattern.namespace) if pattern.matches(s.key)]:
            service = services.get(key)
            for instance in wanted.take(service.instances.values()) if service else ():
                chunk += between
                chunk += encode(target_group(key, instance))
                between = b","
                if len(chunk) >= _CHUNK:
                    await response.write(bytes(chunk))
                    chunk.clear()
                    await asyncio.sleep(0)
        await response.write(bytes(chunk) + b"]")


_EXAMPLE: Final = target_group(
    ServiceKey(DEFAULT_NAMESPACE, DEFAULT_GROUP, "orders"),
    Instance(key=InstanceKey("10.0.0.7:8080:DEFAULT"), ip="10.0.0.7", port=8080, metadata={"version": "2"}),
)
