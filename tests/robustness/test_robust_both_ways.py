"""The direct way and aiohttp's: whatever bytes come, however they are cut, both give the same answers.

Two registries get the same bytes in the same pieces. One answers plain requests before aiohttp, the other
has aiohttp answer everything. What they send must be equal, byte for byte, and so must the books afterwards.
That is also what "request smuggling" would break: where one way sees two requests and the other sees one.
"""

from __future__ import annotations

import asyncio
import re

import pytest
import uvloop
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from registrykit import an_entry
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.connections import Door
from serverkit import starter

pytestmark = pytest.mark.timeout(300)

HOST = b"Host: x\r\n"
GET = b"GET /services/orders HTTP/1.1\r\n" + HOST + b"\r\n"
BEAT = b"PUT /services/orders/instances/10.0.0.1:80/beat HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /services/orders/instances HTTP/1.1\r\n" + HOST
HIDDEN = POST + b"Content-Length: %d\r\n\r\n" % (len(GET) + 10)
UNNAMED = b'{"ip":"10.0.0.9","port":80,"owner":"u"}'
BODY = b'{"ip":"10.0.0.%d","port":80}'


class Wire(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self):
        super().__init__({"peername": ("10.9.9.9", 1)})
        self.sent = bytearray()
        self.closed = False
        self.reading = True

    def write(self, data):
        if not self.closed:
            self.sent += data

    def writelines(self, pieces):
        self.write(b"".join(pieces))

    def can_write_eof(self):
        return False

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    abort = close

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class Side:
    """A registry, and the one connection to it."""

    def __init__(self, registry, *, direct):
        self.registry = registry
        self.directly = direct
        self.wire = self.connection = None
        self.answered = 0

    def connect(self):
        self.wire = Wire()
        self.connection = self.registry.server.connections[Door.HTTP]()
        if not self.directly:
            self.connection._bypass = None
        self.connection.connection_made(self.wire)

    def receive(self, piece):
        if self.wire.closed or not self.wire.reading:
            return
        before = len(self.wire.sent)
        self.connection.data_received(piece.replace(b"@BOOT@", self.registry.book.boot.encode()))
        # aiohttp answers from a task of its own, so what is there at once came by the direct way.
        self.answered += len(self.wire.sent) > before

    def said(self):
        text = bytes(self.wire.sent).replace(self.registry.book.boot.encode(), b"@BOOT@")
        return re.sub(rb"Date: [^\r]+", b"Date: @", text)

    def counts(self):
        metrics = self.registry.book.metrics
        return dict(metrics.events.counts), dict(metrics.beats.counts)

    def shows(self):
        services = self.registry.catalog.services.within("public")
        return {s.key: (s.number, dict(s.instances)) for s in services}


async def quiet(*sides):
    """Let everything run that does not wait for the outside."""
    still, before = 0, None
    while still < 12:
        await asyncio.sleep(0)
        now = [(len(s.wire.sent), s.wire.closed) for s in sides]
        still = still + 1 if now == before else 0
        before = now


def speak_for_a_pod(catalog, now):
    """Have an operator name one port of a pod, and no other."""
    catalog.attach("o", kind=Kind.OPERATOR, term=0, holder=object(), now=now, epoch=1)
    catalog.register("o", [an_entry(8080, ip="10.0.0.9", owner="u", ready=True)], now)


