"""The machine: its cores, what it is, how busy it is, and what processes use of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY: Final = 0.15
"""Cores that others use, on average, above which a benchmark's figures are marked."""

_PROC: Final = Path("/proc")
_PACKAGES: Final = ("rollbook", "aiohttp", "msgspec", "uvloop", "prometheus-client", "structlog")


def cores() -> tuple[int, int] | None:
    """Return the core of the server and that of the load; ``None`` where they cannot be told apart."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[-1]) if len(usable) > 1 else None


CORES: Final = cores()
"""Found once, before anything is pinned."""


def pin_load() -> None:
    """Keep this process, which makes the load, on its core."""
    if CORES is not None:
        os.sched_setaffinity(0, {CORES[1]})


@contextlib.contextmanager
def on_server_core() -> Iterator[None]:
    """Have what is started within run on the server's core from its first instruction."""
    if CORES is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORES[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def load_average() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes; nothing where there are none."""
    try:
        return [round(n, 2) for n in os.getloadavg()]
    except (AttributeError, OSError):
        return []


class Watch:
    """Measures what others use of the machine, from now to :meth:`others`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._all, self._own = _busy_seconds(), _own_seconds()
        self.load_average = load_average()

    def others(self) -> float | None:
        """Return how many cores all other processes have used on average; ``None`` if not known.

        The processes that were started meanwhile must have ended, or they count as others.
        """
        now = _busy_seconds()
        if now is None or self._all is None:
            return None
        others = (now - self._all) - (_own_seconds() - self._own)
        return max(0.0, others / (time.monotonic() - self._began))


def _busy_seconds() -> float | None:
    try:
        first = (_PROC / "stat").read_text().split("\n", 1)[0]
    except OSError:
        return None
    # Interrupts are left out: those of our own traffic are nobody's (proc_stat(5)).
    user, nice, system = (int(n) for n in first.split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def describe() -> dict[str, Any]:
    """Say what the figures were taken on, and with what."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "server_core": CORES[0] if CORES else None,
        "load_core": CORES[1] if CORES else None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time that a process has used; ``None`` where the system does not tell."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; user and system time are fields 14 and 15 (proc(5)).
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return a process' resident memory, in MiB."""
    if _PROC.joinpath(str(pid), "status").exists():
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(shown.stdout) / 1024


def private_mib(pid: int) -> float | None:
    """Return the resident memory that a process shares with nobody, in MiB; ``None`` if not known."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def script(name: str) -> str:
    """Return the path of a console script beside this Python."""
    return str(Path(sys.executable).parent / name)
