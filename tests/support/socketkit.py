"""WebSockets without a network: a client's frames as bytes, and both sides of a connection as lists."""

from __future__ import annotations

import struct

UPGRADE = (
    b"GET /session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: rollbook.v1.json\r\n\r\n"
)


def said(opcode, payload, *, final=True, reserved=0):
    """A client's frame, masked with zeros, so that it is readable here."""
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


class Transport:
    """What a WebSocket does to its connection."""

    def __init__(self):
        self.written = b""
        self.reading = True
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.written += data

    def is_closing(self):
        return self.closed

    def set_protocol(self, protocol):
        self.protocol = protocol

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        assert not self.reading
        self.reading = True

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = True


class Connection:
    """What aiohttp's side is told."""

    writing_paused = False

    def __init__(self, read_already=b"", transport=None):
        self.told = []
        self.transport = transport
        self._read_already = read_already

    def keep_alive(self, val):
        assert val is False

    def set_parser(self, parser):
        if self._read_already:
            parser.feed_data(self._read_already)
        # It stopped reading when it had read enough for now.
        if self.transport is not None and not self.transport.reading:
            self.transport.resume_reading()

    def __getattr__(self, name):
        return lambda *_: self.told.append(name)
