"""The whole operator, kopf and all, against a small API server and a small registry."""

import asyncio
import contextlib
import random

import aiohttp
import pytest

from rollbook.problems import Problem
from rollbook_operator.app import Operator, Superseded
from rollbook_operator.settings import OperatorSettings

LEASE = "/apis/coordination.k8s.io/v1/namespaces/rollbook/leases/rollbook-operator"


@contextlib.asynccontextmanager
async def running(kube, kube_server, registry, tmp_path, *, interval=60.0):
    token = tmp_path / "token"
    token.write_text("proof\n")
    chosen = OperatorSettings(
        registry=(registry.address,),
        token_file=token,
        pod_namespace="rollbook",
        health_port=0,
        reconcile_interval=interval,
    )
    operator = Operator(chosen, kube, health_host="127.0.0.1", rng=random.Random(1))
    task = asyncio.create_task(operator.run())
    started = asyncio.create_task(operator.started.wait())
    await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
    # From here on nothing escapes both watches.
    await kube_server.until(lambda: task.done() or operator._stop.is_set() or len(kube_server.watchers) == 2)
    try:
        yield operator
    finally:
        started.cancel()
        operator.stop()
        async with asyncio.timeout(8):
            await task


async def get(operator, path):
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{operator.health_port}{path}") as response,
    ):
        return response.status, await response.text()


async def test_annotated_pods_are_entered_with_all_that_they_say(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.synced)
        (entry,) = registry.book.values()
        assert (entry.service, entry.ip, entry.port) == ("orders", "10.1.0.1", 8080)
        assert (entry.cluster, entry.owner, entry.ready) == ("zone-a", "uid-a-1", True)
        attach, identity = registry.attached[0]
        assert (attach.kind, attach.epoch, identity) == ("operator", 1, "Bearer proof")


