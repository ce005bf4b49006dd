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
- A persistent instance is its definition's; the newest verdict of a checker says whether it is alive.
- What a lost replica's leases say counts only where nobody else speaks for the same endpoint.

Nothing here depends on the order in which entries arrived at this replica, so that all show the same.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import xxhash

from rollbook.digest import spell
from rollbook.model import Instance
from rollbook.names import InstanceKey, ServiceKey
from rollbook_registry.catalog.leases import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from rollbook.names import LeaseId
    from rollbook_registry.catalog.leases import Held

Where = tuple[ServiceKey, InstanceKey]


class Shown(msgspec.Struct, frozen=True, gc=False):
    """An instance that everybody sees, and in which service."""

    service: ServiceKey
    instance: Instance


Visible = tuple[Shown, ...]
"""What is shown of one pod, or one endpoint; no two of one service have the same key."""


class Why(StrEnum):
    """Which rule decided about an entry; the sentence for people is its value."""

    BEATS = "its publisher beats and says that the application works"
    SILENT = "its publisher is silent"
    APPLICATION_DOWN = "its publisher beats and says that the application does not work"
    UNPROVEN = "its publisher has not yet seen the application work"
    PROBED = "its sidecar has not checked the application yet, and its readiness probe vouches for it"
    UNPROBED = "its sidecar has not checked the application yet, and no readiness probe vouches for it"
    POD_ANSWERS = "its sidecar answers for the pod, but does not know this port"
    POD_SILENT = "its sidecar does not know this port, and is silent"
    OPERATOR_ONLY = "only the operator speaks for it"
    UNCONFIRMED = "the operator that entered it is silent, and nobody else speaks for it"
    DEFINED = "it is defined to be there, and not checked"
    CHECKED = "the registry's check of it succeeded last"
    CHECK_FAILED = "the registry's check of it failed last"
    BEATS_REQUIRED = "not shown: it has a sidecar, and that does not beat"
    NOT_NAMED = "not shown: the operator speaks for its pod, and does not name it"
    PUBLISHER = "it says so of the pod that the operator speaks for"
    OLDER = "not shown: a newer entry speaks for the same"
    EQUAL = "not shown: an equal entry is"
    ORPHAN = "not shown: its replica is lost, and somebody else speaks for the same"
    VERDICT = "it is a check's verdict about a persistent instance"


_SILENCES = {Why.BEATS_REQUIRED, Why.SILENT, Why.POD_SILENT}

_PUBLISHERS = {Kind.SESSION, Kind.HTTP}
"""Who speaks for what is its own."""


class Judgement(NamedTuple):
    """What the rules make of one entry.

    Attributes:
        instance: what is shown for it, if anything is.
    """

    held: Held
    why: Why
    where: Where | None = None
    instance: Instance | None = None

    @property
    def shown(self) -> Instance:
        """What is shown for it. Only of what is."""
        assert self.instance is not None  # noqa: S101  # whoever asks has made it so
        return self.instance


class Merged(msgspec.Struct, frozen=True, gc=False):
    """What everybody sees of one pod, or one endpoint.

    Attributes:
        silent: Kubernetes calls the pod ready, and nobody beats for it.
    """

    visible: Visible
    silent: bool


def merge(entries: Collection[Held]) -> Merged:
    """Merge what is said about one pod, or one endpoint."""
    if not entries:
        return Merged((), silent=False)
    if len(entries) == 1:
        (held,) = entries
        if held.kind in _PUBLISHERS:
            # Most instances have one publisher, and then no rule has to decide between anybody.
            shown = Shown(held.entry.service_key, _instance(held, alive=held.alive))
            return Merged((shown,), held.silent and held.entry.ready is True)
    visible = []
    silent = False
    for judgement in judge(entries):
        if judgement.where is not None:
            visible.append(Shown(judgement.where[0], judgement.shown))
        silent = silent or (judgement.why in _SILENCES and judgement.held.entry.ready is True)
    return Merged(tuple(visible), silent)


def judge(entries: Collection[Held]) -> Iterator[Judgement]:
    """Apply the rules to each entry about one pod, or one endpoint."""
    owned = next((h.entry.owner for h in entries), "")
    return _judge_pod(entries) if owned else _judge_endpoint(entries)


def _newest(entries: Collection[Held]) -> list[Held]:
    """Sort by age, the newest last. Two replicas may have given the same number; the lease's id decides."""
    return sorted(entries, key=lambda h: (h.order, h.lease)) if len(entries) > 1 else list(entries)


def _alive(held: Held) -> Why:
    if held.silent:
        return Why.SILENT
    if held.down:
        return Why.APPLICATION_DOWN if held.proven else Why.UNPROVEN
    return Why.BEATS


# --- pods ------------------------------------------------------------------------------------------------


