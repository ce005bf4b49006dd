"""``python -m benchmarks.page``: put the figures of the last runs into ``docs/performance.md``.

The page's words are written by people, its figures only by this: between the marks of each benchmark stands
the table that ``docs/figures/<name>.json`` makes, which is what the last run left in ``build/benchmarks``.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from benchmarks import peers
from benchmarks.process import ROOT
from benchmarks.report import number

if TYPE_CHECKING:
    from pathlib import Path

PAGE: Final = ROOT / "docs" / "performance.md"
MEASURED: Final = ROOT / "build" / "benchmarks"
KEPT: Final = ROOT / "docs" / "figures"
PER_CPU: Final = "x limit per CPU s"
_PEERS = re.compile(r"(<!-- peers -->\n).*?(<!-- end -->)", re.DOTALL)
_PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(found: dict[str, Any]) -> str:
    """Return a benchmark's figures as Markdown."""
    rows = found["rows"]
    heads = ["", "Rollbook", "limit", "Rollbook to limit"]
    per_cpu = any(row["more"].get(PER_CPU) for row in rows)
    if per_cpu:
        heads.append("the same per CPU second")
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in rows:
        rate = row["unit"] == "/s"
        unit = "" if rate else f" {row['unit']}"
        cells = [_cell(row["ours"], unit), _cell(row["limit"], unit), _cell(row["ratio"])]
        if per_cpu:
            cells.append(_cell(row["more"].get(PER_CPU)))
        lines.append([row["name"] + (" per second" if rate else ""), *cells])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{_circumstances(found)}\n"


def _cell(figure: dict[str, Any] | None, unit: str = "") -> str:
    if figure is None:
        return ""
    low, middle, high = (number(figure[key]) for key in ("min", "median", "max"))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"


def _circumstances(found: dict[str, Any]) -> str:
    machine, others, before = found["machine"], found["others"], found["load_average"]["before"]
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in ("aiohttp", "uvloop", "msgspec"))
    where = f"{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, {versions}"
    text = f"{machine['at'][:10]}; {where}"
    if before:
        text += f"; load average before {before[0]:g}"
    if others is not None:
        text += f"; others used {others:.2f} cores meanwhile"
    if found["busy"]:
        text += ". **Only the ratios mean something.**"
    return text


def fill(page: str, figures: Path) -> str:
    """Return the page with the tables of what has been measured; the others stay as they are."""

    def place(found: re.Match[str]) -> str:
        path = figures / f"{found[2]}.json"
        if not path.exists():
            sys.stderr.write(f"{found[2]}: never measured, its figures stay\n")
            return found[0]
        return f"{found[1]}{table(json.loads(path.read_text()))}{found[3]}"

    page = _PEERS.sub(lambda found: f"{found[1]}{peers.table(figures)}{found[2]}", page)
    return _PLACE.sub(place, page)


def keep(measured: Path, kept: Path) -> None:
    """Copy what has been measured to where it is kept."""
    kept.mkdir(exist_ok=True)
    for path in measured.glob("*.json"):
        (kept / path.name).write_text(path.read_text())


if __name__ == "__main__":
    keep(MEASURED, KEPT)
    PAGE.write_text(fill(PAGE.read_text(), KEPT))
