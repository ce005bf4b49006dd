"""WebSockets without tasks: what aiohttp's parser makes of bytes, and what becomes of connections."""

from __future__ import annotations

import asyncio
import struct

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from rollbook import frames
from rollbook_registry.connections import websocket
from rollbook_registry.connections.websocket import BINARY, SLICE, TEXT, WebSocket, frame
from serverkit import until
from socketkit import UPGRADE, Connection, Transport, said

CLOSE, PING, PONG, CONTINUATION = 0x8, 0x9, 0xA, 0x0


def ping(n):
    return said(TEXT, b'{"type":"ping","n":%d}' % n)


class Listener:
    def __init__(self):
        self.messages = []
        self.events = []
        self.react = lambda _: None

    def heard(self, message):
        assert "ended" not in self.events
        self.messages.append(message)
        self.react(message)

    def block(self):
        self.events.append("block")

    def unblock(self):
        self.events.append("unblock")

    def ended(self):
        self.events.append("ended")


class Desk:
    """A WebSocket between a transport and a listener that a test looks at."""

    def __init__(self, read_already=b"", max_message=1000):
        self.transport, self.listener = Transport(), Listener()
        self.connection = Connection(read_already, self.transport)
        self.socket = WebSocket(self.connection, self.transport, "x")
        self.socket.start(self.listener, max_message)
        assert self.transport.protocol is self.socket

    def comes(self, *data):
        for piece in data:
            assert self.transport.reading, "nothing is read while reading is paused"
            self.socket.data_received(piece)


@pytest.fixture
async def desk():
    return Desk()


# --- messages -------------------------------------------------------------------------------------------


async def test_messages_are_heard_as_they_come_however_they_are_cut(desk):
    data = said(BINARY, b"one") + said(TEXT, "zw\u00f6lf".encode()) + said(BINARY, b"x" * 300)
    desk.comes(*(data[n : n + 1] for n in range(len(data))))
    assert desk.listener.messages == [b"one", "zw\u00f6lf", b"x" * 300]
    desk.comes(data)
    assert len(desk.listener.messages) == 6


async def test_what_came_with_the_handshake_is_heard():
    assert Desk(read_already=said(BINARY, b"early")).listener.messages == [b"early"]


async def test_fragments_are_put_together_and_a_ping_between_them_is_answered(desk):
    desk.comes(said(TEXT, b"a", final=False), said(PING, b"?"), said(CONTINUATION, b"b"))
    assert desk.listener.messages == ["ab"]
    assert desk.transport.written == frame(PONG, b"?")
    desk.comes(said(PONG, b"unasked"))
    assert desk.listener.events == []


@given(st.binary(max_size=70_000), st.sampled_from([TEXT, BINARY, PONG]))
def test_frames_are_spelled_as_the_standard_has_them(payload, opcode):
    data = frame(opcode, payload)
    assert data[0] == 0x80 | opcode
    size, start = data[1], 2
    if size == 126:
        size, start = int.from_bytes(data[2:4]), 4
        assert size >= 126
    elif size == 127:
        size, start = int.from_bytes(data[2:10]), 10
        assert size >= 1 << 16
    assert (size, data[start:]) == (len(payload), payload)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_the_lengths_at_which_headers_change(size):
    data = frame(BINARY, bytes(size))
    assert len(data) - size == (2 if size < 126 else 4 if size < 65_536 else 10)


# --- what is no message ---------------------------------------------------------------------------------

WRONG = [
    (said(TEXT, b"\xff\xfe"), 1007),
    (said(BINARY, b"x" * 1000), 1009),
    (said(BINARY, b"x" * 999, final=False) + said(CONTINUATION, b"x"), 1009),
    (said(BINARY, b"", reserved=0x40), 1002),
    (said(0x3, b""), 1002),
    (said(CONTINUATION, b"of nothing"), 1002),
    (said(PING, b"", final=False), 1002),
    (said(PING, b"x" * 126), 1002),
    (said(CLOSE, b"\x00"), 1002),
    (said(CLOSE, struct.pack("!H", 1005)), 1002),
]


@pytest.mark.parametrize(("wrong", "code"), WRONG)
async def test_what_cannot_be_is_answered_with_its_code_and_nothing_more_is_heard(desk, wrong, code):
    desk.comes(said(BINARY, b"before") + wrong + said(BINARY, b"behind"), said(BINARY, b"after"))
    assert desk.listener.messages == [b"before"]
    assert desk.listener.events == ["ended"]
    assert desk.transport.written == frame(CLOSE, struct.pack("!H", code))
    # It is read on for a while, or the client would be reset before it hears why.
    assert not desk.transport.closed


