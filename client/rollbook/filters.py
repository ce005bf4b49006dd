"""Filters: the part of a list that somebody asks for, the same at every door.

``cluster`` (several with commas), ``healthy`` and ``selector`` all have to hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.model import is_protected
from rollbook.names import MAX_CLUSTER_LENGTH, check_cluster
from rollbook.problems import Problem
from rollbook.selector import EVERYTHING, Selector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.model import Instance

MAX_CLUSTERS: Final = 32
"""Clusters that one request may name."""


class Filter(NamedTuple):
    """Which instances are meant; equal ones mean the same, so that it can key a cache.

    Attributes:
        clusters: those asked for; ``None`` for all.
        healthy: the health asked for; ``None`` for both.
        selector: what the metadata must satisfy.
    """

    clusters: frozenset[str] | None = None
    healthy: bool | None = None
    selector: Selector = EVERYTHING

    def take(self, instances: Iterable[Instance]) -> list[Instance]:
        """Return those that are meant, in their order."""
        clusters, healthy, selector = self
        return [
            i
            for i in instances
            if (clusters is None or i.cluster in clusters)
            and (healthy is None or i.healthy is healthy)
            and (not selector.terms or selector.matches(i.metadata))
        ]

    def protects(self, instances: Iterable[Instance], threshold: float | None) -> bool:
        """Say whether so few of those that are meant are healthy that the list is protected.

        The health that is asked for does not count: asking for the healthy ones makes nobody healthy.
        """
        if threshold is None:
            return False
        return is_protected(self._replace(healthy=None).take(instances), threshold)


UNFILTERED: Final = Filter()


def parse_clusters(text: str, field: str = "cluster") -> frozenset[str]:
    """Read one cluster's name, or several with commas.

    Raises:
        Problem: 400 ``bad_value``.
    """
    # A text that is too long for that many names has too many, and need not be taken apart.
    parts = text.split(",", MAX_CLUSTERS) if len(text) <= MAX_CLUSTERS * (MAX_CLUSTER_LENGTH + 1) else []
    if not 1 <= len(parts) <= MAX_CLUSTERS:
        accepted = f"at most {MAX_CLUSTERS} clusters, with commas between them"
        raise Problem(
            "bad_value", f"{field} is too long; accepted: {accepted}", field=field, accepted=accepted
        )
    return frozenset(check_cluster(part, field) for part in parts)
