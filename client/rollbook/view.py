"""View: a subscriber's copy of one service's list, kept by snapshots and deltas.

Pure: frames in, what changed out. A registry that has just started without its book must not make a
subscriber forget what it knows: until the registry is *settled*, instances that its snapshot lacks are
**held** (shown as last known) unless it says explicitly that they have gone, or lists their address anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.digest import instance_digest, spell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.frames import Current, Delta, Snapshot
    from rollbook.model import Instance
    from rollbook.names import InstanceKey, ServiceKey


_NOBODY: Final[frozenset[str]] = frozenset()
"""Shared by all views: nearly none has ever heard of a pod that has gone."""


class Change(NamedTuple):
    """What a frame changed in the list that callers see; additions are to be applied before removals."""

    put: list[Instance]
    drop: list[InstanceKey]

    def __bool__(self) -> bool:
        return bool(self.put or self.drop)


class OutOfStep(Exception):  # noqa: N818  # a state, handled by asking again, never shown
    """The frame does not fit the list; only a fresh snapshot helps."""


class View:
    """One service's list at a subscriber."""

    def __init__(self, service: ServiceKey) -> None:
        self.service = service
        self.revision = ""
        self.settled = False
        self.protect_threshold: float | None = None
        self._book: dict[InstanceKey, Instance] = {}
        self._held: dict[InstanceKey, Instance] = {}
        self._shown: tuple[Instance, ...] | None = ()
        self._gone = _NOBODY
        self._digest = 0

    @property
    def known(self) -> bool:
        """Whether a list has ever arrived."""
        return bool(self.revision)

    @property
    def digest(self) -> str:
        """The digest of the registry's list as this view has it (what is held is not part of it)."""
        return spell(self._digest)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The list that callers see: the same object until it changes."""
        if self._shown is None:
            self._shown = (*self._book.values(), *self._held.values())
        return self._shown

    def get(self, key: InstanceKey) -> Instance | None:
        """Return the instance that callers see under a key, if there is one."""
        return self._book.get(key) or self._held.get(key)

    def restore(self, instances: Iterable[Instance], revision: str) -> None:
        """Start from a copy that was kept on disk: shown, and held until a registry says otherwise."""
        self._held = {i.key: i for i in instances}
        self._book = {}
        self._shown = None
        self._digest = 0
        self.revision = revision

    def snapshot(self, frame: Snapshot) -> Change:
        """Take the whole list."""
        before = {i.key: i for i in self.instances}
        self._book = {i.key: i for i in frame.instances}
        self._digest = 0
        for instance in frame.instances:
            self._digest ^= instance_digest(instance)
        self._held = {}
        if not frame.settled:
            self._held = {
                k: i for k, i in before.items() if k not in self._book and i.owner not in self._gone
            }
        self._drop_superseded()
        self._shown = None
        self.revision = frame.revision
        self.settled = frame.settled
        self.protect_threshold = frame.protect_threshold
        return self._difference(before)

    def current(self, frame: Current) -> Change:
        """Learn that the registry has the very list that is held here.

        Raises:
            OutOfStep: a change that was on its way at the time has made it another list.
        """
        if frame.digest and frame.digest != self.digest:
            raise OutOfStep(f"current is {frame.digest}, held {self.digest}")
        self.revision = frame.revision
        self.protect_threshold = frame.protect_threshold
        return self.settle() if frame.settled else Change([], [])

    def delta(self, frame: Delta) -> Change:
        """Apply a change.

        Raises:
            OutOfStep: it does not apply to this revision, or would lead to another digest. Nothing changed.
        """
        if frame.base != self.revision:
            raise OutOfStep(f"delta on {frame.base}, held {self.revision}")
        after = self._digest
        changed: dict[InstanceKey, Instance | None] = {i.key: i for i in frame.put}
        changed.update(dict.fromkeys(frame.drop))
        for key, new in changed.items():
            old = self._book.get(key)
            if old is not None:
                after ^= instance_digest(old)
            if new is not None:
                after ^= instance_digest(new)
        if spell(after) != frame.digest:
            raise OutOfStep(f"digest {spell(after)} at {frame.revision}, the registry's is {frame.digest}")
        dropped = []
        for instance in frame.put:
            self._book[instance.key] = instance
            self._held.pop(instance.key, None)
            dropped += self._drop_superseded_by(instance)
        for key in frame.drop:
            listed = self._book.pop(key, None)
            held = self._held.pop(key, None)
            if listed is not None or held is not None:
                dropped.append(key)
        if frame.put or dropped:
            self._shown = None
        self._digest = after
        self.revision = frame.revision
        self.protect_threshold = frame.protect_threshold
        return Change(frame.put, dropped)

    def settle(self) -> Change:
        """Let go of what is only held: the registry knows everybody by now."""
        self.settled = True
        dropped = list(self._held)
        if dropped:
            self._held = {}
            self._shown = None
        self._gone = _NOBODY
        return Change([], dropped)

    def gone(self, owners: Iterable[str]) -> Change:
        """Let go of what is only held of pods that are said to be gone, and hold nothing of them any more."""
        self._gone |= frozenset(owners)
        dropped = [key for key, instance in self._held.items() if instance.owner in self._gone]
        for key in dropped:
            del self._held[key]
            self._shown = None
        return Change([], dropped)

    def vanish(self) -> Change:
        """Learn that the service is in the book no more."""
        dropped = [i.key for i in self.instances]
        self._book = {}
        self._held = {}
        self._shown = ()
        self._digest = 0
        self.revision = ""
        return Change([], dropped)

    def unsettle(self) -> None:
        """Remember that the next registry's book may be younger than this list."""
        self.settled = False

    def _drop_superseded(self) -> None:
        if self._held:
            listed = {(i.ip, i.port) for i in self._book.values()}
            self._held = {k: i for k, i in self._held.items() if (i.ip, i.port) not in listed}

    def _drop_superseded_by(self, instance: Instance) -> list[InstanceKey]:
        if not self._held:
            return []
        gone = [k for k, i in self._held.items() if (i.ip, i.port) == (instance.ip, instance.port)]
        for key in gone:
            del self._held[key]
        return gone

    def _difference(self, before: dict[InstanceKey, Instance]) -> Change:
        after = {i.key: i for i in self.instances}
        return Change(
            [i for k, i in after.items() if before.get(k) != i], [k for k in before if k not in after]
        )
