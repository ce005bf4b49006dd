"""The timers and bounds of Distro; each is a setting of the registry."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistroTimings:
    """Timers in (attentive) seconds, bounds in counts and bytes.

    Attributes:
        ping: between two pings to each peer.
        lost_after: silence after which a peer is lost. Four pings: one lost packet is no loss.
        hide_after: how long orphans stay visible. Longer than the 30 s in which the slowest clients (Nacos'
            Python SDK) register again after they have lost their replica.
        cut_off_after: how long without a majority until sessions are asked to look for another replica. It
            is shorter than ``hide_after`` by more than the time that this takes, or the others would give up
            leases whose clients live.
        snapshot_after: how long a starting replica waits for a ready peer before its own disk counts.
        provisional: how long a book from disk, or begun empty, is provisional: ``remove_after``, by when
            every publisher has come back or its entries have expired.
        digest: between two comparisons of contents.
        pull_retry: without an answer to a pull, until it is asked again.
        pull_tries: how often, until another source is looked for.
        log_changes: writes of each origin that are kept for peers that missed some.
        log_bytes: their size, at most.
        chunk_bytes: of one message, roughly; a message with one large entry may be larger.
        chunk_records: entries in one message.
    """

    ping: float = 0.5
    lost_after: float = 2.0
    hide_after: float = 45.0
    cut_off_after: float = 10.0
    snapshot_after: float = 5.0
    provisional: float = 30.0
    digest: float = 5.0
    pull_retry: float = 2.0
    pull_tries: int = 3
    log_changes: int = 8192
    log_bytes: int = 4 * 1024 * 1024
    chunk_bytes: int = 256 * 1024
    chunk_records: int = 2000
