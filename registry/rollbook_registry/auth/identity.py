"""Identities: what a token proves about whoever shows it."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, NamedTuple


class Role(Enum):
    """What an identity may do, in outline; :mod:`rollbook_registry.auth.policy` has the rules."""

    ANONYMOUS = "anonymous"
    """Shows nothing: reads."""
    LOCAL = "local"
    """The registry asks nobody (``--auth none``): everything."""
    ACCOUNT = "account"
    """A service account without a pod: reads and subscribes."""
    POD = "pod"
    """A pod: speaks for itself."""
    ADMINISTRATOR = "administrator"
    """Lays down what stays: persistent instances, overrides, settings; speaks for anybody."""
    OPERATOR = "operator"
    """Speaks for Kubernetes, and may do what administrators may."""


class Identity(NamedTuple):
    """Whoever is speaking.

    Attributes:
        role: what it may do.
        name: for logs: the account, and the pod.
        pod_uid: of a pod.
        expires: Unix time in seconds at which the proof ends; 0 for never.
    """

    role: Role
    name: str
    pod_uid: str = ""
    expires: float = 0.0


class Accounts(NamedTuple):
    """Service accounts, as ``namespace/name``, that may do more than speak for their pod.

    Attributes:
        operator: the operator's; empty if there is none.
        administrators: those of administrators.
    """

    operator: str = ""
    administrators: frozenset[str] = frozenset()


ANONYMOUS: Final = Identity(Role.ANONYMOUS, "anonymous")
LOCAL: Final = Identity(Role.LOCAL, "local")


def from_claims(claims: dict[str, Any], accounts: Accounts) -> Identity:
    """Read a projected service account token's claims.

    Args:
        claims: verified.
        accounts: who may do more.
    """
    kubernetes = claims.get("kubernetes.io", {})
    account = f"{kubernetes.get('namespace', '')}/{kubernetes.get('serviceaccount', {}).get('name', '')}"
    pod = kubernetes.get("pod", {})
    return _identity(account, pod.get("name", ""), pod.get("uid", ""), claims.get("exp", 0), accounts)


def from_review(status: dict[str, Any], *, expires: float, accounts: Accounts) -> Identity:
    """Read the status of a TokenReview that said yes."""
    user = status.get("user", {})
    extra = user.get("extra") or {}
    account = "/".join(user.get("username", "").removeprefix("system:serviceaccount:").split(":", 1))
    name = (extra.get("authentication.kubernetes.io/pod-name") or [""])[0]
    uid = (extra.get("authentication.kubernetes.io/pod-uid") or [""])[0]
    return _identity(account, name, uid, expires, accounts)


def _identity(account: str, pod: str, uid: str, expires: float, accounts: Accounts) -> Identity:
    if account == accounts.operator:
        return Identity(Role.OPERATOR, account, uid, expires)
    if account in accounts.administrators:
        return Identity(Role.ADMINISTRATOR, account, uid, expires)
    if uid:
        return Identity(Role.POD, f"{account} ({pod})", uid, expires)
    return Identity(Role.ACCOUNT, account, "", expires)