async def test_what_changes_is_told_at_once_and_measured(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    async with running(kube, kube_server, registry, tmp_path) as operator:
        await eventually(lambda: registry.synced)
        kube_server.put(pod("a-1", status__conditions=[{"type": "Ready", "status": "False"}]))
        await eventually(lambda: [e.ready for e in registry.book.values()] == [False])
        kube_server.put(pod("a-1"))
        await eventually(lambda: [e.ready for e in registry.book.values()] == [True])
        await eventually(
            lambda: (
                operator.metrics.collector.get_sample_value(
                    "rollbook_operator_pod_event_to_registered_seconds_count"
                )
                == 2
            )
        )


async def test_a_terminating_pod_is_closed_and_fenced_once_it_is_confirmed_gone(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.services() == ["orders"])
        kube_server.put(pod("a-1", metadata__deletionTimestamp="2026-01-01T00:00:00Z"))
        await eventually(lambda: registry.closed == ["uid-a-1"] and not registry.book)
        assert not registry.fenced
        kube_server.delete("shop", "a-1")
        await eventually(lambda: registry.fenced == {"uid-a-1": ["10.1.0.1"]})


async def test_a_pod_that_leaves_the_label_selection_is_not_called_gone(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.services() == ["orders"])
        changed = pod("a-1", labels={})
        changed["metadata"]["annotations"]["rollbook.io/weight"] = "7"
        kube_server.put(changed)
        await eventually(lambda: [e.weight for e in registry.book.values()] == [7.0])
        assert not registry.fenced


async def test_pods_without_the_label_are_found_by_their_annotation(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.put(pod("early", labels={}))
    kube_server.put(pod("other", labels={}, annotations={}))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.synced)
        assert {e.owner for e in registry.book.values()} == {"uid-early"}
        kube_server.put(pod("late", labels={}))
        await eventually(lambda: {e.owner for e in registry.book.values()} == {"uid-early", "uid-late"})
        assert kube_server.count("GET", "/api/v1/namespaces/shop/pods/other") == 0


async def test_a_deletion_that_no_watch_told_is_found_by_the_reconcile(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path, interval=1.0) as operator:
        await eventually(lambda: registry.synced)
        kube_server.delete("shop", "a-1", silently=True)
        await eventually(lambda: registry.fenced == {"uid-a-1": ["10.1.0.1"]})
        await eventually(
            lambda: (
                operator.metrics.collector.get_sample_value(
                    "rollbook_operator_reconcile_diff", {"kind": "vanished"}
                )
                == 1
            )
        )
        assert not registry.book


async def test_the_list_is_read_to_its_last_page_before_the_registry_is_told_that_it_is_complete(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.page_size = 2
    for n in range(7):
        kube_server.put(pod(f"p-{n}", status__podIPs=[{"ip": f"10.1.0.{n + 1}"}]))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.synced)
        assert len(registry.book) == 7
        names = [type(f).__name__ for f in registry.told]
        assert names.index("Synced") > max(i for i, n in enumerate(names) if n == "Register")


async def test_a_list_that_fails_is_repeated_and_proves_nothing(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.failures["GET", "/api/v1/nodes"] = [500, 503]
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path) as operator:
        await eventually(lambda: registry.synced)
        assert registry.services() == ["orders"]
        assert (await get(operator, "/readyz"))[0] == 200


async def test_a_bad_annotation_is_told_on_the_pod_once(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    bad = pod("a-1")
    bad["metadata"]["annotations"]["rollbook.io/weight"] = "heavy"
    kube_server.put(bad)
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.synced and kube_server.events)
        kube_server.put(bad)
        kube_server.put(pod("b-1"))
        await eventually(lambda: registry.services() == ["orders"])
        (event,) = kube_server.events
        assert (event["reason"], event["type"]) == ("BadAnnotation", "Warning")
        assert event["regarding"]["uid"] == "uid-a-1"
        assert "rollbook.io/weight is 'heavy'; accepted: a number from 0 to 10000" in event["note"]


async def test_what_the_registry_refuses_is_told_on_the_pod_and_offered_again_by_the_next_reconcile(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    registry.refuse["orders"] = "limit_reached"
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path, interval=1.0):
        await eventually(lambda: kube_server.events)
        assert kube_server.events[0]["reason"] == "RegistrationRefused"
        assert "not that one" in kube_server.events[0]["note"]
        registry.refuse.clear()
        await eventually(lambda: registry.services() == ["orders"])


async def test_a_registry_that_starts_afresh_is_told_everything_again(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.synced == 1)
        registry.book.clear()
        registry.boot = "boot-2"
        await registry.disconnect()
        await eventually(lambda: registry.services() == ["orders"] and registry.synced == 2)


async def test_each_start_shows_a_higher_epoch(kube, kube_server, registry, tmp_path, eventually):
    for epoch in (1, 2):
        async with running(kube, kube_server, registry, tmp_path):
            await eventually(lambda: registry.synced)
        assert registry.attached[-1][0].epoch == epoch
        registry.synced = 0
    assert kube_server.objects[LEASE]["spec"]["leaseTransitions"] == 2


async def test_an_operator_that_was_superseded_ends_and_says_why(
    kube, kube_server, registry, tmp_path, eventually
):
    registry.refuse_attach = Problem("epoch_superseded", "epoch 9 has spoken")
    with pytest.raises(Superseded, match="epoch 9 has spoken"):
        async with running(kube, kube_server, registry, tmp_path) as operator:
            await eventually(operator._stop.is_set)


async def test_ending_leaves_the_book_as_it_is(kube, kube_server, registry, tmp_path, pod, eventually):
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.synced)
    assert registry.services() == ["orders"]
    assert not any(type(f).__name__ in {"Release", "Deregister"} for f in registry.told)


async def test_it_writes_nothing_but_its_lease_and_events(
    kube, kube_server, registry, tmp_path, pod, eventually
):
    kube_server.put(pod("a-1"))
    async with running(kube, kube_server, registry, tmp_path):
        await eventually(lambda: registry.synced)
        kube_server.put(pod("a-1", metadata__deletionTimestamp="2026-01-01T00:00:00Z"))
        kube_server.delete("shop", "a-1")
        await eventually(lambda: registry.fenced)
    writes = {(m, p) for m, p, _ in kube_server.requests if m not in {"GET", "WATCH"}}
    assert writes == {("POST", LEASE.rsplit("/", 1)[0])}
    read = {p for m, p, _ in kube_server.requests if m in {"GET", "WATCH"}}
    assert not any("namespaces" in p and "pods" not in p and "leases" not in p for p in read)
