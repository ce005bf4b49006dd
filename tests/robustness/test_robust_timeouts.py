"""Clients that are slow, silent or deaf, each held to the limit that a setting names."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from rawkit import GET, counted, fill
from registrykit import ORDERS, an_entry
from rollbook import frames
from rollbook_registry.api.sessions import DIALECTS
from rollbook_registry.push.outlet import _Topic
from serverkit import until

pytestmark = pytest.mark.timeout(60)


async def test_who_never_asks_is_closed(start, connect):
    registry = await start(request_timeout=0.2)
    for port in (registry.server.http_port, registry.server.session_port):
        raw = await connect(port)
        assert await raw.closed() == b""
    # At the session's port it may have been aiohttp's own timer.
    assert counted(registry, "rollbook_connections_closed_total", reason="never_asked") >= 1
    await until(lambda: len(registry.server.guard.census) == 0)


async def test_trickling_bytes_buy_no_time(start, connect):
    registry = await start(request_timeout=0.4)
    raw = await connect(registry.server.http_port)
    began = time.monotonic()

    async def trickle():
        await raw.say(GET[:-2] + b"X-A: ")
        with contextlib.suppress(ConnectionError):
            while True:
                await raw.say(b"a")
                await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    assert b" 408 " in await raw.closed()
    trickling.cancel()
    # Five times what it must be, for machines that are busy.
    assert time.monotonic() - began < 2.5


async def test_between_requests_a_connection_may_rest_for_longer_than_a_request_may_take(start, connect):
    registry = await start(request_timeout=0.1, keepalive_timeout=0.8)
    raw = await connect(registry.server.http_port)
    for _ in range(2):
        await raw.say(GET)
        assert (await raw.answer())[0] == 200
        await asyncio.sleep(0.3)
    # Its next request is held to the same time as its first.
    await raw.say(GET[:10])
    assert (await raw.problem())[0]["code"] == "too_slow"


async def test_a_connection_that_rests_too_long_is_closed(start, connect):
    registry = await start(keepalive_timeout=0.2)
    raw = await connect(registry.server.http_port)
    await raw.say(GET)
    assert (await raw.answer())[0] == 200
    assert await raw.closed() == b""


async def test_nobody_rests_at_the_sessions_port_without_a_session(start, connect):
    registry = await start(request_timeout=0.2)
    raw = await connect(registry.server.session_port)
    await raw.say(b"GET /session HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await raw.problem())[0]["code"] == "bad_value"
    assert await raw.closed() == b""


async def test_a_body_that_trickles_is_answered_408(start, connect):
    registry = await start(request_timeout=0.2)
    raw = await connect(registry.server.http_port)
    await raw.say(b"POST /services/orders/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    problem, last = await raw.problem()
    assert (problem["code"], last) == ("too_slow", True)
    assert "body" in problem["detail"]
    await raw.closed()


async def test_time_that_the_registry_missed_is_not_its_clients(start, connect):
    registry = await start(request_timeout=0.4)
    raw = await connect(registry.server.http_port)
    await raw.say(GET[:10])
    await until(lambda: registry.server.guard.census._heads)
    time.sleep(1.0)  # the loop stands still, as a process does that is stopped
    await raw.say(GET[10:])
    assert (await raw.answer())[0] == 200


async def test_who_does_not_read_its_answers_is_cut_off(start, connect):
    registry = await start(write_timeout=0.3)
    fill(registry)
    raw = await connect(registry.server.http_port, limit=1)
    raw.writer.transport.pause_reading()
    await raw.say(GET * 20)
    await until(lambda: counted(registry, "rollbook_connections_closed_total", reason="not_reading") == 1)
    await until(lambda: len(registry.server.guard.census) == 0)


async def test_who_reads_slowly_but_reads_is_not(start, connect):
    registry = await start(write_timeout=2.0)
    fill(registry)
    raw = await connect(registry.server.http_port)
    await raw.say(GET * 10)
    for _ in range(10):
        await asyncio.sleep(0.05)
        assert (await raw.answer())[0] == 200
    assert counted(registry, "rollbook_connections_closed_total", reason="not_reading") is None


async def test_who_was_not_let_in_and_does_not_ask_is_told_and_closed_soon(start, connect):
    registry = await start(max_connections=2, max_sessions=1, request_timeout=0.4)
    await connect(registry.server.http_port)
    await until(lambda: len(registry.server.guard.census) == 1)
    raw = await connect(registry.server.http_port)
    assert (await raw.problem())[0]["code"] == "registry_full"
    assert await raw.closed() == b""


async def test_who_does_not_acknowledge_is_closed_and_holds_no_barrier_up(start):
    registry = await start(ack_timeout=0.2)
    deaf, provider = await registry.speaker(), await registry.speaker()
    await deaf.attach("deaf")
    await deaf.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    await provider.attach("provider")
    await provider.register(an_entry())
    done = await provider.ask(
        frames.Barrier(id=2, services=[("public", "DEFAULT_GROUP", "orders")], timeout=10.0), frames.Done
    )
    assert done.complete
    message = await deaf.ws.receive(timeout=10)
    assert (message.data, message.extra) == (4003, "orders not acknowledged for 0.2 s (--ack-timeout)")
    assert counted(registry, "rollbook_sessions_closed_total", reason="not_acknowledging") == 1
    await until(lambda: len(registry.server.sessions) == 1)
    assert registry.book.outlet.subscriptions == 0
    assert list(registry.book.outlet.unacknowledged(0.0)) == []


async def test_who_asks_again_and_again_without_acknowledging_is_closed_too(start):
    registry = await start(ack_timeout=0.3)
    fill(registry, 3)
    deaf = await registry.speaker()
    with contextlib.suppress(ConnectionError):
        while not deaf.ws.closed:
            await deaf.say(frames.Subscribe(id=1, service="orders"))
            await asyncio.sleep(0.02)
            if counted(registry, "rollbook_sessions_closed_total", reason="not_acknowledging"):
                break
    await until(lambda: not registry.book.outlet.subscriptions)


async def test_who_acknowledges_is_left_alone(start):
    registry = await start(ack_timeout=0.2)
    speaker = await registry.speaker()
    snapshot = await speaker.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    await speaker.say(frames.Ack(service="orders", revision=snapshot.revision))
    fill(registry, 1)
    delta = await speaker.hear(frames.Delta)
    await speaker.say(frames.Ack(service="orders", revision=delta.revision))
    current = await speaker.ask(
        frames.Subscribe(id=2, service="orders", revision=delta.revision, digest=delta.digest), frames.Current
    )
    assert current.revision == delta.revision
    await asyncio.sleep(0.6)
    await speaker.ask(frames.Ping(), frames.Pong)


async def test_an_acknowledgement_that_came_while_the_registry_stood_still_counts(start):
    registry = await start(ack_timeout=0.4)
    speaker = await registry.speaker()
    snapshot = await speaker.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    await speaker.say(frames.Ack(service="orders", revision=snapshot.revision))
    time.sleep(0.6)
    await asyncio.sleep(0.25)
    await speaker.ask(frames.Ping(), frames.Pong)


async def test_a_word_that_came_while_the_registry_stood_still_keeps_a_session_from_being_idle(start):
    registry = await start(idle_timeout=0.5)
    speaker = await registry.speaker()
    await speaker.ask(frames.Ping())
    await speaker.say(frames.Ping(n=7))
    time.sleep(0.7)
    assert (await speaker.hear(frames.Pong)).n == 7
    await asyncio.sleep(0.2)
    await speaker.ask(frames.Ping(), frames.Pong)


async def test_a_session_that_does_not_read_is_cut_off_and_its_memory_is_bounded(start):
    registry = await start(write_timeout=0.5, ack_timeout=30.0)
    fill(registry)
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    speaker.ws._response.connection.transport.pause_reading()

    async def flood():
        with contextlib.suppress(ConnectionError):
            while True:
                await speaker.say(frames.Subscribe(id=1, service="orders"))
                await asyncio.sleep(0.005)

    flooding = asyncio.create_task(flood())
    (line,) = registry.server.sessions._open
    transport = line._socket._transport
    most = 0
    while not counted(registry, "rollbook_connections_closed_total", reason="not_reading"):
        most = max(most, transport.get_write_buffer_size())
        await asyncio.sleep(0.01)
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    # One list and what the buffer holds besides, however often it was asked for.
    assert most < 2 * len(
        registry.book.outlet._encoded(
            _Topic(ORDERS), registry.catalog.service(ORDERS), -1, DIALECTS[frames.MSGPACK]
        )
    )
    await until(lambda: len(registry.server.sessions) == 0)
    assert registry.catalog.lease("a") is None
    speaker.ws._response.close()


async def test_what_is_sent_after_the_answer_does_not_cost_the_answer(start, connect):
    registry = await start(request_timeout=0.2)
    raw = await connect(registry.server.http_port)
    raw.writer.transport.pause_reading()
    await raw.say(GET[:10])
    await until(lambda: counted(registry, "rollbook_connections_closed_total", reason="slow_head") == 1)
    # To a closed socket the first byte would bring a reset, and the second an error.
    for _ in range(3):
        await raw.say(b"a")
        await asyncio.sleep(0.05)
    raw.writer.transport.resume_reading()
    assert (await raw.problem())[0]["code"] == "too_slow"
    assert await raw.closed() == b""
