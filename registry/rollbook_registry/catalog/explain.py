"""Explain: which rules made an instance what it is, or keep it out of the book.

It applies the very rules that made the book (:func:`~rollbook_registry.catalog.merge.judge`), so it cannot
say anything else than what happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import xxhash

from rollbook.digest import spell
from rollbook.model import Instance
from rollbook_registry.catalog.groups import group_key
from rollbook_registry.catalog.merge import judge

if TYPE_CHECKING:
    from rollbook.model import EntryRef
    from rollbook_registry.catalog.groups import Group
    from rollbook_registry.catalog.ledger import Ledger
    from rollbook_registry.catalog.merge import Judgement


class EntryExplained(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What one publisher says, and what became of it.

    Attributes:
        publisher: its kind.
        lease: a mark of its lease, which tells it from others without giving its id away.
        replica: the ordinal of the replica that owns the lease.
        rule: the code of the rule that decided.
        because: that rule, as a sentence.
        shown: whether it is what the list shows.
        silent_for: seconds since its last beat, where this replica hears it.
        unhealthy_after: seconds of silence after which it is not alive.
        remove_after: seconds of silence after which it is out.
        protected: it is overdue; protection keeps it.
    """

    publisher: str
    lease: str
    replica: int
    term: int
    rule: str
    because: str
    shown: bool
    cluster: str
    service: str
    silent_for: float | None = None
    unhealthy_after: float | None = None
    remove_after: float | None = None
    silent: bool = False
    down: bool = False
    proven: bool = True
    ready: bool | None = None
    probed: bool = False
    beats_required: bool = False
    orphan: bool = False
    protected: bool = False


class OverrideExplained(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What an administrator laid down."""

    enabled: bool | None = None
    weight: float | None = None
    reason: str = ""
    at: float = 0.0


class Explanation(msgspec.Struct, kw_only=True, frozen=True):
    """Why an instance is as it is.

    Attributes:
        instance: as it is shown; ``None``: it is not.
        because: the sentence that sums it up.
        pod: ``closed`` or ``fenced``, if its pod may not speak any more.
        entries: what is said about its pod, or its endpoint, by whom, and which rule decided about it; those
            that are shown come first.
    """

    instance: Instance | None
    because: str
    pod: str
    entries: list[EntryExplained]
    override: OverrideExplained | None = None


def explain(ledger: Ledger, ref: EntryRef, now: float) -> Explanation:
    """Say why an instance is (un)healthy, or is not in the book."""
    group = ledger.groups.get(group_key(ref))
    judgements = list(judge(group.held)) if group is not None else []
    override = ledger.rulings.overrides.get(ref)
    shown = _shown(group, ref) if group is not None else None
    pod = ledger.pods.state(ref.owner) if ref.owner else ""
    return Explanation(
        instance=shown,
        because=_summary(ref, shown, judgements, pod, overridden=override is not None),
        pod=pod,
        entries=[_entry(ledger, j, now) for j in sorted(judgements, key=lambda j: j.instance is None)],
        override=None
        if override is None
        else OverrideExplained(
            enabled=override.enabled, weight=override.weight, reason=override.reason, at=override.at
        ),
    )


def _shown(group: Group, ref: EntryRef) -> Instance | None:
    """Return what is shown under a name; else what is shown at its endpoint, be it in another cluster."""
    there = group.shown_at(ref)
    return next((i for i in there if i.key == ref.key), there[0] if there else None)


def _entry(ledger: Ledger, judgement: Judgement, now: float) -> EntryExplained:
    held = judgement.held
    lease = ledger.lease(held.lease)
    assert lease is not None  # noqa: S101  # a group holds entries of leases that are there
    heard = lease.origin == ledger.ordinal and lease.expires
    return EntryExplained(
        publisher=held.kind.value,
        lease=spell(xxhash.xxh64_intdigest(held.lease.encode())),
        replica=lease.origin,
        term=lease.term,
        rule=judgement.why.name.lower(),
        because=judgement.why.value,
        shown=judgement.instance is not None,
        cluster=held.entry.cluster,
        service=held.entry.service,
        silent_for=round(now - lease.last_seen(held), 3) if heard else None,
        unhealthy_after=held.unhealthy_after if heard else None,
        remove_after=held.remove_after if heard else None,
        silent=held.silent,
        down=held.down,
        proven=held.proven,
        ready=held.entry.ready,
        probed=held.entry.probed,
        beats_required=held.entry.beats_required,
        orphan=held.orphan,
        protected=lease.protected,
    )


def _summary(
    ref: EntryRef, shown: Instance | None, judgements: list[Judgement], pod: str, *, overridden: bool
) -> str:
    if shown is None:
        if pod:
            gone = "confirmed gone" if pod == "fenced" else "terminating"
            return f"it is not in the book: its pod is {gone}, and nothing is taken in its name"
        about = [
            j.why.value
            for j in judgements
            if (j.held.entry.service_key, j.held.entry.ip, j.held.entry.port)
            == (ref.service_key, ref.ip, ref.port)
        ]
        return f"it is not in the book: {'; '.join(about) or 'nobody speaks for it; its events may say why'}"
    where = (ref.service_key, shown.key)
    decided = next((j for j in judgements if j.where == where), None)
    why = decided.why.value if decided is not None else ""
    parts = [f"it is {'healthy' if shown.healthy else 'not healthy'}: {why}"]
    if not shown.ready:
        parts.append("Kubernetes does not call its pod ready")
    if not shown.enabled:
        parts.append("it is disabled")
    if overridden:
        parts.append("an administrator's override stands above what its publishers say")
    return "; ".join(parts)
