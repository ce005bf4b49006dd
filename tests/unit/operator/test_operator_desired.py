"""What the book should say about a pod, and the difference to what it says."""

import pytest

from rollbook.model import Entry
from rollbook_operator.desired import State, desire, sidecar_ports, zone_as_cluster
from rollbook_operator.plan import plan


def sidecar(ports="8080", service="orders"):
    env = [{"name": "ROLLBOOK_SERVICE", "value": service}, {"name": "ROLLBOOK_PORTS", "value": ports}]
    return [{"name": "rollbook-sidecar", "restartPolicy": "Always", "env": env}]


def annotated(pod, annotations, **more):
    made = pod(**more)
    made["metadata"]["annotations"] |= annotations
    return made


def test_a_running_pod_is_entered_with_its_address_zone_and_owner(pod):
    wanted = desire(pod("a-1"), "eu-1a")
    assert (wanted.state, wanted.reason, wanted.ips) == (State.OPEN, "registered", ("10.1.0.1",))
    assert wanted.entries == (
        Entry(
            service="orders",
            ip="10.1.0.1",
            port=8080,
            cluster="eu-1a",
            instance_id="orders:8080:a-1",
            owner="uid-a-1",
            ready=True,
        ),
    )


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([{"type": "Ready", "status": "True"}], True),
        ([{"type": "Ready", "status": "False"}], False),
        ([{"type": "Ready", "status": "Unknown"}], False),
        ([{"type": "ContainersReady", "status": "True"}], False),
        ([], False),
    ],
)
def test_ready_is_what_kubernetes_says(pod, conditions, ready):
    (entry,) = desire(pod(status__conditions=conditions), "").entries
    assert entry.ready is ready


def test_several_ports_are_one_instance_each_with_the_ports_name(pod):
    made = annotated(pod, {"rollbook.io/port": "http=8080,grpc=9090", "metadata.rollbook.io/v": "1"})
    http, grpc = desire(made, "").entries
    assert (http.port, http.metadata) == (8080, {"v": "1", "port-name": "http"})
    assert (grpc.port, grpc.metadata) == (9090, {"v": "1", "port-name": "grpc"})
    assert http.service == grpc.service == "orders"


def test_with_a_sidecar_beats_are_required_of_the_ports_that_it_answers_for(pod):
    made = annotated(pod, {"rollbook.io/port": "http=8080,grpc=9090"})
    made["spec"]["initContainers"] = sidecar("http=8080")
    assert {e.port: e.beats_required for e in desire(made, "").entries} == {8080: True, 9090: False}


def test_a_sidecar_that_only_looks_up_answers_for_nothing(pod):
    made = pod(spec__initContainers=sidecar(service=""))
    assert sidecar_ports(made) == frozenset()
    assert [e.beats_required for e in desire(made, "").entries] == [False]


def test_the_first_ipv4_address_is_chosen(pod):
    ips = [{"ip": "fd00::1"}, {"ip": "10.1.0.9"}]
    made = pod(status__podIP="fd00::1", status__podIPs=ips)
    assert desire(made, "").entries[0].ip == "10.1.0.9"
    assert desire(made, "").ips == ("fd00::1", "10.1.0.9")
    alone = pod(status__podIP="fd00::1", status__podIPs=ips[:1])
    assert desire(alone, "").entries[0].ip == "fd00::1"


def test_with_a_sidecar_the_primary_address_is_chosen_as_it_registers_there(pod):
    ips = [{"ip": "fd00::1"}, {"ip": "10.1.0.9"}]
    made = pod(status__podIPs=ips, spec__initContainers=sidecar())
    assert desire(made, "").entries[0].ip == "fd00::1"


