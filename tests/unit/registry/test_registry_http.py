"""The native HTTP API over real sockets: each route, and each way to get it wrong."""

from __future__ import annotations

import asyncio

import pytest

from registrykit import ORDERS, a_ref, an_entry
from rollbook import frames
from rollbook.limits import MAX_BODY_BYTES
from rollbook_registry.catalog.leases import http_lease
from serverkit import until

INSTANCES = "/services/orders/instances"
KEY = "10.0.0.1:8080:DEFAULT"
BODY = {"ip": "10.0.0.1", "port": 8080}


async def test_registering_answers_the_stored_instance_and_its_term(registry):
    status, body, _ = await registry.request(
        "POST", f"{INSTANCES}?namespace=n&group=g", json={**BODY, "weight": 2, "metadata": {"v": "1"}}
    )
    assert status == 201
    assert body["term"] == 1
    instance = body["instance"]
    assert (instance["key"], instance["weight"], instance["metadata"]) == (KEY, 2.0, {"v": "1"})
    assert instance["healthy"] is True
    _, again, _ = await registry.request("POST", f"{INSTANCES}?namespace=n&group=g", json=BODY)
    assert (again["term"], again["instance"]["weight"]) == (2, 1.0)
    _, listed, _ = await registry.request("GET", "/services/orders?namespace=n&group=g")
    assert [i["key"] for i in listed["instances"]] == [KEY]
    assert (await registry.request("GET", "/services/orders"))[1]["instances"] == []


async def test_services_are_listed_with_counts_by_pages(registry):
    speaker = await registry.speaker()
    await speaker.attach()
    entries = [an_entry(n, service=f"s{n}") for n in range(1, 6)]
    await speaker.register(*entries, an_entry(9, service="s1", alive=False), an_entry(service="x", group="g"))
    _, page, _ = await registry.request("GET", "/services?size=2&page=2&group=DEFAULT_GROUP")
    assert (page["total"], page["page"], page["size"]) == (5, 2, 2)
    assert [s["service"] for s in page["services"]] == ["s3", "s4"]
    _, first, _ = await registry.request("GET", "/services")
    assert first["total"] == 6
    counts = {s["service"]: (s["instances"], s["healthy"]) for s in first["services"]}
    assert counts["s1"] == (2, 1)
    assert (await registry.request("GET", "/services?namespace=other"))[1]["services"] == []


async def test_a_list_may_be_narrowed_by_cluster_health_and_metadata(registry):
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(
        an_entry(1, cluster="a", metadata={"version": "1"}),
        an_entry(2, cluster="b", alive=False, metadata={"version": "2"}),
        an_entry(3, cluster="c"),
    )
    for query, ports in {
        "": [1, 2, 3],
        "?cluster=a,c": [1, 3],
        "?healthy=true": [1, 3],
        "?healthy=false": [2],
        "?cluster=b&healthy=true": [],
        "?selector=version": [1, 2],
        "?selector=version!=1": [2, 3],
        "?selector=version+in+(1,2)&healthy=true": [1],
        "?selector=version=2&cluster=a": [],
    }.items():
        _, body, _ = await registry.request("GET", f"/services/orders{query}")
        assert [i["port"] for i in body["instances"]] == ports


async def test_a_list_that_has_not_changed_is_answered_304(registry):
    _, body, headers = await registry.request("GET", "/services/orders")
    assert headers["ETag"] == f'"{body["revision"]}"'
    for etag in (headers["ETag"], f"W/{headers['ETag']}", f'"x", {headers["ETag"]}'):
        status, nothing, again = await registry.request(
            "GET", "/services/orders", headers={"If-None-Match": etag}
        )
        assert (status, nothing, again["ETag"]) == (304, None, headers["ETag"])
    await registry.request("POST", INSTANCES, json=BODY)
    status, body, changed = await registry.request(
        "GET", "/services/orders", headers={"If-None-Match": headers["ETag"]}
    )
    assert (status, len(body["instances"])) == (200, 1)
    assert changed["ETag"] != headers["ETag"]


