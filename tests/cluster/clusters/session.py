"""Who uses the test cluster, and what becomes of it afterwards."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clusters.tools import locked

if TYPE_CHECKING:
    import contextlib
    from pathlib import Path

    from clusters.api import Cluster

KEEP_VARIABLE = "ROLLBOOK_KEEP_CLUSTER"
DEFAULT_TAG = "dev"
COMPONENTS = ("registry", "sidecar", "operator")


def session_lock(cluster: Cluster, purpose: str, *, wait: float) -> contextlib.AbstractContextManager[int]:
    """There is one test cluster on a machine: one test run at a time."""
    return locked(cluster.state_dir / "session.lock", purpose=purpose, wait=wait)


def keep(cluster: Cluster, *, wanted: bool) -> None:
    """Note whether the cluster was brought up to stay, by somebody's hand."""
    note = cluster.state_dir / "kept"
    if wanted:
        note.touch()
    else:
        note.unlink(missing_ok=True)


def kept(cluster: Cluster) -> bool:
    """Whether the cluster is to outlive a test run: brought up by hand, or because `ROLLBOOK_KEEP_CLUSTER=1`.

    Under CI only the variable counts: what somebody left there is nobody's any more.
    """
    if os.environ.get(KEEP_VARIABLE) == "1":
        return True
    continuous = os.environ.get("CI", "").lower() in {"true", "1"}
    return not continuous and (cluster.state_dir / "kept").exists()


def images_of_the_project(cluster: Cluster, context: Path, version: str) -> dict[str, str]:
    """Build the project's images and put them on the node; component → what a pod spec has to say."""
    tags = {component: f"rollbook/{component}:{version}" for component in COMPONENTS}
    references = cluster.build_images(context, {tags[component]: component for component in COMPONENTS})
    return {component: references[tags[component]] for component in COMPONENTS}
