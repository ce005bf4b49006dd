"""Address: which of this machine's addresses others reach it by, when nobody has said.

It is the one from which this machine would speak to the registry: connecting a UDP socket asks the kernel's
routes for it and sends nothing. A registry on loopback gives loopback.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rollbook.addresses import session_url

if TYPE_CHECKING:
    from collections.abc import Sequence


async def local_address(registries: Sequence[str]) -> str:
    """Return the address that faces the first registry that has a route; IPv4 if there is a choice.

    Raises:
        OSError: no registry's name can be resolved, or none has a route.
    """
    loop = asyncio.get_running_loop()
    errors = []
    for registry in registries:
        parts = urlsplit(session_url(registry))
        try:
            found = await loop.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            errors.append(f"{registry}: {error}")
            continue
        for family, kind, protocol, _, target in sorted(found, key=lambda f: f[0] != socket.AF_INET):
            with socket.socket(family, kind, protocol) as probe:
                try:
                    probe.connect(target)
                except OSError as error:
                    errors.append(f"{registry}: {error}")
                    continue
                return str(probe.getsockname()[0]).partition("%")[0]
    raise OSError("; ".join(errors))
