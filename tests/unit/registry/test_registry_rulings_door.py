"""What is laid down, over real sockets: persistent instances, overrides, settings, namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from apiserverkit import ApiServer, Key
from registrykit import ORDERS, a_ref, an_entry
from rollbook import frames
from rollbook.kube import KubeApi
from rollbook.model import EntryRef
from rollbook_registry.rulebook import Rulebook
from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings
from serverkit import Registry, until

SERVICE = "/services/orders"
INSTANCES = f"{SERVICE}/instances"
KEY = "10.0.0.1:8080:DEFAULT"
ONE = f"{INSTANCES}/{KEY}"
UNCHECKED = {"type": "none"}
LAID = {"ip": "10.0.0.1", "port": 8080, "ephemeral": False, "check": UNCHECKED}
QUICK = {"interval": 0.5, "timeout": 0.5, "failures": 1}


class Application:
    """Something that listens on loopback, stops, and comes back on the same port."""

    def __init__(self) -> None:
        self.port = 0
        self._server = None

    async def up(self):
        self._server = await asyncio.start_server(self._greet, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self):
        self._server.close()
        await self._server.wait_closed()

    async def _greet(self, _, writer):
        writer.close()


@pytest.fixture
async def application():
    application = Application()
    await application.up()
    yield application
    with contextlib.suppress(Exception):
        await application.down()


async def lay(registry, *, path=INSTANCES, **fields):
    status, body, _ = await registry.request("POST", path, json={**LAID, **fields})
    assert status == 201, body
    return body["instance"]


async def listed(registry, query="", service="orders"):
    _, body, _ = await registry.request("GET", f"/services/{service}{query}")
    return body


async def only(registry, query="", service="orders"):
    (instance,) = (await listed(registry, query, service))["instances"]
    return instance


async def explained(registry, key=KEY):
    _, body, _ = await registry.request("GET", f"{INSTANCES}/{key}/explain")
    return body


async def rules(registry, key=KEY):
    return [e["rule"] for e in (await explained(registry, key))["explanation"]["entries"]]


def everything(registry):
    """All that is laid down, as the book has it."""
    rulings = registry.catalog.rulings
    return [dict(r) for r in (rulings.definitions, rulings.overrides, rulings.services, rulings.namespaces)]


async def stop(registry):
    await registry.server.__aexit__(None, None, None)


@contextlib.contextmanager
def store_away(tmp_path):
    """Take the store's file away for a while, as somebody who tidies up does."""
    file, aside = tmp_path / "rulings.db", tmp_path / "aside"
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


# --- persistent instances --------------------------------------------------------------------------------


async def test_a_persistent_instance_is_in_the_book_until_it_is_taken_back(registry):
    status, body, _ = await registry.request(
        "POST",
        f"{INSTANCES}?namespace=n&group=g",
        json={**LAID, "weight": 3, "cluster": "eu", "enabled": False, "metadata": {"v": "1"}},
    )
    assert (status, body["term"]) == (201, 0)
    shown = {name: body["instance"][name] for name in ("key", "ephemeral", "healthy", "weight", "enabled")}
    assert shown == {
        "key": "10.0.0.1:8080:eu",
        "ephemeral": False,
        "healthy": True,
        "weight": 3.0,
        "enabled": False,
    }
    assert await only(registry, "?namespace=n&group=g") == body["instance"]
    path = f"{INSTANCES}/10.0.0.1:8080:eu?namespace=n&group=g"
    assert (await registry.request("DELETE", path))[0] == 204
    assert (await listed(registry, "?namespace=n&group=g"))["instances"] == []
    assert (await registry.problem("DELETE", path))["code"] == "unknown_instance"


async def test_no_silence_ends_a_persistent_instance(start):
    registry = await start(unhealthy_after=0.2, remove_after=0.3, beat_interval=0.1, expiry_tick=0.02)
    await lay(registry)
    await registry.request("POST", INSTANCES, json={"ip": "10.0.0.9", "port": 1})
    await until(lambda: len(registry.catalog.service(ORDERS).instances) == 1)
    assert (await only(registry))["healthy"]


async def test_what_is_laid_down_again_is_as_it_was_said_last(registry):
    await lay(registry, weight=2, metadata={"a": "1"})
    again = await lay(registry, metadata={"b": "2"})
    assert (again["weight"], again["metadata"]) == (1.0, {"b": "2"})
    assert await only(registry) == again


async def test_a_change_leaves_what_it_does_not_name(registry, application):
    port = application.port
    await lay(registry, ip="127.0.0.1", port=port, weight=2, metadata={"a": "1"}, check=QUICK)
    path = f"{INSTANCES}/127.0.0.1:{port}"
    for change, expected in (
        ({"weight": 5}, (5.0, True, {"a": "1"})),
        ({"enabled": False}, (5.0, False, {"a": "1"})),
        ({"metadata": {}}, (5.0, False, {})),
        ({"check": {"type": "http", "path": "/up"}}, (5.0, False, {})),
    ):
        status, body, _ = await registry.request("PATCH", path, json=change)
        instance = body["instance"]
        assert (status, body["term"]) == (200, 0)
        assert (instance["weight"], instance["enabled"], instance["metadata"]) == expected
    ref = EntryRef(service="orders", ip="127.0.0.1", port=port)
    assert registry.server._checker.account(ref).target.path == "/up"


