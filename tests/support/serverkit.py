"""Registries on real sockets, and those who speak to them."""

from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp
import msgspec

from rollbook import frames
from rollbook.client import Client
from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings


async def until(condition, timeout=10.0):
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never at line {condition.__code__.co_firstlineno}"
        await asyncio.sleep(0.005)
    return value


class Speaker:
    """Somebody who speaks frames over a real session, and checks what comes back."""

    def __init__(self, ws, codec):
        self.ws = ws
        self.codec = codec

    async def say(self, *said):
        for frame in said:
            data = frame if isinstance(frame, (bytes, str)) else self.codec.encode(frame)
            if isinstance(data, str) or not self.codec.binary:
                await self.ws.send_str(data if isinstance(data, str) else data.decode())
            else:
                await self.ws.send_bytes(data)

    async def hear(self, kind=None):
        data = (await self.ws.receive(timeout=10)).data
        assert isinstance(data, bytes) is self.codec.binary
        frame = self.codec.answer(data)
        assert kind is None or isinstance(frame, kind), frame
        return frame

    async def ask(self, frame, kind=None):
        await self.say(frame)
        return await self.hear(kind)

    async def attach(self, lease="a", **fields):
        return await self.ask(frames.Attach(lease=lease, **fields), frames.Attached)

    async def register(self, *entries):
        return await self.ask(frames.Register(id=1, entries=list(entries)), frames.Done)

    async def refused(self, frame):
        return (await self.ask(frame, frames.Refused)).problem


class Registry:
    """A registry that runs, and how to reach it."""

    def __init__(self, server, http, stack):
        self.server = server
        self.book = server.book
        self.catalog = server.book.catalog
        self.url = f"http://127.0.0.1:{server.http_port}"
        self.address = f"127.0.0.1:{server.session_port}"
        self._http = http
        self._stack = stack

    async def request(self, method, path, *, json=None, data=None, headers=None, token=None):
        """Send a request; returns status, body, headers."""
        headers = dict(headers or {})
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = msgspec.json.encode(json) if json is not None else data
        async with self._http.request(method, self.url + path, data=data, headers=headers) as response:
            text = await response.read()
            return response.status, msgspec.json.decode(text) if text else None, response.headers

    async def text(self, path):
        """What a GET answers, as text."""
        async with self._http.get(self.url + path) as response:
            return await response.text()

    async def problem(self, method, path, **options):
        """Send a request that is refused; returns the problem."""
        status, body, headers = await self.request(method, path, **options)
        assert headers["Content-Type"] == "application/problem+json"
        assert body["status"] == status
        assert body["type"] == f"urn:rollbook:problem:{body['code']}"
        assert body["title"]
        assert body["detail"]
        return body

    async def speaker(self, subprotocol=frames.MSGPACK, *, token=None, port=None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        port = port or self.server.session_port
        ws = await self._stack.enter_async_context(
            self._http.ws_connect(
                f"http://127.0.0.1:{port}/session", protocols=[subprotocol], headers=headers
            )
        )
        return Speaker(ws, frames.Codec(subprotocol))

    async def client(self, **options):
        return await self._stack.enter_async_context(Client(self.address, **options))


@contextlib.asynccontextmanager
async def starter(directory):
    """Yield what starts registries in this process; all of them end with the block."""
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())

        async def start(api=None, **settings):
            defaults = {
                "data_dir": directory,
                "http_port": 0,
                "session_port": 0,
                "auth": "none",
                "nacos_grpc": False,
            }
            server = Server(RegistrySettings(**{**defaults, **settings}), api)
            await stack.enter_async_context(server)
            return Registry(server, http, stack)

        yield start
