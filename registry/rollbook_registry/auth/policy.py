"""What an identity may say. Pure: yes is silence, no is a problem that names the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook.problems import Problem
from rollbook_registry.auth.identity import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.model import Entry
    from rollbook_registry.auth.identity import Identity

_ALL = {Role.LOCAL, Role.OPERATOR}


def may_open_session(who: Identity) -> None:
    """Sessions need an identity.

    Raises:
        Problem: 401 ``unauthenticated``.
    """
    if who.role is Role.ANONYMOUS:
        raise Problem(
            "unauthenticated",
            "a session needs an identity",
            field="Authorization",
            accepted="Bearer and a service account token made for this registry's audience",
        )


def may_write(who: Identity) -> None:
    """Writes need an identity that may write anything at all.

    Raises:
        Problem: 401 ``unauthenticated``, or 403 ``forbidden``.
    """
    may_open_session(who)
    if who.role is Role.ACCOUNT:
        raise Problem("forbidden", f"{who.name} is not bound to a pod, so there is nothing it may speak for")


def may_operate(who: Identity, what: str) -> None:
    """Only the operator speaks for Kubernetes.

    Raises:
        Problem: 401 or 403.
    """
    may_write(who)
    if who.role not in _ALL:
        raise Problem("forbidden", f"{who.name} may not {what}: only the operator may")


def may_administer(who: Identity, what: str) -> None:
    """Only administrators lay down what stays.

    Raises:
        Problem: 401 or 403.
    """
    may_write(who)
    if who.role not in {*_ALL, Role.ADMINISTRATOR}:
        raise Problem(
            "forbidden", f"{who.name} may not {what}: only administrators may (--administrator-accounts)"
        )


def may_speak_for(who: Identity, owner: str) -> None:
    """A pod speaks only for itself.

    Raises:
        Problem: 401 or 403 ``forbidden``, naming whom it may speak for.
    """
    may_write(who)
    if who.role is Role.POD and owner != who.pod_uid:
        raise Problem(
            "forbidden",
            f"{who.name} may not speak for {f'pod {owner}' if owner else 'an instance without an owner'}",
            field="owner",
            accepted=f"its own pod's UID, {who.pod_uid}",
        )


def may_enter(who: Identity, entries: Iterable[Entry], *, operator: bool) -> None:
    """Check what somebody wants to enter.

    Args:
        who: speaks.
        entries: what it says.
        operator: whether it says it under an operator's lease.

    Raises:
        Problem: 401 or 403, naming the entry's field.
    """
    for n, entry in enumerate(entries):
        may_speak_for(who, entry.owner)
        if operator or not (entry.ready is not None or entry.beats_required or entry.probed):
            continue
        field = "ready" if entry.ready is not None else "beats_required" if entry.beats_required else "probed"
        raise Problem(
            "forbidden",
            f"entries[{n}].{field} is set, which only an operator's lease may say",
            field=f"entries[{n}].{field}",
            accepted="nothing",
        )
