"""The lock on the data directory: one registry, one directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from rollbook_registry.store.files import PRIVATE
from rollbook_registry.store.store import CannotOpenError, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME: Final = "lock"
"""The file's name. It stays when the registry has gone: what counts is who has it locked."""


@contextlib.contextmanager
def held(directory: Path, *, setting: str = "--data-dir") -> Iterator[None]:
    """Hold a directory for this process; the system lets go of it if the process dies in whatever way.

    Raises:
        CannotOpenError: another registry holds it; or the lock cannot be made.
    """
    path = directory / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise CannotOpenError(
            Outcome.READ_ONLY, f"{path} cannot be made ({error.strerror}): {setting} must be writable"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise CannotOpenError(
                Outcome.LOCKED,
                f"{directory} is in use by another registry (process {holder or 'unknown'}); two cannot "
                f"share a directory: give this one another {setting}",
            ) from error
        except OSError as error:
            raise CannotOpenError(
                Outcome.IO_ERROR,
                f"{path} cannot be locked ({error.strerror}): put {setting} on another file system",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
