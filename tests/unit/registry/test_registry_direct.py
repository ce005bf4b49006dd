"""The direct way past aiohttp: what it recognises and keeps, and that it changes no rule of connections."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from rawkit import GET, counted, fill
from rollbook_registry.connections.plain import MAX_HEAD_BYTES, REMEMBERED, Head, Reader

LINE = b"GET /services/orders HTTP/1.1"


def read(data, max_body=1000):
    return Reader(max_body=max_body).read(data)


def test_what_a_plain_request_says():
    request = read(
        b'POST /x HTTP/1.1\r\nhOST: a\r\nContent-Length: 5\r\nIf-None-Match: "a"\r\n'
        b"Authorization: Bearer b\r\n\r\n{abc"
    )
    assert request.line == b"POST /x HTTP/1.1"
    assert request.head == Head(5, "Bearer b", '"a"')
    assert (request.body, request.missing) == (b"{abc", 1)


@pytest.mark.parametrize(
    "data",
    [
        LINE + b"\r\n\r\n",
        LINE + b"\r\nHost: a\r\n",
        LINE + b"\r\nHost: a\r\nHost: a\r\n\r\n",
        LINE + b"\r\nHost: a\r\n\r\nG",
        LINE + b"\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        LINE + b"\r\nHost: a\r\nConnection: close\r\n\r\n",
        LINE + b"\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
        LINE + b"\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        LINE + b"\r\nHost: a\r\nContent-Length: 1001\r\n\r\n",
        LINE + b"\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
        LINE + b"\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        LINE + b"\r\nHost: a\r\nX-A: \xff\r\n\r\n",
        LINE + b"\r\nHost: a\r\nX-A: a\nb: c\r\n\r\n",
        LINE + b"\r\nHost : a\r\n\r\n",
        LINE + b"\r\nHost: a\r\n folded: b\r\n\r\n",
        LINE + b"\r\nHost: a\r\nX-A: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        LINE + b"\nHost: a\n\n",
        b"CONNECT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na",
        b"get /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET /x\ny HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n" + LINE + b"\r\nHost: a\r\n\r\n",
        b"",
        b"\r\n\r\n",
    ],
)
def test_what_could_be_read_in_two_ways_is_not_recognised(data):
    assert read(data) is None


def test_heads_are_remembered_and_not_for_ever():
    reader = Reader(max_body=0)
    for n in range(3 * REMEMBERED):
        assert reader.read(LINE + b"\r\nHost: a\r\nX-A: %d\r\n\r\n" % n) is not None
        assert reader._head.cache_info().currsize <= REMEMBERED


async def test_a_connection_that_is_answered_directly_rests_as_long_as_any_other(start, connect):
    registry = await start(keepalive_timeout=1.0)
    raw = await connect(registry.server.http_port)
    ends = []
    for _ in range(3):
        await raw.say(GET)
        assert (await raw.answer())[0] == 200
        (connection,) = registry.server.guard.census._residents
        ends.append(connection._next_keepalive_close_time)
        await asyncio.sleep(0.01)
    assert connection._bypass is not None
    assert sorted(set(ends)) == ends, "each answer is a new beginning"
    assert await raw.closed() == b""


async def test_who_does_not_read_is_answered_no_more_until_he_does(start, connect):
    registry = await start()
    fill(registry)
    raw = await connect(registry.server.http_port)
    raw.writer.transport.pause_reading()
    asked, length = 0, 500 * 2000
    while not registry.server.guard.census._unread:
        await raw.say(GET)
        asked += 1
        await asyncio.sleep(0.01)
        assert asked < 100
    piled = raw_buffer(registry)
    for _ in range(5):
        await raw.say(GET)
        await asyncio.sleep(0.01)
    # What is asked now waits as a request: at most one is answered into a buffer that is full already.
    assert raw_buffer(registry) < piled + 2 * length
    raw.writer.transport.resume_reading()
    for _ in range(asked + 5):
        status, body, _ = await raw.answer()
        assert (status, len(msgspec.json.decode(body)["instances"])) == (200, 500)


def raw_buffer(registry):
    (connection,) = registry.server.guard.census._residents
    return connection.transport.get_write_buffer_size()


async def test_who_was_not_let_in_is_told_so(start, connect):
    registry = await start(max_connections=2, max_sessions=1)
    first = await connect(registry.server.http_port)
    await first.say(GET)
    assert (await first.answer())[0] == 200
    second = await connect(registry.server.http_port)
    await second.say(GET)
    assert (await second.problem())[0]["code"] == "registry_full"


async def test_refusals_are_counted_once(registry, connect):
    raw = await connect(registry.server.http_port)
    await raw.say(b"PUT /services/orders/instances/10.0.0.1:80/beat HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await raw.problem())[0]["code"] == "unknown_instance"
    assert counted(registry, "rollbook_refusals_total", code="unknown_instance") == 1
    assert counted(registry, "rollbook_beats_total", transport="http", result="refused") == 1


async def test_a_failure_is_answered_and_logged(registry, connect, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(registry.book, "apply", fails)
    raw = await connect(registry.server.http_port)
    await raw.say(b"PUT /services/orders/instances/10.0.0.1:80/beat HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await raw.problem())[0]["code"] == "internal"
    assert "direct_failed" in capsys.readouterr().out
