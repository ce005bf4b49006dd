"""Health: whether the application works, by TCP or HTTP, judged by a pure state machine.

One success makes it alive at once; it takes several failures in a row (2 unless set) to count as down, since
one may be a hiccup. What does not work is looked at every second, so that it comes (back) soon; what works,
every 5 seconds unless set.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp
import structlog

from rollbook.names import instance_key
from rollbook_sidecar import forms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rollbook.model import Entry, EntryRef
    from rollbook_sidecar.settings import Settings

log = structlog.get_logger("rollbook.sidecar")

EAGER_INTERVAL: Final = 1.0
"""Seconds between checks of what does not work (or of what never did yet), at most."""

_HTTP_OK: Final = range(200, 400)
"""What the kubelet takes for success as well."""


class Judgement:
    """What a row of checks says about the application.

    Args:
        failures: in a row, after which it counts as down.
        interval: seconds between checks while it works.
    """

    def __init__(self, *, failures: int = 2, interval: float = 5.0) -> None:
        self.alive = False
        self._failures = failures
        self._interval = interval
        self._failed = 0

    def take(self, *, ok: bool) -> bool:
        """Take one check's outcome; return whether it changed the verdict."""
        before = self.alive
        if ok:
            self._failed = 0
            self.alive = True
        else:
            self._failed += 1
            if self._failed >= self._failures:
                self.alive = False
        return self.alive != before

    @property
    def pause(self) -> float:
        """Seconds until the next check."""
        return self._interval if self.alive else min(EAGER_INTERVAL, self._interval)


class Target(NamedTuple):
    """One thing to check, and the entries that depend on it."""

    check: Callable[[], Awaitable[str]]
    refs: tuple[EntryRef, ...]
    shown: str


async def check_tcp(ip: str, port: int) -> str:
    """Return an empty text if somebody accepts a connection, else why not."""
    try:
        _, writer = await asyncio.open_connection(ip, port)
    except OSError as error:
        return str(error) or type(error).__name__
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""


def http_session() -> aiohttp.ClientSession:
    """Return what HTTP checks are made with: a new connection each time, and no other limit than ours.

    A kept connection may go on working where nobody can connect any more.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": "rollbook-sidecar"},
    )


async def check_http(http: aiohttp.ClientSession, url: str) -> str:
    """Return an empty text if the answer is a success, else why not; redirects are answers too."""
    try:
        async with http.get(url, allow_redirects=False) as response:
            return "" if response.status in _HTTP_OK else f"status {response.status}"
    except (aiohttp.ClientError, OSError) as error:
        return str(error) or type(error).__name__


def targets(settings: Settings, entries: Sequence[Entry], http: aiohttp.ClientSession) -> list[Target]:
    """Return what has to be checked; nothing if the settings say so.

    The registered address is checked, not loopback: what only loopback reaches is of no use to others.
    """
    kind, path = forms.health_check(settings.health_check)
    if kind == "none" or not entries:
        return []
    if kind == "tcp":
        return [
            Target(lambda e=e: check_tcp(e.ip, e.port), (e.ref,), f"tcp {e.ip} port {e.port}")  # type: ignore[misc]
            for e in entries
        ]
    named = [port for name, port in forms.ports(settings.ports) if name == "http"]
    entry = next((e for e in entries if e.port in named), entries[0])
    host = instance_key(ip=entry.ip, port=entry.port, cluster="").removesuffix(":")
    url = f"http://{host}{path}"
    return [Target(lambda: check_http(http, url), tuple(e.ref for e in entries), url)]


async def watch(
    target: Target,
    judgement: Judgement,
    tell: Callable[[tuple[EntryRef, ...], bool], None],
    *,
    timeout: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Check for ever, and tell each change of the verdict.

    Args:
        target: what to check.
        judgement: the state machine.
        tell: called with the entries concerned, and whether they are alive now.
        timeout: seconds that one check may take.
        sleep: how to wait.
    """
    while True:
        try:
            async with asyncio.timeout(timeout):
                fault = await target.check()
        except TimeoutError:
            fault = f"no answer within {timeout:g} s"
        except Exception as error:  # noqa: BLE001  # whatever a check dies of, the application did not pass it
            fault = repr(error)
        if judgement.take(ok=not fault):
            if fault:
                log.warning("application_down", check=target.shown, reason=fault)
            else:
                log.info("application_up", check=target.shown)
            tell(target.refs, judgement.alive)
        await sleep(judgement.pause)