async def test_an_instance_that_stops_listening_is_not_healthy_until_it_listens_again(registry, application):
    key = f"127.0.0.1:{application.port}:DEFAULT"
    await lay(registry, ip="127.0.0.1", port=application.port, check=QUICK)
    service = registry.catalog.service(ORDERS)

    async def told(rule):
        async with asyncio.timeout(10):
            while await rules(registry, key) != [rule, "verdict"]:
                await asyncio.sleep(0.02)

    await told("checked")
    assert service.healthy == 1
    await application.down()
    await until(lambda: service.healthy == 0)
    await told("check_failed")
    shown = await only(registry)
    assert (shown["healthy"], shown["alive"], shown["ready"]) == (False, False, True)
    because = (await explained(registry, key))["explanation"]["because"]
    assert because == "it is not healthy: the registry's check of it failed last"
    await application.up()
    await until(lambda: service.healthy == 1)
    await told("checked")
    _, body, _ = await registry.request("GET", f"{SERVICE}/events")
    reasons = [event["reason"] for event in body["events"]]
    assert reasons == ["check_passed", "check_failed", "check_passed", "defined"]


async def test_what_is_not_checked_is_as_it_was_laid_down(registry):
    await lay(registry)
    await lay(registry, port=81, alive=False)
    health = {i["port"]: i["healthy"] for i in (await listed(registry))["instances"]}
    assert health == {8080: True, 81: False}
    assert await rules(registry) == ["defined"]


async def test_a_verdict_does_not_outlive_the_check(registry, application):
    path = f"{INSTANCES}/127.0.0.1:{application.port}"
    await lay(registry, ip="127.0.0.1", port=application.port, check=QUICK)
    await application.down()
    await until(lambda: registry.catalog.service(ORDERS).healthy == 0)
    await registry.request("PATCH", path, json={"check": UNCHECKED})
    await until(lambda: registry.catalog.service(ORDERS).healthy == 1)
    assert (await rules(registry, f"127.0.0.1:{application.port}")) == ["defined"]


async def test_a_services_check_is_that_of_its_instances_which_have_none_of_their_own(registry, application):
    await application.down()
    await lay(registry, ip="127.0.0.1", port=application.port, check=None)
    await until(lambda: registry.catalog.service(ORDERS).healthy == 0)
    await registry.request("PUT", f"{SERVICE}/settings", json={"check": UNCHECKED})
    await until(lambda: registry.catalog.service(ORDERS).healthy == 1)
    assert (await registry.request("DELETE", f"{SERVICE}/settings"))[0] == 204
    await until(lambda: registry.catalog.service(ORDERS).healthy == 0)


async def test_a_persistent_instance_is_back_after_a_restart_and_checked(start, application):
    first = await start()
    laid = await lay(first, ip="127.0.0.1", port=application.port, check=QUICK, weight=2)
    await stop(first)
    await application.down()
    second = await start()
    again = await only(second)
    assert {**again, "healthy": True, "alive": True} == laid
    await until(lambda: second.catalog.service(ORDERS).healthy == 0)


async def test_the_last_lifes_verdict_stands_until_checks_contradict_it(start, tmp_path, application):
    first = await start()
    await lay(first, ip="127.0.0.1", port=application.port, check={**QUICK, "failures": 2, "successes": 2})
    await lay(first, ip="127.0.0.1", port=1, check=QUICK)
    await application.down()
    ref = EntryRef(service="orders", ip="127.0.0.1", port=application.port)
    other = EntryRef(service="orders", ip="127.0.0.1", port=1)
    await until(lambda: first.server.rulebook.verdict(ref) is first.server.rulebook.verdict(other) is False)
    await stop(first)
    await application.up()
    # As after somebody has put a copy of the store in its place in which one of them is not.
    with contextlib.closing(sqlite3.connect(tmp_path / "rulings.db")) as store, store:
        store.execute("DELETE FROM records WHERE key LIKE '%:1:DEFAULT'")
    second = await start()
    rulebook, checker = second.server.rulebook, second.server._checker
    assert rulebook.verdict(ref) is False
    assert (await only(second))["healthy"] is False
    assert await rules(second, f"127.0.0.1:{application.port}") == ["check_failed", "verdict"]
    assert rulebook.verdict(other) is None
    account = await until(lambda: checker.account(ref).last and checker.account(ref))
    assert (account.last.finding.value, account.alive) == ("passed", False)
    assert second.catalog.service(ORDERS).healthy == 0
    await until(lambda: second.catalog.service(ORDERS).healthy == 1)


async def test_an_override_outlives_the_pods_end_only_until_the_next_life(start, tmp_path):
    first = await start(store_timeout=0.5)
    await first.request("POST", f"{INSTANCES}/10.0.0.1:8080:DEFAULT:u/offline")
    with store_away(tmp_path):
        first.book.apply(lambda c, now: c.fence_pods([frames.GonePod(uid="u")], now))
        await stop(first)
    second = await start()
    assert second.catalog.pods.fenced == 1
    await until(lambda: not second.catalog.rulings.overrides)


async def test_a_persistent_instance_stands_beside_a_plain_clients_and_answers_for_itself(registry):
    await registry.request("POST", INSTANCES, json={"ip": "10.0.0.1", "port": 8080, "weight": 7})
    laid = await lay(registry, weight=2)
    assert (laid["key"], laid["weight"], laid["ephemeral"]) == (KEY, 2.0, False)
    shown = {
        i["ephemeral"]: (i["key"].partition("~")[0], i["weight"])
        for i in (await listed(registry))["instances"]
    }
    assert shown == {False: (KEY, 2.0), True: (KEY, 7.0)}
    # Without force the client's goes first: it would come back by a beat, the other would not.
    assert (await registry.request("DELETE", ONE))[0] == 204
    assert (await only(registry))["ephemeral"] is False
    assert (await registry.request("DELETE", ONE))[0] == 204
    assert (await listed(registry))["instances"] == []


