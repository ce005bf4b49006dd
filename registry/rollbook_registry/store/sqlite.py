"""The store in one SQLite file: the default, for a registry of one replica.

Acknowledged means on disk: WAL with ``synchronous=FULL`` flushes the log at every commit (SQLite's manual,
"Write-Ahead Logging" and ``PRAGMA synchronous``). A flush costs the same for one write as for many, so all
writes that wait when the last commit is through are committed together.

The file belongs to one process (``locking_mode=EXCLUSIVE``), and one thread of it does all the waiting.
A file that is damaged, or written by a newer version, is never replaced: what is in it was promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sqlite3
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

import structlog
import xxhash

from rollbook.problems import Problem
from rollbook_registry.store.files import PRIVATE, sync_directory
from rollbook_registry.store.store import CannotOpenError, Change, Outcome, Store, check_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

log = structlog.get_logger("rollbook.registry")

APPLICATION_ID: Final = 0x526C626B
"""``Rlbk``, in SQLite's header: this file is ours."""

SCHEMA_VERSION: Final = 1
"""Grows when an older version could not read the file any more."""

BUSY_WAIT: Final = 1.0
"""Seconds for which opening waits for another process to let go of the file."""

MAX_WAITING: Final = 4096
"""Writes and reads that may wait for the disk; beyond it they are refused at once."""

MAX_GROUP: Final = 512
"""Writes that are committed together."""

SLICE: Final = 1000
"""Records that the sink is given at once while loading, so that the event loop comes round in between."""

