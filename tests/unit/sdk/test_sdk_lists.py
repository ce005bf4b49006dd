"""Lists at the SDK: picking from parts of them, following what changes, and names over HTTP."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random

import aiohttp
import msgspec
import pytest

from registrykit import ORDERS, a_ref, an_entry, key_of
from rollbook import Client, Problem, directory, events
from rollbook.balance import RoundRobin
from rollbook.digest import digest, spell
from rollbook.following import Following, Watcher
from rollbook.frames import Delta, Followed, Snapshot, Vanished
from rollbook.model import Instance, ServiceCount, ServicePage
from rollbook.names import instance_key
from rollbook.patterns import Pattern
from rollbook.subscription import Subscription
from rollbook.view import Change, View
from serverkit import until


def at(port, **fields):
    key = instance_key(ip="10.0.0.1", port=port, cluster="DEFAULT")
    return Instance(**{"key": key, "ip": "10.0.0.1", "port": port, **fields})


class Listed:
    """A subscription, and what a session does to it."""

    def __init__(self, *instances, protect_threshold=None):
        self.view = View(ORDERS)
        self.state = Following()
        self.subscription = Subscription(self.view, self.state, RoundRobin(), random.Random(1))
        self.n = 0
        if instances:
            self.snapshot(*instances, protect_threshold=protect_threshold)

    def snapshot(self, *instances, protect_threshold=None):
        frame = Snapshot(
            service="orders", revision=f"b.{self.n}", digest=spell(digest(instances)), settled=True,
            instances=list(instances), protect_threshold=protect_threshold,
        )  # fmt: skip
        self.state.take(self.view.snapshot(frame))

    def change(self, *put, drop=(), protect_threshold=None):
        now = {i.key: i for i in self.view.instances} | {i.key: i for i in put}
        for instance in drop:
            del now[instance.key]
        self.n += 1
        frame = Delta(
            service="orders", base=f"b.{self.n - 1}", revision=f"b.{self.n}",
            digest=spell(digest(now.values())), put=list(put), drop=[i.key for i in drop],
            protect_threshold=protect_threshold,
        )  # fmt: skip
        self.state.take(self.view.delta(frame))

    def picked(self, of=None, times=12):
        return {(of or self.subscription).pick().port for _ in range(times)}


def code(call):
    with pytest.raises(Problem) as refused:
        call()
    return refused.value.code


# --- picks ----------------------------------------------------------------------------------------------


def test_a_list_that_has_not_come_is_not_an_empty_one():
    listed = Listed()
    assert code(listed.subscription.pick) == "not_ready"
    listed.state.answer(Problem("limit_reached", "too many"))
    assert code(listed.subscription.pick) == "limit_reached"
    listed.snapshot()
    assert code(listed.subscription.pick) == "no_instance"
    listed.change(at(1))
    assert listed.picked() == {1}


def test_picks_follow_every_change():
    listed = Listed(at(1), at(2), at(3))
    assert listed.picked() == {1, 2, 3}
    listed.change(at(1, healthy=False), at(2, enabled=False))
    assert listed.picked() == {3}
    listed.change(at(3, weight=0.0), at(4))
    assert listed.picked() == {4}
    listed.change(at(1), drop=[at(4)])
    assert listed.picked() == {1}
    listed.change(drop=[at(1)])
    with pytest.raises(Problem, match="in all it has 2"):
        listed.subscription.pick()


def test_a_protected_list_is_picked_from_as_a_whole():
    listed = Listed(at(1), at(2, healthy=False), at(3, healthy=False))
    healthy = listed.subscription.where(healthy=True)
    assert listed.picked() == {1}
    # The threshold alone may be all that changes.
    listed.change(protect_threshold=0.5)
    assert listed.picked() == {1, 2, 3}
    assert listed.picked(healthy) == {1}
    assert listed.picked(listed.subscription.where(healthy=False)) == {2, 3}
    listed.change(protect_threshold=0.2)
    assert listed.picked() == {1}


def test_a_part_is_picked_from_by_itself():
    a, b = (
        [at(10 * n + 1, cluster=zone, metadata={"v": "1"}), at(10 * n + 2, cluster=zone, metadata={"v": "2"})]
        for n, zone in enumerate(("zone-a", "zone-b"), 1)
    )
    listed = Listed(*a, *b)
    orders = listed.subscription
    near = orders.where(cluster="zone-a")
    assert [i.port for i in near.instances] == [11, 12]
    assert listed.picked(near) == {11, 12}
    assert listed.picked(orders.where(cluster="zone-a,zone-b")) == {11, 12, 21, 22}
    assert listed.picked(orders.where(selector="v=2")) == {12, 22}
    assert listed.picked(orders.where(cluster="zone-b", selector="v in (2,3)")) == {22}
    assert listed.picked(orders.where(strategy="random"), times=100) == {11, 12, 21, 22}
    assert orders.where().instances is orders.instances
    listed.change(at(11, cluster="zone-a", healthy=False), at(12, cluster="zone-a", healthy=False))
    with pytest.raises(Problem, match="among those that are selected"):
        near.pick()
    # Its instances are those that are meant, whatever their health.
    assert len(near.instances) == 2
    assert listed.picked() == {21, 22}
    # Picks of a part are no turns of the whole.
    turns = [orders.pick().port for _ in range(2)]
    orders.where(cluster="zone-b").pick()
    assert [orders.pick().port for _ in range(2)] == turns


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"cluster": "a b"}, "cluster"), ({"selector": "a in"}, "selector"), ({"strategy": "best"}, "strategy")],
)
def test_a_part_that_cannot_be_is_refused(wrong, field):
    with pytest.raises(Problem) as refused:
        Listed(at(1)).subscription.where(**wrong)
    assert refused.value.field == field


class First:
    """A user's own strategy."""

    def pick(self, instances):
        return instances[0] if instances else None