async def test_a_list_changes_its_revision_when_the_book_settles(registry):
    _, body, headers = await registry.request("GET", "/services/orders")
    assert body["settled"] is False
    registry.book.outlet.settle()
    status, body, _ = await registry.request(
        "GET", "/services/orders", headers={"If-None-Match": headers["ETag"]}
    )
    assert (status, body["settled"]) == (200, True)


async def test_a_long_poll_answers_as_soon_as_the_list_differs(registry):
    _, body, _ = await registry.request("GET", "/services/orders")
    poll = asyncio.create_task(
        registry.request("GET", f"/services/orders?wait=30s&revision={body['revision']}")
    )
    await until(lambda: registry.book.outlet._watchers)
    await registry.request("POST", INSTANCES, json=BODY)
    _, changed, _ = await asyncio.wait_for(poll, 10)
    assert len(changed["instances"]) == 1
    # Who is behind already does not wait, nor does who only looks.
    assert (await registry.request("GET", "/services/orders?wait=30s&revision=old"))[0] == 200
    assert (await registry.request("GET", "/services/orders?wait=0&revision=old"))[0] == 200
    assert registry.book.outlet._watchers == {}


async def test_a_long_poll_ends_with_its_time_and_leaves_nothing_behind(registry):
    _, body, _ = await registry.request("GET", "/services/orders")
    status, again, _ = await registry.request(
        "GET", f"/services/orders?wait=50ms&revision={body['revision']}"
    )
    assert (status, again["revision"]) == (200, body["revision"])
    assert registry.book.outlet._watchers == {}


async def test_a_beat_is_answered_202(registry):
    _, body, _ = await registry.request("POST", INSTANCES, json=BODY)
    for query in ("", f"?term={body['term']}"):
        status, nothing, _ = await registry.request("PUT", f"{INSTANCES}/{KEY}/beat{query}")
        assert (status, nothing) == (202, None)
    status, _, _ = await registry.request("PUT", f"{INSTANCES}/{KEY}/beat", json={**BODY, "weight": 9})
    assert status == 202
    _, body, _ = await registry.request("GET", "/services/orders")
    assert body["instances"][0]["weight"] == 1.0


async def test_a_light_beat_of_something_unknown_is_404(registry):
    problem = await registry.problem("PUT", f"{INSTANCES}/{KEY}/beat")
    assert (problem["status"], problem["code"]) == (404, "unknown_instance")


async def test_a_full_beat_of_an_unknown_instance_registers_it_off_the_requests_path(registry):
    deferred = []
    book_defer = registry.book.defer
    registry.book.defer = deferred.append
    status, _, _ = await registry.request("PUT", f"{INSTANCES}/{KEY}/beat", json={**BODY, "weight": 3})
    assert status == 202
    # The request is answered, and nothing has been entered yet.
    assert len(deferred) == 1
    assert registry.catalog.service(ORDERS) is None
    book_defer(deferred[0])
    service = await until(lambda: registry.catalog.service(ORDERS))
    assert service.instances[KEY].weight == 3.0


async def test_a_full_beat_that_was_deferred_twice_enters_once(registry):
    for _ in range(3):
        await registry.request("PUT", f"{INSTANCES}/{KEY}/beat", json=BODY)
    await until(lambda: registry.catalog.service(ORDERS))
    assert registry.catalog.lease(http_lease(a_ref())).term == 1


async def test_a_late_beat_after_removal_is_409_even_a_full_one(registry):
    _, body, _ = await registry.request("POST", INSTANCES, json=BODY)
    assert (await registry.request("DELETE", f"{INSTANCES}/{KEY}"))[0] == 204
    for options in ({}, {"json": BODY}):
        problem = await registry.problem("PUT", f"{INSTANCES}/{KEY}/beat?term={body['term']}", **options)
        assert (problem["status"], problem["code"]) == (409, "lease_ended")
    _, again, _ = await registry.request("POST", INSTANCES, json=BODY)
    assert again["term"] > body["term"]
    problem = await registry.problem("PUT", f"{INSTANCES}/{KEY}/beat?term={body['term']}")
    assert (problem["status"], problem["code"]) == (409, "stale_term")