_CREATE: Final = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL) WITHOUT ROWID;
"""

_PRAGMAS: Final = (
    # Before anything is read: then no shared memory is needed, and the file is ours until we close it.
    "locking_mode = EXCLUSIVE",
    "synchronous = FULL",
    # Where the system's own flush does not reach the medium (macOS).
    "fullfsync = ON",
    "checkpoint_fullfsync = ON",
    "cell_size_check = ON",
    "trusted_schema = OFF",
)

_OUTCOMES: Final = {
    sqlite3.SQLITE_FULL: Outcome.DISK_FULL,
    sqlite3.SQLITE_READONLY: Outcome.READ_ONLY,
    sqlite3.SQLITE_PERM: Outcome.READ_ONLY,
    sqlite3.SQLITE_BUSY: Outcome.LOCKED,
    sqlite3.SQLITE_LOCKED: Outcome.LOCKED,
    sqlite3.SQLITE_CORRUPT: Outcome.DAMAGED,
    sqlite3.SQLITE_NOTADB: Outcome.DAMAGED,
}

_UNDO: Final = (
    "restore it from a copy; or move it and its -wal file away to begin without definitions "
    "(docs/operations.md says how to save what can still be read)"
)


class Result(NamedTuple):
    """What became of a write, and the reason for people."""

    outcome: Outcome
    text: str = ""


class Write:
    """A batch on its way to the disk and back."""

    __slots__ = ("changes", "expect", "future", "result")

    def __init__(
        self,
        changes: Sequence[Change],
        *,
        expect: Mapping[str, bytes | None],
        future: asyncio.Future[Result],
    ) -> None:
        self.changes = changes
        self.expect = expect
        self.future = future
        self.result = Result(Outcome.CLOSED)


class Read:
    """A question on its way to the disk and back."""

    __slots__ = ("future", "key", "result", "value")

    def __init__(self, key: str, *, future: asyncio.Future[Result]) -> None:
        self.key = key
        self.future = future
        self.value: bytes | None = None
        self.result = Result(Outcome.CLOSED)


Job = Write | Read


class Database:
    """The file, for the one thread that touches it.

    Args:
        path: of the file; made if it isn't there.
        setting: the flag that says where it is, for error messages.
    """

    def __init__(self, path: Path, *, setting: str) -> None:
        self.path = path
        self.commits = 0
        """Transactions that were committed."""
        self._setting = setting
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._digest = 0
        """XOR of the records' checksums: whether a file that is opened again holds what it held."""

    def load(self) -> list[Change]:
        """Open the file, made if need be, and return what it holds.

        Raises:
            CannotOpenError: it cannot be read, or not be relied on.
        """
        try:
            self._create()
            connection, changes, self._digest = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_open(error) from error
        self._connection = connection
        return changes

    def work(self, jobs: Sequence[Job]) -> None:
        """Commit the writes, together if that goes, then answer the reads; each job gets its result."""
        try:
            connection = self._ready()
        except (sqlite3.Error, OSError) as error:
            result = self._failed(error)
            for job in jobs:
                job.result = result
            return
        writes = [job for job in jobs if isinstance(job, Write)]
        if writes:
            self._commit(connection, writes)
        for job in jobs:
            if isinstance(job, Read):
                job.result = self._read(connection, job)

    def close(self) -> None:
        """Let go of the file; what was committed moves from its log into it."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    # --- opening ---------------------------------------------------------------------------------------

    def _create(self) -> None:
        # Made beside its place and moved there whole, so that an empty or half-made file is never ours.
        if self.path.exists():
            return
        if _beside(self.path, "-wal").exists():
            raise CannotOpenError(
                Outcome.DAMAGED,
                f"{self.path} is gone, but its log {self.path.name}-wal is there: put the file back, or take "
                "the log away too to begin without definitions",
            )
        new = _beside(self.path, ".new")
        for name in (new, _beside(new, "-journal")):
            name.unlink(missing_ok=True)
        new.touch(mode=PRIVATE)
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.executescript(_CREATE)
        new.rename(self.path)
        sync_directory(self.path.parent)

    def _connect(self) -> tuple[sqlite3.Connection, list[Change], int]:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_WAIT
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            self._check(connection)
            status = self.path.stat()
            self._inode = (status.st_dev, status.st_ino)
            return connection, *self._contents(connection)
        except BaseException:
            connection.close()
            raise

    def _check(self, connection: sqlite3.Connection) -> None:
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise CannotOpenError(Outcome.DAMAGED, f"{self.path} is no store of Rollbook's; {_UNDO}")
        version = _pragma(connection, "user_version")
        if version != SCHEMA_VERSION:
            raise CannotOpenError(
                Outcome.NEWER,
                f"{self.path} was written by another version of Rollbook (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): start that version",
            )
        if _pragma(connection, "journal_mode = WAL") != "wal":
            raise CannotOpenError(
                Outcome.IO_ERROR,
                f"{self.path} is on a file system that SQLite's write-ahead log does not work on: put "
                f"{self._setting} on another",
            )
        found = _pragma(connection, "quick_check(1)")
        if found != "ok":
            raise self._damaged(str(found))

    def _contents(self, connection: sqlite3.Connection) -> tuple[list[Change], int]:
        changes = []
        digest = 0
        for key, value, known in connection.execute("SELECT key, value, sum FROM records ORDER BY key"):
            if not isinstance(key, str) or not isinstance(value, bytes) or _sum(key, value) != known:
                raise self._damaged(f"the record {key!r} does not match its checksum")
            changes.append(Change(key, value))
            digest ^= int.from_bytes(known, "big")
        return changes, digest

    def _ready(self) -> sqlite3.Connection:
        """Return the connection; opened again if it was given up, or the file isn't the same any more."""
        if self._connection is not None:
            try:
                status = self.path.stat()
                there = (status.st_dev, status.st_ino)
            except FileNotFoundError:
                there = None
            if there == self._inode:
                return self._connection
            # What is written to a file without a name is lost with the process.
            self.close()
        if not self.path.exists():
            raise CannotOpenError(Outcome.REPLACED, f"{self.path} was taken away: put it back")
        connection, _, digest = self._connect()
        if digest != self._digest:
            connection.close()
            raise CannotOpenError(
                Outcome.REPLACED,
                f"{self.path} does not hold any more what was written to it: put the right file there, or "
                "restart the registry to take what this one holds",
            )
        self._connection = connection
        return connection

    # --- reading and writing ---------------------------------------------------------------------------

    def _read(self, connection: sqlite3.Connection, job: Read) -> Result:
        if self._connection is None:
            return Result(Outcome.IO_ERROR, f"{self.path} has just failed")
        try:
            job.value = _value(connection, job.key)
        except sqlite3.Error as error:
            self.close()
            return self._failed(error)
        return Result(Outcome.COMMITTED)

    def _commit(self, connection: sqlite3.Connection, writes: Sequence[Write]) -> None:
        try:
            results, digest = _transact(connection, writes, self._digest)
        except sqlite3.Error as error:
            failed = self._failed(error)
            if not _rolled_back(connection) or failed.outcome is not Outcome.DISK_FULL:
                # A connection that has seen its disk fail is not trusted any more.
                self.close()
            elif len(writes) > 1:
                # What is too large shall not take with it what is not.
                for write in writes:
                    self._commit_alone(connection, write)
                return
            for write in writes:
                write.result = failed
            return
        self.commits += 1
        self._digest = digest
        for write, result in zip(writes, results, strict=True):
            write.result = result

    def _commit_alone(self, connection: sqlite3.Connection, write: Write) -> None:
        if self._connection is None:
            write.result = Result(Outcome.IO_ERROR, f"{self.path} has just failed")
        else:
            self._commit(connection, [write])

    # --- errors ----------------------------------------------------------------------------------------

    def _damaged(self, what: str) -> CannotOpenError:
        return CannotOpenError(Outcome.DAMAGED, f"{self.path} is damaged ({what}); {_UNDO}")

    def _failed(self, error: Exception) -> Result:
        if isinstance(error, CannotOpenError):
            return Result(error.outcome, str(error))
        return Result(_outcome(error), f"{self.path}: {error}")

    def _cannot_open(self, error: Exception) -> CannotOpenError:
        if isinstance(error, CannotOpenError):
            return error
        outcome = _outcome(error)
        if outcome is Outcome.DAMAGED:
            return self._damaged(str(error))
        text = {
            Outcome.LOCKED: f"{self.path} is in use by another process; two registries cannot share a "
            f"directory: give this one another {self._setting}",
            Outcome.READ_ONLY: f"{self.path} cannot be written ({error}): {self._setting} must be writable",
        }.get(outcome, f"{self.path} cannot be opened ({error}); {self._setting} says where it is")
        return CannotOpenError(outcome, text)


