from __future__ import annotations

import pytest

from rollbook.names import ServiceKey
from rollbook.problems import Problem
from rollbook_sidecar import forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("8080", (("", 8080),)),
        ("http=8080", (("http", 8080),)),
        ("http=8080, grpc=9090", (("http", 8080), ("grpc", 9090))),
    ],
)
def test_ports_are_one_number_or_named_ones(text, expected):
    assert forms.ports(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "65536",
        "http",
        "8080,9090",
        "=8080",
        "http=",
        "http=x",
        "a=1,a=2",
        "a=1,b=1",
        "8080,",
        "\uff19",
        "9" * 9,
    ],
)
def test_other_ports_are_refused_naming_the_flag_and_the_form(text):
    with pytest.raises(Problem) as refused:
        forms.ports(text)
    assert refused.value.field == "--ports"
    assert refused.value.accepted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ('{"version": "2", "a,b": "c=d"}', {"version": "2", "a,b": "c=d"}),
        ("version=2, zone=a", {"version": "2", "zone": "a"}),
        ("query=a=b", {"query": "a=b"}),
        ("flag=", {"flag": ""}),
    ],
)
def test_metadata_is_a_json_object_or_pairs(text, expected):
    assert forms.metadata(text) == expected


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '{"a": {}}', "{", "version", "=2", "a=1,a=2", "a=1,,b=2", "[1]"]
)
def test_other_metadata_is_refused(text):
    with pytest.raises(Problem) as refused:
        forms.metadata(text)
    assert refused.value.field == "--metadata"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp", ("tcp", "")),
        ("none", ("none", "")),
        ("http:/", ("http", "/")),
        ("http:/a?b=c", ("http", "/a?b=c")),
    ],
)
def test_health_checks(text, expected):
    assert forms.health_check(text) == expected


@pytest.mark.parametrize(
    "text", ["", "udp", "tcp:80", "http", "http:", "http:path", "http:/a b", "HTTP:/a", "none:"]
)
def test_other_health_checks_are_refused(text):
    with pytest.raises(Problem) as refused:
        forms.health_check(text)
    assert refused.value.field == "--health-check"


@pytest.mark.parametrize(
    "text", ["{service}:{port}", "{pod}-{node}-{host}.{namespace}", "plain", "{{service}}"]
)
def test_templates_refer_to_what_there_is(text):
    assert forms.check_template(text) == text


@pytest.mark.parametrize(
    "text", ["{srevice}", "{}", "{0}", "{port:>9}", "{port!r}", "{port.real}", "{port", "}"]
)
def test_other_templates_are_refused_naming_the_placeholders(text):
    with pytest.raises(Problem) as refused:
        forms.check_template(text)
    assert refused.value.field == "--instance-id"
    assert "{service}" in refused.value.accepted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("orders", ServiceKey("public", "DEFAULT_GROUP", "orders")),
        ("blue@@orders", ServiceKey("public", "blue", "orders")),
        ("prod/blue@@orders", ServiceKey("prod", "blue", "orders")),
    ],
)
def test_services_are_spelled_as_they_are_shown(text, expected):
    assert forms.service(text) == expected


@pytest.mark.parametrize("text", ["", "prod/orders", "@@orders", "/blue@@orders", "a b", "blue@@", "a@@b@@c"])
def test_other_services_are_refused(text):
    with pytest.raises(Problem) as refused:
        forms.service(text)
    assert refused.value.field.startswith("--subscribe")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("h", False),
    ],
)
def test_loopback_is_recognised(host, expected):
    assert forms.is_loopback(host) is expected
