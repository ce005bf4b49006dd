"""Test clusters: one small interface, and a provider of it for each way to come by a Kubernetes.

`choose()` picks the provider (`ROLLBOOK_CLUSTER`), `python -m clusters` is the same from a shell.
"""

from clusters.api import Cluster, ClusterError, Level, UnavailableError, UnsupportedError
from clusters.choose import choose
from clusters.tools import Helm, Kubectl, until

__all__ = [
    "Cluster",
    "ClusterError",
    "Helm",
    "Kubectl",
    "Level",
    "UnavailableError",
    "UnsupportedError",
    "choose",
    "until",
]
