"""``rollbook``: the user's command line. It reads what a sidecar or a registry serves over HTTP."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

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

WAIT = 30
"""Seconds that one long poll of ``rollbook watch`` asks for."""


class _Reader:
    """GETs from one address."""

    def __init__(self, at: str, http: aiohttp.ClientSession, **scope: str) -> None:
        self._base = (at if "://" in at else f"http://{at}").rstrip("/")
        self._http = http
        self._scope = scope

    async def get(self, path: str, type_: type[T], **query: str) -> T:
        """Return what is at a path.

        Raises:
            click.ClickException: with the problem's detail, or why nobody answers.
        """
        limit = aiohttp.ClientTimeout(total=WAIT + 15)
        try:
            async with self._http.get(
                self._base + path, params={**self._scope, **query}, timeout=limit
            ) as response:
                data = await response.read()
                if not response.ok:
                    details = msgspec.json.decode(data, type=ProblemDetails)
                    raise click.ClickException(f"{details.code}: {details.detail}")
                return msgspec.json.decode(data, type=type_)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise click.ClickException(f"{self._base} does not answer: {error}") from None
        except msgspec.DecodeError:
            raise click.ClickException(f"{self._base}{path} is neither a sidecar nor a registry") from None


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
@click.pass_context
def main(context: click.Context, at: str, namespace: str, group: str) -> None:
    """Ask Rollbook who serves what, and where."""
    context.obj = {"at": at, "namespace": namespace, "group": group}


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
        page = await reader.get("/services", ServicePage, size="1000")
        rows = [("SERVICE", "HEALTHY", "INSTANCES")]
        rows += [(s.service, str(s.healthy), str(s.instances)) for s in page.services]
        click.echo(_table(rows) if page.services else "no services")

    _run(context, work)


@main.command()
@click.argument("service")
@click.pass_context
def show(context: click.Context, service: str) -> None:
    """List a service's instances."""

    async def work(reader: _Reader) -> None:
        click.echo(_instances(await reader.get(f"/services/{service}", ServiceList)))

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
            found = await reader.get(f"/services/{service}", ServiceList, **query)
            if found.revision != revision:
                revision = found.revision
                click.echo(f"{_instances(found)}\n")

    _run(context, work)


if __name__ == "__main__":
    main()
