"""Where a check may go: what is dangerous only if it was named, the rest unless it was refused."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbook.problems import Problem
from rollbook_registry.checks.reach import REFUSED, Reach


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "fe80::1",
        "fe80::1%2",
        "ff02::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254",
        "2002:7f00:1::1",
    ],
)
def test_this_machine_and_the_clouds_metadata_are_refused_in_every_spelling(address):
    assert Reach().refusal(address)
    assert Reach(allow=("0.0.0.0/0", "::/0")).refusal(address), "they have to be named"


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "100.100.100.201", "192.168.1.1", "8.8.8.8", "fd00::1", "2001:db8::1"]
)
def test_everything_else_is_allowed(address):
    assert Reach().refusal(address) == ""


def test_the_narrowest_network_counts():
    reach = Reach(allow=("127.0.0.0/8", "10.1.0.0/16", "::1/128"), deny=("10.0.0.0/8", "10.1.2.0/24"))
    answers = {
        "127.0.0.1": "",
        "::1": "",
        "::ffff:127.0.0.1": "",
        "10.2.0.1": "10.0.0.0/8",
        "10.1.0.1": "",
        "10.1.2.3": "10.1.2.0/24",
        "::ffff:10.2.0.1": "10.0.0.0/8",
        "169.254.169.254": "169.254.0.0/16",
        "172.16.0.1": "",
    }
    assert {address: reach.refusal(address) for address in answers} == answers


def test_all_can_be_refused_but_what_is_named():
    reach = Reach(allow=("10.0.0.0/8",), deny=("0.0.0.0/0", "::/0"))
    assert reach.refusal("10.9.9.9") == ""
    assert reach.refusal("8.8.8.8") == "0.0.0.0/0"
    assert reach.refusal("2001:db8::1") == "::/0"


@pytest.mark.parametrize(
    ("lists", "field"),
    [
        ({"allow": ("10.0.0.1/8",)}, "--check-allow"),
        ({"allow": ("localhost",)}, "--check-allow"),
        ({"deny": ("10.0.0.0/33",)}, "--check-deny"),
        ({"allow": ("10.0.0.0/8",), "deny": ("10.0.0.0/8",)}, "--check-allow"),
    ],
)
def test_what_is_no_network_or_in_both_lists_is_refused_by_its_flag(lists, field):
    with pytest.raises(Problem) as refused:
        Reach(**lists)
    assert refused.value.field == field
    assert refused.value.accepted


@given(st.ip_addresses(v=4), st.ip_addresses(v=6))
def test_nothing_of_what_is_refused_slips_through(four, six):
    reach = Reach()
    networks = [ipaddress.ip_network(n) for n in REFUSED]
    assert bool(reach.refusal(str(four))) == any(four in n for n in networks if n.version == 4)
    assert bool(reach.refusal(f"::ffff:{four}")) == bool(reach.refusal(str(four)))
    assert bool(reach.refusal(str(six))) >= any(six in n for n in networks if n.version == 6)