async def test_a_strategy_may_be_named_or_be_ones_own(registry):
    client = await registry.client()
    async with client.register(*(an_entry(n, weight=float(n)) for n in (1, 2, 3))):
        orders = await client.subscribe("orders", strategy="round-robin")
        await orders.wait_for(lambda instances: len(instances) == 3)
        assert collections.Counter(orders.pick().port for _ in range(6)) == {1: 2, 2: 2, 3: 2}
        assert await client.subscribe("orders", strategy=First()) is orders
        assert {orders.pick().port for _ in range(6)} == {orders.instances[0].port}
        # Who says none leaves it as it is.
        await client.subscribe("orders")
        assert len({orders.pick().port for _ in range(6)}) == 1


# --- what changes ---------------------------------------------------------------------------------------


async def test_changes_tell_what_was_added_changed_and_removed():
    listed = Listed(at(1), at(2))
    changes = aiter(listed.subscription.changes())
    assert await anext(changes) == ([at(1), at(2)], [], [])
    listed.change(at(2, weight=5.0), at(3), drop=[at(1)])
    assert await anext(changes) == ([at(3)], [at(2, weight=5.0)], [at(1)])


async def test_who_is_slow_gets_what_is_different_from_what_it_was_told():
    listed = Listed(at(1), at(2), at(3))
    changes = aiter(listed.subscription.changes())
    await anext(changes)
    listed.change(at(1, weight=2.0), at(4))
    listed.change(at(1), at(2, healthy=False), drop=[at(4)])
    listed.change(at(2), drop=[at(3)])
    listed.change(at(3, weight=7.0))
    # 1 and 2 are as they were, 4 came and went, 3 went and came back as another.
    assert await anext(changes) == ([], [at(3, weight=7.0)], [])
    waiting = asyncio.ensure_future(anext(changes))
    listed.change(at(5))
    listed.change(drop=[at(5)])
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    listed.change(at(6))
    assert await waiting == ([at(6)], [], [])


async def test_each_who_follows_changes_has_its_own_pace_and_leaves_nothing_behind():
    listed = Listed(at(1))
    quick, slow = (aiter(listed.subscription.changes()) for _ in range(2))
    await anext(quick)
    listed.change(at(2))
    assert (await anext(quick)).added == [at(2)]
    assert (await anext(slow)).added == [at(1), at(2)]
    await quick.aclose()
    await slow.aclose()
    assert not listed.state.watchers


async def test_changes_of_a_list_that_has_not_come_begin_with_it():
    listed = Listed()
    changes = aiter(listed.subscription.changes())
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    listed.snapshot(at(1))
    assert (await waiting).added == [at(1)]
    # A fresh snapshot tells only what it changes.
    listed.snapshot(at(2), at(1, weight=2.0))
    assert await anext(changes) == ([at(2)], [at(1, weight=2.0)], [])


async def test_changes_over_a_real_session(registry):
    client, writer = await registry.client(), await registry.client()
    orders = await client.subscribe("orders")
    seen = []

    def ports(instances):
        return [i.port for i in instances]

    async def follow():
        async for added, changed, removed in orders.changes():
            seen.append([ports(added), ports(changed), ports(removed)])

    following = asyncio.create_task(follow())
    async with writer.register(an_entry(1)):
        await until(lambda: seen == [[[1], [], []]])
        writer.set_down(a_ref(1))
        await until(lambda: seen[1:] == [[[], [1], []]])
    await until(lambda: seen[2:] == [[[], [], [1]]])
    client.unfollow(ORDERS)
    await asyncio.wait_for(following, 10)


# --- names ----------------------------------------------------------------------------------------------


