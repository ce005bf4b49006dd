"""The interface that every provider of a test cluster has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Level = Literal["control", "node"]
"""`control`: API server, controllers and scheduler. `node`: and a node that runs containers."""


class ClusterError(Exception):
    """Something about a test cluster is wrong; the text says what, and what to do."""


class UnavailableError(ClusterError):
    """There is no cluster to be had on this machine; the text, one line, says what is missing."""


class UnsupportedError(ClusterError):
    """This provider cannot do that; the text names the provider and the reason."""


class Cluster(Protocol):
    """A cluster that tests may do anything to."""

    @property
    def name(self) -> str:
        """What `ROLLBOOK_CLUSTER` calls the provider."""

    @property
    def kubeconfig(self) -> Path:
        """A private kubeconfig whose only context is this cluster."""

    @property
    def bin_dir(self) -> Path:
        """A directory with the `kubectl` and `helm` that go with this cluster."""

    @property
    def state_dir(self) -> Path:
        """Where the provider keeps its state; also the tools' private configuration and the locks."""

    def up(self, level: Level, *, kwok: bool = False) -> None:
        """Bring the cluster to this level, or leave it there; repair what crashed.

        With `kwok`, nodes labelled `type=kwok` are simulated.
        """

    def down(self, *, wipe: bool = False) -> None:
        """Stop what `up` started and leave nothing behind; with `wipe` forget the cluster's objects too."""

    def status(self) -> list[str]:
        """What there is of it now, a line each."""

    def build_images(self, context: Path, images: Mapping[str, str]) -> dict[str, str]:
        """Build targets of the Dockerfile in `context` (tag → target) and put them on the node.

        Returns what a pod spec has to say for each tag (with `imagePullPolicy: IfNotPresent`).
        """

    def collect_logs(self, dest: Path) -> None:
        """Write everything that may explain a failure into the directory `dest`."""

    def node_pid(self, pod: str, container: str, namespace: str) -> int:
        """Process id of a running container's main process, as its node counts; `pod` is a name or a UID."""

    def host_signal(self, pid: int, sig: int) -> None:
        """Send a signal to a process that `node_pid` found, from outside of its container."""

    def node_exec(self, *argv: str, timeout: float = 30) -> str:
        """Run a program on the node (not in a container) and return what it prints."""
