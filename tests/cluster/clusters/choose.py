"""Which cluster the tests run on: `ROLLBOOK_CLUSTER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clusters.api import ClusterError, UnavailableError
from clusters.kind import Kind
from clusters.kubeconfig import OwnCluster, current_kubeconfig
from clusters.testbed import Testbed
from clusters.tools import run, which

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clusters.api import Cluster

VARIABLE = "ROLLBOOK_CLUSTER"
ACCEPTED = ("auto", "kind", "testbed", "kubeconfig", "none")


class Probes(Protocol):
    """What the choice depends on."""

    def installed(self, program: str) -> bool:
        """Whether a program is on the PATH."""

    def docker_answers(self) -> bool:
        """Whether a Docker engine answers: the client alone says nothing."""

    def linux(self) -> bool:
        """Whether this is Linux."""

    def debian_family(self) -> bool:
        """Whether packages come from apt."""

    def root(self) -> bool:
        """Whether this is root."""

    def kubeconfig(self) -> Path | None:
        """The user's own kubeconfig, if there is one."""


class Machine:
    """The probes of the machine that this runs on."""

    def installed(self, program: str) -> bool:
        """Whether a program is on the PATH."""
        return which(program) is not None

    def docker_answers(self) -> bool:
        """Whether a Docker engine answers: the client alone says nothing."""
        try:
            return bool(
                run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=10).stdout.strip()
            )
        except ClusterError:
            return False

    def linux(self) -> bool:
        """Whether this is Linux."""
        return sys.platform == "linux"

    def debian_family(self) -> bool:
        """Whether packages come from apt."""
        return Path("/etc/debian_version").exists() and which("apt-get") is not None

    def root(self) -> bool:
        """Whether this is root."""
        return os.geteuid() == 0

    def kubeconfig(self) -> Path | None:
        """The user's own kubeconfig, if there is one."""
        return current_kubeconfig()


def choose(environ: Mapping[str, str] = os.environ, probes: Probes | None = None) -> Cluster:
    """The cluster that `ROLLBOOK_CLUSTER` asks for.

    Raises:
        UnavailableError: this machine cannot have it; the text, one line, says what is missing.
        ClusterError: the variable has a value that means nothing.
    """
    wanted = environ.get(VARIABLE, "") or "auto"
    if wanted not in ACCEPTED:
        raise ClusterError(f"{VARIABLE}={wanted!r} means nothing; accepted are {', '.join(ACCEPTED)}")
    if wanted == "none":
        raise UnavailableError(f"no cluster, as {VARIABLE}=none says")
    probes = probes or Machine()
    if wanted == "auto":
        wanted, missing = _automatic(probes)
    else:
        missing = _MISSING[wanted](probes)
    if missing:
        raise UnavailableError(f"no cluster to test on: {wanted} needs {', '.join(missing)}")
    return _make(wanted)


def _automatic(probes: Probes) -> tuple[str, list[str]]:
    """The choice for this machine, and what is missing for it."""
    if probes.docker_answers():
        # with a container engine of the user's own at work, the testbed keeps its hands off unless it is
        # asked for
        return "kind", _missing_for_kind(probes, docker_answers=True)
    missing = _missing_for_testbed(probes)
    if missing and not (probes.linux() and probes.debian_family()):
        return "kind", _missing_for_kind(probes, docker_answers=False)
    return "testbed", missing and [*missing, "or else a Docker engine and kind"]


def _missing_for_kind(probes: Probes, *, docker_answers: bool | None = None) -> list[str]:
    if docker_answers is None:
        docker_answers = probes.docker_answers()
    missing = [] if docker_answers else ["a Docker engine that answers"]
    return missing + [
        f"the program {name}" for name in ("kind", "kubectl", "helm") if not probes.installed(name)
    ]


def _missing_for_testbed(probes: Probes) -> list[str]:
    needs = {
        "Linux": probes.linux(),
        "Debian or a relative of it": probes.debian_family(),
        "root": probes.root(),
        "the Go toolchain (go)": probes.installed("go"),
    }
    return [what for what, there in needs.items() if not there]


def _missing_for_kubeconfig(probes: Probes) -> list[str]:
    missing = [f"the program {name}" for name in ("kubectl", "helm") if not probes.installed(name)]
    return missing if probes.kubeconfig() else ["a kubeconfig file (KUBECONFIG or ~/.kube/config)", *missing]


_MISSING = {"kind": _missing_for_kind, "testbed": _missing_for_testbed, "kubeconfig": _missing_for_kubeconfig}


def _make(name: str) -> Cluster:
    if name == "kind":
        return Kind()
    if name == "testbed":
        return Testbed()
    return OwnCluster()
