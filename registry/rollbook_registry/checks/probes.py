"""Probes: asking an instance once, over a connection of its own.

TCP: somebody accepts a connection. HTTP: a GET is answered with a status from 200 to 399; redirects are
answers, not instructions, and nothing after the status line is looked at. Both open their connection in one
place, which looks a host's name up, leaves out the addresses that the settings refuse, and tries the others
with a short head start for each (RFC 8305).

HTTP is spoken by hand. A client library would ask a second time when the first connection breaks, look the
name up by itself, and parse and keep what is only thrown away here.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

import aiohappyeyeballs

from rollbook_registry.checks.deadline import LaggedError, deadline
from rollbook_registry.checks.verdict import Answer, Finding, Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rollbook_registry.checks.reach import Reach

MAX_LINE: Final = 8192
"""Bytes of one line of an HTTP answer; of what follows no more than twice that is ever buffered."""

MAX_INTERIM: Final = 8
"""Interim answers (status 1xx) before the real one."""

MAX_INTERIM_LINES: Final = 128
"""Header lines of one interim answer."""

MAX_ADDRESSES: Final = 8
"""Addresses of one host name that are tried."""

HEAD_START: Final = 0.25
"""Seconds that an address has for itself before the next is tried beside it (RFC 8305, section 5)."""

LOOKUP_THREADS: Final = 4
"""Names that are looked up at a time: the system's resolver blocks, and a thread can't be interrupted."""

MAX_DETAIL: Final = 200
"""Characters of what is said about a failure."""

_OK: Final = range(200, 400)
_SWITCHING: Final = 101
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")

_OURS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
"""Errors that say something about this machine and not about the other."""

_NO_SUCH_HOST: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)


class _FoundError(Exception):
    """A probe ends early, with this answer."""

    def __init__(self, finding: Finding, detail: str) -> None:
        super().__init__(detail)
        self.answer = Answer(finding, detail[:MAX_DETAIL])


class Probes:
    """Asks instances. Leave the ``with`` block and its threads end.

    Args:
        reach: where it may go.
        lookup: gives the addresses of a host name, or raises ``OSError``; by default the system's resolver.
    """

    def __init__(
        self, reach: Reach, *, lookup: Callable[[str], Awaitable[Sequence[str]]] | None = None
    ) -> None:
        self._reach = reach
        self._lookup = lookup or self._ask_system
        # Threads of its own: a name server that doesn't answer must not hold up anybody else.
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="check-lookup")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self, target: Target, *, timeout: float) -> Answer:
        """Ask once, within ``timeout`` seconds for all of it."""
        found_host = False
        try:
            async with deadline(timeout):
                addresses = _literal(target.host) or await self._look_up(target.host)
                found_host = True
                connection = await _connect(self._allowed(target, addresses), target.port)
                if target.type == "http":
                    return await _get(connection, target)
                connection.close()
                return Answer(Finding.PASSED)
        except _FoundError as found:
            return found.answer
        except LaggedError:
            return Answer(Finding.OWN_LAG, "the registry was too slow to hear an answer")
        except TimeoutError:
            if not found_host:
                return Answer(Finding.NO_NAME_SERVER, f"{target.host} was not looked up within {timeout:g} s")
            return Answer(Finding.TIMED_OUT, f"no answer within {timeout:g} s")

    async def _look_up(self, host: str) -> Sequence[str]:
        try:
            return await self._lookup(host)
        except (OSError, UnicodeError) as error:
            absent = isinstance(error, UnicodeError) or error.errno in _NO_SUCH_HOST
            finding = Finding.UNRESOLVED if absent else Finding.NO_NAME_SERVER
            raise _FoundError(finding, f"{host}: {_said(error)}") from None

    async def _ask_system(self, host: str) -> Sequence[str]:
        def ask() -> list[str]:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(info[4][0]) for info in found))

        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def _allowed(self, target: Target, addresses: Sequence[str]) -> list[str]:
        if not addresses:
            raise _FoundError(Finding.UNRESOLVED, f"{target.host} has no address")
        refusals = {address: self._reach.refusal(address) for address in addresses}
        allowed = [address for address, refusal in refusals.items() if not refusal]
        if not allowed:
            why = ", ".join(f"{address} is in {refusal}" for address, refusal in refusals.items())
            raise _FoundError(
                Finding.FORBIDDEN, f"{target.host} may not be checked: {why}; see --check-allow"
            )
        return allowed[:MAX_ADDRESSES]


def _literal(host: str) -> Sequence[str]:
    """Return an address as the only one of its host; nothing if it is a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ()
    return (host,)


