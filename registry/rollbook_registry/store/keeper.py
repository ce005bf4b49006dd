"""The keeper of the ephemeral side: it saves the book now and then, and at once what must not come back.

On the disk are ``snapshot``, and ``journal-N`` for some N. Snapshot G is true together with all journals from
``journal-G`` on. Saving begins with a new journal; the old ones go once the new snapshot is in its place. So
at any moment at which the process may die, what was removed is in a journal that counts, or not in the
snapshot that does.

Nothing here is ever fatal. A snapshot that cannot be used is set aside, and the registry begins with an empty
book; a disk that fails is logged once, counted, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import structlog

from rollbook_registry.catalog.events import PodsMarked, Written
from rollbook_registry.store import journal, snapshot
from rollbook_registry.store.files import AppendedFile, WholeFile, clean, numbered, set_aside
from rollbook_registry.store.framing import UnusableError
from rollbook_registry.store.journal import Gone, Removals, Removed
from rollbook_registry.store.snapshot import Header, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from rollbook_registry.catalog.events import Event
    from rollbook_registry.catalog.records import LeaseWrite, PodRecord

log = structlog.get_logger("rollbook.registry")

T = TypeVar("T")

SNAPSHOT: Final = "snapshot"
JOURNAL: Final = "journal"

WRITE_SIZE: Final = 1024 * 1024
"""Bytes of a snapshot that go to the disk at once, in a thread."""

LONG_JOURNAL: Final = 16 * 1024 * 1024
"""Bytes of a journal after which a snapshot is saved without waiting for the interval."""

MAX_JOURNALS: Final = 64 * 1024 * 1024
"""Bytes that journals may have together while no snapshot can be saved."""

MIN_PAUSE: Final = 1.0
"""Seconds between one snapshot and the next, whatever the reason for it."""


class Kept(StrEnum):
    """What the keeper did, or could not do; logged and counted by this code."""

    LOADED = "loaded"
    NOTHING_THERE = "nothing_there"
    SET_ASIDE = "set_aside"
    """A file could not be used."""
    UNREADABLE = "unreadable"
    """The disk did not give a file."""
    JOURNAL_TORN = "journal_torn"
    """The process was killed while it wrote; what is torn was never answered for."""
    SAVED = "saved"
    SAVE_FAILED = "save_failed"
    JOURNAL_FAILED = "journal_failed"
    """Until the next snapshot, a removal may come back after a restart."""


class Saved(NamedTuple):
    """What a registry begins with.

    Attributes:
        writes: whole leases, each with its owner's ordinal.
        pods: that may not speak, with their ages now.
        header: of the snapshot; ``None`` if there was none.
    """

    writes: list[tuple[int, LeaseWrite]]
    pods: list[PodRecord]
    header: Header | None


class Note(NamedTuple):
    """Something to log and count, found in the thread."""

    what: Kept
    file: str
    reason: str
    detail: str


class Keeper:
    """Saves the book and brings it back.

    Args:
        directory: where; it belongs to this registry alone (:func:`~rollbook_registry.store.lock.held`).
        interval: seconds from one snapshot to the next; without changes there is none.
        boot: of this registry.
        ordinal: of this replica.
        leases: walks through the leases, in pieces of at most :data:`~.snapshot.SLICE` entries; the book
            changes between the steps.
        pods: walks through the pods that are closed or fenced, likewise.
        wall: Unix time, in seconds.
        counted: told what was done.
    """

    def __init__(
        self,
        directory: Path,
        *,
        interval: float,
        boot: str,
        ordinal: int,
        leases: Callable[[], Iterable[tuple[int, LeaseWrite]]],
        pods: Callable[[], Iterable[PodRecord]],
        wall: Callable[[], float],
        counted: Callable[[Kept], None] = lambda _: None,
    ) -> None:
        self._directory = directory
        self._interval = interval
        self._boot = boot
        self._ordinal = ordinal
        self._leases = leases
        self._pods = pods
        self._wall = wall
        self._counted = counted
        self._disk = Disk(directory)
        # One thread, so that what is asked of the disk is done in order, whoever still waits for it.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = 0
        self._journal = self._disk.journal(0, MAX_JOURNALS)
        self._spent = 0
        self._changed = False
        self._lost: list[Gone] = []
        self._marked: list[PodRecord] = []
        self._flushing = False
        self._hurry = asyncio.Event()
        self._saving = asyncio.Lock()
        self._troubles: dict[Kept, str] = {}
        self.saved_at: float | None = None
        """Unix time of the snapshot that is on the disk."""
        self.size = 0
        """Bytes of the snapshot that was saved last."""

    # --- beginning -------------------------------------------------------------------------------------

    async def load(self) -> Saved:
        """Return what there is, and begin a new journal. To be called once, before anything else."""
        self._loop = asyncio.get_running_loop()
        loaded = await self._in_thread(lambda: self._disk.load(self._wall()))
        for note in loaded.notes:
            self._counted(note.what)
            log.warning(note.what.value, file=note.file, reason=note.reason, detail=note.detail)
        self._begin_journal(loaded.next_generation)
        header = loaded.saved.header
        self._counted(Kept.LOADED if header else Kept.NOTHING_THERE)
        if header:
            self.saved_at = header.saved
            log.info(
                "snapshot_loaded",
                leases=len(loaded.saved.writes),
                pods=len(loaded.saved.pods),
                age=round(max(0.0, self._wall() - header.saved), 1),
            )
        return loaded.saved

    # --- noting ----------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Take note of what has happened to the book.

        What was removed goes to the journal's file in the next turn of the event loop at the latest. Whoever
        answers for it before calls :meth:`flush`: an answer may be read, and this process killed, before the
        next turn comes.
        """
        match event:
            case Written(write):
                lost = journal.gone(write)
                if lost is not None:
                    self._lost.append(lost)
                    self._flush_soon()
            case PodsMarked(pods):
                self._marked += pods
                self._flush_soon()
            case _:
                return
        self._changed = True

    def touch(self) -> None:
        """Take note of a change of which there is no event, such as of another replica's lease."""
        self._changed = True

    def flush(self) -> None:
        """Write what was removed to the journal, in one go; the system has it then, though not the disk."""
        self._flushing = False
        if not (self._lost or self._marked):
            return
        removed = Removed(self._wall(), self._lost, self._marked)
        self._lost, self._marked = [], []
        try:
            self._journal.append(journal.encode(removed))
        except OSError as error:
            # What is lost here is made good by the next snapshot, which does not have it any more.
            self._failed(Kept.JOURNAL_FAILED, error)
            if Kept.SAVE_FAILED not in self._troubles:
                self._hurry.set()
            return
        self._well(Kept.JOURNAL_FAILED)
        if self._journal.size > LONG_JOURNAL and Kept.SAVE_FAILED not in self._troubles:
            self._hurry.set()

    def _flush_soon(self) -> None:
        if not self._flushing and self._loop is not None:
            self._flushing = True
            self._loop.call_soon(self.flush)

    # --- saving ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Save at intervals whatever has changed, until cancelled."""
        while True:
            pause = min(MIN_PAUSE, self._interval)
            await asyncio.sleep(pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval - pause):
                    await self._hurry.wait()
            self._hurry.clear()
            if self._changed:
                try:
                    await self.save()
                except Exception:
                    # A mistake of ours: the next attempt may go better, and the book matters more.
                    self._counted(Kept.SAVE_FAILED)
                    log.exception(Kept.SAVE_FAILED.value)

    async def save(self) -> bool:
        """Save the book; says whether that went well. Otherwise the former snapshot and its journals stay."""
        async with self._saving:
            # From here on, removals go to the journal that belongs to the snapshot to come.
            self.flush()
            self._begin_journal(self._generation + 1)
            self._changed = False
            header = Header(
                saved=self._wall(), boot=self._boot, ordinal=self._ordinal, generation=self._generation
            )
            try:
                self.size = await self._write(
                    snapshot.encode(header, leases=self._leases(), pods=self._pods())
                )
            except BaseException as error:
                self._changed = True
                if not isinstance(error, OSError):
                    raise
                self._failed(Kept.SAVE_FAILED, error)
                return False
            self._spent = 0
            self._journal.limit = MAX_JOURNALS
            self.saved_at = header.saved
            self._counted(Kept.SAVED)
            self._well(Kept.SAVE_FAILED)
            await self._in_thread(lambda: self._disk.drop_journals(header.generation))
            return True

    async def close(self) -> None:
        """Save a last time if anything has changed, and let go of the files."""
        if self._changed:
            await self.save()
        self.flush()
        self._journal.close()
        await asyncio.to_thread(self._worker.shutdown)

    async def _write(self, slices: Iterator[bytes]) -> int:
        file = await self._in_thread(self._disk.begin_snapshot)
        try:
            buffer = bytearray()
            for part in slices:
                buffer += part
                if len(buffer) >= WRITE_SIZE:
                    full, buffer = buffer, bytearray()
                    await self._in_thread(functools.partial(file.write, full))
                else:
                    # Others have their turn after every slice.
                    await asyncio.sleep(0)
            await self._in_thread(lambda: file.write(buffer))
            await self._in_thread(file.commit)
        finally:
            # After what the thread may still be doing, if this was cancelled; after a commit it does nothing.
            self._worker.submit(file.abandon)
        return file.size

    def _begin_journal(self, generation: int) -> None:
        self._journal.close()
        self._spent += self._journal.size
        self._generation = generation
        self._journal = self._disk.journal(generation, MAX_JOURNALS - self._spent)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)

    # --- telling ---------------------------------------------------------------------------------------

    def _failed(self, what: Kept, error: OSError) -> None:
        """Count every failure; log it when it begins, or has another reason."""
        self._counted(what)
        reason = error.strerror or str(error)
        if self._troubles.get(what) != reason:
            self._troubles[what] = reason
            log.error(what.value, directory=str(self._directory), reason=reason)

    def _well(self, what: Kept) -> None:
        if self._troubles.pop(what, None) is not None:
            log.info("recovered", what=what.value, directory=str(self._directory))