BAD = [
    ("POST", INSTANCES, {**LAID, "owner": "u"}, "owner", "nothing: a pod's instance lives by its beats"),
    (
        "POST",
        INSTANCES,
        {**LAID, "metadata": {"preserved.ip.delete.timeout": "1000"}},
        "metadata.preserved.ip.delete.timeout",
        "nothing: silence does not end it",
    ),
    ("POST", INSTANCES, {**LAID, "port": 0}, "port", "from 1 to 65535"),
    ("POST", INSTANCES, {**LAID, "check": {"type": "grpc"}}, "check.type", "grpc"),
    ("POST", INSTANCES, {**LAID, "check": {"interval": 0.1}}, "check.interval", "seconds from 0.5"),
    ("POST", INSTANCES, {**LAID, "check": {"timeout": 9}}, "check.timeout", "at most the interval"),
    ("POST", INSTANCES, {**LAID, "check": {"failures": 0}}, "check.failures", "from 1 to 100"),
    ("POST", INSTANCES, {**LAID, "check": {"type": "http", "path": "up"}}, "check.path", "begins with"),
    ("POST", INSTANCES, {**LAID, "check": {"port": 70000}}, "check.port", "from 1 to 65535"),
    ("POST", INSTANCES, {**LAID, "check": {"tls": True}}, "check.tls", "unknown field"),
    ("POST", INSTANCES, {**LAID, "ephemeral": True}, "check", "lives by its beats"),
    ("PATCH", ONE, {"weight": -1}, "weight", "a number from 0"),
    ("PATCH", ONE, {"check": {"successes": 101}}, "check.successes", "from 1 to 100"),
    ("PATCH", ONE, {"port": 9}, "port", "unknown field"),
    ("PUT", f"{ONE}/beat", {**LAID, "check": None}, "ephemeral", "what is laid down is not beaten"),
    ("PUT", f"{ONE}/override", {}, "body", "enabled, weight, or both"),
    ("PUT", f"{ONE}/override", {"reason": "because"}, "body", "enabled, weight, or both"),
    ("PUT", f"{ONE}/override", {"weight": 1e9}, "weight", "a number from 0 to 10000"),
    ("PUT", f"{ONE}/override", {"weight": 1, "reason": "x" * 5000}, "reason", "at most"),
    ("PUT", f"{ONE}/override", {"enable": False}, "enable", "unknown field"),
    ("POST", f"{ONE}/offline", {"reason": "x" * 5000}, "reason", "at most"),
    ("POST", f"{INSTANCES}/10.0.0.1/offline", None, "key", "ip:port[:cluster[:owner]]"),
    ("PUT", f"{SERVICE}/settings", {"protect_threshold": 1.5}, "protect_threshold", "from 0 to 1"),
    ("PUT", f"{SERVICE}/settings", {"metadata": {"k": "x" * 99999}}, "metadata", "at most"),
    ("PUT", f"{SERVICE}/settings", {"check": {"interval": 0}}, "check.interval", "seconds from"),
    ("PUT", f"{SERVICE}/settings", {"threshold": 1}, "threshold", "unknown field"),
    ("PUT", "/namespaces/a%20b", {}, "namespace", "letters"),
    ("PUT", "/namespaces/n", {"max_services": -1}, "max_services", "a whole number from 0"),
    ("PUT", "/namespaces/n", {"description": "x" * 5000}, "description", "at most"),
    ("DELETE", f"{ONE}?force=yes", None, "force", "true or false"),
]  # fmt: skip


async def test_what_cannot_be_laid_down_names_field_and_accepted_form(registry):
    await lay(registry)
    before = await only(registry)
    for method, path, json, field, accepted in BAD:
        problem = await registry.problem(method, path, json=json)
        assert (problem["status"], problem["code"]) == (400, "bad_value"), (method, path, json)
        assert problem["field"].startswith(field)
        assert accepted in problem["accepted"]
    assert await only(registry) == before
    assert [len(laid) for laid in everything(registry)] == [1, 0, 0, 0]


async def test_what_an_instance_is_forbids_some_changes_of_it(registry):
    await lay(registry, port=81)
    path = f"{INSTANCES}/10.0.0.1:81"
    timing = "preserved.heart.beat.timeout"
    problem = await registry.problem("PATCH", path, json={"metadata": {timing: "1"}})
    assert (problem["status"], problem["code"], problem["field"]) == (409, "conflict", f"metadata.{timing}")
    assert (await only(registry))["metadata"] == {}
    await registry.request("DELETE", path)
    await registry.request("POST", INSTANCES, json={"ip": "10.0.0.1", "port": 8080})
    problem = await registry.problem("PATCH", ONE, json={"weight": 5, "check": UNCHECKED})
    assert (problem["status"], problem["code"], problem["field"]) == (409, "conflict", "check")
    assert (await only(registry))["weight"] == 1.0


async def test_what_was_never_laid_down_can_be_neither_shown_nor_taken_back(registry):
    for method, path, code in (
        ("GET", f"{ONE}/override", "not_found"),
        ("DELETE", f"{ONE}/override", "not_found"),
        ("GET", f"{SERVICE}/settings", "not_found"),
        ("DELETE", f"{SERVICE}/settings", "not_found"),
        ("DELETE", "/namespaces/n", "not_found"),
        ("DELETE", ONE, "unknown_instance"),
        ("DELETE", f"{ONE}?force=true", "unknown_instance"),
    ):
        problem = await registry.problem(method, path)
        assert (problem["status"], problem["code"]) == (404, code), (method, path)


