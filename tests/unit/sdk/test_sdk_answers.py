"""The SDK's promise that whoever waits gets an answer: refusals, cancellation, and the client's end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random

import pytest

from ports import free_port
from registrykit import ORDERS, a_ref, an_entry, key_of
from rollbook import Client, Entry, Problem, events
from rollbook import client as sdk
from rollbook.patterns import Pattern
from serverkit import until

TIMEOUT = 20.0


def soon(work):
    return asyncio.wait_for(work, TIMEOUT)


async def parked(work):
    """Start something that will have to wait, and let it get there."""
    task = asyncio.create_task(work)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def refusal(work):
    with pytest.raises(Problem) as refused:
        await soon(work)
    return refused.value


@pytest.fixture
async def nowhere():
    """A client whose registry is not there."""
    async with Client(f"127.0.0.1:{free_port()}") as client:
        yield client


# --- refusals -------------------------------------------------------------------------------------------


async def test_a_subscription_that_the_registry_refuses_is_raised_and_not_followed(start):
    registry = await start(max_subscriptions=1)
    client = await registry.client()
    orders = await soon(client.subscribe("orders"))
    problem = await refusal(client.subscribe("stock"))
    assert problem.code == "limit_reached"
    assert "--max-subscriptions" in problem.detail
    assert set(client.session.views) == {ORDERS}
    # Room is made, and it is asked for again.
    client.unfollow(orders.service)
    assert (await soon(client.subscribe("stock"))).instances == ()


async def test_a_refused_service_that_somebody_follows_is_asked_for_again_by_who_subscribes(start):
    registry = await start(max_subscriptions=1)
    client = await registry.client()
    await soon(client.subscribe("orders"))
    stock = client.follow(key_of("stock"))
    await soon(stock.wait_for(lambda _: stock.problem is not None))
    with pytest.raises(Problem) as refused:
        stock.pick()
    assert refused.value.code == "limit_reached"
    assert (await refusal(client.subscribe("stock"))).code == "limit_reached"
    # Whoever follows it goes on doing so.
    assert key_of("stock") in client.session.views
    client.unfollow(ORDERS)
    assert await soon(client.subscribe("stock")) is stock
    assert stock.problem is None


async def restarted(start, registry, directory, **settings):
    """End a registry, and start another where it was."""
    ports = {"http_port": registry.server.http_port, "session_port": registry.server.session_port}
    await registry.server.__aexit__(None, None, None)
    return await start(**ports, data_dir=directory, **settings)


async def test_a_list_that_is_refused_after_a_reconnection_stays_and_is_asked_for_again(
    start, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(sdk, "RETRY", 0.1)
    registry = await start()
    client, writer = await registry.client(), await registry.client()
    writer.put(an_entry(service="a"), an_entry(service="b"))
    lists = [await soon(client.subscribe(name)) for name in "ab"]
    for subscription in lists:
        await soon(subscription.wait_for(bool))
    await restarted(start, registry, tmp_path / "strict", max_subscriptions=1)
    await until(lambda: any(s.problem for s in lists))
    (refused,) = [s for s in lists if s.problem]
    (followed,) = [s for s in lists if s is not refused]
    assert refused.problem.code == "limit_reached"
    assert refused.pick().port == 8080
    assert f"the list of {refused.service} is not kept current" in caplog.text
    client.unfollow(followed.service)
    await until(lambda: refused.problem is None)


async def test_a_known_list_that_is_refused_is_raised_to_who_subscribes(start, tmp_path):
    registry = await start()
    client = await registry.client()
    lists = [await soon(client.subscribe(name)) for name in "ab"]
    await restarted(start, registry, tmp_path / "strict", max_subscriptions=1)
    await until(lambda: any(s.problem for s in lists))
    (refused,) = [s for s in lists if s.problem]
    (followed,) = [s for s in lists if s is not refused]
    assert (await refusal(client.subscribe(refused.service.name))).code == "limit_reached"
    assert refused.problem is not None
    # Whoever has subscribed before goes on having what there is.
    assert refused.service in client.session.views
    client.unfollow(followed.service)
    assert await soon(client.subscribe(refused.service.name)) is refused
    assert refused.problem is None


async def test_a_registration_that_the_registry_refuses_is_raised_and_dropped(start):
    registry = await start(max_instances=1)
    client = await registry.client()
    async with client.register(an_entry(1)):
        registering = client.register(an_entry(2))
        problem = await refusal(registering.__aenter__())
        assert problem.code == "limit_reached"
        assert set(client.session.entries) == {a_ref(1)}
        # What is put is still wanted after its refusal, which is raised as often as somebody asks.
        client.put(an_entry(3))
        for _ in range(2):
            assert (await refusal(client.confirmed(a_ref(3)))).code == "limit_reached"
    # The first has left: a new put is a new offer.
    client.put(an_entry(3))
    await soon(client.confirmed(a_ref(3)))


async def test_a_lease_that_is_refused_fails_all_who_wait(registry):
    new = await registry.client(kind="operator", epoch=2)
    new.put(an_entry(owner="u"))
    await soon(new.confirmed(a_ref(owner="u")))
    old = await registry.client(kind="operator", epoch=1)
    old.put(an_entry(1, owner="v"), an_entry(2, owner="w"))
    for _ in range(2):
        problem = await refusal(old.confirmed(a_ref(1, owner="v"), a_ref(2, owner="w")))
        assert problem.code == "epoch_superseded"
    assert (await refusal(old.deregister(a_ref(1, owner="v")))).code == "epoch_superseded"


class InOrder(random.Random):
    """Tries addresses in the order in which they are given."""

    def shuffle(self, x):
        pass


async def test_what_a_register_block_loses_is_offered_again(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sdk, "RETRY", 0.1)
    first = await start()
    full = await start(data_dir=tmp_path / "full", max_instances=1)
    other = await full.client()
    other.put(an_entry(99))
    await soon(other.confirmed(a_ref(99)))
    async with Client(first.address, full.address, rng=InOrder()) as client, client.register(an_entry()):
        await first.server.__aexit__(None, None, None)
        await until(lambda: client.session.rejection(a_ref()))
        assert "does not have public/DEFAULT_GROUP@@orders at 10.0.0.1:8080:DEFAULT" in caplog.text
        await soon(other.deregister(a_ref(99)))
        await until(lambda: client.session.is_confirmed(a_ref()))
    await until(lambda: not full.catalog.service(ORDERS).instances)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"port": 70_000}, "entries[1].port"),
        ({"port": "80"}, "entries[1].port"),
        ({"service": "a b"}, "entries[1].service"),
        ({"ip": "10.0.0.256"}, "entries[1].ip"),
        ({"metadata": {"a": 1}}, "entries[1].metadata[...]"),
        ({"weight": -1.0}, "entries[1].weight"),
        ({"port": 1 << 70}, "entries[1].port"),
        ({"weight": object()}, "entries[1].weight"),
        ({"service": "\ud800"}, "entries[1].service"),
        ({"instance_id": "\ud800"}, "entries[1].instance_id"),
        ({"metadata": {"a": "\udfff"}}, "entries[1].metadata"),
    ],
)
async def test_a_bad_entry_is_refused_without_asking_anybody(nowhere, wrong, field):
    fields = {"service": "orders", "ip": "10.0.0.1", "port": 80} | wrong
    async with contextlib.AsyncExitStack() as stack:
        problem = await refusal(stack.enter_async_context(nowhere.register(an_entry(), Entry(**fields))))
    assert (problem.code, problem.field) == ("bad_value", field)
    assert problem.accepted
    with pytest.raises(Problem) as refused:
        nowhere.put(an_entry(), Entry(**fields))
    assert (refused.value.code, refused.value.field) == ("bad_value", field)
    assert not nowhere.session.entries


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\ud800"])
async def test_a_bad_name_is_refused_without_asking_anybody(nowhere, name):
    for work in (
        nowhere.subscribe(name),
        nowhere.subscribe("a", namespace=name),
        nowhere.services(group=name),
    ):
        assert (await refusal(work)).code == "bad_value"
    assert (await refusal(nowhere.subscribe("a", strategy="best"))).field == "strategy"
    assert not nowhere.session.views


async def test_one_entry_is_held_by_one_block(registry):
    client = await registry.client()
    async with client.register(an_entry(), an_entry(81)):
        assert (await refusal(client.register(an_entry(81)).__aenter__())).code == "conflict"
        assert client.session.is_confirmed(a_ref(81))
    assert (await refusal(client.register(an_entry(), an_entry()).__aenter__())).code == "conflict"


async def test_what_is_not_put_is_not_waited_for(registry):
    client = await registry.client()
    assert (await refusal(client.confirmed(a_ref()))).code == "unknown_instance"


async def test_a_client_that_is_not_started_says_so():
    client = Client("nowhere")
    for work in (client.subscribe("orders"), client.confirmed(), client.wait_connected()):
        with pytest.raises(RuntimeError, match="async with"):
            await work
    await client.aclose()
    with pytest.raises(Problem, match="closed"):
        client.start()


# --- cancellation ---------------------------------------------------------------------------------------


async def test_a_timeout_bounds_what_no_registry_answers_and_leaves_nothing_behind(nowhere):
    for work in (
        lambda: nowhere.subscribe("orders"),
        lambda: nowhere.subscribe_matching("o*"),
        lambda: nowhere.register(an_entry()).__aenter__(),
        nowhere.wait_connected,
        nowhere.services,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await work()
    session = nowhere.session
    assert not {**session.views, **session.patterns, **session.entries}
    await until(lambda: nowhere.last_error)


async def test_a_cancelled_subscription_is_followed_on_for_others_who_wait(nowhere):
    first = await parked(nowhere.subscribe("orders"))
    second = await parked(nowhere.subscribe("orders"))
    first.cancel()
    await asyncio.wait([first])
    assert ORDERS in nowhere.session.views
    second.cancel()
    await asyncio.wait([second])
    assert not nowhere.session.views


async def test_a_cancelled_subscription_is_followed_on_for_who_follows_it(nowhere):
    nowhere.follow(ORDERS)
    waiting = await parked(nowhere.subscribe("orders"))
    waiting.cancel()
    await asyncio.wait([waiting])
    assert ORDERS in nowhere.session.views


async def test_one_whose_subscription_has_ended_leaves_a_new_one_alone(nowhere):
    pattern = Pattern(service="o*")
    named = await parked(nowhere.subscribe("orders"))
    matching = await parked(nowhere.subscribe_matching("o*"))
    nowhere.unfollow_matching(pattern)
    nowhere.unfollow(ORDERS)
    # Anew, before those whose wait has ended have run.
    anew = nowhere.follow(ORDERS)
    nowhere.follow_matching(pattern)
    for work in (named, matching):
        assert (await refusal(work)).code == "not_followed"
    assert nowhere.session.views[ORDERS] is anew.view
    assert pattern in nowhere.session.patterns


async def test_a_cancelled_pattern_is_followed_on_for_others(nowhere):
    nowhere.follow_matching(Pattern(service="a*"))
    tasks = [await parked(nowhere.subscribe_matching(pattern)) for pattern in ("a*", "b*", "b*")]
    for task, left in zip(tasks, ({"a*", "b*"}, {"a*", "b*"}, {"a*"}), strict=True):
        task.cancel()
        await asyncio.wait([task])
        assert {p.service for p in nowhere.session.patterns} == left


async def test_a_cancelled_registration_is_withdrawn(start):
    registry = await start()
    client = await registry.client()
    await soon(client.wait_connected())
    held = asyncio.Event()

    async def hold():
        async with client.register(an_entry()):
            held.set()
            await asyncio.Event().wait()

    holding = asyncio.create_task(hold())
    await soon(held.wait())
    holding.cancel()
    await asyncio.wait([holding])
    await until(lambda: not registry.catalog.service(ORDERS).instances)
    # Cancelled before the registry has answered: what was on its way is taken back behind it.
    early = await parked(client.register(an_entry(81)).__aenter__())
    early.cancel()
    await asyncio.wait([early])
    await soon(client.deregister(a_ref(81)))
    assert not registry.catalog.service(ORDERS).instances


async def test_one_who_waits_for_an_entry_may_be_cancelled_without_the_other(nowhere):
    nowhere.put(an_entry())
    first, second = [await parked(nowhere.confirmed(a_ref())) for _ in range(2)]
    first.cancel()
    await asyncio.wait([first])
    assert not second.done()
    nowhere.drop(a_ref())
    assert (await refusal(second)).code == "unknown_instance"


async def test_deregistering_waits_for_the_registrys_word(registry):
    client = await registry.client()
    client.put(an_entry(), an_entry(81))
    await soon(client.confirmed(a_ref(), a_ref(81)))
    await soon(client.deregister(a_ref(), a_ref(99)))
    assert [i.port for i in registry.catalog.service(ORDERS).instances.values()] == [81]
    # Who puts it again in the meantime has the last word.
    leaving = await parked(client.deregister(a_ref(81)))
    client.put(an_entry(81))
    assert (await refusal(leaving)).code == "conflict"
    await soon(client.confirmed(a_ref(81)))


# --- the client's end -----------------------------------------------------------------------------------


async def test_whoever_waits_when_the_client_closes_is_told(nowhere, caplog):
    nowhere.put(an_entry())
    subscription = nowhere.follow(ORDERS)
    matching = nowhere.follow_matching(Pattern())
    waiting = [
        await parked(work)
        for work in (
            nowhere.subscribe("orders"),
            nowhere.subscribe("stock"),
            nowhere.subscribe_matching("*"),
            nowhere.subscribe_matching("a*"),
            nowhere.register(an_entry(81)).__aenter__(),
            nowhere.confirmed(a_ref()),
            nowhere.wait_connected(),
            nowhere.services(),
            subscription.changed(),
            subscription.wait_for(bool),
            matching.changed(),
            matching.wait_for(lambda services: len(services) > 9),
        )
    ]
    nowhere.drop(a_ref())
    nowhere.put(an_entry())
    nowhere.drop(a_ref())
    waiting.append(await parked(nowhere.deregister(a_ref())))
    nowhere.put(an_entry(82))
    waiting.append(await parked(nowhere.confirmed(a_ref(82))))
    await nowhere.aclose()
    outcomes = [await refusal(work) for work in waiting if work is not waiting[5]]
    assert {problem.code for problem in outcomes} == {"client_closed"}
    assert (await refusal(waiting[5])).code == "unknown_instance"
    # And so is whoever comes later.
    for work in (nowhere.subscribe("orders"), nowhere.confirmed(a_ref()), nowhere.barrier(timeout=1.0)):
        assert (await refusal(work)).code == "client_closed"
    with pytest.raises(Problem, match="closed"):
        nowhere.follow(ORDERS)
    with pytest.raises(Problem, match="closed"):
        subscription.pick()
    await nowhere.wait_disconnected()
    del waiting, outcomes
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_iterations_end_with_the_client(registry):
    client, writer = await registry.client(), await registry.client()
    async with writer.register(an_entry()):
        subscription = await soon(client.subscribe("orders"))
        matching = await soon(client.subscribe_matching("o*"))
        seen = {"lists": 0, "changes": 0, "services": 0}

        async def count(name, iteration):
            async for _ in iteration:
                seen[name] += 1
            return name

        tasks = [
            asyncio.create_task(count("lists", subscription)),
            asyncio.create_task(count("changes", subscription.changes())),
            asyncio.create_task(count("services", matching)),
        ]
        await until(lambda: all(seen.values()))
        await client.aclose()
        assert await soon(asyncio.gather(*tasks)) == ["lists", "changes", "services"]
    # What was known last can be read, but not mistaken for what is current.
    assert subscription.instances
    with pytest.raises(Problem) as refused:
        subscription.pick()
    assert refused.value.code == "client_closed"


async def test_what_is_followed_no_more_ends(registry):
    client = await registry.client()
    subscription = await soon(client.subscribe("orders"))
    matching = await soon(client.subscribe_matching("o*"))
    waiting = [await parked(subscription.changed()), await parked(matching.changed())]
    # It matches still.
    client.unfollow(ORDERS)
    assert not waiting[0].done()
    client.unfollow_matching(matching.pattern)
    for work in waiting:
        assert (await refusal(work)).code == "not_followed"
    with pytest.raises(Problem, match="not followed any more"):
        subscription.pick()
    assert await soon(client.subscribe("orders")) is not subscription


async def test_closing_twice_or_while_cancelled_leaves_nothing_running(registry, monkeypatch):
    before = asyncio.all_tasks()
    client = await Client(registry.address).__aenter__()
    await soon(client.wait_connected())
    client.put(an_entry())
    await soon(client.confirmed(a_ref()))
    release, asked = client.session.release, asyncio.Event()

    def unsent():
        # The registry does not answer the release: it is stopped in the middle.
        id_ = release()
        client.session.take_frames()
        asked.set()
        return id_

    monkeypatch.setattr(client.session, "release", unsent)
    closing = asyncio.create_task(client.aclose(timeout=60.0))
    await soon(asked.wait())
    closing.cancel()
    await asyncio.wait([closing])
    await client.aclose()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_what_a_listener_raises_harms_nobody(registry, caplog):
    client = await registry.client()
    heard = []

    def bad(event):
        raise ValueError(f"cannot take {type(event).__name__}")

    client.listen(bad)
    client.listen(heard.append)
    async with client.register(an_entry()):
        orders = await soon(client.subscribe("orders"))
        assert orders.pick().port == 8080
    assert "cannot take Confirmed" in caplog.text
    assert [type(e).__name__ for e in heard][:2] == ["Connected", "Confirmed"]


async def test_what_a_listener_wishes_for_as_the_connection_stands_comes_after_that(registry):
    told = {"first": [], "second": []}
    client = Client(registry.address)

    def first(event):
        told["first"].append(event)
        if isinstance(event, events.Connected):
            client.put(an_entry())

    client.listen(first)
    client.listen(told["second"].append)
    async with client:
        await until(lambda: client.session.is_confirmed(a_ref()))
    assert told["first"] == told["second"]
    assert isinstance(told["first"][0], events.Connected)


async def test_a_refusal_that_is_repeated_is_logged_once(start, monkeypatch, caplog):
    monkeypatch.setattr(sdk, "RETRY", 0.01)
    registry = await start(max_subscriptions=1)
    client = await registry.client()
    await soon(client.subscribe("orders"))
    refusals = []
    client.listen(lambda event: refusals.append(event) if isinstance(event, events.NotListed) else None)
    stock = client.follow(key_of("stock"))
    await until(lambda: len(refusals) > 3)
    assert caplog.text.count("is not kept current") == 1
    client.unfollow(ORDERS)
    # Nobody has to ask for it again.
    await until(lambda: stock.view.known)
    assert stock.problem is None


async def test_an_error_of_its_own_ends_the_client_and_tells_all_who_wait(monkeypatch, caplog):
    async def broken():
        await asyncio.sleep(0)
        raise RuntimeError("a mistake")

    client = Client("nowhere")
    monkeypatch.setattr(client._connection, "run", broken)
    async with client:
        assert (await refusal(client.subscribe("orders"))).code == "client_closed"
    assert "a mistake" in caplog.text


async def test_a_connection_that_others_cancel_ends_the_client_and_tells_all_who_wait(nowhere):
    before = asyncio.all_tasks()
    waiting = await parked(nowhere.subscribe("orders"))
    (connecting,) = [task for task in before if task.get_name() == "rollbook-client"]
    connecting.cancel()
    assert (await refusal(waiting)).code == "client_closed"
    assert (await refusal(nowhere.wait_connected())).code == "client_closed"


async def test_the_time_to_close_is_a_setting_until_it_is_used(registry, monkeypatch):
    timeout, asked = asyncio.timeout, []

    def noted(seconds):
        asked.append(seconds)
        return timeout(seconds)

    client = await registry.client()
    await soon(client.wait_connected())
    monkeypatch.setattr(sdk, "CLOSE_TIMEOUT", 17.25)
    monkeypatch.setattr(asyncio, "timeout", noted)
    await client.aclose()
    assert 17.25 in asked


async def test_services_that_are_being_asked_for_as_the_client_closes_are_told_so(registry, monkeypatch):
    client = await registry.client()
    asked, closed = asyncio.Event(), asyncio.Event()

    async def get(*_):
        asked.set()
        await closed.wait()
        raise ConnectionError("the client is not running")

    monkeypatch.setattr(client._connection, "get", get)
    asking = asyncio.create_task(client.services())
    await soon(asked.wait())
    await client.aclose()
    closed.set()
    assert (await refusal(asking)).code == "client_closed"


async def test_what_a_listener_wishes_for_is_told_after_what_is_being_told(registry):
    client = await registry.client()
    told = {"first": [], "second": []}

    def first(event):
        told["first"].append(event)
        if isinstance(event, events.Confirmed) and event.refs == (a_ref(1),):
            client.put(an_entry(2))
            client.session.barrier([], 1.0)

    client.listen(first)
    client.listen(told["second"].append)
    client.put(an_entry(1))
    await until(lambda: client.session.is_confirmed(a_ref(2)))
    assert told["first"] == told["second"]
