"""What others do: the figures of four registries, and which of ours stand beside them.

They were measured on a machine of this kind (two cores, the server on one and the load on the other, warm)
with the versions named, each as it comes, and in brackets as far as its settings let it be quickened. Theirs
are not measured again with ours: only a difference of some size means something.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.report import number

if TYPE_CHECKING:
    from pathlib import Path

NAMES: Final = ("Nacos 2.5.1", "r-nacos 0.8.8 (Rust)", "Eureka", "Consul 1.13")


class Compared(NamedTuple):
    """One figure of everybody.

    Attributes:
        name: what it is.
        benchmark: which of ours measures it.
        row: what the name of the benchmark's row begins with.
        peers: theirs, in the order of :data:`NAMES`.
    """

    name: str
    benchmark: str
    row: str
    peers: tuple[str, ...]


FIGURES: Final = (
    Compared(
        "register until a subscriber has it, p50, ms",
        "push_latency",
        "100 subscribers, any of them: p50",
        ("558 (push delay 1 ms: 50 to 73)", "866", "polls", "2.3"),
    ),
    Compared(
        "until the last of 1,000 has it, p50, ms",
        "push_latency",
        "1,000 subscribers, the last: p50",
        ("620 to 670 (180 to 250)", "844", "", "243"),
    ),
    Compared("HTTP beats / s", "http_beats", "light beats", ("7,400", "24,300", "13,000", "3,900")),
    Compared("lists of 10 / s", "registry_lists", "list of 10 ", ("7,700", "19,900", "11,500", "4,700")),
    Compared("lists of 100 / s", "registry_lists", "list of 100 ", ("4,600", "14,600", "4,500", "770")),
    Compared("registrations / s", "registrations", "registrations", ("5,700", "22,000", "6,200", "3,400")),
    Compared("resident MiB, idle", "memory", "registry, idle", ("654", "22", "400", "91")),
    Compared("with 10,000 instances", "memory", "registry, 10,000 ", ("722", "211", "466", "143")),
    Compared("with 100,000 instances", "memory", "registry, 100,000 ", ("900", "216", "704", "921")),
)


def table(figures: Path) -> str:
    """Return everybody's figures as Markdown; ours are empty where nothing has been measured."""
    lines = [["", "**Rollbook**", *NAMES], ["---", *["---:"] * (len(NAMES) + 1)]]
    lines += [[c.name, f"**{_ours(figures, c)}**", *c.peers] for c in FIGURES]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _ours(figures: Path, compared: Compared) -> str:
    path = figures / f"{compared.benchmark}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    for row in rows:
        if row["name"].startswith(compared.row):
            return number(row["ours"]["median"])
    raise LookupError(f"{compared.benchmark} has no row {compared.row!r}")
