"""The registry stands still for ten seconds: nobody is judged by time in which it did not look."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import aiohttp
import msgspec
import pytest

from registrykit import an_entry
from rollbook.client import Client
from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings

pytestmark = pytest.mark.timeout(180)

STALL = 10.0
BEAT = 1.0
FLAGS = {"beat-interval": "1s", "unhealthy-after": "4s", "remove-after": "8s", "expiry-tick": "100ms"}
SESSIONS, EACH = 20, 15
PLAIN = 60


def entry_of(session, n):
    return an_entry(1000 + n, ip=f"10.1.0.{session + 1}", service=f"kept-{n % 5}")


async def beat_over_http(url, n, beaten):
    """A plain HTTP client: registers and beats every second, and registers again if it is told to."""
    path = f"/services/plain/instances/10.2.0.{n + 1}:80"
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=30)) as http:
        async with http.post(
            "/services/plain/instances", json={"ip": f"10.2.0.{n + 1}", "port": 80}
        ) as answer:
            assert answer.status == 201
        while True:
            async with http.put(f"{path}/beat") as answer:
                beaten[n] = beaten.get(n, 0) + (answer.status == 202)
                assert answer.status == 202, await answer.text()
            await asyncio.sleep(BEAT)


async def watch(url, seen):
    """Look at all lists again and again: how many there are, and how many of them healthy."""
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=60)) as http:
        while True:
            counts = []
            for service in [*(f"kept-{n}" for n in range(5)), "plain"]:
                async with http.get(f"/services/{service}") as answer:
                    instances = msgspec.json.decode(await answer.read())["instances"]
                counts.append((len(instances), sum(i["healthy"] for i in instances)))
            seen.append(tuple(counts))
            await asyncio.sleep(0.1)


async def through_a_stall(url, address, stall):
    """Have hundreds of instances beat, stall the registry among them, and return what was to be seen."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(address)) for _ in range(SESSIONS)]
        for s, client in enumerate(clients):
            client.put(*(entry_of(s, n) for n in range(EACH)))
        for s, client in enumerate(clients):
            for n in range(EACH):
                await client.confirmed(entry_of(s, n).ref)
        beaten = {}
        beating = [asyncio.create_task(beat_over_http(url, n, beaten)) for n in range(PLAIN)]
        async with asyncio.timeout(20):
            while len(beaten) < PLAIN:
                await asyncio.sleep(0.05)
        seen = []
        watching = asyncio.create_task(watch(url, seen))
        try:
            await asyncio.sleep(2 * BEAT)
            before = dict(beaten)
            await stall()
            # Long enough for whoever would be struck out to be.
            await asyncio.sleep(10.0)
            assert all(beaten[n] > before[n] for n in range(PLAIN))
            assert not any(task.done() for task in (*beating, watching))
        finally:
            for task in (*beating, watching):
                task.cancel()
            await asyncio.gather(*beating, watching, return_exceptions=True)
        assert all(client.connected for client in clients)
    return seen


WHOLE = (*[(SESSIONS * EACH // 5,) * 2] * 5, (PLAIN,) * 2)


async def test_a_registry_that_was_stopped_strikes_nobody_out(launch):
    """As a virtual machine that is moved, or a container that is frozen: SIGSTOP, and SIGCONT."""
    registry = await launch(*(f"--{flag}={value}" for flag, value in FLAGS.items()))

    async def stall():
        registry.stop()
        await asyncio.sleep(STALL)
        registry.go_on()

    seen = await through_a_stall(registry.url, registry.address, stall)
    assert len(seen) > 20
    assert set(seen) == {WHOLE}
    for stage in ("unhealthy", "removed"):
        assert await registry.metric("rollbook_expirations_total", stage=stage) == 0
    assert await registry.metric("rollbook_loop_lag_forgiven_seconds_total") > STALL - 3
    assert registry.complaints() == []


class InAThread:
    """A registry with an event loop of its own, which a test can block."""

    def __init__(self, directory):
        self._settings = RegistrySettings(
            data_dir=directory, http_port=0, session_port=0, auth="none", nacos_grpc=False, beat_interval=1.0,
            unhealthy_after=4.0, remove_after=8.0, expiry_tick=0.1,
        )  # fmt: skip
        self._started, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        self.loop = asyncio.get_running_loop()
        async with Server(self._settings) as self.server:
            self._started.set()
            await self._end.wait()

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *exc):
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)


async def test_a_registry_whose_loop_was_blocked_strikes_nobody_out(tmp_path):
    """As by a garbage collection, or by a bug: one callback takes ten seconds."""
    with InAThread(tmp_path) as registry:

        async def stall():
            done = asyncio.Event()
            loop = asyncio.get_running_loop()

            def block():
                time.sleep(STALL)
                loop.call_soon_threadsafe(done.set)

            registry.loop.call_soon_threadsafe(block)
            await done.wait()

        server = registry.server
        seen = await through_a_stall(
            f"http://127.0.0.1:{server.http_port}", f"127.0.0.1:{server.session_port}", stall
        )
        sample = server.book.metrics.registry.get_sample_value
        assert set(seen) == {WHOLE}
        for stage in ("unhealthy", "removed"):
            assert not sample("rollbook_expirations_total", {"stage": stage})
        assert sample("rollbook_loop_lag_forgiven_seconds_total") > STALL - 3


async def test_silence_while_the_registry_looks_on_is_judged_all_the_same(launch):
    """What keeps a stall from being judged does not keep everybody for ever."""
    registry = await launch(*(f"--{flag}={value}" for flag, value in FLAGS.items()))
    status, _ = await registry.request("POST", "/services/plain/instances", {"ip": "10.2.0.1", "port": 80})
    assert status == 201
    registry.stop()
    await asyncio.sleep(3.0)
    registry.go_on()
    async with asyncio.timeout(30):
        while await registry.metric("rollbook_expirations_total", stage="removed") == 0:
            await asyncio.sleep(0.1)
    assert await registry.metric("rollbook_expirations_total", stage="unhealthy") == 1


async def test_a_registry_that_was_held_counts_it_and_says_so(launch):
    registry = await launch("--slow-step=100ms")
    registry.stop()
    await asyncio.sleep(1.0)
    registry.go_on()
    async with asyncio.timeout(30):
        while await registry.metric("rollbook_loop_held_total") == 0:
            await asyncio.sleep(0.1)
        # The machine may have held it before, too: once a minute one is told.
        while not (told := [e for e in registry.log if e.get("event") == "loop_held"]):
            await asyncio.sleep(0.1)
    assert told[0]["seconds"] > 0.1
    assert {"cpu", "collector", "step", "untold"} <= set(told[0])
    assert await registry.metric("rollbook_loop_lateness_seconds_count") > 0
    assert await registry.metric("rollbook_collector_pause_seconds_count", generation="0") > 0
