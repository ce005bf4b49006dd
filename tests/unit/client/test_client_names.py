"""Names: what is accepted, and what is said about what isn't."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbook import names
from rollbook.problems import Problem

CHECKS = [
    (names.check_namespace, "namespace", ["public", "a-b_9", "x" * 128], ["", "a b", "a/b", "x" * 129, "ä"]),
    (names.check_group, "group", ["DEFAULT_GROUP", "a.b:c-d", "x" * 128], ["", "a b", "a@@b", "x" * 129]),
    (
        names.check_service,
        "service",
        ["orders", "providers:org.demo.Orders:1.0:", "ä", "x" * 512, "..."],
        ["", "a b", "a/b", "a@@b", "x" * 513, "a\n", "a\x00", "a\x85", "a\ufeff", ".", ".."],
    ),
    (names.check_cluster, "cluster", ["DEFAULT", "eu-1", "x" * 64], ["", "a.b", "a,b", "x" * 65, "a_b"]),
    (
        names.check_ip,
        "ip",
        ["10.0.0.1", "::1", "db.example.org", "localhost", "10a.0.0.1"],
        ["", "10.0.0", "10.0.0.256", "a_b", "-a", "a-", "a..b", "[::1]", "fe80::1%eth0", "x" * 254, "a b"],
    ),
    (names.check_owner, "owner", ["8f2b-1", "x" * 256], ["", "a:b", "a/b", "a b", "x" * 257]),
]


@pytest.mark.parametrize(
    ("check", "value"), [(check, value) for check, _, good, _ in CHECKS for value in good]
)
def test_what_the_field_uses_is_accepted_as_it_is(check, value):
    assert check(value) == value


@pytest.mark.parametrize(
    ("check", "field", "value"), [(check, field, value) for check, field, _, bad in CHECKS for value in bad]
)
def test_bad_input_names_the_field_and_the_accepted_form(check, field, value):
    with pytest.raises(Problem) as refused:
        check(value)
    problem = refused.value
    assert (problem.code, problem.status, problem.field) == ("bad_value", 400, field)
    assert problem.accepted
    assert problem.accepted in problem.detail
    with pytest.raises(Problem) as elsewhere:
        check(value, f"entries[3].{field}")
    assert elsewhere.value.field == f"entries[3].{field}"


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(Problem, match=r"port is .* accepted: a whole number from 1 to 65535"):
        names.check_port(port)


@pytest.mark.parametrize(
    ("given", "stored"),
    [("2001:DB8:0::1", "2001:db8::1"), ("Db.Example.ORG", "db.example.org"), ("::0001", "::1")],
)
def test_an_address_has_one_spelling(given, stored):
    assert names.check_ip(given) == stored


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4}){2,4}\n?", fullmatch=True))
def test_what_looks_like_an_ipv4_address_is_one_or_is_refused(text):
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        with pytest.raises(Problem):
            names.check_ip(text)
    else:
        assert names.check_ip(text) == str(address)


def test_a_service_is_known_by_namespace_group_and_name():
    assert names.service_key("orders") == ("public", "DEFAULT_GROUP", "orders")
    assert str(names.service_key("orders", namespace="n", group="g")) == "n/g@@orders"
    with pytest.raises(Problem) as refused:
        names.service_key("orders", group="")
    assert refused.value.field == "group"


addresses = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z][a-z0-9]{0,8}){0,2}", fullmatch=True),
)
clusters = st.from_regex(r"[0-9A-Za-z-]{1,64}", fullmatch=True)
owners = st.one_of(st.just(""), st.uuids().map(str), st.from_regex(r"[0-9A-Za-z._-]{1,40}", fullmatch=True))


@given(ip=addresses, port=st.integers(1, 65535), cluster=clusters, owner=owners)
def test_every_key_that_is_spelt_can_be_read_again(ip, port, cluster, owner):
    names.check_ip(ip)
    names.check_cluster(cluster)
    if owner:
        names.check_owner(owner)
    key = names.instance_key(ip=names.check_ip(ip), port=port, cluster=cluster, owner=owner)
    assert names.parse_instance_key(key) == (names.check_ip(ip), port, cluster, owner)


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_stands_in_brackets(address):
    key = names.instance_key(ip=str(address), port=80, cluster="DEFAULT")
    assert key == f"[{address}]:80:DEFAULT"
    # However it is spelt, it is the same instance.
    assert names.parse_instance_key(f"[{ipaddress.IPv6Address(address).exploded}]:80").ip == str(address)


def test_a_keys_cluster_may_be_left_out():
    assert names.parse_instance_key("10.0.0.1:80") == ("10.0.0.1", 80, "DEFAULT", "")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "10.0.0.1",
        "10.0.0.1:",
        ":80",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "::1:80",
        "10.0.0.1:8a",
        "10.0.0.1:80:a_b",
        "[10.0.0.1:80",
        "10.0.0.1:80:c:o:x",
        "10.0.0.300:80",
        "10.0.0.1:٨٠",
    ],
)
def test_a_bad_key_is_refused(key):
    with pytest.raises(Problem) as refused:
        names.parse_instance_key(key)
    assert refused.value.code == "bad_value"
    assert refused.value.field == "key"
    assert refused.value.accepted


@given(st.text(max_size=40))
def test_no_text_at_all_makes_a_check_fail_otherwise_than_by_a_problem(text):
    for check, *_ in CHECKS:
        with contextlib.suppress(Problem):
            assert check(text) == text or check is names.check_ip
    try:
        parts = names.parse_instance_key(text)
    except Problem:
        return
    assert names.parse_instance_key(names.instance_key(**parts._asdict())) == parts
