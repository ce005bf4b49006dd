"""``python -m benchmarks [NAME...]``: run benchmarks, print their tables, and write ``build/benchmarks``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from typing import Final

import uvloop

from benchmarks import machine, process, report
from benchmarks.rounds import Options

NAMES: Final = (
    "startup",
    "memory",
    "push_latency",
    "session_beats",
    "sessions",
    "http_beats",
    "registry_lists",
    "registrations",
    "checks",
    "store",
    "commands",
    "silence",
    "picks",
    "sidecar_lookups",
    "catalog_size",
    "collector",
    "cluster_detection",
)
OUT: Final = process.ROOT / "build" / "benchmarks"


def main() -> None:
    """Read the command line, and run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; none: all")
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="rounds of each side")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="length of a round")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="sample what the processes under test do, into build/benchmarks/profile (their figures suffer)",
    )
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; accepted: {', '.join(NAMES)}")
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    # An end that is asked for leaves the ``with`` blocks, and with them the processes under test.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = Options(rounds=given.rounds, seconds=given.seconds)
    machine.pin_load()
    for name in given.names or NAMES:
        _run(name, options, profile=given.profile)


def _run(name: str, options: Options, *, profile: bool) -> None:
    if profile:
        process.profile_directory = OUT / "profile" / name
    watch, began = machine.Watch(), time.monotonic()
    try:
        result = uvloop.run(importlib.import_module(f"benchmarks.{name}").run(options))
    except process.Skipped as reason:
        print(f"{name}: skipped: {reason}\n")
        return
    others = watch.others()
    print(report.table(name, result, others))
    if profile:
        print(f"profiles: {process.profile_directory}")
    else:
        path = OUT / f"{name}.json"
        report.save(path, name, result, watch=watch, others=others, options=options)
    print(f"took {time.monotonic() - began:.0f} s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
