"""Connections that are too many or not what they should be, and what one client may make grow.

What takes time (slow, silent, deaf and vanished clients) is in tests/robustness.
"""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from rawkit import GET, HEALTH, counted, fill
from registrykit import ORDERS, an_entry, key_of
from rollbook import frames
from rollbook.limits import MAX_SERVICES_PER_BARRIER
from rollbook_registry.connections import Connection, sockets
from serverkit import until

pytestmark = pytest.mark.timeout(60)


# --- slow and silent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"G", GET[:-2], b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_head_that_is_not_completed_is_answered_408(start, connect, begun):
    registry = await start(request_timeout=0.2)
    raw = await connect(registry.server.http_port)
    await raw.say(begun)
    problem, last = await raw.problem()
    assert (problem["code"], problem["status"], last) == ("too_slow", 408, True)
    assert "0.2 s (--request-timeout)" in problem["detail"]
    assert await raw.closed() == b""
    assert counted(registry, "rollbook_connections_closed_total", reason="slow_head") == 1


async def test_a_head_that_comes_in_pieces_in_time_is_answered(start, connect):
    registry = await start(request_timeout=5.0)
    raw = await connect(registry.server.http_port)
    for n in range(0, len(GET), 7):
        await raw.say(GET[n : n + 7])
        await asyncio.sleep(0)
    assert (await raw.answer())[0] == 200


async def test_a_body_that_comes_after_its_head_is_taken(start, connect):
    registry = await start(request_timeout=5.0)
    raw = await connect(registry.server.http_port)
    body = b'{"ip":"10.0.0.1","port":8080}'
    head = f"POST /services/orders/instances HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    await raw.say(head.encode())
    await raw.say(body[:5])
    await asyncio.sleep(0.05)
    await raw.say(body[5:])
    assert (await raw.answer())[0] == 201


# --- too many -------------------------------------------------------------------------------------------


async def test_a_full_registry_says_so_is_not_restarted_for_it_and_takes_sessions(start, connect):
    registry = await start(max_connections=5, max_sessions=3)
    held = [await connect(registry.server.http_port) for _ in range(2)]
    await until(lambda: registry.server.guard.census.counts["http"] == 2)
    refused = await connect(registry.server.http_port)
    await refused.say(GET)
    problem, last = await refused.problem()
    assert (problem["code"], problem["status"], last) == ("registry_full", 503, True)
    assert "(--max-connections less --max-sessions)" in problem["detail"]
    assert await refused.closed() == b""
    probe = await connect(registry.server.http_port)
    await probe.say(HEALTH)
    assert await probe.answer() == (200, b"ok\n", True)
    assert counted(registry, "rollbook_connections_refused_total", reason="http_full") == 2
    speakers = [await registry.speaker() for _ in range(3)]
    for speaker in speakers:
        await speaker.ask(frames.Ping(), frames.Pong)
    late = await connect(registry.server.session_port)
    await late.say(b"GET /session HTTP/1.1\r\nHost: x\r\n\r\n")
    problem, _ = await late.problem()
    assert problem["code"] == "registry_full"
    assert "5 connections and may have no more (--max-connections)" in problem["detail"]
    # Who leaves makes room.
    held[0].writer.close()
    await until(lambda: registry.server.guard.census.counts["http"] == 1)
    assert (await registry.request("GET", "/services"))[0] == 200


async def test_sessions_have_a_limit_of_their_own(start):
    registry = await start(max_sessions=1)
    speaker = await registry.speaker()
    headers = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Protocol": frames.JSON,
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip
    problem = await registry.problem("GET", "/session", headers=headers)
    assert problem["code"] == "registry_full"
    assert "1 sessions and may have no more (--max-sessions)" in problem["detail"]
    await speaker.ws.close()
    await until(lambda: len(registry.server.sessions) == 0)
    await registry.speaker()


async def test_one_address_can_be_held_to_so_many(start, connect):
    registry = await start(max_connections_per_address=1)
    await connect(registry.server.http_port)
    await until(lambda: len(registry.server.guard.census) == 1)
    second = await connect(registry.server.session_port)
    await second.say(b"GET /session HTTP/1.1\r\nHost: x\r\n\r\n")
    problem, _ = await second.problem()
    assert "address 127.0.0.1 has 1 connections and may have no more" in problem["detail"]


