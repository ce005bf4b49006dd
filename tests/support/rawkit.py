"""Clients that speak bytes, as slow, silent or wrong as a test wants them, and what they do it to."""

from __future__ import annotations

import asyncio
import contextlib
import json

from registrykit import an_entry

GET = b"GET /services/orders HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Raw:
    """A client that speaks bytes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @property
    def socket(self):
        return self.writer.get_extra_info("socket")

    async def say(self, data):
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self):
        """Read one response: status, body, whether the connection ends with it."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        body = await asyncio.wait_for(self.reader.readexactly(length), 10)
        return int(head.split()[1]), body, "connection: close" in head.lower() or "HTTP/1.0" in head

    async def problem(self):
        status, body, last = await self.answer()
        details = json.loads(body)
        assert details["status"] == status
        return details, last

    async def closed(self, timeout=10.0):
        """Wait until the other side has closed, and return what came before."""
        try:
            return await asyncio.wait_for(self.reader.read(), timeout)
        except ConnectionError:
            return b""


def counted(registry, name, **labels):
    return registry.book.metrics.registry.get_sample_value(name, labels)


def fill(registry, instances=500):
    registry.book.apply(
        lambda c, now: [
            c.register_http(
                f"http/10.0.{n // 250}.{n % 250}:80",
                an_entry(80, ip=f"10.0.{n // 250}.{n % 250}", metadata={"x": "y" * 2000}),
                term=0,
                now=now,
            )
            for n in range(instances)
        ]
    )


@contextlib.asynccontextmanager
async def connector():
    """Yield what opens connections; they end with the block."""
    opened = []

    async def connect(port, **options):
        raw = Raw(*await asyncio.open_connection("127.0.0.1", port, **options))
        opened.append(raw)
        return raw

    try:
        yield connect
    finally:
        for raw in opened:
            raw.writer.close()