def _transact(
    connection: sqlite3.Connection, writes: Iterable[Write], digest: int
) -> tuple[list[Result], int]:
    """Commit writes whose expectations hold, in order and together; returns their results and the digest."""
    results = []
    connection.execute("BEGIN IMMEDIATE")
    for write in writes:
        differs = next((k for k, v in write.expect.items() if _value(connection, k) != v), None)
        if differs is not None:
            results.append(Result(Outcome.CONFLICT, f"{differs} has changed in between; read it again"))
            continue
        for change in write.changes:
            digest ^= _put(connection, change)
        results.append(Result(Outcome.COMMITTED))
    connection.execute("COMMIT")
    return results, digest


def _put(connection: sqlite3.Connection, change: Change) -> int:
    """Make a change; returns by what the digest changes."""
    row = connection.execute("SELECT sum FROM records WHERE key = ?", (change.key,)).fetchone()
    before = int.from_bytes(row[0], "big") if row else 0
    if change.value is None:
        connection.execute("DELETE FROM records WHERE key = ?", (change.key,))
        return before
    checksum = _sum(change.key, change.value)
    connection.execute("REPLACE INTO records VALUES (?, ?, ?)", (change.key, change.value, checksum))
    return before ^ int.from_bytes(checksum, "big")


def _rolled_back(connection: sqlite3.Connection) -> bool:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        return False
    return True


