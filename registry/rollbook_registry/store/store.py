"""The store of what somebody has laid down: one small interface, a file for each medium behind it.

Keys are text, values are bytes, and what they mean is :mod:`.rulings`' business. A write is a batch that is
committed whole or not at all. Whatever is committed, by whichever replica, comes to the *sink*: who reads,
reads the memory that the sink keeps, and so goes on reading while the medium is away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.problems import Problem, bad_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_CHANGES: Final = 128
"""Changes, and likewise expectations, in one batch: etcd's default for operations in one transaction."""

MAX_BATCH_BYTES: Final = 1024 * 1024
"""Bytes of one batch, keys and values and expectations together; etcd takes requests of 1.5 MiB."""


class Change(NamedTuple):
    """A key's new value; ``None``: the key is no more."""

    key: str
    value: bytes | None


class Outcome(StrEnum):
    """What became of a write or a read; logged and counted by this code."""

    COMMITTED = "committed"
    CONFLICT = "conflict"
    """Something else was there than the writer expected."""
    DISK_FULL = "disk_full"
    READ_ONLY = "read_only"
    IO_ERROR = "io_error"
    LOCKED = "locked"
    """Another process has the file."""
    DAMAGED = "damaged"
    """The file is not what this registry wrote."""
    NEWER = "newer"
    """A newer version of Rollbook wrote the file."""
    REPLACED = "replaced"
    """The file was taken away, or another one put in its place."""
    OVERLOADED = "overloaded"
    """Too many writes wait already."""
    TIMEOUT = "timeout"
    """The medium did not answer in time."""
    CLOSED = "closed"
    """The registry is stopping."""


class CannotOpenError(OSError):
    """A store that cannot be opened: the registry must not start, or it would forget what it has promised.

    Args:
        outcome: the reason.
        text: what is wrong with which file, and what to do, for people.
    """

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Store(ABC):
    """Keys, values, and who is told of them."""

    @abstractmethod
    async def open(self, sink: Callable[[Sequence[Change]], None]) -> None:
        """Load everything and give it to the sink, in as many calls as it takes, before returning.

        From then on the sink is called on the event loop, in the order of the commits, with what was
        committed here or by another replica. It may be told a value that it knows already.

        Raises:
            CannotOpenError: naming the file or address, the setting, and what to do.
        """

    @abstractmethod
    async def read(self, key: str) -> bytes | None:
        """Return the committed value of a key: what the next conditional write can expect.

        Raises:
            Problem: 503 ``store_unavailable``.
        """

    @abstractmethod
    async def write(
        self, changes: Sequence[Change], *, expect: Mapping[str, bytes | None] | None = None
    ) -> None:
        """Commit a batch, and return once it is committed and the sink has been told.

        Args:
            changes: of distinct keys; see :data:`MAX_CHANGES`, :data:`MAX_BATCH_BYTES`.
            expect: values that keys must have for the batch to be committed; ``None``: must not be there.

        Raises:
            Problem: 409 ``conflict``: something else is there than was expected, nothing was written;
                413 ``too_large``; 503 ``store_unavailable`` with the reason: not acknowledged, and not seen
                by anybody as long as this process runs.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was accepted, and let go of the medium. May be called twice."""


def check_batch(changes: Sequence[Change], expect: Mapping[str, bytes | None]) -> None:
    """Hold a batch against what every medium can take.

    Raises:
        Problem: 413 ``too_large``, or 400 ``bad_value`` for keys that are repeated or no text.
    """
    for name, count in (("changes", len(changes)), ("expect", len(expect))):
        if count > MAX_CHANGES:
            raise Problem(
                "too_large",
                f"{name} has {count} keys, and one write to the store may have {MAX_CHANGES}",
                field=name,
                accepted=f"at most {MAX_CHANGES}",
            )
    seen = set()
    size = 0
    for key, value in (*changes, *expect.items()):
        try:
            size += len(key.encode()) + len(value or b"")
        except UnicodeEncodeError:
            raise bad_value("key", key, "text that can be written as UTF-8") from None
    for key, _ in changes:
        if key in seen:
            raise bad_value("key", key, "each key once in a write")
        seen.add(key)
    if size > MAX_BATCH_BYTES:
        raise Problem(
            "too_large",
            f"the write has {size} bytes, and one write to the store may have {MAX_BATCH_BYTES}",
            field="changes",
            accepted=f"at most {MAX_BATCH_BYTES} bytes",
        )
