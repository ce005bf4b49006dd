"""What snapshot and journal have in common: a magic word, a version, and what can be wrong."""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final

LENGTH: Final = struct.Struct(">I")
_VERSION: Final = struct.Struct(">H")


class Fault(StrEnum):
    """Why a file cannot be used; logged and counted by this code."""

    FOREIGN = "foreign"
    """It isn't a file of this kind at all."""
    FUTURE = "future_version"
    """A newer version of Rollbook wrote it."""
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    """Its checksum, or what is under it, is wrong."""


class UnusableError(Exception):
    """A file that cannot be used.

    Args:
        fault: the reason.
        detail: what was found, for people.
    """

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def head(magic: bytes, version: int) -> bytes:
    """Return what a file begins with."""
    return magic + _VERSION.pack(version)


def body_start(data: bytes, magic: bytes, version: int) -> int:
    """Return where the body begins.

    Raises:
        UnusableError: the file is another's, or of a version that is not known here.
    """
    size = len(magic) + _VERSION.size
    if data[: len(magic)] != magic[: len(data)]:
        raise UnusableError(Fault.FOREIGN, f"it does not begin with {magic.decode()}")
    if len(data) < size:
        raise UnusableError(Fault.TRUNCATED, f"it has {len(data)} bytes")
    (found,) = _VERSION.unpack_from(data, len(magic))
    if found > version:
        raise UnusableError(Fault.FUTURE, f"its format is {found}, and this version knows {version}")
    if found != version:
        raise UnusableError(Fault.DAMAGED, f"its format is {found}, which there never was")
    return size
