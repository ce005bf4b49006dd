"""A sidecar in this process, over HTTP, against a registry that speaks frames."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from rollbook import frames


async def test_a_service_asked_for_the_first_time_is_followed_and_kept(registry, run, instance, service):
    registry.lists[service("orders")] = [instance(80), instance(81)]
    async with run(registry.address) as caller:
        for _ in range(3):
            response, found = await caller.get("/services/orders")
            assert response.status == 200
            assert [i["port"] for i in found["instances"]] == [80, 81]
        assert len(registry.got(frames.Subscribe)) == 1


async def test_a_change_is_answered_as_soon_as_it_has_been_pushed(registry, run, instance, eventually):
    async with run(registry.address) as caller:
        _, found = await caller.get("/services/orders")
        assert found["instances"] == []
        await registry.push("orders", instance())

        async def changed():
            _, now = await caller.get("/services/orders")
            return now["instances"] and now["revision"] != found["revision"]

        assert await eventually(changed)


async def test_a_list_carries_etag_age_and_staleness(registry, run):
    async with run(registry.address) as caller:
        response, found = await caller.get("/services/orders")
        assert response.headers["ETag"] == f'"{found["revision"]}"'
        assert response.headers["Age"] == "0"
        assert response.headers["X-Rollbook-Stale"] == "false"
        assert response.content_type == "application/json"


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', '"x", "{}"', "*"])
async def test_a_known_revision_is_answered_304(registry, run, form):
    async with run(registry.address) as caller:
        _, found = await caller.get("/services/orders")
        condition = {"If-None-Match": form.format(found["revision"])}
        response, body = await caller.get("/services/orders", headers=condition)
        assert (response.status, body) == (304, "")
        assert response.headers["ETag"] == f'"{found["revision"]}"'


async def test_another_revision_is_answered_in_full(registry, run):
    async with run(registry.address) as caller:
        response, _ = await caller.get("/services/orders", headers={"If-None-Match": '"other"'})
        assert response.status == 200


async def test_a_long_poll_is_answered_by_the_change(registry, run, instance):
    async with run(registry.address) as caller:
        _, found = await caller.get("/services/orders")
        polling = asyncio.create_task(caller.get(f"/services/orders?wait=30s&revision={found['revision']}"))
        await asyncio.sleep(0.05)
        assert not polling.done()
        await registry.push("orders", instance())
        response, changed = await asyncio.wait_for(polling, 5)
        assert response.status == 200
        assert len(changed["instances"]) == 1
        assert response.headers["ETag"] == f'"{changed["revision"]}"'


async def test_a_long_poll_ends_with_the_same_list(registry, run):
    async with run(registry.address) as caller:
        _, found = await caller.get("/services/orders")
        url = f"/services/orders?wait=50ms&revision={found['revision']}"
        response, same = await caller.get(url)
        assert (response.status, same) == (200, found)
        response, _ = await caller.get(url, headers={"If-None-Match": response.headers["ETag"]})
        assert response.status == 304


async def test_a_long_poll_does_not_keep_the_sidecar_from_ending(registry, run):
    async with aiohttp.ClientSession() as http:

        async def poll(port, revision):
            url = f"http://127.0.0.1:{port}/services/orders?wait=60s&revision={revision}"
            async with http.get(url) as response:
                return await response.json()

        async with run(registry.address) as caller:
            _, found = await caller.get("/services/orders")
            polling = asyncio.create_task(poll(caller.sidecar.lookup_port, found["revision"]))
            await asyncio.sleep(0.05)
            assert not polling.done()
        assert await asyncio.wait_for(polling, 5) == found


async def test_filters_by_cluster_health_and_metadata(registry, run, instance, service):
    registry.lists[service("orders")] = [
        instance(80, cluster="a", metadata={"version": "2"}),
        instance(81, cluster="b"),
        instance(82, cluster="b", healthy=False, alive=False),
    ]
    async with run(registry.address) as caller:
        for query, ports in [
            ("cluster=a", [80]),
            ("cluster=b", [81, 82]),
            ("cluster=a,b&healthy=true", [80, 81]),
            ("healthy=false", [82]),
            ("selector=version%20in%20(1,2)", [80]),
            ("selector=!version", [81, 82]),
            ("selector=!version&healthy=true", [81]),
        ]:
            _, found = await caller.get(f"/services/orders?{query}")
            assert [i["port"] for i in found["instances"]] == ports


async def test_namespace_and_group_are_part_of_the_name(registry, run):
    async with run(registry.address) as caller:
        _, found = await caller.get("/services/orders?namespace=prod&group=blue")
        assert (found["namespace"], found["group"]) == ("prod", "blue")
        (asked,) = registry.got(frames.Subscribe)
        assert (asked.namespace, asked.group, asked.service) == ("prod", "blue", "orders")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/services/orders?helthy=true", "query"),
        ("/services/orders?healthy=yes", "healthy"),
        ("/services/orders?healthy=true&healthy=false", "healthy"),
        ("/services/orders?cluster=a_b", "cluster"),
        ("/services/orders?cluster=", "cluster"),
        ("/services/orders?namespace=a/b", "namespace"),
        ("/services/orders?group=", "group"),
        ("/services/a%20b", "service"),
        ("/services/a@@b", "service"),
        ("/services/orders?wait=soon&revision=x", "wait"),
        ("/services/orders?wait=2h&revision=x", "wait"),
        ("/services/orders?wait=30s", "revision"),
        ("/services/orders/pick?strategy=best", "strategy"),
        ("/services/orders/pick?cluster=a", "query"),
        ("/services/orders/pick?selector=a%20in", "selector"),
        ("/services/orders?selector=a=1,", "selector"),
        ("/services?page=0", "page"),
        ("/services?size=1001", "size"),
        ("/services?page=x", "page"),
    ],
)
async def test_bad_input_is_refused_naming_the_field_and_the_form(registry, run, path, field):
    async with run(registry.address) as caller:
        response, problem = await caller.get(path)
        assert response.status == 400
        assert response.content_type == "application/problem+json"
        assert (problem["code"], problem["field"]) == ("bad_value", field)
        assert problem["accepted"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/services/orders/instances", 404, "not_found"),
        ("POST", "/services/orders/instances", 405, "method_not_allowed"),
        ("DELETE", "/services/orders", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_there_is_a_problem_too(registry, run, method, path, status, code):
    async with run(registry.address) as caller:
        response, problem = await caller.get(path, method=method)
        assert (response.status, problem["code"]) == (status, code)


async def test_pick_chooses_among_those_that_may_get_traffic(registry, run, instance, service):
    registry.lists[service("orders")] = [
        instance(80),
        instance(81),
        instance(82, healthy=False, alive=False),
        instance(83, enabled=False),
        instance(84, weight=0.0),
    ]
    async with run(registry.address) as caller:
        for query in (
            "",
            "?strategy=round-robin",
            "?strategy=random",
            "?namespace=public&group=DEFAULT_GROUP",
        ):
            found = set()
            for _ in range(20):
                response, chosen = await caller.get(f"/services/orders/pick{query}")
                assert response.status == 200
                assert response.headers["X-Rollbook-Stale"] == "false"
                found.add(chosen["port"])
            assert found == {80, 81}


async def test_pick_keeps_to_the_selector_and_takes_turns_within_it(registry, run, instance, service):
    registry.lists[service("orders")] = [
        instance(80, metadata={"version": "1"}),
        instance(81, metadata={"version": "2"}),
        instance(82, metadata={"version": "2"}),
    ]
    async with run(registry.address) as caller:
        all_chosen, some_chosen = [], []
        for _ in range(6):
            _, everybody = await caller.get("/services/orders/pick?strategy=round-robin")
            _, some = await caller.get("/services/orders/pick?strategy=round-robin&selector=version=2")
            all_chosen.append(everybody["port"])
            some_chosen.append(some["port"])
        # Where each begins is drawn.
        assert sorted(all_chosen[:3]) == [80, 81, 82]
        assert all_chosen[3:] == all_chosen[:3]
        assert sorted(some_chosen[:2]) == [81, 82]
        assert some_chosen == some_chosen[:2] * 3
        response, problem = await caller.get("/services/orders/pick?selector=version=3")
        assert (response.status, problem["code"]) == (503, "no_instance")
        assert "selector" in problem["detail"]


async def test_while_a_list_is_protected_picks_go_to_unhealthy_ones_too(
    registry, run, instance, service, eventually
):
    ailing = [instance(n, healthy=False, alive=False, metadata={"v": "1"}) for n in (80, 81)]
    held = registry.lists[service("orders")] = [*ailing, instance(82, metadata={"v": "2"})]

    async def picked(query=""):
        found = [await caller.get(f"/services/orders/pick{query}") for _ in range(6)]
        return {body["port"] for response, body in found if response.status == 200}

    async def protected():
        return (await caller.get("/services/orders"))[1]["protected"]

    async with run(registry.address) as caller:
        assert await picked() == {82}
        registry.protect_threshold = 0.4
        await registry.push("orders", *held)
        await eventually(protected)
        assert await picked() == {80, 81, 82}
        _, found = await caller.get("/services/orders?healthy=false")
        assert [i["healthy"] for i in found["instances"]] == [False, False], "health is never rewritten"
        # It is asked about what was selected.
        assert await picked("?selector=v=1") == {80, 81}
        assert await picked("?selector=v=2") == {82}
        assert (await caller.get("/services/orders?selector=v=2"))[1]["protected"] is False

        # Told while it was away, beside the same instances.
        await registry.stop()
        registry.protect_threshold = None
        await registry.start()

        async def healthy_only():
            return await picked() == {82}

        await eventually(healthy_only)
        assert await protected() is False


async def test_pick_says_so_if_nobody_may_get_traffic(registry, run, instance, service):
    registry.lists[service("orders")] = [instance(healthy=False, alive=False)]
    async with run(registry.address) as caller:
        response, problem = await caller.get("/services/orders/pick")
        assert (response.status, problem["code"]) == (503, "no_instance")
        assert response.content_type == "application/problem+json"
        assert "ETag" not in response.headers


async def test_services_lists_what_is_followed(registry, run, instance, service):
    registry.lists[service("b")] = [instance(80), instance(81, healthy=False, alive=False)]
    async with run(registry.address) as caller:
        for path in ("/services/b", "/services/a", "/services/a?group=blue", "/services/a?namespace=prod"):
            await caller.get(path)
        response, page = await caller.get("/services")
        assert response.headers["X-Rollbook-Stale"] == "false"
        assert (page["total"], page["page"], page["size"]) == (3, 1, 100)
        shown = [(s["group"], s["service"], s["instances"], s["healthy"]) for s in page["services"]]
        assert shown == [("DEFAULT_GROUP", "a", 0, 0), ("DEFAULT_GROUP", "b", 2, 1), ("blue", "a", 0, 0)]
        _, page = await caller.get("/services?group=DEFAULT_GROUP&page=2&size=1")
        assert (page["total"], [s["service"] for s in page["services"]]) == (2, ["b"])
        _, page = await caller.get("/services?namespace=prod")
        assert page["total"] == 1


async def test_what_shall_be_followed_is_followed_before_anybody_asks(registry, run):
    async with run(registry.address, subscribe=("orders", "blue@@stock")):
        await registry.until(lambda: len(registry.got(frames.Subscribe)) == 2)
        assert {(f.group, f.service) for f in registry.got(frames.Subscribe)} == {
            ("DEFAULT_GROUP", "orders"),
            ("blue", "stock"),
        }


async def test_lists_are_read_again_regularly(registry, run):
    async with run(registry.address, reread_interval=0.1) as caller:
        await caller.get("/services/orders")
        await registry.until(lambda: len(registry.got(frames.Subscribe)) >= 2)


async def test_without_a_registry_it_starts_and_says_that_it_knows_nothing(absent_registry, run):
    async with run(absent_registry, first_lookup_timeout=0.05, subscribe=("stock",)) as caller:
        for path in ("/services/orders", "/services/orders/pick", "/services/stock"):
            response, problem = await caller.get(path)
            assert (response.status, problem["code"]) == (503, "registry_unreachable")
            assert response.headers["Retry-After"] == "1"
        response, health = await caller.get("/healthz")
        assert (response.status, health["connected"]) == (200, False)
        response, page = await caller.get("/services")
        assert page["total"] == 0
        assert response.headers["X-Rollbook-Stale"] == "true"
        response, _ = await caller.get("/startup", hooks=True)
        assert response.status == 200


async def test_a_registry_that_does_not_send_the_list_is_not_an_empty_list(registry, run):
    registry.silent_lists = True
    async with run(registry.address, first_lookup_timeout=0.1) as caller:
        response, problem = await caller.get("/services/orders")
        assert (response.status, problem["code"]) == (503, "registry_unreachable")


async def test_a_lookup_waits_for_a_registry_that_comes_in_time(registry, run, instance, service):
    address = registry.address
    registry.lists[service("orders")] = [instance()]
    await registry.stop()
    async with run(address, first_lookup_timeout=10.0) as caller:
        asking = asyncio.create_task(caller.get("/services/orders"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        await registry.start()
        response, found = await asking
        assert response.status == 200
        assert len(found["instances"]) == 1


async def test_with_the_registry_gone_it_answers_from_memory_and_says_how_old_that_is(
    registry, run, instance, service, eventually
):
    registry.lists[service("orders")] = [instance()]
    async with run(registry.address) as caller:
        _, before = await caller.get("/services/orders")
        await registry.stop()
        await eventually(lambda: not caller.sidecar.client.connected)
        caller.sidecar.client._connection.last_heard -= 42
        response, after = await caller.get("/services/orders")
        assert (response.status, after) == (200, before)
        assert response.headers["X-Rollbook-Stale"] == "true"
        assert 42 <= int(response.headers["Age"]) < 60
        response, chosen = await caller.get("/services/orders/pick")
        assert (response.status, chosen["port"]) == (200, 8080)
        assert response.headers["X-Rollbook-Stale"] == "true"
        _, metrics = await caller.get("/metrics")
        assert "rollbook_sidecar_connected 0.0" in metrics

        await registry.start()
        await eventually(lambda: caller.sidecar.client.connected)
        response, _ = await caller.get("/services/orders")
        assert (response.headers["X-Rollbook-Stale"], response.headers["Age"]) == ("false", "0")


async def test_a_registry_that_lost_its_book_does_not_empty_the_list(
    registry, run, instance, service, eventually
):
    registry.lists[service("orders")] = [instance()]
    async with run(registry.address) as caller:
        await caller.get("/services/orders")
        await registry.stop()
        registry.boot, registry.lists, registry.settled = "second", {}, False
        registry.frames.clear()
        await registry.start()
        await registry.until(lambda: registry.got(frames.Ack))
        _, found = await caller.get("/services/orders")
        assert (len(found["instances"]), found["settled"]) == (1, False)
        await registry.say(frames.Settled())

        async def let_go():
            _, now = await caller.get("/services/orders")
            return now["settled"] and not now["instances"] and now["revision"] != found["revision"]

        assert await eventually(let_go)


async def test_metrics_have_the_names_of_the_field(registry, run):
    async with run(registry.address) as caller:
        await caller.get("/services/orders")
        response, text = await caller.get("/metrics")
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'rollbook_sidecar_lookup_seconds_count{operation="list"} 1.0' in text
        assert "rollbook_sidecar_connected 1.0" in text
        assert "rollbook_sidecar_cache_age_seconds 0.0" in text
        assert "rollbook_sidecar_services 1.0" in text


async def test_what_urls_mean_is_remembered_within_a_bound(registry, run, monkeypatch):
    monkeypatch.setattr("rollbook_sidecar.lookups.MAX_PARSED", 3)
    async with run(registry.address) as caller:
        for n in range(8):
            response, _ = await caller.get(f"/services/orders?cluster=c{n}")
            assert response.status == 200
        response, _ = await caller.get("/services/orders?cluster=c0&wait=1ms&revision=x")
        assert response.status == 200


async def test_what_urls_of_picks_mean_is_remembered_within_a_bound(
    registry, run, instance, service, monkeypatch
):
    monkeypatch.setattr("rollbook_sidecar.lookups.MAX_PARSED", 3)
    registry.lists[service("orders")] = [instance(n, metadata={"v": str(n)}) for n in range(80, 88)]
    async with run(registry.address) as caller:
        for _ in range(2):
            for n in range(80, 88):
                _, chosen = await caller.get(f"/services/orders/pick?selector=v={n}")
                assert chosen["port"] == n
            for strategy in ("random", "best"):
                response, _ = await caller.get(f"/services/orders/pick?strategy={strategy}")
                assert response.status == (200 if strategy == "random" else 400)