async def test_beyond_all_places_connections_are_reset_and_the_registry_goes_on(start, connect):
    registry = await start(max_connections=2, max_sessions=1)
    spare = registry.server.guard.census.limits.spare
    await connect(registry.server.http_port)
    await until(lambda: len(registry.server.guard.census) == 1)
    for _ in range(spare + 20):
        await connect(registry.server.http_port)
    await until(
        lambda: counted(registry, "rollbook_connections_refused_total", reason="http_full") == spare + 20
    )
    assert len(registry.server.guard.census) <= spare + 1
    await (await registry.speaker()).ask(frames.Ping(), frames.Pong)


async def test_a_session_that_came_by_the_http_port_is_counted_as_one(registry):
    await (await registry.speaker(port=registry.server.http_port)).ask(frames.Ping())
    assert registry.server.guard.census.counts == {"http": 0, "session": 1}
    assert counted(registry, "rollbook_connections", kind="session") == 1
    assert counted(registry, "rollbook_sessions") == 1


def test_descriptors_are_asked_for_as_far_as_the_system_allows(monkeypatch):
    import resource  # noqa: PLC0415  # not to be had on every platform

    limits, asked = [1024, 4096], []
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(
        resource, "setrlimit", lambda _, new: asked.append(new) or limits.__setitem__(0, new[0])
    )
    assert sockets.make_room(100) == 100
    assert asked == []
    assert sockets.make_room(2000) == 2000
    assert asked == [(2128, 4096)]
    assert sockets.make_room(10_000) == 4096 - 128


# --- what is no HTTP, or too much of it -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_value"),
        (b"NONSENSE\r\n\r\n", 400, "bad_value"),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400, "bad_value"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400, "bad_value"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 9000 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: a\r\n" * 200 + b"\r\n", 431, "head_too_large"),
    ],
    ids=["tls", "nonsense", "version", "length", "long header", "long line", "many headers"],
)
async def test_what_is_no_request_is_answered_as_a_problem_and_logged_by_nobody(
    registry, connect, caplog, sent, status, code
):
    raw = await connect(registry.server.http_port)
    await raw.say(sent)
    problem, last = await raw.problem()
    assert (problem["status"], problem["code"], last) == (status, code, True)
    assert problem["field"] == "request"
    assert "lines of at most 8190 bytes" in problem["accepted"]
    assert counted(registry, "rollbook_refusals_total", code=code) == 1
    assert "aaaa" not in problem["detail"]
    assert caplog.records == []


async def test_a_body_that_is_too_large_is_a_problem(registry, connect):
    status, body, _ = await registry.request(
        "POST", "/services/orders/instances", data=b" " * (1024 * 1024 + 1)
    )
    assert (status, body["code"]) == (413, "too_large")


# --- half-open ones -------------------------------------------------------------------------------------


async def test_the_kernel_is_told_to_notice_peers_that_have_vanished(start, connect):
    registry = await start(tcp_keepalive=6.0)
    for port in (registry.server.http_port, registry.server.session_port):
        raw = await connect(port)
        await until(lambda: len(registry.server.guard.census) == 1)
        (connection,) = registry.server.guard.census._residents
        taken = connection.transport.get_extra_info("socket")
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for name, value in (
            ("TCP_KEEPIDLE", 6), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 12_000),
        ):  # fmt: skip
            if hasattr(socket, name):
                assert taken.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
        raw.writer.close()
        await until(lambda: len(registry.server.guard.census) == 0)


# --- what aiohttp must go on doing ----------------------------------------------------------------------


async def test_aiohttp_serves_on_connections_of_ours(registry, connect):
    """What ``connection.py`` relies on; if this fails after an upgrade of aiohttp, look there."""
    raw = await connect(registry.server.http_port)
    await raw.say(GET[:10])
    (connection,) = await until(lambda: list(registry.server.guard.census._residents))
    assert isinstance(connection, Connection)
    assert isinstance(connection, web.RequestHandler)
    heads = registry.server.guard.census._heads
    await until(lambda: connection in heads)
    await raw.say(GET[10:])
    await raw.answer()
    assert connection not in heads
    assert connection._at_rest
    assert not connection.writing_paused
    # A session's frames go by the same callback, and are no requests.
    await (await registry.speaker()).ask(frames.Ping())
    assert len(registry.server.guard.census) == 2
    assert not heads


