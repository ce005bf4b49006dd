"""``rollbook``: the user's command line. It asks a sidecar or a registry over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import aiohttp
import click
import msgspec

from rollbook import __version__
from rollbook.model import Instance, ServiceList, ServicePage
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE
from rollbook.problems import ProblemDetails

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

PAGE = 1000
"""Services on one page that ``rollbook services`` asks for: as many as there may be."""

WAIT = 30
"""Seconds that one long poll of ``rollbook watch`` asks for."""


class _Event(msgspec.Struct):
    at: float
    key: str
    reason: str


class _Events(msgspec.Struct):
    events: list[_Event]


class _Entry(msgspec.Struct):
    publisher: str
    shown: bool
    because: str
    silent_for: float | None = None


class _Override(msgspec.Struct):
    enabled: bool | None = None
    weight: float | None = None
    reason: str = ""


class _Explanation(msgspec.Struct):
    because: str
    entries: list[_Entry]
    override: _Override | None = None


class _Explained(msgspec.Struct):
    key: str
    explanation: _Explanation
    events: list[_Event]


class _Disagreeing(msgspec.Struct):
    kind: str
    owner: str
    seconds: float
    services: list[str]
    addresses: list[str]
    because: str


class _Disagreements(msgspec.Struct):
    disagreements: list[_Disagreeing]


class _Overridden(msgspec.Struct):
    key: str
    instance: Instance | None


class _Reader:
    """Asks one address.

    Args:
        at: the address.
        http: asks.
        token: for what needs an identity; empty for none.
        scope: the namespace and group that questions are about.
    """

    def __init__(self, at: str, http: aiohttp.ClientSession, token: str = "", **scope: str) -> None:
        self._base = (at if "://" in at else f"http://{at}").rstrip("/")
        self._http = http
        self._scope = scope
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def get(
        self, path: str, type_: type[T], *, query: dict[str, str] | None = None, scoped: bool = True
    ) -> T:
        """Return what is at a path.

        Args:
            path: as the API has it.
            type_: what the answer is read as.
            query: parameters.
            scoped: whether it is about services, of one namespace and group.

        Raises:
            click.ClickException: with the problem's detail, or why nobody answers.
        """
        scope = self._scope if scoped else {}
        return self._read(path, await self._ask("GET", path, {**scope, **(query or {})}), type_)

    async def post(self, path: str, type_: type[T], body: object = None) -> T:
        """Ask for something to be done, and return the answer.

        Raises:
            click.ClickException: as above.
        """
        data = None if body is None else msgspec.json.encode(body)
        return self._read(path, await self._ask("POST", path, self._scope, data), type_)

    async def _ask(self, method: str, path: str, query: dict[str, str], data: bytes | None = None) -> bytes:
        limit = aiohttp.ClientTimeout(total=WAIT + 15)
        try:
            async with self._http.request(
                method, self._base + path, params=query, data=data, headers=self._headers, timeout=limit
            ) as response:
                answer = await response.read()
                if not response.ok:
                    raise click.ClickException(self._refusal(path, answer))
                return answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise click.ClickException(f"{self._base} does not answer: {error}") from None

    def _refusal(self, path: str, answer: bytes) -> str:
        details = self._read(path, answer, ProblemDetails)
        text = f"{details.code}: {details.detail}"
        if details.code == "not_found":
            text += f". {self._base} may be a sidecar; a registry knows more (--at HOST:8848)"
        if details.code == "unauthenticated":
            text += ". Name a file with a token (--token-file)"
        return text

    def _read(self, path: str, answer: bytes, type_: type[T]) -> T:
        try:
            # An answer without a body says all that it has to by its status.
            return msgspec.json.decode(answer or b"null", type=type_)
        except msgspec.DecodeError:
            raise click.ClickException(f"{self._base}{path} is neither a sidecar nor a registry") from None


def _of_service(service: str) -> str:
    return f"/services/{quote(service, safe='')}"


def _of_instance(service: str, key: str) -> str:
    return f"{_of_service(service)}/instances/{quote(key, safe=':')}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _state(instance: Instance) -> str:
    if not instance.enabled:
        return "disabled"
    if instance.healthy:
        return "healthy (unconfirmed)" if instance.unconfirmed else "healthy"
    return "not ready" if instance.alive else "not alive"


def _instances(found: ServiceList) -> str:
    if not found.instances:
        return f"{found.service} has no instances"
    rows = [("ADDRESS", "STATE", "WEIGHT", "CLUSTER", "ID")]
    rows += [
        (i.url_host, _state(i), f"{i.weight:g}", i.cluster, i.instance_id)
        for i in sorted(found.instances, key=lambda i: i.key)
    ]
    return _table(rows)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")


def _history(events: Sequence[_Event]) -> str:
    rows = [("TIME (UTC)", "INSTANCE", "WHAT HAPPENED")]
    rows += [(_time(e.at), e.key, e.reason) for e in events]
    return _table(rows)


def _explained(found: _Explained) -> str:
    explanation = found.explanation
    parts = [f"{found.key}: {explanation.because}"]
    if explanation.entries:
        rows = [("PUBLISHER", "SHOWN", "LAST HEARD", "WHY")]
        for entry in explanation.entries:
            heard = "" if entry.silent_for is None else f"{entry.silent_for:.1f} s ago"
            rows.append((entry.publisher, "yes" if entry.shown else "no", heard, entry.because))
        parts.append(_table(rows))
    if explanation.override is not None:
        override = explanation.override
        said = [] if override.enabled is None else ["enabled" if override.enabled else "offline"]
        said += [] if override.weight is None else [f"weight {override.weight:g}"]
        parts.append(f"override: {', '.join(said)}{f' ({override.reason})' if override.reason else ''}")
    if found.events:
        parts.append(_history(found.events))
    return "\n\n".join(parts)


@click.group()
@click.version_option(__version__)
@click.option(
    "--at",
    default="127.0.0.1:8849",
    show_default=True,
    envvar="ROLLBOOK_AT",
    help="A sidecar, or a registry (8848).",
)
@click.option("--namespace", default=DEFAULT_NAMESPACE, show_default=True, help="The services' namespace.")
@click.option("--group", default=DEFAULT_GROUP, show_default=True, help="The services' group.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="ROLLBOOK_TOKEN_FILE",
    help="A file with a service account token, for offline and online where the registry asks who writes.",
)
@click.pass_context
def main(context: click.Context, at: str, namespace: str, group: str, token_file: Path | None) -> None:
    """Ask Rollbook who serves what, and where."""
    token = token_file.read_text().strip() if token_file is not None else ""
    context.obj = {"at": at, "token": token, "namespace": namespace, "group": group}


def _run(context: click.Context, work: Any) -> None:
    async def session() -> None:
        async with aiohttp.ClientSession() as http:
            await work(_Reader(http=http, **context.obj))

    try:
        asyncio.run(session())
    except KeyboardInterrupt:
        sys.exit(130)


@main.command()
@click.pass_context
def services(context: click.Context) -> None:
    """List the services, with counts."""

    async def work(reader: _Reader) -> None:
        rows = [("SERVICE", "HEALTHY", "INSTANCES")]
        for number in itertools.count(1):
            query = {"size": str(PAGE), "page": str(number)}
            page = await reader.get("/services", ServicePage, query=query)
            rows += [(s.service, str(s.healthy), str(s.instances)) for s in page.services]
            if number * PAGE >= page.total or not page.services:
                break
        click.echo(_table(rows) if len(rows) > 1 else "no services")

    _run(context, work)


@main.command()
@click.argument("service")
@click.pass_context
def show(context: click.Context, service: str) -> None:
    """List a service's instances."""

    async def work(reader: _Reader) -> None:
        click.echo(_instances(await reader.get(_of_service(service), ServiceList)))

    _run(context, work)


