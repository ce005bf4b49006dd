"""Session beats: ``beat`` frames for leases of one instance and of a hundred.

Beats have no answer. So that no more are under way than a client would have, every batch of them ends with a
ping, and the next is sent when that has been answered; what is counted are beats whose ping was answered.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import msgspec

from benchmarks import fleet
from benchmarks.process import Bare, Registry
from benchmarks.report import Result
from benchmarks.rounds import Options, Side, compare
from benchmarks.web_socket import WebSocket, connect, masked
from rollbook import frames

PATIENCE: Final = 20.0
_encode = msgspec.msgpack.Encoder().encode
_answers = frames.Codec(frames.MSGPACK)


class Publisher:
    """One session: attached, its instances entered, and beating in batches.

    Args:
        number: which one; its lease and addresses follow from it.
        entries: how many instances its lease holds.
        batch: beats between two pings.
    """

    def __init__(self, number: int, entries: int, batch: int) -> None:
        self._lease = f"bench-{number}"
        self._entries = [fleet.entry(number * entries + n, f"orders-{number}") for n in range(entries)]
        self._batch = batch
        self._frames = b""
        self._socket: WebSocket | None = None
        self._entered = asyncio.Event()
        self._beating = False
        self.batches = 0

    async def enter(self, port: int) -> None:
        """Attach and register."""
        self._socket = await connect(port, self._answered)
        self._socket.write(masked(_encode(frames.Attach(lease=self._lease))))
        await self._entered.wait()

    async def listen_bare(self, port: int) -> None:
        """Connect to the limit, and send it as many bytes."""
        self._socket = await connect(port, self._ponged)
        beat = _encode(frames.Beat(term=1))
        ping = _encode(frames.Ping(n=1))
        self._frames = masked(b"D" + bytes(len(beat) - 1)) * self._batch + masked(b"P" + bytes(len(ping) - 1))

    def beat(self) -> None:
        """Begin."""
        assert self._socket is not None
        self._beating = True
        self._socket.write(self._frames)

    def pause(self) -> None:
        """End, once the batch that is under way has been heard."""
        self._beating = False

    @property
    def failure(self) -> str:
        """What went wrong, if anything did."""
        return self._socket.failure if self._socket else ""

    def close(self) -> None:
        """Be gone."""
        if self._socket is not None:
            self._socket.close()

    def _answered(self, socket: WebSocket, payload: bytes) -> None:
        match _answers.answer(payload):
            case frames.Attached(term=term):
                beat = masked(_encode(frames.Beat(term=term)))
                self._frames = beat * self._batch + masked(_encode(frames.Ping(n=1)))
                socket.write(masked(_encode(frames.Register(id=1, entries=self._entries))))
            case frames.Done():
                socket.heard = self._ponged
                self._entered.set()
            case other:
                raise RuntimeError(f"expected attached or done, got {other}")

    def _ponged(self, socket: WebSocket, payload: bytes) -> None:
        if len(payload) > 32:
            raise RuntimeError(f"expected a pong, got {payload!r}")
        self.batches += 1
        if self._beating:
            socket.write(self._frames)


class Publishers:
    """Some sessions with one server, which stay open from round to round."""

    def __init__(self, publishers: list[Publisher]) -> None:
        self._publishers = publishers

    async def start(self) -> None:
        """Begin."""
        for publisher in self._publishers:
            publisher.beat()

    def done(self) -> int:
        """Return how many batches have been heard.

        Raises:
            RuntimeError: a session has ended.
        """
        for publisher in self._publishers:
            if publisher.failure:
                raise RuntimeError(publisher.failure)
        return sum(p.batches for p in self._publishers)

    async def stop(self) -> None:
        """Pause, until the next round."""
        for publisher in self._publishers:
            publisher.pause()
        before = -1
        while before != (before := self.done()):
            await asyncio.sleep(0.02)


SCENES: Final = (
    # name, sessions, instances of each lease, beats between pings
    ("leases of 1, 64 frames at a time", 16, 1, 64),
    ("leases of 1, each frame alone", 500, 1, 1),
    ("leases of 100, 64 frames at a time", 16, 100, 64),
)


async def run(options: Options) -> Result:
    """Measure."""
    rows = []
    with Registry(fleet.LONG) as registry, Bare() as bare:
        for scene, (name, sessions, entries, batch) in enumerate(SCENES):
            ours = [Publisher(1000 * scene + n, entries, batch) for n in range(sessions)]
            limit = [Publisher(1000 * scene + n, entries, batch) for n in range(sessions)]
            async with asyncio.timeout(PATIENCE):
                for a, b in zip(ours, limit, strict=True):
                    await a.enter(registry.session_port)
                    await b.listen_bare(bare.port)
            rows.append(
                await compare(
                    f"{name}: frames",
                    Side(registry, partial(Publishers, ours)),
                    Side(bare, partial(Publishers, limit)),
                    options,
                    times=batch,
                )
            )
            if entries > 1:
                rows.append(rows[-1].times(entries, f"{name}: instances"))
            for publisher in (*ours, *limit):
                publisher.close()
    return Result(
        rows=rows,
        limit="a bare aiohttp WebSocket that reads and discards as many frames of as many bytes",
        notes=[
            "both sides answer the ping after each batch",
            "a frame alone: a beat and a ping in one packet, then the answer, on each of 500 connections",
        ],
    )
