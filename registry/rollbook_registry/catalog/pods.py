"""Closing and fencing: pods that may not speak any more. Both sets only grow (until they are long past)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import xxhash

from rollbook.problems import Problem
from rollbook_registry.catalog.records import PodRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

FENCE_KEPT: Final = 24 * 3600.0
"""Seconds for which a fence is remembered: longer than any token that a pod could still hold."""


class Marked(NamedTuple):
    """A pod that may not speak.

    Attributes:
        at: attentive time at which that was learnt; before this process' life, it is negative.
    """

    at: float
    ips: tuple[str, ...] = ()


class Pods:
    """Which pods are closed (terminating) and fenced (confirmed gone)."""

    def __init__(self) -> None:
        self._closed: dict[str, Marked] = {}
        self._fenced: dict[str, Marked] = {}
        self._spoke: dict[str, float] = {}
        """When somebody last spoke in the name of a fenced pod."""
        self.digest = 0
        """XOR of xxh64 over who is closed and who fenced, to be compared with other replicas'."""

    def close(self, uid: str, at: float) -> bool:
        """Close a pod; says whether that is news."""
        if uid in self._closed or uid in self._fenced:
            return False
        self._closed[uid] = Marked(at)
        self.digest ^= _digest(uid, "closed")
        return True

    def fence(self, uid: str, at: float, ips: tuple[str, ...] = ()) -> bool:
        """Fence a pod; says whether that is news."""
        if self._closed.pop(uid, None) is not None:
            self.digest ^= _digest(uid, "closed")
        news = uid not in self._fenced
        if news:
            self._fenced[uid] = Marked(at, ips)
            self.digest ^= _digest(uid, "fenced")
        return news

    def check(self, uid: str, now: float) -> None:
        """Refuse what speaks in the name of a closed or fenced pod.

        Raises:
            Problem: 410 ``pod_terminating`` or ``pod_gone``.
        """
        if uid in self._fenced:
            self._spoke[uid] = now
            raise Problem("pod_gone", f"pod {uid} is confirmed gone; nothing speaks in its name any more")
        if uid in self._closed:
            raise Problem("pod_terminating", f"pod {uid} is terminating and leaves the book")

    def __contains__(self, uid: str) -> bool:
        return uid in self._closed or uid in self._fenced

    def forget(self, now: float) -> None:
        """Let go of what is older than :data:`FENCE_KEPT`."""
        for kept, state in ((self._fenced, "fenced"), (self._closed, "closed")):
            # Not in order of age: some were learnt from the disk or from a peer.
            for uid in [u for u, marked in kept.items() if now - marked.at >= FENCE_KEPT]:
                del kept[uid]
                self.digest ^= _digest(uid, state)
                self._spoke.pop(uid, None)

    def records(self, now: float) -> Iterator[PodRecord]:
        """All of them, for peers and for the disk; there may be changes between two steps."""
        closed, fenced = list(self._closed.items()), list(self._fenced.items())
        for uid, marked in closed:
            yield PodRecord(uid=uid, age=now - marked.at)
        for uid, marked in fenced:
            yield PodRecord(uid=uid, fenced=True, age=now - marked.at, ips=list(marked.ips))

    def state(self, uid: str) -> str:
        """``closed``, ``fenced``, or nothing."""
        return "fenced" if uid in self._fenced else "closed" if uid in self._closed else ""

    def addresses(self, uid: str) -> tuple[str, ...]:
        """Where a fenced pod was, as far as its fence says."""
        marked = self._fenced.get(uid)
        return marked.ips if marked is not None else ()

    def zombies(self, now: float, within: float) -> Iterator[tuple[str, float]]:
        """Fenced pods in whose name somebody spoke in the last so many seconds, and how long ago."""
        for uid, at in self._spoke.items():
            if now - at <= within:
                yield uid, now - at

    def terminating(self, now: float, longer_than: float) -> Iterator[tuple[str, float]]:
        """Closed pods that have not been confirmed gone for so many seconds, and for how long."""
        for uid, marked in self._closed.items():
            if now - marked.at >= longer_than:
                yield uid, now - marked.at

    @property
    def closed(self) -> int:
        """How many are closed."""
        return len(self._closed)

    @property
    def fenced(self) -> int:
        """How many are fenced."""
        return len(self._fenced)


def _digest(uid: str, state: str) -> int:
    return xxhash.xxh64_intdigest(f"{state} {uid}".encode())
