"""Ports for servers that cannot choose one themselves."""

from __future__ import annotations

import contextlib
import random
import socket

# Below what kernels give to connections (Linux from 32768, others from 49152): a port that was free a moment
# ago must not become some connection's own before the server has it.
_RANGE = range(20_000, 32_000)
_RNG = random.SystemRandom()


def free_port() -> int:
    """Return a port of loopback that nobody has, and that no outgoing connection will get."""
    for port in _RNG.sample(_RANGE, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("200 ports of loopback are taken")
