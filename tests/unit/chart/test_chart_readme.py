"""The table in the chart's README is made from values.yaml: run this file with ``--write``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

CHART = Path(__file__).parents[3] / "charts" / "rollbook"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"

_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")
_DOC = re.compile(r" *# -- (?P<text>.+)")


class Row(NamedTuple):
    path: tuple[str, ...]
    default: Any
    text: str


def rows(values_yaml: str) -> list[Row]:
    """Read the values that have a comment starting with ``--``, in order."""
    values = yaml.safe_load(values_yaml)
    found, text, parents = [], None, []
    for line in values_yaml.splitlines():
        if doc := _DOC.fullmatch(line):
            text = doc["text"]
        elif key := _KEY.match(line):
            depth = len(key["indent"]) // 2
            parents = [*parents[:depth], key["key"]]
            if text is not None:
                found.append(Row(tuple(parents), _at(values, tuple(parents)), text))
            text = None
    return found


def table(values_yaml: str) -> str:
    """Make the README's table."""
    lines = ["| Value | Default | Meaning |", "|---|---|---|"]
    for row in rows(values_yaml):
        default = json.dumps(row.default).replace("|", "\\|")
        lines.append(f"| `{'.'.join(row.path)}` | `{default}` | {row.text} |")
    return "\n".join(lines) + "\n"


def leaves(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List the paths of all values that are not themselves groups of values."""
    if isinstance(values, dict) and values:
        return [leaf for key, below in values.items() for leaf in leaves(below, (*path, key))]
    return [path]


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def test_the_table_in_the_readme_is_the_one_made_from_the_values():
    readme = (CHART / "README.md").read_text()
    written = readme.partition(BEGIN)[2].partition(END)[0]
    assert written == table((CHART / "values.yaml").read_text()), (
        "run: python tests/unit/chart/test_chart_readme.py --write"
    )


def test_every_value_is_explained():
    text = (CHART / "values.yaml").read_text()
    explained = {row.path for row in rows(text)}
    silent = [
        ".".join(leaf)
        for leaf in leaves(yaml.safe_load(text))
        if not any(leaf[:length] in explained for length in range(1, len(leaf) + 1))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# -- One.\na: 1\n", [Row(("a",), 1, "One.")]),
        ("g:\n  # -- Two.\n  b: [x]\nc: 3\n", [Row(("g", "b"), ["x"], "Two.")]),
        ("# a comment for readers of the file\na: 1\n", []),
        ("# -- Whole.\ng:\n  a: 1\n  b: 2\n", [Row(("g",), {"a": 1, "b": 2}, "Whole.")]),
    ],
)
def test_rows_come_from_comments_above_keys(text, expected):
    assert rows(text) == expected


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    path = CHART / "README.md"
    before, _, rest = path.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(before + BEGIN + table((CHART / "values.yaml").read_text()) + END + after)
