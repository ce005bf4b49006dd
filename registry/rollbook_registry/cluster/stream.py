"""Stream: one origin's writes as they are known here, and the set of leases that they add up to.

Every replica has one for each origin, its own among them; whoever has a stream can pass it on. Nothing here
decides which of two origins' records of a lease counts: that is the catalog's, and the same everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rollbook_registry.cluster.content import Copy
from rollbook_registry.cluster.messages import Position, Sum
from rollbook_registry.cluster.ringlog import RingLog

if TYPE_CHECKING:
    from rollbook.model import EntryRef
    from rollbook.names import LeaseId
    from rollbook_registry.catalog.records import LeaseWrite


class Stream:
    """One origin's stream.

    Args:
        origin: whose.
        boot: of the origin's life that it is about; empty where that is not known (a copy from disk).
        max_changes: bound of its log.
        max_bytes: bound of its log.

    Attributes:
        seq: number of the last write that was taken.
        copies: the origin's leases as it wrote them.
        xor: digest over all of them.
        complete: whether it is all that the origin had at ``seq``; false while a whole set arrives, and for
            a copy from a disk.
        suspect: its content was found to differ from the origin's.
        orphaned: when the origin was lost; ``None`` while it is there.
    """

    def __init__(self, origin: int, *, boot: str, max_changes: int, max_bytes: int) -> None:
        self.origin = origin
        self.boot = boot
        self.seq = 0
        self.copies: dict[LeaseId, Copy] = {}
        self.xor = 0
        self.complete = False
        self.suspect = False
        self.orphaned: float | None = None
        self._log = RingLog(max_changes=max_changes, max_bytes=max_bytes)
        self._arrived: set[LeaseId] | None = None
        self._ahead: dict[LeaseId, tuple[int, int]] = {}
        """Leases that were changed while their set was on its way: a part of it must not be older."""
        self._over: set[LeaseId] = set()
        """Leases that ended, or were entered whole, meanwhile: what comes of them in parts is older."""
        self._torn = False
        self._pieces: set[EntryRef] | None = None
        self._was: LeaseId | None = None

    @property
    def position(self) -> Position:
        """How far it is known."""
        return Position(self.boot, self.seq)

    @property
    def sum(self) -> Sum:
        """Position and digest."""
        return Sum(self.boot, self.seq, self.xor)

    @property
    def arriving(self) -> bool:
        """Whether a whole set is on its way."""
        return self._arrived is not None

    def after(self, seq: int, *, max_records: int, max_bytes: int) -> list[LeaseWrite] | None:
        """Return writes after a number; ``None`` if the log does not reach back so far."""
        return self._log.after(seq, max_records=max_records, max_bytes=max_bytes)

    # --- writes, one by one ----------------------------------------------------------------------------

    def follow(self, write: LeaseWrite) -> LeaseWrite | None:
        """Take the write with the next number; returns what is new in it for the book."""
        self.seq += 1
        size = 64 + 64 * len(write.drop)
        before = self.copies.get(write.id)
        known = before.size if before is not None else 0
        news = self._take(write)
        after = self.copies.get(write.id)
        if write.put and after is not None:
            # What was put is at most what there is now; a delta of a large lease is small.
            size += after.size if write.whole else min(after.size, max(0, after.size - known) + 512)
        self._log.append(self.seq, write, size)
        return news

    def _take(self, write: LeaseWrite) -> LeaseWrite | None:
        copy = self.copies.get(write.id)
        if copy is not None and write.version <= copy.head.version and not self._outdated(write.id):
            return None  # what arrived whole was newer
        if write.ended:
            return self._take_end(write)
        if write.whole:
            return self._take_whole(write)
        if self._arrived is not None:
            self._ahead[write.id] = write.version
        if copy is None:
            # A change of what has not arrived yet. If nothing is on its way, something was missed.
            self.complete = self.complete and self.arriving
            return None
        self.xor ^= copy.xor
        copy.set_head(write)
        for record in write.put:
            copy.put(record)
        for ref in write.drop:
            copy.drop(ref)
        self.xor ^= copy.xor
        if self._pieces is not None and self._was == write.id:
            # Entered while the lease's pieces arrive, which may not name it.
            self._pieces.update(record.entry.ref for record in write.put)
        return write

    def _take_whole(self, write: LeaseWrite) -> LeaseWrite:
        if self._arrived is not None:
            self._arrived.add(write.id)
            self._over.add(write.id)
            self._ahead.pop(write.id, None)
        return self._replace(write)

    def _take_end(self, write: LeaseWrite) -> LeaseWrite | None:
        if self._arrived is not None:
            self._arrived.discard(write.id)
            self._over.add(write.id)
            self._ahead.pop(write.id, None)
        if write.id not in self.copies:
            return None
        self._remove(write.id)
        return write

    # --- a whole set, in parts -------------------------------------------------------------------------

    def begin(self, boot: str, seq: int) -> None:
        """A whole set begins to arrive; what is known stays until all of it is there."""
        if (boot, seq) != self.position:
            self._log.clear()
        self.boot = boot
        self.seq = seq
        self.complete = False
        self._arrived = set()
        self._ahead.clear()
        self._over.clear()
        self._torn = False
        self._pieces = self._was = None

    def arrive(self, write: LeaseWrite, *, split: bool) -> LeaseWrite | None:
        """A lease of the set, or a piece of one, has come; returns what is new in it for the book.

        Args:
            write: the first piece of a lease is ``whole``.
            split: the lease goes on in the next piece.
        """
        if self._arrived is None or write.id in self._over:
            return None
        if write.version < self._ahead.get(write.id, write.version):
            # It was made before a change that has come already: it was lost, and came again. The set does
            # not fit together; it is pulled once more.
            self._torn = True
            return None
        copy = self.copies.get(write.id)
        if write.whole:
            self._was = write.id
            self._pieces = None
            self._arrived.add(write.id)
            if copy is None:
                return self._replace(write)
            if split:
                self._pieces = set()
        elif self._was != write.id or copy is None:
            return None
        return self._compare(copy, write, split=split)

    def finish(self) -> list[LeaseWrite]:
        """The set is there: what it lacks is gone. Returns that for the book."""
        arrived, self._arrived = self._arrived or set(), None
        self._pieces = self._was = None
        self.complete = not self._torn and arrived.issuperset(self._ahead)
        self.suspect = False
        gone = [id_ for id_ in self.copies if id_ not in arrived and id_ not in self._ahead]
        return [self._ended(id_) for id_ in gone]

    def abandon(self) -> None:
        """The set will not arrive: what is here is a mixture, and counts as not known."""
        self._arrived = self._pieces = self._was = None
        self.boot = ""
        self._log.clear()

    def keep(self, write: LeaseWrite) -> None:
        """Take a lease from a disk."""
        self._replace(write)

    # --- inside ----------------------------------------------------------------------------------------

    def _outdated(self, id_: LeaseId) -> bool:
        """Whether a whole set is on its way in which this lease has not come yet."""
        return self._arrived is not None and id_ not in self._arrived

    def _compare(self, copy: Copy, write: LeaseWrite, *, split: bool) -> LeaseWrite | None:
        """Replace a lease by what has arrived, and return only the difference."""
        put = [record for record in write.put if copy.get(record.entry.ref) != record]
        drop: list[EntryRef] = []
        if self._pieces is not None:
            self._pieces.update(record.entry.ref for record in write.put)
        if not split:
            named = self._pieces if self._pieces is not None else {r.entry.ref for r in write.put}
            if write.whole or self._pieces is not None:
                drop = [ref for ref in copy.refs() if ref not in named]
        head = msgspec.structs.replace(write, whole=False, put=put, drop=drop, reason="")
        same = not put and not drop and head == copy.head
        self.xor ^= copy.xor
        copy.set_head(head)
        for record in put:
            copy.put(record)
        for ref in drop:
            copy.drop(ref)
        self.xor ^= copy.xor
        return None if same else head

    def _replace(self, write: LeaseWrite) -> LeaseWrite:
        old = self.copies.get(write.id)
        if old is not None:
            self.xor ^= old.xor
        copy = Copy(write)
        for record in write.put:
            copy.put(record)
        self.copies[write.id] = copy
        self.xor ^= copy.xor
        return write

    def _remove(self, id_: LeaseId) -> Copy:
        copy = self.copies.pop(id_)
        self.xor ^= copy.xor
        return copy

    def _ended(self, id_: LeaseId) -> LeaseWrite:
        return msgspec.structs.replace(self._remove(id_).head, ended=True)
