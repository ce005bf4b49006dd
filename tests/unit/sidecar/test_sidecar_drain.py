from __future__ import annotations

import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer

from rollbook.names import ServiceKey
from rollbook.problems import Problem
from rollbook_sidecar.drain import Drain
from rollbook_sidecar.hooks import Hooks
from rollbook_sidecar.metrics import Metrics

ORDERS = ServiceKey("public", "DEFAULT_GROUP", "orders")


class FakeRegistrar:
    def __init__(self, order):
        self.order = order
        self.withdrawing = False

    def leave(self):
        self.order.append("left")
        self.withdrawing = True


class FakeSession:
    attached = True


class FakeClient:
    def __init__(self, order):
        self.order = order
        self.connected = True
        self.session = FakeSession()
        self.answers = True
        self.opens = asyncio.Event()
        self.opens.set()
        self.timeouts = []

    async def barrier(self, *services, timeout):
        self.order.append("barrier")
        self.timeouts.append(timeout)
        await self.opens.wait()
        if isinstance(self.answers, Problem):
            raise self.answers
        return self.answers


class Bench:
    def __init__(self, *, services=(ORDERS,), timeout=10.0):
        self.order = []
        self.registrar = FakeRegistrar(self.order)
        self.client = FakeClient(self.order)
        self.metrics = Metrics()
        self.now = 0.0
        self.drain = Drain(
            self.client,
            self.registrar,
            services=services,
            timeout=timeout,
            linger=2.0,
            metrics=self.metrics,
            sleep=self._sleep,
            clock=lambda: self.now,
        )

    async def _sleep(self, seconds):
        self.order.append("linger")
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
async def bench():
    return Bench()


async def test_it_leaves_then_waits_for_subscribers_then_lingers(bench):
    drained = await bench.drain.wait()
    assert bench.order == ["left", "barrier", "linger"]
    assert (drained.outcome, drained.lingered) == ("acknowledged", 2.0)
    assert bench.client.timeouts == [10.0]


async def test_concurrent_and_later_calls_share_one_drain(bench):
    bench.client.opens.clear()
    waiting = [asyncio.create_task(bench.drain.wait()) for _ in range(3)]
    await asyncio.sleep(0.01)
    bench.client.opens.set()
    first, *others = await asyncio.gather(*waiting)
    assert all(other is first for other in others)
    assert await bench.drain.wait() is first
    assert bench.order.count("barrier") == 1
    assert bench.order.count("linger") == 1


async def test_a_caller_that_goes_away_does_not_stop_it(bench):
    bench.client.opens.clear()
    caller = asyncio.create_task(bench.drain.wait())
    await asyncio.sleep(0.01)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    bench.client.opens.set()
    assert (await bench.drain.wait()).outcome == "acknowledged"
    assert bench.order.count("barrier") == 1


async def test_without_a_registry_it_only_lingers(bench):
    bench.client.connected = False
    assert (await bench.drain.wait()).outcome == "unreachable"
    assert bench.order == ["left", "linger"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (False, "timeout"),
        (Problem("registry_unreachable", "lost"), "unreachable"),
        (Problem("forbidden", "no"), "refused"),
    ],
)
async def test_whatever_the_registry_answers_it_lingers(bench, answer, outcome):
    bench.client.answers = answer
    assert (await bench.drain.wait()).outcome == outcome
    assert bench.order[-1] == "linger"


async def test_it_waits_no_longer_than_the_timeout():
    bench = Bench(timeout=0.02)
    bench.client.opens.clear()
    assert (await bench.drain.wait()).outcome == "timeout"


async def test_a_timeout_beyond_the_registrys_limit_is_asked_for_in_parts():
    bench = Bench(timeout=70.0)
    bench.client.answers = False

    async def barrier(*_, timeout):
        bench.client.timeouts.append(timeout)
        bench.now += timeout
        return False

    bench.client.barrier = barrier
    assert (await bench.drain.wait()).outcome == "timeout"
    assert bench.client.timeouts == [30.0, 30.0, 10.0]


async def test_who_registers_nothing_asks_nobody():
    bench = Bench(services=())
    assert (await bench.drain.wait()).outcome == "nothing"
    assert bench.order == ["left", "linger"]


async def test_the_barrier_does_not_overtake_the_deregistration(bench):
    bench.client.session.attached = False
    waiting = asyncio.create_task(bench.drain.wait())
    await asyncio.sleep(0.05)
    assert bench.order == ["left"]
    bench.client.session.attached = True
    await waiting
    assert bench.order == ["left", "barrier", "linger"]


async def test_how_long_it_took_is_measured(bench):
    await bench.drain.wait()
    assert b'rollbook_sidecar_drain_seconds_sum{outcome="acknowledged"} 2.0' in bench.metrics.exposition()


@pytest.fixture
async def hooks(bench):
    serving = [True]
    app = Hooks(bench.drain, serving=lambda: serving[0], secret="0123abcd").app()
    async with TestClient(TestServer(app)) as client:
        client.bench = bench
        client.serving = serving
        yield client


KEY = {"X-Rollbook-Drain": "0123abcd"}


async def test_startup_tells_whether_lookups_are_served_and_needs_no_header(hooks):
    assert (await hooks.get("/startup")).status == 200
    hooks.serving[0] = False
    assert (await hooks.get("/startup")).status == 503


@pytest.mark.parametrize("path", ["/drain/self", "/drain/wait"])
@pytest.mark.parametrize("headers", [{}, {"X-Rollbook-Drain": ""}, {"X-Rollbook-Drain": "0123abce"}])
async def test_without_the_pods_secret_nobody_drains_it(hooks, path, headers):
    response = await hooks.get(path, headers=headers)
    assert response.status == 403
    assert response.content_type == "application/problem+json"
    assert (await response.json())["code"] == "forbidden"
    assert hooks.bench.order == []


async def test_the_sidecars_own_hook_deregisters_and_answers_at_once(hooks):
    for _ in range(2):
        response = await hooks.get("/drain/self", headers=KEY)
        assert (response.status, await response.json()) == (200, {"deregistered": True})
    assert set(hooks.bench.order) == {"left"}


async def test_the_applications_hook_answers_when_it_is_safe_to_die(hooks):
    hooks.bench.client.opens.clear()
    waiting = asyncio.create_task(hooks.get("/drain/wait", headers=KEY))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    hooks.bench.client.opens.set()
    response = await waiting
    assert response.status == 200
    assert (await response.json())["outcome"] == "acknowledged"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/drain/wait", 404),
        ("POST", "/drain/wait", 405),
        ("GET", "/services/a", 404),
        ("GET", "/", 404),
    ],
)
async def test_nothing_else_is_served_to_the_pods_neighbours(hooks, method, path, status):
    response = await hooks.request(method, path, headers=KEY)
    assert response.status == status
    assert hooks.bench.order == []
