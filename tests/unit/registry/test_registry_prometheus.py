"""Targets for Prometheus: the format, the labels, and that nobody's targets are emptied by a restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registrykit import ORDERS, an_entry
from rollbook.model import Instance
from rollbook_registry.api.prometheus import metadata_labels, target_group

SD = "/prometheus/sd"


@pytest.fixture
async def settled(registry):
    registry.book.outlet.settle()
    return registry


async def targets(registry, query=""):
    status, body, headers = await registry.request("GET", SD + query)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    return body


async def addresses(registry, query=""):
    return sorted(t for group in await targets(registry, query) for t in group["targets"])


async def test_an_empty_book_is_an_empty_list(settled):
    assert await targets(settled) == []
    assert await targets(settled, "?namespace=nobodys&service=x&group=y") == []


async def test_an_instance_is_a_target_with_all_that_is_known_of_it(settled):
    operator = await settled.speaker()
    await operator.attach("op", kind="operator", epoch=1)
    await operator.register(
        an_entry(
            8080,
            namespace="prod",
            group="shop",
            cluster="eu-1",
            weight=2.5,
            enabled=False,
            owner="uid-1",
            instance_id="orders-7c",
            ready=False,
            metadata={"version": "2", "app.kubernetes.io/part-of": "shop"},
        )
    )
    assert await targets(settled, "?namespace=prod") == [
        {
            "targets": ["10.0.0.1:8080"],
            "labels": {
                "__meta_rollbook_namespace": "prod",
                "__meta_rollbook_group": "shop",
                "__meta_rollbook_service": "orders",
                "__meta_rollbook_cluster": "eu-1",
                "__meta_rollbook_instance_id": "orders-7c",
                "__meta_rollbook_owner": "uid-1",
                "__meta_rollbook_healthy": "false",
                "__meta_rollbook_enabled": "false",
                "__meta_rollbook_ready": "false",
                "__meta_rollbook_alive": "true",
                "__meta_rollbook_ephemeral": "true",
                "__meta_rollbook_weight": "2.5",
                "__meta_rollbook_metadata_version": "2",
                "__meta_rollbook_metadata_app_kubernetes_io_part_of": "shop",
            },
        }
    ]


async def test_what_is_listed_can_be_narrowed(settled):
    speaker = await settled.speaker()
    await speaker.attach()
    await speaker.register(
        an_entry(1, service="orders-a", metadata={"v": "1"}),
        an_entry(2, service="orders-b", cluster="eu-1"),
        an_entry(3, service="stock", alive=False),
        an_entry(4, service="stock", group="other", ip="fd00::7"),
        an_entry(5, service="stock", namespace="prod"),
    )
    ports = {
        "": [1, 2, 3, 4],
        "?service=orders-*": [1, 2],
        "?service=orders-a": [1],
        "?service=*": [1, 2, 3, 4],
        "?group=other": [4],
        "?group=DEFAULT*": [1, 2, 3],
        "?service=stock&group=*": [3, 4],
        "?cluster=eu-1": [2],
        "?healthy=true": [1, 2, 4],
        "?healthy=false": [3],
        "?selector=v": [1],
        "?selector=!v&healthy=true": [2, 4],
        "?namespace=prod": [5],
    }
    for query, expected in ports.items():
        found = await addresses(settled, query)
        assert sorted(int(a.rpartition(":")[2]) for a in found) == expected, query
    assert await addresses(settled, "?group=other") == ["[fd00::7]:4"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?service=", "service"),
        ("?service=a/b", "service"),
        ("?group=a@b", "group"),
        ("?group=", "group"),
        ("?namespace=*", "namespace"),
        ("?healthy=maybe", "healthy"),
        ("?selector=a%20b", "selector"),
        ("?cluster=", "cluster"),
        ("?job=x", "query"),
    ],
)
async def test_bad_parameters_are_named(settled, query, field):
    problem = await settled.problem("GET", SD + query)
    assert (problem["status"], problem["code"], problem["field"]) == (400, "bad_value", field)


async def test_until_the_book_is_settled_prometheus_keeps_the_targets_that_it_has(registry):
    problem = await registry.problem("GET", SD)
    assert (problem["status"], problem["code"]) == (503, "not_ready")
    registry.book.outlet.settle()
    assert await targets(registry) == []


async def test_head_has_no_body(settled):
    speaker = await settled.speaker()
    await speaker.attach()
    await speaker.register(an_entry())
    status, body, headers = await settled.request("HEAD", SD)
    assert (status, body, headers["Content-Type"]) == (200, None, "application/json")


async def test_a_large_book_is_written_in_parts_and_whole(settled):
    speaker = await settled.speaker()
    await speaker.attach()
    await speaker.register(
        *(an_entry(1 + n % 7, ip=f"10.0.{n // 250}.{n % 250 + 1}", service=f"s{n % 3}") for n in range(1500))
    )
    assert len(await addresses(settled)) == 1500
    assert len(set(await addresses(settled))) == 1500


def test_keys_that_are_spelled_alike_have_one_label_whatever_their_order():
    assert metadata_labels({"a.b": "1", "a_b": "2", "a-b": "3"}) == {"__meta_rollbook_metadata_a_b": "2"}
    assert metadata_labels({"a.b": "1", "a-b": "3"}) == {"__meta_rollbook_metadata_a_b": "3"}
    assert metadata_labels({"a-b": "3", "a.b": "1"}) == {"__meta_rollbook_metadata_a_b": "3"}
    assert metadata_labels({"": "0", "é": "1"}) == {
        "__meta_rollbook_metadata_": "0",
        "__meta_rollbook_metadata__": "1",
    }


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_every_label_is_one_that_prometheus_takes(metadata):
    instance = Instance(key="k", ip="10.0.0.1", port=1, metadata=metadata)
    labels = target_group(ORDERS, instance).labels
    for name in labels:
        assert name.isascii()
        assert name.replace("_", "a").isalnum()
    again = dict(reversed(metadata.items()))
    assert metadata_labels(again) == metadata_labels(metadata)
