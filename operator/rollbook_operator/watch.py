"""The two watches: kopf's of pods that carry our label, and our own of the metadata of all others.

Neither does anything but tell :class:`~rollbook_operator.sync.Sync` what it saw.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import kopf
import structlog
from kopf._core.engines.peering import Identity  # a NewType that kopf asks for and does not export

from rollbook.kube import METADATA_LIST, KubeError
from rollbook_operator import annotations as marks
from rollbook_operator import retry
from rollbook_operator.cluster import MANAGED, PODS, UNMANAGED

if TYPE_CHECKING:
    import random
    from collections.abc import Collection

    from rollbook.kube import KubeApi
    from rollbook_operator.cluster import Cluster
    from rollbook_operator.metrics import Metrics
    from rollbook_operator.sync import Sync

log = structlog.get_logger("rollbook.operator")

PAUSE: Final = 0.1
"""Seconds between the end of a watch and the next, so that a server that ends them at once is not flooded."""


def make_handlers(kube: KubeApi, sync: Sync) -> kopf.OperatorRegistry:
    """Declare to kopf what we want of it: every event of a selected pod, nothing on the pods themselves."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        # Our own session: one reader of kubeconfigs and tokens, and a rotated token counts from then on.
        return kopf.AiohttpSession(server=kube.base, aiohttp_session=kube.new_session())

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_event(event: Any, **_: Any) -> None:
        if event["type"] == "DELETED":
            sync.deleted(event["object"])
        else:
            sync.seen(event["object"])

    return registry


def make_settings() -> kopf.OperatorSettings:
    """Configure kopf: select on the server, post nothing, look for nothing that we gave no right to read."""
    settings = kopf.OperatorSettings()
    settings.watching.label_selectors["", "v1", "pods"] = MANAGED
    settings.watching.chunk_size = 500
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    return settings


async def start_kopf(kube: KubeApi, sync: Sync) -> Collection[asyncio.Task[None]]:
    """Start kopf's tasks on this loop.

    It takes over the handling of SIGINT and SIGTERM; whoever calls this takes it back afterwards. What runs
    them must be :func:`kopf.run_tasks`.
    """
    return await kopf.spawn_tasks(
        registry=make_handlers(kube, sync),
        settings=make_settings(),
        clusterwide=True,
        standalone=True,
        # Left to itself it asks for the user's name, which a user that is only a number does not have.
        identity=Identity("rollbook-operator"),
    )


class UnmanagedWatch:
    """Follows the metadata of pods without our label, and has those looked at that are annotated.

    They were created while the webhook was down, or annotated later.

    Args:
        cluster: where to watch.
        sync: whom to tell.
        metrics: where to count.
        rng: where jitter comes from.
    """

    def __init__(self, cluster: Cluster, sync: Sync, metrics: Metrics, *, rng: random.Random) -> None:
        self._cluster = cluster
        self._sync = sync
        self._metrics = metrics
        self._rng = rng
        self._version = ""

    async def run(self) -> None:
        """List and watch, for ever."""
        failures = 0
        while True:
            try:
                if not self._version:
                    self._version = await self._list()
                async for event in self._cluster.watch_unmanaged(self._version):
                    failures = 0
                    self._on_event(event)
                await asyncio.sleep(PAUSE)
            except retry.API_ERRORS as error:
                if isinstance(error, KubeError) and error.status == HTTPStatus.GONE:
                    self._version = ""
                    log.debug("watch_expired")
                else:
                    log.warning("watch_failed", attempt=failures, error=str(error) or repr(error))
                    self._metrics.retries.labels("watch").inc()
                await retry.pause(failures, self._rng)
                failures += 1

    async def _list(self) -> str:
        version = ""
        async for page in self._cluster.pages(PODS, accept=METADATA_LIST, labelSelector=UNMANAGED):
            # The first page's version is that of the snapshot from which all pages come.
            version = version or page["metadata"]["resourceVersion"]
            for item in page["items"]:
                self._consider(item)
        return version

    def _on_event(self, event: dict[str, Any]) -> None:
        item = event["object"]
        self._version = item["metadata"]["resourceVersion"]
        if event["type"] != "BOOKMARK":
            self._consider(item)

    def _consider(self, item: dict[str, Any]) -> None:
        metadata = item["metadata"]
        uid = metadata["uid"]
        if uid in self._sync.pods or marks.ours(metadata.get("annotations") or {}):
            self._sync.look_up(uid, namespace=metadata["namespace"], name=metadata["name"])
