"""What a check may say, in a definition and in the settings."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest

from rollbook.problems import Problem
from rollbook_registry.catalog.definitions import Check, check_check
from rollbook_registry.settings import RegistrySettings


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "none"},
        {"type": "http", "path": "/healthz?deep=1&x=%20"},
        {"interval": 0.5, "timeout": 0.5},
        {"interval": 3600, "timeout": 0.001, "failures": 100, "successes": 100, "port": 65535},
    ],
)
def test_a_sensible_check_is_taken_as_it_is(fields):
    check = Check(**fields)
    assert check_check(check) is check


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": "udp"}, "checks[2].type"),
        ({"interval": 0.4}, "checks[2].interval"),
        ({"interval": 3601}, "checks[2].interval"),
        ({"interval": math.nan}, "checks[2].interval"),
        ({"interval": math.inf}, "checks[2].interval"),
        ({"timeout": 0}, "checks[2].timeout"),
        ({"timeout": -1}, "checks[2].timeout"),
        ({"timeout": math.nan}, "checks[2].timeout"),
        ({"timeout": 5.1}, "checks[2].timeout"),
        ({"interval": 0.5}, "checks[2].timeout"),
        ({"failures": 0}, "checks[2].failures"),
        ({"failures": 101}, "checks[2].failures"),
        ({"successes": 0}, "checks[2].successes"),
        ({"successes": 101}, "checks[2].successes"),
        ({"path": ""}, "checks[2].path"),
        ({"path": "health"}, "checks[2].path"),
        ({"path": "http://elsewhere/"}, "checks[2].path"),
        ({"path": "/a b"}, "checks[2].path"),
        ({"path": "/a\r\nHost: elsewhere"}, "checks[2].path"),
        ({"path": "/a\n"}, "checks[2].path"),
        ({"path": "/a\x00"}, "checks[2].path"),
        ({"path": "/a\x7f"}, "checks[2].path"),
        ({"path": "/gr\u00fc\u00df"}, "checks[2].path"),
        ({"path": "/a#b"}, "checks[2].path"),
        ({"path": "/" + "a" * 1024}, "checks[2].path"),
        ({"port": 0}, "checks[2].port"),
        ({"port": 65536}, "checks[2].port"),
    ],
)
def test_what_is_wrong_with_a_check_is_named_with_the_accepted_form(fields, field):
    with pytest.raises(Problem) as refused:
        check_check(Check(**fields), "checks[2]")
    assert (refused.value.code, refused.value.field) == ("bad_value", field)
    assert refused.value.accepted


def test_the_default_check_is_what_the_settings_say_and_is_sensible():
    settings = RegistrySettings()
    assert settings.default_check == Check() == check_check(settings.default_check)
    other = RegistrySettings(
        check_type="http", check_interval=30.0, check_timeout=2.0, check_failures=5, check_successes=2
    )
    assert msgspec.structs.asdict(other.default_check) == {
        "type": "http", "path": "/", "port": None, "interval": 30.0, "timeout": 2.0, "failures": 5,
        "successes": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"check_timeout": 6.0}, "--check-timeout"),
        ({"check_interval": 0.5}, "--check-timeout"),
        ({"check_allow": ("10.0.0.1/8",)}, "--check-allow"),
        ({"check_deny": ("everything",)}, "--check-deny"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_their_flag(fields, field):
    with pytest.raises(Problem) as refused:
        dataclasses.replace(RegistrySettings(), **fields)
    assert refused.value.field == field
