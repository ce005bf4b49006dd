"""Session frames that nobody should send: each is answered or ends its session, and the book stays whole."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registrykit import a_ref, an_entry
from rollbook import frames
from rollbook.digest import digest
from rollbook_registry.push.outlet import _Topic
from serverkit import until

pytestmark = pytest.mark.timeout(300)

LAST = 424242
"""The ping that ends a round: whatever was sent before it has been dealt with when it is answered."""

ORDERS = ("public", "DEFAULT_GROUP", "orders")
VALID = [
    frames.Attach(lease="fuzz"),
    frames.Attach(lease="fuzz", kind="operator", epoch=1),
    frames.Register(id=1, entries=[an_entry(), an_entry(81, owner="u1")]),
    frames.Deregister(id=2, entries=[a_ref()]),
    frames.Beat(term=1, down=[a_ref()], entries=[an_entry(82)]),
    frames.Release(id=3),
    frames.Subscribe(id=4, service="orders", revision="x.1", digest="0" * 16),
    frames.Unsubscribe(service="orders"),
    frames.Ack(service="orders", revision="x.1"),
    frames.Ping(n=1),
    frames.Barrier(id=5, services=[ORDERS], timeout=0.01),
    frames.Close(id=6, uids=["u1"]),
    frames.Fence(id=7, pods=[frames.GonePod(uid="u2", ips=["10.0.0.1"])]),
    frames.Synced(id=8),
]
TYPES = sorted({msgspec.to_builtins(f)["type"] for f in VALID})
FIELDS = sorted({field for f in VALID for field in f.__struct_fields__})

numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
    st.floats(),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["orders", "10.0.0.1", "public", "\x00", "a" * 70_000, "http/10.0.0.1:80", "../..", "u1"]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.one_of(texts, st.sampled_from(FIELDS)), inner, max_size=5),
    ),
    max_leaves=20,
)


@st.composite
def changed(draw):
    """A valid frame of which something is different: a field, or what a list in it holds."""
    frame = msgspec.to_builtins(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        place = frame
        if draw(st.booleans()):
            inner = [v[0] for v in frame.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
            place = inner[0] if inner else frame
        field = draw(st.sampled_from([*place, *FIELDS]))
        if draw(st.integers(0, 4)) == 0:
            place.pop(field, None)
        else:
            place[field] = draw(values)
    return msgspec.msgpack.encode(frame)


@st.composite
def bent(draw):
    """A valid frame of which some bytes are others, more or fewer."""
    data = bytearray(msgspec.msgpack.encode(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["put", "cut", "flip"])):
            case "put":
                data[at:at] = draw(st.binary(max_size=8))
            case "cut":
                del data[at : at + draw(st.integers(0, 8))]
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def nested(depth, opening, closing):
    return opening * depth + closing * depth


awkward = st.sampled_from(
    [
        b"",
        b"\xc1",
        nested(100_000, b"\x91", b"\xc0"),
        nested(100_000, b"\x81\xa1a", b"\xc0"),
        b"\x82\xa4type\xa8register\xa7entries" + nested(50_000, b"\x91", b"\xc0"),
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
        b"\xc6\xff\xff\xff\xff",  # as many bytes
        b"\xdf\xff\xff\xff\xff\xa4type",
        msgspec.msgpack.encode({"type": "ping", "n": 2**64 - 1}),
        msgspec.msgpack.encode({"type": "register", "id": 2**63, "entries": []}),
        msgspec.msgpack.encode({"type": "barrier", "id": 1, "services": [["a", "b"]] * 2000}),
        msgspec.msgpack.encode({"type": "barrier", "id": 1, "services": [], "timeout": float("nan")}),
        msgspec.msgpack.encode({"type": "beat", "term": 2**63, "down": [], "entries": []}),
        msgspec.msgpack.encode({"type": "attach", "lease": "x", "term": 2**63}),
        msgspec.msgpack.encode({"type": "attach", "lease": "x", "term": -1}),
        msgspec.msgpack.encode({"type": "attach", "lease": "x", "term": 2**64 - 1}),
        msgspec.msgpack.encode({"type": "attach", "lease": "x", "kind": "operator", "epoch": 2**63}),
    ]
)
frames_of_all_kinds = st.lists(
    st.one_of(
        st.binary(max_size=200),
        changed(),
        bent(),
        awkward,
        st.sampled_from(VALID).map(msgspec.msgpack.encode),
    ),
    min_size=1,
    max_size=12,
)


def check_book(registry):
    """What must hold of the book whatever was said to it."""
    catalog = registry.catalog
    counted = 0
    for service in catalog.services:
        listed = service.instances
        counted += len(listed)
        assert service.digest == digest(listed.values())
        assert service.healthy == sum(i.healthy for i in listed.values())
        assert all(key == i.key for key, i in listed.items())
        assert all(1 <= i.port <= 65535 for i in listed.values())
    # Whatever is in the book can be told.
    for service in list(catalog.services):
        whole = registry.server.book.outlet._frame(_Topic(service.key), service, -1, None)
        assert frames.Codec(frames.JSON).encode(whole)
    return counted


async def dealt_with(speaker):
    """Wait until all that was said has been dealt with; says whether the session still stands."""
    try:
        await speaker.say(frames.Ping(n=LAST))
        while True:
            frame = await speaker.hear()
            if isinstance(frame, frames.Pong) and frame.n == LAST:
                return True
            assert isinstance(frame, frames.Answer)
    except (ConnectionError, AssertionError):
        assert speaker.ws.closed or speaker.ws._response.connection is None, "an answer that is none"
        return False


@pytest.fixture
async def told(registry):
    """A registry with something in its book, and all that it logs."""
    with structlog.testing.capture_logs() as logged:
        honest = await registry.speaker()
        await honest.attach("honest")
        await honest.register(an_entry(9000, service="honest"))
        yield registry, logged


def complaints(logged):
    return [e for e in logged if e["log_level"] in {"error", "critical"}]


@settings(
    max_examples=400,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(sent=frames_of_all_kinds)
async def test_any_bytes_are_answered_or_end_their_session_alone(told, sent):
    registry, logged = told
    speaker = await registry.speaker()
    try:
        for data in sent:
            try:
                await speaker.ws.send_bytes(data)
            except ConnectionError:
                break
        await dealt_with(speaker)
    finally:
        speaker.ws._response.close()
    check_book(registry)
    assert complaints(logged) == []
    again = await registry.speaker()
    assert isinstance(await again.ask(frames.Ping(n=1)), frames.Pong)
    again.ws._response.close()


def json_frames():
    rng = random.Random(7)
    deep = "[" * 100_000 + "]" * 100_000
    yield from [
        "", "{", "null", "[]", '"ping"', "{}", deep,
        '{"type":' * 10_000, '{"type":"ping","n":' + "9" * 5000 + "}",
        '{"type":"ping","n":1e999}', '{"type":"ping","n":-0}', '{"type":"ping","n":NaN}',
        '{"type":"ping"}trailing',
        '{"type":"register","id":' + "9" * 400 + ',"entries":[]}', '{"type":"ping","type":"ping"}',
        '{"type":"subscribe","id":1,"service":"\\ud800"}', '{"type":"subscribe","id":1,"service":"\\u0000"}',
        '{"type":"attach","lease":"a","term":1' + "0" * 300 + "}",
        '{"type":"register","id":1,"entries":' + deep + "}",
    ]  # fmt: skip
    for frame in VALID:
        text = msgspec.json.encode(frame).decode()
        for _ in range(40):
            at = rng.randrange(len(text))
            yield (
                text[:at]
                + rng.choice(["", "\x00", "{", '"', "9" * 30, "\ufffd", "null"])
                + text[at + rng.randrange(3) :]
            )


async def test_any_text_is_answered_or_ends_its_session_alone(told):
    registry, logged = told
    speaker = await registry.speaker(frames.JSON)
    lost = 0
    for text in json_frames():
        await speaker.ws.send_str(text)
        if not await dealt_with(speaker):
            lost += 1
            speaker = await registry.speaker(frames.JSON)
    assert lost == 0, "a text that is UTF-8 is refused, and the session goes on"
    check_book(registry)
    assert complaints(logged) == []


async def test_binary_where_text_belongs_and_the_other_way_round_are_refused(told):
    registry, logged = told
    for subprotocol in frames.SUBPROTOCOLS:
        speaker = await registry.speaker(subprotocol)
        if speaker.codec.binary:
            await speaker.ws.send_str('{"type":"ping"}')
        else:
            await speaker.ws.send_bytes(b"\x81\xa4type\xa4ping")
        assert (await speaker.hear(frames.Refused)).problem.code == "bad_frame"
        assert await dealt_with(speaker)
    assert complaints(logged) == []


async def test_broken_web_socket_framing_ends_its_connection_alone(told, connect):
    registry, logged = told
    rng = random.Random(3)
    for _ in range(60):
        raw = await connect(registry.server.session_port)
        await raw.say(
            b"GET /session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Sec-WebSocket-Protocol: rollbook.v1.json\r\n\r\n"
        )
        await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 10)
        await raw.say(rng.randbytes(rng.randrange(1, 200)))
        raw.writer.close()
    await until(lambda: len(registry.server.sessions) == 1)
    check_book(registry)
    assert complaints(logged) == []
