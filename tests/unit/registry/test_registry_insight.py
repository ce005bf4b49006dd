"""Why things are as they are, over real sockets: events, explanations, disagreements."""

from __future__ import annotations

import asyncio
import time

import pytest

from registrykit import ORDERS, a_ref, an_entry
from rollbook import frames
from rollbook_registry.catalog.merge import Why
from serverkit import until

SERVICE = "/services/orders"
INSTANCES = f"{SERVICE}/instances"
KEY = "10.0.0.1:8080:DEFAULT"
POD = f"{KEY}:u"
BODY = {"ip": "10.0.0.1", "port": 8080}
QUICK = {"unhealthy_after": 0.3, "remove_after": 0.6, "beat_interval": 0.1, "expiry_tick": 0.02}
LONG = {**QUICK, "remove_after": 60.0}


async def events(registry, query=""):
    _, body, _ = await registry.request("GET", f"{SERVICE}/events{query}")
    return body["events"]


async def reasons(registry):
    return [event["reason"] for event in await events(registry)]


async def explanation(registry, key=KEY):
    status, body, _ = await registry.request("GET", f"{INSTANCES}/{key}/explain")
    assert status == 200
    return body["explanation"]


async def rules(registry, key=KEY):
    """Which rule decided about what whom said."""
    return {e["publisher"]: e["rule"] for e in (await explanation(registry, key))["entries"]}


async def disagreements(registry):
    _, body, _ = await registry.request("GET", "/disagreements")
    return body["disagreements"]


async def reported(registry, kind, timeout=10.0):
    async with asyncio.timeout(timeout):
        while not (found := [d for d in await disagreements(registry) if d["kind"] == kind]):
            await asyncio.sleep(0.02)
    return found


async def unreported(registry, kind, timeout=10.0):
    async with asyncio.timeout(timeout):
        while any(d["kind"] == kind for d in await disagreements(registry)):
            await asyncio.sleep(0.02)


async def counted(registry, kind):
    async with registry._http.get(f"{registry.url}/metrics") as response:
        text = await response.text()
    (line,) = [row for row in text.splitlines() if row.startswith(f'rollbook_disagreements{{kind="{kind}"}}')]
    return float(line.split()[-1])


async def sidecar(registry, lease="sidecar", **fields):
    speaker = await registry.speaker()
    await speaker.attach(lease)
    await speaker.register(an_entry(**{"owner": "u", **fields}))
    return speaker


async def operator(registry, **fields):
    client = await registry.client(kind="operator")
    client.put(an_entry(**{"owner": "u", "ready": True, **fields}))
    await client.confirmed(a_ref(owner="u", **{k: v for k, v in fields.items() if k in {"port", "ip"}}))
    return client


# --- events ----------------------------------------------------------------------------------------------


async def test_events_tell_what_happened_to_a_service_the_newest_first(start):
    registry = await start(**QUICK)
    before = time.time()
    await registry.request("POST", INSTANCES, json=BODY)
    await registry.request("PATCH", f"{INSTANCES}/{KEY}", json={"weight": 2})
    await until(lambda: registry.catalog.service(ORDERS).healthy == 0)
    await registry.request("PUT", f"{INSTANCES}/{KEY}/beat")
    await registry.request("POST", f"{INSTANCES}/{KEY}/offline")
    await registry.request("POST", f"{INSTANCES}/{KEY}/online")
    await until(lambda: not registry.catalog.service(ORDERS).instances)
    await registry.request("POST", INSTANCES, json={**BODY, "port": 81})
    await registry.request("DELETE", f"{INSTANCES}/10.0.0.1:81")
    found = await events(registry)
    told = [(event["key"], event["reason"]) for event in reversed(found)]
    assert told == [
        (KEY, "registered"),
        (KEY, "updated"),
        (KEY, "silent"),
        (KEY, "recovered"),
        (KEY, "overridden"),
        (KEY, "override_lifted"),
        (KEY, "silent"),
        (KEY, "expired"),
        ("10.0.0.1:81:DEFAULT", "registered"),
        ("10.0.0.1:81:DEFAULT", "deregistered"),
    ]
    times = [event["at"] for event in reversed(found)]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time()
    numbers = [int(event["revision"].rpartition(".")[2]) for event in reversed(found)]
    assert numbers == sorted(numbers)
    # The newest names the list as it is.
    _, body, _ = await registry.request("GET", SERVICE)
    assert body["revision"].startswith(found[0]["revision"])
    assert await events(registry, "?limit=2") == found[:2]
    assert await events(registry, "?group=other") == []


