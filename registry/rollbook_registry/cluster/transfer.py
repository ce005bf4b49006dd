"""Transfers: a whole set on its way to one peer, a part at a time, each when the peer asks for it.

So a peer that is slow or gone costs one list of names, and a large book never blocks the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook_registry.cluster.content import pieces
from rollbook_registry.cluster.messages import PODS, Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rollbook_registry.catalog.records import LeaseWrite, PodRecord
    from rollbook_registry.cluster.stream import Stream


class Transfer:
    """The answer to one pull of everything.

    Args:
        n: the pull's name.
        origin: whose set it is.
        parts: its parts; the next is made when it is asked for.
    """

    def __init__(self, n: int, origin: int, parts: Iterator[Part]) -> None:
        self.n = n
        self.origin = origin
        self._parts = parts
        self._last: Part | None = None

    def part(self, index: int) -> Part | None:
        """Return a part: the next, or the last one again; ``None`` for any other."""
        made = -1 if self._last is None else self._last.index
        if index == made:
            return self._last
        if index != made + 1:
            return None
        part = next(self._parts, None)
        if part is not None:
            self._last = part
        return part


def whole(stream: Stream, n: int, *, max_records: int, max_bytes: int) -> Iterator[Part]:
    """Make the parts of an origin's set. It may change meanwhile: later writes reach the peer as such."""
    boot, seq, origin = stream.boot, stream.seq, stream.origin
    index = 0
    batch: list[LeaseWrite] = []
    size = records = 0
    for id_ in list(stream.copies):
        copy = stream.copies.get(id_)
        if copy is None:
            continue  # ended meanwhile
        if batch and (size + copy.size > max_bytes or records + len(copy) + 1 > max_records):
            yield Part(n=n, origin=origin, index=index, boot=boot, seq=seq, whole=True, writes=batch)
            index, batch, size, records = index + 1, [], 0, 0
            # Time has passed: what goes into a part is looked up when that part is made, never before.
            copy = stream.copies.get(id_)
            if copy is None:
                continue
        for write, bytes_, more in pieces(copy, max_records=max_records, max_bytes=max_bytes):
            batch.append(write)
            size += bytes_
            records += len(write.put) + 1
            if not more:
                break
            yield Part(
                n=n, origin=origin, index=index, boot=boot, seq=seq, whole=True, writes=batch, split=True
            )
            index, batch, size, records = index + 1, [], 0, 0
            if stream.copies.get(id_) is not copy:
                break  # ended, and perhaps entered anew: the peer has heard that as a change
    yield Part(n=n, origin=origin, index=index, boot=boot, seq=seq, whole=True, writes=batch, last=True)


def pods(records: list[PodRecord], n: int, *, max_records: int) -> Iterator[Part]:
    """Make the parts of the closed and fenced pods."""
    for first in range(0, max(1, len(records)), max_records):
        some = records[first : first + max_records]
        last = first + max_records >= len(records)
        yield Part(n=n, origin=PODS, index=first // max_records, whole=True, pods=some, last=last)