async def test_closed_and_fenced_pods_are_answered_410(registry):
    key = f"{KEY}:u"
    await registry.request("POST", INSTANCES, json={**BODY, "owner": "u"})
    registry.book.apply(lambda c, now: c.close_pods(["u"], now))
    assert (await registry.request("GET", "/services/orders"))[1]["instances"] == []
    for code in ("pod_terminating", "pod_gone"):
        for method, path, options in (
            ("POST", INSTANCES, {"json": {**BODY, "owner": "u"}}),
            ("PUT", f"{INSTANCES}/{key}/beat", {}),
            ("PUT", f"{INSTANCES}/{key}/beat", {"json": {**BODY, "owner": "u"}}),
        ):
            problem = await registry.problem(method, path, **options)
            assert (problem["status"], problem["code"]) == (410, code)
        registry.book.apply(lambda c, now: c.fence_pods([frames.GonePod(uid="u")], now))


async def test_what_a_client_said_can_be_changed_in_part(registry):
    _, body, _ = await registry.request("POST", INSTANCES, json={**BODY, "metadata": {"a": "1"}})
    status, changed, _ = await registry.request("PATCH", f"{INSTANCES}/{KEY}", json={"weight": 5})
    assert (status, changed["term"]) == (200, body["term"])
    assert (changed["instance"]["weight"], changed["instance"]["metadata"]) == (5.0, {"a": "1"})
    _, changed, _ = await registry.request(
        "PATCH", f"{INSTANCES}/{KEY}", json={"enabled": False, "metadata": {}}
    )
    assert (changed["instance"]["weight"], changed["instance"]["enabled"]) == (5.0, False)
    assert changed["instance"]["metadata"] == {}
    # The client's beats go on under the term that it has.
    assert (await registry.request("PUT", f"{INSTANCES}/{KEY}/beat?term={body['term']}"))[0] == 202


async def test_what_a_session_said_is_not_changed_over_http(registry):
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(an_entry())
    problem = await registry.problem("PATCH", f"{INSTANCES}/{KEY}", json={"weight": 5})
    assert problem["code"] == "unknown_instance"


async def test_deregistering_answers_204_and_then_404(registry):
    await registry.request("POST", INSTANCES, json=BODY)
    status, nothing, _ = await registry.request("DELETE", f"{INSTANCES}/10.0.0.1:8080")
    assert (status, nothing) == (204, None)
    problem = await registry.problem("DELETE", f"{INSTANCES}/{KEY}")
    assert (problem["status"], problem["code"]) == (404, "unknown_instance")


async def test_an_ipv6_instance_goes_all_the_way(registry):
    _, body, _ = await registry.request("POST", INSTANCES, json={"ip": "2001:DB8::1", "port": 80})
    key = body["instance"]["key"]
    assert key == "[2001:db8::1]:80:DEFAULT"
    assert (await registry.request("PUT", f"{INSTANCES}/{key}/beat"))[0] == 202
    assert (await registry.request("PUT", f"{INSTANCES}/[2001:0DB8::1]:80/beat"))[0] == 202
    assert (await registry.request("DELETE", f"{INSTANCES}/{key}"))[0] == 204


async def test_beside_another_publisher_each_is_answered_its_own(registry):
    speaker = await registry.speaker()
    await speaker.attach()
    await speaker.register(an_entry(weight=7.0))
    _, body, _ = await registry.request("POST", INSTANCES, json=BODY)
    assert body["instance"]["weight"] == 1.0
    key = body["instance"]["key"]
    assert key.startswith(f"{KEY}~")
    assert (await registry.request("PUT", f"{INSTANCES}/{key}/beat"))[0] == 202


