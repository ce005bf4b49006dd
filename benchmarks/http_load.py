"""HTTP load: keep-alive connections, one request under way on each, as cheap as Python makes it.

Requests are made beforehand; of an answer only the status and the length are read. So the server, not this,
is what a measurement is about (each measurement tells how busy both were).
"""

from __future__ import annotations

import asyncio
import urllib.request
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS: Final = 32
PATIENCE: Final = 30.0
"""Seconds within which a given number of answers must have come."""

_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"Content-Length: "


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """Make a request as a plain client would send it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1:8848", "Accept: */*", "User-Agent: bench"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(port: int, path: str) -> bytes:
    """Ask once, and return the answer's body."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        body: bytes = answer.read()
    return body


class Load(asyncio.Protocol):
    """One connection that sends the next request as soon as the last has been answered.

    Args:
        requests: what to send; at its end the connection rests.
        status: the only status that is a good answer.
    """

    def __init__(self, requests: Iterator[bytes], status: int) -> None:
        self._requests = requests
        self._good = f"HTTP/1.1 {status}".encode()
        self._transport: asyncio.WriteTransport | None = None
        self._head = b""
        self._missing = 0
        self.answered = 0
        self.failure = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface, and not the base class.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            data = self._head + data
            end = data.find(_END)
            if end < 0:
                self._head = data
                return
            self._head = b""
            if not data.startswith(self._good):
                self._fail(data[:500].decode(errors="replace"))
                return
            at = data.find(_LENGTH, 0, end)
            length = 0 if at < 0 else int(data[at + len(_LENGTH) : data.index(b"\r", at)])
            self._missing = end + len(_END) + length - len(data)
        if self._missing < 0:
            self._fail("more bytes came than the answer has")
        elif not self._missing:
            self.answered += 1
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failure = self.failure or f"the connection was lost: {exc}"

    def close(self) -> None:
        """Send no more."""
        self.failure = self.failure or "closed"
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is not None and self._transport is not None:
            self._transport.write(request)

    def _fail(self, why: str) -> None:
        self.failure = f"expected {self._good.decode()}, got: {why}"
        self.close()


class HttpLoad:
    """Some connections to one server; counts what is answered.

    Args:
        port: the server's.
        requests: what the connections send, taken in turn.
        status: the only status that is a good answer.
    """

    def __init__(self, port: int, requests: Iterator[bytes], status: int = 200) -> None:
        self._port = port
        self._requests = requests
        self._status = status
        self._loads: list[Load] = []

    async def start(self) -> None:
        """Connect, and send."""
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, load = await loop.create_connection(
                lambda: Load(self._requests, self._status), "127.0.0.1", self._port
            )
            self._loads.append(load)

    def done(self) -> int:
        """Return how many requests have been answered so far.

        Raises:
            RuntimeError: an answer was not the expected one.
        """
        for load in self._loads:
            if load.failure:
                raise RuntimeError(load.failure)
        return sum(load.answered for load in self._loads)

    async def until(self, count: int) -> None:
        """Send until so many have been answered."""
        await self.start()
        try:
            async with asyncio.timeout(PATIENCE):
                while self.done() < count:
                    await asyncio.sleep(0.01)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Send no more."""
        for load in self._loads:
            load.close()
        self._loads.clear()
        await asyncio.sleep(0)
