"""The observer: sees everything, and says which invariant of the project is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollbook_registry.cluster import Turn
from simulation.clients import ANCHOR, Publisher, service_key
from simulation.world import Broken

if TYPE_CHECKING:
    from simulation.clients import Client

AGREE = "after healing all replicas agree"
KEPT = "no acknowledged registration whose client still beats is lost"
GONE = "nothing closed or fenced comes back"
NEVER_EMPTY = "nobody sees an empty list through a failure of ours"
NO_FLAP = "no health flaps when one of three dies"
DEAD_OWNER = "data of a dead owner replica expires too"
MINORITY = "a minority does not empty itself"
READY = "after healing everybody is ready"
HONEST = "the divergence metric is raised only by divergence"


class Observer:
    """Holds what is true in the simulated world, and compares.

    Attributes:
        steady: whether the plan's faults must not be seen by anybody at all.
        excused: whether plain HTTP clients are excepted from that.
    """

    def __init__(self, world) -> None:
        self.world = world
        self.nodes: list = []
        self.publishers: list[Client] = []
        self.operator = None
        self.steady = self.excused = False
        self.watch_from = 0.0
        self.seen_anchor: set[str] = set()

    def must_not_flap(self, *, sessions_only: bool = False) -> None:
        """From now on nobody may see an anchor go, or turn unhealthy.

        Args:
            sessions_only: plain HTTP clients may: their beats through a replica that is cut off count only
                there, and three in a row may go through it.
        """
        self.steady = True
        self.excused = sessions_only
        self.watch_from = self.world.now

    # --- all the while ---------------------------------------------------------------------------------

    def changed(self, process, event) -> None:
        """A replica's list has changed."""
        self.world.note(
            process.node.name,
            event.service.name,
            "+" + ",".join(f"{i.key}{'' if i.healthy else '!'}" for i in event.put),
            "-" + ",".join(event.drop),
        )
        pods = process.catalog.pods
        for instance in event.put:
            if instance.owner and instance.owner in pods:
                raise Broken(GONE, f"{process.node.name} shows {instance.key} again, which it knows is gone")

    def seen(self, subscriber, view) -> None:
        """A subscriber's list has changed."""
        if view.service != service_key(ANCHOR):
            return
        listed = view.instances
        if not listed and subscriber.name not in self.seen_anchor:
            return
        self.seen_anchor.add(subscriber.name)
        at = subscriber.process.node.name if subscriber.process is not None else "nobody"
        if not listed:
            raise Broken(NEVER_EMPTY, f"{subscriber.name} at {at} sees nobody")
        if self.steady and self.world.now >= self.watch_from:
            shown = {(i.ip, i.port): i for i in listed}
            for publisher in self.publishers:
                if self.excused and not isinstance(publisher, Publisher):
                    continue
                for entry in publisher.entries:
                    if entry.service != ANCHOR:
                        continue
                    instance = shown.get((entry.ip, entry.port))
                    if instance is None or not instance.healthy:
                        raise Broken(NO_FLAP, f"{subscriber.name} at {at}: {entry.ip} is {instance}")

    def minority(self, node, before: int) -> None:
        """A replica was alone for a long while: it still has its book."""
        process = node.process
        if process is None:
            return
        left = process.catalog.services.instances
        if left < 0.5 * before:
            raise Broken(MINORITY, f"{node.name} had {before} instances, and has {left}")
        service = process.catalog.service(service_key(ANCHOR))
        if service is None or not service.instances:
            raise Broken(MINORITY, f"{node.name} has no instance of {ANCHOR} left")

    def dead_owner(self, lost) -> None:
        """A replica has been dead for long: the others show nothing that only it vouched for."""
        for node in self.nodes:
            if node is not lost and node.process is not None:
                for ip in self.dead(node.process):
                    raise Broken(DEAD_OWNER, f"{node.name} still shows {ip}, of {lost.name}")

    # --- at the end ------------------------------------------------------------------------------------

    def check(self, *, orderly: bool, latest: bool) -> None:
        """Everything has healed, and there was time: what must be true now?

        Args:
            orderly: links delivered in order and once, so copies never differed.
            latest: what a plain HTTP client said last counts, too.
        """
        processes = [n.process for n in self.nodes]
        for node, process in zip(self.nodes, processes, strict=True):
            if process is None or not process.ready:
                why = process.distro.readiness(0.0).why.value if process else "not running"
                raise Broken(READY, f"{node.name} is not: {why}")
        self._agreement(processes)
        self._kept(processes, latest=latest)
        self._gone(processes)
        if orderly:
            for turn in (Turn.DIVERGED, Turn.DIVERGED_VISIBLY):
                for node, process in zip(self.nodes, processes, strict=True):
                    count = node.counts.get(turn, 0) + process.distro.counts[turn]
                    if count:
                        raise Broken(HONEST, f"{node.name} counted {turn.value} {count} times")

    def _agreement(self, processes) -> None:
        first = processes[0]
        for process in processes[1:]:
            mine = {s.origin: s.sum for s in first.distro.following.all()}
            theirs = {s.origin: s.sum for s in process.distro.following.all()}
            if mine != theirs:
                raise Broken(
                    AGREE, f"{first.node.name} has {mine}, {process.node.name} has {theirs} of the streams"
                )
            if self._visible(first) != self._visible(process):
                raise Broken(AGREE, _difference(first, process, self._visible))
            if first.catalog.digest != process.catalog.digest:
                raise Broken(AGREE, "equal lists have other digests")
            if first.catalog.pods.digest != process.catalog.pods.digest:
                raise Broken(AGREE, "other pods are closed or fenced")

    def _visible(self, process) -> dict:
        return {(s.key, k): i for s in process.catalog.services for k, i in s.instances.items()}

    def _kept(self, processes, *, latest: bool) -> None:
        ended = self._ended()
        for process in processes:
            shown = {(s.name, i.ip, i.port): i for (s, _), i in self._visible(process).items()}
            for publisher in self.publishers:
                if not publisher.alive or publisher is self.operator:
                    continue
                for entry in publisher.entries:
                    if entry.owner in ended:
                        continue
                    instance = shown.get((entry.service, entry.ip, entry.port))
                    if instance is None:
                        raise Broken(KEPT, f"{process.node.name} lacks {entry.ip} of {publisher.name}")
                    if not instance.healthy:
                        raise Broken(KEPT, f"{process.node.name} calls {entry.ip} unhealthy")
                    said = latest or isinstance(publisher, Publisher)
                    if instance.weight != entry.weight and said and not entry.owner:
                        raise Broken(KEPT, f"{process.node.name} has an old weight of {entry.ip}")
            for ip in self.dead(process):
                raise Broken(AGREE, f"{process.node.name} still shows {ip}, whose client is long dead")

    def dead(self, process) -> list[str]:
        """What a replica shows of clients that are dead."""
        alive = {e.ip for p in self.publishers if p.alive for e in p.entries}
        return sorted({i.ip for i in self._visible(process).values()} - alive)

    def _ended(self) -> set[str]:
        if self.operator is None:
            return set()
        return {p.uid for p in self.operator.fenced_pods} | set(self.operator.closed_pods)

    def _gone(self, processes) -> None:
        for process in processes:
            for instance in self._visible(process).values():
                if instance.owner in self._ended():
                    raise Broken(GONE, f"{process.node.name} shows {instance.key}")


def _difference(one, other, visible) -> str:
    mine, theirs = visible(one), visible(other)
    odd = [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]
    return f"{one.node.name} and {other.node.name} differ in {[str(k[1]) for k in odd][:5]}"
