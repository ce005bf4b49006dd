"""Files: written whole or not at all, and put aside when they cannot be used."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAMAGED_KEPT: Final = 3
"""How many unusable files of one name are kept for whoever wants to look into them."""

TEMPORARY: Final = ".tmp"
"""What the names of half-written files end with."""

PRIVATE: Final = 0o600
"""Permissions: metadata of instances is nobody else's business."""


def sync_directory(directory: Path) -> None:
    """Make a directory's list of names last: a file that was renamed is not there until this is done.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WholeFile:
    """A file that takes the place of another when it is complete, and otherwise leaves no trace.

    Args:
        path: whose place it takes.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
        self._placed = False
        self.size = 0
        """Bytes so far."""

    def write(self, data: bytes | bytearray) -> None:
        """Append.

        Raises:
            OSError: the disk failed, or is full.
        """
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view)
            self.size += written
            view = view[written:]

    def commit(self) -> None:
        """Flush it, put it in its place, and make that last.

        Raises:
            OSError: the disk failed; then the old file is still there.
        """
        os.fsync(self._descriptor)
        self._close()
        self._temporary.replace(self._path)
        self._placed = True
        sync_directory(self._path.parent)

    def abandon(self) -> None:
        """Leave no trace of it. After a commit there is nothing to do."""
        with contextlib.suppress(OSError):
            self._close()
        if not self._placed:
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def clean(directory: Path) -> None:
    """Remove what was left half-written when the process was killed.

    Raises:
        OSError: the directory cannot be read or written.
    """
    for path in directory.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def set_aside(path: Path, *, name: str) -> Path:
    """Rename a file that cannot be used to ``NAME.damaged-N``, and keep the newest of these only.

    Raises:
        OSError: it cannot be renamed.
    """
    found = sorted(numbered(path.parent, f"{name}.damaged-"))
    number = found[-1][0] + 1 if found else 1
    aside = path.with_name(f"{name}.damaged-{number}")
    path.rename(aside)
    for _, old in found[: max(0, len(found) + 1 - DAMAGED_KEPT)]:
        with contextlib.suppress(OSError):
            old.unlink()
    return aside


def numbered(directory: Path, prefix: str) -> Iterator[tuple[int, Path]]:
    """The files of a directory whose names are a prefix and a number, and their numbers.

    Raises:
        OSError: the directory cannot be read.
    """
    for path in directory.iterdir():
        number = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and number.isascii() and number.isdecimal():
            yield int(number), path


class AppendedFile:
    """A file that grows by whole appends. It is made with the first of them.

    Args:
        path: of the file; there must be none.
        head: what it begins with.
        limit: bytes that it may grow to.
    """

    def __init__(self, path: Path, *, head: bytes, limit: int) -> None:
        self._path = path
        self._head = head
        self.limit = limit
        self._descriptor = -1
        self.size = 0
        """Bytes so far."""
        self.broken = False
        """Whether a torn append could not be taken back: what came after it could not be read."""

    def append(self, data: bytes) -> None:
        """Append with one write, or not at all.

        Raises:
            OSError: the disk failed, or is full, or the file is as large as it may be.
        """
        if self.broken:
            raise OSError(errno.EIO, "an earlier write is torn", str(self._path))
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._descriptor = os.open(self._path, flags, PRIVATE)
        if not self.size:
            data = self._head + data
        if self.size + len(data) > self.limit:
            raise OSError(errno.EFBIG, f"it may have {self.limit} bytes", str(self._path))
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            self._take_back()
            raise
        if written < len(data):
            self._take_back()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self.size += written

    def close(self) -> None:
        """Let go of it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _take_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.size)
        except OSError:
            self.broken = True