# --- overrides -------------------------------------------------------------------------------------------


async def test_an_instance_that_is_taken_offline_stays_so_until_it_is_brought_online(start):
    registry = await start()
    ports = {"http_port": registry.server.http_port, "session_port": registry.server.session_port}
    client = await registry.client()
    client.put(an_entry())
    await client.confirmed(a_ref())
    status, body, _ = await registry.request("POST", f"{ONE}/offline", json={"reason": "disk swap"})
    assert status == 200
    assert (body["key"], body["override"]["reason"], body["instance"]["enabled"]) == (KEY, "disk swap", False)
    assert body["instance"]["healthy"], "offline says nothing about its health"

    # Its publisher says something else, starts anew, and so does the registry.
    client.put(an_entry(weight=2.0))
    await until(lambda: registry.catalog.service(ORDERS).instances[KEY].weight == 2.0)
    assert (await only(registry))["enabled"] is False
    await client.aclose()
    await until(lambda: not registry.catalog.service(ORDERS).instances)
    again = await registry.client()
    again.put(an_entry())
    await again.confirmed(a_ref())
    assert (await only(registry))["enabled"] is False
    await stop(registry)
    second = await start(**ports)
    await until(lambda: second.catalog.service(ORDERS) and second.catalog.service(ORDERS).instances)
    assert (await only(second))["enabled"] is False
    explanation = (await explained(second))["explanation"]
    assert explanation["override"]["reason"] == "disk swap"
    assert "override stands above" in explanation["because"]

    assert (await second.request("POST", f"{ONE}/online"))[0] == 204
    assert (await only(second))["enabled"] is True
    assert (await second.request("POST", f"{ONE}/online"))[0] == 204
    assert (await explained(second))["explanation"]["override"] is None


async def test_an_override_stands_above_weight_and_enabled_until_it_is_lifted(registry):
    await registry.request("POST", INSTANCES, json={"ip": "10.0.0.1", "port": 8080, "enabled": False})
    status, body, _ = await registry.request("PUT", f"{ONE}/override", json={"enabled": True, "weight": 0.5})
    assert (status, body["override"]["enabled"], body["override"]["weight"]) == (200, True, 0.5)
    assert body["override"]["at"] > 1.6e9
    shown = await only(registry)
    assert (shown["enabled"], shown["weight"]) == (True, 0.5)
    assert shown == body["instance"]
    assert (await registry.request("GET", f"{ONE}/override"))[1] == body
    # It is a whole: what it does not name any more is as the publisher says.
    await registry.request("PUT", f"{ONE}/override", json={"weight": 0})
    shown = await only(registry)
    assert (shown["enabled"], shown["weight"]) == (False, 0.0)
    _, found, _ = await registry.request("GET", "/overrides")
    assert [(o["service"], o["key"]) for o in found["overrides"]] == [("orders", KEY)]
    assert (await registry.request("GET", "/overrides?namespace=other"))[1] == {"overrides": []}
    assert (await registry.request("DELETE", f"{ONE}/override"))[0] == 204
    shown = await only(registry)
    assert (shown["enabled"], shown["weight"]) == (False, 1.0)


async def test_offline_and_online_leave_an_overrides_weight(registry):
    await lay(registry)
    await registry.request("PUT", f"{ONE}/override", json={"weight": 3})
    await registry.request("POST", f"{ONE}/offline")
    shown = await only(registry)
    assert (shown["enabled"], shown["weight"]) == (False, 3.0)
    await registry.request("POST", f"{ONE}/online")
    shown = await only(registry)
    assert (shown["enabled"], shown["weight"]) == (True, 3.0)
    await registry.request("PUT", f"{ONE}/override", json={"weight": 3, "enabled": True})
    await registry.request("POST", f"{ONE}/online")
    assert registry.catalog.rulings.overrides[a_ref()].enabled is None


async def test_what_is_not_in_the_book_yet_may_be_taken_offline_beforehand(registry):
    status, body, _ = await registry.request("POST", f"{ONE}/offline")
    assert (status, body["instance"]) == (200, None)
    assert (await registry.request("GET", "/services"))[1]["total"] == 0
    await registry.request("POST", INSTANCES, json={"ip": "10.0.0.1", "port": 8080})
    assert (await only(registry))["enabled"] is False


async def test_the_override_of_a_pod_that_is_gone_is_lifted_by_itself(registry):
    pod = f"{INSTANCES}/10.0.0.1:8080:DEFAULT:u"
    await registry.request("POST", f"{pod}/offline")
    await registry.request("POST", f"{ONE}/offline")
    operator = await registry.client(kind="operator")
    operator.close_pods("u")
    await until(lambda: registry.catalog.pods.closed)
    assert len(registry.catalog.rulings.overrides) == 2, "one that is terminating may still come up"
    operator.fence_pods(frames.GonePod(uid="u"))
    await until(lambda: list(registry.catalog.rulings.overrides) == [a_ref()])
    problem = await registry.problem("POST", f"{pod}/offline")
    assert (problem["status"], problem["code"]) == (410, "pod_gone")
    assert (await registry.problem("PUT", f"{pod}/override", json={"weight": 1}))["code"] == "pod_gone"


async def test_an_override_that_arrives_with_the_end_of_its_pod_is_lifted_too(registry):
    # Between the look at the pod and the commit the pod is gone.
    laying = asyncio.ensure_future(registry.request("POST", f"{INSTANCES}/10.0.0.1:8080:DEFAULT:u/offline"))
    read = registry.server.rulebook._store.read

    async def late(key):
        value = await read(key)
        registry.book.apply(lambda c, now: c.fence_pods([frames.GonePod(uid="u")], now))
        return value

    registry.server.rulebook._store.read = late
    await laying
    assert registry.catalog.pods.fenced
    await until(lambda: not registry.catalog.rulings.overrides)


