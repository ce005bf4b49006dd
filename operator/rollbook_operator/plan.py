"""The difference between what the book should say and what has been entered: a pure function."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rollbook.model import Entry, EntryRef


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to tell the registry. Whoever carries it out puts before dropping.

    Attributes:
        missing: entries that are not there yet.
        different: entries that are there and say something else.
        surplus: entries that should not be there.
    """

    missing: tuple[Entry, ...] = ()
    different: tuple[Entry, ...] = ()
    surplus: tuple[EntryRef, ...] = ()

    @property
    def put(self) -> tuple[Entry, ...]:
        """What is to be put, new or changed."""
        return self.missing + self.different

    def __bool__(self) -> bool:
        return bool(self.missing or self.different or self.surplus)


def plan(desired: Iterable[Entry], entered: Mapping[EntryRef, Entry]) -> Plan:
    """Compare one pod's desired entries with those that have been entered for it."""
    wanted = {entry.ref: entry for entry in desired}
    return Plan(
        missing=tuple(e for ref, e in wanted.items() if ref not in entered),
        different=tuple(e for ref, e in wanted.items() if ref in entered and entered[ref] != e),
        surplus=tuple(ref for ref in entered if ref not in wanted),
    )
