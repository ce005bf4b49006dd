"""Groups: which entries are merged with each other, and which of them have to be merged again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rollbook.model import EntryRef
from rollbook_registry.catalog.leases import Held
from rollbook_registry.catalog.merge import Visible, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rollbook.model import Instance

GroupKey = str | EntryRef
"""A pod's UID; or the endpoint, of what has no owner."""


def group_key(ref: EntryRef) -> GroupKey:
    """Return which group an entry belongs to."""
    return ref.owner or ref


def is_pod(key: GroupKey) -> bool:
    """Say whether a group is a pod's."""
    return isinstance(key, str)


class Group(msgspec.Struct, gc=False, eq=False):
    """The entries about one pod, or about one endpoint without an owner, and what they merge to.

    There is one for each instance, so that it keeps no more than it must: most have one entry, or two, and
    show one instance. Tuples of what refers to nothing else cost the collector nothing either.

    Attributes:
        held: the entries.
        visible: what everybody sees of it.
    """

    held: tuple[Held, ...]
    visible: Visible = ()

    def shown_at(self, ref: EntryRef) -> list[Instance]:
        """Return what is shown in a service at an address and port, in whichever cluster."""
        service = ref.service_key
        return [
            one.instance
            for one in self.visible
            if one.instance.port == ref.port and one.instance.ip == ref.ip and one.service == service
        ]


class Groups:
    """All groups."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, Group] = {}
        self._at_address: dict[str, GroupKey | set[GroupKey]] = {}
        """Most addresses have one group, and a set of one would be its largest part."""
        self.touched: dict[GroupKey, None] = {}
        """What has to be merged again."""
        self.silent: dict[str, float] = {}
        """Pods that Kubernetes calls ready and nobody beats for, and since when."""

    def get(self, key: GroupKey) -> Group | None:
        """Return a group, if there is anything in it."""
        return self._groups.get(key)

    def add(self, held: Held, old: Held | None) -> None:
        """Put an entry where it belongs, in the place of what its lease said before."""
        key = group_key(held.ref)
        self.touched[key] = None
        if old is not None:
            group = self._groups[key]
            at = group.held.index(old)
            group.held = (*group.held[:at], held, *group.held[at + 1 :])
            return
        known = self._groups.get(key)
        if known is None:
            self._groups[key] = Group((held,))
        else:
            known.held += (held,)
        self._enter_address(held.ref.ip, key)

    def remove(self, held: Held) -> None:
        """Take an entry away."""
        key, ip = group_key(held.ref), held.ref.ip
        group = self._groups[key]
        at = group.held.index(held)
        group.held = group.held[:at] + group.held[at + 1 :]
        if not any(h.ref.ip == ip for h in group.held):
            self._leave_address(ip, key)
        self.touched[key] = None

    def _enter_address(self, ip: str, key: GroupKey) -> None:
        there = self._at_address.setdefault(ip, key)
        if isinstance(there, set):
            there.add(key)
        elif there != key:
            self._at_address[ip] = {there, key}

    def _leave_address(self, ip: str, key: GroupKey) -> None:
        there = self._at_address[ip]
        if isinstance(there, set) and len(there) > 1:
            there.discard(key)
        else:
            del self._at_address[ip]

    def touch(self, ref: EntryRef) -> None:
        """Have a group merged again."""
        self.touched[group_key(ref)] = None

    def at_address(self, ip: str) -> list[GroupKey]:
        """Which groups have something at an address."""
        there = self._at_address.get(ip, set())
        return list(there) if isinstance(there, set) else [there]

    def merge_touched(
        self, now: float, last: Callable[[Visible], Visible]
    ) -> Iterator[tuple[Visible, Visible]]:
        """Merge what was touched again.

        Args:
            now: attentive time.
            last: applied to what is merged.

        Yields:
            What was shown of a group before, and what is now, where that is different.
        """
        touched, self.touched = self.touched, {}
        for key in touched:
            group = self._groups.get(key)
            if group is None:
                continue
            merged = merge(group.held)
            before, after = group.visible, last(merged.visible)
            if isinstance(key, str):
                if merged.silent:
                    self.silent.setdefault(key, now)
                else:
                    self.silent.pop(key, None)
            if not group.held:
                del self._groups[key]
            if before != after:
                group.visible = after
                yield before, after
