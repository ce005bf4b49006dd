"""Metrics: every number that matters, under a stable name, never labelled by instance or pod."""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from rollbook_registry.catalog import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.core import Metric

    from rollbook_registry.book import Book

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class CheckMeter:
    """Counts checks of persistent instances.

    Args:
        registry: where the counts are scraped.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._checks = Counter(
            "rollbook_checks_total", "Checks of persistent instances", ("type", "result"), registry=registry
        )
        self._seconds = Histogram(
            "rollbook_check_seconds", "What a check took", ("type",), buckets=_FAST, registry=registry
        )
        self._late = Histogram(
            "rollbook_check_late_seconds",
            "How much later than due a check began",
            buckets=_FAST,
            registry=registry,
        )
        self._missed = Counter(
            "rollbook_checks_missed_total",
            "Checks not made because the ones before them were too late",
            registry=registry,
        )
        self.in_flight = Gauge("rollbook_checks_in_flight", "Checks under way", registry=registry)
        self.instances = Gauge("rollbook_checked_instances", "Instances that are checked", registry=registry)
        self._counted: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def began(self, late: float) -> None:
        """Count a check that begins ``late`` seconds after it was due."""
        self._late.observe(late)

    def ended(self, kind: str, finding: str, seconds: float) -> None:
        """Count a check of this kind, what it found and how long it took."""
        counted = self._counted.get((kind, finding))
        if counted is None:
            # A labelled child costs more to find than to count.
            counted = (self._checks.labels(kind, finding), self._seconds.labels(kind))
            self._counted[kind, finding] = counted
        counted[0].inc()
        counted[1].observe(seconds)

    def missed(self, turns: int) -> None:
        """Count checks that were never made."""
        self._missed.inc(turns)


BEATS: Final = (
    ("session", "heard"),
    ("session", "ended"),
    ("session", "refused"),
    ("http", "heard"),
    ("http", "registered"),
    ("http", "refused"),
)
"""What becomes of beats: how they came, and the outcome."""


class Tally(Collector):
    """A counter whose labels' values are known, for what is counted very often.

    It is a dictionary until it is scraped: a counter of the library takes ten times as long to count.

    Args:
        name: of the counter, without ``_total``.
        about: what is counted.
        labels: their names.
        values: their values, in all combinations that there are; each is shown from the start.
    """

    def __init__(
        self, name: str, about: str, labels: tuple[str, ...], values: Iterable[tuple[str, ...]]
    ) -> None:
        self._name = name
        self._about = about
        self._labels = labels
        self._created = time.time()
        self.counts = dict.fromkeys(values, 0)
        """How many of each; to be counted up."""

    def collect(self) -> Iterable[Metric]:
        """Show the counts."""
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for values, count in self.counts.items():
            family.add_metric(values, count, created=self._created)
        yield family


class UdpMeter:
    """Counts pushes over UDP.

    Args:
        registry: where the counts are scraped.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pushes = Counter(
            "rollbook_udp_pushes_total", "What became of pushes over UDP", ("outcome",), registry=registry
        )
        self._seconds = Histogram(
            "rollbook_udp_push_seconds",
            "From a change to its acknowledgement by a subscriber over UDP",
            buckets=_FAST,
            registry=registry,
        )
        self.subscriptions = Gauge("rollbook_udp_subscriptions", "Subscriptions over UDP", registry=registry)
        self._counted: dict[str, Counter] = {}

    def pushed(self, seconds: float) -> None:
        """Count an acknowledgement, so long after the change."""
        self._seconds.observe(seconds)

    def counted(self, outcome: str) -> None:
        """Count what became of a push, and ``error``: what the system said of a datagram."""
        child = self._counted.get(outcome)
        if child is None:
            child = self._counted[outcome] = self._pushes.labels(outcome)
        child.inc()


