"""Entries: what a publisher may say."""

from __future__ import annotations

import msgspec
import pytest

from registrykit import a_ref, an_entry
from rollbook import limits, model
from rollbook.problems import Problem

UNHEALTHY, REMOVE, BEAT = (
    "preserved.heart.beat.timeout",
    "preserved.ip.delete.timeout",
    "preserved.heart.beat.interval",
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("namespace", "a b"),
        ("group", ""),
        ("service", "a/b"),
        ("cluster", "a_b"),
        ("port", 0),
        ("ip", "nowhere else"),
        ("weight", -1.0),
        ("weight", 10000.5),
        ("weight", float("nan")),
        ("weight", float("inf")),
        ("owner", "a:b"),
        ("instance_id", "x" * 257),
        ("metadata", {str(n): "" for n in range(129)}),
        ("metadata", {"a": "x" * 8192}),
    ],
)
def test_bad_input_names_the_field_and_the_accepted_form(field, value):
    with pytest.raises(Problem) as refused:
        model.check_entry(an_entry(**{field: value}), "entries[3].")
    assert refused.value.field == f"entries[3].{field}"
    assert refused.value.accepted
    assert len(refused.value.detail) < 400


def test_an_entry_at_every_limit_is_accepted():
    entry = an_entry(
        weight=limits.MAX_WEIGHT,
        instance_id="x" * 256,
        metadata={f"{n:03}": "x" * 61 for n in range(limits.MAX_METADATA_PAIRS)},
    )
    assert model.check_entry(entry) == entry
    assert model.check_entry(an_entry(weight=0.0)).weight == 0


def test_metadata_is_measured_in_bytes():
    with pytest.raises(Problem, match="metadata is '8194 bytes'; accepted: at most 8192 bytes"):
        model.check_entry(an_entry(metadata={"aa": "ä" * 4096}))


def test_an_address_is_stored_in_one_spelling_and_named_by_it_later():
    entry = model.check_entry(an_entry(ip="2001:DB8::0"))
    assert entry.ip == "2001:db8::"
    assert model.check_ref(a_ref(ip="2001:DB8::0")) == entry.ref
    assert model.check_ref(a_ref()) == a_ref()
    with pytest.raises(Problem) as refused:
        model.check_ref(a_ref(ip="x y"), "down[2].")
    assert refused.value.field == "down[2].ip"


@pytest.mark.parametrize("key", [UNHEALTHY, REMOVE, BEAT])
@pytest.mark.parametrize(
    "value",
    ["", "0", "-1", "1.5", "5s", " 5", "\u0665", "86400001", "0000000001", "000000000100000000", "9" * 5000],
)
def test_a_timing_in_metadata_is_whole_milliseconds_of_at_most_a_day(key, value):
    with pytest.raises(Problem) as refused:
        model.check_entry(an_entry(metadata={key: value}))
    assert refused.value.field == f"metadata.{key}"
    assert refused.value.accepted == "whole milliseconds from 1 to 86400000"


def test_timings_within_bounds_are_read():
    metadata = {UNHEALTHY: "3000", REMOVE: "86400000", BEAT: "1"}
    assert model.check_entry(an_entry(metadata=metadata)).metadata == metadata
    assert model.timing_ms(metadata, REMOVE) == 86_400_000
    assert model.timing_ms({}, REMOVE) is None


def test_an_instance_cannot_be_removed_before_it_is_unhealthy():
    with pytest.raises(Problem) as refused:
        model.check_entry(an_entry(metadata={UNHEALTHY: "9000", REMOVE: "8000"}))
    assert refused.value.field == f"metadata.{UNHEALTHY}"
    assert "8000" in refused.value.accepted
    model.check_entry(an_entry(metadata={UNHEALTHY: "9000", REMOVE: "9000"}))


def test_the_url_host_of_an_ipv6_instance_has_brackets():
    assert model.Instance(key="k", ip="::1", port=80).url_host == "[::1]:80"
    assert model.Instance(key="k", ip="10.0.0.1", port=80).url_host == "10.0.0.1:80"


def test_unknown_fields_of_an_entry_are_refused_not_dropped():
    with pytest.raises(msgspec.ValidationError, match="unknown field `wieght`"):
        msgspec.json.decode(b'{"service":"a","ip":"10.0.0.1","port":1,"wieght":2}', type=model.Entry)
