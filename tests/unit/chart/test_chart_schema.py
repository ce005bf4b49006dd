"""values.schema.json knows exactly the keys of values.yaml, and refuses all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[3] / "charts" / "rollbook"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

# `enabled` exists for charts that include this one conditionally; `global` is shared with them.
NOT_A_VALUE = {("enabled",)}
OPEN = {("global",)}


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = SCHEMA["definitions"][node["$ref"].rpartition("/")[2]]
    return node


def groups(node: dict[str, Any], path: tuple[str, ...] = ()):
    """Yield each object of the schema whose keys are fixed."""
    node = resolve(node)
    if "properties" in node:
        yield path, node
        for key, below in node["properties"].items():
            yield from groups(below, (*path, key))


GROUPS = dict(groups(SCHEMA))


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: ".".join(path) or "root")
def test_the_schema_knows_the_keys_of_the_values(path):
    values = VALUES
    for key in path:
        values = values[key]
    known = {key for key in GROUPS[path]["properties"] if (*path, key) not in NOT_A_VALUE}
    if path[-1:] == ("resources",):  # Kubernetes' own keys, of which the defaults use some
        assert set(values) <= known
    else:
        assert set(values) == known


@pytest.mark.parametrize("path", sorted(GROUPS.keys() - OPEN), ids=lambda path: ".".join(path) or "root")
def test_unknown_keys_are_refused_everywhere(path):
    assert GROUPS[path]["additionalProperties"] is False


def test_every_definition_is_used():
    text = json.dumps(SCHEMA)
    assert [name for name in SCHEMA["definitions"] if f'"#/definitions/{name}"' not in text] == []