async def test_overrides_of_gone_pods_are_lifted_when_the_store_is_back(start, tmp_path):
    settings = RegistrySettings(data_dir=tmp_path, http_port=0, session_port=0, auth="none", nacos_grpc=False)
    server = Server(settings)
    server.rulebook = Rulebook(server.book, server.rulebook._store, lift_pause=0.02)
    async with server:
        other = await start(data_dir=tmp_path / "other")
        registry = Registry(server, other._http, other._stack)
        await registry.request("POST", f"{INSTANCES}/10.0.0.1:8080:DEFAULT:u/offline")
        with store_away(tmp_path):
            server.book.apply(lambda c, now: c.fence_pods([frames.GonePod(uid="u")], now))
            await registry.problem("PUT", "/namespaces/n", json={})
            assert registry.catalog.rulings.overrides
        await until(lambda: not registry.catalog.rulings.overrides)


# --- by force --------------------------------------------------------------------------------------------


async def test_force_strikes_out_what_nobody_else_could(registry):
    pod = f"{INSTANCES}/10.0.0.1:8080:DEFAULT:u"
    operator = await registry.client(kind="operator")
    operator.put(an_entry(owner="u", ready=True))
    await operator.confirmed(a_ref(owner="u"))
    assert (await registry.request("DELETE", f"{pod}?force=true"))[0] == 204
    assert (await listed(registry))["instances"] == []

    client = await registry.client()
    client.put(an_entry())
    await client.confirmed(a_ref())
    assert (await registry.request("DELETE", f"{ONE}?force=true"))[0] == 204
    assert (await listed(registry))["instances"] == []

    await registry.request("POST", INSTANCES, json={"ip": "10.0.0.1", "port": 8080})
    await lay(registry)
    await registry.request("POST", f"{ONE}/offline")
    assert len((await listed(registry))["instances"]) == 2
    assert (await registry.request("DELETE", f"{ONE}?force=true"))[0] == 204
    assert (await listed(registry))["instances"] == []
    rulings = registry.catalog.rulings
    assert (rulings.definitions, rulings.overrides) == ({}, {})
    _, body, _ = await registry.request("GET", f"{SERVICE}/events")
    assert [e["reason"] for e in body["events"] if e["key"].endswith(":u")] == ["forced", "registered"]
    # A plain client's late beat does not bring it back; registering does.
    assert (await registry.problem("PUT", f"{ONE}/beat"))["code"] == "lease_ended"


async def test_force_lifts_the_override_of_what_is_not_in_the_book(registry):
    await registry.request("POST", f"{ONE}/offline")
    assert (await registry.request("DELETE", f"{ONE}?force=true"))[0] == 204
    assert registry.catalog.rulings.overrides == {}


# --- limits ----------------------------------------------------------------------------------------------


async def test_a_full_book_takes_no_more_but_what_is_there_may_be_said_again(start):
    registry = await start(max_instances=2, max_services=2)
    await lay(registry)
    await registry.request("POST", "/services/other/instances", json={"ip": "10.0.0.2", "port": 1})
    speaker = await registry.speaker()
    await speaker.attach()
    for code, detail in (
        await _refused(registry, "POST", INSTANCES, {**LAID, "port": 81}),
        await _refused(registry, "POST", INSTANCES, {"ip": "10.0.0.3", "port": 1}),
        await _refused_frame(speaker, an_entry(82)),
    ):
        assert code == "limit_reached"
        assert detail.startswith("this registry holds 2 instances and may hold 2 (--max-instances)")
    await lay(registry, weight=2)
    assert (await registry.request("PATCH", ONE, json={"weight": 3}))[0] == 200
    again = {"ip": "10.0.0.2", "port": 1, "weight": 3}
    assert (await registry.request("POST", "/services/other/instances", json=again))[0] == 201
    assert len((await listed(registry))["instances"]) == 1

    code, detail = await _refused(registry, "PUT", "/services/third/settings", {})
    assert (code, "(--max-services)" in detail) == ("limit_reached", True)
    assert (await registry.request("PUT", "/services/other/settings", json={}))[0] == 200


async def test_a_namespaces_quota_is_its_own(registry):
    status, body, _ = await registry.request(
        "PUT", "/namespaces/test", json={"title": "Test", "max_instances": 2, "max_services": 1}
    )
    assert (status, body["services"], body["instances"]) == (200, 0, 0)
    inside = f"{INSTANCES}?namespace=test"
    await lay(registry, path=inside)
    speaker = await registry.speaker()
    await speaker.attach()
    for code, detail in (
        await _refused(registry, "POST", "/services/second/instances?namespace=test", LAID),
        await _refused(registry, "PUT", "/services/second/settings?namespace=test", {}),
        await _refused_frame(speaker, an_entry(service="second", namespace="test")),
    ):
        assert code == "limit_reached"
        assert detail.startswith("namespace test holds 1 services and may hold 1 (namespace test's record)")
    await speaker.register(an_entry(81, namespace="test"))
    for code, detail in (
        await _refused(registry, "POST", inside, {**LAID, "port": 82}),
        await _refused(registry, "POST", inside, {"ip": "10.0.0.3", "port": 1}),
        await _refused_frame(speaker, an_entry(82, namespace="test")),
    ):
        assert code == "limit_reached"
        assert detail.startswith("namespace test holds 2 instances and may hold 2 (namespace test's record)")
    await lay(registry)
    _, body, _ = await registry.request("GET", "/namespaces")
    assert [(n["namespace"], n["services"], n["instances"]) for n in body["namespaces"]] == [
        ("public", 1, 1),
        ("test", 1, 2),
    ]
    assert body["namespaces"][0]["record"] is None
    assert (await registry.request("DELETE", "/namespaces/test"))[0] == 204
    await lay(registry, path=inside, port=82)


