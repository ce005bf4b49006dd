"""The chart gives the parts flags that they have, and defaults that are theirs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from rollbook.settings import declared, parse_duration

CHART = Path(__file__).parents[3] / "charts" / "rollbook"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

PARTS = {
    "registry-statefulset.yaml": ("rollbook_registry.settings", "RegistrySettings"),
    "operator-deployment.yaml": ("rollbook_operator.settings", "OperatorSettings"),
    "webhook-deployment.yaml": ("rollbook_operator.webhook.settings", "WebhookSettings"),
}


def settings(template: str):
    module, name = PARTS[template]
    return {item.flag: item for item in declared(getattr(importlib.import_module(module), name))}


def given(template: str) -> dict[str, str]:
    text = (CHART / "templates" / template).read_text()
    return dict(re.findall(r"^ *- (?:{{ printf \")?(--[a-z-]+)=(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("template", PARTS)
def test_every_flag_exists(template):
    flags = given(template)
    assert len(flags) >= 5
    assert flags.keys() - settings(template).keys() == set()


@pytest.mark.parametrize("template", PARTS)
def test_every_flag_that_must_be_given_is(template):
    needed = {flag for flag, item in settings(template).items() if item.default is ...}
    assert needed - given(template).keys() == set()


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        ("beatInterval", "--beat-interval"),
        ("unhealthyAfter", "--unhealthy-after"),
        ("removeAfter", "--remove-after"),
    ],
)
def test_timings_default_to_the_registrys_own(value, flag):
    assert parse_duration(VALUES["registry"][value]) == settings("registry-statefulset.yaml")[flag].default


@pytest.mark.parametrize("value", ["logLevel", "logFormat"])
@pytest.mark.parametrize("template", PARTS)
def test_every_part_takes_the_same_logging(template, value):
    flag = {"logLevel": "--log-level", "logFormat": "--log-format"}[value]
    assert VALUES[value] in settings(template)[flag].meta.choices
