"""The soak in small: a fleet that lives, for as long as a test may, and what was promised of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_fleet_soaks_for_a_while(tmp_path):
    out = tmp_path / "soak.json"
    small = ("--seconds", "20", "--scale", "0.1", "--seed", "5")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *small, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    # How fast and how flat is a matter for a quiet machine and for ten minutes.
    measured = {"p99 of pushes under 20 ms", "flat memory"}
    assert measured < set(found["promises"])
    assert {p: kept for p, kept in found["promises"].items() if p not in measured and not kept} == {}, found
    figures = {row["name"]: row["ours"]["median"] for row in found["rows"]}
    assert figures["changes"] > 0
    assert figures["pushes"] > 0