async def test_those_that_come_at_once_find_no_more_room_than_there_is(start):
    registry = await start(max_instances=5, max_services=3)
    answers = await asyncio.gather(
        *(registry.request("POST", INSTANCES, json={**LAID, "port": n}) for n in range(1, 31))
    )
    assert sorted(status for status, _, _ in answers) == [201] * 5 + [429] * 25
    assert len(registry.catalog.rulings.definitions) == 5
    answers = await asyncio.gather(
        *(registry.request("PUT", f"/services/s{n}/settings", json={}) for n in range(10))
    )
    assert sorted(status for status, _, _ in answers) == [200] * 2 + [429] * 8


async def _refused(registry, method, path, json):
    problem = await registry.problem(method, path, json=json)
    assert problem["status"] == 429
    return problem["code"], problem["detail"]


async def _refused_frame(speaker, entry):
    problem = await speaker.refused(frames.Register(id=1, entries=[entry]))
    return problem.code, problem.detail


# --- services' settings ----------------------------------------------------------------------------------


async def test_a_service_that_has_settings_is_listed_though_it_is_empty(start):
    registry = await start(empty_service_after=0.0)
    settings = {"protect_threshold": 0.4, "metadata": {"team": "shop"}, "check": {"type": "http"}}
    status, body, _ = await registry.request("PUT", f"{SERVICE}/settings", json=settings)
    assert (status, body["protect_threshold"], body["metadata"]) == (200, 0.4, {"team": "shop"})
    assert (await registry.request("GET", f"{SERVICE}/settings"))[1] == body
    registry.catalog.sweep(registry.book.now() + 3600)
    _, page, _ = await registry.request("GET", "/services")
    assert [(s["service"], s["instances"]) for s in page["services"]] == [("orders", 0)]
    # They are laid down whole.
    await registry.request("PUT", f"{SERVICE}/settings", json={})
    assert (await registry.request("GET", f"{SERVICE}/settings"))[1] == {}
    assert (await registry.request("DELETE", f"{SERVICE}/settings"))[0] == 204
    registry.catalog.sweep(registry.book.now() + 3600)
    assert (await registry.request("GET", "/services"))[1]["total"] == 0


async def test_settings_and_namespaces_are_back_after_a_restart(start):
    first = await start()
    await first.request("PUT", f"{SERVICE}/settings", json={"protect_threshold": 0.4})
    await first.request("PUT", "/namespaces/n", json={"title": "N", "max_instances": 0})
    await stop(first)
    second = await start()
    assert (await second.request("GET", f"{SERVICE}/settings"))[1]["protect_threshold"] == 0.4
    assert (await second.request("GET", "/services"))[1]["total"] == 1
    _, body, _ = await second.request("GET", "/namespaces")
    records = {n["namespace"]: n["record"] for n in body["namespaces"]}
    assert records["n"] == {"title": "N", "max_instances": 0}


async def test_a_list_says_that_it_is_protected_by_what_was_selected_and_never_rewrites_health(registry):
    for port, cluster, alive in ((1, "a", True), (2, "a", False), (3, "b", False), (4, "b", False)):
        body = {"ip": "10.0.0.1", "port": port, "cluster": cluster, "alive": alive}
        await registry.request("POST", INSTANCES, json={**body, "metadata": {"c": cluster}})
    plain = await listed(registry)
    assert (plain["protect_threshold"], plain["protected"]) == (None, False)
    _, _, headers = await registry.request("GET", SERVICE)
    await registry.request("PUT", f"{SERVICE}/settings", json={"protect_threshold": 0.25})
    for query, protected in {
        "": True,
        "?cluster=a": False,
        "?cluster=b": True,
        "?selector=c=a": False,
        "?selector=c=b": True,
        "?cluster=a&healthy=true": False,
        "?cluster=a&healthy=false": False,
        "?cluster=b&healthy=true": True,
        "?healthy=true": True,
        "?cluster=none": False,
    }.items():
        assert (await listed(registry, query))["protected"] is protected, query
    shown = await listed(registry)
    assert shown["protect_threshold"] == 0.25
    assert shown["instances"] == plain["instances"]
    # The list is another one now, to whoever holds the old one.
    again = {"If-None-Match": headers["ETag"]}
    assert (await registry.request("GET", SERVICE, headers=again))[0] == 200
    await registry.request("PUT", f"{SERVICE}/settings", json={"protect_threshold": 0})
    assert (await listed(registry))["protected"] is False


async def test_subscribers_hear_of_a_threshold_by_a_delta_that_changes_nothing_else(registry):
    client = await registry.client()
    client.put(an_entry(alive=False), an_entry(81))
    await client.confirmed(a_ref(), a_ref(81))
    speaker = await registry.speaker()
    snapshot = await speaker.ask(frames.Subscribe(id=1, service="orders"), frames.Snapshot)
    assert snapshot.protect_threshold is None
    await speaker.say(frames.Ack(service="orders", revision=snapshot.revision))
    await registry.request("PUT", f"{SERVICE}/settings", json={"protect_threshold": 0.5})
    delta = await speaker.hear(frames.Delta)
    assert (delta.put, delta.drop, delta.protect_threshold) == ([], [], 0.5)
    assert (delta.base, delta.digest) == (snapshot.revision, snapshot.digest)
    assert delta.revision != snapshot.revision
    # Who was away meanwhile holds the same instances, by their digest, and is told all the same.
    late = await registry.speaker()
    current = await late.ask(
        frames.Subscribe(id=1, service="orders", revision="otherboot.1", digest=snapshot.digest),
        frames.Current,
    )
    assert current.protect_threshold == 0.5


