"""Complaints: what a pod's owner should know, as Events on the pod."""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import structlog

from rollbook_operator import retry

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from rollbook.kube import KubeApi

log = structlog.get_logger("rollbook.operator")

COMPONENT: Final = "rollbook.io/operator"
BAD_ANNOTATION: Final = "BadAnnotation"
REFUSED: Final = "RegistrationRefused"

MAX_NOTE: Final = 1024
"""Bytes that ``events.k8s.io/v1`` allows in a note."""

REMEMBERED: Final = 10_000
"""Complaints that are remembered so as not to be repeated."""

WAITING: Final = 1000
"""Complaints that wait to be posted; what comes on top of them is only logged."""

ATTEMPTS: Final = 5


class Complaints:
    """Posts Warning Events on pods, each once.

    Args:
        kube: where to post.
        instance: this operator's own name.
        now: the time of day.
        rng: where jitter comes from.
    """

    def __init__(
        self,
        kube: KubeApi,
        *,
        instance: str,
        now: Callable[[], dt.datetime],
        rng: random.Random,
    ) -> None:
        self._kube = kube
        self._instance = instance
        self._now = now
        self._rng = rng
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WAITING)

    def warn(self, *, namespace: str, name: str, uid: str, reason: str, note: str) -> bool:
        """Complain about a pod, unless the same has been said about it before.

        Returns:
            Whether it was new.
        """
        key = (uid, note)
        if key in self._told:
            self._told.move_to_end(key)
            return False
        self._told[key] = None
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        log.warning("pod_warned", pod=f"{namespace}/{name}", uid=uid, reason=reason, note=note)
        event = make_event(
            namespace=namespace,
            name=name,
            uid=uid,
            reason=reason,
            note=note,
            instance=self._instance,
            now=self._now(),
            suffix=secrets.token_hex(8),
        )
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("event_dropped", pod=f"{namespace}/{name}", why=f"{WAITING} are waiting already")
        return True

    async def run(self) -> None:
        """Post what comes, for ever."""
        while True:
            event = await self._waiting.get()
            await self._post(event)
            self._waiting.task_done()

    async def posted(self) -> None:
        """Wait until everything has been posted or given up."""
        await self._waiting.join()

    async def _post(self, event: dict[str, Any]) -> None:
        path = f"/apis/events.k8s.io/v1/namespaces/{event['metadata']['namespace']}/events"
        for attempt in range(ATTEMPTS):
            try:
                await self._kube.request("POST", path, body=event)
            except retry.API_ERRORS as error:
                trouble = error
                await retry.pause(attempt, self._rng)
            else:
                return
        log.warning("event_not_posted", pod=event["regarding"]["name"], error=str(trouble))


def make_event(
    *,
    namespace: str,
    name: str,
    uid: str,
    reason: str,
    note: str,
    instance: str,
    now: dt.datetime,
    suffix: str,
) -> dict[str, Any]:
    """Make a Warning of ``events.k8s.io/v1`` regarding a pod."""
    text = note.encode()
    if len(text) > MAX_NOTE:
        note = text[: MAX_NOTE - len("…".encode())].decode(errors="ignore") + "…"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{name[:200]}.{suffix}", "namespace": namespace},
        "eventTime": now.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": COMPONENT,
        "reportingInstance": instance[:128],
        "action": "Register",
        "reason": reason,
        "type": "Warning",
        "note": note,
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
    }
