"""Settings of the operator: what can be set, and its default."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from pathlib import Path  # noqa: TC003  # rollbook.settings reads the annotations when the program runs

from rollbook import names
from rollbook.addresses import check_addresses
from rollbook.kube import ACCOUNT_DIR, KubeApi
from rollbook.logs import FORMATS, LEVELS
from rollbook.names import MAX_PORT
from rollbook.problems import bad_value
from rollbook.settings import setting
from rollbook_operator import lease

_OBJECT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """All settings of one operator; each is a flag and a ``ROLLBOOK_`` variable.

    Raises:
        Problem: 400 ``bad_value`` naming the flag.
    """

    registry: tuple[str, ...] = setting(
        ..., "Registries, HOST[:PORT] separated by commas (port 7848 if none is said)."
    )
    token_file: Path | None = setting(
        None, "File with the token to show the registry, read at each connection; without it none is shown."
    )
    pod_namespace: str = setting(
        "", "Kubernetes namespace in which the operator keeps its Lease; in a cluster, its own by default."
    )
    lease_name: str = setting(
        lease.DEFAULT_NAME,
        "Name of the Lease whose transitions are the epoch.",
        danger="Operators of one registry must share it: epochs of their own undo each other's work.",
    )
    health_port: int = setting(
        8080, "Port of /healthz, /readyz and /metrics; 0 takes a free one.", minimum=0, maximum=MAX_PORT
    )
    reconcile_interval: float = setting(
        60.0,
        "Time between comparisons of all pods with what was entered, the safety net beneath the watches.",
        unit="s",
        minimum=1,
        maximum=24 * 3600,
        formula="Each costs the API server one paginated list of all pods; what a watch misses is mended "
        "after at most this time.",
    )
    kubeconfig: Path | None = setting(
        None,
        "For development: the kubeconfig whose current context to use; by default the pod's own account.",
    )
    log_level: str = setting("info", "What is logged.", choices=LEVELS)
    log_format: str = setting("json", "How it is logged.", choices=FORMATS)

    def __post_init__(self) -> None:
        check_addresses(self.registry, "--registry")
        check_object_name("--lease-name", self.lease_name)
        if self.pod_namespace:
            check_object_name("--pod-namespace", self.pod_namespace)


def check_object_name(flag: str, value: str) -> None:
    """Hold a flag's value against what Kubernetes allows as an object's name.

    Raises:
        Problem: 400 ``bad_value``.
    """
    if len(value) > names.MAX_HOST_LENGTH or not _OBJECT_NAME.fullmatch(value):
        raise bad_value(flag, value, "a Kubernetes name: lower case letters, digits, '-' and '.'")


def own_namespace(given: str) -> str:
    """Return the Kubernetes namespace that was given, or else that of the pod.

    Raises:
        Problem: 400 ``bad_value``: neither is known.
    """
    if given:
        return given
    try:
        return (ACCOUNT_DIR / "namespace").read_text().strip()
    except OSError:
        raise bad_value(
            "--pod-namespace", "", "a namespace's name (this is no pod, so it must be given)"
        ) from None


def own_name() -> str:
    """Name this process for people: the pod's name, which is its host name."""
    return os.environ.get("HOSTNAME") or socket.gethostname()


def kube_api(kubeconfig: Path | None) -> KubeApi:
    """Choose how to reach the API server.

    Raises:
        Problem: 400 ``bad_value``: there is no way.
    """
    try:
        return KubeApi.from_kubeconfig(kubeconfig) if kubeconfig else KubeApi.in_cluster()
    except (LookupError, OSError, ValueError) as error:
        raise bad_value(
            "--kubeconfig", str(kubeconfig or ""), f"a kubeconfig's path, outside a pod ({error})"
        ) from None