async def test_the_sdk_picks_unhealthy_ones_too_while_the_list_is_protected(registry):
    provider, caller = await registry.client(), await registry.client()
    orders = await caller.subscribe("orders")
    provider.put(an_entry(1, alive=False), an_entry(2, alive=False), an_entry(3))
    await orders.wait_for(lambda instances: len(instances) == 3)

    def picked():
        return {orders.pick().port for _ in range(12)}

    assert picked() == {3}
    await registry.request("PUT", f"{SERVICE}/settings", json={"protect_threshold": 0.4})
    await until(lambda: picked() == {1, 2, 3})
    assert [i.healthy for i in sorted(orders.instances, key=lambda i: i.port)] == [False, False, True]
    await registry.request("DELETE", f"{SERVICE}/settings")
    await until(lambda: picked() == {3})


# --- who may ---------------------------------------------------------------------------------------------

WRITES = [
    ("POST", INSTANCES, LAID),
    ("PATCH", ONE, {"weight": 2}),
    ("DELETE", ONE, None),
    ("DELETE", f"{ONE}?force=true", None),
    ("DELETE", f"{INSTANCES}/10.0.0.1:80:DEFAULT:u?force=true", None),
    ("PUT", f"{ONE}/override", {"weight": 2}),
    ("PUT", f"{INSTANCES}/10.0.0.1:80:DEFAULT:u/override", {"weight": 2}),
    ("DELETE", f"{ONE}/override", None),
    ("POST", f"{ONE}/offline", None),
    ("POST", f"{INSTANCES}/10.0.0.1:80:DEFAULT:u/offline", None),
    ("POST", f"{ONE}/online", None),
    ("PUT", f"{SERVICE}/settings", {}),
    ("DELETE", f"{SERVICE}/settings", None),
    ("PUT", "/namespaces/n", {}),
    ("DELETE", "/namespaces/n", None),
]
READS = [
    f"{ONE}/override", "/overrides", f"{SERVICE}/settings", "/namespaces", f"{SERVICE}/events",
    f"{ONE}/explain", "/disagreements",
]  # fmt: skip


@pytest.fixture(scope="module")
def key():
    return Key("k1")


@pytest.fixture
async def guarded(start, key):
    async with ApiServer(key).server as server:
        api = KubeApi(str(server.make_url("")).rstrip("/"), context=None, token="own")
        yield await start(
            api,
            auth="kubernetes",
            operator_account="rollbook/operator",
            administrator_accounts=("ops/admin",),
        )


async def test_only_administrators_and_the_operator_lay_down_and_everybody_reads(guarded, key):
    may = {
        "administrator": key.token(uid="", account="ops/admin"),
        "operator": key.token(uid="op", account="rollbook/operator"),
    }
    may_not = {"pod": key.token(uid="u"), "account": key.token(uid=""), "nobody": None}
    for who, token in may.items():
        await guarded.request("POST", INSTANCES, json=LAID, token=token)
        await guarded.request("PUT", f"{ONE}/override", json={"weight": 1}, token=token)
        await guarded.request("PUT", f"{SERVICE}/settings", json={}, token=token)
        await guarded.request("PUT", "/namespaces/n", json={}, token=token)
        rulings = guarded.catalog.rulings
        laid = [
            dict(r) for r in (rulings.definitions, rulings.overrides, rulings.services, rulings.namespaces)
        ]
        assert all(laid), who
        for other, bad in may_not.items():
            for method, path, json in WRITES:
                problem = await guarded.problem(method, path, json=json, token=bad)
                expected = (401, "unauthenticated") if bad is None else (403, "forbidden")
                assert (problem["status"], problem["code"]) == expected, (other, method, path)
        problem = await guarded.problem("POST", INSTANCES, json=LAID, token=may_not["pod"])
        assert "--administrator-accounts" in problem["detail"]
        assert everything(guarded) == laid
        for path in READS:
            assert (await guarded.request("GET", path))[0] == 200, path
        for method, path, json in WRITES[1:]:
            status, body, _ = await guarded.request(method, path, json=json, token=token)
            # Twice: by then some of it is gone.
            assert status in {200, 204} or body["code"] in {"unknown_instance", "not_found"}, (who, path)
        assert not rulings.definitions
        for ref in list(rulings.overrides):
            await guarded.request(
                "DELETE", f"{INSTANCES}/{ref.ip}:{ref.port}:DEFAULT:u/override", token=token
            )


# --- the store fails -------------------------------------------------------------------------------------


