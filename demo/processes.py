"""Real processes: started, frozen, thawed, and ended without leaving anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

STOP_GRACE = 5.0
"""Seconds that a process has to end by itself."""


def free_port(wanted: int) -> int:
    """Return the wanted port of loopback if it is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise RuntimeError("no port of loopback is free")


class Process:
    """One process of the demonstration, logging into a file.

    Args:
        name: for people, and the log's name.
        command: what to run.
        log: the directory for logs.
        environment: in addition to ours.
    """

    def __init__(
        self, name: str, *command: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._command = command
        self._log = log / f"{name}.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ROLLBOOK_")}
        self._environment = {**clean, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Its own group, so that a Ctrl-C at the terminal reaches us alone and we end it in order.
                start_new_session=True,
            )

    @property
    def failure(self) -> str:
        """Why it has ended, if it has; else nothing."""
        if self._process is None or self._process.returncode is None:
            return ""
        tail = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        return "\n".join([f"{self.name} ended with status {self._process.returncode}:", *tail])

    def freeze(self) -> None:
        """Stop it in its tracks, as a machine that hangs would."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End it."""
        if self._process is None or self._process.returncode is not None:
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_GRACE)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def console_script(name: str) -> str:
    """Return the path of one of our console scripts, next to this Python."""
    return str(Path(sys.executable).parent / name)
