"""A registry that asks for identities: real tokens, real sockets."""

from __future__ import annotations

import aiohttp
import pytest

from apiserverkit import ApiServer, Key
from registrykit import ORDERS, a_ref, an_entry
from rollbook import frames
from rollbook.kube import KubeApi
from serverkit import until

INSTANCES = "/services/orders/instances"
MINE = "10.0.0.1:8080:DEFAULT:u"
BODY = {"ip": "10.0.0.1", "port": 8080, "owner": "u"}


@pytest.fixture(scope="module")
def key():
    return Key("k1")


@pytest.fixture
async def registry(start, key):
    async with ApiServer(key).server as server:
        url = str(server.make_url("")).rstrip("/")
        yield await start(
            KubeApi(url, context=None, token="own"), auth="kubernetes", operator_account="rollbook/operator"
        )


@pytest.fixture
def tokens(key):
    return {
        "mine": key.token(uid="u"),
        "another pod's": key.token(uid="v", pod="thief"),
        "unbound": key.token(uid=""),
        "operator's": key.token(uid="op", account="rollbook/operator"),
    }


async def test_reading_needs_no_identity_but_a_bad_one_is_not_overlooked_where_one_is_needed(registry):
    assert (await registry.request("GET", "/services"))[0] == 200
    assert (await registry.request("GET", "/services/orders"))[0] == 200
    problem = await registry.problem("POST", INSTANCES, json=BODY)
    assert (problem["status"], problem["code"]) == (401, "unauthenticated")
    _, _, headers = await registry.request("POST", INSTANCES, json=BODY)
    assert headers["WWW-Authenticate"] == "Bearer"
    for header in ("Basic x", "Bearer", "Bearer ", "token"):
        problem = await registry.problem("POST", INSTANCES, json=BODY, headers={"Authorization": header})
        assert (problem["status"], problem["field"]) == (401, "Authorization")
    problem = await registry.problem("POST", INSTANCES, json=BODY, token="garbage")
    assert problem["status"] == 401