@main.command()
@click.argument("service")
@click.pass_context
def watch(context: click.Context, service: str) -> None:
    """List a service's instances, again after each change."""

    async def work(reader: _Reader) -> None:
        revision = ""
        while True:
            query = {"wait": f"{WAIT}s", "revision": revision} if revision else {}
            found = await reader.get(_of_service(service), ServiceList, query=query)
            if found.revision != revision:
                revision = found.revision
                click.echo(f"{_instances(found)}\n")

    _run(context, work)


@main.command()
@click.argument("service")
@click.argument("key")
@click.pass_context
def explain(context: click.Context, service: str, key: str) -> None:
    """Say why an instance is as it is, or is not in the book.

    KEY is ip:port[:cluster[:owner]], as lists have it. Only a registry knows.
    """

    async def work(reader: _Reader) -> None:
        click.echo(_explained(await reader.get(f"{_of_instance(service, key)}/explain", _Explained)))

    _run(context, work)


@main.command()
@click.argument("service")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 200), help="At most so many.")
@click.pass_context
def events(context: click.Context, service: str, limit: int) -> None:
    """Say what has happened to a service lately, the newest first. Only a registry knows."""

    async def work(reader: _Reader) -> None:
        found = await reader.get(f"{_of_service(service)}/events", _Events, query={"limit": str(limit)})
        click.echo(_history(found.events) if found.events else f"nothing is remembered of {service}")

    _run(context, work)


@main.command()
@click.pass_context
def disagreements(context: click.Context) -> None:
    """Report pods about which Kubernetes and the book do not agree. Only a registry knows."""

    async def work(reader: _Reader) -> None:
        found = (await reader.get("/disagreements", _Disagreements, scoped=False)).disagreements
        rows = [("KIND", "FOR", "POD (UID)", "ADDRESSES", "SERVICES", "BECAUSE")]
        rows += [
            (d.kind, f"{d.seconds:.0f} s", d.owner, ",".join(d.addresses), ",".join(d.services), d.because)
            for d in sorted(found, key=lambda d: (d.kind, -d.seconds))
        ]
        click.echo(_table(rows) if found else "Kubernetes and the book agree")

    _run(context, work)


@main.command()
@click.argument("service")
@click.argument("key")
@click.option("--reason", default="", help="Why, for whoever asks later.")
@click.pass_context
def offline(context: click.Context, service: str, key: str, reason: str) -> None:
    """Take an instance out of balancing, until it is brought online.

    KEY is ip:port[:cluster[:owner]], as lists have it. It stays offline through restarts of its own and of
    the registry. Only a registry does this.
    """

    async def work(reader: _Reader) -> None:
        path = f"{_of_instance(service, key)}/offline"
        laid = await reader.post(path, _Overridden, {"reason": reason})
        absent = "" if laid.instance is not None else "; there is no such instance now"
        click.echo(f"{laid.key} of {service} is offline{absent}")

    _run(context, work)


@main.command()
@click.argument("service")
@click.argument("key")
@click.pass_context
def online(context: click.Context, service: str, key: str) -> None:
    """Take back that an instance is offline; it is enabled again if its publisher says so."""

    async def work(reader: _Reader) -> None:
        await reader.post(f"{_of_instance(service, key)}/online", type(None))
        click.echo(f"{key} of {service} is as its publisher says")

    _run(context, work)


if __name__ == "__main__":
    main()
