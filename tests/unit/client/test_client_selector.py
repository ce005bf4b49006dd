"""Selectors: what Kubernetes' grammar means, over metadata that may hold anything."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registrykit import an_entry
from rollbook import filters, limits, selector
from rollbook.model import Instance
from rollbook.problems import Problem
from rollbook.selector import Operator, Term

SHOP = {"version": "2", "zone": "a", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selects"),
    [
        ("", True),
        ("  ", True),
        ("version=2", True),
        ("version==2", True),
        (" version = 2 ", True),
        ("version=1", False),
        ("missing=2", False),
        ("version!=1", True),
        ("version!=2", False),
        ("missing!=2", True),
        ("version in (1,2)", True),
        ("version in ( 1 , 3 )", False),
        ("missing in (1,2)", False),
        ("version notin (1,3)", True),
        ("version notin (1,2)", False),
        ("missing notin (1,2)", True),
        ("version", True),
        ("missing", False),
        ("empty", True),
        ("!missing", True),
        ("! version", False),
        ("empty=", True),
        ("empty!=", False),
        ("version=", False),
        ("missing=", False),
        ("empty in (a,)", True),
        ("version=2,zone=a", True),
        ("version=2,zone=b", False),
        ("version=2,zone in (a,b),!missing,zone notin (c)", True),
        ("version='2'", True),
        ("'version'='2'", True),
    ],
)
def test_what_a_selector_selects(text, selects):
    assert selector.parse(text).matches(SHOP) is selects


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        ("in=notin", {"in": "notin"}),
        ("in in (in,notin)", {"in": "in"}),
        ("notin", {"notin": ""}),
        ("rollbook.io/zone=eu-west.1", {"rollbook.io/zone": "eu-west.1"}),
        ("preserved.heart.beat.timeout=15000", {"preserved.heart.beat.timeout": "15000"}),
        ("地区=北京", {"地区": "北京"}),
        ("'a b'='c, d'", {"a b": "c, d"}),
        ("note='it''s (a) test'", {"note": "it's (a) test"}),
        ("note=''''", {"note": "'"}),
        ("''=''", {"": ""}),
        ("'1 < 2'='a=b!>'", {"1 < 2": "a=b!>"}),
        ("'in'in('a')", {"in": "a"}),
    ],
)
def test_keys_and_values_may_be_any_text(text, metadata):
    assert selector.parse(text).matches(metadata)
    assert not selector.parse(text).matches({"other": "value"})


def test_equal_selectors_are_equal_in_every_spelling():
    spellings = ["a=1,b in (2,3)", " b in (3 , 2,2),a==1", "a in ('1'),'b' in (2,3),a=1"]
    assert len({selector.parse(s) for s in spellings}) == 1
    assert selector.parse("a!=1") == selector.parse("a notin (1)")


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        (",", 1, "a key"),
        ("a,", 3, "its end where a key"),
        ("a,,b", 3, "a key"),
        ("=1", 1, "a key"),
        ("!", 2, "a key"),
        ("!!a", 2, "a key"),
        ("a b", 3, "a comma"),
        ("a=1=2", 4, "a comma"),
        ("a = b c", 7, "a comma"),
        ("a in", 5, "'\\('"),
        ("a in 1", 6, "'\\('"),
        ("a in (1", 8, "'\\)'"),
        ("a in ()", 7, "no value"),
        ("a in (1 2)", 9, "'\\)'"),
        ("a > 1", 3, "'>', which must stand in quotes"),
        ("a=<b", 3, "'<'"),
        ("a='b", 3, "a quote that is not closed"),
        ("a='b'c", 6, "a comma"),
        ("a=b'c'", 4, "a comma"),
        ("a=b\x00", 4, "must stand in quotes"),
        (")", 1, "a key"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_position(text, position, what):
    with pytest.raises(Problem, match=what) as refused:
        selector.parse(text)
    problem = refused.value
    assert (problem.code, problem.field) == ("bad_value", "selector")
    assert f"position {position};" in problem.detail
    assert problem.accepted == selector.ACCEPTED


def test_length_and_terms_are_bounded():
    assert selector.parse("a" * limits.MAX_SELECTOR_LENGTH).matches({"a" * limits.MAX_SELECTOR_LENGTH: ""})
    with pytest.raises(Problem, match="at most 1024") as refused:
        selector.parse("a" * (limits.MAX_SELECTOR_LENGTH + 1))
    assert refused.value.field == "selector"
    terms = ",".join(f"k{n}" for n in range(limits.MAX_SELECTOR_TERMS))
    assert len(selector.parse(terms).terms) == limits.MAX_SELECTOR_TERMS
    with pytest.raises(Problem, match="more than 32 terms"):
        selector.parse(terms + ",k32")


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


terms = st.builds(
    lambda key, operator, values: Term(
        key, operator, frozenset(values) if operator in {Operator.IN, Operator.NOT_IN} else frozenset()
    ),
    st.text(max_size=4),
    st.sampled_from(Operator),
    st.sets(st.text(max_size=4), min_size=1, max_size=3),
)


def spelt(term):
    match term.operator:
        case Operator.EXISTS:
            return quoted(term.key)
        case Operator.ABSENT:
            return f"!{quoted(term.key)}"
        case _:
            return f"{quoted(term.key)} {term.operator.value} ({','.join(map(quoted, term.values))})"


@given(st.lists(terms, min_size=1, max_size=4))
def test_quoted_anything_can_be_asked_for(wanted):
    text = ",".join(map(spelt, wanted))
    assert selector.parse(text).terms == frozenset(wanted)
    assert re.fullmatch(selector.PATTERN, text)


@given(st.text(alphabet="ab ,=!()'in<", max_size=12))
def test_the_published_pattern_takes_what_the_parser_takes(text):
    # Where a quoted word ends, the parser needs no space before `in`; the pattern says less.
    if re.search(r"'(in|notin)", text.replace(" ", "")):
        return
    try:
        selector.parse(text)
    except Problem:
        assert not re.fullmatch(selector.PATTERN, text)
    else:
        assert re.fullmatch(selector.PATTERN, text)


def test_a_filter_asks_for_all_of_its_parts():
    instances = [
        Instance(key="a", ip="10.0.0.1", port=1, cluster="x", metadata={"v": "1"}),
        Instance(key="b", ip="10.0.0.1", port=2, cluster="y", metadata={"v": "2"}, healthy=False),
        Instance(key="c", ip="10.0.0.1", port=3, cluster="x", metadata={"v": "2"}),
    ]

    def ports(**parts):
        return [i.port for i in filters.Filter(**parts).take(instances)]

    two = selector.parse("v=2")
    assert ports() == [1, 2, 3]
    assert ports(selector=two) == [2, 3]
    assert ports(selector=two, healthy=True) == [3]
    assert ports(selector=two, clusters=filters.parse_clusters("y")) == [2]
    assert ports(selector=two, clusters=filters.parse_clusters("x,y"), healthy=False) == [2]


@pytest.mark.parametrize("text", ["", ",", "a,", "a b", ",".join(["a"] * 33), "," * 100_000])
def test_clusters_that_cannot_be_are_refused(text):
    with pytest.raises(Problem) as refused:
        filters.parse_clusters(text)
    assert (refused.value.code, refused.value.field) == ("bad_value", "cluster")
    assert len(refused.value.detail) < 300


def test_metadata_that_an_entry_may_have_can_be_selected():
    metadata = {"k" * 400: "v" * 400}
    entry = an_entry(metadata=metadata)
    assert selector.parse(f"{'k' * 400}={'v' * 400}").matches(entry.metadata)
