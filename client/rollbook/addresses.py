"""Addresses: how people name a registry, and the URLs that this means."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from rollbook.names import url_host
from rollbook.problems import Problem, bad_value

DEFAULT_PORT: Final = 7848
"""Where a registry takes sessions unless told otherwise."""

DEFAULT_HTTP_PORT: Final = 8848
"""Where it answers plain HTTP; it takes sessions there too."""

_SCHEMES: Final = {"rollbook": "ws", "rollbooks": "wss", "ws": "ws", "wss": "wss"}


def session_url(address: str) -> str:
    """Turn ``rollbook://host:port``, ``host:port`` or ``host`` into the session's WebSocket URL.

    Raises:
        Problem: 400 ``bad_value``.
    """
    accepted = "host, host:port, rollbook(s)://host:port, or ws(s)://host:port"
    text = address if "://" in address else f"rollbook://{address}"
    try:
        parts = urlsplit(text)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise bad_value("registry", address, accepted) from None
    scheme = _SCHEMES.get(parts.scheme)
    extra = parts.path not in {"", "/"} or parts.query or parts.fragment or parts.username is not None
    if scheme is None or not parts.hostname or extra:
        raise bad_value("registry", address, accepted)
    return f"{scheme}://{url_host(parts.hostname)}:{port}/session"


def http_url(session: str, port: int) -> str:
    """Return the base of the HTTP API at the host of a session's URL, with TLS if the session has it."""
    parts = urlsplit(session)
    scheme = "https" if parts.scheme == "wss" else "http"
    return f"{scheme}://{url_host(parts.hostname or '')}:{port}"


def check_addresses(addresses: tuple[str, ...], field: str) -> None:
    """Check the registries' addresses of a setting.

    Raises:
        Problem: 400 ``bad_value`` naming the setting, and the address that is wrong.
    """
    if not addresses:
        raise bad_value(field, "", "at least one host[:port]")
    for address in addresses:
        try:
            session_url(address)
        except Problem as problem:
            raise bad_value(field, address, problem.accepted) from None
