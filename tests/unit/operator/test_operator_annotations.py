"""How a pod's annotations are read."""

import ipaddress

import pytest

from rollbook_operator.annotations import KNOWN, AnnotationProblem, Port, Wishes, ours, parse

BASE = {"rollbook.io/register": "true", "rollbook.io/service": "orders", "rollbook.io/port": "8080"}


def read(pod, annotations=None, *, without=(), **more):
    given = {k: v for k, v in (BASE | (annotations or {})).items() if k not in without}
    return parse(pod(annotations=given, **more))


def only_problem(result):
    assert isinstance(result, list), result
    (problem,) = result
    return problem


def test_what_is_not_said_has_defaults(pod):
    wishes = read(pod)
    assert wishes == Wishes(register=True, service="orders", ports=(Port("", 8080),))
    assert (wishes.namespace, wishes.group, wishes.weight) == ("public", "DEFAULT_GROUP", 1.0)
    assert wishes.instance_id == "{service}:{port}:{pod}"


def test_everything_can_be_said(pod):
    wishes = read(
        pod,
        {
            "rollbook.io/namespace": "prod",
            "rollbook.io/group": "G1",
            "rollbook.io/cluster": "zone-1",
            "rollbook.io/weight": "0.5",
            "metadata.rollbook.io/version": "2",
            "rollbook.io/instance-id": "{service}@{node}",
            "rollbook.io/preferred-networks": "10.0.0.0/8, fd00::/8",
            "rollbook.io/health-check": "http:/ready",
            "rollbook.io/heartbeat-interval": "500ms",
            "rollbook.io/unhealthy-after": "3",
            "rollbook.io/remove-after": "1m",
            "rollbook.io/subscribe": "stock, G@@users, ns/G@@mail",
            "rollbook.io/inject": "false",
            "rollbook.io/drain-timeout": "20s",
            "rollbook.io/linger": "0s",
        },
    )
    assert wishes == Wishes(
        register=True,
        inject=False,
        service="orders",
        ports=(Port("", 8080),),
        namespace="prod",
        group="G1",
        cluster="zone-1",
        weight=0.5,
        metadata={
            "version": "2",
            "preserved.heart.beat.interval": "500",
            "preserved.heart.beat.timeout": "3000",
            "preserved.ip.delete.timeout": "60000",
        },
        instance_id="{service}@{node}",
        preferred_networks=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
        health_check="http:/ready",
        heartbeat_interval=0.5,
        unhealthy_after=3.0,
        remove_after=60.0,
        subscribe=("stock", "G@@users", "ns/G@@mail"),
        drain_timeout=20.0,
        linger=0.0,
    )


@pytest.mark.parametrize(
    ("labels", "service"),
    [
        ({"app.kubernetes.io/name": "shop", "app": "x"}, "shop"),
        ({"app": "x"}, "x"),
    ],
)
def test_the_service_comes_from_the_labels_if_no_annotation_names_it(pod, labels, service):
    assert read(pod, without=["rollbook.io/service"], labels=labels).service == service


def test_a_pod_that_names_no_service_is_told_how(pod):
    problem = only_problem(read(pod, without=["rollbook.io/service"], labels={}))
    assert problem.annotation == "rollbook.io/service"
    assert "app.kubernetes.io/name, app" in problem.accepted


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8080", (Port("", 8080),)),
        ("http", (Port("", 8080),)),
        ("http=8080,grpc=9090", (Port("http", 8080), Port("grpc", 9090))),
        ("web = http , 1 = 9090".replace(" ", ""), (Port("web", 8080), Port("1", 9090))),
        ("http=http, grpc=9090", (Port("http", 8080), Port("grpc", 9090))),
    ],
)
def test_ports_are_numbers_names_or_lists(pod, text, ports):
    assert read(pod, {"rollbook.io/port": text}).ports == ports


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "99999999999999999999",
        "-1",
        "8080,9090",
        "http=8080,grpc=",
        "=80",
        "a=1,a=2",
        "a=1,b=1",
    ],
)
def test_other_ports_are_not_accepted(pod, text):
    problem = only_problem(read(pod, {"rollbook.io/port": text}))
    assert (problem.annotation, problem.value) == ("rollbook.io/port", text)


def test_a_name_that_no_container_has_is_told_with_those_that_they_have(pod):
    problem = only_problem(read(pod, {"rollbook.io/port": "grpc"}))
    assert problem.accepted.endswith("the names are http")


def test_the_names_of_native_sidecars_ports_count_and_those_of_init_containers_do_not(pod):
    init = [
        {"name": "s", "restartPolicy": "Always", "ports": [{"name": "admin", "containerPort": 1}]},
        {"name": "i", "ports": [{"name": "gone", "containerPort": 2}]},
    ]
    assert read(pod, {"rollbook.io/port": "admin"}, spec__initContainers=init).ports == (Port("", 1),)
    assert isinstance(read(pod, {"rollbook.io/port": "gone"}, spec__initContainers=init), list)


