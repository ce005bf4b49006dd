"""The snapshot's format: the ephemeral side of the book at one time, as bytes.

    "RLBKSNAP", version (2 bytes)
    length (4 bytes), header             the rest is MessagePack
    length, block                        leases, pods; any number of blocks
    ...
    length 0
    XXH3-128 of all that is before it (16 bytes)

Nothing is believed until the checksum over all of it is right. The book goes on changing while it is being
saved, so a large lease comes in pieces, each true when it was made and with the version that it then had;
what has gone since a piece was made is in the journal (:mod:`.journal`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import xxhash

from rollbook_registry.catalog.records import LeaseWrite, PodRecord
from rollbook_registry.store.framing import LENGTH, Fault, UnusableError, body_start, head

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAGIC: Final = b"RLBKSNAP"
VERSION: Final = 1
"""Grows when an older version could not read it any more; a new field with a default is no such change."""

SLICE: Final = 256
"""Leases, entries and pods that are encoded at once; some hundred microseconds."""

_CHECKSUM_SIZE: Final = 16


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot says about itself.

    Attributes:
        saved: Unix time in seconds at which saving began.
        boot: of the registry that saved it.
        ordinal: of the replica that saved it.
        generation: the first journal that goes with it.
    """

    saved: float
    boot: str
    ordinal: int
    generation: int


class Snapshot(NamedTuple):
    """What was read: leases in the pieces in which they were written, each with its owner's ordinal."""

    header: Header
    leases: list[tuple[int, LeaseWrite]]
    pods: list[PodRecord]


class _Block(msgspec.Struct, frozen=True, array_like=True):
    leases: list[tuple[int, LeaseWrite]] = []
    pods: list[PodRecord] = []


_encoder = msgspec.msgpack.Encoder()
_header = msgspec.msgpack.Decoder(Header)
_block = msgspec.msgpack.Decoder(_Block)


def encode(
    header: Header, *, leases: Iterable[tuple[int, LeaseWrite]], pods: Iterable[PodRecord]
) -> Iterator[bytes]:
    """Write a snapshot, slice by slice; for each it takes from the book when it is asked for it.

    Args:
        header: about it.
        leases: whole or in pieces, each piece of at most :data:`SLICE` entries.
        pods: that are closed or fenced.
    """
    checksum = xxhash.xxh3_128()
    for part in _parts(header, leases, pods):
        checksum.update(part)
        yield part
    yield checksum.digest()


def _parts(
    header: Header, leases: Iterable[tuple[int, LeaseWrite]], pods: Iterable[PodRecord]
) -> Iterator[bytes]:
    yield head(MAGIC, VERSION) + _framed(header)
    taken: list[tuple[int, LeaseWrite]] = []
    size = 0
    for piece in leases:
        taken.append(piece)
        size += 1 + len(piece[1].put)
        if size >= SLICE:
            yield _framed(_Block(leases=taken))
            taken, size = [], 0
    if taken:
        yield _framed(_Block(leases=taken))
    marked: list[PodRecord] = []
    for pod in pods:
        marked.append(pod)
        if len(marked) >= SLICE:
            yield _framed(_Block(pods=marked))
            marked = []
    if marked:
        yield _framed(_Block(pods=marked))
    yield LENGTH.pack(0)


def _framed(part: Header | _Block) -> bytes:
    body = _encoder.encode(part)
    return LENGTH.pack(len(body)) + body


def decode(data: bytes) -> Snapshot:
    """Read a snapshot.

    Raises:
        UnusableError: with the reason; nothing of it is to be believed.
    """
    start = body_start(data, MAGIC, VERSION)
    body = memoryview(data)[:-_CHECKSUM_SIZE]
    if len(body) < start:
        raise UnusableError(Fault.TRUNCATED, f"it has {len(data)} bytes")
    if xxhash.xxh3_128_digest(body) != data[-_CHECKSUM_SIZE:]:
        raise UnusableError(Fault.DAMAGED, "its checksum is wrong: it is damaged, or was cut off")
    try:
        frames = _frames(body, start)
        header = _header.decode(next(frames))
        leases: list[tuple[int, LeaseWrite]] = []
        pods: list[PodRecord] = []
        for frame in frames:
            block = _block.decode(frame)
            leases += block.leases
            pods += block.pods
    except (msgspec.MsgspecError, ValueError, StopIteration, struct.error) as error:
        # Its checksum is right, so this is what somebody has written.
        raise UnusableError(Fault.DAMAGED, f"its contents cannot be read: {error}") from None
    return Snapshot(header, leases, pods)


def _frames(body: memoryview, start: int) -> Iterator[memoryview]:
    while True:
        (length,) = LENGTH.unpack_from(body, start)
        start += LENGTH.size
        if not length:
            return
        yield body[start : start + length]
        start += length