async def test_an_instance_that_a_pods_operator_does_not_name_is_refused_and_not_kept(registry):
    operator = await registry.speaker()
    await operator.attach(kind="operator")
    await operator.register(an_entry(owner="u", cluster="eu-1"))
    problem = await registry.problem("POST", INSTANCES, json={**BODY, "port": 81, "owner": "u"})
    assert problem["code"] == "forbidden"
    assert registry.catalog.lease(http_lease(a_ref(port=81, owner="u"))) is None
    # What it names may say that it lives, whatever cluster it takes itself for.
    status, body, _ = await registry.request("POST", INSTANCES, json={**BODY, "owner": "u"})
    assert (status, body["instance"]["cluster"]) == (201, "eu-1")


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/services?namspace=x", "query"),
        ("GET", "/services?page=0", "page"),
        ("GET", "/services?page=x", "page"),
        ("GET", "/services?page=0000000000001234567", "page"),
        ("GET", "/services?size=1001", "size"),
        ("GET", f"/services?size={'1' * 5000}", "size"),
        ("GET", "/services?size=1&size=2", "size"),
        ("GET", "/services?namespace=a%20b", "namespace"),
        ("GET", "/services/a%20b", "service"),
        ("GET", "/services/a@@b", "service"),
        ("GET", "/services/orders?group=", "group"),
        ("GET", "/services/orders?healthy=yes", "healthy"),
        ("GET", "/services/orders?cluster=a,,b", "cluster"),
        ("GET", "/services/orders?selector=a%20b", "selector"),
        ("GET", f"/services/orders?selector={'a' * 1025}", "selector"),
        ("GET", "/services/orders?slector=a", "query"),
        ("GET", "/services/orders?wait=soon&revision=x", "wait"),
        ("GET", "/services/orders?wait=61s&revision=x", "wait"),
        ("GET", "/services/orders?wait=1s", "revision"),
        ("PUT", f"{INSTANCES}/nonsense/beat", "key"),
        ("PUT", f"{INSTANCES}/10.0.0.1:0/beat", "key"),
        ("PUT", f"{INSTANCES}/{KEY}/beat?term=-1", "term"),
        ("PUT", f"{INSTANCES}/{KEY}/beat?term={2**53 + 1}", "term"),
        ("PUT", f"{INSTANCES}/{KEY}/beat?term={'9' * 5000}", "term"),
        ("DELETE", f"{INSTANCES}/nonsense", "key"),
        ("PATCH", f"{INSTANCES}/nonsense", "key"),
        ("POST", f"{INSTANCES}?cluster=a", "query"),
        ("POST", f"{INSTANCES}?namespace=a@b", "namespace"),
    ],
)
async def test_bad_parameters_are_named(registry, method, path, field):
    problem = await registry.problem(method, path, json=BODY if method in {"POST", "PATCH"} else None)
    assert (problem["status"], problem["code"], problem["field"]) == (400, "bad_value", field)
    assert problem["accepted"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b'{"metadata":{"a":"\xff"}}', "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"weight":"heavy","ip":"10.0.0.1","port":8080}', "weight"),
        (b'{"enabled":1,"ip":"10.0.0.1","port":8080}', "enabled"),
        (b'{"metadata":{"a":1},"ip":"10.0.0.1","port":8080}', "metadata[...]"),
        (b'{"wieght":1,"ip":"10.0.0.1","port":8080}', "wieght"),
        (b'{"weight":-1,"ip":"10.0.0.1","port":8080}', "weight"),
        (b'{"weight":1e999,"ip":"10.0.0.1","port":8080}', "weight"),
        (b'{"metadata":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "metadata[...]"),
    ],
)
async def test_a_bad_body_is_refused_by_its_field_and_nothing_is_entered(registry, method, data, field):
    path = {"POST": INSTANCES, "PUT": f"{INSTANCES}/{KEY}/beat", "PATCH": f"{INSTANCES}/{KEY}"}[method]
    if method == "PATCH":
        await registry.request("POST", INSTANCES, json=BODY)
        data = data.replace(b',"ip":"10.0.0.1","port":8080', b"")
    problem = await registry.problem(method, path, data=data)
    assert (problem["status"], problem["code"]) == (400, "bad_value")
    assert problem["field"] == field
    service = registry.catalog.service(ORDERS)
    if method == "PATCH":
        assert service.instances[KEY].weight == 1.0
    else:
        assert service is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ip": None}, "ip"),
        ({"ip": "10.0.0.256"}, "ip"),
        ({"port": 0}, "port"),
        ({"port": 8080.5}, "port"),
        ({"port": True}, "port"),
        ({"cluster": "a b"}, "cluster"),
        ({"owner": "a:b"}, "owner"),
        ({"ephemeral": None}, "ephemeral"),
        ({"check": {"type": "tcp"}}, "check"),
        ({"ephemeral": False, "owner": "u"}, "owner"),
        ({"ephemeral": False, "check": {"type": "tcp", "timeout": 9.0}}, "check.timeout"),
        ({"ready": True}, "ready"),
        ({"service": "x"}, "service"),
        ({"metadata": {"preserved.heart.beat.timeout": "soon"}}, "metadata.preserved.heart.beat.timeout"),
    ],
)
async def test_a_bad_instance_is_refused_by_its_field(registry, change, field):
    problem = await registry.problem("POST", INSTANCES, json={**BODY, **change})
    assert (problem["status"], problem["field"]) == (400, field)
    assert registry.catalog.leases == 0


