"""A raw WebSocket client (RFC 6455), as cheap as Python makes it, for sessions in great number."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import TYPE_CHECKING, Final, cast

from rollbook.frames import MSGPACK

if TYPE_CHECKING:
    from collections.abc import Callable

_MASK: Final = bytes.fromhex("37fa213d")
_BINARY: Final = 0x82
_CLOSE: Final = 0x8


def masked(payload: bytes) -> bytes:
    """Make a client's binary frame."""
    size = len(payload)
    if size < 126:
        head = bytes([_BINARY, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([_BINARY, 0x80 | 126]) + size.to_bytes(2)
    else:
        head = bytes([_BINARY, 0x80 | 127]) + size.to_bytes(8)
    mask = (_MASK * (size // 4 + 1))[:size]
    return head + _MASK + (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)


class WebSocket(asyncio.Protocol):
    """One connection.

    Args:
        heard: called with each frame's payload.
    """

    def __init__(self, heard: Callable[[WebSocket, bytes], None]) -> None:
        self.heard = heard
        self.failure = ""
        self._transport: asyncio.WriteTransport | None = None
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface, and not the base class.
        self._transport = transport = cast("asyncio.WriteTransport", transport)
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            (
                "GET /session HTTP/1.1\r\nHost: 127.0.0.1:7848\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Protocol: {MSGPACK}\r\n\r\n"
            ).encode()
        )

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if not self._open.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._fail(head.decode(errors="replace"))
                return
            self._open.set_result(None)
        at, total = 0, len(data)
        while total - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10]), at + 10
            if total < start + size:
                break
            if data[at] & 0x0F == _CLOSE:
                self._fail(f"the server closed: {data[start : start + size]!r}")
                return
            at = start + size
            self.heard(self, data[start:at])
        self._buffer = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}")

    def write(self, frames: bytes) -> None:
        """Send what :func:`masked` made, one frame or several."""
        assert self._transport is not None
        self._transport.write(frames)

    def close(self) -> None:
        """Be gone."""
        self.failure = self.failure or "closed"
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        if not self._open.done():
            self._open.set_exception(ConnectionError(why))

    async def opened(self) -> None:
        """Wait until the server has agreed.

        Raises:
            ConnectionError: it hasn't.
        """
        await self._open


async def connect(port: int, heard: Callable[[WebSocket, bytes], None]) -> WebSocket:
    """Open one."""
    loop = asyncio.get_running_loop()
    _, socket = await loop.create_connection(lambda: WebSocket(heard), "127.0.0.1", port)
    await socket.opened()
    return socket
