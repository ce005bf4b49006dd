"""The operator's epoch: how often its Lease has changed hands.

Whoever starts takes the Lease over, and shows its number of transitions to the registry; the registry hears
only the highest it has seen. So an operator that was cut off, and comes back after another one has started,
cannot undo what that one says.
"""

from __future__ import annotations

import datetime as dt
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog

from rollbook.kube import KubeError
from rollbook_operator import retry

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from rollbook.kube import KubeApi

log = structlog.get_logger("rollbook.operator")

DEFAULT_NAME: Final = "rollbook-operator"


def taken_over(
    lease: dict[str, Any] | None, *, namespace: str, name: str, holder: str, now: dt.datetime
) -> dict[str, Any]:
    """Return the Lease as it shall be from now on.

    Args:
        lease: as it is; ``None`` if there is none yet.
        namespace: where it is.
        name: what it is called.
        holder: who takes it.
        now: the time of day; for people, nothing is decided by it.
    """
    spec = dict((lease or {}).get("spec") or {})
    time = now.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec["holderIdentity"] = holder
    spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
    spec["acquireTime"] = spec["renewTime"] = time
    metadata = {"name": name, "namespace": namespace}
    if lease is not None:
        # Kept whole: its resourceVersion makes a change in between a conflict, its labels are somebody's.
        metadata = lease["metadata"]
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


async def take_over(
    kube: KubeApi,
    *,
    namespace: str,
    name: str,
    holder: str,
    now: Callable[[], dt.datetime],
    rng: random.Random,
) -> int:
    """Take the Lease over, however often it takes, and return the epoch.

    Raises:
        KubeError: 403, which trying again would not change.
    """
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    attempt = 0
    while True:
        try:
            try:
                lease = await kube.get(f"{path}/{name}")
            except KubeError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                lease = None
            wanted = taken_over(lease, namespace=namespace, name=name, holder=holder, now=now())
            if lease is None:
                done = await kube.request("POST", path, body=wanted)
            else:
                done = await kube.request("PUT", f"{path}/{name}", body=wanted)
        except retry.API_ERRORS as error:
            if isinstance(error, KubeError) and error.status == HTTPStatus.FORBIDDEN:
                raise
            log.warning("lease_not_taken", attempt=attempt, error=str(error) or repr(error))
            await retry.pause(attempt, rng)
            attempt += 1
        else:
            epoch = int(done["spec"]["leaseTransitions"])
            log.info("lease_taken", epoch=epoch, holder=holder, namespace=namespace)
            return epoch
