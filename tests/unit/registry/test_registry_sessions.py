"""Sessions over real sockets: every frame, every way to get it wrong, and what a broken connection leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import aiohttp
import msgspec
import pytest

from registrykit import ORDERS, a_ref, an_entry, key_of
from rollbook import frames
from rollbook.digest import digest, spell
from rollbook.limits import MAX_ENTRIES_PER_FRAME, MAX_FRAME_BYTES, MAX_HELD_PER_FRAME
from rollbook_registry.api import sessions
from rollbook_registry.api.session import Session
from rollbook_registry.api.sessions import Line
from rollbook_registry.connections.websocket import Upgrade
from serverkit import until
from socketkit import UPGRADE

SUBSCRIBE = frames.Subscribe(id=9, service="orders")


@pytest.fixture(params=frames.SUBPROTOCOLS)
async def speaker(request, registry):
    return await registry.speaker(request.param)


# --- the usual course -----------------------------------------------------------------------------------


async def test_the_usual_course(registry, speaker):
    attached = await speaker.attach(term=4)
    assert (attached.term, attached.resumed, attached.settled) == (5, False, False)
    assert attached.boot == registry.book.boot
    assert (attached.beat_interval, attached.unhealthy_after, attached.remove_after) == (5.0, 15.0, 30.0)
    done = await speaker.register(an_entry())
    assert (done.id, done.term) == (1, 5)
    snapshot = await speaker.ask(SUBSCRIBE, frames.Snapshot)
    assert [i.port for i in snapshot.instances] == [8080]
    await speaker.say(frames.Ack(service="orders", revision=snapshot.revision))
    await speaker.say(frames.Beat(term=5, down=[a_ref()]))
    delta = await speaker.hear(frames.Delta)
    assert (delta.base, [i.healthy for i in delta.put]) == (snapshot.revision, [False])
    assert delta.digest == spell(digest(delta.put))
    await speaker.say(frames.Ack(service="orders", revision=delta.revision))
    assert (await speaker.ask(frames.Ping(n=7))).n == 7
    await speaker.say(frames.Deregister(id=2, entries=[a_ref(), a_ref(99)]))
    heard = {type(f): f for f in [await speaker.hear(), await speaker.hear()]}
    assert heard[frames.Done].id == 2
    assert heard[frames.Delta].drop == ["10.0.0.1:8080:DEFAULT"]
    await speaker.say(frames.Unsubscribe(service="orders"))
    assert (await speaker.ask(frames.Release(id=3), frames.Done)).id == 3
    assert registry.catalog.leases == 0
    # The lease has ended; whoever beats all the same hears so.
    ended = await speaker.ask(frames.Beat(term=5), frames.LeaseEnded)
    assert (ended.lease, ended.term) == ("a", 5)
    again = await speaker.attach(term=ended.term)
    assert again.term > ended.term


async def test_both_ports_take_sessions(registry):
    for port in (registry.server.http_port, registry.server.session_port):
        speaker = await registry.speaker(port=port)
        assert isinstance(await speaker.ask(frames.Ping()), frames.Pong)


async def test_who_holds_the_very_list_is_told_so(registry, speaker):
    await speaker.attach()
    await speaker.register(an_entry())
    held = spell(registry.catalog.service(ORDERS).digest)
    current = await speaker.ask(
        frames.Subscribe(id=2, service="orders", revision="elsewhere.3", digest=held), frames.Current
    )
    assert (current.digest, current.settled) == (held, False)


async def test_everybody_is_told_when_the_book_settles(start):
    registry = await start(unhealthy_after=0.2, remove_after=1.0, beat_interval=0.1, expiry_tick=0.02)
    speaker = await registry.speaker()
    await speaker.ask(frames.Ping())
    await speaker.hear(frames.Settled)
    assert (await speaker.ask(SUBSCRIBE, frames.Snapshot)).settled


async def test_what_all_are_told_is_told_to_so_many_a_turn(registry, monkeypatch):
    monkeypatch.setattr(sessions, "PER_TURN", 2)
    speakers = [await registry.speaker() for _ in range(5)]
    for speaker in speakers:
        await speaker.ask(frames.Ping(), frames.Pong)
    said = []
    monkeypatch.setattr(Line, "answer", lambda line, frame: said.append((line, frame)))
    registry.server.sessions.settled()
    assert len(said) == 2
    await until(lambda: len(said) == 5)
    assert len({line for line, _ in said}) == 5
    assert {type(frame) for _, frame in said} == {frames.Settled}


async def test_a_full_beat_registers_what_is_unknown_off_its_path(registry, speaker):
    attached = await speaker.attach()
    await speaker.register(an_entry(weight=1.0))
    await speaker.say(frames.Beat(term=attached.term, entries=[an_entry(weight=2.0), an_entry(81)]))
    service = registry.catalog.service(ORDERS)
    await until(lambda: len(service.instances) == 2)
    # What it knows already is only heard.
    assert {i.weight for i in service.instances.values()} == {1.0}


async def test_addresses_are_the_same_however_they_are_spelt(registry, speaker):
    attached = await speaker.attach()
    await speaker.register(an_entry(ip="2001:DB8::1"))
    service = registry.catalog.service(ORDERS)
    await speaker.say(frames.Beat(term=attached.term, down=[a_ref(ip="2001:DB8::0:1")]))
    await until(lambda: service.healthy == 0)
    await speaker.ask(frames.Deregister(id=2, entries=[a_ref(ip="2001:DB8::1")]), frames.Done)
    assert not service.instances


async def test_a_barrier_waits_for_subscribers_and_says_if_they_did_not_come(registry, speaker):
    await speaker.attach()
    other = await registry.speaker()
    snapshot = await other.ask(SUBSCRIBE, frames.Snapshot)
    services = [tuple(ORDERS)]
    done = await speaker.ask(frames.Barrier(id=5, services=services, timeout=0.05), frames.Done)
    assert (done.id, done.complete) == (5, False)
    await speaker.say(frames.Barrier(id=6, services=services, timeout=10))
    assert isinstance(await speaker.ask(frames.Ping()), frames.Pong)
    await other.say(frames.Ack(service="orders", revision=snapshot.revision))
    done = await speaker.hear(frames.Done)
    assert (done.id, done.complete) == (6, True)


async def test_a_barrier_goes_with_its_session(registry):
    other = await registry.speaker()
    await other.ask(SUBSCRIBE, frames.Snapshot)
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.say(frames.Barrier(id=6, services=[tuple(ORDERS)], timeout=10))
    await until(lambda: registry.book.outlet._barriers)
    await speaker.ws.close()
    await until(lambda: not registry.book.outlet._barriers)


async def test_the_operators_frames(registry, speaker):
    await speaker.attach("op", kind="operator", epoch=2)
    await speaker.register(an_entry(owner="u", ready=False, beats_required=True), an_entry(81, owner="v"))
    assert (await speaker.ask(frames.Synced(id=2), frames.Done)).id == 2
    assert (await speaker.ask(frames.Close(id=3, uids=["u"]), frames.Done)).id == 3
    fence = frames.Fence(id=4, pods=[frames.GonePod(uid="v", ips=["10.0.0.1"])])
    assert (await speaker.ask(fence, frames.Done)).id == 4
    assert registry.catalog.service(ORDERS).instances == {}
    assert (registry.catalog.pods.closed, registry.catalog.pods.fenced) == (1, 1)
    problem = await speaker.refused(frames.Register(id=5, entries=[an_entry(owner="u")]))
    assert (problem.code, problem.status) == ("pod_terminating", 410)


async def test_a_fence_finds_the_address_however_it_is_spelt(registry, speaker):
    sdk = await registry.speaker()
    await sdk.attach("sdk")
    await sdk.register(an_entry(ip="2001:db8::1"))
    await speaker.attach("op", kind="operator")
    gone = frames.GonePod(uid="v", ips=["2001:DB8:0::1"])
    await speaker.ask(frames.Fence(id=4, pods=[gone]), frames.Done)
    assert registry.catalog.service(ORDERS).instances == {}
    problem = await speaker.refused(frames.Fence(id=5, pods=[frames.GonePod(uid="w", ips=["x y"])]))
    assert problem.field == "pods[0].ips[0]"
    assert registry.catalog.pods.fenced == 1


async def test_an_operator_that_was_replaced_is_refused(registry):
    old, new = await registry.speaker(), await registry.speaker()
    await old.attach("old", kind="operator", epoch=1)
    await new.attach("new", kind="operator", epoch=2)
    for frame in (
        frames.Register(id=1, entries=[an_entry(owner="u")]),
        frames.Close(id=2, uids=["u"]),
        frames.Fence(id=3, pods=[frames.GonePod(uid="u")]),
        frames.Synced(id=4),
        frames.Attach(lease="old", kind="operator", epoch=1),
    ):
        assert (await old.refused(frame)).code == "epoch_superseded"
    assert registry.catalog.pods.closed == registry.catalog.pods.fenced == 0


# --- bad frames -----------------------------------------------------------------------------------------

ATTACHED_BAD = [
    (frames.Register(id=1, entries=[an_entry(), an_entry(81, ip="x y")]), "bad_value", "entries[1].ip"),
    (frames.Register(id=1, entries=[an_entry(81, weight=-1.0)]), "bad_value", "entries[0].weight"),
    (frames.Register(id=1, entries=[an_entry(81, ready=True)]), "forbidden", "entries[0].ready"),
    (frames.Deregister(id=1, entries=[a_ref(), a_ref(ip="x y")]), "bad_value", "entries[1].ip"),
    (frames.Deregister(id=1, entries=[a_ref(0)]), "bad_value", "entries[0].port"),
    (frames.Beat(term=1, down=[a_ref(ip="x y")]), "bad_value", "down[0].ip"),
    (frames.Beat(term=1, entries=[an_entry(81, service="a b")]), "bad_value", "entries[0].service"),
    (frames.Subscribe(id=1, service="a b"), "bad_value", "service"),
    (frames.Subscribe(id=1, service="a", namespace="a b"), "bad_value", "namespace"),
    (frames.Unsubscribe(service="a", group=""), "bad_value", "group"),
    (frames.Ack(service="", revision="x"), "bad_value", "service"),
    (frames.Attach(lease="another"), "bad_value", "lease"),
    (frames.Attach(lease="a", term=-1), "bad_value", "term"),
    (frames.Attach(lease="a", term=2**60), "bad_value", "term"),
    (frames.Barrier(id=1, services=[], timeout=61.0), "bad_value", "timeout"),
    (frames.Close(id=1, uids=["u"]), "forbidden", "kind"),
    (frames.Fence(id=1, pods=[]), "forbidden", "kind"),
    (frames.Synced(id=1), "forbidden", "kind"),
]


@pytest.mark.parametrize(("frame", "code", "field"), ATTACHED_BAD)
async def test_bad_frames_are_refused_and_the_session_goes_on(registry, speaker, frame, code, field):
    await speaker.attach()
    await speaker.register(an_entry())
    answer = await speaker.ask(frame, frames.Refused)
    assert (answer.problem.code, answer.problem.field) == (code, field)
    assert answer.problem.accepted
    assert answer.id == getattr(frame, "id", 0)
    assert isinstance(await speaker.ask(frames.Ping()), frames.Pong)
    service = registry.catalog.service(ORDERS)
    assert [(i.port, i.healthy) for i in service.instances.values()] == [(8080, True)]


@pytest.mark.parametrize(
    ("lease", "kind"),
    [("", "session"), ("a b", "session"), ("http/10.0.0.1:80", "session"), ("x" * 257, "operator")],
)
async def test_a_bad_lease_is_refused(registry, speaker, lease, kind):
    problem = await speaker.refused(frames.Attach(lease=lease, kind=kind))
    assert (problem.code, problem.field) == ("bad_value", "lease")
    assert registry.catalog.leases == 0


async def test_a_timeout_that_is_no_number_is_refused(registry):
    speaker = await registry.speaker(frames.MSGPACK)
    await speaker.attach()
    problem = await speaker.refused(frames.Barrier(id=1, services=[], timeout=float("nan")))
    assert problem.field == "timeout"


@pytest.mark.parametrize(
    "frame",
    [
        frames.Register(id=1, entries=[an_entry()]),
        frames.Deregister(id=1, entries=[a_ref()]),
        frames.Beat(term=1),
        frames.Release(id=1),
        frames.Close(id=1, uids=["u"]),
        frames.Synced(id=1),
    ],
    ids=lambda frame: type(frame).__name__,
)
async def test_without_a_lease_there_is_nothing_to_say(speaker, frame):
    problem = await speaker.refused(frame)
    assert (problem.code, problem.field, problem.accepted) == ("bad_frame", "type", "attach first")
    assert isinstance(await speaker.ask(frames.Ping()), frames.Pong)


@pytest.mark.parametrize("what", ["bytes", "text"])
@pytest.mark.parametrize("subprotocol", frames.SUBPROTOCOLS)
async def test_what_is_no_frame_is_refused_and_the_session_goes_on(registry, subprotocol, what):
    speaker = await registry.speaker(subprotocol)
    for garbage in (b"", b"{}", b"[[", b"[" * 50_000, b'{"a":' * 5000, b'{"type":"nonsense"}'):
        if what == "bytes":
            await speaker.ws.send_bytes(garbage)
        else:
            await speaker.ws.send_str(garbage.decode())
        assert (await speaker.hear(frames.Refused)).problem.code == "bad_frame"
    assert isinstance(await speaker.ask(frames.Ping()), frames.Pong)


async def test_an_unknown_field_is_named(registry):
    speaker = await registry.speaker(frames.JSON)
    await speaker.ws.send_str('{"type":"attach","lease":"a","trem":1}')
    problem = (await speaker.hear(frames.Refused)).problem
    assert (problem.code, problem.field) == ("bad_frame", "trem")


async def test_numbers_beyond_all_bounds_are_borne(registry):
    speaker = await registry.speaker(frames.JSON)
    await speaker.ws.send_str('{"type":"ping","n":123456789012345678901234567890}')
    assert (await speaker.hear(frames.Pong)).n == 123456789012345678901234567890
    await speaker.ws.send_str('{"type":"attach","lease":"a","term":123456789012345678901234567890}')
    assert (await speaker.hear(frames.Refused)).problem.field == "term"
    # Nobody who speaks MessagePack is hurt by them later.
    assert (await (await registry.speaker()).attach()).term == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pattern": ""}, "pattern"),
        ({"pattern": "a b"}, "pattern"),
        ({"pattern": "*", "namespace": "*"}, "namespace"),
        ({"pattern": "*", "group": "a@b"}, "group"),
        ({"pattern": "a*", "held": [frames.Held(service="b")]}, "held[0]"),
        ({"pattern": "a*", "held": [frames.Held(service="a", group="b")]}, "held[0]"),
        (
            {"pattern": "a*", "held": [frames.Held(service="a"), frames.Held(service="a b")]},
            "held[1].service",
        ),
    ],
)
async def test_a_pattern_that_cannot_be_is_refused_and_not_followed(registry, fields, field):
    speaker = await registry.speaker()
    problem = await speaker.refused(frames.Follow(id=1, **fields))
    assert (problem.code, problem.field) == ("bad_value", field)
    assert registry.book.outlet.patterns == 0


async def test_limits_are_named(start):
    registry = await start(max_entries=2, max_subscriptions=1, max_patterns=1)
    speaker = await registry.speaker()
    attached = await speaker.attach()
    await speaker.register(an_entry(1), an_entry(2))
    await speaker.register(an_entry(1, weight=2.0))
    problem = await speaker.refused(frames.Register(id=3, entries=[an_entry(3)]))
    assert (problem.code, problem.status) == ("limit_reached", 429)
    assert "--max-entries" in problem.detail
    await speaker.ask(SUBSCRIBE, frames.Snapshot)
    problem = await speaker.refused(frames.Subscribe(id=4, service="more"))
    assert "--max-subscriptions" in problem.detail
    await speaker.ask(frames.Follow(id=5, pattern="more*"), frames.Followed)
    problem = await speaker.refused(frames.Follow(id=6, pattern="*"))
    assert (problem.code, "--max-patterns" in problem.detail) == ("limit_reached", True)
    held = [frames.Held(service="more")] * (MAX_HELD_PER_FRAME + 1)
    problem = await speaker.refused(frames.Follow(id=7, pattern="more*", held=held))
    assert (problem.code, problem.field) == ("too_large", "held")
    many = [a_ref()] * (MAX_ENTRIES_PER_FRAME + 1)
    problem = await speaker.refused(frames.Beat(term=attached.term, down=many))
    assert (problem.code, problem.accepted) == ("too_large", f"at most {MAX_ENTRIES_PER_FRAME}")


async def test_a_frame_that_is_too_large_ends_the_session(registry, speaker):
    await speaker.ask(frames.Ping(), frames.Pong)
    # It stops reading in the middle, so that the rest may find the connection closed.
    with contextlib.suppress(ConnectionError):
        await speaker.say(
            b" " * (MAX_FRAME_BYTES + 1) if speaker.codec.binary else " " * (MAX_FRAME_BYTES + 1)
        )
    await until(lambda: len(registry.server.sessions) == 0)
    assert isinstance(await (await registry.speaker()).ask(frames.Ping()), frames.Pong)


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({}, "Upgrade"),
        ({"Upgrade": "websocket", "Connection": "Upgrade"}, "Sec-WebSocket-Protocol"),
        (
            {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Protocol": "rollbook.v9"},
            "Sec-WebSocket-Protocol",
        ),
    ],
)
async def test_what_is_no_session_is_refused_before_it_begins(registry, headers, field):
    problem = await registry.problem("GET", "/session", headers=headers)
    assert (problem["status"], problem["field"]) == (400, field)
    assert problem["accepted"]


# --- connections that break -----------------------------------------------------------------------------


def abort(registry):
    """Break every connection, as a network does: without a word."""
    for line in list(registry.server.sessions._open):
        line._socket._transport.abort()


async def test_a_lease_survives_a_broken_session(registry):
    speaker = await registry.speaker()
    attached = await speaker.attach()
    await speaker.register(an_entry())
    abort(registry)
    await until(lambda: registry.catalog.lease("a").holder is None)
    assert registry.catalog.service(ORDERS).healthy == 1
    again = await (await registry.speaker()).attach(term=attached.term)
    assert (again.term, again.resumed) == (attached.term + 1, True)


async def test_a_session_that_breaks_leaves_no_subscriptions_behind(registry):
    speaker = await registry.speaker()
    await speaker.ask(SUBSCRIBE, frames.Snapshot)
    abort(registry)
    await until(lambda: not registry.book.outlet.subscriptions)
    assert len(registry.server.sessions) == 0


async def test_what_a_broken_connection_still_carries_is_not_taken_after_the_client_came_back(registry):
    old, new = await registry.speaker(), await registry.speaker()
    await old.attach("a")
    await new.attach("a", term=1)
    await new.register(an_entry())
    for frame in (
        frames.Register(id=1, entries=[an_entry(81)]),
        frames.Deregister(id=2, entries=[a_ref()]),
        frames.Release(id=3),
    ):
        assert (await old.refused(frame)).code == "lease_ended"
    ended = await old.ask(frames.Beat(term=1), frames.LeaseEnded)
    assert ended.term == 2
    assert [i.port for i in registry.catalog.service(ORDERS).instances.values()] == [8080]
    await old.ws.close()
    await until(lambda: len(registry.server.sessions) == 1)
    assert registry.catalog.lease("a").holder is not None


async def test_a_client_that_asks_without_reading_and_goes_leaves_nothing_behind(registry):
    """Its answers fill the socket, so that reader and writer both wait when the connection breaks."""
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(*[an_entry(n + 1, metadata={"x": "y" * 4000}) for n in range(500)])
    await speaker.ask(SUBSCRIBE, frames.Snapshot)
    speaker.ws._response.connection.transport.pause_reading()
    ping = msgspec.msgpack.encode({"type": "ping"})
    again = speaker.codec.encode(SUBSCRIBE)
    (line,) = registry.server.sessions._open

    async def flood():
        while True:
            await speaker.ws.send_bytes(again)
            for _ in range(200):
                await speaker.ws.send_bytes(ping)

    flooding = asyncio.create_task(flood())
    await until(lambda: len(line._unsent) > 1000)
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    abort(registry)
    await until(lambda: len(registry.server.sessions) == 0)
    assert registry.catalog.lease("a").holder is None
    assert registry.book.outlet.subscriptions == 0


async def test_a_session_that_has_ended_is_gone_without_the_collectors_help(registry):
    gc.collect()
    # What failed or still runs elsewhere in this process may keep its own.
    others = {id(o) for o in gc.get_objects() if isinstance(o, (Line, Session))}

    def ours():
        return [type(o) for o in gc.get_objects() if isinstance(o, (Line, Session)) and id(o) not in others]

    gc.disable()
    try:
        speaker = await registry.speaker()
        await speaker.attach()
        await speaker.register(an_entry())
        await speaker.ask(SUBSCRIBE, frames.Snapshot)
        await speaker.say(frames.Barrier(id=6, services=[tuple(ORDERS)], timeout=10))
        await until(lambda: registry.book.outlet._barriers)
        await speaker.ask(frames.Barrier(id=7, services=[tuple(key_of("none"))]), frames.Done)
        assert ours() == [Line, Session]
        abort(registry)
        await until(lambda: not ours())
    finally:
        gc.enable()


async def test_a_silent_session_is_closed_as_idle(start):
    registry = await start(idle_timeout=1.0)
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(an_entry())
    message = await speaker.ws.receive(timeout=10)
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4002, "idle")
    await until(lambda: registry.catalog.lease("a").holder is None)
    assert len(registry.server.sessions._wheel) == 0


async def test_a_registry_that_stops_says_goodbye(start, tmp_path):
    registry = await start()
    speaker = await registry.speaker()
    await speaker.ask(frames.Ping())
    stopping = asyncio.create_task(registry.server.__aexit__(None, None, None))
    goodbye = await speaker.hear(frames.Goodbye)
    assert goodbye.reason == "the registry is stopping"
    assert (await speaker.ws.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE
    await asyncio.wait_for(stopping, 10)


async def test_who_comes_back_during_the_goodbye_is_sent_away(start, connect):
    registry = await start()
    slow = await connect(registry.server.session_port)
    await slow.say(UPGRADE)
    await asyncio.wait_for(slow.reader.readuntil(b"\r\n\r\n"), 10)
    speaker = await registry.speaker()
    await speaker.ask(frames.Ping())
    # It ends with the slow client, which does not answer the close frame.
    stopping = asyncio.create_task(registry.server.__aexit__(None, None, None))
    await speaker.hear(frames.Goodbye)
    for port in (registry.server.http_port, registry.server.session_port):
        back = await connect(port)
        await back.say(UPGRADE)
        problem, _ = await back.problem()
        assert (problem["code"], problem["status"]) == ("not_ready", 503)
    slow.writer.close()
    await asyncio.wait_for(stopping, 10)
    assert len(registry.server.sessions) == 0


async def test_a_handshake_that_the_goodbye_overtook_leads_to_nothing(start, connect, monkeypatch):
    registry = await start()
    under_way, go_on = asyncio.Event(), asyncio.Event()
    prepare = Upgrade.prepare

    async def slowly(upgrade, request):
        under_way.set()
        await go_on.wait()
        return await prepare(upgrade, request)

    monkeypatch.setattr(Upgrade, "prepare", slowly)
    raw = await connect(registry.server.session_port)
    await raw.say(UPGRADE)
    await under_way.wait()
    await registry.server.sessions.goodbye("the registry is stopping")
    go_on.set()
    # No frame comes.
    said = await raw.closed()
    assert not said or said.endswith(b"\r\n\r\n")
    assert len(registry.server.sessions) == 0


async def test_what_is_open_when_the_doors_are_shut_is_ended(registry):
    speaker = await registry.speaker()
    await speaker.ask(frames.Ping())
    await registry.server.sessions.close()
    assert len(registry.server.sessions) == 0
    await until(lambda: len(registry.server.guard.census) == 0)