# --- what a session may make grow -----------------------------------------------------------------------


async def test_barriers_of_a_session_are_bounded_and_their_names_checked(start):
    registry = await start(max_barriers=2)
    deaf, speaker = await registry.speaker(), await registry.speaker()
    fill(registry, 1)
    await deaf.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    await speaker.attach()
    orders = ("public", "DEFAULT_GROUP", "orders")
    for n in (1, 2):
        await speaker.say(frames.Barrier(id=n, services=[orders], timeout=60.0))
    problem = await speaker.refused(frames.Barrier(id=3, services=[orders]))
    assert (problem.code, "2 barriers at once (--max-barriers)" in problem.detail) == ("limit_reached", True)
    await deaf.ws.close()
    assert {(await speaker.hear(frames.Done)).id for _ in range(2)} == {1, 2}
    many = [("public", "DEFAULT_GROUP", f"s{n}") for n in range(MAX_SERVICES_PER_BARRIER + 1)]
    assert (await speaker.refused(frames.Barrier(id=4, services=many))).code == "too_large"
    problem = await speaker.refused(frames.Barrier(id=5, services=[("public", "DEFAULT_GROUP", "a b")]))
    assert (problem.code, problem.field) == ("bad_value", "service")
    problem = await speaker.refused(frames.Barrier(id=6, services=[orders], timeout=61.0))
    assert problem.field == "timeout"
    assert not registry.book.outlet._barriers


async def test_full_beats_enter_no_more_than_registering_would(start):
    registry = await start(max_entries=2)
    speaker = await registry.speaker()
    attached = await speaker.attach()
    await speaker.register(an_entry(1), an_entry(2))
    for entries in ([an_entry(3)], [an_entry(n) for n in range(3, 9)]):
        problem = await speaker.refused(frames.Beat(term=attached.term, entries=entries))
        assert (problem.code, "2 instances (--max-entries)" in problem.detail) == ("limit_reached", True)
    await speaker.say(frames.Beat(term=attached.term, entries=[an_entry(1), an_entry(2)]))
    await speaker.ask(frames.Ping(), frames.Pong)
    assert len(registry.catalog.service(ORDERS).instances) == 2


async def test_revisions_that_are_made_up_are_answered_with_the_list_and_cost_nothing(registry):
    fill(registry, 3)
    speaker = await registry.speaker()
    for made_up in (*range(1000, 1100), "9" * 5000, "\u0663", "-1", "1e3"):
        revision = f"{registry.book.boot}.{made_up}"
        snapshot = await speaker.ask(
            frames.Subscribe(id=1, service="orders", revision=revision, digest="0" * 16), frames.Snapshot
        )
        assert len(snapshot.instances) == 3
    assert len(registry.book.outlet._topics[ORDERS].by_base) == 1


async def test_long_polls_are_bounded_and_end_with_their_client(start, connect):
    registry = await start(max_long_polls=2)
    etag = (await registry.request("GET", "/services/orders"))[1]["revision"]
    poll = f"GET /services/orders?wait=60s&revision={etag} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    waiting = [await connect(registry.server.http_port) for _ in range(2)]
    for raw in waiting:
        await raw.say(poll)
    await until(lambda: len(registry.book.outlet._watchers.get(ORDERS, ())) == 2)
    problem = await registry.problem("GET", f"/services/orders?wait=60s&revision={etag}")
    assert (problem["code"], "2 requests wait" in problem["detail"]) == ("limit_reached", True)
    assert "--max-long-polls" in problem["detail"]
    waiting[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    waiting[0].writer.transport.abort()
    await until(lambda: len(registry.book.outlet._watchers.get(ORDERS, ())) == 1)
    fill(registry, 1)
    assert (await waiting[1].answer())[0] == 200
    assert registry.book.outlet._watchers == {}
    assert registry.catalog.service(key_of("nobody")) is None
