"""Digest: one number that two holders of a service's list compare instead of the list.

XOR of xxh64 over the visible instances, each written as MessagePack of a fixed array, so that it can be kept
up to date by one XOR per change and computed by any language. Beat times are no part of an instance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.model import Instance

_encode = msgspec.msgpack.Encoder().encode


def instance_digest(i: Instance) -> int:
    """Return one instance's part: xxh64 (seed 0) of its fields in this order, metadata sorted by key."""
    return xxhash.xxh64_intdigest(
        _encode(
            (
                i.key,
                i.ip,
                i.port,
                i.cluster,
                float(i.weight),
                i.enabled,
                i.healthy,
                i.ready,
                i.alive,
                i.unconfirmed,
                i.ephemeral,
                i.instance_id,
                i.owner,
                sorted(i.metadata.items()),
            )
        )
    )


def digest(instances: Iterable[Instance]) -> int:
    """Return the digest of a whole list; the empty list's is 0."""
    result = 0
    for instance in instances:
        result ^= instance_digest(instance)
    return result


def spell(value: int) -> str:
    """Write a digest for the wire: 16 hexadecimal digits."""
    return f"{value:016x}"