async def test_an_event_names_the_list_in_which_it_shows(registry):
    for weight in (1, 2, 3):
        await registry.request("POST", INSTANCES, json={**BODY, "weight": weight})
        _, body, _ = await registry.request("GET", SERVICE)
        newest = (await events(registry))[0]
        assert body["revision"] == f"{newest['revision']}.unsettled"


async def test_events_are_bounded_by_service_and_in_all(start):
    registry = await start(max_events=250)
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(an_entry(service="quiet"))
    for n in range(1, 231):
        await speaker.register(an_entry(n))
    assert [e["key"] for e in await events(registry, "?limit=200")] == [
        f"10.0.0.1:{n}:DEFAULT" for n in range(230, 30, -1)
    ]
    _, quiet, _ = await registry.request("GET", "/services/quiet/events")
    assert len(quiet["events"]) == 1, "a busy service pushes nobody else's out"
    for n in range(1, 251):
        await speaker.register(an_entry(service=f"s{n}"))
    assert await events(registry) == []
    assert len(registry.book.history) == 250
    for limit in ("0", "201", "x"):
        problem = await registry.problem("GET", f"{SERVICE}/events?limit={limit}")
        assert (problem["field"], problem["accepted"]) == ("limit", "a whole number from 1 to 200")


# --- explanations ----------------------------------------------------------------------------------------


async def test_what_nobody_speaks_for_is_explained_too(registry):
    found = await explanation(registry)
    assert (found["instance"], found["entries"], found["pod"]) == (None, [], "")
    assert found["because"] == "it is not in the book: nobody speaks for it; its events may say why"
    problem = await registry.problem("GET", f"{INSTANCES}/10.0.0.1/explain")
    assert (problem["field"], problem["accepted"]) == (
        "key",
        "ip:port[:cluster[:owner]], an IPv6 address in brackets",
    )


async def test_a_plain_clients_instance_says_how_long_it_has_been_silent(start):
    registry = await start(**LONG)
    await registry.request("POST", INSTANCES, json=BODY)
    found = await explanation(registry)
    (entry,) = found["entries"]
    assert (entry["publisher"], entry["rule"], entry["shown"]) == ("http", "beats", True)
    assert found["because"] == f"it is healthy: {Why.BEATS.value}"
    assert (entry["unhealthy_after"], entry["remove_after"]) == (0.3, 60.0)
    await until(lambda: registry.catalog.service(ORDERS).healthy == 0)
    found = await explanation(registry)
    (entry,) = found["entries"]
    assert (entry["rule"], entry["silent"]) == ("silent", True)
    assert entry["silent_for"] >= 0.3
    assert found["because"] == f"it is not healthy: {Why.SILENT.value}"
    _, body, _ = await registry.request("GET", f"{INSTANCES}/{KEY}/explain")
    assert [e["reason"] for e in body["events"]] == ["silent", "registered"]


async def test_what_a_sidecar_says_is_explained(registry):
    speaker = await sidecar(registry, alive=None)
    assert await rules(registry, POD) == {"session": "unproven"}
    await speaker.say(frames.Beat(term=1, down=[a_ref(owner="u")]))
    await speaker.say(frames.Beat(term=1))
    await until(lambda: registry.catalog.service(ORDERS).healthy == 1)
    assert await rules(registry, POD) == {"session": "beats"}
    await speaker.say(frames.Beat(term=1, down=[a_ref(owner="u")]))
    await until(lambda: registry.catalog.service(ORDERS).healthy == 0)
    found = await explanation(registry, POD)
    assert [(e["rule"], e["down"]) for e in found["entries"]] == [("application_down", True)]
    assert found["because"] == f"it is not healthy: {Why.APPLICATION_DOWN.value}"


async def test_a_lease_is_marked_and_not_given_away(registry):
    await sidecar(registry, lease="a-secret-of-its-client")
    text = str(await explanation(registry, POD))
    assert "a-secret-of-its-client" not in text


