"""Injection: what the webhook adds to a pod, as a pure function of the pod, the settings and a secret.

Applied again to what it made, it adds nothing and keeps the secret.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final

from rollbook.model import HEARTBEAT_INTERVAL_KEY, REMOVE_AFTER_KEY, UNHEALTHY_AFTER_KEY
from rollbook.names import DEFAULT_CLUSTER
from rollbook.problems import Problem
from rollbook_operator import annotations as marks
from rollbook_operator.desired import SIDECAR, blame, make_entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rollbook_operator.annotations import AnnotationProblem, Wishes

VOLUME: Final = "rollbook-token"
TOKEN_DIR: Final = "/var/run/secrets/rollbook"  # noqa: S105  # a directory
TOKEN_SECONDS: Final = 3600
LOOKUP_PORT: Final = 8849
HOOKS_PORT: Final = 8850
DRAIN_HEADER: Final = "X-Rollbook-Drain"
SECRET_VARIABLE: Final = "ROLLBOOK_DRAIN_SECRET"  # noqa: S105  # a variable's name
USER: Final = 65532

DEFAULT_GRACE: Final = 30.0
"""Kubernetes' own ``terminationGracePeriodSeconds``."""

MAX_DRAIN: Final = 10.0
"""Seconds that the last hook may wait; less with a short grace period: ``min(MAX_DRAIN, grace / 3)``."""

MAX_LINGER: Final = 2.0
"""Seconds after that, for addresses that were just picked: ``min(MAX_LINGER, grace / 3)``."""

Op = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SidecarSettings:
    """What all injected sidecars have in common.

    Attributes:
        image: of the container.
        pull_policy: ``Always``, ``IfNotPresent`` or ``Never``.
        registry: ``HOST[:PORT]``, several separated by commas.
        audience: of the token that it shows there.
        resources: requests and limits, as Kubernetes spells them.
    """

    image: str
    pull_policy: str
    registry: str
    audience: str
    resources: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injection:
    """What comes of a pod.

    Attributes:
        patch: a JSON patch (RFC 6902); empty if nothing is added.
        warnings: what whoever created the pod should be told.
        reason: why, as a code: ``injected``, ``labelled``, ``present``, ``not_asked_for``,
            ``bad_annotation``, ``host_network``, ``windows``.
    """

    patch: list[Op]
    warnings: list[str]
    reason: str


def inject(pod: Mapping[str, Any], settings: SidecarSettings, secret: str) -> Injection:
    """Work out what is to be added to a pod that is being created.

    Args:
        pod: as it was sent; it may have no name yet.
        settings: of all sidecars.
        secret: a random text for this pod's drain hooks; not used if it has one already.
    """
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    if not marks.ours(metadata.get("annotations") or {}):
        return Injection(patch=[], warnings=[], reason="not_asked_for")
    wishes = marks.parse(pod)
    problems = wishes if isinstance(wishes, list) else together(wishes)
    if problems or isinstance(wishes, list):
        # Allowed: a wrong annotation must not keep an application from starting. The operator complains too.
        return Injection(patch=[], warnings=[str(p) for p in problems], reason="bad_annotation")
    wanted = wishes.register if wishes.inject is None else wishes.inject
    reason = "injected"
    warnings = []
    if wanted and spec.get("hostNetwork"):
        reason, wanted = "host_network", False
        warnings = ["rollbook: no sidecar for a pod on the host's network; the operator answers for it"]
    elif wanted and (spec.get("os") or {}).get("name") == "windows":
        reason, wanted = "windows", False
        warnings = ["rollbook: no sidecar on Windows; the operator answers for the pod"]
    if not wanted:
        if wishes.subscribe and not warnings:
            warnings = [f"{marks.SUBSCRIBE} has no effect without a sidecar; see {marks.INJECT}"]
        if not wishes.register:
            return Injection(patch=[], warnings=warnings, reason="not_asked_for")
        return Injection(
            patch=_label(metadata), warnings=warnings, reason="labelled" if reason == "injected" else reason
        )
    patch, more = _sidecar(metadata, spec, wishes, settings, secret)
    return Injection(patch=patch, warnings=more, reason=reason if patch else "present")


