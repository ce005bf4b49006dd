"""What is set on sockets, and how many there may be."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

SPARE_DESCRIPTORS: Final = 128
"""Descriptors that are not clients': listeners, files, the API server, gRPC."""

PROBES: Final = 3
"""Unanswered TCP keepalive probes after which a peer is given up."""


def notice_the_dead(taken: socket.socket | None, after: float) -> None:
    """Have the kernel notice a peer that is gone without a word (half-open connections).

    An idle connection is probed, one with data on its way has :data:`PROBES` intervals to get it across
    (RFC 5482). What a platform does not have is left out.

    Args:
        taken: an accepted socket.
        after: seconds of silence until the first probe; between probes a third of that.
    """
    if taken is None or taken.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    options = {
        "TCP_KEEPIDLE": max(1, round(after)),
        "TCP_KEEPINTVL": max(1, round(after / PROBES)),
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": round(2000 * after),
    }
    # The peer may have gone already.
    with contextlib.suppress(OSError):
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            option = getattr(socket, name, None)
            if option is not None:
                taken.setsockopt(socket.IPPROTO_TCP, option, value)


def make_room(wanted: int) -> int:
    """Let this process have as many connections as it may, if the system allows; return how many it does."""
    try:
        import resource  # noqa: PLC0415  # not to be had on every platform
    except ImportError:
        return wanted
    needed = wanted + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        soft = needed if hard == unlimited else min(needed, hard)
        # Some systems have a lower limit than they say.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == unlimited else max(1, min(wanted, soft - SPARE_DESCRIPTORS))
