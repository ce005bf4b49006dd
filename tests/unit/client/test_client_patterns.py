"""Patterns of service names: `*`, quickly, whatever the pattern."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbook import patterns
from rollbook.names import ServiceKey
from rollbook.patterns import Pattern, matches
from rollbook.problems import Problem


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_a_star_stands_for_any_run_of_characters(pattern, text):
    assert matches(pattern, text) is fnmatch.fnmatchcase(text, pattern)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("orders", "orders", True),
        ("orders", "orders-2", False),
        ("orders-*", "orders-", True),
        ("*", "", True),
        ("a*a", "a", False),
        ("[a]?.b", "[a]?.b", True),
        ("[a]?.b", "aa.b", False),
        ("a*b", "a*b", True),
    ],
)
def test_everything_else_stands_for_itself(pattern, text, expected):
    assert matches(pattern, text) is expected


def test_no_pattern_is_slow():
    began = time.process_time()
    assert not matches("*a" * 256, "a" * 511 + "b")
    assert not matches("*" + "ab*" * 170, "a" * 512)
    # A regular expression would still be at it when the sun goes out.
    assert time.process_time() - began < 1.0


def test_a_pattern_is_of_one_namespace_and_of_groups_that_match():
    pattern = patterns.pattern("orders-*", namespace="prod", group="shop*")
    assert pattern.matches(ServiceKey("prod", "shop-eu", "orders-1"))
    assert not pattern.matches(ServiceKey("public", "shop-eu", "orders-1"))
    assert not pattern.matches(ServiceKey("prod", "stock", "orders-1"))
    assert not pattern.matches(ServiceKey("prod", "shop", "stock"))
    assert Pattern().matches(ServiceKey("public", "DEFAULT_GROUP", "anything"))
    assert not Pattern().matches(ServiceKey("public", "other", "anything"))


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"service": ""}, "pattern"),
        ({"service": "a/b"}, "pattern"),
        ({"service": "a@@*"}, "pattern"),
        ({"service": "*" * 513}, "pattern"),
        ({"service": "*", "namespace": "*"}, "namespace"),
        ({"service": "*", "group": ""}, "group"),
        ({"service": "*", "group": "a b*"}, "group"),
        ({"service": "*", "group": "*" * 129}, "group"),
    ],
)
def test_what_can_match_nothing_is_refused(parts, field):
    with pytest.raises(Problem) as refused:
        patterns.pattern(**parts)
    assert (refused.value.code, refused.value.field) == ("bad_value", field)
