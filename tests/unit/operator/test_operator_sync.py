"""From what is seen to what the registry is told: order, conflation, staleness, proof."""

import asyncio
import copy
import dataclasses
import random
import types

import msgspec
import pytest

from rollbook.events import Confirmed, Rejected
from rollbook.kube import KubeError
from rollbook.problems import Problem
from rollbook_operator import desired, retry
from rollbook_operator.metrics import Metrics
from rollbook_operator.queue import ConflatingQueue
from rollbook_operator.sync import REPEAT_FOR, Sync


class Book:
    def __init__(self):
        self.calls = []

    def put(self, *entries):
        self.calls.append(("put", [(e.owner, e.port) for e in entries]))

    def drop(self, *refs):
        self.calls.append(("drop", [(r.owner, r.port) for r in refs]))

    def close_pods(self, *uids):
        self.calls.append(("close", list(uids)))

    def fence_pods(self, *pods):
        self.calls.append(("fence", [(p.uid, tuple(p.ips)) for p in pods]))

    def take(self):
        calls, self.calls = self.calls, []
        return calls


class Cluster:
    def __init__(self):
        self.pods = {}
        self.zones = {"node-1": "zone-a"}
        self.errors = []
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def pod(self, namespace, name):
        self.asked += 1
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return copy.deepcopy(self.pods.get((namespace, name)))

    def known_zone(self, node):
        return self.zones.get(node) if node else ""

    async def ask_zone(self, node):
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.zones[node] = "asked"


class Complaints:
    def __init__(self):
        self.notes = []

    def warn(self, *, namespace, name, uid, reason, note):
        self.notes.append((uid, reason, note))


@pytest.fixture
async def rig(monkeypatch):
    monkeypatch.setattr(retry, "FIRST", 0.001)
    clock = types.SimpleNamespace(now=1000.0)
    book, cluster, complaints, metrics = Book(), Cluster(), Complaints(), Metrics()
    sync = Sync(book, cluster, complaints, metrics, clock=lambda: clock.now, rng=random.Random(1))
    task = asyncio.create_task(sync.run())
    yield types.SimpleNamespace(
        sync=sync, book=book, cluster=cluster, complaints=complaints, metrics=metrics, clock=clock
    )
    assert not task.done()
    task.cancel()


def at(pod, version):
    pod["metadata"]["resourceVersion"] = str(version)
    return pod


async def test_in_one_batch_additions_come_before_removals(rig, pod):
    rig.sync.seen(at(pod("old"), 1))
    await rig.sync.settle()
    rig.book.take()
    rig.sync.seen(at(pod("old", metadata__deletionTimestamp="now"), 2))
    rig.sync.seen(at(pod("new"), 3))
    await rig.sync.settle()
    assert rig.book.take() == [
        ("put", [("uid-new", 8080)]),
        ("close", ["uid-old"]),
        ("drop", [("uid-old", 8080)]),
    ]


async def test_an_entry_that_cannot_be_sent_keeps_only_its_own_pod_out(rig, pod, monkeypatch):
    desire = desired.desire

    def odd(seen, zone):
        wanted = desire(seen, zone)
        if wanted.uid != "uid-odd":
            return wanted
        entries = tuple(msgspec.structs.replace(e, port="80") for e in wanted.entries)
        return dataclasses.replace(wanted, entries=entries)

    monkeypatch.setattr(desired, "desire", odd)
    rig.sync.seen(at(pod("odd"), 1))
    rig.sync.seen(at(pod("a"), 2))
    await rig.sync.settle()
    assert rig.book.take() == [("put", [("uid-a", 8080)])]
    assert set(rig.sync.pods) == {"uid-a"}


async def test_what_is_seen_late_but_is_older_changes_nothing(rig, pod):
    rig.sync.seen(at(pod("a", metadata__deletionTimestamp="now"), 10))
    await rig.sync.settle()
    rig.book.take()
    rig.sync.seen(at(pod("a"), 9))
    await rig.sync.settle()
    assert rig.book.take() == []
    # Within the queue too.
    rig.sync.seen(at(pod("b", metadata__deletionTimestamp="now"), 10))
    rig.sync.seen(at(pod("b"), 9))
    await rig.sync.settle()
    assert rig.book.take() == [("close", ["uid-b"])]


