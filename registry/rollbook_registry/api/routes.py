"""Routes: what each door takes and answers, declared once.

The same :class:`Route` reads a request, is served (:meth:`Route.definition`) and is described
(:mod:`rollbook_registry.api.openapi`). To add one, write the handler with its docstring and put a ``Route``
in the list that its class returns; nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeVar

from aiohttp import web

from rollbook.problems import bad_value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Mapping

    from rollbook_registry.auth import Identity
    from rollbook_registry.connections import Plain

T = TypeVar("T")

JSON: Final = "application/json"
TEXT: Final = "text/plain"


@dataclass(frozen=True, kw_only=True, eq=False)
class Parameter(Generic[T]):
    """A parameter of a path or a query.

    Attributes:
        name: as it is spelled, and as errors call it.
        about: what it does, for people.
        schema: its form, as JSON Schema; nothing that it forbids may be accepted by ``read``.
        read: turns the text into the value, or raises ``bad_value`` naming the parameter.
        default: the value of one that is not given.
        where: paths have all of their parameters, queries any.
        example: a text that is accepted.
    """

    name: str
    about: str
    schema: Mapping[str, Any]
    read: Callable[[str], T]
    default: T
    where: Literal["query", "path"] = "query"
    example: str | None = None


class Values:
    """The parameters of one request, read: ``values[PAGE]`` is a number."""

    __slots__ = ("_given",)

    def __init__(self, given: dict[Parameter[Any], Any]) -> None:
        self._given = given

    def __getitem__(self, parameter: Parameter[T]) -> T:
        value: T = self._given.get(parameter, parameter.default)
        return value


class Reply(NamedTuple):
    """What a request is answered that went well.

    Attributes:
        status: the HTTP status.
        body: JSON, or nothing.
        etag: the list's revision, in quotes; empty where there is none.
    """

    status: int
    body: bytes = b""
    etag: str = ""

    def response(self) -> web.Response:
        """Return what aiohttp sends."""
        headers = {"ETag": self.etag} if self.etag else None
        return web.Response(
            status=self.status,
            body=self.body or None,
            content_type=JSON if self.body else None,
            headers=headers,
        )


AtOnce = Callable[["Plain", "Identity"], Reply | None]
"""Answers a plain request; ``None``, or a problem, leaves it to the handler, and nothing has happened."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """What a request carries.

    Attributes:
        type: the struct that it is read as.
        required: whether it must be there.
        example: one that is accepted.
        also: what has to hold beside the type, as JSON Schema.
    """

    type: type
    about: str
    required: bool = True
    example: object = None
    also: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request that is carried out is answered.

    Attributes:
        status: the HTTP status.
        about: when, and what it says.
        type: of what is in the body; ``None`` for an empty one.
        media: the body's content type.
        headers: those that mean something, with their meaning.
        example: a body.
    """

    status: int
    about: str
    type: Any = None
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    example: object = None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one path.

    Attributes:
        method: ``GET`` is answered to ``HEAD`` too.
        path: with parameters in braces.
        handler: a coroutine function; the first line of its docstring is the summary, its name the
            operation's id.
        parameters: of the path and the query. What is not among them is refused.
        body: what the request carries.
        answers: of success.
        problems: codes of :data:`rollbook.problems.STATUS` that this route can answer, beside those that
            come with parameters, bodies, identities and failures.
        writes: whether it needs an identity where writes do.
        open_query: whether parameters that are not known are ignored: for what others call in their way.
        direct: makes, of a request's parameters, what answers such requests without waiting for anything
            (:mod:`rollbook_registry.api.direct`); it is kept for the next request with the same ones.
    """

    method: str
    path: str
    handler: Callable[[web.Request, Values], Awaitable[web.StreamResponse]]
    answers: tuple[Answer, ...]
    parameters: tuple[Parameter[Any], ...] = ()
    body: Body | None = None
    problems: tuple[str, ...] = ()
    writes: bool = False
    open_query: bool = False
    direct: Callable[[Values], AtOnce] | None = None

    @property
    def operation(self) -> str:
        """The name of the operation."""
        return self.handler.__name__

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes of problems that it can answer."""
        found = dict.fromkeys(self.problems)
        if self.parameters or self.body is not None or not self.open_query:
            found["bad_value"] = None
        if self.body is not None:
            found.update(dict.fromkeys(("too_large", "too_slow")))
        if self.writes:
            found.update(dict.fromkeys(("unauthenticated", "token_expired", "forbidden")))
        # Of every connection, whatever it asks for.
        found.update(dict.fromkeys(("head_too_large", "registry_full", "internal")))
        return tuple(found)

    def definition(self) -> web.RouteDef:
        """Return what aiohttp serves."""
        handler = self.handler

        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(request, self.read(request.match_info, request.query.items()))

        return (
            web.get(self.path, handle) if self.method == "GET" else web.route(self.method, self.path, handle)
        )

    def read(self, path: Mapping[str, str], query: Collection[tuple[str, str]]) -> Values:
        """Read a request's parameters.

        Args:
            path: the texts in the path, by name.
            query: the names and texts in the query, in order.

        Raises:
            Problem: 400 ``bad_value`` for one that is wrong, not known here, or given twice.
        """
        given = {}
        for name, text in query:
            parameter = self._of_query.get(name)
            if parameter is None:
                if self.open_query:
                    continue
                raise bad_value("query", name, ", ".join(self._of_query) or "no parameters")
            if parameter in given:
                raise bad_value(name, [text for other, text in query if other == name], "one value")
            given[parameter] = parameter.read(text)
        for name, text in path.items():
            parameter = self._of_path[name]
            given[parameter] = parameter.read(text)
        return Values(given)

    @cached_property
    def _of_query(self) -> dict[str, Parameter[Any]]:
        return {p.name: p for p in self.parameters if p.where == "query"}

    @cached_property
    def _of_path(self) -> dict[str, Parameter[Any]]:
        return {p.name: p for p in self.parameters if p.where == "path"}