async def test_a_session_needs_an_identity(registry, key):
    for token in (None, "garbage", key.token(expires=-60.0)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await registry.speaker(token=token)
        assert refused.value.status == 401


async def test_a_known_token_takes_the_direct_way_and_may_do_no_more_by_it(registry, tokens, connect):
    await registry.request("POST", INSTANCES, json=BODY, token=tokens["mine"])
    raw = await connect(registry.server.http_port)

    async def beat(who):
        """Return the status, and how many requests aiohttp has had of this connection."""
        head = (
            f"PUT {INSTANCES}/{MINE}/beat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {tokens[who]}\r\n\r\n"
        )
        await raw.say(head.encode())
        status = (await raw.answer())[0]
        return status, list(registry.server.guard.census._residents)[-1]._request_count

    assert await beat("mine") == (202, 0)
    # One that is not known yet is asked about, and what is refused is explained, by aiohttp's way.
    assert await beat("another pod's") == (403, 1)
    assert await beat("another pod's") == (403, 2)
    assert await beat("unbound") == (403, 3)
    assert await beat("mine") == (202, 3)


async def test_a_pod_registers_beats_changes_and_deregisters_itself_over_http(registry, tokens):
    mine = tokens["mine"]
    assert (await registry.request("POST", INSTANCES, json=BODY, token=mine))[0] == 201
    assert (await registry.request("PUT", f"{INSTANCES}/{MINE}/beat", token=mine))[0] == 202
    assert (await registry.request("PATCH", f"{INSTANCES}/{MINE}", json={"weight": 2}, token=mine))[0] == 200
    assert (await registry.request("DELETE", f"{INSTANCES}/{MINE}", token=mine))[0] == 204


@pytest.mark.parametrize("who", ["another pod's", "unbound"])
async def test_another_pods_token_can_neither_register_beat_change_nor_deregister(registry, tokens, who):
    await registry.request("POST", INSTANCES, json=BODY, token=tokens["mine"])
    for method, path, options in (
        ("POST", INSTANCES, {"json": BODY}),
        ("POST", INSTANCES, {"json": {"ip": "10.0.0.1", "port": 8080}}),
        ("PUT", f"{INSTANCES}/{MINE}/beat", {}),
        ("PUT", f"{INSTANCES}/{MINE}/beat", {"json": BODY}),
        ("PUT", f"{INSTANCES}/10.0.0.1:81:DEFAULT:u/beat", {"json": {**BODY, "port": 81}}),
        ("PATCH", f"{INSTANCES}/{MINE}", {"json": {"weight": 0}}),
        ("DELETE", f"{INSTANCES}/{MINE}", {}),
    ):
        problem = await registry.problem(method, path, token=tokens[who], **options)
        assert (problem["status"], problem["code"]) == (403, "forbidden")
    (instance,) = registry.catalog.service(ORDERS).instances.values()
    assert instance.weight == 1.0
    assert registry.catalog.leases == 1


async def test_another_pods_registration_at_the_same_address_does_not_disturb_the_beats(registry, tokens):
    _, body, _ = await registry.request("POST", INSTANCES, json=BODY, token=tokens["mine"])
    theirs = {**BODY, "owner": "v"}
    assert (await registry.request("POST", INSTANCES, json=theirs, token=tokens["another pod's"]))[0] == 201
    beat = f"{INSTANCES}/{MINE}/beat?term={body['term']}"
    assert (await registry.request("PUT", beat, token=tokens["mine"]))[0] == 202


async def test_another_pods_token_can_neither_attach_to_a_lease_nor_speak_in_a_pods_name(registry, tokens):
    mine = await registry.speaker(token=tokens["mine"])
    await mine.attach("a")
    await mine.register(an_entry(owner="u"))
    theirs = await registry.speaker(token=tokens["another pod's"])
    problem = await theirs.refused(frames.Attach(lease="a", term=1))
    assert (problem.code, problem.field) == ("forbidden", "owner")
    attached = await theirs.attach("b")
    for frame in (
        frames.Register(id=1, entries=[an_entry(owner="v"), an_entry(81, owner="u")]),
        frames.Register(id=1, entries=[an_entry()]),
        frames.Beat(term=attached.term, entries=[an_entry(81, owner="u")]),
        frames.Attach(lease="b", kind="operator"),
        frames.Close(id=1, uids=["u"]),
        frames.Fence(id=1, pods=[frames.GonePod(uid="u")]),
        frames.Synced(id=1),
        frames.Register(id=1, entries=[an_entry(owner="v", beats_required=True)]),
    ):
        assert (await theirs.refused(frame)).code == "forbidden"
    # Its own lease is all that it can deregister from, and that changes nothing.
    await theirs.ask(frames.Deregister(id=2, entries=[a_ref(owner="u")]), frames.Done)
    await theirs.ask(frames.Release(id=3), frames.Done)
    (instance,) = registry.catalog.service(ORDERS).instances.values()
    assert (instance.owner, instance.healthy) == ("u", True)
    assert registry.catalog.lease("a").term == 1


async def test_an_account_without_a_pod_may_only_follow(registry, tokens):
    speaker = await registry.speaker(token=tokens["unbound"])
    await speaker.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    for frame in (frames.Attach(lease="x"), frames.Barrier(id=1, services=[])):
        assert (await speaker.refused(frame)).code == "forbidden"


async def test_the_operators_account_may_speak_for_any_pod(registry, tokens):
    speaker = await registry.speaker(token=tokens["operator's"])
    await speaker.attach("op", kind="operator")
    await speaker.register(an_entry(owner="u", ready=True, beats_required=True), an_entry(81))
    await speaker.ask(frames.Close(id=1, uids=["u"]), frames.Done)
    # A pod that is terminating hears so when it attaches.
    pod = await registry.speaker(token=tokens["mine"])
    assert (await pod.refused(frames.Attach(lease="a"))).code == "pod_terminating"


async def test_a_session_ends_with_its_token_and_the_lease_goes_on(registry, key):
    speaker = await registry.speaker(token=key.token(uid="u", expires=2.0))
    await speaker.attach("a")
    await speaker.register(an_entry(owner="u"))
    message = await speaker.ws.receive(timeout=10)
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "token expired")
    await until(lambda: registry.catalog.lease("a").holder is None)
    assert registry.catalog.service(ORDERS).healthy == 1
    fresh = await registry.speaker(token=key.token(uid="u", expires=601.0))
    assert (await fresh.attach("a", term=1)).resumed


async def test_a_silent_session_ends_with_its_token_too(registry, key):
    # The verifier bears ten seconds of difference between clocks; the session's end is the token's.
    speaker = await registry.speaker(token=key.token(uid="u", expires=1.0))
    message = await speaker.ws.receive(timeout=10)
    assert (message.data, message.extra) == (4001, "token expired")
