"""Insight: what has happened and why, which rule decided, where Kubernetes and the book do not agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from rollbook.names import url_host
from rollbook_registry.api import parameters
from rollbook_registry.api.doors import json_response
from rollbook_registry.api.routes import Answer, Route
from rollbook_registry.catalog.disagreements import Disagreeing, disagreements
from rollbook_registry.catalog.explain import Explanation, explain
from rollbook_registry.catalog.history import PER_SERVICE

if TYPE_CHECKING:
    from aiohttp import web

    from rollbook_registry.api.routes import Values
    from rollbook_registry.book import Book
    from rollbook_registry.catalog.history import Past

LIMIT: Final = parameters.whole_number(
    "limit", 100, low=1, high=PER_SERVICE, about="Events at most, the newest first."
)


class ServiceEvent(msgspec.Struct, kw_only=True):
    """Something that has happened to an instance.

    Attributes:
        at: Unix time in seconds.
        key: the instance.
        reason: the code of what happened, or why.
        revision: of the list afterwards.
    """

    at: float
    key: str
    reason: str
    revision: str


class ServiceEvents(msgspec.Struct, kw_only=True):
    """What has happened to a service lately."""

    namespace: str
    group: str
    service: str
    events: list[ServiceEvent]


class Explained(msgspec.Struct, kw_only=True):
    """Why an instance is as it is, or is not in the book, with what happened to it lately."""

    key: str
    explanation: Explanation
    events: list[ServiceEvent]


class Disagreements(msgspec.Struct, kw_only=True):
    """Where Kubernetes and the book do not agree."""

    disagreements: list[Disagreeing]


class Insight:
    """The handlers.

    Args:
        book: the book.
    """

    def __init__(self, book: Book) -> None:
        self._book = book

    def routes(self) -> list[Route]:
        """Return what is served here."""
        return [
            Route(
                method="GET",
                path="/services/{service}/events",
                handler=self.events,
                parameters=(*parameters.OF_SERVICE, LIMIT),
                answers=(Answer(status=200, about="What happened lately.", type=ServiceEvents),),
            ),
            Route(
                method="GET",
                path="/services/{service}/instances/{key}/explain",
                handler=self.explain,
                parameters=(parameters.KEY, *parameters.OF_SERVICE),
                answers=(
                    Answer(status=200, about="Why it is as it is, in the book or not in it.", type=Explained),
                ),
            ),
            Route(
                method="GET",
                path="/disagreements",
                handler=self.disagreements,
                answers=(
                    Answer(
                        status=200,
                        about="Pods that are silent but ready, gone but beating, or long terminating.",
                        type=Disagreements,
                    ),
                ),
            ),
        ]

    async def events(self, _: web.Request, values: Values) -> web.Response:
        """Say what has happened to a service lately, and why."""
        key = parameters.service_of(values)
        past = list(self._book.history.of(key))[: values[LIMIT]]
        namespace, group, name = key
        return json_response(
            ServiceEvents(
                namespace=namespace, group=group, service=name, events=[self._event(p) for p in past]
            )
        )

    async def explain(self, _: web.Request, values: Values) -> web.Response:
        """Say which rules made an instance what it is, or keep it out of the book."""
        ref = parameters.ref_of(values)
        explanation = explain(self._book.catalog, ref, self._book.now())
        wanted = f"{url_host(ref.ip)}:{ref.port}:"
        past = [p for p in self._book.history.of(ref.service_key) if p.key.startswith(wanted)]
        return json_response(
            Explained(key=ref.key, explanation=explanation, events=[self._event(p) for p in past])
        )

    async def disagreements(self, _: web.Request, values: Values) -> web.Response:
        """Report where Kubernetes and the book do not agree."""
        del values
        book = self._book
        found = disagreements(book.catalog, book.now(), stuck_after=book.settings.stuck_after)
        return json_response(Disagreements(disagreements=list(found)))

    def _event(self, past: Past) -> ServiceEvent:
        return ServiceEvent(
            at=past.at,
            key=past.key,
            reason=past.reason.value,
            revision=self._book.outlet.revision(past.number),
        )
