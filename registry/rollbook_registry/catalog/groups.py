"""Groups: which entries are merged with each other, and which of them have to be merged again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook_registry.catalog.merge import merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rollbook.model import EntryRef
    from rollbook.names import LeaseId
    from rollbook_registry.catalog.leases import Held
    from rollbook_registry.catalog.merge import Visible

GroupKey = tuple[object, ...]
"""``(pod UID,)``, or the endpoint of what has no owner."""


def group_key(ref: EntryRef) -> GroupKey:
    """Return which group an entry belongs to."""
    if ref.owner:
        return (ref.owner,)
    return (ref.namespace, ref.group, ref.service, ref.ip, ref.port, ref.cluster)


def is_pod(key: GroupKey) -> bool:
    """Say whether a group is a pod's."""
    return len(key) == 1


class Group:
    """The entries about one pod, or about one endpoint without an owner, and what they merge to."""

    __slots__ = ("held", "visible")

    def __init__(self) -> None:
        self.held: dict[tuple[LeaseId, EntryRef], Held] = {}
        self.visible: Visible = {}


class Groups:
    """All groups."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, Group] = {}
        self._at_address: dict[str, set[GroupKey]] = {}
        self._touched: dict[GroupKey, None] = {}
        self.silent: dict[str, float] = {}
        """Pods that Kubernetes calls ready and nobody beats for, and since when."""

    def get(self, key: GroupKey) -> Group | None:
        """Return a group, if there is anything in it."""
        return self._groups.get(key)

    def pods(self) -> Iterator[tuple[str, Group]]:
        """All pods that something is said about, by UID."""
        for key, group in self._groups.items():
            if is_pod(key):
                yield str(key[0]), group

    def add(self, held: Held) -> Group:
        """Put an entry where it belongs, in the place of what its lease said before."""
        ref = held.entry.ref
        key = group_key(ref)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group()
        group.held[held.lease, ref] = held
        self._at_address.setdefault(ref.ip, set()).add(key)
        self._touched[key] = None
        return group

    def remove(self, held: Held) -> None:
        """Take an entry away."""
        ref = held.entry.ref
        key = group_key(ref)
        group = self._groups[key]
        del group.held[held.lease, ref]
        if not any(h.entry.ip == ref.ip for h in group.held.values()):
            groups = self._at_address[ref.ip]
            groups.discard(key)
            if not groups:
                del self._at_address[ref.ip]
        self._touched[key] = None

    def touch(self, ref: EntryRef) -> None:
        """Have a group merged again."""
        self._touched[group_key(ref)] = None

    def at_address(self, ip: str) -> list[GroupKey]:
        """Which groups have something at an address."""
        return list(self._at_address.get(ip, ()))

    @property
    def touched(self) -> bool:
        """Whether anything has to be merged again."""
        return bool(self._touched)

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
        touched, self._touched = self._touched, {}
        for key in touched:
            group = self._groups.get(key)
            if group is None:
                continue
            merged = merge(group.held.values())
            before, group.visible = group.visible, last(merged.visible)
            if is_pod(key):
                uid = str(key[0])
                if merged.silent:
                    self.silent.setdefault(uid, now)
                else:
                    self.silent.pop(uid, None)
            if not group.held:
                del self._groups[key]
            if before != group.visible:
                yield before, group.visible
