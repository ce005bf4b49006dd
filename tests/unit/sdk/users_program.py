"""A user's program, as ``mypy --strict`` sees it; it is checked, and never run.

What is right says so by ``assert_type``; what is wrong is marked, and mypy complains of marks that are not
needed.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import assert_type

from rollbook import (
    Client,
    Entry,
    EntryRef,
    Instance,
    Matching,
    Problem,
    Selection,
    ServiceCount,
    ServiceKey,
    Subscription,
    Update,
    events,
)


class Nearest:
    """A strategy of one's own."""

    def pick(self, instances: tuple[Instance, ...]) -> Instance | None:
        return min(instances, key=lambda i: i.metadata.get("distance", ""), default=None)


async def token() -> str:
    await asyncio.sleep(0)
    return "secret"


def heard(event: events.Event) -> None:
    match event:
        case events.ListChanged(service, change, at):
            assert_type(service, ServiceKey)
            assert_type(change.put, list[Instance])
            assert_type(at, float)
        case events.Disconnected(url, reason):
            assert_type((url, reason), tuple[str, str])
        case _:
            pass


async def main() -> None:
    entry = Entry(service="orders", ip="10.0.0.7", port=8080, metadata={"version": "2"})
    assert_type(entry.ref, EntryRef)
    context = ssl.create_default_context()
    async with Client("rollbooks://a", "b:7848", token=token, ssl=context, http_port=8848) as client:
        assert_type(client, Client)
        client.listen(heard)
        async with client.register(entry) as nothing:
            assert_type(nothing, None)
        orders = await client.subscribe("orders", namespace="public", group="g", strategy=Nearest())
        assert_type(orders, Subscription)
        assert_type(orders.pick(), Instance)
        assert_type(orders.pick().port, int)
        assert_type(orders.instances, tuple[Instance, ...])
        assert_type(await orders.wait_for(lambda instances: len(instances) > 1), tuple[Instance, ...])
        near = orders.where(cluster="zone-a", selector="version=2", healthy=True, strategy="random")
        assert_type(near, Selection)
        assert_type(near.pick(), Instance)
        async for instances in orders:
            assert_type(instances, tuple[Instance, ...])
        async for update in orders.changes():
            assert_type(update, Update)
            assert_type(update.removed, list[Instance])
        shops = await client.subscribe_matching("shop-*", group="*")
        assert_type(shops, Matching)
        async for services in shops:
            assert_type(services, dict[ServiceKey, Subscription])
        assert_type(await client.services(), list[ServiceCount])
        assert_type(await client.barrier(orders.service, timeout=1.0), bool)
        await client.confirmed(entry.ref)
        try:
            await client.deregister(entry.ref)
        except Problem as problem:
            assert_type(problem.code, str)
            assert_type(problem.status, int)

        # What is wrong is seen without running it.
        Entry(service="orders", ip="10.0.0.7", port="8080")  # type: ignore[arg-type]
        Entry(service="orders", port=8080)  # type: ignore[call-arg]
        client.put(entry.ref)  # type: ignore[arg-type]
        client.drop(entry)  # type: ignore[arg-type]
        client.subscribe("orders").pick()  # type: ignore[attr-defined]
        await client.subscribe(b"orders")  # type: ignore[arg-type]
        orders.where("zone-a")  # type: ignore[call-arg]
        orders.instances.append(near.pick())  # type: ignore[attr-defined]
        near.pick().weight = 1.0  # type: ignore[misc]
        await client.subscribe("orders", strategy=len)  # type: ignore[arg-type]
        Client("a", token=lambda: 3)  # type: ignore[arg-type,return-value]
