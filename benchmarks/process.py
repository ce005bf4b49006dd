"""Processes under test: started on the server's core, on ports that are free, and ended for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_TIMEOUT: Final = 20.0
STOP_GRACE: Final = 5.0
ROOT: Final = Path(__file__).resolve().parent.parent

profile_directory: Path | None = None
"""Where the processes under test write their profiles; ``None`` leaves them alone."""


class Skipped(Exception):  # noqa: N818  # no error: what it needs is not there
    """A benchmark cannot be run here; the text says why."""


def free_port() -> int:
    """Return a port of loopback that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int, path: str, timeout: float = 1.0) -> bool:
    """Say whether a GET of the path is answered with 200, right now."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as connection:
            connection.sendall(request)
            return connection.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


class Process:
    """One process; leave the ``with`` block and it is gone.

    Args:
        command: what to run.
        environment: in addition to this process'; nothing of Rollbook's is inherited.
        port: where it listens.
        ready: the path that it answers with 200 as soon as it is ready; empty: nothing is waited for.
        name: for errors and profiles.
    """

    def __init__(
        self,
        *command: str,
        name: str,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        ready: str = "",
    ) -> None:
        self.name = name
        self.port = port
        self._command = command
        self._ready = ready
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ROLLBOOK_")}
        # What is measured is what this process would import: several checkouts may share an environment.
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self._environment = {**clean, "PYTHONPATH": path, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._profiled = False

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def cpu_seconds(self) -> float | None:
        """The processor time that it has used."""
        return machine.cpu_seconds(self.pid)

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, without waiting for anything."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process does
        command = self._command
        if profile_directory is not None:
            profile_directory.mkdir(parents=True, exist_ok=True)
            out = str(profile_directory / f"{self.name}.txt")
            command = (sys.executable, "-m", "benchmarks.sampled", out, *command)
        with machine.on_server_core():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C reaches the benchmark alone, which ends it in order
            )

    def wait_ready(self, interval: float = 0.01) -> None:
        """Wait until it answers.

        Args:
            interval: seconds between tries; nothing announces that a process listens.

        Raises:
            RuntimeError: it ended, or took too long; with its last words.
        """
        if not self._ready:
            return
        deadline = time.monotonic() + START_TIMEOUT
        while not answers(self.port, self._ready):
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{self.name} ended with status {self._process.returncode}: {self._words()}"
                )
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer after {START_TIMEOUT:g} s: {self._words()}")
            time.sleep(interval)

    def profile_from_here(self) -> None:
        """Have the profile, if one is taken, forget what came before; only the first call counts."""
        if profile_directory is not None and not self._profiled:
            self._profiled = True
            os.kill(self.pid, signal.SIGUSR2)

    def wait(self) -> int:
        """Wait for its end by itself, and return its status."""
        assert self._process is not None
        return self._process.wait()  # with a timeout it would look only now and then

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _words(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:]


class Registry(Process):
    """A registry on free ports, its data in a directory of its own.

    Args:
        environment: settings that differ from the defaults.
        command: what runs it; none: the console script.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, *, command: Sequence[str] = ()) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="rollbook-bench-")
        self.session_port = free_port()
        port = free_port()
        super().__init__(
            *(command or (machine.script("rollbook-registry"),)),
            name="registry",
            port=port,
            ready="/readyz",
            environment={
                "ROLLBOOK_DATA_DIR": self._directory.name,
                "ROLLBOOK_HTTP_PORT": str(port),
                "ROLLBOOK_SESSION_PORT": str(self.session_port),
                "ROLLBOOK_GRPC_PORT": "0",
                "ROLLBOOK_LOG_LEVEL": "warning",
                "ROLLBOOK_AUTH": "none",
                **(environment or {}),
            },
        )

    def end(self) -> None:
        """End it, and keep its data; it can be started again."""
        super().stop()

    def stop(self) -> None:
        """End it, and remove its data."""
        super().stop()
        self._directory.cleanup()


class Sidecar(Process):
    """A sidecar for lookups on a free port.

    Args:
        session_port: the registry's.
    """

    def __init__(self, session_port: int) -> None:
        port = free_port()
        super().__init__(
            machine.script("rollbook-sidecar"),
            name="sidecar",
            port=port,
            ready="/healthz",
            environment={
                "ROLLBOOK_REGISTRY": f"127.0.0.1:{session_port}",
                "ROLLBOOK_LOOKUP_PORT": str(port),
                "ROLLBOOK_HOOKS_PORT": "0",
                "ROLLBOOK_LOG_LEVEL": "warning",
            },
        )


class Bare(Process):
    """The limit: see :mod:`benchmarks.bare`.

    Args:
        bodies: what it answers with under ``/services/...``, by the kind of request.
    """

    def __init__(self, **bodies: int) -> None:
        port = free_port()
        sizes = [f"{kind}={size}" for kind, size in bodies.items()]
        super().__init__(
            sys.executable,
            "-m",
            "benchmarks.bare",
            str(port),
            *sizes,
            name="bare",
            port=port,
            ready="/",
        )