async def test_a_listener_that_fails_ends_its_connection_and_is_told_of(desk):
    def fail(_):
        raise ValueError("a bug")

    desk.listener.react = fail
    with structlog.testing.capture_logs() as logged:
        desk.comes(said(BINARY, b"one") + said(BINARY, b"two"))
    assert desk.listener.messages == [b"one"]
    assert desk.transport.written == frame(CLOSE, struct.pack("!H", 1011))
    assert [(e["event"], str(e["exc_info"])) for e in logged] == [("session_failed", "a bug")]


# --- the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", struct.pack("!H", 1000), struct.pack("!H", 4000) + b"bye"])
async def test_a_close_frame_is_answered_and_ends_the_connection(desk, payload):
    desk.comes(said(CLOSE, payload))
    assert desk.transport.written == frame(CLOSE, struct.pack("!H", 1000))
    assert desk.transport.closed
    assert desk.listener.events == ["ended"]


async def test_after_our_goodbye_nothing_is_heard_and_the_answer_ends_it(desk):
    desk.socket.close(4002, "idle")
    assert desk.transport.written == frame(CLOSE, struct.pack("!H", 4002) + b"idle")
    assert desk.listener.events == ["ended"]
    desk.comes(said(BINARY, b"late"), said(PING, b"late"))
    desk.socket.send(b"late")
    desk.socket.close(1001)
    assert not desk.transport.closed
    assert desk.listener.messages == []
    desk.comes(said(CLOSE, struct.pack("!H", 4002)))
    assert desk.transport.closed
    assert desk.transport.written == frame(CLOSE, struct.pack("!H", 4002) + b"idle")


async def test_a_goodbye_within_a_message_leaves_the_rest_of_what_came_unheard(desk):
    desk.listener.react = lambda _: desk.socket.close(1001)
    desk.comes(said(BINARY, b"one") + said(BINARY, b"two"))
    assert desk.listener.messages == [b"one"]


async def test_who_does_not_answer_our_goodbye_is_closed_all_the_same(monkeypatch):
    monkeypatch.setattr(websocket, "CLOSE_PATIENCE", 0.01)
    desk = Desk()
    desk.socket.close(4002)
    await until(lambda: desk.transport.closed)


async def test_a_reason_is_cut_to_what_fits_between_characters(desk):
    desk.socket.close(4003, "\u00e9" * 100)
    payload = desk.transport.written[2:]
    assert len(payload) <= 125
    assert payload[2:].decode() == "\u00e9" * 61


async def test_a_connection_that_is_lost_is_told_once_to_everybody(desk):
    parted = desk.socket.parted()
    assert not parted.done()
    desk.socket.connection_lost(None)
    assert desk.listener.events == ["ended"]
    assert desk.connection.told == ["connection_lost"]
    assert parted.done()
    desk.socket.send(b"late")
    desk.socket.close(1000)
    desk.socket.data_received(said(BINARY, b"late"))
    assert (desk.transport.written, desk.listener.messages) == (b"", [])


async def test_a_listener_that_fails_at_the_end_does_not_keep_the_connection(desk):
    def fail():
        raise ValueError("a bug")

    desk.listener.ended = fail
    parted = desk.socket.parted()
    with pytest.raises(ValueError, match="a bug"):
        desk.socket.connection_lost(None)
    assert desk.connection.told == ["connection_lost"]
    assert parted.done()


# --- too much -------------------------------------------------------------------------------------------


async def test_much_that_comes_at_once_is_read_in_slices_and_others_have_their_turn(desk):
    each = said(BINARY, b"x" * 10)
    count = 5 * SLICE // len(each)
    desk.comes(each * count)
    turns, seen = 0, 0
    while len(desk.listener.messages) < count:
        heard = len(desk.listener.messages)
        assert 0 < heard - seen <= SLICE // len(each) + 1
        assert not desk.transport.reading, "no more is read before this has been dealt with"
        seen = heard
        turns += 1
        assert turns < 10
        await asyncio.sleep(0)
    assert turns >= 4
    assert desk.transport.reading
    desk.comes(each)
    assert len(desk.listener.messages) == count + 1


