"""Many clients at once that do nothing good, against a registry as users run it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import statistics
import struct
import time

import pytest

from rawkit import GET, HEALTH
from registrykit import a_ref, an_entry
from rollbook.client import Client
from rollbook.limits import MAX_FRAME_BYTES

pytestmark = pytest.mark.timeout(300)

IDLE = 10_000
POST = b"POST /services/orders/instances HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: rollbook.v1.msgpack\r\n\r\n"
)


@pytest.fixture(autouse=True)
def descriptors():
    """Let this process have as many connections as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def settle(condition, timeout=30.0):
    """Wait until a coroutine function returns something true."""
    async with asyncio.timeout(timeout):
        while not (value := await condition()):
            await asyncio.sleep(0.05)
    return value


async def connections(registry):
    """How many there are, besides the one that asks."""
    kinds = [await registry.metric("rollbook_connections", kind=kind) for kind in ("http", "session")]
    return sum(kinds) - 1


async def quickness(registry, count=200):
    """Median and worst seconds of requests for a list, one after the other."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        assert (await registry.get("/services/orders"))[0] == 200
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), max(taken)


async def test_slow_loris_takes_nothing_from_others(launch, connect):
    """Hundreds of heads and bodies that come a byte at a time."""
    registry = await launch("--request-timeout", "8s")
    assert (await registry.request("POST", "/services/orders/instances", {"ip": "10.0.0.1", "port": 80}))[
        0
    ] == 201
    before, _ = await quickness(registry)
    slow = [await connect(registry.http_port if n % 2 else registry.session_port) for n in range(300)]
    slow += [await connect(registry.http_port) for _ in range(100)]
    for n, raw in enumerate(slow):
        if n < 300:
            await raw.say(GET[:-2] + b"X-Slow: ")
        else:
            await raw.say(
                b"POST /services/orders/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{"
            )

    async def trickle():
        while True:
            for raw in slow:
                with contextlib.suppress(ConnectionError, RuntimeError):
                    raw.writer.write(b"a")
            await asyncio.sleep(0.3)

    trickling = asyncio.create_task(trickle())
    assert await settle(lambda: _are_in(registry, 400))
    during, _ = await quickness(registry)
    async with Client(registry.address) as client:
        client.put(an_entry())
        await client.confirmed(a_ref())
    assert during < 10 * before + 0.01
    answers = await asyncio.gather(*(raw.closed(30) for raw in slow))
    trickling.cancel()
    # Whoever goes on sending is reset, which may overtake the answer; nobody is left waiting.
    assert any(b" 408 " in a for a in answers)
    # Heads are ended by the guard of connections, bodies by whoever waits for them.
    assert await registry.metric("rollbook_connections_closed_total") == 300
    assert await registry.metric("rollbook_refusals_total", code="too_slow") == 100
    assert await settle(lambda: _none_left(registry))
    assert registry.complaints() == []


async def _are_in(registry, count):
    return await connections(registry) == count


async def _none_left(registry):
    return await _are_in(registry, 0)


async def test_a_thousand_clients_that_connect_and_reset_leave_nothing_behind(launch):
    registry = await launch()
    loop = asyncio.get_running_loop()
    rss = []
    for _ in range(3):
        for n in range(1000):
            raw = socket.socket()
            raw.setblocking(False)  # the socket module's own signature
            await loop.sock_connect(
                raw, ("127.0.0.1", registry.session_port if n % 2 else registry.http_port)
            )
            said = (b"", GET[: n % len(GET)], GET, UPGRADE, UPGRADE + b"\x82\xfe\xff\xff")[n % 5]
            await loop.sock_sendall(raw, said)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
        assert await settle(lambda: _none_left(registry))
        rss.append(registry.rss())
    assert await registry.metric("rollbook_sessions") == 0
    assert await registry.metric("rollbook_leases") == 0
    # The first thousand may make room that stays; the others find it.
    assert rss[2] < rss[0] + 5
    assert registry.complaints() == []


async def test_what_is_too_large_is_refused_and_costs_nothing(launch, connect):
    registry = await launch()
    before = registry.rss()
    large = b"x" * (64 * 1024)

    async def flood(head, port, chunk):
        raw = await connect(port)
        await raw.say(head)
        with contextlib.suppress(ConnectionError, RuntimeError):
            for _ in range(400):  # 25 MiB
                await raw.say(chunk)
        return await raw.closed(30)

    length = f"Content-Length: {400 * len(large)}\r\n\r\n".encode()
    chunked = b"%x\r\n%b\r\n" % (len(large), large)
    frame = UPGRADE + struct.pack("!BBQ", 0x82, 0x80 | 127, MAX_FRAME_BYTES * 10) + b"\0\0\0\0"
    answers = await asyncio.gather(
        *(flood(POST + length, registry.http_port, large) for _ in range(10)),
        *(flood(POST + CHUNKED, registry.http_port, chunked) for _ in range(10)),
        *(flood(b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: ", registry.http_port, large) for _ in range(10)),
        *(flood(frame, registry.session_port, large) for _ in range(10)),
    )
    # What is still on its way may reset the connection before its answer is read.
    assert all(not a or a.startswith((b"HTTP/1.1 413", b"HTTP/1.0 431", b"HTTP/1.1 101")) for a in answers)
    # A gigabyte came. What may be held of it is 1 MiB of each of 20 bodies, twice while it is put together.
    assert registry.rss() < before + 80
    assert (await registry.get("/healthz")) == (200, b"ok\n")
    assert await settle(lambda: _none_left(registry))
    assert registry.complaints() == []


async def hold(registry, count):
    """Open connections that have made one request each, and rest."""
    loop = asyncio.get_running_loop()
    held = []

    async def one():
        raw = socket.socket()
        raw.setblocking(False)  # the socket module's own signature
        await loop.sock_connect(raw, ("127.0.0.1", registry.http_port))
        await loop.sock_sendall(raw, HEALTH)
        assert (await loop.sock_recv(raw, 1000)).startswith(b"HTTP/1.1 200")
        held.append(raw)

    for n in range(0, count, 200):
        await asyncio.gather(*(one() for _ in range(min(200, count - n))))
    return held


async def test_ten_thousand_idle_connections_cost_others_nothing_and_leave_no_memory_behind(
    launch, descriptors
):
    count = min(IDLE, descriptors - 1000)
    registry = await launch("--max-connections", str(count + 600), "--max-sessions", "100")
    async with Client(registry.address) as client:
        client.put(an_entry())
        await client.confirmed(a_ref())
        before, _ = await quickness(registry)
        empty = registry.rss()
        sizes = []
        for _ in range(2):
            held = await hold(registry, count)
            assert await connections(registry) >= count
            full = registry.rss()
            during, worst = await quickness(registry)
            # The sweeper and the kernel look at no resting connection.
            assert during < 3 * before + 0.005
            assert worst < 2.0
            subscription = await client.subscribe("orders")
            assert len(subscription.instances) == 1
            for raw in held:
                raw.close()
            assert await settle(lambda: _but_one_left(registry))
            sizes.append((full, registry.rss()))
        assert client.connected
    print(f"\nRSS in MiB: empty {empty:.1f}, then (full, after) {sizes}, {count} connections")
    per_connection = (sizes[0][0] - empty) * 1024 / count
    assert per_connection < 20, "KiB"
    # Some goes back to the system; what the allocator keeps goes to the next ones, who need no more.
    assert sizes[0][1] < empty + 0.8 * (sizes[0][0] - empty)
    assert sizes[1][0] < sizes[0][0] * 1.05
    assert registry.complaints() == []


async def _but_one_left(registry):
    return await connections(registry) == 1


async def test_a_full_registry_goes_on_for_those_who_are_in_and_for_sessions(launch, connect):
    registry = await launch("--max-connections", "300", "--max-sessions", "100")
    held = await hold(registry, 200)
    async with Client(registry.address) as client:
        client.put(an_entry())
        await client.confirmed(a_ref())
        for _ in range(50):
            refused = await connect(registry.http_port)
            await refused.say(GET)
            status, _, last = await refused.answer()
            assert (status, last) == (503, True)
            probe = await connect(registry.http_port)
            await probe.say(HEALTH)
            assert (await probe.answer())[0] == 200
    for raw in held:
        raw.close()
    assert await settle(lambda: _none_left(registry))
    assert await registry.metric("rollbook_connections_refused_total", reason="http_full") >= 100