async def test_of_two_sidecars_of_a_pod_the_newer_is_the_one_that_counts(registry):
    await sidecar(registry, lease="old", alive=False)
    await sidecar(registry, lease="new")
    found = await explanation(registry, POD)
    assert [(e["rule"], e["shown"]) for e in found["entries"]] == [("beats", True), ("older", False)]
    assert found["because"] == f"it is healthy: {Why.BEATS.value}"


async def test_equal_entries_are_shown_once_and_others_side_by_side(registry):
    for lease, fields in (("a", {}), ("b", {}), ("c", {"weight": 2.0})):
        await sidecar(registry, lease=lease, owner="", **fields)
    found = await explanation(registry)
    assert [(e["rule"], e["shown"]) for e in found["entries"]] == [
        ("beats", True),
        ("beats", True),
        ("equal", False),
    ]
    assert found["instance"]["weight"] == 1.0


async def test_what_the_operator_says_is_explained(registry):
    client = await operator(registry)
    found = await explanation(registry, POD)
    (entry,) = found["entries"]
    assert (entry["publisher"], entry["rule"], entry["ready"]) == ("operator", "operator_only", True)
    client.put(an_entry(owner="u", ready=False))
    await until(lambda: registry.catalog.service(ORDERS).healthy == 0)
    because = (await explanation(registry, POD))["because"]
    assert because.endswith("; Kubernetes does not call its pod ready")

    client.put(an_entry(owner="u", ready=True, beats_required=True))
    await until(lambda: not registry.catalog.service(ORDERS).instances)
    found = await explanation(registry, POD)
    assert await rules(registry, POD) == {"operator": "beats_required"}
    assert found["because"] == f"it is not in the book: {Why.BEATS_REQUIRED.value}"

    speaker = await sidecar(registry, alive=None)
    assert await rules(registry, POD) == {"operator": "unprobed", "session": "publisher"}
    client.put(an_entry(owner="u", ready=True, beats_required=True, probed=True))
    await until(lambda: registry.catalog.service(ORDERS).healthy == 1)
    assert await rules(registry, POD) == {"operator": "probed", "session": "publisher"}
    await speaker.register(an_entry(owner="u"))
    assert await rules(registry, POD) == {"operator": "beats", "session": "publisher"}

    # Annotated anew: another port, which the sidecar does not know.
    client.put(an_entry(81, owner="u", ready=True, beats_required=True))
    client.drop(a_ref(owner="u"))
    await until(lambda: "10.0.0.1:81:DEFAULT:u" in registry.catalog.service(ORDERS).instances)
    assert (await rules(registry, "10.0.0.1:81:DEFAULT:u"))["operator"] == "pod_answers"
    # An address that is not the pod's own.
    await speaker.register(an_entry(82, ip="10.0.0.9", owner="u"))
    found = await explanation(registry, "10.0.0.9:82:DEFAULT:u")
    assert found["because"] == f"it is not in the book: {Why.NOT_NAMED.value}"


async def test_an_operators_silence_is_explained_as_its_own(start):
    registry = await start(**LONG)
    speaker = await registry.speaker()
    await speaker.attach("op", kind="operator", epoch=1)
    await speaker.register(an_entry(owner="u", ready=True))
    await until(lambda: registry.catalog.service(ORDERS).instances[POD].unconfirmed)
    found = await explanation(registry, POD)
    assert found["because"] == f"it is healthy: {Why.UNCONFIRMED.value}"


async def test_a_disabled_and_an_overridden_instance_say_so(registry):
    await registry.request("POST", INSTANCES, json={**BODY, "enabled": False})
    assert (await explanation(registry))["because"].endswith("; it is disabled")
    await registry.request("PUT", f"{INSTANCES}/{KEY}/override", json={"weight": 2, "reason": "slow"})
    found = await explanation(registry)
    assert found["because"].endswith(
        "; it is disabled; an administrator's override stands above what its publishers say"
    )
    assert {k: found["override"][k] for k in ("weight", "reason")} == {"weight": 2.0, "reason": "slow"}


