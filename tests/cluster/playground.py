"""``make cluster``: a real Kubernetes with Rollbook and a sample application on it, to try things out.

``make cluster-down`` takes it away.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clusters.api import ClusterError
from clusters.choose import choose
from clusters.session import DEFAULT_TAG, images_of_the_project, keep, session_lock

if TYPE_CHECKING:
    from clusters.api import Cluster

ROOT = Path(__file__).parents[2]
NAMESPACE = "rollbook-system"
SHOP = "shop"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _run(cluster: Cluster, program: str, *arguments: str) -> None:
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    command = [str(cluster.bin_dir / program), *arguments]
    _say(f"+ {program} {' '.join(arguments)}")
    subprocess.run(command, check=True, env=environment)


def up(cluster: Cluster) -> None:
    """Bring it up, install Rollbook from freshly built images, and put the sample application on it."""
    with session_lock(cluster, "make cluster", wait=0):
        cluster.up("node")
        keep(cluster, wanted=True)
        images_of_the_project(cluster, ROOT, DEFAULT_TAG)
        _run(
            cluster, "helm", "upgrade", "--install", "rollbook", str(ROOT / "charts/rollbook"),
            "--namespace", NAMESPACE, "--create-namespace", "--set", f"image.tag={DEFAULT_TAG}",
            "--wait", "--timeout", "180s",
        )  # fmt: skip
        for part in (
            "statefulset/rollbook-registry",
            "deployment/rollbook-operator",
            "deployment/rollbook-webhook",
        ):
            # Freshly built images have the tag of the old ones, so nothing restarts by itself.
            _run(cluster, "kubectl", "-n", NAMESPACE, "rollout", "restart", part)
            _run(cluster, "kubectl", "-n", NAMESPACE, "rollout", "status", part, "--timeout=120s")
        if f"namespace/{SHOP}" not in _namespaces(cluster):
            _run(cluster, "kubectl", "create", "namespace", SHOP)
        _run(cluster, "kubectl", "-n", SHOP, "apply", "-f", str(ROOT / "examples/orders"))
        for name in ("orders", "caller"):
            _run(cluster, "kubectl", "-n", SHOP, "rollout", "status", f"deployment/{name}", "--timeout=120s")
    _say(
        f"""
Rollbook is up, and so are three orders and a caller. Try:

  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.bin_dir}:$PATH
  kubectl -n {SHOP} exec deployment/caller -c caller -- curl -s localhost:8849/services/orders
  kubectl -n {SHOP} exec deployment/caller -c caller -- curl -s localhost:8849/services/orders/pick
  kubectl -n {SHOP} rollout restart deployment/orders
  kubectl -n {NAMESPACE} port-forward service/rollbook 8848 &   # then: curl localhost:8848/services

make cluster-down takes it away."""
    )


def _namespaces(cluster: Cluster) -> list[str]:
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    command = [str(cluster.bin_dir / "kubectl"), "get", "namespaces", "-o", "name"]
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.split()


def down(cluster: Cluster) -> None:
    """Take it away."""
    with session_lock(cluster, "make cluster-down", wait=0):
        cluster.down()
        keep(cluster, wanted=False)


def main() -> int:
    """Run ``up`` or ``down``."""
    ways = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in ways:
        _say(f"usage: python -m playground {{{'|'.join(ways)}}}")
        return 2
    try:
        ways[sys.argv[1]](choose())
    except (ClusterError, subprocess.CalledProcessError) as error:
        _say(f"{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
