"""The journal's format: what must not come back although the last snapshot still has it.

    "RLBKJRNL", version (2 bytes)
    length (4 bytes), XXH3-64 of the payload (8 bytes), payload (MessagePack)
    ...

A file that is only appended to, with a frame for everything that was removed at one time. Its end may be
torn, where the process was killed in the middle of a write; what is before that counts. It isn't flushed: it
outlives the process, whatever kills it, but not the machine's power. What comes back after a power failure
leaves again by silence. Registrations are not in it: their publishers come back by themselves.

A lease's pieces have versions, and so have removals: a removal counts for what was written before it, and not
for what was written later. So it does no harm to remove something twice, or from a snapshot that is newer.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import xxhash

from rollbook.model import EntryRef
from rollbook.names import LeaseId
from rollbook_registry.catalog.records import LeaseWrite, PodRecord
from rollbook_registry.store.framing import Fault, UnusableError, body_start, head

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC: Final = b"RLBKJRNL"
VERSION: Final = 1
"""Grows when an older version could not read it any more."""

HEAD: Final = head(MAGIC, VERSION)
"""What a journal begins with."""

_FRAME: Final = struct.Struct(">IQ")


class Gone(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a lease lost in one write: entries, or everything.

    Attributes:
        term: of the write.
        n: of the write.
        drop: the entries that it lost.
        ended: it is no more.
    """

    id: LeaseId
    term: int
    n: int
    drop: list[EntryRef] = []
    ended: bool = False


class Removed(msgspec.Struct, frozen=True, array_like=True):
    """What was removed at one time.

    Attributes:
        at: Unix time in seconds.
        leases: what they lost.
        pods: that were closed or fenced.
    """

    at: float
    leases: list[Gone] = []
    pods: list[PodRecord] = []


class Journal(NamedTuple):
    """What was read, and how many bytes at the end could not be."""

    removed: list[Removed]
    torn: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Removed)


def gone(write: LeaseWrite) -> Gone | None:
    """Return what a lease lost by a write; ``None`` if nothing.

    A lease that was yielded has ended here only because it goes on elsewhere: nothing of it is gone.
    """
    if not (write.drop or write.ended) or write.yielded:
        return None
    return Gone(write.id, write.term, write.n, write.drop, write.ended)


def encode(removed: Removed) -> bytes:
    """Write a frame."""
    payload = _encoder.encode(removed)
    return _FRAME.pack(len(payload), xxhash.xxh3_64_intdigest(payload)) + payload


def decode(data: bytes) -> Journal:
    """Read a journal, up to where it is torn.

    Raises:
        UnusableError: it is no journal, or of a newer version.
    """
    if not data:
        return Journal([], 0)
    try:
        start = body_start(data, MAGIC, VERSION)
    except UnusableError as error:
        if error.fault is Fault.TRUNCATED:
            return Journal([], len(data))
        raise
    removed = []
    while start < len(data):
        frame = _frame(data, start)
        if frame is None:
            break
        payload, start = frame
        removed.append(payload)
    return Journal(removed, len(data) - start)


def _frame(data: bytes, start: int) -> tuple[Removed, int] | None:
    if start + _FRAME.size > len(data):
        return None
    length, checksum = _FRAME.unpack_from(data, start)
    start += _FRAME.size
    payload = data[start : start + length]
    if len(payload) < length or xxhash.xxh3_64_intdigest(payload) != checksum:
        return None
    try:
        return _decoder.decode(payload), start + length
    except (msgspec.MsgspecError, ValueError):
        return None


class Removals:
    """All that was removed, to be taken from a snapshot."""

    def __init__(self) -> None:
        self._ended: dict[LeaseId, tuple[int, int]] = {}
        self._dropped: dict[LeaseId, dict[EntryRef, tuple[int, int]]] = {}
        self._pods: dict[str, PodRecord] = {}

    def add(self, removed: Removed, *, age: float) -> None:
        """Take note of what was removed so many seconds ago."""
        for lease in removed.leases:
            version = (lease.term, lease.n)
            if lease.ended:
                self._ended[lease.id] = max(version, self._ended.get(lease.id, version))
            dropped = self._dropped.setdefault(lease.id, {}) if lease.drop else {}
            for ref in lease.drop:
                dropped[ref] = max(version, dropped.get(ref, version))
        self.mark(removed.pods, age=age)

    def mark(self, pods: Iterable[PodRecord], *, age: float) -> None:
        """Take note of pods that may not speak: what they were so many seconds ago they have been since."""
        for pod in pods:
            older = msgspec.structs.replace(pod, age=pod.age + max(0.0, age))
            known = self._pods.get(pod.uid)
            # Fenced is more than closed; who has been either for longer has been it for longer.
            if known is None or (older.fenced, older.age) > (known.fenced, known.age):
                self._pods[pod.uid] = older

    @property
    def pods(self) -> list[PodRecord]:
        """The pods that may not speak."""
        return list(self._pods.values())

    def remaining(self, piece: LeaseWrite) -> LeaseWrite | None:
        """Return what is left of a lease, or of a piece of it; ``None`` if it has ended."""
        ended = self._ended.get(piece.id)
        if ended is not None and piece.version < ended:
            return None
        dropped = self._dropped.get(piece.id)
        if dropped is None:
            return piece
        version = piece.version
        put = [record for record in piece.put if not version < dropped.get(record.entry.ref, version)]
        return piece if len(put) == len(piece.put) else msgspec.structs.replace(piece, put=put)

    def whole(self, pieces: Iterable[tuple[int, LeaseWrite]]) -> list[tuple[int, LeaseWrite]]:
        """Return what is left of all leases, each put together again from its pieces."""
        leases: dict[LeaseId, tuple[int, LeaseWrite]] = {}
        puts: dict[LeaseId, list[LeaseWrite]] = {}
        for origin, piece in pieces:
            left = self.remaining(piece)
            if left is None:
                continue
            known = leases.get(left.id)
            if known is None:
                leases[left.id] = (origin, left)
                continue
            puts.setdefault(left.id, [known[1]]).append(left)
            if left.version >= known[1].version:
                leases[left.id] = (origin, left)
        result = []
        for id_, (origin, last) in leases.items():
            parts = puts.get(id_)
            put = last.put if parts is None else [record for part in parts for record in part.put]
            result.append((origin, msgspec.structs.replace(last, put=put, whole=True)))
        return result
