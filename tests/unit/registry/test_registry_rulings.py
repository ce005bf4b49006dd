"""Rulings in the store: readable keys, tolerant values, and nothing that could not be read again."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbook.model import Entry, EntryRef
from rollbook.names import ServiceKey, check_ip
from rollbook.problems import Problem
from rollbook_registry.catalog.definitions import (
    Check,
    Configured,
    Defined,
    Definition,
    Named,
    Namespace,
    Overridden,
    Override,
    ServiceSettings,
)
from rollbook_registry.store import rulings
from rollbook_registry.store.rulings import Fault, Unreadable
from rollbook_registry.store.store import Change

namespaces = st.from_regex(r"[0-9A-Za-z_-]{1,20}", fullmatch=True)
groups = st.from_regex(r"[0-9A-Za-z_.:-]{1,20}", fullmatch=True)
services = st.from_regex(r"[^\s/\x00-\x1f\x7f]{1,20}", fullmatch=True).filter(
    lambda name: "@@" not in name and name not in {".", ".."} and name.isprintable()
)
clusters = st.from_regex(r"[0-9A-Za-z-]{1,20}", fullmatch=True)
owners = st.just("") | st.from_regex(r"[0-9A-Za-z._-]{1,36}", fullmatch=True)
addresses = (
    st.ip_addresses().map(str) | st.from_regex(r"[a-z]{1,10}(\.[a-z0-9]{1,10})?", fullmatch=True)
).map(check_ip)
texts = st.text(max_size=20)
metadata = st.dictionaries(texts, texts, max_size=4)
positive = st.floats(0.5, 1e6)
checks = st.builds(
    Check,
    type=st.sampled_from(["tcp", "http", "none"]),
    path=texts,
    port=st.none() | st.integers(1, 65535),
    interval=positive,
    timeout=positive,
    failures=st.integers(1, 100),
    successes=st.integers(1, 100),
)
refs = st.builds(
    EntryRef,
    service=services,
    ip=addresses,
    port=st.integers(1, 65535),
    namespace=namespaces,
    group=groups,
    cluster=clusters,
    owner=owners,
)


@st.composite
def defined(draw):
    ref = draw(refs)
    entry = Entry(
        **msgspec.structs.asdict(ref),
        weight=draw(st.floats(0, 10000)),
        enabled=draw(st.booleans()),
        metadata=draw(metadata),
        ephemeral=False,
    )
    return Defined(ref, draw(st.none() | st.just(Definition(entry=entry, check=draw(st.none() | checks)))))


overridden = st.builds(
    Overridden,
    refs,
    st.none()
    | st.builds(
        Override,
        enabled=st.none() | st.booleans(),
        weight=st.none() | st.floats(0, 10000),
        reason=texts,
        at=st.floats(0, 1e12),
    ),
)
configured = st.builds(
    Configured,
    st.builds(ServiceKey, namespaces, groups, services),
    st.none()
    | st.builds(
        ServiceSettings,
        protect_threshold=st.none() | st.floats(0, 1),
        metadata=metadata,
        check=st.none() | checks,
    ),
)
named = st.builds(
    Named,
    namespaces,
    st.none()
    | st.builds(
        Namespace,
        title=texts,
        description=texts,
        max_services=st.none() | st.integers(0, 10**6),
        max_instances=st.none() | st.integers(0, 10**6),
    ),
)
any_ruling = defined() | overridden | configured | named

REF = EntryRef(service="orders", ip="10.0.0.1", port=80, cluster="z1")
DEFINED = Defined(
    REF, Definition(entry=Entry(service="orders", ip="10.0.0.1", port=80, cluster="z1", ephemeral=False))
)
KEY = "instance/public/DEFAULT_GROUP/orders/10.0.0.1:80:z1"


@given(any_ruling)
def test_what_is_written_is_read_again(ruling):
    assert rulings.read_one(rulings.write(ruling)) == ruling


@given(any_ruling, any_ruling)
def test_two_rulings_share_a_key_only_if_they_are_about_the_same(one, other):
    about = [(type(r), r[0]) for r in (one, other)]
    assert (rulings.write(one).key == rulings.write(other).key) == (about[0] == about[1])


def test_keys_can_be_read_by_people():
    six = EntryRef(service="a+b", ip="2001:db8::1", port=80, namespace="n", group="g:1", owner="u-1")
    assert rulings.write(DEFINED).key == KEY
    assert rulings.write(Overridden(six, None)) == Change(
        "override/n/g:1/a+b/[2001:db8::1]:80:DEFAULT:u-1", None
    )
    assert rulings.write(Configured(ServiceKey("n", "g", "s"), None)).key == "service/n/g/s"
    assert rulings.write(Named("n", Namespace(title="N"))) == Change("namespace/n", b'{"title":"N"}')


def test_fields_of_a_newer_version_are_passed_over():
    value = msgspec.json.decode(rulings.write(DEFINED).value)
    value |= {"colour": "red", "check": {"type": "http", "tls": True}}
    value["entry"]["shape"] = {"round": True}
    found = rulings.read_one(Change(KEY, msgspec.json.encode(value)))
    assert found == Defined(REF, Definition(entry=DEFINED.definition.entry, check=Check(type="http")))


GOOD = rulings.write(DEFINED).value


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("user/ann", b"{}", Fault.UNKNOWN_KIND),
        ("", b"{}", Fault.UNKNOWN_KIND),
        ("instance", b"{}", Fault.BAD_KEY),
        ("instance/public/g/s/10.0.0.1:80:c/more", b"{}", Fault.BAD_KEY),
        ("instance/public/g/s/10.0.0.1:0:c", None, Fault.BAD_KEY),
        ("instance/public/g/s/10.0.0.1:80", None, Fault.BAD_KEY),
        ("instance/public/g/s/[2001:DB8::1]:80:c", None, Fault.BAD_KEY),
        ("instance/a b/g/s/10.0.0.1:80:c", None, Fault.BAD_KEY),
        ("namespace/", b"{}", Fault.BAD_KEY),
        ("service/public/g/s p", b"{}", Fault.BAD_KEY),
        (KEY, b"", Fault.BAD_VALUE),
        (KEY, b"\xff", Fault.BAD_VALUE),
        (KEY, b'{"entry": {"service": "\xff"}}', Fault.BAD_VALUE),
        (KEY, b"[]", Fault.BAD_VALUE),
        (KEY, b"null", Fault.BAD_VALUE),
        (KEY, GOOD.replace(b'"service"', b'"servant"'), Fault.BAD_VALUE),
        (KEY, GOOD[:-1] + b',"check":{"type":"grpc"}}', Fault.BAD_VALUE),
        (KEY, GOOD[:-1] + b',"check":{"interval":0}}', Fault.BAD_VALUE),
        (KEY, GOOD[:-1] + b',"check":{"port":70000}}', Fault.BAD_VALUE),
        (KEY, GOOD[:-2] + b',"metadata":{"preserved.ip.delete.timeout":"soon"}}}', Fault.BAD_VALUE),
        (KEY.replace("orders", "other"), GOOD, Fault.OTHER_INSTANCE),
        (KEY.replace("instance", "override"), b'{"weight":-1}', Fault.BAD_VALUE),
        ("service/public/g/s", b'{"protect_threshold":2}', Fault.BAD_VALUE),
        ("namespace/n", b"[" * 5000, Fault.BAD_VALUE),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_reported_by_key_and_the_rest_is_read(key, value, fault):
    good = rulings.write(DEFINED)
    read, unreadable = rulings.read([Change(key, value), good])
    assert read == [DEFINED]
    assert [(u.key, u.fault) for u in unreadable] == [(key, fault)]
    assert unreadable[0].detail


@given(st.text(max_size=30) | st.just(KEY) | st.just("namespace/n"), st.binary(max_size=40))
def test_reading_never_fails(key, value):
    found = rulings.read_one(Change(key, value))
    assert isinstance(found, Unreadable | Named | Configured | Overridden | Defined)


@pytest.mark.parametrize(
    "ruling",
    [
        Overridden(EntryRef(service="s", ip="2001:DB8::1", port=80), Override()),
        Overridden(EntryRef(service="a/b", ip="10.0.0.1", port=80), Override()),
        Overridden(REF, Override(weight=float("nan"))),
        Overridden(REF, Override(at=float("inf"))),
        Defined(EntryRef(service="other", ip="10.0.0.1", port=80), DEFINED.definition),
        Named("", Namespace()),
        Named("n", Namespace(title="\ud800")),
    ],
)
def test_what_could_not_be_read_again_is_not_promised(ruling):
    with pytest.raises(Problem) as caught:
        rulings.write(ruling)
    assert caught.value.code == "bad_value"
