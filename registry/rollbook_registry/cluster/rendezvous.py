"""Rendezvous hashing: which replica owns a plain HTTP client's lease.

Each replica gets a score for a lease; the highest owns it. When a replica comes or goes only the leases that
it gains or had move (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.names import LeaseId


def owner(lease: LeaseId, replicas: Iterable[int]) -> int:
    """Return the replica that owns a lease.

    Args:
        lease: whose owner is asked for.
        replicas: ordinals of the live ones; at least one.
    """
    key = lease.encode()
    return max(replicas, key=lambda ordinal: (xxhash.xxh64_intdigest(key, seed=ordinal), ordinal))