def test_the_only_declared_port_is_taken_if_none_is_said(pod):
    assert read(pod, without=["rollbook.io/port"]).ports == (Port("", 8080),)
    udp = [{"ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 80}]}]
    assert read(pod, without=["rollbook.io/port"], spec__containers=udp).ports == (Port("", 80),)


@pytest.mark.parametrize("ports", [[], [{"containerPort": 1}, {"containerPort": 2}]])
def test_with_none_or_several_declared_the_port_must_be_said(pod, ports):
    result = read(pod, without=["rollbook.io/port"], spec__containers=[{"ports": ports}])
    problem = only_problem(result)
    assert problem.annotation == "rollbook.io/port"
    assert f"the pod declares {len(ports)} TCP ports" in problem.accepted


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("register", "yes", '"true" or "false"'),
        ("inject", "True", '"true" or "false"'),
        ("service", "a b", "without spaces"),
        ("service", "", "without spaces"),
        ("namespace", "a.b", "letters, digits"),
        ("group", "a b", "letters, digits"),
        ("cluster", "a_b", "letters, digits"),
        ("weight", "heavy", "a number from 0 to 10000"),
        ("weight", "nan", "a number from 0 to 10000"),
        ("weight", "10001", "a number from 0 to 10000"),
        ("instance-id", "{uid}", "{service}"),
        ("instance-id", "{service", "{service}"),
        ("instance-id", "{service!r}", "{service}"),
        ("instance-id", "{port:>9}", "{service}"),
        ("instance-id", "", "1 to 256 characters"),
        ("preferred-networks", "10.0.0.0/40", "10.0.0.0/8"),
        ("health-check", "http", "http:/path"),
        ("health-check", "http:/a b", "http:/path"),
        ("health-check", "https:/x", "http:/path"),
        ("heartbeat-interval", "fast", "500ms, 15s or 2m"),
        ("unhealthy-after", "0s", "at least 1ms"),
        ("remove-after", "25h", "at most 24h"),
        ("subscribe", "a b", "group@@name"),
        ("subscribe", "ns/orders", "group@@name"),
        ("drain-timeout", "2h", "at most 1h"),
        ("linger", "-1s", "500ms, 15s or 2m"),
        ("heartbeat-interval", "1e3", "500ms, 15s or 2m"),
    ],
)
def test_a_bad_value_is_told_with_the_annotation_and_the_accepted_form(pod, name, value, accepted):
    problem = only_problem(read(pod, {f"rollbook.io/{name}": value}))
    assert (problem.annotation, problem.value) == (f"rollbook.io/{name}", value)
    assert accepted in problem.accepted
    assert str(problem).startswith(f"annotation rollbook.io/{name} is {value!r}; accepted: ")


def test_everything_that_is_wrong_is_told_at_once(pod):
    result = read(pod, {"rollbook.io/weight": "x", "rollbook.io/linger": "y", "rollbook.io/prot": "80"})
    assert {p.annotation for p in result} == {"rollbook.io/weight", "rollbook.io/linger", "rollbook.io/prot"}


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("rollbook.io/prot", "did you mean rollbook.io/port? "),
        ("rollbook.io/Service", "did you mean rollbook.io/service? "),
        ("rollbook.io/xyz", "known are rollbook.io/register"),
    ],
)
def test_an_unknown_annotation_is_told_with_the_nearest_known_one(pod, unknown, hint):
    problem = only_problem(read(pod, {unknown: "1"}))
    assert problem.annotation == unknown
    assert problem.accepted.startswith(hint)


def test_other_peoples_annotations_are_nobodys_business(pod):
    assert isinstance(read(pod, {"prometheus.io/port": "x", "xrollbook.io/port": "x"}), Wishes)
    assert not ours({"prometheus.io/port": "x", "xrollbook.io/port": "x"})
    assert ours({"rollbook.io/anything": ""})
    assert ours({"metadata.rollbook.io/version": ""})


@pytest.mark.parametrize(
    ("timings", "blamed"),
    [
        ({"unhealthy-after": "30s", "remove-after": "15s"}, "unhealthy-after"),
        ({"heartbeat-interval": "15s", "unhealthy-after": "15s"}, "heartbeat-interval"),
    ],
)
def test_timings_must_fit_together(pod, timings, blamed):
    problem = only_problem(read(pod, {f"rollbook.io/{k}": v for k, v in timings.items()}))
    assert problem.annotation == f"rollbook.io/{blamed}"


def test_too_much_metadata_is_told_with_the_limits(pod):
    many = {f"metadata.rollbook.io/k{n}": "v" for n in range(129)}
    assert "at most 128 pairs and 8192 bytes" in only_problem(read(pod, many)).accepted
    assert only_problem(read(pod, {"metadata.rollbook.io/k": "v" * 9000})).value == "1 pairs, 9001 bytes"


def test_nacos_own_timing_keys_must_be_milliseconds(pod):
    key = "metadata.rollbook.io/preserved.heart.beat.timeout"
    assert read(pod, {key: "3000"}).metadata == {"preserved.heart.beat.timeout": "3000"}
    assert only_problem(read(pod, {key: "3s"})).annotation == key


def test_a_pod_that_does_not_register_needs_neither_service_nor_port(pod):
    wishes = parse(pod(annotations={"rollbook.io/inject": "true"}, labels={}, spec__containers=[]))
    assert wishes == Wishes(inject=True)
    problem = only_problem(parse(pod(annotations={"rollbook.io/inject": "true", "rollbook.io/port": "x"})))
    assert problem.annotation == "rollbook.io/port"


def test_a_pod_without_anything_is_read_too():
    assert parse({}) == Wishes()


def test_long_values_are_shown_shortened():
    assert "x" * 81 not in str(AnnotationProblem("a", "x" * 200, "b"))


def test_the_list_of_known_ones_has_each_once():
    assert len(set(KNOWN)) == len(KNOWN)
