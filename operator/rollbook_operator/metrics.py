"""The operator's figures; none is labelled by pod or instance."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """All figures of one operator, in a collector of their own so that tests can have several."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        self.latency = Histogram(
            "rollbook_operator_pod_event_to_registered_seconds",
            "From the arrival of a pod's event to the registry's acknowledgement of what it changed",
            buckets=LATENCY_BUCKETS,
            registry=self.collector,
        )
        self.reconcile_diff = Gauge(
            "rollbook_operator_reconcile_diff",
            "What the last reconcile found that no event had told",
            ["kind"],
            registry=self.collector,
        )
        self.reconciled = Gauge(
            "rollbook_operator_last_reconcile_timestamp_seconds",
            "When the last complete reconcile ended",
            registry=self.collector,
        )
        self.reconcile_seconds = Histogram(
            "rollbook_operator_reconcile_seconds",
            "How long complete reconciles took",
            buckets=LATENCY_BUCKETS,
            registry=self.collector,
        )
        self.decisions = Counter(
            "rollbook_operator_decisions_total",
            "Evaluations of pods, by what came of them",
            ["reason"],
            registry=self.collector,
        )
        self.retries = Counter(
            "rollbook_operator_api_retries_total",
            "Requests to the API server that had to be repeated",
            ["request"],
            registry=self.collector,
        )
        self.rejected = Counter(
            "rollbook_operator_rejected_total",
            "Entries that the registry would not have",
            ["code"],
            registry=self.collector,
        )
        self.pods = Gauge(
            "rollbook_operator_pods", "Pods that have to do with Rollbook", registry=self.collector
        )
        self.entries = Gauge(
            "rollbook_operator_entries", "Entries that the operator speaks for", registry=self.collector
        )
        self.queue = Gauge(
            "rollbook_operator_queue", "Pods that wait to be evaluated", registry=self.collector
        )
        self.connected = Gauge(
            "rollbook_operator_registry_connected",
            "1 while a session with the registry is attached",
            registry=self.collector,
        )
        self.epoch = Gauge(
            "rollbook_operator_epoch", "The transitions of the operator's Lease", registry=self.collector
        )
