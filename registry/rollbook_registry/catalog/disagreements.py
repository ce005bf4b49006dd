"""Two truths: where Kubernetes and the book do not agree, and for how long.

*silent*: Kubernetes calls the pod ready, and nobody beats for it. *zombie*: the pod is confirmed gone, and
somebody still speaks in its name. *stuck*: the pod has been terminating for long.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rollbook_registry.catalog.ledger import Ledger


class Disagreement(StrEnum):
    """What sort of disagreement."""

    SILENT = "silent"
    ZOMBIE = "zombie"
    STUCK = "stuck"


class Disagreeing(msgspec.Struct, kw_only=True, frozen=True):
    """A pod about which Kubernetes and the book do not agree.

    Attributes:
        kind: see :class:`Disagreement`.
        owner: the pod's UID.
        seconds: since when (silent, stuck), or since it was last heard (zombie).
        services: what it is in, as ``namespace/group@@service``.
        addresses: where it is, as far as the book knows.
        because: what it means, for people.
    """

    kind: str
    owner: str
    seconds: float
    services: list[str]
    addresses: list[str]
    because: str


_BECAUSE = {
    Disagreement.SILENT: "Kubernetes calls it ready, and nobody beats for it",
    Disagreement.ZOMBIE: "it is confirmed gone, and somebody still speaks in its name",
    Disagreement.STUCK: "it has been terminating, and is not confirmed gone",
}


def count(ledger: Ledger, now: float, *, stuck_after: float) -> dict[Disagreement, int]:
    """Count the disagreements of each kind."""
    counts = dict.fromkeys(Disagreement, 0)
    for kind, _, _ in _found(ledger, now, stuck_after):
        counts[kind] += 1
    return counts


def disagreements(ledger: Ledger, now: float, *, stuck_after: float) -> Iterator[Disagreeing]:
    """All disagreements, with what is known about each.

    Args:
        ledger: the book.
        now: attentive time.
        stuck_after: seconds of terminating that are still usual.
    """
    for kind, uid, seconds in _found(ledger, now, stuck_after):
        group = ledger.groups.get(uid)
        entries = [held.entry for held in group.held] if group is not None else []
        yield Disagreeing(
            kind=kind.value,
            owner=uid,
            seconds=round(seconds, 3),
            services=sorted({str(e.service_key) for e in entries}),
            addresses=sorted({*(e.ip for e in entries), *ledger.pods.addresses(uid)}),
            because=_BECAUSE[kind],
        )


def _found(ledger: Ledger, now: float, stuck_after: float) -> Iterator[tuple[Disagreement, str, float]]:
    # A sidecar that has just started, or beats a little late, is no disagreement.
    usual = ledger.timings.unhealthy_after
    for uid, since in ledger.groups.silent.items():
        if now - since >= usual:
            yield Disagreement.SILENT, uid, now - since
    for uid, ago in ledger.pods.zombies(now, within=ledger.timings.remove_after):
        yield Disagreement.ZOMBIE, uid, ago
    for uid, since in ledger.pods.terminating(now, longer_than=stuck_after):
        yield Disagreement.STUCK, uid, since
