"""``rollbook`` against a registry over real sockets: what it asks for, and what it says when that fails."""

from __future__ import annotations

import asyncio

import pytest
import structlog.testing
from click.testing import CliRunner

from apiserverkit import ApiServer, Key
from registrykit import an_entry
from rollbook import frames
from rollbook.cli import main
from rollbook.kube import KubeApi

INSTANCES = "/services/orders/instances"
KEY = "10.0.0.1:8080:DEFAULT"
BODY = {"ip": "10.0.0.1", "port": 8080}


@pytest.fixture(autouse=True)
def quiet():
    """Keep the registry's log, which is in this process too, out of what the command line says."""
    with structlog.testing.capture_logs():
        yield


async def rollbook(registry, *arguments):
    """Run the command line; returns its exit status and what it said."""
    result = await asyncio.to_thread(CliRunner().invoke, main, ["--at", registry.url, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


async def said(registry, *arguments):
    status, output = await rollbook(registry, *arguments)
    assert status == 0, output
    return output


async def test_services_and_instances_are_listed(registry):
    assert await said(registry, "services") == "no services\n"
    await registry.request("POST", INSTANCES, json=BODY)
    assert (await said(registry, "services")).splitlines() == [
        "SERVICE  HEALTHY  INSTANCES",
        "orders   1        1",
    ]
    assert (await said(registry, "show", "orders")).splitlines()[1].split()[:2] == [
        "10.0.0.1:8080",
        "healthy",
    ]
    assert await said(registry, "--namespace", "n", "show", "orders") == "orders has no instances\n"


async def test_services_are_listed_however_many_there_are(registry):
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(*(an_entry(service=f"s{n}") for n in range(1001)))
    assert len((await said(registry, "services")).splitlines()) == 1002


async def test_a_service_may_be_called_anything_that_is_allowed(registry):
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(an_entry(service="a#b?c%20"))
    assert "10.0.0.1:8080" in await said(registry, "show", "a#b?c%20")
    assert "healthy" in await said(registry, "explain", "a#b?c%20", KEY)


async def test_an_instance_is_taken_offline_and_brought_online(registry):
    assert await said(registry, "offline", "orders", KEY) == (
        f"{KEY} of orders is offline; there is no such instance now\n"
    )
    await registry.request("POST", INSTANCES, json=BODY)
    output = await said(registry, "offline", "orders", "10.0.0.1:8080", "--reason", "disk swap")
    assert output == f"{KEY} of orders is offline\n"
    assert "disabled" in await said(registry, "show", "orders")
    assert "override: offline (disk swap)" in await said(registry, "explain", "orders", KEY)
    assert await said(registry, "online", "orders", KEY) == f"{KEY} of orders is as its publisher says\n"
    assert "disabled" not in await said(registry, "show", "orders")


async def test_an_explanation_says_who_said_what_and_what_came_of_it(registry):
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(an_entry(alive=False))
    await registry.request("PUT", f"{INSTANCES}/{KEY}/override", json={"weight": 2.5})
    lines = (await said(registry, "explain", "orders", KEY)).splitlines()
    assert lines[0].startswith(f"{KEY}: it is not healthy: its publisher beats and says that")
    assert lines[2].split() == ["PUBLISHER", "SHOWN", "LAST", "HEARD", "WHY"]
    assert lines[3].split()[:2] == ["session", "yes"]
    assert "override: weight 2.5" in lines
    assert [line.split()[-1] for line in lines[-2:]] == ["overridden", "registered"]
    assert "nobody speaks for it" in await said(registry, "explain", "orders", "10.9.9.9:1")


async def test_events_are_listed_the_newest_first(registry):
    assert await said(registry, "events", "orders") == "nothing is remembered of orders\n"
    for weight in (1, 2):
        await registry.request("POST", INSTANCES, json={**BODY, "weight": weight})
    await registry.request("DELETE", f"{INSTANCES}/{KEY}")
    lines = (await said(registry, "events", "orders")).splitlines()
    assert lines[0].split() == ["TIME", "(UTC)", "INSTANCE", "WHAT", "HAPPENED"]
    assert [line.split()[2:] for line in lines[1:]] == [
        [KEY, "deregistered"],
        [KEY, "updated"],
        [KEY, "registered"],
    ]
    assert len((await said(registry, "events", "orders", "--limit", "1")).splitlines()) == 2
    assert (await rollbook(registry, "events", "orders", "--limit", "201"))[0] == 2


async def test_disagreements_are_reported(registry):
    assert await said(registry, "disagreements") == "Kubernetes and the book agree\n"
    registry.book.apply(lambda c, now: c.fence_pods([frames.GonePod(uid="u", ips=["10.0.0.1"])], now))
    await registry.problem("POST", INSTANCES, json={**BODY, "owner": "u"})
    header, line = (await said(registry, "disagreements")).splitlines()
    assert header.split()[:2] == ["KIND", "FOR"]
    assert line.split()[:5] == ["zombie", "0", "s", "u", "10.0.0.1"]


async def test_what_cannot_be_done_says_why_and_fails(registry):
    for arguments, text in (
        (("explain", "orders", "10.0.0.1"), "bad_value: key is '10.0.0.1'; accepted: ip:port[:cluster"),
        (("offline", "orders", "10.0.0.1:8080", "--reason", "x" * 5000), "bad_value: reason"),
        (("--namespace", "a b", "events", "orders"), "bad_value: namespace"),
        (("show", "a/b"), "bad_value: service is 'a/b'"),
    ):
        status, output = await rollbook(registry, *arguments)
        assert status == 1
        assert text in output
    result = await asyncio.to_thread(CliRunner().invoke, main, ["--at", "127.0.0.1:1", "disagreements"])
    assert result.exit_code == 1
    assert "http://127.0.0.1:1 does not answer" in result.output


async def test_what_a_sidecar_does_not_know_is_sent_to_a_registry(registry):
    # What it answers is what a registry answers of paths that it does not have.
    result = await asyncio.to_thread(
        CliRunner().invoke, main, ["--at", f"{registry.url}/elsewhere", "disagreements"]
    )
    assert result.exit_code == 1
    assert "a registry knows more (--at HOST:8848)" in result.output


@pytest.fixture
async def guarded(start):
    key = Key("k1")
    async with ApiServer(key).server as server:
        api = KubeApi(str(server.make_url("")).rstrip("/"), context=None, token="own")
        registry = await start(api, auth="kubernetes", administrator_accounts=("ops/admin",))
        yield registry, key.token(uid="", account="ops/admin")


async def test_who_takes_something_offline_shows_a_token_where_one_is_asked_for(guarded, tmp_path):
    registry, token = guarded
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    status, output = await rollbook(registry, "offline", "orders", KEY)
    assert status == 1
    assert "unauthenticated" in output
    assert "(--token-file)" in output
    assert "is offline" in await said(registry, "--token-file", str(file), "offline", "orders", KEY)
    assert "as its publisher says" in await said(registry, "--token-file", str(file), "online", "orders", KEY)
    assert registry.catalog.rulings.overrides == {}
