"""No command and no client leaves a cycle behind, so the collector may be spared the book."""

from __future__ import annotations

import asyncio
import gc

import pytest

from registrykit import an_entry, key_of
from rollbook import frames
from rollbook_registry.connections import Door
from serverkit import until


def ours(found):
    """What is the registry's among what the collector found: its objects, and what holds a frame of its."""
    kinds = set()
    for thing in found:
        module = type(thing).__module__
        if module.startswith("rollbook_registry"):
            kinds.add(f"{module}.{type(thing).__qualname__}")
        elif hasattr(thing, "gi_frame") or hasattr(thing, "cr_frame"):
            kinds.add(f"suspended {thing.__qualname__}")
        elif hasattr(thing, "f_code") and "rollbook_registry" in thing.f_code.co_filename:
            kinds.add(f"frame of {thing.f_code.co_qualname}")
    return kinds


@pytest.fixture
async def garbage(registry):
    """Run something twice, for what only the first time makes; return what is left of the second time."""

    async def garbage(something):
        gc.disable()
        try:
            await something(0)
            await until(lambda: len(registry.server.sessions) == 0)
            await until(lambda: not registry.server.guard.census.counts[Door.SESSION])
            gc.collect()
            await something(1)
            await until(lambda: len(registry.server.sessions) == 0)
            await until(lambda: not registry.server.guard.census.counts[Door.SESSION])
            # What has ended is let go of when the loop has come round.
            for _ in range(5):
                await asyncio.sleep(0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            return ours(gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    return garbage


async def session(registry, turn, *, end):
    one, two = await registry.speaker(), await registry.speaker()
    await one.attach(f"a{turn}")
    await one.register(*(an_entry(port=8080 + n) for n in range(20)))
    await one.say(frames.Beat(term=1), frames.Beat(term=1, down=[an_entry(port=8080).ref]))
    snapshot = await two.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    await two.say(frames.Ack(service="orders", revision=snapshot.revision))
    await two.ask(frames.Follow(id=2, pattern="or*"), frames.Followed)
    await one.say(frames.Register(id=3, entries=[an_entry(port=8090, weight=2.0)]))
    delta = await two.hear(frames.Delta)
    await two.say(frames.Ack(service="orders", revision=delta.revision))
    await one.hear(frames.Done)
    await one.say(frames.Barrier(id=4, services=[key_of("orders")]))
    await one.hear(frames.Done)
    await one.refused(frames.Register(id=5, entries=[an_entry(port=99999)]))
    if end == "released":
        await one.ask(frames.Release(id=6), frames.Done)
    for speaker in (one, two):
        if end == "broken":
            speaker.ws._response.connection.transport.abort()
        await speaker.ws.close()


@pytest.mark.parametrize("end", ["released", "closed", "broken"])
async def test_a_session_leaves_nothing_for_the_collector(registry, garbage, end):
    assert await garbage(lambda turn: session(registry, turn, end=end)) == set()


async def test_requests_leave_nothing_for_the_collector(registry, garbage):
    async def requests(turn):
        path = "/services/orders/instances"
        for n in range(10):
            body = {"ip": f"10.0.{turn}.{n}", "port": 8080}
            status, made, _ = await registry.request("POST", path, json=body)
            assert status == 201
            key = f"10.0.{turn}.{n}:8080:DEFAULT"
            assert (await registry.request("PUT", f"{path}/{key}/beat?term={made['term']}"))[0] == 202
            await registry.request("GET", f"{path}/{key}/explain")
            await registry.request("DELETE", f"{path}/{key}")
            await registry.problem("POST", path, json={"ip": "x y", "port": 8080})
            await registry.problem("PUT", f"{path}/{key}/beat?term=1")
        await registry.request("GET", "/services/orders?wait=1ms")
        for other in ("/services", "/services/orders/events", "/disagreements"):
            await registry.request("GET", other)
        await registry.text("/metrics")

    assert await garbage(requests) == set()


async def test_expiry_leaves_nothing_for_the_collector(start):
    registry = await start(beat_interval=0.05, unhealthy_after=0.1, remove_after=0.2, protection_share=1.0)
    gc.disable()
    try:
        for turn in range(2):
            await registry.request(
                "POST", "/services/orders/instances", json={"ip": f"10.0.0.{turn}", "port": 8080}
            )
            gc.collect()
            await until(lambda: not registry.catalog.services.instances)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert ours(gc.garbage) == set()
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_cycle_of_ours_would_be_found():
    from rollbook_registry.push import DatagramOutlet  # noqa: PLC0415  # only here

    one = DatagramOutlet.__new__(DatagramOutlet)
    one.itself = one
    assert ours([one]) == {"rollbook_registry.push.datagrams.DatagramOutlet"}
