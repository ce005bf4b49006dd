"""The epoch, and complaints."""

import asyncio
import datetime as dt
import random

import pytest

from rollbook.kube import KubeError
from rollbook_operator import complaints, lease, retry
from rollbook_operator.complaints import Complaints, make_event

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
PATH = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/rollbook-operator"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retry, "FIRST", 0.001)


async def take(kube, holder="me"):
    return await lease.take_over(
        kube, namespace="ns", name="rollbook-operator", holder=holder, now=lambda: NOW, rng=random.Random(1)
    )


async def test_the_first_epoch_is_one_and_each_takeover_adds_one(kube, kube_server):
    assert [await take(kube, "a"), await take(kube, "b")] == [1, 2]
    spec = kube_server.objects[PATH]["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 2)
    assert spec["acquireTime"] == "2026-01-02T03:04:05.000678Z"


async def test_what_else_the_lease_says_is_kept(kube, kube_server):
    await take(kube)
    kube_server.objects[PATH]["metadata"]["labels"] = {"x": "y"}
    kube_server.objects[PATH]["spec"]["leaseDurationSeconds"] = 15
    await take(kube)
    assert kube_server.objects[PATH]["metadata"]["labels"] == {"x": "y"}
    assert kube_server.objects[PATH]["spec"]["leaseDurationSeconds"] == 15


async def test_two_that_take_it_at_once_get_different_epochs(kube, kube_server):
    epochs = await asyncio.gather(*(take(kube, f"h{n}") for n in range(5)))
    assert sorted(epochs) == [1, 2, 3, 4, 5]


async def test_errors_are_retried_and_a_missing_right_is_not(kube, kube_server):
    kube_server.failures["GET", PATH] = [500, 429]
    assert await take(kube) == 1
    kube_server.failures["GET", PATH] = [403]
    with pytest.raises(KubeError, match="403"):
        await take(kube)


def test_an_event_names_the_pod_and_fits_the_limits():
    event = make_event(
        namespace="shop",
        name="p" * 253,
        uid="u",
        reason="BadAnnotation",
        note="€" * 2000,
        instance="me",
        now=NOW,
        suffix="abc",
    )
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "shop",
        "name": "p" * 253,
        "uid": "u",
    }
    assert len(event["note"].encode()) <= 1024
    assert event["note"].endswith("…")
    assert len(event["metadata"]["name"]) <= 253
    assert event["eventTime"] == "2026-01-02T03:04:05.000678Z"


async def test_each_complaint_is_posted_once_and_survives_errors(kube, kube_server, monkeypatch):
    monkeypatch.setattr(complaints, "REMEMBERED", 2)
    kube_server.failures["POST", "/apis/events.k8s.io/v1/namespaces/shop/events"] = [500]
    told = Complaints(kube, instance="me", now=lambda: NOW, rng=random.Random(1))
    task = asyncio.create_task(told.run())

    def warn(uid, note):
        return told.warn(namespace="shop", name="a", uid=uid, reason="BadAnnotation", note=note)

    assert [warn("u1", "x"), warn("u1", "x"), warn("u1", "y"), warn("u2", "x")] == [True, False, True, True]
    await told.posted()
    task.cancel()
    assert [(e["regarding"]["uid"], e["note"]) for e in kube_server.events] == [
        ("u1", "x"),
        ("u1", "y"),
        ("u2", "x"),
    ]
    # Bounded: what was said longest ago is forgotten.
    assert warn("u1", "x")