def _value(connection: sqlite3.Connection, key: str) -> bytes | None:
    row = connection.execute("SELECT value FROM records WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def _sum(key: str, value: bytes) -> bytes:
    return xxhash.xxh3_64_digest(key.encode() + b"\0" + value)


def _pragma(connection: sqlite3.Connection, text: str) -> object:
    row = connection.execute(f"PRAGMA {text}").fetchone()
    return row[0] if row else None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _outcome(error: Exception) -> Outcome:
    if isinstance(error, sqlite3.Error):
        # Extended codes carry the primary one in their low byte.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
        return _OUTCOMES.get(code, Outcome.IO_ERROR)
    if isinstance(error, OSError):
        return {
            errno.ENOSPC: Outcome.DISK_FULL,
            errno.EROFS: Outcome.READ_ONLY,
            errno.EACCES: Outcome.READ_ONLY,
        }.get(error.errno or 0, Outcome.IO_ERROR)
    return Outcome.IO_ERROR


class SqliteStore(Store):
    """A store in one file.

    Args:
        path: of the file; made if it isn't there.
        setting: the flag that says where it is, for error messages.
        timeout: seconds that a write or a read may take.
        counted: told what became of each.
    """

    def __init__(
        self,
        path: Path,
        *,
        setting: str = "--data-dir",
        timeout: float = 10.0,
        counted: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._database = Database(path, setting=setting)
        self._timeout = timeout
        self._counted = counted
        self._sink: Callable[[Sequence[Change]], None] = lambda _: None
        self._waiting: deque[Job] = deque()
        self._bell = threading.Condition()
        self._open = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._trouble: Outcome | None = None

    @property
    def commits(self) -> int:
        """Transactions so far; each has one flush, and any number of writes."""
        return self._database.commits

    async def open(self, sink: Callable[[Sequence[Change]], None]) -> None:
        """See :meth:`Store.open`."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[list[Change]] = loop.create_future()
        self._ended = loop.create_future()
        # A daemon, so that a disk which never answers cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=(loop, loaded), name="store", daemon=True)
        self._thread.start()
        changes = await loaded
        self._sink = sink
        for start in range(0, len(changes), SLICE):
            sink(changes[start : start + SLICE])
            await asyncio.sleep(0)
        # Not before: what is written later than this must not be told before it.
        self._open = True

    async def read(self, key: str) -> bytes | None:
        """See :meth:`Store.read`."""
        job = Read(key, future=asyncio.get_running_loop().create_future())
        await self._done(job, "read")
        return job.value

    async def write(
        self, changes: Sequence[Change], *, expect: Mapping[str, bytes | None] | None = None
    ) -> None:
        """See :meth:`Store.write`."""
        check_batch(changes, expect or {})
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        await self._done(Write(tuple(changes), expect=dict(expect or {}), future=future), "written")

    async def close(self) -> None:
        """See :meth:`Store.close`."""
        with self._bell:
            self._closing = True
            self._bell.notify()
        if self._ended is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(self._ended)
        except TimeoutError:
            log.error("store_not_closed", file=str(self._database.path), seconds=self._timeout)  # noqa: TRY400  # no stack

    async def _done(self, job: Job, done: str) -> None:
        """Have a job done, and raise what became of it unless it is well."""
        try:
            result = self._enqueue(job)
            if result is None:
                # Not by wait_for: until Python 3.12 that loses a cancellation that comes with the result.
                async with asyncio.timeout(self._timeout):
                    result = await job.future
        except TimeoutError:
            text = f"the disk has not answered for {self._timeout:g} s (--store-timeout)"
            if not self._withdraw(job):
                text += "; it may yet be committed"
            result = Result(Outcome.TIMEOUT, text)
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        self._counted(result.outcome)
        if result.outcome is Outcome.CONFLICT:
            raise Problem("conflict", result.text)
        if result.outcome is not Outcome.COMMITTED:
            raise Problem("store_unavailable", f"nothing was {done} ({result.outcome.value}): {result.text}")

    def _enqueue(self, job: Job) -> Result | None:
        with self._bell:
            if self._closing or not self._open:
                return Result(Outcome.CLOSED, "the store is closed, or not open yet")
            if len(self._waiting) >= MAX_WAITING:
                return Result(Outcome.OVERLOADED, f"{MAX_WAITING} writes and reads are waiting already")
            self._waiting.append(job)
            self._bell.notify()
        return None

    def _withdraw(self, job: Job) -> bool:
        with self._bell:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
        return True

    # --- the thread ------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[list[Change]]) -> None:
        try:
            changes = self._database.load()
        except Exception as error:  # noqa: BLE001  # whatever it is, who opens the store has to hear it
            _call(loop, _settle, loaded, error)
        else:
            _call(loop, _settle, loaded, changes)
            while jobs := self._take():
                try:
                    self._database.work(jobs)
                except Exception as error:
                    # A mistake of ours must not end the thread: every later write would wait in vain.
                    log.exception("store_failed")
                    for job in jobs:
                        job.result = Result(Outcome.IO_ERROR, f"{self._database.path}: {error!r}")
                    self._database.close()
                _call(loop, self._hand_on, jobs)
            self._database.close()
        _call(loop, _settle, self._ended, None)

    def _take(self) -> list[Job]:
        """Wait for jobs and take as many as go together; none at the end."""
        with self._bell:
            while not self._waiting and not self._closing:
                self._bell.wait()
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]

    # --- back on the event loop ------------------------------------------------------------------------

    def _hand_on(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if isinstance(job, Write) and job.result.outcome is Outcome.COMMITTED:
                try:
                    self._sink(job.changes)
                except Exception:
                    # It is committed, whatever the sink makes of it; and the others wait.
                    log.exception("store_sink_failed", keys=[change.key for change in job.changes])
            self._tell(job.result)
            if not job.future.done():
                job.future.set_result(job.result)

    def _tell(self, result: Result) -> None:
        """Log when trouble comes, changes and goes; not for each write."""
        if result.outcome is Outcome.CONFLICT:
            return
        trouble = None if result.outcome is Outcome.COMMITTED else result.outcome
        if trouble is not self._trouble:
            self._trouble = trouble
            if trouble is None:
                log.info("store_available", file=str(self._database.path))
            else:
                log.error("store_unavailable", reason=trouble.value, detail=result.text)


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if future.done():
        return
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    # A loop that is closed has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)
