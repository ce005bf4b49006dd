"""Daemons that outlive the program that started them, found again by a record that cannot lie.

A process id alone says nothing after a crash or a reboot: by then it may be anybody's. The record also has
the boot it belongs to and the moment the process started, which together name one process for ever. Signals
go through a process descriptor that was opened before the record was checked, so there is no moment in which
the id could change hands.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clusters.api import ClusterError
from clusters.tools import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

PROC = Path("/proc")
BOOT_ID = PROC / "sys/kernel/random/boot_id"

# The daemon records itself and then becomes the program, under the same process id: there is no moment in
# which it runs without a record, however its starter ends. Field 22 of /proc/PID/stat is when it started.
_LAUNCHER = """
record=$1 recipe=$2; shift 2
read -r boot < /proc/sys/kernel/random/boot_id
started=$(cut -d' ' -f22 /proc/$$/stat)
echo "$$ $started $boot $recipe" > "$record.new" && mv "$record.new" "$record" && exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a daemon."""

    pid: int
    started: int
    boot: str
    recipe: str

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file, None if there is none or it is damaged."""
        try:
            pid, started, boot, recipe = path.read_text().split()
            return cls(int(pid), int(started), boot, recipe)
        except (OSError, ValueError):
            return None

    def running(self) -> bool:
        """Whether this very process is still there (a zombie is not)."""
        return self.boot == boot_id() and start_time(self.pid) == self.started


def boot_id() -> str:
    """What tells this boot of the machine from all others."""
    return BOOT_ID.read_text().strip()


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none, or only its zombie."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # the name, in parentheses, may contain anything: count from behind it
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])


def command_line(pid: int) -> list[str]:
    """A process's arguments, empty if there is no such process."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def process_ids() -> list[int]:
    """All processes of the machine."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def kill_all(candidates: Iterable[int], mine: Callable[[int], bool], *, within: float = 5) -> None:
    """Kill those processes that are `mine` and wait until they are gone."""
    descriptors = []
    for pid in candidates:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            descriptors.append(descriptor)
            if mine(pid):  # asked after opening: from here on the descriptor can mean no other process
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            else:
                os.close(descriptors.pop())
    for descriptor in descriptors:
        _await_exit(descriptor, within)
        os.close(descriptor)


def _await_exit(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Supervisor:
    """Starts daemons, finds them again and ends them: its own, by their records, and no others."""

    def __init__(self, records: Path, logs: Path) -> None:
        self.records = records
        self.logs = logs

    def find(self, name: str) -> Record | None:
        """The daemon's record if it runs; a record of anything else is dropped."""
        path = self.records / name
        record = Record.read(path)
        if record is not None and record.running():
            return record
        path.unlink(missing_ok=True)
        return None

    def running(self) -> dict[str, Record]:
        """All daemons that run now."""
        names = sorted(path.name for path in self.records.glob("*")) if self.records.is_dir() else []
        return {name: record for name in names if (record := self.find(name))}

    def start(self, name: str, argv: Sequence[str], *, recipe: str, env: Mapping[str, str]) -> None:
        """Start a daemon that does not run."""
        self.records.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        record = self.records / name
        record.unlink(missing_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            # `setsid --fork`: a session of its own, and nobody's child, so that it needs no parent to bury it
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", _LAUNCHER, "sh", str(record), recipe, *argv],
                env=dict(env),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )
        until(record.exists, 10, f"{name} was started but left no record {record}", interval=0.01)

    def stop(self, name: str, *, grace: float = 5) -> None:
        """End a daemon: TERM, and KILL after `grace` seconds. Who else has its process id is left alone."""
        record = Record.read(self.records / name)
        if record is not None:
            self._end(record, grace)
        (self.records / name).unlink(missing_ok=True)

    @staticmethod
    def _end(record: Record, grace: float) -> None:
        try:
            descriptor = os.pidfd_open(record.pid)
        except ProcessLookupError:
            return
        try:
            if not record.running():
                return
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            # one that was stopped would not see it
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            if not _await_exit(descriptor, grace):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                if not _await_exit(descriptor, 10):
                    raise ClusterError(f"process {record.pid} survives SIGKILL: it is stuck in the kernel")
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)

    def tail(self, name: str, lines: int = 12) -> str:
        """The end of a daemon's log."""
        try:
            return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(it wrote no log)"


def fingerprint(argv: Sequence[str], files: Iterable[Path] = ()) -> str:
    """What tells one way to run a daemon from another: its arguments and its configuration files."""
    digest = hashlib.sha256("\0".join(argv).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
