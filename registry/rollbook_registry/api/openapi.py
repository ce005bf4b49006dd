"""The API's description: OpenAPI 3.1, made from the routes that are served.

Nothing is written here about any one route. What a route declares (:mod:`rollbook_registry.api.routes`)
becomes an operation; the structs of bodies and answers become the components that it refers to; its problems
are grouped by the status that goes with them.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

import rollbook
from rollbook.problems import CONTENT_TYPE, STATUS, Problem, ProblemDetails
from rollbook_registry.api.routes import JSON, Answer, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rollbook_registry.api.routes import Parameter, Values

VERSION: Final = "3.1.0"
PATH: Final = "/openapi.json"

_REF: Final = "#/components/schemas/{name}"
_PROBLEM: Final = _REF.format(name="ProblemDetails")
_NOBODY: Final[dict[str, list[str]]] = {}

Schema = dict[str, Any]


def described(routes: Sequence[Route]) -> list[Route]:
    """Return these routes and the one that describes them all, itself included."""
    made: list[bytes] = []

    async def openapi(_: web.Request, __: Values) -> web.Response:
        """Describe this API, as OpenAPI 3.1."""
        if not made:
            made.append(msgspec.json.encode(document(everything)))
        return web.Response(body=made[0], content_type=JSON)

    everything = [
        *routes,
        Route(
            method="GET",
            path=PATH,
            handler=openapi,
            answers=(Answer(status=200, about="The description.", type=dict[str, Any]),),
        ),
    ]
    return everything


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Make the description of some routes."""
    types = [ProblemDetails, *_types(routes)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, lambda type_: by_type[_key(type_)])
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": VERSION,
        "info": {
            "title": "Rollbook registry",
            "version": rollbook.__version__,
            "summary": "A service registry for Kubernetes.",
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        # Relative: whoever reads it has just come from there.
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A Kubernetes service account token for the audience `rollbook`, where "
                    "the registry runs with `--auth kubernetes`.",
                }
            },
        },
    }


def _types(routes: Iterable[Route]) -> list[Any]:
    found: dict[str, Any] = {}
    for route in routes:
        for type_ in (route.body.type if route.body else None, *(a.type for a in route.answers)):
            if type_ is not None:
                found[_key(type_)] = type_
    return list(found.values())


def _key(type_: Any) -> str:
    # Generic aliases such as list[X] are made anew each time, and not all of them can be hashed.
    return repr(type_)


def _operation(route: Route, schema: Callable[[Any], Schema]) -> dict[str, Any]:
    summary, _, more = inspect.cleandoc(route.handler.__doc__ or "").partition("\n")
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": summary.rstrip("."),
        "responses": {str(answer.status): _answer(answer, schema) for answer in route.answers},
    }
    if more.strip():
        operation["description"] = more.strip()
    if route.parameters:
        operation["parameters"] = [_parameter(p) for p in route.parameters]
    if route.body is not None:
        form = schema(route.body.type)
        media: dict[str, Any] = {
            "schema": {"allOf": [form, dict(route.body.also)]} if route.body.also else form
        }
        if route.body.example is not None:
            media["example"] = msgspec.to_builtins(route.body.example)
        operation["requestBody"] = {
            "description": route.body.about,
            "required": route.body.required,
            "content": {JSON: media},
        }
    if route.writes:
        # Either: which of the two is asked for is a setting.
        operation["security"] = [{"token": []}, _NOBODY]
    by_status: dict[int, list[str]] = {}
    for code in route.codes:
        by_status.setdefault(int(STATUS[code]), []).append(code)
    for status, codes in sorted(by_status.items()):
        operation["responses"].setdefault(str(status), {"description": "", "content": {}})
        response = operation["responses"][str(status)]
        response["description"] = " ".join(filter(None, (response["description"], _named(codes))))
        response["content"][CONTENT_TYPE] = _problem(status, codes)
    return operation


def _parameter(parameter: Parameter[Any]) -> dict[str, Any]:
    described = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.about,
        "required": parameter.where == "path",
        "schema": dict(parameter.schema),
    }
    if parameter.example is not None:
        described["example"] = parameter.example
    return described


def _answer(answer: Answer, schema: Callable[[Any], Schema]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.about}
    if answer.type is not None:
        media: dict[str, Any] = {"schema": schema(answer.type)}
        if answer.example is not None:
            media["example"] = msgspec.to_builtins(answer.example)
        response["content"] = {answer.media: media}
    if answer.headers:
        response["headers"] = {
            name: {"description": about, "schema": {"type": "string"}, "required": True}
            for name, about in answer.headers.items()
        }
    return response


def _named(codes: Iterable[str]) -> str:
    return f"A problem: {' or '.join(f'`{code}`' for code in codes)}."


def _problem(status: int, codes: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": {
            "allOf": [
                {"$ref": _PROBLEM},
                {"properties": {"code": {"enum": list(codes)}, "status": {"const": status}}},
            ]
        },
        "examples": {
            code: {"value": msgspec.to_builtins(Problem(code, "what happened, in one sentence").details())}
            for code in codes
        },
    }