async def test_while_the_store_is_away_writes_are_refused_whole_and_reads_go_on(registry, tmp_path):
    await lay(registry)
    await registry.request("PUT", f"{ONE}/override", json={"weight": 2})
    await registry.request("PUT", f"{SERVICE}/settings", json={})
    await registry.request("PUT", "/namespaces/n", json={})
    await registry.request("POST", f"{INSTANCES}", json={"ip": "10.0.0.1", "port": 8080, "weight": 5})
    before = await listed(registry)
    laid = everything(registry)
    # What only says so without the store (an ephemeral one goes at once) is tried afterwards.
    writes = [w for w in WRITES if w[:2] != ("DELETE", ONE) and ":u" not in w[1] and w[0] != "PATCH"]
    with store_away(tmp_path):
        for method, path, json in writes:
            status, body, headers = await registry.request(method, path, json=json)
            assert (status, body["code"]) == (503, "store_unavailable"), (method, path)
            assert headers["Retry-After"] == "1"
            assert "rulings.db was taken away" in body["detail"]
        assert await listed(registry) == before, "no force without the store: it would come back half"
        for path in READS:
            assert (await registry.request("GET", path))[0] == 200
        # What lives by beats needs no store.
        assert (await registry.request("POST", INSTANCES, json={"ip": "10.0.0.9", "port": 1}))[0] == 201
        assert (await registry.request("DELETE", ONE))[0] == 204
        assert (await registry.problem("PATCH", ONE, json={"weight": 9}))["code"] == "store_unavailable"
        assert (await registry.problem("DELETE", ONE))["code"] == "store_unavailable"
    assert everything(registry) == laid
    assert (await registry.request("PATCH", ONE, json={"weight": 9}))[0] == 200


# --- at the same time ------------------------------------------------------------------------------------


async def test_changes_at_the_same_time_are_all_kept(registry):
    await lay(registry)
    changes = [
        {"weight": 7},
        {"enabled": False},
        {"metadata": {"a": "1"}},
        {"check": {"type": "none", "port": 9}},
    ]
    answers = await asyncio.gather(*(registry.request("PATCH", ONE, json=change) for change in changes))
    assert [status for status, _, _ in answers] == [200] * 4
    definition = registry.catalog.rulings.definitions[a_ref()]
    entry = definition.entry
    assert (entry.weight, entry.enabled, entry.metadata, definition.check.port) == (7.0, False, {"a": "1"}, 9)


async def test_a_change_does_not_bring_back_what_is_taken_back_at_the_same_time(registry):
    for _ in range(20):
        await lay(registry)
        changed, deleted = await asyncio.gather(
            registry.request("PATCH", ONE, json={"weight": 7}), registry.request("DELETE", ONE)
        )
        assert deleted[0] == 204
        assert changed[0] in {200, 404, 409}
        assert registry.catalog.rulings.definitions == {}
        assert (await listed(registry))["instances"] == []


async def test_an_override_laid_down_while_its_instance_goes_offline_keeps_its_weight(registry):
    await registry.request("PUT", f"{ONE}/override", json={"weight": 2})
    rulebook = registry.server.rulebook
    read = rulebook._store.read
    quicker = iter([{"weight": 3}, {"weight": 4}])

    async def late(key):
        value = await read(key)
        json = next(quicker, None)
        if json is not None:
            await registry.request("PUT", f"{ONE}/override", json=json)
        return value

    rulebook._store.read = late
    assert (await registry.request("POST", f"{ONE}/offline"))[0] == 200
    override = registry.catalog.rulings.overrides[a_ref()]
    assert (override.enabled, override.weight) == (False, 4.0)


async def test_a_revision_that_is_overtaken_each_time_is_given_up(registry):
    await lay(registry)
    rulebook = registry.server.rulebook
    read, weights = rulebook._store.read, iter(range(2, 100))

    async def late(key):
        value = await read(key)
        await registry.request("POST", INSTANCES, json={**LAID, "weight": next(weights)})
        return value

    rulebook._store.read = late
    problem = await registry.problem("PATCH", ONE, json={"enabled": False})
    assert (problem["status"], problem["code"]) == (409, "conflict")
    assert registry.catalog.rulings.definitions[a_ref()].entry.enabled


async def test_the_last_of_many_writers_is_who_the_book_the_store_and_the_next_life_show(start):
    first = await start()

    async def write(n):
        if n % 3 == 2:
            await first.request("DELETE", ONE)
        else:
            await first.request("POST", INSTANCES, json={**LAID, "weight": n})

    await asyncio.gather(*(write(n) for n in range(60)))
    shown = (await listed(first))["instances"]
    await stop(first)
    second = await start()
    assert (await listed(second))["instances"] == shown


async def test_what_is_taken_back_during_its_check_is_not_judged_any_more(registry):
    checks = asyncio.Queue()

    async def greet(_, writer):
        checks.put_nowait(writer)

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    path = f"{INSTANCES}/127.0.0.1:{port}"
    check = {"type": "http", "interval": 0.5, "timeout": 0.4, "failures": 1}
    async with server:
        await lay(registry, ip="127.0.0.1", port=port, check=check)
        held = await checks.get()
        assert (await registry.request("DELETE", path))[0] == 204
        held.close()
        await until(lambda: registry.server._checker.in_flight == 0)
        assert registry.server._checker.checked == 0
        assert registry.catalog.service(ORDERS).instances == {}
        # Laid down again, it begins anew, alive.
        again = await lay(registry, ip="127.0.0.1", port=port, check=check)
        assert again["healthy"]
        (await checks.get()).close()


async def test_what_is_laid_down_anew_during_its_check_is_judged_by_the_new_one(registry, application):
    slow = asyncio.Event()

    async def greet(_, writer):
        await slow.wait()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    old = server.sockets[0].getsockname()[1]
    async with server:
        fields = {"ip": "127.0.0.1", "port": application.port}
        await lay(registry, **fields, check={"type": "http", "port": old, **QUICK})
        await until(lambda: registry.server._checker.in_flight == 1)
        await lay(registry, **fields, check=QUICK)
        slow.set()
        ref = EntryRef(service="orders", **fields)
        await until(lambda: registry.server.rulebook.verdict(ref) is not None)
        assert registry.server.rulebook.verdict(ref) is True
        reasons = [past.reason.value for past in registry.book.history.of(ORDERS)]
        assert "check_failed" not in reasons
