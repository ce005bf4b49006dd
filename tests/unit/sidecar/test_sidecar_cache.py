from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from rollbook import events, frames, selector
from rollbook.digest import digest, spell
from rollbook.filters import Filter
from rollbook.model import ServiceList
from rollbook.problems import Problem
from rollbook.view import Change, View
from rollbook_sidecar.cache import MAX_FORMS, Cache


class Followed:
    def __init__(self, view):
        self.view = view


class FakeClient:
    """Follows services with real views, into which a test feeds frames."""

    def __init__(self):
        self.connected = True
        self.last_heard = 0.0
        self.followed = {}
        self.unfollowed = []
        self.refreshed = []
        self.cache = None

    def follow(self, service):
        return Followed(self.followed.setdefault(service, View(service)))

    def unfollow(self, service):
        del self.followed[service]
        self.unfollowed.append(service.name)

    def refresh(self, service):
        self.refreshed.append(service.name)

    def snapshot(self, service, *instances, revision="r.1", settled=True):
        frame = frames.Snapshot(
            service=service.name,
            revision=revision,
            digest=spell(digest(instances)),
            settled=settled,
            instances=list(instances),
        )
        change = self.followed[service].snapshot(frame)
        self.cache.heard(events.ListChanged(service, change, 0.0))


class Bench:
    def __init__(self, *, most=1000, patience=2.0):
        self.client = FakeClient()
        self.now = 100.0
        self.cache = Cache(self.client, boot="side", most=most, patience=patience, clock=lambda: self.now)
        self.client.cache = self.cache

    async def know(self, service, *instances, **options):
        """Ask for a service and have its first list come."""
        asking = asyncio.create_task(self.cache.first(service))
        await asyncio.sleep(0)
        self.client.snapshot(service, *instances, **options)
        return await asking


@pytest.fixture
async def bench():
    return Bench()


async def test_concurrent_first_asks_share_one_subscription_and_one_list(bench, service, instance):
    orders = service("orders")
    asking = [asyncio.create_task(bench.cache.first(orders)) for _ in range(5)]
    await asyncio.sleep(0)
    assert list(bench.client.followed) == [orders]
    bench.client.snapshot(orders, instance())
    found = await asyncio.gather(*asking)
    assert len({id(cached) for cached in found}) == 1
    assert found[0].known.instances == (instance(),)


async def test_no_list_in_time_is_a_problem_and_never_an_empty_list(service):
    bench = Bench(patience=0.01)
    with pytest.raises(Problem) as refused:
        await bench.cache.first(service("orders"))
    assert refused.value.code == "registry_unreachable"
    assert bench.cache.get(service("orders")) is None


async def test_without_a_connection_only_the_first_ask_waits(service, instance):
    bench = Bench(patience=0.01)
    bench.client.connected = False
    with pytest.raises(Problem):
        await bench.cache.first(service("orders"))
    bench.cache._patience = 3600.0
    with pytest.raises(Problem) as refused:
        await asyncio.wait_for(bench.cache.first(service("orders")), 5)
    assert refused.value.code == "registry_unreachable"
    # With a connection waiting makes sense again.
    bench.client.connected = True
    cached = await bench.know(service("orders"), instance())
    assert cached.known.instances == (instance(),)


async def test_an_empty_list_from_the_registry_is_an_answer(bench, service):
    cached = await bench.know(service("orders"))
    assert cached.known.instances == ()


async def test_the_least_recently_asked_is_dropped(service):
    bench = Bench(most=2)
    a, b, c = service("a"), service("b"), service("c")
    await bench.know(a)
    await bench.know(b)
    assert bench.cache.get(a) is not None
    await bench.know(c)
    assert bench.client.unfollowed == ["b"]
    assert bench.cache.get(b) is None
    assert bench.cache.get(a) is not None
    assert len(bench.cache) == 2


async def test_what_is_pinned_or_waited_for_is_not_dropped(service):
    bench = Bench(most=2)
    bench.cache.pin([service("pinned")])
    waiting = asyncio.create_task(bench.cache.first(service("awaited")))
    await asyncio.sleep(0)
    with pytest.raises(Problem) as refused:
        await bench.cache.first(service("more"))
    assert refused.value.code == "limit_reached"
    assert "--max-services" in refused.value.accepted
    bench.client.snapshot(service("awaited"))
    await waiting
    await bench.know(service("more"))
    assert bench.client.unfollowed == ["awaited"]


async def test_a_revision_names_one_content(bench, service, instance):
    orders = service("orders")
    cached = await bench.know(orders, instance(), revision="r.1")
    first = cached.known
    # The same list under another revision of the registry's: nothing changed here.
    bench.client.snapshot(orders, instance(), revision="other.9")
    assert cached.known is first
    bench.client.snapshot(orders, instance(), instance(81), revision="other.9")
    assert cached.known.revision != first.revision
    assert first.instances == (instance(),)


