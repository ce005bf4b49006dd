"""What the testbed is built from, and building it.

Nothing is downloaded ready-made: Kubernetes, helm, kwok and CoreDNS are compiled from Go modules, the rest
are Debian's packages. Each product is made under a temporary name and renamed when it is complete, so a build
that was interrupted goes on where it was. What is built is kept under a key made of the Kubernetes version
and of everything that goes into the build: another recipe is another directory.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from clusters.api import ClusterError, Level
from clusters.images import Buildah
from clusters.machine import remove_tree
from clusters.tools import CommandError, run, say, search_path, which

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SOURCES = Path(__file__).resolve().parent.parent / "testbed"

HELM = "3.19.5"
KWOK = "0.7.0"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
BASE_IMAGE = "docker.io/library/python:3.11-slim"
KUBE_NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)

CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

HEARTBEAT = 20.0
UNUSED_AFTER_DAYS = 30


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to make: what it is, whether it is there, how to make it."""

    what: str
    cold: str
    present: Callable[[], bool]
    make: Callable[[], None]


class Recipe:
    """The testbed's build: products under `root`/`key`, made from `sources`."""

    def __init__(self, root: Path, cache: Path, sources: Path = SOURCES) -> None:
        self.root = root
        self.cache = cache
        self.sources = sources
        self._lock: int | None = None

    # What it makes, and where

    @cached_property
    def kubernetes(self) -> str:
        """The Kubernetes version, as the module file has it."""
        found = re.search(
            r"^\s*k8s\.io/kubernetes v([0-9.]+)$", (self.sources / "kube/go.mod").read_text(), re.MULTILINE
        )
        if found is None:
            raise ClusterError(f"{self.sources / 'kube/go.mod'} does not require k8s.io/kubernetes vX.Y.Z")
        return found[1]

    @cached_property
    def key(self) -> str:
        """The version, and a digest of everything that goes into the build."""
        digest = hashlib.sha256()
        for part in ("kube", "dns", "image"):
            for path in sorted((self.sources / part).rglob("*")):
                if path.is_file():
                    digest.update(f"{path.relative_to(self.sources)}\0".encode() + path.read_bytes())
        for command in self._go_commands.values():
            digest.update("\0".join(command).encode())
        digest.update(f"{BASE_IMAGE} {PAUSE_IMAGE} {platform.machine()}".encode())
        return f"{self.kubernetes}-{digest.hexdigest()[:12]}"

    @property
    def home(self) -> Path:
        """Where this recipe's products are."""
        return self.root / self.key

    @property
    def bin(self) -> Path:
        """The programs."""
        return self.home / "bin"

    @property
    def log(self) -> Path:
        """What the build steps print."""
        return self.home / "build.log"

    @property
    def buildah(self) -> Buildah:
        """The image builder with this recipe's base image."""
        return Buildah(self.home / "images", self.cache)

    @property
    def pause_archive(self) -> Path:
        """The sandbox container's image, ready to import."""
        return self.home / "pause.tar"

    @property
    def _temporary(self) -> Path:
        return self.home / "unfinished"

    # Building

    def build(self, level: Level, *, kwok: bool, lock: int) -> None:
        """Make whatever is missing for a cluster of this level; `lock` is held until the last builder ends.

        Raises:
            ClusterError: something could not be made, with the end of what it printed.
        """
        self._lock = lock
        missing = [step for step in self._steps(level, kwok=kwok) if not step.present()]
        if missing:
            say(f"Kubernetes {self.kubernetes} has to be built first, once; it will be kept in {self.home}")
            for step in missing:
                say(f"  to do: {step.what} ({step.cold})")
            self.home.mkdir(parents=True, exist_ok=True)
        for step in missing:
            remove_tree(self._temporary)
            self._temporary.mkdir()
            begun = time.monotonic()
            step.make()
            say(f"  {step.what}: done in {time.monotonic() - begun:.0f} s")
        remove_tree(self._temporary)
        (self.home / "used").touch()
        self._remove_unused()

    def _remove_unused(self) -> None:
        # what earlier versions of the recipe left
        for other in self.root.glob("*/used"):
            if other.parent != self.home and time.time() - other.stat().st_mtime > UNUSED_AFTER_DAYS * 86400:
                remove_tree(other.parent)

    def _steps(self, level: Level, *, kwok: bool) -> list[Step]:
        packages = self._missing_packages(level)
        steps = [
            Step(
                f"Debian packages {' '.join(packages)} (apt-get install)",
                "half a minute",
                lambda: not packages,
                lambda: self._install(packages),
            ),
            self._go_step("kube", "etcd and Kubernetes", "8 to 15 minutes, 1 with a warm Go cache"),
            self._go_step("helm", f"helm {HELM}", "1 minute"),
        ]
        if kwok:
            steps.append(self._go_step("kwok", f"kwok {KWOK}", "2 minutes"))
        if level == "node":
            steps += [
                self._go_step("coredns", "CoreDNS", "1 minute"),
                self._go_step("pause", "pause", "seconds"),
                Step("the image of pause", "seconds", self.pause_archive.exists, self._make_pause_image),
                Step(
                    "a stand-in for the image python:3.11-slim (debootstrap)",
                    "1 to 2 minutes",
                    lambda: self.buildah.has(BASE_IMAGE),
                    self._make_base_image,
                ),
            ]
        return steps

    # Debian

    def _missing_packages(self, level: Level) -> list[str]:
        needs: dict[str, bool] = {"openssl": _installed("openssl"), "iproute2": _installed("ip")}
        if level == "node":
            needs |= {
                "buildah": _installed("buildah"),
                "containerd": _installed("containerd", "ctr"),
                "containernetworking-plugins": cni_directory() is not None,
                "debian-archive-keyring": KEYRING.exists(),
                "debootstrap": _installed("debootstrap"),
                "nftables": _installed("nft"),
                "runc": _installed("runc"),
            }
        return [package for package, there in needs.items() if not there]

    def _install(self, packages: Sequence[str]) -> None:
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        self._run("apt-get update", ["apt-get", "update"], env=env)
        # --no-remove: a machine with another container engine's packages is not for us to rearrange
        argv = ["apt-get", "install", "--yes", "--no-install-recommends", "--no-remove", *packages]
        self._run(f"apt-get install {' '.join(packages)}", argv, env=env)

    # Go

    @cached_property
    def _go_commands(self) -> dict[str, list[str]]:
        """Product → the go command that makes it, without the output's name."""
        major, minor = self.kubernetes.split(".")[:2]
        stamp = {
            "gitVersion": f"v{self.kubernetes}",
            "gitMajor": major,
            "gitMinor": minor,
            "gitTreeState": "clean",
            "gitCommit": "none",
        }
        stamps = " ".join(
            f"-X {package}.{name}={value}"
            for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
            for name, value in stamp.items()
        )
        common = ["-v", "-trimpath", "-buildvcs=false"]
        return {
            "kube": ["build", *common, "-ldflags", f"-s -w {stamps}", "./cmd/kube"],
            "pause": ["build", *common, "-ldflags", "-s -w", "./cmd/pause"],
            "coredns": ["build", *common, "-ldflags", "-s -w", "."],
            "helm": ["install", *common, "-ldflags", "-s -w", f"helm.sh/helm/v3/cmd/helm@v{HELM}"],
            "kwok": [
                "install",
                *common,
                "-ldflags",
                f"-s -w -X sigs.k8s.io/kwok/pkg/consts.Version=v{KWOK}",
                f"sigs.k8s.io/kwok/cmd/kwok@v{KWOK}",
            ],
        }

    def _go_step(self, product: str, what: str, cold: str) -> Step:
        return Step(f"{what} (Go modules)", cold, (self.bin / product).exists, lambda: self._go(product))

    def _go(self, product: str) -> None:
        go = which("go")
        if go is None:
            raise ClusterError("the Go toolchain is missing: no `go` on the PATH; https://go.dev/doc/install")
        verb, *rest = self._go_commands[product]
        module = {"kube": "kube", "pause": "kube", "coredns": "dns"}.get(product)
        # For the rest go's own variables are the user's: GOPROXY, GOMODCACHE, GOCACHE, GOTOOLCHAIN.
        env = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off", "GOBIN": str(self._temporary)}
        output = ["-o", str(self._temporary / product)] if verb == "build" else []
        cwd = self.sources / module if module else self._temporary
        self._run(f"building {product}", [go, verb, *output, *rest], env=env, cwd=cwd)
        self.bin.mkdir(exist_ok=True)
        for name in KUBE_NAMES if product == "kube" else ():
            link = self._temporary / name
            link.symlink_to("kube")
            link.replace(self.bin / name)
        (self._temporary / product).replace(self.bin / product)

    # Images

    def _make_pause_image(self) -> None:
        shutil.copy(self.bin / "pause", self._temporary)
        shutil.copy(self.sources / "image/Containerfile.pause", self._temporary / "Containerfile")
        self._run(
            "the image of pause",
            self.buildah.build_command(self._temporary, PAUSE_IMAGE),
            env=self.buildah.env,
        )
        archive = self._temporary / "pause.tar"
        self.buildah.export(PAUSE_IMAGE, archive)
        archive.replace(self.pause_archive)

    def _make_base_image(self) -> None:
        context = self._temporary / "context"
        context.mkdir()
        script = [
            str(self.sources / "image/base.sh"),
            str(context / "base.tar"),
            str(self._temporary / "work"),
        ]
        mirror = _debian_mirror()
        self._run(
            "python:3.11-slim",
            ["unshare", "--mount", *script, *([mirror] if mirror else [])],
            env=dict(os.environ),
        )
        shutil.copy(self.sources / "image/Containerfile.base", context / "Containerfile")
        self._run("python:3.11-slim", self.buildah.build_command(context, BASE_IMAGE), env=self.buildah.env)

    # Running

    def _run(
        self, what: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        """Run a build command into the log and say every now and then that it is still alive."""
        assert self._lock is not None
        with self.log.open("ab") as log:
            log.write(f"\n+ {' '.join(argv)}\n".encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                list(argv),
                env={**env, "PATH": search_path()},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[
                    self._lock
                ],  # the lock is held for as long as anything builds, even if we are killed
            )
            begun = time.monotonic()
            try:
                while True:
                    try:
                        status = process.wait(HEARTBEAT)
                        break
                    except subprocess.TimeoutExpired:
                        say(f"  {what}: {time.monotonic() - begun:.0f} s{self._progress(start)}")
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if status:
            lines = self._printed_since(start)[-25:]
            raise CommandError(
                argv, f"exit status {status}; all of it is in {self.log}", "\n".join(lines), ""
            )

    def _printed_since(self, start: int) -> list[str]:
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace").splitlines()

    def _progress(self, start: int) -> str:
        lines = self._printed_since(start)
        return f", {len(lines)} lines printed, the last: {lines[-1].strip()[:80]}" if lines else ""


def _installed(*programs: str) -> bool:
    return all(which(program) for program in programs)


def cni_directory() -> Path | None:
    """Where the CNI plugins are."""
    return next((path for path in CNI_DIRECTORIES if (path / "bridge").exists()), None)


def _debian_mirror() -> str | None:
    """Where this machine's apt gets Debian 12 from, if it does; debootstrap has a default of its own."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm", "Component: main"]
    try:
        found = run(argv).stdout.splitlines()
    except CommandError:
        return None
    return next((line for line in found if line.startswith(("http://", "https://", "file:/"))), None)
