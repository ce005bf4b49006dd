"""The questions that the operator asks the API server."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from rollbook.kube import METADATA_LIST, METADATA_ONE, KubeError
from rollbook_operator.annotations import MANAGED_LABEL
from rollbook_operator.desired import ZONE_LABEL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rollbook.kube import KubeApi

PODS: Final = "/api/v1/pods"
NODES: Final = "/api/v1/nodes"
MANAGED: Final = f"{MANAGED_LABEL}=true"
UNMANAGED: Final = f"{MANAGED_LABEL}!=true"
"""Also selects what has no such label at all."""

PAGE: Final = "500"
"""Objects in one page of a list; the API server's own default for its clients."""


class Cluster:
    """What the operator knows of the cluster, and asks it."""

    def __init__(self, kube: KubeApi) -> None:
        self._kube = kube
        self._zones: dict[str, str] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Get a pod as it is now (a quorum read); ``None`` if there is none of that name.

        Raises:
            KubeError: the API server refused; proof of nothing.
        """
        return await self._found(f"/api/v1/namespaces/{namespace}/pods/{name}", accept="application/json")

    async def managed(self) -> AsyncIterator[dict[str, Any]]:
        """List all pods that carry the label.

        Raises:
            KubeError: the list is not complete.
        """
        async for page in self.pages(PODS, accept="application/json", labelSelector=MANAGED):
            for pod in page["items"]:
                yield pod

    async def unmanaged(self) -> AsyncIterator[dict[str, Any]]:
        """List the metadata of all pods without the label.

        Raises:
            KubeError: the list is not complete.
        """
        async for page in self.pages(PODS, accept=METADATA_LIST, labelSelector=UNMANAGED):
            for item in page["items"]:
                yield item

    async def pages(self, path: str, *, accept: str, **params: str) -> AsyncIterator[dict[str, Any]]:
        """List objects page by page.

        Raises:
            KubeError: 410 if it took so long that the list expired in between; start over.
        """
        more: dict[str, str] = {}
        while True:
            page = await self._kube.get(path, accept=accept, limit=PAGE, **params, **more)
            page["items"] = page.get("items") or []
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            more = {"continue": token}

    async def watch_unmanaged(self, version: str) -> AsyncIterator[dict[str, Any]]:
        """Follow the metadata of pods without the label, from a list's version on.

        Raises:
            KubeError: 410 if the version is too old; list again.
        """
        async for event in self._kube.watch(
            PODS, accept=METADATA_ONE, labelSelector=UNMANAGED, resourceVersion=version
        ):
            yield event

    async def read_zones(self) -> None:
        """Read the zones of all nodes.

        Raises:
            KubeError: the API server refused.
        """
        zones = {}
        async for page in self.pages(NODES, accept=METADATA_LIST):
            for node in page["items"]:
                zones[node["metadata"]["name"]] = _zone(node)
        self._zones = zones

    def known_zone(self, node: str) -> str | None:
        """Return a node's zone, empty if it has none; ``None`` if it must be asked for."""
        return self._zones.get(node) if node else ""

    async def ask_zone(self, node: str) -> None:
        """Learn a node's zone.

        Raises:
            KubeError: the API server refused.
        """
        lock = self._asking.setdefault(node, asyncio.Lock())
        async with lock:
            if node not in self._zones:
                found = await self._found(f"{NODES}/{node}", accept=METADATA_ONE)
                self._zones[node] = _zone(found) if found else ""
        self._asking.pop(node, None)

    async def _found(self, path: str, *, accept: str) -> dict[str, Any] | None:
        try:
            result: dict[str, Any] = await self._kube.get(path, accept=accept)
        except KubeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return result


def _zone(node: dict[str, Any]) -> str:
    return str((node["metadata"].get("labels") or {}).get(ZONE_LABEL, ""))
