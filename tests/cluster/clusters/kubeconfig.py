"""A cluster of the user's own: the current context, and only because `kubeconfig` was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from clusters import logs
from clusters.api import Level, UnsupportedError
from clusters.external import docker_build, link_tools, start_kwok, stop_kwok
from clusters.tools import Kubectl, cache_root, run, say

if TYPE_CHECKING:
    from collections.abc import Mapping

REGISTRY_VARIABLE = "ROLLBOOK_IMAGE_REGISTRY"


def current_kubeconfig() -> Path | None:
    """The kubeconfig that kubectl would use, None if there is none."""
    configured = os.environ.get("KUBECONFIG", "")
    candidates = configured.split(os.pathsep) if configured else ["~/.kube/config"]
    return next((path for text in candidates if (path := Path(text).expanduser()).is_file()), None)


class OwnCluster:
    """The user's cluster as a test cluster; see `clusters.api.Cluster`.

    It is neither started nor stopped, and its nodes are out of reach.
    """

    name = "kubeconfig"

    def __init__(self, cache: Path | None = None) -> None:
        self.state_dir = (cache or cache_root()) / "kubeconfig"

    @property
    def kubeconfig(self) -> Path:
        """A copy of the context that was current at `up`: switching contexts later changes nothing."""
        return self.state_dir / "kubeconfig"

    @property
    def bin_dir(self) -> Path:
        """Links to the user's kubectl and helm."""
        return self.state_dir / "bin"

    def up(self, level: Level, *, kwok: bool = False) -> None:
        """See that it answers and, at level node, that a node is ready."""
        link_tools(self.bin_dir)
        current = run(["kubectl", "config", "view", "--minify", "--flatten", "--raw"]).stdout
        new = self.state_dir / "kubeconfig.new"
        new.touch(mode=0o600)
        new.write_text(current)
        new.replace(self.kubeconfig)
        kubectl = Kubectl(self)
        context = kubectl("config", "current-context").strip()
        kubectl("get", "--raw", "/readyz", timeout=30)
        say(f"using the cluster of the current context, {context}")
        if level == "node":
            kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s", timeout=70)
        if kwok:
            start_kwok(self)

    def down(self, *, wipe: bool = False) -> None:
        """Forget the copy of the context; the cluster is the user's and stays as it is."""
        del wipe
        stop_kwok(self)
        self.kubeconfig.unlink(missing_ok=True)

    def status(self) -> list[str]:
        """Whether it is in use, and whether it answers."""
        if not self.kubeconfig.exists():
            return ["kubeconfig: not in use"]
        answer = Kubectl(self)("get", "--raw", "/readyz", timeout=15, check=False)
        return [f"kubeconfig: the API server {'is ready' if answer.strip() == 'ok' else 'does not answer'}"]

    def build_images(self, context: Path, images: Mapping[str, str]) -> dict[str, str]:
        """Build with Docker and push to a registry that the cluster pulls from."""
        registry = os.environ.get(REGISTRY_VARIABLE, "").rstrip("/")
        if not registry:
            raise UnsupportedError(
                f"a cluster of your own gets images from a registry: {REGISTRY_VARIABLE} must name one that"
                " you can push to and it can pull from, as registry.example.org/team"
            )
        references = {tag: f"{registry}/{tag}" for tag in images}
        for tag, target in images.items():
            docker_build(context, references[tag], target)
            run(["docker", "push", references[tag]], timeout=1800)
        return references

    def collect_logs(self, dest: Path) -> None:
        """Everything the API knows."""
        logs.collect(self, dest)

    def node_pid(self, pod: str, container: str, namespace: str) -> int:
        """Not possible."""
        raise UnsupportedError(
            f"the process of {namespace}/{pod}/{container}: kubeconfig has no access to nodes"
        )

    def host_signal(self, pid: int, sig: int) -> None:
        """Not possible."""
        raise UnsupportedError(f"signal {sig} to process {pid}: kubeconfig has no access to nodes")

    def node_exec(self, *argv: str, timeout: float = 30) -> str:
        """Not possible."""
        del timeout
        raise UnsupportedError(f"running {argv[0]} on a node: kubeconfig has no access to nodes")
