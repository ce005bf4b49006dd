"""The merge: from the entries about one pod, or one endpoint, to the instances that everybody sees.

Pure functions; this page holds all of the rules:

- Entries of one pod (the same owner) are merged. The operator speaks for settings, service and readiness,
  the pod's own publishers (its sidecar) for ``alive``. While no operator has spoken, the sidecar's settings
  count. Once it has, they do not: an annotation changed on a live pod is obeyed though its sidecar still has
  the old one, and a pod cannot enter what its manifest does not say.
- A sidecar that has just started has not checked its application yet. Until its first verdict a readiness
  that a probe stands behind counts, else the instance is not alive: so a pod is healthy no later than
  Kubernetes calls it ready, and the one that it replaces can go.
- An operator's entry with ``beats_required`` is shown only while the pod's sidecar answers for it.
- Of several publishers that speak for the same, the newest counts: a restarted sidecar must prove again
  that its application works, whatever the one before it said.
- Entries without an owner stay apart, as Nacos keeps them; equal ones are shown once. The first has the
  plain key, the others' keys end in a mark of their lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import xxhash

from rollbook.digest import spell
from rollbook.model import Instance
from rollbook.names import InstanceKey, ServiceKey, instance_key

if TYPE_CHECKING:
    from collections.abc import Collection

    from rollbook.names import LeaseId
    from rollbook_registry.catalog.leases import Held

Visible = dict[tuple[ServiceKey, InstanceKey], Instance]


def merge_pod(entries: Collection[Held]) -> Visible:
    """Merge what is said about one pod."""
    operators = [h for h in entries if h.operator]
    publishers = sorted((h for h in entries if not h.operator), key=lambda h: h.order)
    if not operators:
        shown = {}
        for held in publishers:  # the newest last, so that it counts
            instance = _instance(held, ready=True, alive=held.alive, unconfirmed=False)
            shown[held.entry.service_key, instance.key] = instance
        return shown
    newest = {}
    # What an older operator entered stays until the newer one has said that its list is complete.
    for held in sorted(operators, key=lambda h: (h.epoch, h.order)):
        newest[held.entry.service_key, held.entry.ip, held.entry.port] = held
    addresses = {h.entry.ip for h in operators}
    confirmed = [h for h in publishers if h.entry.ip in addresses]
    shown = {}
    for held in newest.values():
        answer = _answer(held, confirmed)
        if answer is None and held.entry.beats_required:
            continue
        instance = _instance(
            held,
            ready=held.entry.ready is not False,
            # Its silence is the operator's, not the pod's: it is shown as last known.
            alive=not held.down if answer is None else answer,
            unconfirmed=answer is None and held.silent,
        )
        shown[held.entry.service_key, instance.key] = instance
    return shown


def _answer(operator: Held, publishers: list[Held]) -> bool | None:
    """What the pod's own publishers say about an operator's entry; ``None``: nobody answers for the pod."""
    same = [h for h in publishers if (h.entry.ip, h.entry.port) == (operator.entry.ip, operator.entry.port)]
    if same:
        held = same[-1]
        if held.proven or held.silent:
            return held.alive
        return operator.entry.probed and operator.entry.ready is True
    # The sidecar does not know this port (it was annotated later): it answers for the pod, not for the port.
    return any(not h.silent for h in publishers) if publishers else None


def merge_endpoint(entries: Collection[Held]) -> Visible:
    """Merge what is said about one endpoint without an owner: equal ones once, others side by side."""
    shown: Visible = {}
    seen: list[Instance] = []
    # As they came, not by order: who registers again keeps the key that subscribers know.
    for held in entries:
        instance = _instance(held, ready=True, alive=held.alive, unconfirmed=False)
        if instance in seen:
            continue
        if seen:
            key = marked(instance.key, held.lease)
            shown[held.entry.service_key, key] = msgspec.structs.replace(instance, key=key)
        else:
            shown[held.entry.service_key, instance.key] = instance
        seen.append(instance)
    return shown


def marked(key: InstanceKey, lease: LeaseId) -> InstanceKey:
    """Return the key of an instance beside another publisher's; it does not give the lease's id away."""
    return InstanceKey(f"{key}~{spell(xxhash.xxh64_intdigest(lease.encode()))}")


def _instance(held: Held, *, ready: bool, alive: bool, unconfirmed: bool) -> Instance:
    entry = held.entry
    return Instance(
        key=instance_key(ip=entry.ip, port=entry.port, cluster=entry.cluster, owner=entry.owner),
        ip=entry.ip,
        port=entry.port,
        cluster=entry.cluster,
        weight=entry.weight,
        enabled=entry.enabled,
        healthy=ready and alive,
        ready=ready,
        alive=alive,
        unconfirmed=unconfirmed,
        ephemeral=entry.ephemeral,
        instance_id=entry.instance_id or f"{entry.service}:{entry.port}:{entry.owner or entry.ip}",
        owner=entry.owner,
        metadata=entry.metadata,
    )