class RuntimeMeter:
    """Counts what Python's collector and the loop's long steps cost.

    Args:
        registry: where the counts are scraped.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        pauses = Histogram(
            "rollbook_collector_pause_seconds",
            "How long everything stood still while Python looked for garbage in cycles",
            ("generation",),
            buckets=_FAST,
            registry=registry,
        )
        # Looked up once: a labelled child costs more to find than to count.
        self._pauses = [pauses.labels(str(generation)) for generation in range(3)]
        self._found = Counter(
            "rollbook_collector_found_total", "Objects that it found in such cycles", registry=registry
        )
        self._lateness = Histogram(
            "rollbook_loop_lateness_seconds",
            "How much later than due the event loop came round, looked at 20 times a second",
            buckets=_FAST,
            registry=registry,
        )
        self.held = Counter(
            "rollbook_loop_held_total", "Times that one step held the loop for too long", registry=registry
        )

    def collected(self, generation: int, seconds: float, found: int) -> None:
        """Count a pass of the collector."""
        self._pauses[generation].observe(seconds)
        if found:
            self._found.inc(found)

    def late(self, seconds: float) -> None:
        """Count how late the loop came round."""
        self._lateness.observe(seconds)


class Metrics:
    """The registry's own counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.beats = Tally("rollbook_beats", "Beats heard", ("transport", "result"), BEATS)
        self.registry.register(self.beats)
        self.expirations = Counter(
            "rollbook_expirations_total",
            "Entries that turned silent, and that were removed",
            ("stage",),
            registry=self.registry,
        )
        self.events = Tally(
            "rollbook_entry_events", "What happened to entries", ("reason",), ((r.value,) for r in Reason)
        )
        self.registry.register(self.events)
        self.fenced = Counter("rollbook_fenced_total", "Pods confirmed gone", registry=self.registry)
        self.refusals = Counter(
            "rollbook_refusals_total", "Requests refused", ("code",), registry=self.registry
        )
        self.connections_refused = Counter(
            "rollbook_connections_refused_total",
            "Connections that were not let in",
            ("reason",),
            registry=self.registry,
        )
        self.connections_closed = Counter(
            "rollbook_connections_closed_total",
            "Connections that were ended because they took too long",
            ("reason",),
            registry=self.registry,
        )
        self.sessions_closed = Counter(
            "rollbook_sessions_closed_total",
            "Sessions that the registry ended",
            ("reason",),
            registry=self.registry,
        )
        self.push = Histogram(
            "rollbook_push_seconds",
            "From a change to its acknowledgement by a subscriber",
            buckets=_FAST,
            registry=self.registry,
        )
        self.conflated = Counter(
            "rollbook_push_conflated_total",
            "Changes merged because a subscriber was behind",
            registry=self.registry,
        )
        self.udp = UdpMeter(self.registry)
        self.runtime = RuntimeMeter(self.registry)
        self.checks = CheckMeter(self.registry)
        self.store = Counter(
            "rollbook_store_operations_total",
            "Reads and writes of what is laid down",
            ("outcome",),
            registry=self.registry,
        )
        self.snapshots = Counter(
            "rollbook_snapshots_total",
            "What became of snapshots and journals of the instances that live by beats",
            ("outcome",),
            registry=self.registry,
        )
        self.snapshot_time = Gauge(
            "rollbook_snapshot_timestamp_seconds",
            "Unix time of the snapshot on the disk; 0 if there is none",
            registry=self.registry,
        )
        self.snapshot_size = Gauge(
            "rollbook_snapshot_bytes", "Size of the snapshot that was saved last", registry=self.registry
        )
        self.loop_lag = Gauge(
            "rollbook_loop_lag_seconds",
            "How much later than due the event loop came round last",
            registry=self.registry,
        )
        self.loop_lag_lost = Counter(
            "rollbook_loop_lag_forgiven_seconds_total",
            "Time that this process missed, and that nobody was judged by",
            registry=self.registry,
        )


class BookCollector(Collector):
    """Counts the book when it is scraped, rather than at every change."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def collect(self) -> Iterable[Metric]:
        """Count."""
        instances = GaugeMetricFamily(
            "rollbook_instances", "Instances in the book", labels=("namespace", "ephemeral", "healthy")
        )
        counts: dict[str, collections.Counter[tuple[str, str]]] = {}
        for service in self._book.catalog.services:
            count = counts.setdefault(service.key.namespace, collections.Counter())
            held, healthy = len(service.instances), service.healthy
            count["false", "true"] += service.persistent_healthy
            count["false", "false"] += service.persistent - service.persistent_healthy
            count["true", "true"] += healthy - service.persistent_healthy
            count["true", "false"] += held - healthy - service.persistent + service.persistent_healthy
        for namespace, count in counts.items():
            for (ephemeral, healthy_), value in count.items():
                instances.add_metric((namespace, ephemeral, healthy_), value)
        yield instances
        yield GaugeMetricFamily(
            "rollbook_services", "Services in the book", value=len(self._book.catalog.services)
        )
        yield GaugeMetricFamily("rollbook_leases", "Leases in the book", value=self._book.catalog.leases)
        subscribers = GaugeMetricFamily("rollbook_subscribers", "Subscriptions", labels=("transport",))
        subscribers.add_metric(("session",), self._book.outlet.subscriptions)
        yield subscribers
        yield GaugeMetricFamily(
            "rollbook_patterns", "Patterns that sessions follow", value=self._book.outlet.patterns
        )
        pods = self._book.catalog.pods
        yield GaugeMetricFamily("rollbook_pods_closed", "Pods that are terminating", value=pods.closed)
        yield GaugeMetricFamily("rollbook_pods_fenced", "Pods remembered as gone", value=pods.fenced)
        disagreements = GaugeMetricFamily(
            "rollbook_disagreements",
            "Pods about which Kubernetes and the book do not agree",
            labels=("kind",),
        )
        for kind, value in self._book.disagreements().items():
            disagreements.add_metric((kind.value,), value)
        yield disagreements
        yield GaugeMetricFamily(
            "rollbook_protection_active",
            "Whether leases are kept although they have been silent for too long",
            value=float(self._book.expiry.protection.active),
        )
        yield GaugeMetricFamily(
            "rollbook_protection_kept", "Leases that are kept so", value=self._book.expiry.protection.kept
        )
        yield GaugeMetricFamily(
            "rollbook_settled", "Whether the book is settled", value=float(self._book.outlet.settled)
        )


class GuardCollector(Collector):
    """Counts connections and sessions when it is scraped.

    Args:
        connections: says how many there are, by kind.
        sessions: says how many there are.
    """

    def __init__(self, connections: Callable[[], Mapping[Any, int]], sessions: Callable[[], int]) -> None:
        self._connections = connections
        self._sessions = sessions

    def collect(self) -> Iterable[Metric]:
        """Count."""
        found = GaugeMetricFamily("rollbook_connections", "Connections, by what they are", labels=("kind",))
        for kind, count in self._connections().items():
            found.add_metric((kind,), count)
        yield found
        yield GaugeMetricFamily("rollbook_sessions", "Sessions that are open", value=self._sessions())
