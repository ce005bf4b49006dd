"""Plain requests: what can be read off the bytes without a parser, and nothing that can be read in two ways.

A request is plain if one piece of received bytes begins with all of its head, and every line of the head is
of a form that leaves no choice: HTTP/1.1, a method whose body is framed like any other's, one ``Host``,
headers that are known here not to change how a message is framed or handled, each once, in visible ASCII.
Everything else is nobody's fault, but the parser's business (RFC 9112 names what goes wrong when two readers
of one stream disagree: section 11.2, "request smuggling"). So nothing here ever refuses a request; it only
does not recognise it.

The same clients send the same heads again and again, so those are remembered as they were understood.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD_BYTES: Final = 4096
"""Of a head that is plain."""

REMEMBERED: Final = 1024
"""Heads that are remembered; the least lately sent are forgotten."""

_HARMLESS: Final = frozenset(
    {
        b"accept",
        b"accept-charset",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"cache-control",
        b"client-version",
        b"connection",
        b"content-length",
        b"content-type",
        b"dnt",
        b"host",
        b"if-none-match",
        b"origin",
        b"pragma",
        b"priority",
        b"referer",
        b"request-module",
        b"requestid",
        b"traceparent",
        b"tracestate",
        b"user-agent",
    }
)
"""Headers that mean nothing to the framing of a message, or whose meaning is read here."""

# What follows CONNECT is no body, whatever the headers say (RFC 9110, section 9.3.6).
_FIRST = re.compile(rb"(?!CONNECT )[A-Z]+ [!-~]+ HTTP/1\.1")
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([!-~](?:[ -~]*[!-~])?)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,8}")


class Head(NamedTuple):
    """What the headers of a plain request say.

    Attributes:
        length: bytes of the body.
        authorization: the header, empty without one.
        if_none_match: the header, empty without one.
    """

    length: int
    authorization: str
    if_none_match: str


class Plain(NamedTuple):
    """A plain request.

    Attributes:
        line: its first line, without the line's end: method, target and version.
        body: as much of it as came.
        missing: bytes of the body that did not come.
    """

    line: bytes
    head: Head
    body: bytes
    missing: int


class Reader:
    """Recognises plain requests.

    Args:
        max_body: bytes of a body; with more, a request is not plain.
    """

    def __init__(self, *, max_body: int) -> None:
        self._max_body = max_body
        self._head = lru_cache(REMEMBERED)(self._understand)

    def read(self, data: bytes) -> Plain | None:
        """Return the one request that this is, or begins; ``None`` if that is not plain to see."""
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        line_end = data.find(b"\r\n", 0, end + 2)
        # Without an end both are below zero or out of order, and the first line alone is no head.
        if not 0 < line_end < end:
            return None
        line, block = data[:line_end], data[line_end:end]
        head = self._head(block)
        if head is None or _FIRST.fullmatch(line) is None:
            return None
        missing = end + 4 + head.length - len(data)
        # What follows on a request would be another one.
        if missing < 0:
            return None
        return Plain(line, head, data[end + 4 :] if head.length else b"", missing)

    def _understand(self, block: bytes) -> Head | None:
        headers: dict[bytes, bytes] = {}
        for line in block[2:].split(b"\r\n"):
            found = _LINE.fullmatch(line)
            if found is None:
                return None
            name, value = found[1].lower(), found[2]
            if name in headers or (name not in _HARMLESS and not name.startswith(b"x-")):
                return None
            headers[name] = value
        length = headers.get(b"content-length", b"0")
        if (
            b"host" not in headers
            or headers.get(b"connection", b"keep-alive").lower() != b"keep-alive"
            or not _LENGTH.fullmatch(length)
            or int(length) > self._max_body
        ):
            return None
        return Head(
            int(length),
            headers.get(b"authorization", b"").decode(),
            headers.get(b"if-none-match", b"").decode(),
        )


class Bypass(NamedTuple):
    """The way past aiohttp.

    Attributes:
        reader: recognises plain requests.
        answer: returns a whole response, or ``None`` for what is left to aiohttp.
    """

    reader: Reader
    answer: Callable[[Plain], bytes | None]