def test_preferred_networks_choose_in_their_order(pod):
    ips = [{"ip": "10.1.0.9"}, {"ip": "192.168.0.4"}, {"ip": "fd00::1"}]
    made = annotated(
        pod, {"rollbook.io/preferred-networks": "172.16.0.0/12,fd00::/8,10.0.0.0/8"}, status__podIPs=ips
    )
    assert desire(made, "").entries[0].ip == "fd00::1"
    made["metadata"]["annotations"]["rollbook.io/preferred-networks"] = "172.16.0.0/12"
    wanted = desire(made, "")
    assert (wanted.reason, wanted.entries) == ("bad_annotation", ())
    assert "an address of the pod (10.1.0.9, 192.168.0.4, fd00::1)" in str(wanted.problems[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status__podIPs": [], "status__podIP": ""}, "no_address"),
        ({"status": {"phase": "Pending"}}, "no_address"),
        ({"spec__nodeName": ""}, "no_address"),
    ],
)
def test_a_pod_without_an_address_waits(pod, change, reason):
    wanted = desire(pod(**change), "")
    assert (wanted.state, wanted.reason, wanted.entries) == (State.OPEN, reason, ())


def test_a_pod_that_does_not_ask_is_not_entered(pod):
    for annotations in ({}, {"rollbook.io/register": "false"}):
        wanted = desire(pod(annotations=annotations), "")
        assert (wanted.reason, wanted.entries) == ("not_asked_for", ())
    assert not desire(pod(annotations={}), "").concerned


def test_a_terminating_pod_is_closed_whatever_else_it_says(pod):
    made = annotated(pod, {"rollbook.io/weight": "bad"}, metadata__deletionTimestamp="now")
    wanted = desire(made, "")
    assert (wanted.state, wanted.reason, wanted.entries) == (State.CLOSED, "terminating", ())


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_is_gone_even_while_its_object_stays(pod, phase):
    wanted = desire(pod(status__phase=phase, metadata__deletionTimestamp="now"), "")
    assert (wanted.state, wanted.reason, wanted.ips) == (State.GONE, "finished", ("10.1.0.1",))


def test_a_consumers_end_concerns_nobody(pod):
    wanted = desire(pod(annotations={"rollbook.io/inject": "true"}, status__phase="Failed"), "")
    assert wanted.state is State.OPEN


def test_on_the_hosts_network_the_address_is_entered_and_never_fenced(pod):
    wanted = desire(pod(spec__hostNetwork=True), "")
    assert wanted.entries[0].ip == "10.1.0.1"
    assert wanted.ips == ()


def test_a_bad_annotation_leaves_nothing_half_applied(pod):
    wanted = desire(annotated(pod, {"rollbook.io/weight": "x"}), "")
    assert wanted.entries == ()
    assert [p.annotation for p in wanted.problems] == ["rollbook.io/weight"]


def test_what_is_wrong_only_together_is_blamed_on_its_annotation(pod):
    made = annotated(pod, {"metadata.rollbook.io/k": "v" * 8190, "rollbook.io/port": "http=80"})
    (problem,) = desire(made, "").problems
    assert str(problem) == "annotation metadata.rollbook.io/* is '8204 bytes'; accepted: at most 8192 bytes"


def test_instance_ids_may_name_the_pod_and_the_node_and_are_never_too_long(pod):
    made = annotated(pod, {"rollbook.io/instance-id": "{namespace}/{service}/{port}/{pod}/{host}/{node}"})
    assert desire(made, "").entries[0].instance_id == "public/orders/8080/orders-1/orders-1/node-1"
    assert len(desire(pod("p" * 253, uid="u"), "").entries[0].instance_id) == 256


def test_a_zone_becomes_a_clusters_name():
    assert zone_as_cluster("eu_west.1a") == "eu-west-1a"
    assert zone_as_cluster("") == "DEFAULT"
    assert len(zone_as_cluster("z" * 100)) == 64


def entry(port, **more):
    return Entry(service="orders", ip="10.1.0.1", port=port, owner="u", **more)


def test_the_plan_is_the_difference():
    a, b, b2, c = entry(1), entry(2), entry(2, weight=5.0), entry(3)
    result = plan([a, b2, c], {a.ref: a, b.ref: b, entry(4).ref: entry(4)})
    assert (result.missing, result.different, result.surplus) == ((c,), (b2,), (entry(4).ref,))
    assert result.put == (c, b2)
    assert not plan([a], {a.ref: a})
    assert plan([], {a.ref: a}).surplus == (a.ref,)


def test_another_cluster_is_another_entry_put_before_the_old_one_is_dropped():
    before, after = entry(1, cluster="a"), entry(1, cluster="b")
    result = plan([after], {before.ref: before})
    assert (result.put, result.surplus) == ((after,), (before.ref,))
