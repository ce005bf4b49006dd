"""/openapi.json says what is served, all of it and nothing else."""

from __future__ import annotations

import re

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from rollbook.problems import STATUS
from rollbook_registry.api.openapi import document
from rollbook_registry.api.parameters import NAMESPACE
from rollbook_registry.api.routes import Answer, Body, Route


@pytest.fixture
async def description(registry):
    status, body, headers = await registry.request("GET", "/openapi.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    return body


def operations(description):
    for path, item in description["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def follow(description, schema):
    while "$ref" in schema:
        node = description
        for step in schema["$ref"].removeprefix("#/").split("/"):
            node = node[step]
        schema = node
    return schema


async def test_it_is_openapi(description):
    OpenAPIV31SpecValidator(description).validate()
    assert description["openapi"] == "3.1.0"


async def test_it_describes_exactly_what_is_served(registry, description):
    served = {
        (resource.canonical, route.method.lower())
        for resource in registry.server.application.router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    assert served == {(path, method) for path, method, _ in operations(description)}


async def test_other_methods_are_answered_405_with_those_that_are_described(registry, description):
    for path, item in description["paths"].items():
        where = path.replace("{key}", "10.0.0.1:80").replace("{service}", "orders")
        where = where.replace("{namespace}", "test")
        status, body, headers = await registry.request("OPTIONS", where)
        assert (status, body["code"]) == (405, "method_not_allowed")
        assert set(headers["Allow"].lower().split(",")) - {"head"} == set(item), path


async def test_every_parameter_of_a_path_is_described(description):
    for path, method, operation in operations(description):
        named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), (method, path)


async def test_every_operation_says_what_it_is_for_and_has_a_name_of_its_own(description):
    names = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(names)) == len(names)
    for path, method, operation in operations(description):
        assert operation["summary"], (method, path)
        assert all(p["description"] for p in operation.get("parameters", ()))
        assert all(r["description"] for r in operation["responses"].values())


async def test_every_problem_has_a_code_that_there_is_under_its_status(description):
    shown = set()
    for path, method, operation in operations(description):
        for status, response in operation["responses"].items():
            problem = response.get("content", {}).get("application/problem+json")
            if problem is not None:
                codes = problem["schema"]["allOf"][1]["properties"]["code"]["enum"]
                assert {int(STATUS[code]) for code in codes} == {int(status)}, (method, path)
                assert set(problem["examples"]) == set(codes)
                shown.update(codes)
            else:
                assert int(status) < 400 or path in {"/healthz", "/readyz"}
    assert {"bad_value", "unknown_instance", "lease_ended", "pod_gone", "not_ready", "forbidden"} <= shown


async def test_every_component_is_used(description):
    text = msgspec.json.encode(description).decode()
    for name in description["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text


async def test_reads_ask_for_no_identity_and_writes_do(description):
    for path, method, operation in operations(description):
        writes = method != "get" or path == "/session"
        assert ("security" in operation) is writes, (method, path)
        assert ("401" in operation["responses"]) is writes


async def test_limits_are_those_of_the_code(description):
    sizes = {p["name"]: p["schema"] for p in description["paths"]["/services"]["get"]["parameters"]}
    assert (sizes["size"]["minimum"], sizes["size"]["maximum"]) == (1, 1000)
    body = description["components"]["schemas"]["InstanceBody"]["properties"]
    assert (body["port"]["minimum"], body["port"]["maximum"]) == (1, 65535)
    assert body["weight"]["maximum"] == 10000
    assert body["metadata"]["maxProperties"] == 128


class Thing(msgspec.Struct):
    """A thing."""

    name: str


async def make_thing(request, values):
    """Make a thing.

    More about it.
    """
    raise NotImplementedError


def test_a_route_that_is_added_is_described_without_further_ado():
    route = Route(
        method="POST",
        path="/things",
        handler=make_thing,
        parameters=(NAMESPACE,),
        body=Body(type=Thing, about="The thing.", example={"name": "x"}),
        answers=(Answer(status=201, about="It is made.", type=list[Thing], example=[Thing("x")]),),
        problems=("limit_reached",),
        writes=True,
    )
    described = document([route])
    OpenAPIV31SpecValidator(described).validate()
    operation = described["paths"]["/things"]["post"]
    assert (operation["operationId"], operation["summary"]) == ("make_thing", "Make a thing")
    assert operation["description"] == "More about it."
    assert set(operation["responses"]) == {
        "201",
        "400",
        "401",
        "403",
        "408",
        "413",
        "429",
        "431",
        "500",
        "503",
    }
    created = operation["responses"]["201"]["content"]["application/json"]
    assert created["example"] == [{"name": "x"}]
    assert follow(described, created["schema"]["items"])["description"] == "A thing."
