"""A session's connection: answers and pushes in their order, however the client takes them."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from registrykit import an_entry
from rollbook import frames
from rollbook_registry.api import sessions
from rollbook_registry.api.sessions import Sessions
from rollbook_registry.auth import LOCAL
from rollbook_registry.book import Book
from rollbook_registry.connections.websocket import BINARY, WebSocket
from rollbook_registry.settings import RegistrySettings
from socketkit import Connection, Transport, said

CODEC = frames.Codec(frames.MSGPACK)


class Desk:
    """A book with its sessions."""

    def __init__(self, directory):
        self.now = 1000.0
        self.book = Book(
            RegistrySettings(data_dir=directory, auth="none"),
            clock=lambda: self.now, wall=lambda: self.now,
        )  # fmt: skip
        self.sessions = Sessions(self.book)


class End:
    """One client's connection."""

    def __init__(self, desk, *, blocked=False):
        self.transport, connection = Transport(), Connection()
        connection.writing_paused = blocked
        self.socket = WebSocket(connection, self.transport, frames.MSGPACK)
        self.socket.start(desk.sessions._begin(self.socket, LOCAL), 1 << 20)

    def say(self, *frames_):
        self.socket.data_received(b"".join(said(BINARY, CODEC.encode(f)) for f in frames_))

    def heard(self):
        """What was written since it was asked last."""
        data, self.transport.written = self.transport.written, b""
        found = []
        while data:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4]), 4
            assert data[0] == 0x80 | BINARY
            found.append(CODEC.answer(data[start : start + size]))
            data = data[start + size :]
        return found

    def first(self):
        """The first frame that was written."""
        return CODEC.answer(self.transport.written[2 : 2 + self.transport.written[1]])

    def kinds(self):
        return [type(f) for f in self.heard()]


@pytest.fixture
async def desk(tmp_path):
    return Desk(tmp_path)


async def turn():
    """Let what was to be done at the loop's next turn be done."""
    await asyncio.sleep(0)


async def test_an_answer_is_written_at_once_and_what_it_caused_at_the_next_turn(desk):
    end = End(desk)
    end.say(frames.Attach(lease="a"), frames.Subscribe(id=1, service="orders"))
    end.say(frames.Register(id=2, entries=[an_entry()]))
    assert end.kinds() == [frames.Attached, frames.Done]
    await turn()
    assert end.kinds() == [frames.Snapshot]


async def test_who_takes_nothing_gets_its_answers_first_and_then_all_that_changed(desk):
    end, provider = End(desk), End(desk)
    provider.say(frames.Attach(lease="a"))
    end.say(frames.Subscribe(id=1, service="orders"))
    await turn()
    (snapshot,) = end.heard()
    end.say(frames.Ack(service="orders", revision=snapshot.revision))
    end.socket.pause_writing()
    for port in (1, 2, 3):
        provider.say(frames.Register(id=port, entries=[an_entry(port)]))
        await turn()
    end.say(frames.Ping(n=1), frames.Ping(n=2))
    await turn()
    assert end.heard() == []
    end.socket.resume_writing()
    assert end.heard() == [frames.Pong(n=1), frames.Pong(n=2)]
    await turn()
    (delta,) = end.heard()
    assert sorted(i.port for i in delta.put) == [1, 2, 3]


