"""Reconciling: at the start and regularly, all pods are compared with what has been entered.

Watches miss things: whatever happens while the operator restarts, or between a watch that expired and the
next list. A reconcile does not care what happened; it looks at what is. A pod that was entered and is not
listed any more is looked up by name before anybody calls it gone, and only after a list that was complete.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from rollbook_operator import annotations as marks
from rollbook_operator import retry
from rollbook_operator.sync import version_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from rollbook_operator.cluster import Cluster
    from rollbook_operator.metrics import Metrics
    from rollbook_operator.sync import Sync

log = structlog.get_logger("rollbook.operator")

AGAIN: Final = 5.0
"""Seconds after the first reconcile at which the second starts, if the interval is longer: what happened
between the first and the watches' own first lists is seen by neither."""

KINDS: Final = ("missing", "different", "surplus", "vanished")


class Reconciler:
    """Reconciles, for ever.

    Args:
        cluster: where to list.
        sync: whom to tell.
        metrics: where to count.
        interval: seconds between the end of one and the start of the next.
        synced: called after the first complete one.
        forget: called after each complete one.
        rng: where jitter comes from.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        sync: Sync,
        metrics: Metrics,
        *,
        interval: float,
        synced: Callable[[], None],
        forget: Callable[[], None],
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._sync = sync
        self._metrics = metrics
        self._interval = interval
        self._synced = synced
        self._forget = forget
        self._rng = rng
        self._clock = clock
        self.complete = False
        """Whether there has been a complete one."""

    async def run(self) -> None:
        """Reconcile now and then every interval; one that fails is repeated soon."""
        failures = 0
        pause = min(AGAIN, self._interval)
        while True:
            try:
                await self.once()
            except retry.API_ERRORS as error:
                log.warning("reconcile_failed", attempt=failures, error=str(error) or repr(error))
                self._metrics.retries.labels("list").inc()
                await retry.pause(failures, self._rng)
                failures += 1
            else:
                failures = 0
                await asyncio.sleep(pause)
                pause = self._interval

    async def once(self) -> None:
        """Compare everything, and wait until what was found has been carried out.

        Raises:
            KubeError: a list was not complete; nothing is concluded from what is not on it.
        """
        start = self._clock()
        sync = self._sync
        sync.begin_reconcile()
        # Before the lists: a pod that somebody enters while they are read need not be on them.
        before = {uid: (known.namespace, known.name) for uid, known in sync.pods.items()}
        await self._cluster.read_zones()
        listed = set()
        async for pod in self._cluster.managed():
            listed.add(pod["metadata"]["uid"])
            sync.seen(pod, reconciling=True)
        async for item in self._cluster.unmanaged():
            metadata = item["metadata"]
            uid = metadata["uid"]
            known = sync.pods.get(uid)
            if known is None and not marks.ours(metadata.get("annotations") or {}):
                continue
            listed.add(uid)
            if known is None or known.version != version_of(item):
                sync.look_up(uid, namespace=metadata["namespace"], name=metadata["name"], reconciling=True)
        for uid, (namespace, name) in before.items():
            if uid not in listed:
                sync.look_up(uid, namespace=namespace, name=name, reconciling=True)
        await sync.settle()
        for kind in KINDS:
            self._metrics.reconcile_diff.labels(kind).set(sync.differences[kind])
        self._metrics.reconcile_seconds.observe(self._clock() - start)
        self._metrics.reconciled.set(time.time())
        found = {kind: count for kind, count in sync.differences.items() if count}
        if found or not self.complete:
            log.info(
                "reconciled", pods=len(sync.pods), entries=sync.entries, first=not self.complete, **found
            )
        self._forget()
        if not self.complete:
            self.complete = True
            self._synced()
