"""Content: a lease as its origin wrote it, and the digest over it.

The digest is XOR of xxh64 over the content of records (not only their versions), so that it is kept up to
date by one XOR a record and two copies with equal numbers but other words are told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rollbook.model import EntryRef
    from rollbook_registry.catalog.records import EntryRecord, LeaseWrite

# Maps are sorted: equal metadata is equal content, in whatever order it was said.
_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode

FEW: Final = 8
"""Up to so many entries are looked through; most leases have one, and a map would cost more than it saves."""

S = TypeVar("S", bound=msgspec.Struct)


def _digest(record: msgspec.Struct, seed: int) -> tuple[int, int]:
    """Return a record's digest and its size in bytes."""
    data = _encode(record)
    return xxhash.xxh64_intdigest(data, seed=seed), len(data)


class Copy:
    """One lease.

    Attributes:
        head: what is said about the lease itself; it has no entries.
        xor: the digest over all of it.
        size: in bytes, roughly.
    """

    __slots__ = ("_few", "_many", "head", "size", "xor")

    def __init__(self, head: LeaseWrite) -> None:
        self._few: tuple[EntryRecord, ...] = ()
        self._many: dict[EntryRef, EntryRecord] | None = None
        self.head = _headed(head)
        self.xor = self.size = 0
        self._mix(self.head, sign=1)

    def __len__(self) -> int:
        return len(self._few if self._many is None else self._many)

    def entries(self) -> Iterator[EntryRecord]:
        """All entries."""
        yield from self._few if self._many is None else self._many.values()

    def refs(self) -> list[EntryRef]:
        """The names of all entries."""
        return [record.entry.ref for record in self._few] if self._many is None else list(self._many)

    def get(self, ref: EntryRef) -> EntryRecord | None:
        """Return an entry, if it is there."""
        if self._many is not None:
            return self._many.get(ref)
        return next((record for record in self._few if record.entry.ref == ref), None)

    def set_head(self, head: LeaseWrite) -> None:
        """Take what a newer write says about the lease itself."""
        self._mix(self.head, sign=-1)
        self.head = _headed(head)
        self._mix(self.head, sign=1)

    def put(self, record: EntryRecord) -> None:
        """Enter an entry, or replace it."""
        ref = record.entry.ref
        self.drop(ref)
        if self._many is not None:
            self._many[ref] = record
        elif len(self._few) < FEW:
            self._few = (*self._few, record)
        else:
            self._many = {known.entry.ref: known for known in (*self._few, record)}
            self._few = ()
        self._mix(record, sign=1)

    def drop(self, ref: EntryRef) -> None:
        """Let go of an entry, if it is there."""
        known = self.get(ref)
        if known is None:
            return
        if self._many is not None:
            del self._many[ref]
        else:
            self._few = tuple(record for record in self._few if record is not known)
        self._mix(known, sign=-1)

    def record(self) -> LeaseWrite:
        """Return the lease whole, as one write."""
        return msgspec.structs.replace(self.head, whole=True, put=list(self.entries()))

    def _mix(self, record: msgspec.Struct, *, sign: int) -> None:
        digest, size = _digest(record, xxhash.xxh64_intdigest(self.head.id.encode()))
        self.xor ^= digest
        self.size += sign * size


def _headed(write: LeaseWrite) -> LeaseWrite:
    if not (write.put or write.drop or write.whole or write.reason):
        return write
    return msgspec.structs.replace(write, put=[], drop=[], whole=False, reason="")


def pieces(copy: Copy, *, max_records: int, max_bytes: int) -> Iterator[tuple[LeaseWrite, int, bool]]:
    """Write a lease down whole, in as many pieces as it takes, each as it is when it is asked for.

    Yields:
        The write, its size in bytes, and whether the lease goes on in the next piece.
    """
    if len(copy) <= max_records and copy.size <= max_bytes:
        yield copy.record(), copy.size, False
        return
    each = max(1, min(max_records, max_bytes * len(copy) // copy.size))
    size = copy.size // len(copy)
    refs = copy.refs()
    for first in range(0, len(refs), each):
        some = [record for ref in refs[first : first + each] if (record := copy.get(ref)) is not None]
        write = msgspec.structs.replace(copy.head, whole=first == 0, put=some)
        yield write, size * len(some), first + each < len(refs)