async def test_who_asks_without_reading_is_read_no_more_until_it_reads(desk, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_ANSWERS", 10)
    end = End(desk)
    end.socket.pause_writing()
    end.say(*(frames.Ping(n=n) for n in range(10)))
    assert end.transport.reading
    end.say(frames.Ping(n=10))
    assert not end.transport.reading
    end.socket.resume_writing()
    assert [f.n for f in end.heard()] == list(range(11))
    assert end.transport.reading


async def test_a_lost_connection_leaves_nothing_behind(desk):
    end = End(desk)
    end.say(frames.Attach(lease="a"), frames.Register(id=2, entries=[an_entry()]))
    end.say(frames.Subscribe(id=1, service="orders"))
    assert (len(desk.sessions), len(desk.sessions._wheel)) == (1, 1)
    end.socket.connection_lost(None)
    await turn()
    assert (len(desk.sessions), len(desk.sessions._wheel)) == (0, 0)
    assert desk.book.outlet.subscriptions == 0
    assert desk.book.catalog.lease("a").holder is None
    assert end.kinds() == [frames.Attached, frames.Done]


async def test_who_comes_as_its_connection_does_not_take_anything_is_told_later(desk):
    end = End(desk, blocked=True)
    end.say(frames.Subscribe(id=1, service="orders"), frames.Ping(n=1))
    await turn()
    assert end.heard() == []
    end.socket.resume_writing()
    await turn()
    assert end.kinds() == [frames.Pong, frames.Snapshot]


def broken(_):
    raise ValueError("a bug")


async def test_who_cannot_be_written_to_is_ended_and_the_others_hear_all_the_same(desk):
    ends, provider = [End(desk) for _ in range(3)], End(desk)
    provider.say(frames.Attach(lease="a"))
    for end in ends:
        end.say(frames.Subscribe(id=1, service="orders"))
    ends[1].transport.write = broken
    with structlog.testing.capture_logs() as logged:
        await turn()
        desk.sessions.settled()
        ends[1].say(frames.Ping())
    heard = [frames.Snapshot, frames.Settled]
    assert [end.kinds() for end in ends] == [heard, [], heard]
    assert [end.transport.closed for end in ends] == [False, True, False]
    assert [e["event"] for e in logged] == ["session_failed"], "said once"


async def test_a_goodbye_that_fails_for_one_is_said_to_the_others(desk, monkeypatch):
    ends = [End(desk) for _ in range(3)]
    close_well = WebSocket.close

    def close(socket, *how):
        (broken if socket is ends[1].socket else lambda _: close_well(socket, *how))(how)

    monkeypatch.setattr(WebSocket, "close", close)
    parting = asyncio.create_task(desk.sessions.goodbye("over"))
    await turn()
    assert [frames.Goodbye(reason="over") for _ in ends[::2]] == [end.first() for end in ends[::2]]
    assert [end.transport.closed for end in ends] == [False, True, False]
    for end in ends:
        end.socket.connection_lost(None)
    await parting


async def test_a_look_that_fails_is_not_the_last(desk, monkeypatch):
    looked = asyncio.Event()
    failures = iter([ValueError("a bug")])

    def look():
        for error in failures:
            raise error
        looked.set()

    monkeypatch.setattr(desk.sessions, "_look", 0.001)
    monkeypatch.setattr(desk.sessions, "look", look)
    running = asyncio.create_task(desk.sessions.run())
    await asyncio.wait_for(looked.wait(), 10)
    running.cancel()


async def test_who_asks_for_more_than_it_reads_is_ended_and_says_nothing_more(desk, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_UNSENT_BYTES", 10_000)
    end, provider = End(desk), End(desk)
    provider.say(frames.Attach(lease="a"))
    for n in range(10):
        provider.say(frames.Register(id=n, entries=[an_entry(service=f"service-{n}" + "x" * 100)]))
    end.socket.pause_writing()
    handled = []
    take = end.socket._listener.session._handle
    monkeypatch.setattr(
        type(end.socket._listener.session), "_handle", lambda _, frame: (handled.append(frame), take(frame))
    )
    # Each is answered with more than a thousand bytes.
    end.say(*(frames.Follow(id=n, pattern="*") for n in range(100)))
    assert len(handled) < 10
    await turn()
    await turn()
    assert len(desk.sessions) == 1, "the provider's"
    assert int.from_bytes(end.transport.written[2:4]) == sessions.Closing.NOT_READING
    assert len(end.transport.written) < 200
    end.socket.resume_writing()
    end.say(frames.Ping())
    assert len(handled) < 10