class Pair:
    """Both sides, kept for all examples: the same happens to both, so they stay alike."""

    def __init__(self):
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.stack = None
        self.sides = ()

    def open(self, directory):
        self.runner.run(self._open(directory))

    async def _open(self, directory):
        sides = []
        self.stack = []
        for name, direct in (("direct", True), ("aiohttp", False)):
            (directory / name).mkdir()
            starting = starter(directory / name)
            start = await starting.__aenter__()
            self.stack.append(starting)
            # Nothing may depend on the moment at which a side is looked at.
            registry = await start(request_timeout=600.0, unhealthy_after=3600.0, remove_after=3600.0)
            registry.book.apply(speak_for_a_pod)
            sides.append(Side(registry, direct=direct))
        self.sides = tuple(sides)

    def close(self):
        async def end():
            for starting in reversed(self.stack):
                await starting.__aexit__(None, None, None)

        self.runner.run(end())
        self.runner.close()

    def play(self, pieces, *, hurried=()):
        """Send the pieces to both; those whose number is in ``hurried`` follow at once on the one before."""

        async def play():
            for side in self.sides:
                side.connect()
                side.answered = 0
            await quiet(*self.sides)
            for number, piece in enumerate(pieces):
                for side in self.sides:
                    side.receive(piece)
                if number + 1 not in hurried:
                    await quiet(*self.sides)
            await quiet(*self.sides)
            a, b = self.sides
            assert a.said() == b.said()
            assert a.wire.closed == b.wire.closed
            assert a.shows() == b.shows()
            assert a.counts() == b.counts()
            assert not b.answered
            for side in self.sides:
                side.connection.connection_lost(None)
            await quiet(*self.sides)
            return a.said(), a.answered

        return self.runner.run(play())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = Pair()
    pair.open(tmp_path_factory.mktemp("both"))
    try:
        yield pair
    finally:
        pair.close()


def a_request(line, *headers, body=b"", end=b"\r\n"):
    lines = [line, *headers, *([b"Content-Length: %d" % len(body)] if body else []), b""]
    return end.join(lines) + end + body


def heads():
    """First lines, from those that are asked all day to those that nobody should send."""
    number = st.integers(1, 4)
    key = number.map(lambda n: b"10.0.0.%d:80" % n)
    service = st.sampled_from(
        [b"orders", b"users", b"a:b", b"..", b"", b"or%64ers", b"or+ders", b"b@@c", b"%00"]
    )
    query = st.sampled_from(
        [
            b"",
            b"?",
            b"?healthy=true",
            b"?healthy=maybe",
            b"?healthy=true&healthy=true",
            b"?cluster=DEFAULT,other",
            b"?selector=version=1",
            b"?selector=version%3D1",
            b"?namespace=public&group=DEFAULT_GROUP",
            b"?namespace=",
            b"?group",
            b"?&&group=DEFAULT_GROUP",
            b"?term=1",
            b"?term=77",
            b"?wait=0s",
            b"?wait=1s",
            b"?unknown=1",
            b"?healthy=true#part",
            b"?healthy=true;x=1",
        ]
    )
    lists = st.builds(lambda s, q: b"GET /services/%b%b HTTP/1.1" % (s, q), service, query)
    beats = st.builds(
        lambda s, k, q: b"PUT /services/%b/instances/%b/beat%b HTTP/1.1" % (s, k, q), service, key, query
    )
    deletions = st.builds(lambda k: b"DELETE /services/orders/instances/%b HTTP/1.1" % k, key)
    odd = st.sampled_from(
        [
            b"GET /healthz HTTP/1.1",
            b"HEAD /services/orders HTTP/1.1",
            b"OPTIONS /services/orders HTTP/1.1",
            b"get /services/orders HTTP/1.1",
            b"GET  /services/orders HTTP/1.1",
            b"GET /services/orders HTTP/1.0",
            b"GET /services/orders HTTP/1.2",
            b"GET /services/orders HTTP/2.0",
            b"GET /services/orders",
            b"GET //services/orders HTTP/1.1",
            b"GET /services/orders/ HTTP/1.1",
            b"GET /services/./orders HTTP/1.1",
            b"GET /services/../services/orders HTTP/1.1",
            b"GET http://x/services/orders HTTP/1.1",
            b"GET services/orders HTTP/1.1",
            b"GET * HTTP/1.1",
            b"GET /services/orders\x00 HTTP/1.1",
            b"GET /services/orders\tHTTP/1.1",
            b" GET /services/orders HTTP/1.1",
            b"\r\nGET /services/orders HTTP/1.1",
            b"GET /services/[::1] HTTP/1.1",
            b"PUT /services/orders/instances/[::1]:80/beat HTTP/1.1",
            b"CONNECT x:80 HTTP/1.1",
            b"TRACE /services/orders HTTP/1.1",
            b"GET /nothing HTTP/1.1",
            b"POST /services/orders HTTP/1.1",
        ]
    )
    return st.one_of(lists, beats, lists, beats, deletions, odd)


