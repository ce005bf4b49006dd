"""What the book should say about a pod: a pure function of the pod and its node's zone."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

from rollbook import names
from rollbook.model import Entry, check_entry
from rollbook.problems import Problem
from rollbook_operator import annotations as marks
from rollbook_operator.annotations import AnnotationProblem, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SIDECAR: Final = "rollbook-sidecar"
"""The name of the init container that the webhook injects."""

ZONE_LABEL: Final = "topology.kubernetes.io/zone"


class State(enum.Enum):
    """What is to be done about a pod as a whole."""

    OPEN = "open"
    """Its entries, maybe none, are to be in the book."""

    CLOSED = "closed"
    """It is terminating: its entries go, and nothing registers in its name any more."""

    GONE = "gone"
    """None of its containers will ever run again: it is fenced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desired:
    """What the book should say about one pod.

    Attributes:
        entries: one for each port.
        ips: the pod's own addresses, which nothing else answers at while it lives; empty for host network.
        concerned: whether the pod has to do with Rollbook at all.
        problems: annotations that cannot be followed; there are no entries then.
        reason: why it is so, as a code: ``registered``, ``not_asked_for``, ``bad_annotation``,
            ``no_address``, ``terminating``, ``finished``.
    """

    uid: str
    namespace: str
    name: str
    state: State
    reason: str
    entries: tuple[Entry, ...] = ()
    ips: tuple[str, ...] = ()
    concerned: bool = True
    problems: tuple[AnnotationProblem, ...] = ()


def node_of(pod: Mapping[str, Any]) -> str:
    """Name the pod's node; empty until it is scheduled."""
    return str((pod.get("spec") or {}).get("nodeName") or "")


def desire(pod: Mapping[str, Any], zone: str) -> Desired:
    """Work out what the book should say about a pod.

    Args:
        pod: the object as the API server sends it.
        zone: its node's ``topology.kubernetes.io/zone``; empty if there is none.
    """
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    given: Mapping[str, str] = metadata.get("annotations") or {}
    ips = addresses(status)

    def result(state: State, reason: str, **more: Any) -> Desired:
        return Desired(
            uid=metadata["uid"],
            namespace=metadata["namespace"],
            name=metadata["name"],
            state=state,
            reason=reason,
            ips=() if spec.get("hostNetwork") else ips,
            concerned=marks.ours(given),
            **more,
        )

    # Closing and fencing are owed to every pod that asked to be registered, even if the rest of what it
    # asks cannot be followed: its own sidecar or SDK may have registered it.
    if given.get(marks.REGISTER, "").strip() == "true":
        if status.get("phase") in {"Succeeded", "Failed"}:
            return result(State.GONE, "finished")
        if metadata.get("deletionTimestamp"):
            return result(State.CLOSED, "terminating")
    try:
        reason, entries = _open(pod, zone=zone, ips=ips)
    except _Unfit as unfit:
        return result(State.OPEN, "bad_annotation", problems=unfit.problems)
    return result(State.OPEN, reason, entries=entries)


class _Unfit(Exception):  # noqa: N818  # it never leaves this module
    """The annotations cannot be followed."""

    def __init__(self, *problems: AnnotationProblem) -> None:
        super().__init__()
        self.problems = problems


def _open(pod: Mapping[str, Any], *, zone: str, ips: tuple[str, ...]) -> tuple[str, tuple[Entry, ...]]:
    """Give the reason and the entries of a pod that is not on its way out."""
    wishes = marks.parse(pod)
    if isinstance(wishes, list):
        raise _Unfit(*wishes)
    if not wishes.register:
        return "not_asked_for", ()
    if not ips or not node_of(pod):
        return "no_address", ()
    try:
        return "registered", _entries(pod, wishes, zone=zone, ips=ips)
    except Problem as problem:
        # What each annotation may say has been checked; what is left is what they make together.
        raise _Unfit(blame(problem)) from None


def addresses(status: Mapping[str, Any]) -> tuple[str, ...]:
    """List a pod's addresses, the primary one first."""
    listed = tuple(str(item["ip"]) for item in status.get("podIPs") or [] if item.get("ip"))
    return listed or ((str(status["podIP"]),) if status.get("podIP") else ())


def sidecar_ports(pod: Mapping[str, Any]) -> frozenset[int]:
    """List the ports that the pod's sidecar, if it has one, was told to answer the roll for."""
    for container in (pod.get("spec") or {}).get("initContainers") or []:
        if container.get("name") == SIDECAR:
            env = {item["name"]: item.get("value") or "" for item in container.get("env") or []}
            if not env.get("ROLLBOOK_SERVICE"):
                return frozenset()
            return frozenset(int(n) for n in re.findall(r"(?:^|[,=])\s*(\d+)", env.get("ROLLBOOK_PORTS", "")))
    return frozenset()


