"""What comes out of the catalog: changes for subscribers, and the reason for each, for people."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rollbook.model import Instance
    from rollbook.names import InstanceKey, LeaseId, ServiceKey


class Reason(StrEnum):
    """Why something happened to an entry or a lease; logged, counted and shown by this code."""

    REGISTERED = "registered"
    UPDATED = "updated"
    DEREGISTERED = "deregistered"
    SILENT = "silent"
    """No beat for ``unhealthy_after``: not alive."""
    RECOVERED = "recovered"
    """A beat came after silence."""
    EXPIRED = "expired"
    """No beat for ``remove_after``: out of the book."""
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


class ServiceChanged(NamedTuple):
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


class LeaseChanged(NamedTuple):
    """A lease was attached, detached or ended."""

    lease: LeaseId
    term: int
    reason: Reason


class History(NamedTuple):
    """Something happened to an entry, and why."""

    service: ServiceKey
    key: InstanceKey
    lease: LeaseId
    reason: Reason


class Deadline(NamedTuple):
    """Unless it beats, something happens to this lease at this (attentive) time; look at it then."""

    lease: LeaseId
    at: float


Event = ServiceChanged | LeaseChanged | History | Deadline