async def test_missing_fields_and_a_missing_body_are_named(registry):
    assert (await registry.problem("POST", INSTANCES, json={"ip": "10.0.0.1"}))["field"] == "port"
    assert (await registry.problem("POST", INSTANCES))["field"] == "body"
    await registry.request("POST", INSTANCES, json=BODY)
    assert (await registry.problem("PATCH", f"{INSTANCES}/{KEY}"))["field"] == "body"


async def test_a_full_beat_carries_the_instance_that_its_url_names(registry):
    problem = await registry.problem("PUT", f"{INSTANCES}/{KEY}/beat", json={**BODY, "port": 81})
    assert (problem["status"], problem["field"]) == (400, "body")
    assert registry.catalog.leases == 0


async def test_a_body_that_is_too_large_is_413(registry):
    problem = await registry.problem("POST", INSTANCES, data=b" " * (MAX_BODY_BYTES + 1))
    assert (problem["status"], problem["code"]) == (413, "too_large")


@pytest.mark.parametrize("path", ["/", "/service", "/services/orders/instances/x/y/z", "/session/x"])
async def test_an_unknown_path_is_404(registry, path):
    problem = await registry.problem("GET", path)
    assert (problem["status"], problem["code"]) == (404, "not_found")
    assert path in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/services", "GET"), ("POST", "/services/orders", "GET"), ("GET", INSTANCES, "POST")],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(registry, method, path, allowed):
    status, body, headers = await registry.request(method, path)
    assert (status, body["code"]) == (405, "method_not_allowed")
    assert headers["Content-Type"] == "application/problem+json"
    assert allowed in headers["Allow"]


async def test_an_unexpected_error_is_a_problem_too_and_tells_nothing(registry):
    registry.book.apply = None
    problem = await registry.problem("POST", INSTANCES, json=BODY)
    assert (problem["status"], problem["code"]) == (500, "internal")
    assert "NoneType" not in problem["detail"]


# --- health and metrics ---------------------------------------------------------------------------------


async def test_it_says_that_it_is_well_and_counts_what_matters(registry):
    await registry.request("POST", INSTANCES, json=BODY)
    await registry.request("PUT", f"{INSTANCES}/{KEY}/beat")
    await registry.problem("PUT", f"{INSTANCES}/10.0.0.9:1/beat")
    for path in ("/healthz", "/readyz"):
        async with registry._http.get(registry.url + path) as response:
            assert (response.status, await response.text()) == (200, "ok\n")
    async with registry._http.get(registry.url + "/metrics") as response:
        text = await response.text()
    lines = text.splitlines()
    assert 'rollbook_instances{ephemeral="true",healthy="true",namespace="public"} 1.0' in lines
    assert 'rollbook_beats_total{result="heard",transport="http"} 1.0' in lines
    assert 'rollbook_beats_total{result="refused",transport="http"} 1.0' in lines
    assert 'rollbook_refusals_total{code="unknown_instance"} 1.0' in lines
    assert "rollbook_leases 1.0" in lines
    assert "10.0.0.1" not in text


async def test_the_port_for_sessions_serves_nothing_else(registry):
    async with registry._http.get(f"http://{registry.address}/services") as response:
        assert response.status == 404


def test_refs_and_bodies_name_the_same():
    assert a_ref() == an_entry().ref