async def test_names_of_all_services_come_over_http(registry):
    client = await registry.client(http_port=registry.server.http_port)
    assert await client.services() == []
    entries = [an_entry(1), an_entry(2), an_entry(1, service="stock", group="g"), an_entry(9, namespace="n")]
    async with client.register(*entries):
        client.set_down(a_ref(2))
        orders = await client.subscribe("orders")
        await orders.wait_for(lambda instances: [i.healthy for i in instances] == [True, False])
        found = await client.services()
        assert found == [
            ServiceCount(namespace="public", group="DEFAULT_GROUP", service="orders", instances=2, healthy=1),
            ServiceCount(namespace="public", group="g", service="stock", instances=1, healthy=1),
        ]
        assert await client.services(group="g") == found[1:]
        assert [s.service for s in await client.services(namespace="n")] == ["orders"]


async def test_where_no_registry_answers_http_is_named(registry):
    client = await registry.client(http_port=registry.server.session_port)
    with pytest.raises(Problem) as refused:
        await client.services()
    assert refused.value.code in {"not_found", "registry_unreachable"}
    async with contextlib.AsyncExitStack() as stack:
        deaf = await stack.enter_async_context(Client(registry.address, http_port=1))
        with pytest.raises(Problem, match=r"127\.0\.0\.1:1") as refused:
            await deaf.services()
    assert refused.value.code == "registry_unreachable"
    assert "http_port" in refused.value.accepted
    with pytest.raises(Problem, match="http_port is 0"):
        Client(registry.address, http_port=0)


def page(names, *, total, number):
    services = [ServiceCount(namespace="n", group="g", service=n, instances=1, healthy=1) for n in names]
    return 200, msgspec.json.encode(ServicePage(total=total, page=number, size=1000, services=services))


async def test_all_pages_are_read_and_each_service_is_told_once():
    asked = []

    async def get(url, query, timeout):
        asked.append((url, dict(query)))
        first = [f"a{n}" for n in range(1000)]
        return page(first if query["page"] == "1" else ["a999", "b"], total=1001, number=int(query["page"]))

    found = await directory.services(get, "http://r:1", namespace="n", group=None)
    assert [s.service for s in found] == [*(f"a{n}" for n in range(1000)), "b"]
    assert asked == [("http://r:1/services", {"namespace": "n", "size": "1000", "page": p}) for p in "12"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((503, b'{"code":"not_ready","detail":"it starts"}'), "not_ready"),
        ((200, b"<html>"), "registry_unreachable"),
        ((502, b"<html>"), "registry_unreachable"),
        (aiohttp.ClientPayloadError(), "registry_unreachable"),
        (TimeoutError(), "registry_unreachable"),
    ],
)
async def test_what_is_no_list_of_services_is_a_problem(answer, code):
    async def get(url, query, timeout):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(Problem) as refused:
        await directory.services(get, "http://r:1", namespace="n", group=None)
    assert refused.value.code == code


async def test_patterns_and_names_share_their_lists(registry):
    client = await registry.client()
    async with client.register(an_entry(1, service="shop-a")):
        shops = await client.subscribe_matching("shop-*")
        assert await client.subscribe("shop-a") is shops.services[key_of("shop-a")]


def test_what_comes_and_goes_unseen_costs_a_watcher_nothing():
    first, last = at(1), at(2)
    watcher = Watcher([first.key])
    watcher.look({first.key: first}.get)
    for port in range(1000, 2000):
        passing = at(port)
        watcher.touch(Change([passing], []))
        watcher.touch(Change([], [passing.key]))
    watcher.touch(Change([last], [first.key]))
    assert set(watcher._touched) == {first.key, last.key}
    assert watcher.look({last.key: last}.get) == ([last], [], [first])


async def test_who_follows_a_service_anew_while_its_end_is_told_gets_a_list_that_lives():
    client = Client("nowhere")
    matching = client.follow_matching(Pattern(service="o*"))
    session = client.session
    session.connected(0.0)
    (question,) = session.take_frames()
    instance = at(1)
    snapshot = Snapshot(
        service="orders", revision="b.1", digest=spell(digest([instance])), settled=True, instances=[instance]
    )
    anew = []

    def follow_anew(event):
        if isinstance(event, events.ListChanged) and event.change.drop:
            anew.append(client.follow(ORDERS))

    client.listen(follow_anew)

    def receive(frame):
        session.received(frame, 0.0)
        client.refresh(ORDERS)  # tells what has happened

    receive(Followed(id=question.id, services=[("DEFAULT_GROUP", "orders")]))
    receive(snapshot)
    (old,) = matching.services.values()
    receive(Vanished(namespace="public", group="DEFAULT_GROUP", service="orders"))
    receive(snapshot)
    (new,) = anew
    assert new.pick() == instance
    assert matching.services == {ORDERS: new}
    with pytest.raises(Problem) as refused:
        old.pick()
    assert refused.value.code == "not_followed"
