"""What comes out of the catalog: changes, for subscribers and replicas, and the reason for each."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from rollbook.model import EntryRef, Instance
from rollbook.names import InstanceKey, LeaseId, ServiceKey
from rollbook_registry.catalog.records import LeaseWrite, PodRecord


class Reason(StrEnum):
    """Why something happened to an entry or a lease; logged, counted and shown by this code."""

    REGISTERED = "registered"
    UPDATED = "updated"
    DEREGISTERED = "deregistered"
    FORCED = "forced"
    """An administrator had it struck out, whoever entered it."""
    SILENT = "silent"
    """No beat for ``unhealthy_after``: not alive."""
    RECOVERED = "recovered"
    """A beat came after silence."""
    EXPIRED = "expired"
    """No beat for ``remove_after``: out of the book."""
    PROTECTED = "protected"
    """No beat for ``remove_after``, but so many are silent that it is kept for now."""
    APPLICATION_DOWN = "application_down"
    APPLICATION_UP = "application_up"
    POD_CLOSED = "pod_closed"
    POD_FENCED = "pod_fenced"
    ADDRESS_FENCED = "address_fenced"
    """Registered at the address of a pod that is confirmed gone."""
    SUPERSEDED = "superseded"
    """A newer publisher speaks for the same instance."""
    RELEASED = "released"
    """Its publisher said goodbye."""
    ATTACHED = "attached"
    DETACHED = "detached"
    YIELDED = "yielded"
    """Its client went on at another replica, under a higher term."""
    TAKEN_UP = "taken_up"
    """Its client came here from another replica."""
    ORPHANED = "orphaned"
    """The replica that owns it is lost; it is kept as last known."""
    ADOPTED = "reasserted"
    """The replica that owns it is back."""
    HIDDEN = "hidden"
    """The replica that owns it stayed away, and nobody took it up."""
    RESTORED = "restored"
    """Back from the snapshot, or from a peer's copy, after a restart."""
    OVERRULED = "overruled"
    """Back from the disk, but a replica whose book never stopped knows that it has ended since."""
    DEFINED = "defined"
    UNDEFINED = "undefined"
    CHECK_PASSED = "check_passed"
    CHECK_FAILED = "check_failed"
    OVERRIDDEN = "overridden"
    """An administrator's word stands above what its publishers say."""
    OVERRIDE_LIFTED = "override_lifted"


class ServiceChanged(msgspec.Struct, frozen=True, gc=False):
    """A service's list changed, by one command.

    Attributes:
        base: the number of the list before.
        number: the number of the list now.
    """

    service: ServiceKey
    base: int
    number: int
    put: tuple[Instance, ...]
    drop: tuple[InstanceKey, ...]


class ServiceForgotten(msgspec.Struct, frozen=True, gc=False):
    """A service that had been empty for long enough is in the book no more."""

    service: ServiceKey


class LeaseChanged(msgspec.Struct, frozen=True, gc=False):
    """Something happened to a lease as a whole."""

    lease: LeaseId
    term: int
    reason: Reason


class Happened(msgspec.Struct, frozen=True, gc=False):
    """Something happened to an entry, and why."""

    service: ServiceKey
    ref: EntryRef
    lease: LeaseId
    reason: Reason

    @property
    def key(self) -> InstanceKey:
        """The instance's key, which most events are never asked for."""
        return self.ref.key


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """Unless it beats, something happens to this lease at this (attentive) time; look at it then."""

    lease: LeaseId
    at: float


class Written(msgspec.Struct, frozen=True, gc=False):
    """A lease that this replica owns has another record now; others, and the disk, are to know."""

    write: LeaseWrite


class PodsMarked(msgspec.Struct, frozen=True, gc=False):
    """Pods were closed or fenced that were not before."""

    pods: tuple[PodRecord, ...]


Event = ServiceChanged | ServiceForgotten | LeaseChanged | Happened | Deadline | Written | PodsMarked