async def test_a_pod_that_is_closed_or_gone_says_so(registry):
    client = await operator(registry)
    client.close_pods("u")
    await until(lambda: registry.catalog.pods.closed)
    found = await explanation(registry, POD)
    assert (found["pod"], found["instance"]) == ("closed", None)
    assert "its pod is terminating" in found["because"]
    client.fence_pods(frames.GonePod(uid="u"))
    await until(lambda: registry.catalog.pods.fenced)
    found = await explanation(registry, POD)
    assert (found["pod"], "its pod is confirmed gone" in found["because"]) == ("fenced", True)
    assert await reasons(registry) == ["pod_closed", "registered"]


async def test_what_only_protection_keeps_says_so(start):
    registry = await start(**QUICK, protection_share=0.0, protection_floor=0)
    await registry.request("POST", INSTANCES, json=BODY)
    lease = await until(lambda: registry.catalog.lease(next(iter(registry.catalog.own()))))
    await until(lambda: lease.protected)
    found = await explanation(registry)
    assert [(e["rule"], e["protected"]) for e in found["entries"]] == [("silent", True)]
    assert await reasons(registry) == ["protected", "silent", "registered"]


# --- disagreements ---------------------------------------------------------------------------------------


async def test_a_pod_that_is_ready_and_silent_is_reported_until_it_beats(start):
    registry = await start(**QUICK)
    assert await disagreements(registry) == []
    await operator(registry, beats_required=True)
    (found,) = await reported(registry, "silent")
    assert (found["owner"], found["addresses"]) == ("u", ["10.0.0.1"])
    assert found["services"] == ["public/DEFAULT_GROUP@@orders"]
    assert found["seconds"] >= 0.3
    assert found["because"] == "Kubernetes calls it ready, and nobody beats for it"
    assert await counted(registry, "silent") == 1.0
    client = await registry.client()
    client.put(an_entry(owner="u"))
    await unreported(registry, "silent")
    # And again, when it falls silent after it has beaten.
    client.session._beat = lambda now: None
    (found,) = await reported(registry, "silent")
    assert found["owner"] == "u"
    assert registry.catalog.service(ORDERS).healthy == 0


async def test_a_sidecar_that_is_a_little_late_is_no_disagreement(registry):
    await operator(registry, beats_required=True)
    assert await disagreements(registry) == []
    assert registry.catalog.groups.silent, "it is known, and not told yet"


async def test_a_pod_that_is_gone_and_speaks_is_reported_while_it_does(start):
    registry = await start(**QUICK)
    client = await registry.client(kind="operator")
    client.fence_pods(frames.GonePod(uid="u", ips=["10.0.0.1"]))
    await until(lambda: registry.catalog.pods.fenced)
    assert await disagreements(registry) == []
    speaker = await registry.speaker()
    await speaker.attach()
    assert (await speaker.refused(frames.Register(id=1, entries=[an_entry(owner="u")]))).code == "pod_gone"
    (found,) = await reported(registry, "zombie")
    assert (found["owner"], found["services"], found["addresses"]) == ("u", [], ["10.0.0.1"])
    assert await counted(registry, "zombie") == 1.0
    await unreported(registry, "zombie")
    # A plain client's beat is speaking, too.
    assert (await registry.problem("PUT", f"{INSTANCES}/{POD}/beat"))["code"] == "pod_gone"
    await reported(registry, "zombie")


async def test_a_pod_that_terminates_for_long_is_reported_until_it_is_gone(start):
    registry = await start(stuck_after=1.0)
    client = await registry.client(kind="operator")
    client.close_pods("u")
    await until(lambda: registry.catalog.pods.closed)
    assert await disagreements(registry) == []
    (found,) = await reported(registry, "stuck")
    assert found["owner"] == "u"
    assert 1.0 <= found["seconds"] < 10.0
    assert await counted(registry, "stuck") == 1.0
    client.fence_pods(frames.GonePod(uid="u"))
    await unreported(registry, "stuck")


@pytest.mark.parametrize("path", [f"{SERVICE}/events", f"{INSTANCES}/{KEY}/explain", "/disagreements"])
async def test_what_is_not_known_of_a_question_is_refused(registry, path):
    problem = await registry.problem("GET", f"{path}?verbose=true")
    assert (problem["code"], problem["field"]) == ("bad_value", "query")
