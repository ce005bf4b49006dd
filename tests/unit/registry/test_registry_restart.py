"""A registry that comes back on its own disk, over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from registrykit import ORDERS, a_ref, an_entry
from rollbook import connection
from rollbook.frames import GonePod
from rollbook.problems import Problem
from serverkit import until

BRISK = {"unhealthy_after": 1.0, "remove_after": 1.5, "beat_interval": 0.2, "expiry_tick": 0.05}


async def stop(registry):
    await registry.server.__aexit__(None, None, None)


def ports(registry):
    service = registry.catalog.service(ORDERS)
    return sorted(i.port for i in service.instances.values()) if service else []


async def test_its_book_is_there_before_anybody_has_come_back(start):
    first = await start()
    await first.request("POST", "/services/orders/instances", json={"ip": "10.0.0.1", "port": 1})
    speaker = await first.speaker()
    await speaker.attach("a")
    await speaker.register(an_entry(2, alive=False), an_entry(3, owner="u"))
    before = first.catalog.service(ORDERS)
    await stop(first)
    second = await start()
    assert second.book.boot != first.book.boot
    assert second.catalog.service(ORDERS).instances == before.instances
    _, listed, _ = await second.request("GET", "/services/orders")
    # What is there is known; what isn't may still come.
    assert (len(listed["instances"]), listed["settled"]) == (3, False)
    # The plain client goes on beating, the session's lease goes on under the next term.
    beat = "/services/orders/instances/10.0.0.1:1/beat?term=1"
    assert (await second.request("PUT", beat))[0] == 202
    attached = await (await second.speaker()).attach("a", term=1)
    assert (attached.term, attached.resumed) == (2, True)


async def test_everybody_has_a_full_grace_period(start):
    first = await start()
    speaker = await first.speaker()
    await speaker.attach("a")
    await speaker.register(an_entry(1), an_entry(2))
    # It was silent to the end: what the last life has seen of that is not held against it.
    first.book.apply(lambda c, now: c.expire(["a"], now + 16.0))
    assert not any(i.healthy for i in first.catalog.service(ORDERS).instances.values())
    await stop(first)
    began = asyncio.get_running_loop().time()
    second = await start(**BRISK)
    assert ports(second) == [1, 2]
    await until(lambda: ports(second) == [])
    assert asyncio.get_running_loop().time() - began >= BRISK["remove_after"] - 0.1


async def test_what_was_removed_does_not_come_back(start):
    first = await start()
    speaker = await first.speaker()
    await speaker.attach("a")
    await speaker.register(an_entry(1), an_entry(2), an_entry(3, owner="p"), an_entry(4, owner="q"))
    await first.server.keeper.save()
    operator = await first.client(kind="operator")
    operator.close_pods("p")
    operator.fence_pods(GonePod(uid="q", ips=["10.0.0.9"]))
    await until(lambda: first.catalog.pods.fenced)
    await first.request("DELETE", "/services/orders/instances/10.0.0.1:1")
    # As after a kill: what is in the snapshot is older than what was removed.
    keeper = first.server.keeper
    keeper.flush()
    keeper._changed = False
    first.book.recorders.remove(keeper.take)
    await stop(first)
    second = await start()
    assert ports(second) == [2]
    with pytest.raises(Problem) as refused:
        second.book.apply(lambda c, now: c.register_http("http/x", an_entry(owner="p"), term=0, now=now))
    assert refused.value.code == "pod_terminating"
    with pytest.raises(Problem) as refused:
        second.book.apply(lambda c, now: c.register_http("http/x", an_entry(owner="q"), term=0, now=now))
    assert refused.value.code == "pod_gone"


async def test_a_damaged_snapshot_is_set_aside_and_the_registry_serves(start, tmp_path):
    first = await start()
    speaker = await first.speaker()
    await speaker.attach("a")
    await speaker.register(an_entry())
    await stop(first)
    snapshot = tmp_path / "snapshot"
    data = bytearray(snapshot.read_bytes())
    data[len(data) // 2] ^= 0xFF
    snapshot.write_bytes(data)
    second = await start()
    assert ports(second) == []
    assert [path.name for path in tmp_path.glob("snapshot.damaged*")]
    text = (await second.text("/metrics")).splitlines()
    assert 'rollbook_snapshots_total{outcome="set_aside"} 1.0' in text
    client = await second.client()
    client.put(an_entry())
    await client.confirmed(a_ref())


async def test_subscribers_see_nothing_of_a_restart(start, monkeypatch):
    # They have to be back before what they hold is removed.
    monkeypatch.setattr(connection, "BACKOFF_MOST", 0.1)
    first = await start()
    where = {"http_port": first.server.http_port, "session_port": first.server.session_port}
    providers = [await first.client() for _ in range(3)]
    for n, provider in enumerate(providers):
        provider.put(an_entry(n + 1))
    caller = await first.client()
    orders = await caller.subscribe("orders")
    await orders.wait_for(lambda instances: len(instances) == 3)
    changes = []
    caller.listen(lambda event: changes.append(event) if getattr(event, "change", None) else None)
    await stop(first)
    await until(lambda: not caller.connected)
    second = await start(**where, **BRISK)
    await until(lambda: orders.view.settled and caller.connected)
    assert ports(second) == [1, 2, 3]
    assert changes == []
