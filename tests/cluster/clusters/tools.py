"""What every provider needs: running programs, waiting, locks, kubectl and helm."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clusters.api import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from clusters.api import Cluster

_T = TypeVar("_T")

SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where root's programs are, also when the caller's PATH is a user's."""


class CommandError(ClusterError):
    """A program failed, or took too long."""

    def __init__(self, argv: Sequence[str], outcome: str, stdout: str, stderr: str) -> None:
        said = stderr.strip() or stdout.strip() or "it said nothing"
        super().__init__(f"{' '.join(argv)}: {outcome}: {said}")
        self.argv = list(argv)
        self.stdout = stdout
        self.stderr = stderr


def say(text: str) -> None:
    """Tell whoever waits what is going on."""
    sys.stderr.write(f"test cluster: {text}\n")
    sys.stderr.flush()


def cache_root() -> Path:
    """Where everything that is built or running is kept: outside of the checkout."""
    configured = os.environ.get("ROLLBOOK_CACHE", "")
    if not configured:
        return Path("~/.cache/rollbook").expanduser()
    root = Path(configured).expanduser()
    if not root.is_absolute():
        raise ClusterError(f"ROLLBOOK_CACHE={configured!r}: an absolute path is needed")
    return root


def search_path(*first: Path) -> str:
    """The PATH for programs started here: `first`, the caller's, the system's."""
    return os.pathsep.join([*map(str, first), os.environ.get("PATH", os.defpath), SYSTEM_PATH])


def which(program: str) -> str | None:
    """Where a program is, root's included; None if it is not installed."""
    return shutil.which(program, path=search_path())


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str | None = None,  # noqa: A002 - as subprocess.run names it
    timeout: float = 60,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed.

    Raises:
        CommandError: it is missing, took longer than `timeout` seconds, or (with `check`) failed.
    """
    environment = {"PATH": search_path()} | dict(os.environ if env is None else env)
    try:
        done = subprocess.run(
            list(argv),
            env=environment,
            cwd=cwd,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandError(argv, "not found", "", str(error)) from None
    except subprocess.TimeoutExpired as error:
        raise CommandError(
            argv, f"took longer than {timeout:g} s", _text(error.stdout), _text(error.stderr)
        ) from None
    if check and done.returncode:
        raise CommandError(argv, f"exit status {done.returncode}", done.stdout, done.stderr)
    return done


def _text(output: bytes | str | None) -> str:
    # subprocess hands out bytes in a timeout even when text was asked for
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def until(check: Callable[[], _T], timeout: float, what: str, *, interval: float = 0.1) -> _T:
    """Call `check` until it returns something true, and return that.

    Raises:
        ClusterError: it did not within `timeout` seconds; the text is `what`.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise ClusterError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)


@contextlib.contextmanager
def locked(path: Path, *, purpose: str, wait: float) -> Iterator[int]:
    """Hold the lock `path`; it is freed when this process and all that inherited the descriptor have ended.

    Raises:
        ClusterError: another process still held it after `wait` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(descriptor, purpose=purpose, wait=wait)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} ({purpose})".encode(), 0)
        try:
            yield descriptor
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, *, purpose: str, wait: float) -> None:
    start = time.monotonic()
    announced = 0.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - start
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            if waited >= wait:
                raise ClusterError(
                    f"the test cluster is in use by {holder}; {purpose} has to wait for it"
                ) from None
            if waited >= announced:
                say(f"waiting for {holder} to finish with the test cluster ({waited:.0f} s)")
                announced = waited + 30
            time.sleep(0.2)
        else:
            return


def tool_env(cluster: Cluster) -> dict[str, str]:
    """The environment for programs that use the cluster: its tools, its kubeconfig, nobody's own settings."""
    private = cluster.state_dir / "tools"
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HELM_", "KUBE")) and name.lower() not in _PROXIES
    }
    return inherited | {
        "PATH": search_path(cluster.bin_dir),
        "KUBECONFIG": str(cluster.kubeconfig),
        "KUBECACHEDIR": str(private / "kube"),
        "KUBERC": "off",
        "HELM_CACHE_HOME": str(private / "helm" / "cache"),
        "HELM_CONFIG_HOME": str(private / "helm" / "config"),
        "HELM_DATA_HOME": str(private / "helm" / "data"),
    }


# A test cluster is on this machine: a proxy would only be in the way of its addresses.
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


class Kubectl:
    """kubectl on a test cluster: call it with its arguments, get what it prints.

    Raises `CommandError` with kubectl's own message when it fails.
    """

    def __init__(self, cluster: Cluster, namespace: str | None = None) -> None:
        self._cluster = cluster
        self._namespace = namespace

    def __call__(
        self,
        *args: str,
        namespace: str | None = None,
        input: str | None = None,  # noqa: A002 - as subprocess.run names it
        timeout: float = 300,
        check: bool = True,
    ) -> str:
        """Run `kubectl ARGS` and return its standard output."""
        return self.run(*args, namespace=namespace, input=input, timeout=timeout, check=check).stdout

    def run(
        self,
        *args: str,
        namespace: str | None = None,
        input: str | None = None,  # noqa: A002 - as subprocess.run names it
        timeout: float = 300,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `kubectl ARGS` and return both its outputs and its exit status."""
        scope = namespace or self._namespace
        argv = [*self.command, *(["--namespace", scope] if scope else []), *args]
        return run(argv, env=tool_env(self._cluster), input=input, timeout=timeout, check=check)

    @property
    def command(self) -> list[str]:
        """How its command line begins, for whoever wants to start it and read along."""
        return [str(self._cluster.bin_dir / "kubectl"), "--kubeconfig", str(self._cluster.kubeconfig)]

    def json(self, *args: str, namespace: str | None = None, timeout: float = 60) -> Any:
        """Run `kubectl ARGS --output json` and return the object."""
        return json.loads(self(*args, "--output", "json", namespace=namespace, timeout=timeout))

    def apply(
        self,
        *manifests: str | Mapping[str, Any],
        namespace: str | None = None,
        timeout: float = 60,
    ) -> str:
        """Apply manifests: YAML texts or objects."""
        texts = [item if isinstance(item, str) else json.dumps(item) for item in manifests]
        return self(
            "apply", "--filename", "-", namespace=namespace, input="\n---\n".join(texts), timeout=timeout
        )

    def within(self, namespace: str) -> Kubectl:
        """The same with another default namespace."""
        return Kubectl(self._cluster, namespace)


class Helm:
    """helm on a test cluster: call it with its arguments, get what it prints.

    Raises `CommandError` with helm's own message when it fails.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(
        self,
        *args: str,
        namespace: str | None = None,
        input: str | None = None,  # noqa: A002 - as subprocess.run names it
        timeout: float = 600,
        check: bool = True,
    ) -> str:
        """Run `helm ARGS` and return its standard output."""
        scope = ["--namespace", namespace] if namespace else []
        argv = [str(self._cluster.bin_dir / "helm"), *args, *scope]
        return run(argv, env=tool_env(self._cluster), input=input, timeout=timeout, check=check).stdout

    def json(self, *args: str, namespace: str | None = None, timeout: float = 180) -> Any:
        """Run `helm ARGS --output json` and return the object."""
        return json.loads(self(*args, "--output", "json", namespace=namespace, timeout=timeout))