class Loaded(NamedTuple):
    """What was found on the disk."""

    saved: Saved
    notes: list[Note]
    next_generation: int


class Disk:
    """The directory's files, for the keeper's thread.

    Args:
        directory: where they are.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._snapshot = directory / SNAPSHOT

    def journal(self, generation: int, limit: int) -> AppendedFile:
        """Return a journal that is still to be made."""
        path = self._directory / f"{JOURNAL}-{generation}"
        return AppendedFile(path, head=journal.HEAD, limit=limit)

    def begin_snapshot(self) -> WholeFile:
        """Return a snapshot that is still to be written.

        Raises:
            OSError: it cannot be made.
        """
        return WholeFile(self._snapshot)

    def drop_journals(self, before: int) -> None:
        """Remove journals that no snapshot needs any more; those that can't be are harmless."""
        try:
            for number, path in list(numbered(self._directory, f"{JOURNAL}-")):
                if number < before:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.debug("journal_not_removed", reason=str(error))

    def load(self, wall: float) -> Loaded:
        """Return all that there is, and what is wrong with the rest. Fails in no case."""
        notes: list[Note] = []
        try:
            clean(self._directory)
            journals = sorted(numbered(self._directory, f"{JOURNAL}-"))
        except OSError as error:
            notes.append(Note(Kept.UNREADABLE, str(self._directory), type(error).__name__, str(error)))
            journals = []
        found = self._load_snapshot(notes)
        first = found.header.generation if found else 0
        removals = Removals()
        if found:
            removals.mark(found.pods, age=wall - found.header.saved)
        for number, path in journals:
            if number >= first:
                for removed in self._load_journal(path, notes):
                    removals.add(removed, age=wall - removed.at)
        self.drop_journals(first)
        next_generation = max([first, *(number for number, _ in journals)]) + 1
        writes = removals.whole(found.leases) if found else []
        return Loaded(Saved(writes, removals.pods, found.header if found else None), notes, next_generation)

    def _load_snapshot(self, notes: list[Note]) -> Snapshot | None:
        data = self._read(self._snapshot, notes)
        if data is None:
            return None
        try:
            return snapshot.decode(data)
        except UnusableError as error:
            notes.append(_set_aside(self._snapshot, SNAPSHOT, error))
            return None

    def _load_journal(self, path: Path, notes: list[Note]) -> list[Removed]:
        data = self._read(path, notes)
        if data is None:
            return []
        try:
            found = journal.decode(data)
        except UnusableError as error:
            notes.append(_set_aside(path, JOURNAL, error))
            return []
        if found.torn:
            notes.append(Note(Kept.JOURNAL_TORN, str(path), "torn", f"its last {found.torn} bytes"))
        return found.removed

    @staticmethod
    def _read(path: Path, notes: list[Note]) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            notes.append(Note(Kept.UNREADABLE, str(path), type(error).__name__, str(error)))
            return None


def _set_aside(path: Path, name: str, error: UnusableError) -> Note:
    try:
        kept = f"kept as {set_aside(path, name=name).name}"
    except OSError as failure:
        kept = f"left where it is ({failure.strerror})"
    return Note(Kept.SET_ASIDE, str(path), error.fault.value, f"{error}; {kept}")
