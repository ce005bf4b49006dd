"""Closing and fencing: pods that may not speak any more. Both sets only grow (until they are long past)."""

from __future__ import annotations

from typing import Final

from rollbook.problems import Problem

FENCE_KEPT: Final = 24 * 3600.0
"""Seconds for which a fence is remembered: longer than any token that a pod could still hold."""


class Pods:
    """Which pods are closed (terminating) and fenced (confirmed gone)."""

    def __init__(self) -> None:
        self._closed: dict[str, float] = {}
        self._fenced: dict[str, float] = {}

    def close(self, uid: str, now: float) -> bool:
        """Close a pod; says whether that is news."""
        if uid in self._closed or uid in self._fenced:
            return False
        self._closed[uid] = now
        return True

    def fence(self, uid: str, now: float) -> bool:
        """Fence a pod; says whether that is news."""
        self._closed.pop(uid, None)
        news = uid not in self._fenced
        if news:
            self._fenced[uid] = now
        return news

    def check(self, uid: str) -> None:
        """Refuse what speaks in the name of a closed or fenced pod.

        Raises:
            Problem: 410 ``pod_terminating`` or ``pod_gone``.
        """
        if uid in self._fenced:
            raise Problem("pod_gone", f"pod {uid} is confirmed gone; nothing speaks in its name any more")
        if uid in self._closed:
            raise Problem("pod_terminating", f"pod {uid} is terminating and leaves the book")

    def forget(self, now: float) -> None:
        """Let go of what is older than :data:`FENCE_KEPT`."""
        for kept in (self._fenced, self._closed):
            while kept:
                uid = next(iter(kept))
                if now - kept[uid] < FENCE_KEPT:
                    break
                del kept[uid]

    @property
    def closed(self) -> int:
        """How many are closed."""
        return len(self._closed)

    @property
    def fenced(self) -> int:
        """How many are fenced."""
        return len(self._fenced)