def _judge_pod(entries: Collection[Held]) -> Iterator[Judgement]:
    operators = [h for h in entries if h.kind is Kind.OPERATOR]
    publishers = _newest([h for h in entries if h.kind is not Kind.OPERATOR])
    vouched = {_endpoint(h) for h in publishers if not h.orphan}
    if vouched:
        orphans = [h for h in publishers if h.orphan and _endpoint(h) in vouched]
        if orphans:
            yield from (Judgement(h, Why.ORPHAN) for h in orphans)
            publishers = [h for h in publishers if h not in orphans]
    if operators:
        yield from _judge_confirmed(operators, publishers)
        return
    shown = [_shown(held, _alive(held), alive=held.alive) for held in publishers]
    newest = {judgement.where: judgement for judgement in shown}
    for judgement in shown:
        yield judgement if newest[judgement.where] is judgement else Judgement(judgement.held, Why.OLDER)


def _judge_confirmed(operators: list[Held], publishers: list[Held]) -> Iterator[Judgement]:
    newest = {}
    # What an older operator entered stays until the newer one has said that its list is complete.
    for held in sorted(operators, key=lambda h: (h.epoch, h.order, h.lease)):
        newest[_endpoint(held)] = held
    addresses = {h.entry.ip for h in operators}
    confirmed = [h for h in publishers if h.entry.ip in addresses]
    for held in publishers:
        yield Judgement(held, Why.PUBLISHER if held.entry.ip in addresses else Why.NOT_NAMED)
    for held in operators:
        if newest[_endpoint(held)] is not held:
            yield Judgement(held, Why.OLDER)
    for held in newest.values():
        why, alive = _answer(held, confirmed)
        if held.entry.beats_required and why in {Why.OPERATOR_ONLY, Why.UNCONFIRMED}:
            yield Judgement(held, Why.BEATS_REQUIRED)
        else:
            yield _shown(held, why, alive=alive, ready=held.entry.ready is not False)


def _endpoint(held: Held) -> tuple[ServiceKey, str, int]:
    return held.entry.service_key, held.entry.ip, held.entry.port


def _answer(operator: Held, publishers: list[Held]) -> tuple[Why, bool]:
    """What the pod's own publishers say about an operator's entry, and which rule makes it so."""
    entry = operator.entry
    same = [h for h in publishers if (h.entry.ip, h.entry.port) == (entry.ip, entry.port)]
    if same:
        held = same[-1]
        if held.proven or held.silent:
            return _alive(held), held.alive
        probed = entry.probed and entry.ready is True
        return (Why.PROBED, True) if probed else (Why.UNPROBED, False)
    if publishers:
        # The sidecar does not know this port (it was annotated later): it answers for the pod, not the port.
        answers = any(not h.silent for h in publishers)
        return (Why.POD_ANSWERS, True) if answers else (Why.POD_SILENT, False)
    # Its silence is the operator's, not the pod's: it is shown as last known.
    return (Why.UNCONFIRMED if operator.silent else Why.OPERATOR_ONLY), not operator.down


# --- endpoints without an owner -----------------------------------------------------------------------------


def _judge_endpoint(entries: Collection[Held]) -> Iterator[Judgement]:
    seen: list[Instance] = []
    publishers = []
    for held in entries:
        if held.kind is Kind.DEFINITIONS:
            judgement = _judge_definition(held, [h for h in entries if h.kind is Kind.CHECKER])
            seen.append(judgement.shown)
            yield judgement
        elif held.kind is Kind.CHECKER:
            yield Judgement(held, Why.VERDICT)
        else:
            publishers.append(held)
    if len(publishers) > 1:
        # Who registers again keeps the key that subscribers know.
        publishers.sort(key=lambda h: (h.since, h.lease))
    live = any(not h.orphan for h in publishers)
    for held in publishers:
        if held.orphan and live:
            yield Judgement(held, Why.ORPHAN)
            continue
        judgement = _shown(held, _alive(held), alive=held.alive)
        if judgement.shown in seen:
            yield Judgement(held, Why.EQUAL)
            continue
        seen.append(judgement.shown)
        yield judgement if len(seen) == 1 else _apart(judgement)


def _judge_definition(definition: Held, verdicts: list[Held]) -> Judgement:
    if not verdicts:
        return _shown(definition, Why.DEFINED, alive=not definition.down)
    failed = _newest(verdicts)[-1].down
    return _shown(definition, Why.CHECK_FAILED if failed else Why.CHECKED, alive=not failed)


def _apart(judgement: Judgement) -> Judgement:
    """Show an instance beside another one at the same endpoint, under a key of its own."""
    instance = judgement.shown
    key = marked(instance.key, judgement.held.lease)
    return judgement._replace(
        where=(judgement.held.entry.service_key, key), instance=msgspec.structs.replace(instance, key=key)
    )


def marked(key: InstanceKey, lease: LeaseId) -> InstanceKey:
    """Return the key of an instance beside another publisher's; it does not give the lease's id away."""
    return InstanceKey(f"{key}~{spell(xxhash.xxh64_intdigest(lease.encode()))}")


def _shown(held: Held, why: Why, *, alive: bool, ready: bool = True) -> Judgement:
    instance = _instance(held, alive=alive, ready=ready, unconfirmed=why is Why.UNCONFIRMED)
    return Judgement(held, why, (held.entry.service_key, instance.key), instance)


def _instance(held: Held, *, alive: bool, ready: bool = True, unconfirmed: bool = False) -> Instance:
    entry = held.entry
    return Instance(
        key=held.ref.key,
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