async def _connect(addresses: Sequence[str], port: int) -> socket.socket:
    """Return a connection to the first of these that accepts one."""
    infos = [
        (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            "",
            (address, port, 0, 0) if ":" in address else (address, port),
        )
        for address in addresses
    ]
    try:
        connection = await aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=HEAD_START)
        if is_to_itself(connection):
            connection.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
    except TimeoutError as error:
        # The system gave up connecting; a deadline of ours comes as a cancellation.
        raise _FoundError(Finding.TIMED_OUT, _said(error)) from None
    except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for addresses that it can't use
        raise _FoundError(_of_connecting(error), _said(error)) from None
    return connection


def is_to_itself(connection: socket.socket) -> bool:
    """Say whether a connection has only itself at its other end.

    The system may give an outgoing connection the very port that it goes to, if that is on this machine and
    nobody listens there; TCP then connects it to itself (simultaneous open: RFC 9293, section 3.5).
    """
    try:
        return bool(connection.getsockname() == connection.getpeername())
    except OSError:  # it has ended again, so there was somebody to end it
        return False


def _of_connecting(error: OSError | RuntimeError) -> Finding:
    number = getattr(error, "errno", None)
    if number in _OURS:
        return Finding.OWN_FAULT
    return Finding.REFUSED if number == errno.ECONNREFUSED else Finding.UNREACHABLE


async def _get(connection: socket.socket, target: Target) -> Answer:
    try:
        reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE)
    except BaseException:
        connection.close()
        raise
    try:
        writer.write(_request(target))
        status = await _status(reader)
    except OSError as error:
        return Answer(Finding.BAD_ANSWER, _said(error))
    finally:
        # Nothing that is still on its way matters; closing in order would wait for it.
        writer.transport.abort()
    if status in _OK:
        return Answer(Finding.PASSED)
    return Answer(Finding.BAD_STATUS, f"status {status}")


def _request(target: Target) -> bytes:
    lines = (
        f"GET {target.path} HTTP/1.1",
        f"Host: {target.authority}",
        "User-Agent: rollbook-registry",
        "Accept: */*",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


async def _status(reader: asyncio.StreamReader) -> int:
    """Read an answer's status; interim ones (RFC 9110, section 15.2) are passed over."""
    for _ in range(MAX_INTERIM):
        found = _STATUS.fullmatch(await _line(reader))
        if found is None:
            raise _FoundError(Finding.BAD_ANSWER, "the answer is not HTTP/1")
        status = int(found[1])
        if status >= 200 or status == _SWITCHING:  # noqa: PLR2004  # where final answers begin
            return status
        for _ in range(MAX_INTERIM_LINES):
            if not (await _line(reader)).strip():
                break
        else:
            break
    raise _FoundError(Finding.BAD_ANSWER, "interim answers without end")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readline()
    except ValueError:
        raise _FoundError(Finding.BAD_ANSWER, f"a line of more than {MAX_LINE} bytes") from None
    if not line.endswith(b"\n"):
        raise _FoundError(Finding.BAD_ANSWER, "the connection was closed before the answer")
    return line


def _said(error: Exception) -> str:
    number = getattr(error, "errno", None) or 0
    if number > 0:  # negative ones are the resolver's, which brings its own words
        return os.strerror(number)
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return text[:MAX_DETAIL]