async def test_what_came_with_the_handshake_is_read_in_slices_too():
    each = said(BINARY, b"x" * 10)
    count = 5 * SLICE // len(each)
    desk = Desk(each * count)
    turns = 0
    while (heard := len(desk.listener.messages)) < count:
        assert heard <= (turns + 1) * (SLICE // len(each) + 1)
        assert not desk.transport.reading, "no more is read before this has been dealt with"
        turns += 1
        assert turns < 10
        await asyncio.sleep(0)
    assert turns >= 4
    assert desk.transport.reading


async def test_who_is_held_while_it_takes_over_is_read_no_more(desk):
    transport, listener = Transport(), Listener()
    connection = Connection(said(BINARY, b"early"), transport)
    socket = WebSocket(connection, transport, "x")
    listener.react = lambda _: socket.hold()
    socket.start(listener, 1000)
    assert listener.messages == [b"early"]
    assert not transport.reading
    socket.go_on()
    assert transport.reading


async def test_who_is_held_is_read_no_more_until_it_goes_on(desk):
    desk.listener.react = lambda _: desk.socket.hold()
    each = said(BINARY, b"x" * 10)
    desk.comes(each * (2 * SLICE // len(each)))
    heard = len(desk.listener.messages)
    assert heard <= SLICE // len(each)
    assert not desk.transport.reading
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(desk.listener.messages) == heard
    desk.listener.react = lambda _: None
    desk.socket.go_on()
    await until(lambda: desk.transport.reading)
    assert len(desk.listener.messages) == 2 * SLICE // len(each)


async def test_who_is_held_hears_goodbye_and_may_answer(desk):
    desk.socket.hold()
    desk.socket.close(1001)
    desk.comes(said(CLOSE, b""))
    assert desk.transport.closed


async def test_of_pings_that_cannot_be_answered_the_last_is_when_it_can(desk):
    desk.socket.pause_writing()
    desk.comes(said(PING, b"1"), said(PING, b"2"))
    assert desk.transport.written == b""
    desk.socket.resume_writing()
    assert desk.transport.written == frame(PONG, b"2")
    assert desk.listener.events == ["block", "unblock"]
    # The guard counts how long it takes.
    assert desk.connection.told == ["pause_writing", "resume_writing"]


async def test_who_is_blocked_again_by_a_pong_is_not_unblocked(desk):
    desk.socket.pause_writing()
    desk.comes(said(PING, b"1"))
    write = desk.transport.write

    def full(data):
        write(data)
        desk.socket.pause_writing()

    desk.transport.write = full
    desk.socket.resume_writing()
    assert desk.listener.events == ["block", "block"]


async def test_to_a_connection_that_is_being_cut_nothing_is_written(desk):
    desk.transport.close()
    desk.socket.send(b"late")
    assert desk.transport.written == b""


# --- over a real connection -----------------------------------------------------------------------------


async def read_frame(raw):
    first, size = await asyncio.wait_for(raw.reader.readexactly(2), 10)
    if size == 126:
        size = int.from_bytes(await raw.reader.readexactly(2))
    return first & 0xF, await asyncio.wait_for(raw.reader.readexactly(size), 10)


async def test_frames_right_behind_the_handshake_are_answered_in_order(registry, connect):
    raw = await connect(registry.server.session_port)
    await raw.say(UPGRADE + ping(1) + ping(2))
    head = await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 101")
    await raw.say(ping(3))
    codec = frames.Codec(frames.JSON)
    for n in (1, 2, 3):
        opcode, payload = await read_frame(raw)
        assert (opcode, codec.answer(payload).n) == (TEXT, n)
    await raw.say(said(PING, b"!") + said(CLOSE, b""))
    assert await read_frame(raw) == (PONG, b"!")
    assert await read_frame(raw) == (CLOSE, struct.pack("!H", 1000))
    assert await raw.closed() == b""
    await until(lambda: len(registry.server.guard.census) == 0)
    assert len(registry.server.sessions) == 0


async def test_a_session_has_no_task(registry, connect):
    def handling():
        names = (task.get_coro().__qualname__ for task in asyncio.all_tasks())
        return [name for name in names if name.startswith(("RequestHandler", "Sessions.session", "Upgrade"))]

    # One that is no session has a task, and it is found.
    plain = await connect(registry.server.session_port)
    await plain.say(b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n")
    await plain.answer()
    assert len(handling()) == 1
    for _ in range(5):
        raw = await connect(registry.server.session_port)
        await raw.say(UPGRADE + ping(1))
        await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 10)
        await read_frame(raw)
    await until(lambda: len(handling()) == 1)
    assert len(registry.server.sessions) == 5
    # Nor does anything end it because aiohttp has no more to do with it.
    await raw.say(ping(2))
    assert frames.Codec(frames.JSON).answer((await read_frame(raw))[1]).n == 2


@pytest.mark.parametrize("behind_the_handshake", [False, True])
async def test_thousands_of_frames_in_one_go_are_all_answered(registry, connect, behind_the_handshake):
    raw = await connect(registry.server.session_port)
    count = 5000
    frames_ = b"".join(ping(n) for n in range(count))
    sending = asyncio.create_task(raw.say(UPGRADE + frames_ if behind_the_handshake else UPGRADE))
    await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 10)
    if not behind_the_handshake:
        await sending
        sending = asyncio.create_task(raw.say(frames_))
    codec = frames.Codec(frames.JSON)
    for n in range(count):
        _, payload = await read_frame(raw)
        assert codec.answer(payload).n == n
    await sending
    assert await (await registry.speaker()).ask(frames.Ping(n=1)) == frames.Pong(n=1)
