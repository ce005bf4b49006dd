"""An oracle: what the book has to show, from the history of commands, worked out as simply as possible.

It is written from the sentences of ``docs/architecture.md`` and shares no code with the catalog: everything
that was said is in one dictionary, what may be seen is worked out anew whenever somebody asks, and nothing is
kept up to date by differences. So a mistake in the merge, the ledger or the expiry shows as a difference.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import xxhash

from rollbook.model import REMOVE_AFTER_KEY, UNHEALTHY_AFTER_KEY

FIELDS = (
    "ip", "port", "cluster", "weight", "enabled", "healthy", "ready", "alive", "unconfirmed", "ephemeral",
    "instance_id", "owner", "metadata",
)  # fmt: skip
SESSION, HTTP, OPERATOR, CHECKER = "session", "http", "operator", "checker"


@dataclasses.dataclass
class Said:
    """What one publisher says about one endpoint."""

    lease: str
    kind: str
    epoch: int
    entry: Any
    order: int
    since: int
    heard: float
    down: bool
    proven: bool
    silent: bool = False

    @property
    def timings(self) -> tuple[float, float]:
        """Seconds of silence until it is not alive, and until it is out."""
        if self.kind == OPERATOR:
            return 15.0, 600.0
        given = self.entry.metadata
        return (
            int(given.get(UNHEALTHY_AFTER_KEY, 15_000)) / 1000,
            int(given.get(REMOVE_AFTER_KEY, 30_000)) / 1000,
        )

    @property
    def at(self) -> tuple[str, int]:
        """Its address."""
        return self.entry.ip, self.entry.port

    @property
    def alive(self) -> bool:
        """What its publisher says."""
        return not self.down and not self.silent


def group_of(entry: Any) -> Any:
    """Whose entries are merged with each other: those of a pod, or those at an endpoint without one."""
    e = entry
    return e.owner or (e.namespace, e.group, e.service, e.ip, e.port, e.cluster)


class Oracle:
    """What was said, by whom, and what follows."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: dict[tuple[str, Any], Said] = {}
        self.holders: dict[str, object] = {}
        """The session of each lease that has one."""
        self.kinds: dict[str, tuple[str, int]] = {}
        """Kind and epoch of each lease that is attached or has said something."""
        self.ended_pods: set[str] = set()
        self.overrides: dict[Any, Any] = {}
        self.definitions: dict[Any, Any] = {}
        self.order = 0

    # --- commands ------------------------------------------------------------------------------------------

    def of(self, lease: str) -> list[Said]:
        return [s for s in self.said.values() if s.lease == lease]

    def hear(self, said: list[Said]) -> None:
        for s in said:
            s.heard, s.silent = self.now, False

    def attach(self, lease: str, kind: str, *, holder: object, epoch: int = 0) -> None:
        self.holders[lease] = holder
        self.kinds[lease] = (kind, epoch)
        self.hear(self.of(lease))

    def detach(self, lease: str, holder: object) -> None:
        if self.holders.get(lease) == holder:
            del self.holders[lease]
            self.tidy()

    def register(self, lease: str, entries: list[Any]) -> None:
        kind, epoch = self.kinds[lease]
        for entry in entries:
            self.order += 1
            before = self.said.get((lease, entry.ref))
            said = Said(
                lease=lease,
                kind=kind,
                epoch=epoch,
                entry=entry,
                order=self.order,
                since=before.since if before else self.order,
                heard=self.now,
                down=entry.alive is not True,
                proven=entry.alive is not None,
            )
            self.said[lease, entry.ref] = said
            if kind in {SESSION, HTTP}:
                self.drop(
                    lambda s, said=said: (
                        s.kind == SESSION
                        and s.lease not in {*self.holders, said.lease}
                        and group_of(s.entry) == group_of(said.entry)
                        and s.at == said.at
                    )
                )
        if kind != HTTP:
            self.hear(self.of(lease))

    def register_http(self, lease: str, entry: Any) -> None:
        self.kinds[lease] = (HTTP, 0)
        self.register(lease, [entry])

    def beat(self, lease: str, down: set[Any]) -> None:
        self.hear(self.of(lease))
        for s in self.of(lease):
            is_down = s.entry.ref in down
            if s.down != is_down:
                s.down, s.proven = is_down, True

    def beat_http(self, lease: str, ref: Any) -> None:
        said = self.said[lease, ref]
        self.hear([said])
        if said.down:
            said.down, said.proven = False, True

    def drop(self, which: Any) -> None:
        self.said = {name: s for name, s in self.said.items() if not which(s)}
        self.tidy()

    def tidy(self) -> None:
        """A lease that nobody holds and that says nothing is none, except the registry's own."""
        speaking = {s.lease for s in self.said.values()} | set(self.holders)
        self.kinds = {id_: kind for id_, kind in self.kinds.items() if id_ in speaking or kind[0] == CHECKER}

    def deregister(self, lease: str, refs: list[Any]) -> None:
        self.drop(lambda s: s.lease == lease and s.entry.ref in refs)

    def deregister_everywhere(self, ref: Any, *, operators: bool) -> None:
        self.drop(
            lambda s: (
                s.kind != CHECKER
                and (operators or s.kind != OPERATOR)
                and s.entry.owner == ref.owner
                and (ref.owner or s.entry.cluster == ref.cluster)
                and (s.entry.service_key, *s.at) == (ref.service_key, ref.ip, ref.port)
            )
        )

    def release(self, lease: str) -> None:
        self.holders.pop(lease, None)
        self.drop(lambda s: s.lease == lease)

    def synced(self, lease: str) -> None:
        epoch = self.kinds[lease][1]
        for other, (kind, its) in list(self.kinds.items()):
            gone = its < epoch or (its == epoch and other not in self.holders)
            if kind == OPERATOR and other != lease and gone:
                self.release(other)

    def close(self, uid: str) -> None:
        self.ended_pods.add(uid)
        self.drop(lambda s: s.entry.owner == uid)

    def fence(self, uid: str, ips: list[str]) -> None:
        """Only the first word about a pod's end says anything about its addresses."""
        self.close(uid)
        for ip in ips:
            if not any(s.entry.ip == ip and s.entry.owner for s in self.said.values()):
                self.drop(lambda s, ip=ip: s.entry.ip == ip and s.kind != CHECKER)

    def restart(self) -> None:
        """Everybody is detached, and has a full grace period."""
        self.holders.clear()
        speaking = {s.lease for s in self.said.values()}
        self.kinds = {id_: kind for id_, kind in self.kinds.items() if id_ in speaking}
        for s in self.said.values():
            s.heard = self.now

    def speaking(self) -> set[str]:
        """The leases that say something, and that silence ends."""
        return {s.lease for s in self.said.values() if s.kind != CHECKER}

    def new(self, lease: str, entries: list[Any]) -> tuple[set[Any], set[Any]]:
        """Which instances, and in which services, would be there that are not: by name, for their number."""
        instances, names = set(), set()
        for e in entries:
            there = [
                s
                for s in self.said.values()
                if (s.entry.service_key, *s.at, s.entry.owner) == (e.service_key, e.ip, e.port, e.owner)
            ]
            if not e.owner:
                there = [
                    s
                    for s in there
                    if s.entry.cluster == e.cluster
                    and (
                        s.lease == lease
                        or s.entry == e
                        or (s.kind == SESSION and s.lease not in self.holders)
                    )
                ]
            if not there:
                instances.add((e.service_key, e.ip, e.port, e.owner, "" if e.owner else e.cluster))
                names.add(e.service_key)
        return instances, names

    # --- time ----------------------------------------------------------------------------------------------

    def overdue(self) -> list[Said]:
        return [s for s in self.said.values() if s.kind != CHECKER and self.now - s.heard >= s.timings[1]]

    def turn(self, now: float, *, kept: set[str] = frozenset()) -> None:
        """Time has passed; the leases named are overdue and kept all the same."""
        self.now = now
        overdue = self.overdue()
        for s in self.said.values():
            if s.kind != CHECKER and now - s.heard >= s.timings[0]:
                s.silent = True
            if s in overdue:
                s.silent = True
        self.drop(lambda s: s in overdue and s.lease not in kept)
        for lease in {s.lease for s in overdue} - self.speaking():
            self.release(lease)  # the lease itself ends, attached or not

    # --- what is seen --------------------------------------------------------------------------------------

    def shown(self) -> dict[tuple[Any, str], dict[str, Any]]:
        """Everything, by service and key."""
        groups: dict[Any, list[Said]] = {}
        for s in self.said.values():
            groups.setdefault(group_of(s.entry), []).append(s)
        for ref in self.definitions:
            groups.setdefault(group_of(ref), [])
        found: dict[tuple[Any, str], dict[str, Any]] = {}
        for group, said in groups.items():
            found |= self._pod(said) if isinstance(group, str) else self._endpoint(group, said)
        for (service, _), seen in found.items():
            for ref, override in self.overrides.items():
                named = (ref.service_key, ref.ip, ref.port, ref.cluster, ref.owner)
                if named == (service, seen["ip"], seen["port"], seen["cluster"], seen["owner"]):
                    if override.enabled is not None:
                        seen["enabled"] = override.enabled
                    if override.weight is not None:
                        seen["weight"] = override.weight
        return found

    def _pod(self, said: list[Said]) -> dict[tuple[Any, str], dict[str, Any]]:
        publishers = sorted((s for s in said if s.kind != OPERATOR), key=lambda s: s.order)
        told = {}
        for s in sorted((s for s in said if s.kind == OPERATOR), key=lambda s: (s.epoch, s.order)):
            told[s.entry.service_key, s.at] = s
        if not told:
            # While no operator has spoken, the sidecar's settings count; of several the newest.
            return {_name(s): _seen(s, alive=s.alive) for s in publishers}
        ips = {s.entry.ip for s in told.values()}
        publishers = [s for s in publishers if s.entry.ip in ips]
        found = {}
        for s in told.values():
            same = [p for p in publishers if p.at == s.at]
            if same:
                newest = same[-1]
                if newest.silent or newest.proven:
                    alive = newest.alive
                else:
                    alive = s.entry.probed and s.entry.ready is True
            elif publishers:
                alive = not all(p.silent for p in publishers)
            elif s.entry.beats_required:
                continue
            else:
                alive = not s.down
            seen = _seen(s, alive=alive, ready=s.entry.ready is not False)
            seen["unconfirmed"] = not publishers and s.silent
            found[_name(s)] = seen
        return found

    def _endpoint(self, group: Any, said: list[Said]) -> dict[tuple[Any, str], dict[str, Any]]:
        found: dict[tuple[Any, str], dict[str, Any]] = {}
        for ref, definition in self.definitions.items():
            if group_of(ref) == group:
                verdicts = sorted((s for s in said if s.kind == CHECKER), key=lambda s: s.order)
                alive = not verdicts[-1].down if verdicts else definition.entry.alive is not False
                defined = Said("", "", 0, definition.entry, 0, 0, 0.0, down=not alive, proven=True)
                found[_name(defined)] = _seen(defined, alive=alive)
        for s in sorted((s for s in said if s.kind != CHECKER), key=lambda s: (s.since, s.lease)):
            seen = _seen(s, alive=s.alive)
            if seen not in found.values():
                service, key = _name(s)
                found[
                    (service, f"{key}~{xxhash.xxh64_hexdigest(s.lease.encode())}")
                    if found
                    else (service, key)
                ] = seen
        return found


def _name(s: Said) -> tuple[Any, str]:
    e = s.entry
    return e.service_key, ":".join([e.ip, str(e.port), e.cluster, *([e.owner] if e.owner else [])])


def _seen(s: Said, *, alive: bool, ready: bool = True) -> dict[str, Any]:
    e = s.entry
    return {
        "ip": e.ip,
        "port": e.port,
        "cluster": e.cluster,
        "weight": e.weight,
        "enabled": e.enabled,
        "healthy": alive and ready,
        "ready": ready,
        "alive": alive,
        "unconfirmed": False,
        "ephemeral": e.ephemeral,
        "instance_id": e.instance_id or f"{e.service}:{e.port}:{e.owner or e.ip}",
        "owner": e.owner,
        "metadata": e.metadata,
    }
