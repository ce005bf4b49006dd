"""kind: Kubernetes in a Docker container, where there is a Docker engine.

A cluster with a name of its own and a kubeconfig of its own: the user's clusters and contexts are not
touched.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from clusters import logs
from clusters.api import ClusterError, Level
from clusters.external import docker_build, link_tools, start_kwok, stop_kwok
from clusters.tools import CommandError, Kubectl, cache_root, locked, run, say

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "rollbook-test"
NODE = f"{NAME}-control-plane"


class Kind:
    """A kind cluster as a test cluster; see `clusters.api.Cluster`."""

    name = "kind"

    def __init__(self, cache: Path | None = None) -> None:
        self.state_dir = (cache or cache_root()) / "kind"

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with this cluster alone."""
        return self.state_dir / "kubeconfig"

    @property
    def bin_dir(self) -> Path:
        """Links to the user's kubectl and helm."""
        return self.state_dir / "bin"

    def up(self, level: Level, *, kwok: bool = False) -> None:
        """Create the cluster, or start its container again; kind has no level without a node."""
        del level
        with locked(self.state_dir / "lock", purpose="bringing the kind cluster up", wait=900):
            link_tools(self.bin_dir)
            if not (self._exists() and self._revived()):
                self._delete()
                say(f"creating the kind cluster {NAME} (it pulls kind's node image if that is not there yet)")
                self._kind("create", "cluster", "--wait", "180s", timeout=900)
            if kwok:
                start_kwok(self)

    def _revived(self) -> bool:
        """Whether the cluster that exists works, after its container has been started if need be."""
        try:
            run(["docker", "start", NODE], timeout=60)
            self._kind("export", "kubeconfig")
            Kubectl(self)("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=90s", timeout=100)
        except CommandError as error:
            say(f"the kind cluster {NAME} does not work and is created anew ({error})")
            return False
        return True

    def down(self, *, wipe: bool = False) -> None:
        """Delete the cluster. A kind cluster has no state worth keeping: `wipe` changes nothing."""
        del wipe
        if not self.state_dir.exists():
            return
        with locked(self.state_dir / "lock", purpose="taking the kind cluster down", wait=900):
            stop_kwok(self)
            self._delete()

    def _delete(self) -> None:
        if self._exists():
            self._kind("delete", "cluster", timeout=180)
        self.kubeconfig.unlink(missing_ok=True)

    def _exists(self) -> bool:
        return NAME in run(["kind", "get", "clusters"]).stdout.split()

    def _kind(self, *args: str, timeout: float = 120) -> str:
        argv = ["kind", *args, "--name", NAME, "--kubeconfig", str(self.kubeconfig)]
        return run(argv, timeout=timeout).stdout

    def status(self) -> list[str]:
        """Whether the cluster exists, and its node's state."""
        if not self._exists():
            return [f"kind: there is no cluster {NAME}"]
        state = run(["docker", "inspect", "--format", "{{.State.Status}}", NODE], check=False).stdout.strip()
        return [f"kind: cluster {NAME}, node {NODE}: {state or 'no container'}"]

    def build_images(self, context: Path, images: Mapping[str, str]) -> dict[str, str]:
        """Build with Docker and load into the node."""
        for tag, target in images.items():
            docker_build(context, tag, target)
        run(["kind", "load", "docker-image", *images, "--name", NAME], timeout=600)
        return {tag: tag for tag in images}

    def collect_logs(self, dest: Path) -> None:
        """What kind exports from its node, and everything the API knows."""
        dest.mkdir(parents=True, exist_ok=True)
        try:
            run(["kind", "export", "logs", str(dest / "node"), "--name", NAME], timeout=120)
        except CommandError as error:
            (dest / "node-logs-missing.txt").write_text(f"{error}\n")
        logs.collect(self, dest)

    def node_pid(self, pod: str, container: str, namespace: str) -> int:
        """From the node's container runtime; it counts processes as the node's container does."""
        identity = logs.running_container(Kubectl(self), pod, container, namespace)
        pid = self.node_exec(
            "crictl", "inspect", "--output", "go-template", "--template", "{{.info.pid}}", identity
        )
        if not pid.strip().isdigit():
            raise ClusterError(f"crictl inspect {identity} names no process but {pid.strip()!r}")
        return int(pid)

    def host_signal(self, pid: int, sig: int) -> None:
        """From the node's container: the containers' processes are not always visible from further out."""
        self.node_exec("kill", f"-{signal.Signals(sig).value}", str(pid))

    def node_exec(self, *argv: str, timeout: float = 30) -> str:
        """In the node's container."""
        return run(["docker", "exec", NODE, *argv], timeout=timeout).stdout
