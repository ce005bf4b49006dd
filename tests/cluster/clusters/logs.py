"""Collecting what may explain a failure, through the API; any provider can add its own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from clusters.api import ClusterError
from clusters.tools import Kubectl

if TYPE_CHECKING:
    from pathlib import Path

    from clusters.api import Cluster

TAIL = 4_000_000

_OVERVIEWS = {
    "nodes.txt": ("describe", "nodes"),
    "overview.txt": (
        "get",
        "all,endpointslices,ingresses,pvc,leases",
        "--all-namespaces",
        "--output",
        "wide",
    ),
    "events.txt": (
        "get",
        "events",
        "--all-namespaces",
        "--sort-by",
        ".metadata.creationTimestamp",
        "--output",
        "wide",
    ),
    "webhooks.yaml": (
        "get",
        "mutatingwebhookconfigurations,validatingwebhookconfigurations",
        "--output",
        "yaml",
    ),
}


def collect(cluster: Cluster, dest: Path) -> None:
    """Write descriptions, events and the logs of all containers, those of their last crash too, into `dest`.

    A piece that cannot be had leaves the reason in its place.
    """
    kubectl = Kubectl(cluster)
    dest.mkdir(parents=True, exist_ok=True)

    def write(name: str, *args: str) -> None:
        try:
            text = kubectl(*args, timeout=20)
        except ClusterError as error:
            text = f"{error}\n"
        if text:
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            (dest / name).write_text(text)

    try:
        pods = kubectl.json("get", "pods", "--all-namespaces", timeout=20)["items"]
        simulated = {
            node["metadata"]["name"]
            for node in kubectl.json("get", "nodes", "--selector", "type=kwok")["items"]
        }
    except ClusterError as error:
        (dest / "unreachable.txt").write_text(f"{error}\n")
        return
    jobs: list[tuple[str, ...]] = [(name, *args) for name, args in _OVERVIEWS.items()]
    for pod in pods:
        if pod["spec"].get("nodeName") not in simulated:
            jobs += _pod_jobs(pod)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: write(*job), jobs))


def _pod_jobs(pod: dict[str, Any]) -> list[tuple[str, ...]]:
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    place = ("--namespace", namespace, name)
    directory = f"pods/{namespace}/{name}"
    jobs: list[tuple[str, ...]] = [(f"{directory}/describe.txt", "describe", "pod", *place)]
    status = pod.get("status", {})
    for kind in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for container in status.get(kind, ()):
            what = ("logs", *place, "--container", container["name"], "--timestamps", f"--limit-bytes={TAIL}")
            jobs.append((f"{directory}/{container['name']}.log", *what))
            if container.get("restartCount"):
                jobs.append((f"{directory}/{container['name']}.previous.log", *what, "--previous"))
    return jobs


def copy_tails(source: Path, dest: Path) -> None:
    """Copy log files, of long ones the end."""
    dest.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.log")):
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - TAIL))
            (dest / path.name).write_bytes(log.read())


def running_container(kubectl: Kubectl, pod: str, container: str, namespace: str) -> str:
    """The id of a running container; `pod` is a name or a UID.

    Raises:
        ClusterError: there is no such pod or container, or it does not run.
    """
    for item in kubectl.json("get", "pods", namespace=namespace)["items"]:
        if pod not in {item["metadata"]["name"], item["metadata"]["uid"]}:
            continue
        statuses = {
            status["name"]: status
            for kind in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
            for status in item.get("status", {}).get(kind, ())
        }
        if container not in statuses:
            raise ClusterError(
                f"pod {namespace}/{pod} has no container {container}; it has {', '.join(statuses)}"
            )
        if "running" not in statuses[container]["state"]:
            state = json.dumps(statuses[container]["state"])
            raise ClusterError(f"container {container} of pod {namespace}/{pod} does not run: {state}")
        return str(statuses[container]["containerID"]).rpartition("//")[2]
    raise ClusterError(f"there is no pod {pod} in namespace {namespace}")