HEADERS = st.sampled_from(
    [
        b"Accept: */*",
        b"User-Agent: a test",
        b"X-Request-Id: 1",
        b"x-empty:",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection: Upgrade",
        b"Connection: keep-alive, Upgrade",
        b"Upgrade: websocket",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b"Expect: something",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"transfer-encoding : chunked",
        b"Transfer-Encoding:\tchunked",
        b"X-A: b\r\n Transfer-Encoding: chunked",
        b"Content-Length: 0",
        b"Content-Length: 5",
        b"Content-Length: +5",
        b"Content-Length: 05",
        b"Content-Length: 5, 5",
        b"Content-Length: -1",
        b"Content-Length : 5",
        b"Content-Length: 0x5",
        b"Content-Length: 99999999999999999999",
        b"Content-Encoding: gzip",
        b"Content-Type: application/json",
        b"Host: y",
        b"X-\x00: a",
        b"X-A: \x00",
        b"X-A: \xff",
        b"X-A: a\nX-B: b",
        b"X-A: a\rX-B: b",
        b"no colon",
        b": no name",
        b"X A: b",
        b"Authorization: Bearer abc",
        b'If-None-Match: "@BOOT@.0"',
        b'If-None-Match: "@BOOT@.0.unsettled"',
        b'If-None-Match: "@BOOT@.1.unsettled"',
        b"If-None-Match: *",
        b"Range: bytes=0-1",
        b"Trailer: x",
        b"TE: trailers",
    ]
)


@st.composite
def bodies(draw):
    """A body with what announces it, or not quite."""
    data = BODY % draw(st.integers(1, 4))
    bad = draw(st.sampled_from([b"{", b"null", b'{"ip":"x y","port":80}', b'{"port":1}', b"\xff{}"]))
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    length = b"Content-Length: %d"
    coding = b"Transfer-Encoding: chunked"
    return draw(
        st.sampled_from(
            [
                ([], b""),
                ([length % len(data)], data),
                ([length % len(data)], data),
                ([length % len(bad)], bad),
                ([coding], chunked),
                ([length % 4, coding], chunked),
                ([length % len(chunked), coding], chunked),
                ([length % (len(data) + 20)], data),
                ([length % (len(data) - 5)], data),
                ([length % len(data)], data + b"\r\n"),
            ]
        )
    )


@st.composite
def requests(draw):
    line = draw(
        st.one_of(
            heads(),
            st.sampled_from([b"orders", b"users"]).map(lambda s: b"POST /services/%b/instances HTTP/1.1" % s),
        )
    )
    headers = [b"Host: x"] if draw(st.integers(0, 9)) else []
    headers += draw(st.lists(HEADERS, max_size=2)) if draw(st.booleans()) else []
    announced, body = (
        draw(bodies()) if line.startswith((b"POST", b"PUT")) or not draw(st.integers(0, 5)) else ([], b"")
    )
    headers = draw(st.permutations([*headers, *announced]))
    end = b"\n" if not draw(st.integers(0, 19)) else b"\r\n"
    return end.join([line, *headers, b"", b""]) + body


def sober():
    """What is asked all day, with everything about it in order."""
    number = st.integers(1, 4)
    return st.one_of(
        st.sampled_from([b"", b"?healthy=true", b"?cluster=DEFAULT", b"?group=DEFAULT_GROUP"]).map(
            lambda q: a_request(b"GET /services/orders%b HTTP/1.1" % q, b"Host: x")
        ),
        number.map(
            lambda n: a_request(b"PUT /services/orders/instances/10.0.0.%d:80/beat HTTP/1.1" % n, b"Host: x")
        ),
        number.map(lambda n: a_request(POST.split(b"\r\n")[0], b"Host: x", body=BODY % n)),
    )


