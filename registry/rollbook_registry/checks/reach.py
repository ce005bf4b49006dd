"""Reach: which addresses a check may go to.

Whoever may define a persistent instance chooses where the registry connects to, from the inside of a cluster
and with the registry's own network (server-side request forgery). So some addresses are never checked
unless the settings name them: the registry's own machine, link-local ones (where clouds serve credentials),
and what is no single host. Everything else is allowed unless the settings refuse it.

It is decided like a route: of all networks that hold the address the narrowest counts, and at equal width the
one that was allowed. It holds for addresses, so for what a host name resolves to and not for the name; the
very addresses that were looked at are connected to, so a name cannot change its meaning in between.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from rollbook.problems import bad_value

if TYPE_CHECKING:
    from collections.abc import Iterable

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED: Final = (
    "0.0.0.0/8",  # "this host" (RFC 1122, section 3.2.1.3); Linux connects to loopback for it
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local, and the metadata services of most clouds
    "100.100.100.200/32",  # Alibaba Cloud's metadata service
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "::/96",  # unspecified, loopback, and IPv4 in its oldest disguise (RFC 4291, section 2.5.5.1)
    "fe80::/10",
    "fd00:ec2::254/128",  # Amazon's metadata service
    "ff00::/8",
)
"""Refused unless the settings allow them."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


def _networks(texts: Iterable[str], field: str) -> list[_Network]:
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError:
            raise bad_value(
                field,
                text,
                "networks such as 10.0.0.0/8 or fd00::/8, without bits to the right of the prefix",
            ) from None
    return found


def _hidden(address: _Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class Reach:
    """What may be checked.

    Args:
        allow: networks that may be reached, though a wider one is refused.
        deny: networks that may not, in addition to :data:`REFUSED`.

    Raises:
        Problem: 400 ``bad_value``: one isn't a network, or is in both lists.
    """

    def __init__(self, *, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        allowed, denied = _networks(allow, "--check-allow"), _networks(deny, "--check-deny")
        for network in allowed:
            if network in denied:
                raise bad_value("--check-allow", str(network), "networks that --check-deny does not name")
        ruled = [(n, False) for n in (*_networks(REFUSED, "REFUSED"), *denied)]
        ruled += [(n, True) for n in allowed]
        # The narrowest first; of two alike the allowed one.
        self._rules = sorted(ruled, key=lambda rule: (-rule[0].prefixlen, not rule[1]))

    def refusal(self, address: str) -> str:
        """Return the network for whose sake an address may not be checked; empty if it may.

        Raises:
            ValueError: it is a host name rather than an address.
        """
        given = ipaddress.ip_address(address)
        hidden = _hidden(given)
        return self._refusal(given) or (self._refusal(hidden) if hidden is not None else "")

    def _refusal(self, address: _Address) -> str:
        for network, allowed in self._rules:
            if address.version == network.version and address in network:
                return "" if allowed else str(network)
        return ""
