"""A sampler: ``python -m benchmarks.sampled OUT PROGRAM ARGUMENT...`` runs a Python program and samples it.

Every millisecond of processor time (or as often as the system's timer can) it notes where the main thread is;
at the end it writes to OUT what share of the samples each function was in, by itself and with all that it
called, and the lines most often found. Time in C code counts for the line that called it. SIGUSR2 makes it
forget what it has counted. Programs: a console script, or ``python -m MODULE``.
"""

from __future__ import annotations

import atexit
import collections
import itertools
import runpy
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import CodeType, FrameType

INTERVAL: Final = 0.001
MOST: Final = 45
"""Lines in each table."""


class Sampler:
    """Counts where the program is."""

    def __init__(self) -> None:
        self.samples = 0
        self._own: collections.Counter[CodeType] = collections.Counter()
        self._with_callees: collections.Counter[CodeType] = collections.Counter()
        self._lines: collections.Counter[tuple[CodeType, int]] = collections.Counter()

    def start(self) -> None:
        """Begin."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR2, lambda *_: self.forget())
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def forget(self) -> None:
        """Begin anew."""
        self.samples = 0
        for counter in (self._own, self._with_callees, self._lines):
            counter.clear()

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, _: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.samples += 1
        self._own[frame.f_code] += 1
        self._lines[frame.f_code, frame.f_lineno] += 1
        seen = set()
        while frame is not None:
            seen.add(frame.f_code)
            frame = frame.f_back
        self._with_callees.update(seen)

    def report(self) -> str:
        """Write it down."""
        total = self.samples
        text = [f"{self.samples} samples", "", "  with all it calls     by itself"]
        called = ((c, n) for c, n in self._with_callees.most_common() if n < total)  # not what runs it all
        for code, count in itertools.islice(called, MOST):
            own = self._own[code]
            text.append(f"{count / total:18.1%} {own / total:13.1%}   {_place(code)}")
        text += ["", "  by itself"]
        text += [f"{count / total:10.1%}   {_place(code)}" for code, count in self._own.most_common(MOST)]
        text += ["", "  lines"]
        for (code, line), count in self._lines.most_common(MOST):
            text.append(f"{count / total:10.1%}   {_file(code)}:{line} {code.co_qualname}")
        return "\n".join(text) + "\n"


def _file(code: CodeType) -> str:
    return "/".join(Path(code.co_filename).parts[-3:])


def _place(code: CodeType) -> str:
    return f"{code.co_qualname}  ({_file(code)}:{code.co_firstlineno})"


def main() -> None:
    """Run the program under the sampler."""
    out, program, *arguments = sys.argv[1:]
    sampler = Sampler()

    def write() -> None:
        sampler.stop()
        Path(out).write_text(sampler.report())

    atexit.register(write)
    sampler.start()
    if program == sys.executable and arguments[:1] == ["-m"]:
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
