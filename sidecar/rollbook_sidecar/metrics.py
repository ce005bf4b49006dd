"""Metrics of the sidecar; names and labels are stable, and none is labelled by instance, pod or service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

if TYPE_CHECKING:
    from rollbook_sidecar.cache import Cache
    from rollbook_sidecar.registrar import Registrar

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_LOOKUP_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 2.5)
_DRAIN_BUCKETS = (0.1, 0.5, 1.0, 2.0, 2.5, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0)


class Metrics:
    """What the sidecar measures.

    Args:
        registry: where it is kept; each sidecar has its own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry or CollectorRegistry()
        lookups = Histogram(
            "rollbook_sidecar_lookup_seconds",
            "Time to answer a lookup, first lookups (which wait for the registry) included, long polls not.",
            ["operation"],
            registry=self._registry,
            buckets=_LOOKUP_BUCKETS,
        )
        self.listed = lookups.labels("list")
        self.picked = lookups.labels("pick")
        self.drains = Histogram(
            "rollbook_sidecar_drain_seconds",
            "Time that draining took, lingering included, by how the wait for subscribers ended.",
            ["outcome"],
            registry=self._registry,
            buckets=_DRAIN_BUCKETS,
        )

    def observe(self, cache: Cache, registrar: Registrar) -> None:
        """Read these when asked for the metrics."""
        for name, documentation, read in (
            ("connected", "1 while a session with a registry stands.", lambda: float(cache.connected)),
            (
                "cache_age_seconds",
                "Time since the registry was last heard; 0 while connected.",
                lambda: cache.age,
            ),
            ("services", "Services that are followed.", lambda: float(len(cache))),
            (
                "registered",
                "1 while the registry has the application's entries as they were last said.",
                lambda: float(registrar.state == "registered"),
            ),
        ):
            gauge = Gauge(f"rollbook_sidecar_{name}", documentation, registry=self._registry)
            gauge.set_function(read)

    def exposition(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