def together(wishes: Wishes) -> list[AnnotationProblem]:
    """Find what is wrong with annotations that are right one by one.

    The sidecar would refuse it too, and a sidecar that refuses its settings keeps the pod from starting.
    """
    try:
        make_entries(
            wishes,
            ip="127.0.0.1",
            cluster=DEFAULT_CLUSTER,
            pod="pod",
            node="node",
            owner="owner",
            ready=False,
            beaten=frozenset(),
            probed=lambda _: False,
        )
    except Problem as problem:
        return [blame(problem)]
    return []


def hook_times(wishes: Wishes, grace: float) -> tuple[float, float]:
    """Return the drain timeout and the linger time, in seconds.

    Args:
        wishes: what is annotated counts as it is.
        grace: the pod's ``terminationGracePeriodSeconds``.
    """
    drain = min(MAX_DRAIN, grace / 3) if wishes.drain_timeout is None else wishes.drain_timeout
    linger = min(MAX_LINGER, grace / 3) if wishes.linger is None else wishes.linger
    return drain, linger


def container(
    wishes: Wishes, settings: SidecarSettings, secret: str, *, drain: float, linger: float
) -> dict[str, Any]:
    """Make the sidecar's container."""
    probe = {"httpGet": {"path": "/startup", "port": HOOKS_PORT}, "periodSeconds": 1, "failureThreshold": 60}
    result: dict[str, Any] = {
        "name": SIDECAR,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "restartPolicy": "Always",
        "env": environment(wishes, settings, secret, drain=drain, linger=linger),
        "startupProbe": probe,
        "lifecycle": {"preStop": hook("/drain/self", secret)},
        "volumeMounts": [{"name": VOLUME, "mountPath": TOKEN_DIR, "readOnly": True}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if settings.resources:
        result["resources"] = dict(settings.resources)
    return result


def environment(
    wishes: Wishes, settings: SidecarSettings, secret: str, *, drain: float, linger: float
) -> list[dict[str, Any]]:
    """Spell the sidecar's settings as variables; what nobody asked for is left to its own defaults."""
    free = {k: v for k, v in wishes.metadata.items() if not _timed(k, wishes)}
    texts = {
        "REGISTRY": settings.registry,
        "TOKEN_FILE": f"{TOKEN_DIR}/token",
        "DRAIN_TIMEOUT": _duration(drain),
        "LINGER": _duration(linger),
        "SUBSCRIBE": ",".join(wishes.subscribe),
    }
    if wishes.register:
        texts |= {
            "SERVICE": wishes.service,
            "PORTS": ",".join(f"{p.name}={p.number}" if p.name else str(p.number) for p in wishes.ports),
            "NAMESPACE": wishes.namespace,
            "GROUP": wishes.group,
            "CLUSTER": wishes.cluster,
            "WEIGHT": f"{wishes.weight!r}",
            "METADATA": json.dumps(free, sort_keys=True) if free else "",
            "INSTANCE_ID": wishes.instance_id,
            "HEALTH_CHECK": wishes.health_check,
            "HEARTBEAT_INTERVAL": _duration(wishes.heartbeat_interval),
            "UNHEALTHY_AFTER": _duration(wishes.unhealthy_after),
            "REMOVE_AFTER": _duration(wishes.remove_after),
        }
    env: list[dict[str, Any]] = [
        _from_field("OWNER", "metadata.uid"),
        _from_field("IP", "status.podIP"),
        _from_field("POD_NAME", "metadata.name"),
        _from_field("NODE_NAME", "spec.nodeName"),
        {"name": SECRET_VARIABLE, "value": secret},
    ]
    # Kubernetes replaces $(NAME) in values, and $$ by $: what is meant literally is doubled.
    env += [
        {"name": f"ROLLBOOK_{name}", "value": text.replace("$", "$$")} for name, text in texts.items() if text
    ]
    return env


def hook(path: str, secret: str) -> dict[str, Any]:
    """Make a lifecycle handler that asks the sidecar."""
    return {
        "httpGet": {
            "path": path,
            "port": HOOKS_PORT,
            "httpHeaders": [{"name": DRAIN_HEADER, "value": secret}],
        }
    }


def _sidecar(
    metadata: Mapping[str, Any],
    spec: Mapping[str, Any],
    wishes: Wishes,
    settings: SidecarSettings,
    secret: str,
) -> tuple[list[Op], list[str]]:
    """Add whatever of sidecar, volume, hooks and label is not there."""
    grace = spec.get("terminationGracePeriodSeconds")
    grace = DEFAULT_GRACE if grace is None else float(grace)
    drain, linger = hook_times(wishes, grace)
    warnings = _warnings(spec, drain=drain, linger=linger, grace=grace)
    patch = _label(metadata)
    containers = spec.get("initContainers") or []
    present = next((c for c in containers if c.get("name") == SIDECAR), None)
    if present is not None:
        secrets = [e.get("value") for e in present.get("env") or [] if e.get("name") == SECRET_VARIABLE]
        if not secrets or not secrets[0]:
            return patch, [f"rollbook: the pod has a container {SIDECAR} of its own; nothing is injected"]
        secret = secrets[0]
    else:
        made = container(wishes, settings, secret, drain=drain, linger=linger)
        patch += _add(spec, "/spec", "initContainers", made, first=True)
    if all(v.get("name") != VOLUME for v in spec.get("volumes") or []):
        patch += _add(spec, "/spec", "volumes", _volume(settings))
    if wishes.register:
        for index, each in enumerate(spec.get("containers") or []):
            lifecycle = each.get("lifecycle") or {}
            if not lifecycle.get("preStop"):
                path = f"/spec/containers/{index}/lifecycle"
                pre_stop = hook("/drain/wait", secret)
                if lifecycle:
                    patch.append({"op": "add", "path": f"{path}/preStop", "value": pre_stop})
                else:
                    patch.append({"op": "add", "path": path, "value": {"preStop": pre_stop}})
    return patch, warnings


def _warnings(spec: Mapping[str, Any], *, drain: float, linger: float, grace: float) -> list[str]:
    warnings = []
    if drain + linger > grace:
        warnings.append(
            f"{marks.DRAIN_TIMEOUT} and {marks.LINGER} are {drain + linger:g} s together, more than "
            f"terminationGracePeriodSeconds, which is {grace:g}; the application may be killed undrained"
        )
    taken = {p["containerPort"] for p in marks.declared_ports(spec)} & {LOOKUP_PORT, HOOKS_PORT}
    warnings += [
        f"rollbook: port {port} is the sidecar's, and a container declares it" for port in sorted(taken)
    ]
    return warnings


def _label(metadata: Mapping[str, Any]) -> list[Op]:
    labels = metadata.get("labels")
    if (labels or {}).get(marks.MANAGED_LABEL) == "true":
        return []
    if labels is None:
        return [{"op": "add", "path": "/metadata/labels", "value": {marks.MANAGED_LABEL: "true"}}]
    key = marks.MANAGED_LABEL.replace("~", "~0").replace("/", "~1")
    return [{"op": "add", "path": f"/metadata/labels/{key}", "value": "true"}]


def _add(holder: Mapping[str, Any], path: str, field: str, value: Any, *, first: bool = False) -> list[Op]:
    if not holder.get(field):
        return [{"op": "add", "path": f"{path}/{field}", "value": [value]}]
    return [{"op": "add", "path": f"{path}/{field}/{'0' if first else '-'}", "value": value}]


def _volume(settings: SidecarSettings) -> dict[str, Any]:
    token = {"path": "token", "audience": settings.audience, "expirationSeconds": TOKEN_SECONDS}
    return {"name": VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}


def _from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": f"ROLLBOOK_{name}", "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{round(seconds * 1000)}ms"


def _timed(key: str, wishes: Wishes) -> bool:
    """Say whether one of the sidecar's own flags already says what this metadata key does."""
    return {
        HEARTBEAT_INTERVAL_KEY: wishes.heartbeat_interval,
        UNHEALTHY_AFTER_KEY: wishes.unhealthy_after,
        REMOVE_AFTER_KEY: wishes.remove_after,
    }.get(key) is not None
