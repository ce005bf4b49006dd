"""The limit: a bare aiohttp server on uvloop that does nothing.

``python -m benchmarks.bare PORT [list=BYTES] [pick=BYTES] [register=BYTES]``. It takes the very requests that
the registry and the sidecar take, by routes of the same form, and answers each with that many prepared bytes.
Its WebSocket reads frames, whose first byte says what they are for:

    D...       discard it
    P...       answer it with itself, as a ping
    S          this connection wants broadcasts
    B<n>...    send n bytes (4 bytes, big-endian) to all that want broadcasts, starting with this frame's
               ninth to sixteenth byte
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop
from aiohttp import WSMsgType, web


class Bare:
    """The handlers.

    Args:
        sizes: of the prepared bodies.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        self._prepared = {kind: b"x" * size for kind, size in sizes.items()}
        self._listeners: list[web.WebSocketResponse] = []

    def application(self) -> web.Application:
        """Return the application."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/", self.root),
                web.get("/services/{service}", self.list),
                web.get("/services/{service}/pick", self.pick),
                web.post("/services/{service}/instances", self.register),
                web.put("/services/{service}/instances/{key}/beat", self.beat),
                web.get("/session", self.session),
            ]
        )
        return application

    async def root(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def list(self, _: web.Request) -> web.Response:
        return web.Response(body=self._prepared["list"], content_type="application/json")

    async def pick(self, _: web.Request) -> web.Response:
        return web.Response(body=self._prepared["pick"], content_type="application/json")

    async def register(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=201, body=self._prepared["register"], content_type="application/json")

    async def beat(self, _: web.Request) -> web.Response:
        return web.Response(status=202)

    async def session(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, protocols=("rollbook.v1.msgpack",))
        await socket.prepare(request)
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                continue
            data = message.data
            match data[:1]:
                case b"P":
                    await socket.send_bytes(data)
                case b"B":
                    sent = data[8:16] + bytes(int.from_bytes(data[1:5]) - 8)
                    for listener in self._listeners:
                        await listener.send_bytes(sent)
                case b"S":
                    self._listeners.append(socket)
                    await socket.send_bytes(data)
        if socket in self._listeners:
            self._listeners.remove(socket)
        return socket


async def serve(port: int, sizes: dict[str, int]) -> None:
    """Serve until told to stop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(Bare(sizes).application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    """Read the command line."""
    port, *sizes = sys.argv[1:]
    pairs = (item.partition("=") for item in sizes)
    uvloop.run(serve(int(port), {kind: int(size) for kind, _, size in pairs}))


if __name__ == "__main__":
    main()
