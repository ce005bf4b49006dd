"""Following: what a client keeps of something that changes now and then, and of those who wait for that."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rollbook.model import Instance
    from rollbook.names import InstanceKey
    from rollbook.problems import Problem
    from rollbook.view import Change


class Update(NamedTuple):
    """What has changed in a list since the last update, by the instances' keys.

    Apply additions and changes before removals: then a roll-out never leaves you with nothing.

    Attributes:
        added: those that were not there.
        changed: those that are different now, as they are now.
        removed: those that have gone, as they were last.
    """

    added: list[Instance]
    changed: list[Instance]
    removed: list[Instance]


class Watcher:
    """Somebody who is told what changed: what it has been told, and which keys have been touched since.

    It costs at most the list, however slow it is: what changes twice before it looks is one change.
    """

    def __init__(self, keys: Iterable[InstanceKey]) -> None:
        self._seen: dict[InstanceKey, Instance] = {}
        self._touched: dict[InstanceKey, None] = dict.fromkeys(keys)

    def touch(self, change: Change) -> None:
        """Take notice of a change."""
        self._touched.update(dict.fromkeys(i.key for i in change.put))
        for key in change.drop:
            if key in self._seen:
                self._touched[key] = None
            else:
                # Came and went unseen: a roll-out brings ever new keys.
                self._touched.pop(key, None)

    def look(self, get: Callable[[InstanceKey], Instance | None]) -> Update:
        """Return what is different from what was returned before.

        Args:
            get: finds an instance in the list of now.
        """
        update = Update([], [], [])
        for key in self._touched:
            before, now = self._seen.pop(key, None), get(key)
            if now is not None:
                self._seen[key] = now
                if before is None:
                    update.added.append(now)
                elif before != now:
                    update.changed.append(now)
            elif before is not None:
                update.removed.append(before)
        self._touched.clear()
        return update


class Changing:
    """Something that changes until it ends, and those who wait for that.

    Each change has an event of its own, so that several who wait do not take it from each other, and none is
    missed by whoever fetches :attr:`next` before it looks.
    """

    def __init__(self) -> None:
        self._next: asyncio.Event | None = None
        self.end: Problem | None = None
        """Why nothing changes any more; ``None`` while it may."""

    @property
    def next(self) -> asyncio.Event:
        """What is set at the next change, and at the end."""
        # Made when it is asked for: most lists change, and are held, with nobody waiting.
        if self._next is None:
            self._next = asyncio.Event()
        return self._next

    def notify(self) -> None:
        """Wake those who wait."""
        event, self._next = self._next, None
        if event is not None:
            event.set()

    def finish(self, problem: Problem) -> None:
        """Wake those who wait, now and later: nothing comes any more, and this is why."""
        if self.end is None:
            self.end = problem
            self.notify()

    async def changed(self) -> None:
        """Wait for the next change.

        Raises:
            Problem: why none comes any more.
        """
        if self.end is None:
            await self.next.wait()
        self.check()

    def check(self) -> None:
        """Raise a problem if it has ended.

        Raises:
            Problem: why it has.
        """
        if self.end is not None:
            raise fresh(self.end)


class Following(Changing):
    """What is known of a service, or a pattern, that is followed."""

    def __init__(self) -> None:
        super().__init__()
        self.problem: Problem | None = None
        """Why the registry does not let it be followed, or not all of it."""
        self.answered = False
        """Whether the registry has said anything about it."""
        self.kept = False
        """Whether somebody wants it, beyond those who wait for the first answer."""
        self.awaited = 0
        """How many wait for the first answer."""
        self.watchers: list[Watcher] = []

    def take(self, change: Change) -> None:
        """Take notice of a list that has changed, or has come."""
        for watcher in self.watchers:
            watcher.touch(change)
        self.notify()

    def answer(self, problem: Problem | None) -> None:
        """Take notice of what the registry says about following it."""
        self.problem = problem
        self.answered = True
        self.notify()

    async def another_answer(self) -> None:
        """Wait, where the last answer was a refusal, for the next one.

        Raises:
            Problem: why it is still not followed.
        """
        refused = self.problem
        while self.problem is refused:
            await self.changed()
        if self.problem is not None:
            raise fresh(self.problem)

    async def first(self, come: Callable[[], bool]) -> None:
        """Wait until the first answer has come.

        Raises:
            Problem: why it is not followed.
        """
        while not come():
            if self.problem is not None:
                raise fresh(self.problem)
            await self.changed()


def fresh(problem: Problem) -> Problem:
    """Return a problem to raise: several who raise the same would share a traceback that grows."""
    return copy.copy(problem)