async def test_many_changes_of_one_pod_are_told_once(rig, pod):
    for version in range(100):
        rig.sync.seen(at(pod("a"), version))
    await rig.sync.settle()
    assert rig.book.take() == [("put", [("uid-a", 8080)])]


async def test_what_has_not_changed_is_not_told_again(rig, pod):
    for version in (1, 2):
        rig.sync.seen(at(pod("a"), version))
        await rig.sync.settle()
    assert len(rig.book.take()) == 1


async def test_only_the_api_servers_word_fences(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    await rig.sync.settle()
    rig.book.take()
    rig.cluster.pods["shop", "a"] = at(pod("a"), 2)
    rig.sync.deleted(at(pod("a"), 2))
    await rig.sync.settle()
    assert rig.book.take() == []
    del rig.cluster.pods["shop", "a"]
    rig.sync.deleted(at(pod("a"), 3))
    await rig.sync.settle()
    assert rig.book.take() == [("fence", [("uid-a", ("10.1.0.1",))]), ("drop", [("uid-a", 8080)])]
    assert not rig.sync.pods


async def test_an_error_is_no_proof(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    await rig.sync.settle()
    rig.book.take()
    rig.cluster.pods["shop", "a"] = at(pod("a"), 2)
    rig.cluster.errors = [KubeError(500, "", ""), KubeError(403, "", ""), TimeoutError(), OSError()]
    rig.sync.deleted(at(pod("a"), 2))
    await rig.sync.settle()
    assert rig.cluster.asked == 5
    assert rig.book.take() == []


async def test_a_successor_of_the_same_name_proves_that_the_pod_is_gone_and_is_entered(rig, pod):
    rig.sync.seen(at(pod("a", uid="first"), 1))
    await rig.sync.settle()
    rig.book.take()
    rig.cluster.pods["shop", "a"] = at(pod("a", uid="second"), 9)
    rig.sync.deleted(at(pod("a", uid="first"), 8))
    await rig.sync.settle()
    assert rig.book.take() == [
        ("fence", [("first", ("10.1.0.1",))]),
        ("drop", [("first", 8080)]),
        ("put", [("second", 8080)]),
    ]


async def test_who_is_gone_does_not_come_back(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    await rig.sync.settle()
    rig.sync.look_up("uid-a", namespace="shop", name="a")
    await rig.sync.settle()
    rig.book.take()
    rig.sync.seen(at(pod("a"), 99))
    rig.sync.deleted(at(pod("a"), 99))
    await rig.sync.settle()
    assert rig.book.take() == []


async def test_a_pod_that_was_found_dead_is_fenced_without_its_addresses(rig, pod):
    """Somebody else may live there by now."""
    rig.sync.seen(at(pod("a", status__phase="Succeeded"), 1))
    await rig.sync.settle()
    assert rig.book.take() == [("fence", [("uid-a", ())])]


async def test_a_host_network_pods_address_is_never_fenced(rig, pod):
    rig.sync.seen(at(pod("a", spec__hostNetwork=True), 1))
    await rig.sync.settle()
    rig.sync.look_up("uid-a", namespace="shop", name="a")
    await rig.sync.settle()
    assert ("fence", [("uid-a", ())]) in rig.book.take()


async def test_a_pod_whose_annotations_are_taken_away_leaves_the_book_and_is_forgotten(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    rig.sync.seen(at(pod("stranger", annotations={}), 1))
    await rig.sync.settle()
    rig.sync.seen(at(pod("a", annotations={}), 2))
    await rig.sync.settle()
    assert rig.book.take()[-1] == ("drop", [("uid-a", 8080)])
    assert not rig.sync.pods


async def test_the_deletion_of_a_stranger_asks_nobody(rig, pod):
    rig.sync.deleted(at(pod("stranger", annotations={}), 1))
    await rig.sync.settle()
    assert rig.cluster.asked == 0


async def test_an_unknown_node_is_asked_for_and_others_do_not_wait(rig, pod, eventually):
    rig.cluster.gate.clear()
    rig.sync.seen(at(pod("far", spec__nodeName="node-2"), 1))
    rig.sync.seen(at(pod("near"), 1))
    await eventually(lambda: rig.book.calls == [("put", [("uid-near", 8080)])])
    rig.cluster.errors = [KubeError(503, "", "")]
    rig.cluster.gate.set()
    await rig.sync.settle()
    (entry,) = rig.sync.pods["uid-far"].entries.values()
    assert entry.cluster == "asked"


async def test_an_odd_object_does_not_keep_the_others_out(rig, pod):
    rig.sync.seen(at(pod("odd", status__podIPs=[{"ip": "not an address"}]), 1))
    rig.sync.seen(at(pod("even"), 2))
    await rig.sync.settle()
    assert rig.book.take() == [("put", [("uid-even", 8080)])]


async def test_the_latency_runs_from_the_first_event_to_the_acknowledgement(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    rig.clock.now += 0.25
    rig.sync.seen(at(pod("a"), 2))
    await rig.sync.settle()
    (ref,) = rig.sync.pods["uid-a"].entries
    rig.clock.now += 0.25
    rig.sync.handle(Confirmed((ref,)))
    rig.sync.handle(Confirmed((ref,)))
    name = "rollbook_operator_pod_event_to_registered_seconds"
    assert rig.metrics.collector.get_sample_value(f"{name}_count") == 1
    assert rig.metrics.collector.get_sample_value(f"{name}_sum") == 0.5


async def test_a_refusal_is_told_and_tried_again_by_the_next_reconcile(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    await rig.sync.settle()
    (ref,) = rig.sync.pods["uid-a"].entries
    rig.sync.handle(Rejected(ref, Problem("limit_reached", "the book is full")))
    assert rig.complaints.notes == [
        ("uid-a", "RegistrationRefused", "the registry refused orders:8080: the book is full")
    ]
    rig.book.take()
    rig.sync.seen(at(pod("a"), 2))
    await rig.sync.settle()
    assert rig.book.take() == []
    rig.sync.begin_reconcile()
    rig.sync.seen(at(pod("a"), 2), reconciling=True)
    await rig.sync.settle()
    assert rig.book.take() == [("put", [("uid-a", 8080)])]
    rig.sync.seen(at(pod("a"), 3))
    await rig.sync.settle()
    assert rig.book.take() == []


async def test_a_refusal_because_the_pod_is_ending_is_no_news(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    await rig.sync.settle()
    (ref,) = rig.sync.pods["uid-a"].entries
    rig.sync.handle(Rejected(ref, Problem("pod_terminating", "")))
    assert rig.complaints.notes == []


async def test_a_reconcile_counts_what_no_event_had_told(rig, pod):
    rig.sync.seen(at(pod("a"), 1))
    rig.sync.seen(at(pod("gone"), 1))
    await rig.sync.settle()
    rig.sync.begin_reconcile()
    changed = at(pod("a"), 2)
    changed["metadata"]["annotations"]["rollbook.io/weight"] = "3"
    rig.sync.seen(changed, reconciling=True)
    rig.sync.seen(at(pod("b"), 3), reconciling=True)
    rig.sync.look_up("uid-gone", namespace="shop", name="gone", reconciling=True)
    await rig.sync.settle()
    assert +rig.sync.differences == {"missing": 1, "different": 1, "vanished": 1}


async def test_old_fences_are_forgotten(rig, pod):
    rig.sync.seen(at(pod("a", status__phase="Failed"), 1))
    await rig.sync.settle()
    rig.clock.now += REPEAT_FOR
    assert rig.sync.outdated_fences() == []
    rig.clock.now += 1
    assert rig.sync.outdated_fences() == ["uid-a"]
    assert rig.sync.outdated_fences() == []


async def test_the_queue_keeps_the_last_value_the_first_time_and_the_order():
    queue = ConflatingQueue()
    for key, value, since in [("a", 1, 10.0), ("b", 2, 11.0), ("a", 3, 12.0)]:
        queue.put(key, value, since)
    assert len(queue) == 2
    assert await queue.take(1) == [("a", 3, 10.0)]
    assert await queue.take(9) == [("b", 2, 11.0)]
    waiting = asyncio.create_task(queue.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.put("c", 1, 1.0)
    assert await waiting == [("c", 1, 1.0)]


def test_waiting_grows_and_stays_bounded():
    rng = types.SimpleNamespace(uniform=lambda low, high: high)
    assert [retry.delay(n, rng) for n in (0, 1, 2)] == [0.2, 0.4, 0.8]
    assert retry.delay(10_000, rng) == 30.0