def zone_as_cluster(zone: str) -> str:
    """Spell a zone so that it is a cluster's name; they may hold characters that those may not."""
    return re.sub(r"[^0-9A-Za-z-]", "-", zone)[: names.MAX_CLUSTER_LENGTH] or names.DEFAULT_CLUSTER


def make_entries(
    wishes: Wishes,
    *,
    ip: str,
    cluster: str,
    pod: str,
    node: str,
    owner: str,
    ready: bool,
    beaten: frozenset[int],
    probed: Callable[[int], bool],
) -> tuple[Entry, ...]:
    """Make the entries that a pod wishes for, one for each port.

    Args:
        wishes: what its annotations say.
        ip: where it answers.
        cluster: the cluster if none is annotated.
        pod: its name.
        node: its node's name.
        owner: its UID.
        ready: what Kubernetes says.
        beaten: the ports for which a sidecar answers the roll.
        probed: whether a readiness probe stands behind a port.

    Raises:
        Problem: 400 ``bad_value``.
    """
    result = []
    for port in wishes.ports:
        named = {marks.PORT_NAME_KEY: port.name} if port.name else {}
        instance_id = wishes.instance_id.format(
            service=wishes.service,
            port=port.number,
            pod=pod,
            host=pod,
            node=node,
            namespace=wishes.namespace,
        )
        entry = Entry(
            service=wishes.service,
            ip=ip,
            port=port.number,
            namespace=wishes.namespace,
            group=wishes.group,
            cluster=wishes.cluster or cluster,
            weight=wishes.weight,
            metadata={**wishes.metadata, **named},
            # A name for people, not a key: long names of pods and services must not keep it out of the book.
            instance_id=instance_id[: names.MAX_ID_LENGTH],
            owner=owner,
            ready=ready,
            probed=probed(port.number),
            beats_required=port.number in beaten,
        )
        result.append(check_entry(entry))
    return tuple(result)


def is_probed(pod: Mapping[str, Any], port: int) -> bool:
    """Say whether the container that declares a port has a readiness probe; any one, if none declares it."""
    containers = (pod.get("spec") or {}).get("containers") or []
    declaring = [c for c in containers if any(p.get("containerPort") == port for p in c.get("ports") or [])]
    return any(c.get("readinessProbe") for c in declaring or containers)


def _entries(pod: Mapping[str, Any], wishes: Wishes, *, zone: str, ips: tuple[str, ...]) -> tuple[Entry, ...]:
    metadata = pod["metadata"]
    beaten = sidecar_ports(pod)
    conditions = (pod.get("status") or {}).get("conditions") or []
    return make_entries(
        wishes,
        ip=_choose(ips, wishes, primary=bool(beaten)),
        cluster=zone_as_cluster(zone),
        pod=metadata["name"],
        node=node_of(pod),
        owner=metadata["uid"],
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions),
        beaten=beaten,
        probed=lambda port: is_probed(pod, port),
    )


def _choose(ips: tuple[str, ...], wishes: Wishes, *, primary: bool) -> str:
    """Choose the address to be entered.

    By default the first IPv4 address, as most callers speak that. With a sidecar it is the pod's primary one,
    which is what its sidecar was told: both must speak of the same instance.
    """
    choice = [(ip, ipaddress.ip_address(ip)) for ip in (ips[:1] if primary else ips)]
    for network in wishes.preferred_networks:
        for ip, address in choice:
            if address in network:
                return ip
    if wishes.preferred_networks:
        value = ",".join(str(n) for n in wishes.preferred_networks)
        which = (
            "the pod's primary address, at which its sidecar registers"
            if primary
            else "an address of the pod"
        )
        accepted = f"networks of which one holds {which} ({', '.join(ip for ip, _ in choice)})"
        raise _Unfit(AnnotationProblem(marks.PREFERRED_NETWORKS, value, accepted))
    return next((ip for ip, address in choice if address.version == 4), choice[0][0])  # noqa: PLR2004  # IPv4


def blame(problem: Problem) -> AnnotationProblem:
    """Say which annotation has brought a field of an entry into trouble."""
    known = {
        "service": marks.SERVICE,
        "instance_id": marks.INSTANCE_ID,
        "cluster": marks.CLUSTER,
        "port": marks.PORT,
        "weight": marks.WEIGHT,
        "namespace": marks.NAMESPACE,
        "group": marks.GROUP,
    }
    annotation = known.get(problem.field, f"{marks.METADATA_PREFIX}*")
    value = problem.detail.removeprefix(f"{problem.field} is ").partition("; accepted: ")[0]
    return AnnotationProblem(annotation, value.strip("'"), problem.accepted)
