from __future__ import annotations

import pytest

from rollbook.problems import Problem
from rollbook_sidecar import registration
from rollbook_sidecar.settings import Settings


def make(**fields):
    return Settings(registry=("r",), **{"service": "orders", "ports": "8080", **fields})


def entries(**fields):
    return registration.entries(make(**fields), ip="10.0.0.7", host="machine")


def test_no_service_registers_nothing():
    settings = Settings(registry=("r",))
    assert registration.entries(settings, ip="10.0.0.7", host="machine") == ()
    assert registration.services(settings) == ()


def test_one_port_is_one_entry_with_all_that_was_said():
    (entry,) = entries(
        namespace="prod", group="blue", cluster="zone-a", weight=2.5, metadata="version=2", owner="uid-1"
    )
    assert (entry.service, entry.namespace, entry.group, entry.cluster) == (
        "orders",
        "prod",
        "blue",
        "zone-a",
    )
    assert (entry.ip, entry.port, entry.weight, entry.owner) == ("10.0.0.7", 8080, 2.5, "uid-1")
    assert entry.metadata == {"version": "2"}
    assert entry.ready is None
    assert entry.beats_required is False


def test_each_named_port_is_an_entry_that_tells_its_name():
    found = {e.port: e.metadata for e in entries(ports="http=8080,grpc=9090", metadata="version=2")}
    assert found == {
        8080: {"version": "2", "port-name": "http"},
        9090: {"version": "2", "port-name": "grpc"},
    }


def test_what_is_checked_is_not_alive_until_the_first_check():
    assert [e.alive for e in entries(health_check="tcp")] == [None]
    assert [e.alive for e in entries(health_check="http:/ready")] == [None]
    assert [e.alive for e in entries(health_check="none")] == [True]


def test_the_instance_id_is_made_unique_by_the_hosts_or_the_pods_name():
    assert entries()[0].instance_id == "orders:8080:machine"
    assert entries(pod_name="orders-0")[0].instance_id == "orders:8080:orders-0"


def test_an_instance_id_may_be_composed():
    (entry,) = entries(instance_id="{namespace}.{pod}@{node}", pod_name="p", node_name="n", namespace="prod")
    assert entry.instance_id == "prod.p@n"


def test_an_instance_id_that_grows_too_long_is_refused():
    with pytest.raises(Problem) as refused:
        entries(instance_id="{service}" * 50)
    assert "instance_id" in refused.value.field


def test_timings_travel_as_nacos_metadata_in_milliseconds():
    (entry,) = entries(heartbeat_interval=0.5, unhealthy_after=1.5, remove_after=3.0)
    assert entry.metadata == {
        "preserved.heart.beat.interval": "500",
        "preserved.heart.beat.timeout": "1500",
        "preserved.ip.delete.timeout": "3000",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"heartbeat_interval": 2.0}, 2.0),
        ({"unhealthy_after": 3.0}, 1.0),
        ({"heartbeat_interval": 2.0, "unhealthy_after": 3.0}, 1.0),
        ({"heartbeat_interval": 2.0, "unhealthy_after": 60.0}, 2.0),
    ],
)
def test_short_timings_need_frequent_beats(fields, expected):
    assert registration.beat_interval(make(**fields)) == expected
