from __future__ import annotations

import asyncio
import socket

import pytest

from rollbook_sidecar.address import local_address


def resolve(monkeypatch, answers):
    async def getaddrinfo(host, port, **_):
        found = answers[host]
        if isinstance(found, OSError):
            raise found
        return [(family, socket.SOCK_DGRAM, 17, "", (ip, port)) for family, ip in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_a_registry_on_loopback_gives_loopback():
    assert await local_address(["127.0.0.1:7848"]) == "127.0.0.1"


async def test_the_route_to_the_registry_decides():
    # Any address of 127.0.0.0/8 is reached from 127.0.0.1.
    assert await local_address(["127.9.9.9"]) == "127.0.0.1"


async def test_ipv4_is_taken_if_there_is_a_choice(monkeypatch):
    resolve(monkeypatch, {"both": [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]})
    assert await local_address(["both"]) == "127.0.0.1"


async def test_the_next_registry_is_asked_if_one_is_unknown(monkeypatch):
    resolve(monkeypatch, {"gone": socket.gaierror(-2, "unknown"), "here": [(socket.AF_INET, "127.0.0.1")]})
    assert await local_address(["gone", "here"]) == "127.0.0.1"


async def test_without_any_it_says_why(monkeypatch):
    resolve(monkeypatch, {"gone": socket.gaierror(-2, "unknown host")})
    with pytest.raises(OSError, match=r"gone: .*unknown host"):
        await local_address(["gone"])
