"""Peers that vanish without a word, and subscribers that stop reading."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from rawkit import HEALTH
from registrykit import ORDERS, a_ref, an_entry
from rollbook import frames
from rollbook.client import Client
from serverkit import Speaker

pytestmark = pytest.mark.timeout(120)

TCP_REPAIR = 19
"""Linux: a socket in repair mode is closed without a word to its peer (tcp(7), CRIU's own means)."""


def vanish(taken: socket.socket) -> None:
    """Take a connection's end away as a power cut does: its peer hears nothing.

    A socket that is asked afterwards is answered by the kernel that it has gone; where the whole machine has
    gone nobody answers, and the kernel gives up after the probes that it was told to send.
    """
    try:
        taken.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except PermissionError:
        pytest.skip("a connection can be cut without a word only with CAP_NET_ADMIN (run as root)")


async def settle(condition, timeout=30.0):
    async with asyncio.timeout(timeout):
        while not (value := await condition()):
            await asyncio.sleep(0.05)
    return value


async def test_connections_whose_peer_has_vanished_are_noticed_long_before_they_would_be_idle(launch):
    registry = await launch(
        "--tcp-keepalive", "1s", "--keepalive-timeout", "1h", "--idle-timeout", "1h", "--ack-timeout", "1h"
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    resting = socket.socket()
    resting.setblocking(False)  # the socket module's own signature
    await loop.sock_connect(resting, ("127.0.0.1", registry.http_port))
    await loop.sock_sendall(resting, HEALTH)
    assert (await loop.sock_recv(resting, 1000)).startswith(b"HTTP/1.1 200")
    async with aiohttp.ClientSession() as http:
        ws = await http.ws_connect(f"{registry.url}/session", protocols=[frames.MSGPACK])
        speaker = Speaker(ws, frames.Codec(frames.MSGPACK))
        await speaker.attach()
        await speaker.register(an_entry())
        taken = ws._response.connection.transport.get_extra_info("socket")
        assert await registry.metric("rollbook_connections", kind="http") == 2
        assert await registry.metric("rollbook_sessions") == 1
        # What vanishes is the descriptor's last user: the transport has it still, so it is closed by itself.
        for end in (resting, taken):
            vanish(end)
        resting.close()
        ws._response.connection.transport.abort()

        async def noticed():
            return (
                await registry.metric("rollbook_sessions") == 0
                and await registry.metric("rollbook_connections", kind="http") == 1
            )

        assert await settle(noticed)
    # Its lease goes on: whoever was there may come back.
    assert await registry.metric("rollbook_leases") == 1
    assert registry.complaints() == []


async def test_deaf_subscribers_of_a_busy_service_cost_little_are_closed_and_hold_nobody_up(launch):
    registry = await launch("--ack-timeout", "3s", "--write-timeout", "3s")
    async with Client(registry.address) as provider, Client(registry.address) as caller:
        entries = [an_entry(n + 1, metadata={"x": "y" * 2000}) for n in range(300)]
        provider.put(*entries)
        for entry in entries:
            await provider.confirmed(entry.ref)
        orders = await caller.subscribe("orders")
        await orders.wait_for(lambda instances: len(instances) == 300)
        before = registry.rss()
        async with aiohttp.ClientSession() as http:
            deaf = []
            for _ in range(100):
                ws = await http.ws_connect(f"{registry.url}/session", protocols=[frames.MSGPACK])
                ws._response.connection.transport.pause_reading()
                await ws.send_bytes(
                    frames.Codec(frames.MSGPACK).encode(frames.Subscribe(id=1, service="orders"))
                )
                deaf.append(ws)
            most = 0.0
            for n in range(60):
                provider.put(an_entry(1, metadata={"x": "y" * 2000, "turn": str(n)}))
                await provider.confirmed(a_ref(1))
                most = max(most, registry.rss())
                await asyncio.sleep(0.02)
            seen = await orders.wait_for(
                lambda instances: any(i.metadata.get("turn") == "59" for i in instances)
            )
            assert len(seen) == 300
            # Nobody who drains waits for them for longer than they are given.
            assert await provider.barrier(ORDERS, timeout=20.0)

            async def closed():
                return await registry.metric("rollbook_sessions") == 2

            assert await settle(closed)
            for ws in deaf:
                ws._response.connection.transport.abort()
        # A hundred lists of 600 KB; they share the bytes, whatever the kernel holds of them.
        assert most < before + 60
        closings = [
            await registry.metric("rollbook_sessions_closed_total", reason="not_acknowledging"),
            await registry.metric("rollbook_connections_closed_total", reason="not_reading"),
        ]
        assert sum(closings) >= 100
        assert provider.connected
        assert caller.connected
    assert registry.complaints() == []
