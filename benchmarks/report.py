"""What a benchmark found: rows of our figure beside its limit, as a table for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Spread:
    """The same figure, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = number(min(self.values)), number(max(self.values))
        middle = number(self.median)
        return middle if low == high else f"{middle} ({low} to {high})"

    def as_json(self) -> dict[str, Any]:
        """Return it for the file."""
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def spread(values: Sequence[float]) -> Spread | None:
    """Make one, if there are any values."""
    return Spread(tuple(values)) if values else None


def number(value: float) -> str:
    """Spell a figure with three digits or more that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        unit: of both figures.
        ours: Rollbook's.
        limit: what nothing built in the same way can beat, measured in the same run.
        more: columns that only this benchmark has.
    """

    name: str
    unit: str
    ours: Spread
    limit: Spread | None
    more: dict[str, Spread | None] = dataclasses.field(default_factory=dict)

    def times(self, factor: float, name: str) -> Row:
        """Return our figure in a smaller unit, for which the limit has no meaning."""
        return Row(
            name=name, unit=self.unit, ours=Spread(tuple(v * factor for v in self.ours.values)), limit=None
        )

    @property
    def ratio(self) -> Spread | None:
        """Ours to the limit: each round to the one beside it, if they were taken in turns."""
        if self.limit is None:
            return None
        if len(self.ours.values) == len(self.limit.values) > 1:
            return Spread(tuple(a / b for a, b in zip(self.ours.values, self.limit.values, strict=True) if b))
        return Spread((self.ours.median / self.limit.median,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a benchmark found.

    Attributes:
        rows: the figures.
        limit: what the limit is, in words.
        notes: what one must know to read them.
        steady: whether they are the same on a busy machine.
    """

    rows: list[Row]
    limit: str
    notes: list[str] = dataclasses.field(default_factory=list)
    steady: bool = False


def is_busy(result: Result, others: float | None) -> bool:
    """Say whether what others did makes the figures doubtful."""
    return not result.steady and others is not None and others > machine.BUSY


def table(name: str, result: Result, others: float | None) -> str:
    """Write it for people."""
    more = list(dict.fromkeys(column for row in result.rows for column in row.more))
    lines = [["", "unit", "Rollbook", "limit", "x limit", *more]]
    for row in result.rows:
        cells = ["" if cell is None else str(cell) for cell in (row.ours, row.limit, row.ratio)]
        extra = [row.more.get(column) for column in more]
        cells += ["" if cell is None else number(cell.median) for cell in extra]
        lines.append([row.name, row.unit, *cells])
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    text = [f"{name}   (median of the rounds, lowest to highest)"]
    for n, line in enumerate(lines):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if n == 0:
            text.append("  ".join("-" * width for width in widths))
    text.append(f"limit: {result.limit}")
    text.extend(f"note: {note}" for note in result.notes)
    if others is not None:
        busy = ": only the ratios mean something" if is_busy(result, others) else ""
        text.append(f"others used {others:.2f} cores meanwhile{busy}")
    return "\n".join(text)


def save(
    path: Path, name: str, result: Result, *, watch: machine.Watch, others: float | None, options: object
) -> None:
    """Write it for programs."""
    rows = [
        {
            "name": row.name,
            "unit": row.unit,
            "ours": row.ours.as_json(),
            "limit": row.limit.as_json() if row.limit else None,
            "ratio": row.ratio.as_json() if row.ratio else None,
            "more": {column: s.as_json() if s else None for column, s in row.more.items()},
        }
        for row in result.rows
    ]
    document = {
        "benchmark": name,
        "limit": result.limit,
        "notes": result.notes,
        "machine": machine.describe(),
        "load_average": {"before": watch.load_average, "after": machine.load_average()},
        "others": others,
        "busy": is_busy(result, others),
        "options": dataclasses.asdict(options),  # type: ignore[call-overload]  # it is a dataclass
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