@st.composite
def streams(draw):
    """Requests one after the other, cut in pieces, some of which come together."""
    wanted = draw(st.lists(st.one_of(sober(), sober(), requests()), min_size=1, max_size=5))
    pieces = []
    for text in wanted:
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=2))) if draw(st.booleans()) else []
        pieces += [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
    joined = [pieces[0]]
    for piece in pieces[1:]:
        if draw(st.integers(0, 3)):
            joined.append(piece)
        else:
            joined[-1] += piece
    hurried = draw(st.sets(st.integers(1, max(1, len(joined) - 1)), max_size=2))
    return joined, frozenset(hurried)


@given(stream=streams())
@settings(max_examples=2000, suppress_health_check=list(HealthCheck), deadline=None)
# A body that looks like a request, in the same piece, in the next one, and behind a head in two pieces.
@example(stream=([HIDDEN + b" " * 10 + GET], frozenset()))
@example(stream=([HIDDEN + b" " * 10, GET], frozenset()))
@example(stream=([HIDDEN[:30], HIDDEN[30:] + b" " * 10, GET], frozenset()))
# The second half of a pipelined request comes when the first has been answered.
@example(stream=([GET + HIDDEN + b" " * 10, GET, GET], frozenset()))
# A request that aiohttp has not answered yet is followed by a plain one.
@example(stream=([b"OPTIONS /services/orders HTTP/1.1\r\n" + HOST + b"\r\n", GET], frozenset({1})))
# What is left of a body, and with it the beginning of a request that is not complete.
@example(stream=([HIDDEN + b" " * 10, GET + b"GET /nothing HTTP/1.1\r\nX-A: ", GET, GET], frozenset()))
# Headers that contradict each other, and versions that promise less.
@example(stream=([GET.replace(HOST, HOST * 2), GET], frozenset()))
@example(stream=([HIDDEN.replace(HOST, HOST + b"Content-Length: 2\r\n") + b"{}", GET], frozenset()))
@example(stream=([GET.replace(b"1.1", b"1.0"), GET], frozenset()))
@example(stream=([GET.replace(b"1.1", b"1.2"), GET], frozenset()))
# What follows CONNECT is not the body that its headers announce.
@example(stream=([b"CONNECT /x HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nGET /", GET], frozenset()))
# What a pod enters and its operator does not name.
@example(stream=([a_request(POST.split(b"\r\n")[0], b"Host: x", body=UNNAMED), GET], frozenset()))
# A declined upgrade: what follows it is read by aiohttp again.
@example(stream=([GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET, GET], frozenset()))
def test_both_ways_answer_alike(pair, stream):
    pieces, hurried = stream
    _, directly = pair.play(pieces, hurried=hurried)
    event("answered directly" if directly else "all by aiohttp")


def test_what_is_plain_is_answered_directly(pair):
    new = a_request(b"POST /services/orders/instances HTTP/1.1", b"Host: x", body=BODY % 1)
    held = GET[:-2] + b'If-None-Match: "@BOOT@.0.unsettled"\r\n\r\n'
    full = a_request(BEAT.split(b"\r\n")[0], b"Host: x", body=BODY % 1)
    said, directly = pair.play([new, GET, BEAT, full, GET, held.replace(b"orders", b"nobody")])
    assert directly == 6
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"201", b"200", b"202", b"202", b"200", b"304"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"OPTIONS /services/orders HTTP/1.1\r\n" + HOST + b"\r\n", 1),
        (b"GET /services/or%64ers HTTP/1.1\r\n" + HOST + b"\r\n", 1),
        (BEAT.replace(b"0.0.1", b"9.9.9"), 1),
        (GET.replace(HOST, HOST + b"TE: trailers\r\n"), 0),
        (GET[:20], 0),
    ],
    ids=["another method", "an escape", "what is refused", "an unknown header", "a head in pieces"],
)
def test_what_aiohttp_answered_plainly_leaves_the_direct_way_open_and_nothing_else_does(pair, first, then):
    rest = GET[20:] if first == GET[:20] else b""
    _, directly = pair.play([first, *([rest] if rest else []), GET])
    assert directly == then


def test_a_body_that_comes_after_its_head_is_aiohttps_and_the_next_request_is_direct_again(pair):
    new = a_request(b"POST /services/orders/instances HTTP/1.1", b"Host: x", body=BODY % 2)
    head, body = new[: -len(BODY % 2)], BODY % 2
    said, directly = pair.play([head, body[:3], body[3:], GET])
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"201", b"200"]
    assert directly == 1