async def test_a_revision_changes_when_held_instances_are_let_go(bench, service, instance):
    orders = service("orders")
    cached = await bench.know(orders, instance())
    bench.client.snapshot(orders, revision="young.1", settled=False)
    held = cached.known
    assert held.instances == (instance(),)
    assert held.settled is False
    change = cached.view.settle()
    bench.cache.heard(events.ListChanged(orders, change, 0.0))
    assert cached.known.instances == ()
    assert cached.known.revision != held.revision


async def test_settling_without_a_change_is_noticed_at_the_next_lookup(bench, service, instance):
    cached = await bench.know(service("orders"), instance(), settled=False)
    before = cached.known
    assert not cached.view.settle()
    assert bench.cache.get(service("orders")) is cached
    assert cached.known.settled is True
    assert cached.known.revision != before.revision


async def test_a_service_that_was_dropped_never_gets_an_old_revision_again(service, instance):
    bench = Bench(most=1)
    revisions = set()
    for _ in range(3):
        revisions.add((await bench.know(service("a"), instance())).known.revision)
        revisions.add((await bench.know(service("b"))).known.revision)
    assert len(revisions) == 6


async def test_a_list_is_encoded_once_a_change(bench, service, instance):
    orders = service("orders")
    cached = await bench.know(orders, instance())
    body = cached.known.body()
    assert cached.known.body() is body
    bench.client.snapshot(orders, instance(81), revision="r.2")
    assert cached.known.body() != body


async def test_filters(bench, service, instance):
    cached = await bench.know(
        service("orders"),
        instance(1, cluster="a"),
        instance(2, cluster="b", healthy=False),
        instance(3, cluster="c", metadata={"version": "2"}),
    )

    def ports(**wanted):
        decoded = msgspec.json.decode(cached.known.body(Filter(**wanted)), type=ServiceList)
        assert decoded.revision == cached.known.revision
        return [i.port for i in decoded.instances]

    assert ports() == [1, 2, 3]
    assert ports(clusters=frozenset("a")) == [1]
    assert ports(clusters=frozenset("ab")) == [1, 2]
    assert ports(healthy=True) == [1, 3]
    assert ports(healthy=False) == [2]
    assert ports(clusters=frozenset("b"), healthy=True) == []
    assert ports(selector=selector.parse("version=2")) == [3]


async def test_forms_that_are_kept_encoded_are_bounded(bench, service, instance):
    cached = await bench.know(service("orders"), instance())
    for n in range(MAX_FORMS + 10):
        wanted = selector.parse(f"k={n}")
        cached.known.body(Filter(selector=wanted))
        cached.known.eligible(wanted)
        cached.strategy("random", random.Random(0), wanted)
    assert len(cached.known._bodies) == MAX_FORMS
    assert len(cached.known._eligible) == MAX_FORMS
    assert len(cached._strategies) == MAX_FORMS
    newest = selector.parse(f"k={MAX_FORMS + 9}")
    assert cached.known.eligible(newest) is cached.known.eligible(newest)


async def test_age_is_the_time_since_the_registry_was_heard(bench):
    bench.client.last_heard = 40.0
    assert bench.cache.age == 0.0
    bench.client.connected = False
    assert bench.cache.age == 60.0
    bench.client.last_heard = 0.0
    assert bench.cache.age == 0.0


async def test_differing_answers_at_once_if_the_revision_is_another(bench, service):
    cached = await bench.know(service("orders"))
    assert await bench.cache.differing(cached, "older", 3600.0) is cached.known


async def test_differing_waits_for_a_change(bench, service, instance):
    orders = service("orders")
    cached = await bench.know(orders)
    waiting = asyncio.create_task(bench.cache.differing(cached, cached.known.revision, 3600.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    bench.client.snapshot(orders, instance(), revision="r.2")
    assert (await asyncio.wait_for(waiting, 5)).instances == (instance(),)


async def test_differing_gives_up_with_the_same_list(bench, service):
    cached = await bench.know(service("orders"))
    assert await bench.cache.differing(cached, cached.known.revision, 0.01) is cached.known


async def test_closing_answers_everybody_who_waits(bench, service):
    cached = await bench.know(service("orders"))
    polling = asyncio.create_task(bench.cache.differing(cached, cached.known.revision, 3600.0))
    asking = asyncio.create_task(bench.cache.first(service("other")))
    await asyncio.sleep(0)
    bench.cache.close()
    assert await asyncio.wait_for(polling, 5) is cached.known
    with pytest.raises(Problem):
        await asyncio.wait_for(asking, 1)


async def test_rereading_compares_every_list(bench, service):
    await bench.know(service("a"))
    await bench.know(service("b"))
    bench.cache.reread()
    assert bench.client.refreshed == ["a", "b"]


async def test_events_of_what_is_not_followed_are_nothing(bench, service):
    bench.cache.heard(events.ListChanged(service("gone"), Change([], []), 0.0))
    assert len(bench.cache) == 0
