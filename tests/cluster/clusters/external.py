"""What providers share whose kubectl and helm are the user's, and whose images Docker builds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clusters.api import ClusterError, UnsupportedError
from clusters.daemons import Supervisor, fingerprint
from clusters.testbed import kwok_command
from clusters.tools import run, search_path, which

if TYPE_CHECKING:
    from clusters.api import Cluster


def link_tools(bin_dir: Path) -> None:
    """Put the user's kubectl and helm into a directory of their own."""
    bin_dir.mkdir(parents=True, exist_ok=True)
    for name in ("kubectl", "helm"):
        found = which(name)
        if found is None:
            raise ClusterError(f"{name} is not installed: it is not on the PATH")
        new = bin_dir / f"{name}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(Path(found).absolute())
        new.replace(bin_dir / name)


def docker_build(context: Path, tag: str, target: str) -> None:
    """Build one target of a Dockerfile."""
    run(["docker", "build", "--target", target, "--tag", tag, str(context)], timeout=1800)


def start_kwok(cluster: Cluster) -> None:
    """Run kwok beside a cluster that is not ours, from the PATH."""
    program = which("kwok")
    if program is None or sys.platform != "linux":
        raise UnsupportedError(f"simulated nodes on {cluster.name} need Linux and kwok on the PATH")
    supervisor = _supervisor(cluster)
    argv = kwok_command(program, cluster.kubeconfig, "127.0.0.1")
    recipe = fingerprint(argv, [cluster.kubeconfig])
    record = supervisor.find("kwok")
    if record is not None and record.recipe != recipe:
        supervisor.stop("kwok")
        record = None
    if record is None:
        supervisor.start("kwok", argv, recipe=recipe, env={"PATH": search_path()})


def stop_kwok(cluster: Cluster) -> None:
    """End the kwok that `start_kwok` started."""
    if sys.platform == "linux":
        _supervisor(cluster).stop("kwok")


def _supervisor(cluster: Cluster) -> Supervisor:
    return Supervisor(cluster.state_dir / "pid", cluster.state_dir / "log")
