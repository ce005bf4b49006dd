"""The SDK and a registry: what users of both see."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from registrykit import ORDERS, a_ref, an_entry, key_of
from rollbook import frames
from rollbook.patterns import Pattern
from rollbook.problems import Problem
from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings
from serverkit import Registry, until

TIMEOUT = 15.0


pytestmark = pytest.mark.timeout(60)


def break_connections(registry):
    for line in list(registry.server.sessions._open):
        line._socket._transport.abort()


@pytest.mark.parametrize("subprotocol", frames.SUBPROTOCOLS)
async def test_what_one_registers_another_finds_and_picks(registry, subprotocol):
    provider, caller = await registry.client(subprotocol=subprotocol), await registry.client()
    orders = await caller.subscribe("orders")
    assert orders.instances == ()
    with pytest.raises(Problem, match="no healthy instance"):
        orders.pick()
    async with provider.register(an_entry(weight=3.0), an_entry(81, alive=False)):
        await orders.wait_for(lambda instances: len(instances) == 2)
        assert orders.pick().port == 8080
        provider.set_down(a_ref(), a_ref(81))
        await orders.wait_for(lambda instances: not any(i.healthy for i in instances))
        provider.set_down()
        await orders.wait_for(lambda instances: all(i.healthy for i in instances))
    await orders.wait_for(lambda instances: not instances)


async def test_a_refused_registration_is_raised_where_it_was_asked_for(registry):
    client = await registry.client()
    registry.book.apply(lambda c, now: c.close_pods(["gone"], now))
    with pytest.raises(Problem) as refused:
        async with client.register(an_entry(), an_entry(81, owner="gone")):
            pytest.fail("it was taken")
    assert refused.value.code == "pod_terminating"
    await until(lambda: not client.session.entries)


async def test_changes_are_followed_one_after_the_other(registry):
    provider, caller = await registry.client(), await registry.client()
    seen = []

    async def follow():
        async for instances in await caller.subscribe("orders"):
            seen.append(len(instances))  # noqa: PERF401  # it is looked at while it grows

    following = asyncio.create_task(follow())
    await until(lambda: seen == [0])
    for n in range(1, 4):
        provider.put(an_entry(n))
        await provider.confirmed(a_ref(n))
        await until(lambda n=n: seen[-1] == n)
    following.cancel()
    assert seen == [0, 1, 2, 3]


async def test_a_goodbye_takes_the_entries_out_at_once_unless_they_are_to_live_on(registry):
    for release, left in ((False, 1), (True, 0)):
        client = await registry.client(lease="same")
        client.put(an_entry())
        await client.confirmed(a_ref())
        await client.aclose(release=release)
        await until(lambda: len(registry.server.sessions) == 0)
        assert len(registry.catalog.service(ORDERS).instances) == left


async def test_a_barrier_is_passed_when_subscribers_have_acknowledged(registry):
    provider, caller = await registry.client(), await registry.client()
    orders = await caller.subscribe("orders")
    provider.put(an_entry())
    await provider.confirmed(a_ref())
    assert await provider.barrier(ORDERS, timeout=TIMEOUT)
    assert len(orders.instances) == 1
    # Somebody who never acknowledges holds it up, for as long as was asked.
    deaf = await registry.speaker()
    await deaf.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    assert not await provider.barrier(ORDERS, timeout=0.05)


async def test_a_broken_connection_is_taken_up_again_and_nothing_flaps(registry):
    provider, caller = await registry.client(), await registry.client()
    orders = await caller.subscribe("orders")
    provider.put(an_entry())
    await orders.wait_for(lambda instances: len(instances) == 1)
    changes = []
    caller.listen(lambda event: changes.append(event) if getattr(event, "change", None) else None)
    term = provider.session.term
    for n in range(1, 4):
        break_connections(registry)
        await provider.wait_disconnected()
        assert orders.pick().port == 8080
        await until(lambda n=n: provider.session.term == term + n and caller.connected)
        await provider.confirmed(a_ref())
    assert changes == []
    assert len(registry.catalog.service(ORDERS).instances) == 1
    # The list is followed again.
    provider.put(an_entry(81))
    await orders.wait_for(lambda instances: len(instances) == 2)


async def test_a_registry_that_restarts_without_its_book_makes_nobody_flap(start, tmp_path):
    first = await start()
    ports = {"http_port": first.server.http_port, "session_port": first.server.session_port}
    providers = [await first.client() for _ in range(3)]
    caller = await first.client()
    orders = await caller.subscribe("orders")
    for n, provider in enumerate(providers):
        provider.put(an_entry(n + 1))
    await orders.wait_for(lambda instances: len(instances) == 3)
    lists = []
    caller.listen(lambda event: lists.append(sorted(i.port for i in orders.instances if i.healthy)))
    await first.server.__aexit__(None, None, None)
    await until(lambda: not caller.connected)
    assert orders.pick()
    # One of them goes for good meanwhile; its absence is believed when the registry is settled.
    await providers[0].aclose()
    second = await start(
        **ports,
        data_dir=tmp_path / "another",
        unhealthy_after=1.0,
        remove_after=1.5,
        beat_interval=0.2,
        expiry_tick=0.05,
    )
    assert second.book.boot != first.book.boot
    await until(lambda: orders.view.settled and caller.connected)
    await orders.wait_for(lambda instances: sorted(i.port for i in instances) == [2, 3])
    assert {tuple(ports) for ports in lists} == {(1, 2, 3), (2, 3)}
    assert sorted(i.port for i in second.catalog.service(ORDERS).instances.values()) == [2, 3]


@pytest.mark.parametrize("late", [False, True])
async def test_a_pod_that_a_young_registry_never_knew_is_let_go_when_the_operator_closes_it(
    start, late, tmp_path
):
    first = await start()
    ports = {"http_port": first.server.http_port, "session_port": first.server.session_port}
    pod = await first.client()
    caller = await first.client()
    orders = await caller.subscribe("orders")
    pod.put(an_entry(owner="u"), an_entry(81, owner="v"))
    await orders.wait_for(lambda instances: len(instances) == 2)
    await first.server.__aexit__(None, None, None)
    await pod.aclose()
    await until(lambda: not caller.connected)
    if late:
        second = await start(**ports, data_dir=tmp_path / "another")
        (await second.client(kind="operator")).close_pods("u")
        await until(lambda: second.catalog.pods.closed)
    else:
        second = await start(**ports, data_dir=tmp_path / "another")
        operator = await second.client(kind="operator")
        await until(lambda: caller.connected and not orders.view.settled)
        operator.close_pods("u")
    await orders.wait_for(lambda instances: [i.owner for i in instances] == ["v"])


async def test_a_client_moves_on_to_the_next_address(start, tmp_path):
    first, second = await start(), await start(data_dir=tmp_path / "second")
    client = await first.client()
    await client.wait_connected()
    from rollbook.client import Client  # noqa: PLC0415  # two addresses, which the fixture does not give

    async with Client(first.address, second.address) as both:
        both.put(an_entry())
        await both.confirmed(a_ref())
        used, other = (first, second) if first.address in both.peer else (second, first)
        await used.server.__aexit__(None, None, None)
        await until(lambda: other.catalog.service(ORDERS) is not None)
        await both.confirmed(a_ref())
        assert other.address in both.peer


async def test_an_operator_that_fails_over_leaves_the_book_as_it_is(registry):
    caller = await registry.client()
    orders = await caller.subscribe("orders")
    pods = [an_entry(n, owner=f"u{n}") for n in range(1, 4)]
    old = await registry.client(kind="operator", epoch=1)
    old.put(*pods)
    old.synced()
    await orders.wait_for(lambda instances: len(instances) == 3)
    changes = []
    caller.listen(lambda event: changes.append(event.change) if hasattr(event, "change") else None)
    new = await registry.client(kind="operator", epoch=2)
    new.put(*pods[:2])
    new.synced()
    await orders.wait_for(lambda instances: len(instances) == 2)
    assert [change.drop for change in changes] == [["10.0.0.1:3:DEFAULT:u3"]]
    old.close_pods("u1")
    await until(lambda: not old._connection._outbox.is_set())
    await asyncio.wait_for(new.barrier(ORDERS, timeout=TIMEOUT), TIMEOUT)
    assert registry.catalog.pods.closed == 0


async def test_timers_hold_over_real_sockets_too(start):
    """Silence over a session that stands: its process is stopped, as by SIGSTOP, and comes back."""
    registry = await start(unhealthy_after=0.3, remove_after=0.6, beat_interval=0.1, expiry_tick=0.02)
    stopped, caller = await registry.client(), await registry.client()
    orders = await caller.subscribe("orders")
    stopped.put(an_entry())
    await orders.wait_for(lambda instances: len(instances) == 1)
    seen = []
    caller.listen(lambda event: seen.append([i.healthy for i in orders.instances]) if event.change else None)
    beat = stopped.session._beat
    stopped.session._beat = lambda now: None
    await orders.wait_for(lambda instances: not instances)
    assert seen == [[False], []]
    term = stopped.session.term
    # Its next beat is answered, and it registers afresh under a higher term.
    stopped.session._beat = beat
    await orders.wait_for(bool)
    assert seen[-1] == [True]
    assert len(orders.instances) == 1
    assert stopped.session.term > term


async def test_a_registry_says_why_it_cannot_start(start, tmp_path):
    registry = await start()
    settings = RegistrySettings(
        data_dir=tmp_path / "another",
        http_port=registry.server.http_port,
        session_port=0,
        auth="none",
        nacos_grpc=False,
    )
    with pytest.raises(OSError, match=rf"port {registry.server.http_port} \(--http-port\).*in use"):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(Server(settings))
    assert isinstance(registry, Registry)


async def test_all_services_of_a_pattern_are_followed_as_they_come_and_go(start):
    registry = await start(empty_service_after=0.0)
    reader, writer = await registry.client(), await registry.client()
    await writer.wait_connected()
    async with writer.register(an_entry(1, service="shop-a"), an_entry(2, service="stock")):
        shops = await reader.subscribe_matching("shop-*")
        assert [key.name for key in shops.services] == ["shop-a"]
        (shop,) = shops.services.values()
        assert shop.pick().port == 1
        async with writer.register(an_entry(3, service="shop-b")):
            services = await asyncio.wait_for(shops.wait_for(lambda s: len(s) == 2), 10)
            await services[key_of("shop-b")].wait_for(lambda instances: [i.port for i in instances] == [3])
            # It is the same list for whoever subscribes by name.
            assert await reader.subscribe("shop-b") is services[key_of("shop-b")]
            reader.unfollow(key_of("shop-b"))
            assert key_of("shop-b") in shops.services
            break_connections(registry)
            writer.put(an_entry(4, service="shop-b"))
            await services[key_of("shop-b")].wait_for(lambda instances: len(instances) == 2)
        writer.drop(an_entry(4, service="shop-b").ref)
        await asyncio.wait_for(services[key_of("shop-b")].wait_for(lambda instances: not instances), 10)
        registry.book.outlet.settle()
        registry.book._swept = float("-inf")
        await asyncio.wait_for(shops.wait_for(lambda s: len(s) == 1), 10)
        reader.unfollow_matching(shops.pattern)
        assert not reader.session.views
        await until(lambda: registry.book.outlet.subscriptions == 0)
    assert registry.book.outlet.patterns == 0


async def test_a_pattern_that_is_refused_is_raised_where_it_was_asked_for(start):
    registry = await start(max_patterns=1, max_subscriptions=1)
    client = await registry.client()
    async with client.register(an_entry(1, service="a"), an_entry(2, service="b")):
        with pytest.raises(Problem, match="--max-subscriptions"):
            await client.subscribe_matching("*")
        assert not client.session.patterns
        some = client.follow_matching(Pattern(service="*"))
        await asyncio.wait_for(some.wait_for(lambda s: len(s) == 1 and some.problem is not None), 10)
        with pytest.raises(Problem, match="--max-patterns"):
            await client.subscribe_matching("b*")
        with pytest.raises(Problem, match="pattern is"):
            await client.subscribe_matching("a b")
    with pytest.raises(Problem, match="namespace is"):
        await client.subscribe_matching("a", namespace="*")


async def test_services_of_a_pattern_may_be_waited_for_one_after_the_other(registry):
    reader, writer = await registry.client(), await registry.client()
    matching = await reader.subscribe_matching("*", group="*")
    seen = []
    async with asyncio.timeout(10):
        async for services in matching:
            seen.append({str(key) for key in services})
            if len(services) == 2:
                break
            port = len(services) + 1
            writer.put(an_entry(port, service=f"s{port}", group=f"g{port}"))
    assert seen[0] == set()
    assert seen[-1] == {"public/g1@@s1", "public/g2@@s2"}
