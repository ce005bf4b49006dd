"""Answering the roll: registration, checks and draining of a sidecar in this process."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from rollbook import frames
from rollbook.problems import Problem

KEY = {"X-Rollbook-Drain": "0123abcd"}
ORDERS = {"service": "orders", "ports": "8080", "ip": "10.0.0.7", "drain_secret": "0123abcd"}


async def application(port: int = 0) -> tuple[asyncio.Server, int]:
    async def accept(_, writer):
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    return server, server.sockets[0].getsockname()[1]


def states(registry) -> list[bool]:
    return [ref not in registry.down for ref in registry.entries]


async def test_without_a_service_it_registers_nothing(registry, run):
    async with run(registry.address) as caller:
        await caller.get("/services/orders")
        assert registry.got(frames.Attach) == []
        _, health = await caller.get("/healthz")
        assert health["registration"] == "idle"


async def test_it_registers_and_at_the_end_releases_its_lease(registry, run, eventually):
    async with run(registry.address, **ORDERS, owner="uid-1") as caller:
        await eventually(lambda: caller.sidecar.registrar.state == "registered")
        (entry,) = registry.entries.values()
        assert (entry.ip, entry.port, entry.owner, entry.alive) == ("10.0.0.7", 8080, "uid-1", True)
        assert registry.got(frames.Release) == []
    assert len(registry.got(frames.Release)) == 1
    assert registry.entries == {}


async def test_the_address_is_the_one_that_faces_the_registry(registry, run, eventually):
    async with run(registry.address, service="orders", ports="8080"):
        await eventually(lambda: registry.entries)
        assert [e.ip for e in registry.entries.values()] == ["127.0.0.1"]


async def test_it_is_alive_from_the_first_check_that_succeeds(registry, run, eventually, free_port):
    port = free_port()
    settings = {**ORDERS, "ip": "127.0.0.1", "ports": str(port), "health_check": "tcp", "check_interval": 0.1}
    async with run(registry.address, **settings):
        await eventually(lambda: registry.entries)
        assert states(registry) == [False]
        server, _ = await application(port)
        async with server:
            await eventually(lambda: states(registry) == [True])
        # Both changes come by a beat at once, not by the next one that is due.
        await eventually(lambda: states(registry) == [False])
        server, _ = await application(port)
        async with server:
            await eventually(lambda: states(registry) == [True])


async def test_each_port_is_alive_by_itself(registry, run, eventually, free_port):
    server, port = await application()
    other = free_port()
    settings = {**ORDERS, "ip": "127.0.0.1", "ports": f"a={port},b={other}", "health_check": "tcp"}
    async with server, run(registry.address, **settings):
        await eventually(lambda: sorted(states(registry)) == [False, True])
        alive = {ref.port: ref not in registry.down for ref in registry.entries}
        assert alive == {port: True, other: False}


async def test_registering_afresh_tells_what_is_true_then(registry, run, eventually):
    server, port = await application()
    settings = {**ORDERS, "ip": "127.0.0.1", "ports": str(port), "health_check": "tcp"}
    async with server, run(registry.address, **settings):
        await eventually(lambda: states(registry) == [True])
        await registry.stop()
        registry.frames.clear()
        registry.entries.clear()
        await registry.start()
        await eventually(lambda: registry.entries)
        assert [e.alive for e in registry.got(frames.Register)[0].entries] == [True]


async def test_an_instance_with_short_timings_is_answered_for_more_often(registry, run, eventually):
    async with run(registry.address, **ORDERS, heartbeat_interval=0.3):
        # The registry itself expects one every 5 seconds.
        await eventually(lambda: registry.got(frames.Beat), 3.0)


async def test_after_410_it_never_registers_again_and_goes_on_answering(registry, run, eventually):
    registry.refusals[frames.Register] = Problem("pod_terminating", "the pod is terminating")
    async with run(registry.address, **ORDERS) as caller:
        await eventually(lambda: caller.sidecar.registrar.state == "dismissed")
        registry.refusals.clear()
        await registry.stop()
        registry.frames.clear()
        await registry.start()
        response, _ = await caller.get("/services/orders")
        assert response.status == 200
        await registry.until(lambda: registry.got(frames.Subscribe))
        assert registry.got(frames.Register) == []


async def test_a_beat_that_is_refused_with_410_ends_it_too(registry, run, eventually):
    async with run(registry.address, **ORDERS, heartbeat_interval=0.3) as caller:
        await eventually(lambda: caller.sidecar.registrar.state == "registered")
        registry.refusals[frames.Beat] = Problem("pod_gone", "the pod is gone")
        await eventually(lambda: caller.sidecar.registrar.state == "dismissed")


async def test_another_refusal_is_tried_again(registry, run, eventually):
    registry.refusals[frames.Register] = Problem("forbidden", "not yours")
    async with run(registry.address, **ORDERS) as caller:
        await eventually(lambda: caller.sidecar.registrar.state == "refused")
        registry.refusals.clear()
        await eventually(lambda: caller.sidecar.registrar.state == "registered")
        assert len(registry.entries) == 1


async def test_the_token_is_read_at_each_connection(registry, run, tmp_path, eventually, monkeypatch):
    token = tmp_path / "token"
    token.write_text("first\n")
    shown = []
    session = registry._session

    async def listen(request):
        shown.append(request.headers.get("Authorization"))
        return await session(request)

    monkeypatch.setattr(registry, "_session", listen)
    await registry.stop()
    await registry.start()
    async with run(registry.address, token_file=token):
        await eventually(lambda: shown == ["Bearer first"])
        token.write_text("second")
        await registry.stop()
        await registry.start()
        await eventually(lambda: shown[-1] == "Bearer second")


async def test_a_token_that_cannot_be_read_does_not_stop_lookups(registry, run, tmp_path, eventually):
    token = tmp_path / "token"
    async with run(registry.address, token_file=token, first_lookup_timeout=0.05) as caller:
        response, _ = await caller.get("/services/orders")
        assert response.status == 503
        token.write_bytes(b"\xff not\na token")
        await asyncio.sleep(0.3)
        assert not caller.sidecar.client.connected
        token.write_text("here now")
        await eventually(lambda: caller.sidecar.client.connected)


async def test_an_outage_is_warned_of_once(absent_registry, run, eventually, monkeypatch):
    monkeypatch.setattr("rollbook_sidecar.app.OUTAGE_AFTER", 0.02)
    with capture_logs() as logs:
        async with run(absent_registry):
            await eventually(lambda: [line for line in logs if line["event"] == "registry_unreachable"])
            await asyncio.sleep(0.1)
    assert len([line for line in logs if line["event"] == "registry_unreachable"]) == 1


async def test_draining_deregisters_waits_for_subscribers_and_never_registers_again(
    registry, run, eventually
):
    registry.barrier_opens.clear()
    async with run(registry.address, **ORDERS, hooks_host="127.0.0.1") as caller:
        await eventually(lambda: caller.sidecar.registrar.state == "registered")
        waits = [asyncio.create_task(caller.get("/drain/wait", hooks=True, headers=KEY)) for _ in range(2)]
        await registry.until(lambda: registry.got(frames.Barrier))
        kinds = [type(f) for f in registry.frames]
        assert kinds.index(frames.Deregister) < kinds.index(frames.Barrier)
        assert registry.got(frames.Barrier)[0].services == [("public", "DEFAULT_GROUP", "orders")]
        assert not any(w.done() for w in waits)
        registry.barrier_opens.set()
        for response, drained in await asyncio.gather(*waits):
            assert (response.status, drained["outcome"]) == (200, "acknowledged")
        assert len(registry.got(frames.Barrier)) == 1
        assert registry.entries == {}

        await registry.stop()
        registry.frames.clear()
        await registry.start()
        await eventually(lambda: caller.sidecar.client.connected)
        response, _ = await caller.get("/services/orders")
        assert response.status == 200
        assert registry.got(frames.Register) == []


async def test_the_sidecars_own_hook_deregisters(registry, run, eventually):
    async with run(registry.address, **ORDERS, hooks_host="127.0.0.1") as caller:
        await eventually(lambda: registry.entries)
        response, _ = await caller.get("/drain/self", hooks=True, headers=KEY)
        assert response.status == 200
        await registry.until(lambda: not registry.entries)


async def test_nobody_drains_without_the_secret(registry, run, eventually):
    async with run(registry.address, **ORDERS, hooks_host="127.0.0.1") as caller:
        await eventually(lambda: registry.entries)
        response, _ = await caller.get("/drain/wait", hooks=True)
        assert response.status == 403
        _, health = await caller.get("/healthz")
        assert health["registration"] == "registered"
        assert registry.got(frames.Deregister) == []


async def test_a_drain_during_an_outage_only_lingers_and_is_said_later(registry, run, eventually):
    async with run(registry.address, **ORDERS, hooks_host="127.0.0.1") as caller:
        await eventually(lambda: caller.sidecar.registrar.state == "registered")
        await registry.stop()
        await eventually(lambda: not caller.sidecar.client.connected)
        _, drained = await caller.get("/drain/wait", hooks=True, headers=KEY)
        assert drained["outcome"] == "unreachable"
        registry.frames.clear()
        await registry.start()
        await registry.until(lambda: registry.got(frames.Deregister))
        assert registry.got(frames.Register) == []


async def test_a_port_that_is_taken_is_named_with_its_flag(registry, run, free_port):
    server, port = await application()
    async with server:
        with pytest.raises(Exception, match="--lookup-port"):
            async with run(registry.address, lookup_port=port):
                pass
        with pytest.raises(Exception, match="--hooks-port"):
            async with run(registry.address, hooks_port=port):
                pass
