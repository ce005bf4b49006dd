"""Commands: what a registration, a beat and a deregistration cost in process, without sockets.

The registry is a whole one (:class:`~rollbook_registry.server.Server`), so that all that listens to a book in
earnest listens here: history, counters, the journal, the sessions. Nothing is sent to it; its book is called
as the HTTP API calls it. Times are of the processor, which others on the machine disturb less.
"""

from __future__ import annotations

import cProfile
import gc
import itertools
import json
import pstats
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import fleet, process
from benchmarks.report import Result, Row, Spread
from rollbook.logs import set_up
from rollbook.model import EntryRef
from rollbook.names import ServiceKey, parse_instance_key
from rollbook_registry.api.native import InstanceBody, Stored
from rollbook_registry.auth import LOCAL, policy
from rollbook_registry.catalog.leases import http_lease
from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings

if TYPE_CHECKING:
    from benchmarks.rounds import Options
    from rollbook.model import Entry, Instance

STANDING: Final = 10_000
"""Instances that are in the book all the time; beats are theirs."""

COUNT: Final = 4_000
"""Commands of one kind in a round."""

_decode = msgspec.json.Decoder(InstanceBody).decode
_encode = msgspec.json.Encoder().encode


def _body(number: int) -> bytes:
    name = f"orders-{number // fleet.PER_SERVICE}"
    body = {
        "ip": fleet.address(number),
        "port": fleet.PORT,
        "instance_id": f"{name}-{number}",
        "metadata": fleet.METADATA,
    }
    return json.dumps(body).encode()


def _service(number: int) -> ServiceKey:
    # Spelled anew each time, as it comes out of a URL.
    return ServiceKey("public", "DEFAULT_GROUP", f"orders-{number // fleet.PER_SERVICE}")


class Ours:
    """A registry, and what its HTTP API does with a request that it has taken apart."""

    def __init__(self, server: Server) -> None:
        self.book = server.book
        self._beats = self.book.metrics.beats.counts

    def post(self, key: ServiceKey, body: bytes) -> bytes:
        """From a body to the answer's."""
        entry = _decode(body).entry(key)
        policy.may_enter(LOCAL, [entry], operator=False)
        lease = http_lease(entry.ref)
        term = self.book.apply(lambda c, now: c.register_http(lease, entry, term=0, now=now))
        shown = self.book.catalog.instance(entry.ref, lease)
        if shown is None:
            raise AssertionError("what was registered is not shown")
        return _encode(Stored(instance=shown, term=term))

    def register(self, entry: Entry) -> None:
        """From an entry to the events handed on."""
        lease = http_lease(entry.ref)
        self.book.apply(lambda c, now: c.register_http(lease, entry, term=0, now=now))

    def put(self, key: ServiceKey, name: str) -> None:
        """From a beat's URL, taken apart, to its being heard."""
        ip, port, cluster, owner = parse_instance_key(name)
        namespace, group, service = key
        ref = EntryRef(
            service=service, namespace=namespace, group=group, ip=ip, port=port, cluster=cluster, owner=owner
        )
        policy.may_speak_for(LOCAL, ref.owner)
        self.beat(ref)
        self._beats["http", "heard"] += 1

    def beat(self, ref: EntryRef) -> None:
        """From the name of an instance to its being heard."""
        lease = http_lease(ref)
        self.book.apply(lambda c, now: c.beat_http(lease, ref, term=1, now=now))

    def leave(self, ref: EntryRef) -> None:
        """From the name of an instance to the events handed on."""
        if not self.book.apply(lambda c, now: c.deregister_everywhere(ref, operators=True, now=now)):
            raise AssertionError("what was registered was not there")


class _Seen:
    __slots__ = ("at", "instance")

    def __init__(self, instance: Instance | None, at: float) -> None:
        self.instance = instance
        self.at = at


class Bare:
    """The limit: dicts, and msgspec where bytes come in and go out."""

    def __init__(self) -> None:
        self._services: dict[ServiceKey, dict[str, _Seen]] = {}
        self._clock = time.monotonic

    def post(self, key: ServiceKey, body: bytes) -> bytes:
        said = _decode(body)
        service = self._services.setdefault(key, {})
        service[f"{said.ip}:{said.port}:{said.cluster}"] = _Seen(None, self._clock())
        return _encode(said)

    def register(self, entry: Entry) -> None:
        service = self._services.setdefault(entry.service_key, {})
        service[f"{entry.ip}:{entry.port}:{entry.cluster}"] = _Seen(None, self._clock())

    def put(self, key: ServiceKey, name: str) -> None:
        self._services[key][name].at = self._clock()

    def beat(self, ref: EntryRef) -> None:
        self._services[ref.service_key][ref.key].at = self._clock()

    def leave(self, ref: EntryRef) -> None:
        del self._services[ref.service_key][ref.key]


class Work:
    """The same work for both sides: numbers of instances, and what is made of them beforehand."""

    def __init__(self, seed: int) -> None:
        self._fresh = itertools.count(STANDING)
        self._rng = random.Random(seed)

    def fresh(self) -> list[int]:
        """Instances that nobody has seen, ten to a service."""
        return list(itertools.islice(self._fresh, COUNT))

    def standing(self) -> list[int]:
        """Instances that are there, in no order that memory knows."""
        return self._rng.choices(range(STANDING), k=COUNT)


def _entry(number: int) -> Entry:
    entry: Entry = _decode(_body(number)).entry(_service(number))
    return entry


def _ref(number: int) -> EntryRef:
    # Without a cached hash, as it comes out of a request.
    return _entry(number).ref


def _posts(side: Ours | Bare, numbers: list[int]) -> float:
    given = [(_service(n), _body(n)) for n in numbers]
    began = time.process_time()
    for key, body in given:
        side.post(key, body)
    return time.process_time() - began


def _registers(side: Ours | Bare, numbers: list[int]) -> float:
    given = [_entry(n) for n in numbers]
    began = time.process_time()
    for entry in given:
        side.register(entry)
    return time.process_time() - began


def _puts(side: Ours | Bare, numbers: list[int]) -> float:
    given = [(_service(n), f"{fleet.address(n)}:{fleet.PORT}:DEFAULT") for n in numbers]
    began = time.process_time()
    for key, name in given:
        side.put(key, name)
    return time.process_time() - began


def _beats(side: Ours | Bare, numbers: list[int]) -> float:
    given = [_ref(n) for n in numbers]
    began = time.process_time()
    for ref in given:
        side.beat(ref)
    return time.process_time() - began


def _leaves(side: Ours | Bare, numbers: list[int]) -> float:
    given = [_ref(n) for n in numbers]
    began = time.process_time()
    for ref in given:
        side.leave(ref)
    return time.process_time() - began


def _round(side: Ours | Bare, work: Work, took: dict[str, list[float]]) -> None:
    """Measure every command once, and leave the book as it was."""
    posted, registered = work.fresh(), work.fresh()
    found = {
        "registration, new: from the body to the answer": _posts(side, posted),
        "registration, new: from the entry to its events": _registers(side, registered),
        "registration, repeated: from the entry to its events": _registers(side, registered),
        "beat: from the URL's parts to being heard": _puts(side, work.standing()),
        "beat: from the instance's name to being heard": _beats(side, work.standing()),
        "deregistration: from the instance's name to its events": _leaves(side, posted + registered) / 2,
    }
    for name, seconds in found.items():
        took.setdefault(name, []).append(seconds / COUNT * 1e6)


async def run(options: Options) -> Result:
    """Measure."""
    # As the registry's own command line sets it up: a closed door, but a door.
    set_up("warning", "json")
    with tempfile.TemporaryDirectory(prefix="rollbook-bench-") as directory:
        settings = RegistrySettings(
            auth="none",
            host="127.0.0.1",
            http_port=0,
            session_port=0,
            nacos_grpc=False,
            data_dir=Path(directory),
            unhealthy_after=3600.0,
            remove_after=3600.0,
        )
        async with Server(settings) as server:
            rows = _measure(Ours(server), Bare(), options)
    return Result(
        rows=rows,
        limit=(
            "a dict of dicts with the same keys that remembers when it was touched; where a body comes in, "
            "it is decoded and encoded by msgspec too"
        ),
        notes=[
            "one process, no sockets; microseconds of its processor time for one command",
            f"{STANDING:,} instances stand in the book, each a plain HTTP client's, ten to a service",
            "nobody is subscribed; the journal is written, and the debug log closed",
        ],
    )


def _measure(ours: Ours, bare: Bare, options: Options) -> list[Row]:
    took: dict[Ours | Bare, dict[str, list[float]]] = {ours: {}, bare: {}}
    works = {side: Work(seed) for seed, side in enumerate(took)}
    for side in took:
        _posts(side, list(range(STANDING)))
    gc.collect()
    gc.freeze()
    try:
        for turn in range(options.rounds + 1):
            for side, found in took.items():
                _round(side, works[side], found if turn else {})  # the first is to get warm
        if process.profile_directory is not None:
            _profile(ours, works[ours], process.profile_directory)
    finally:
        gc.unfreeze()
    return [
        Row(name=name, unit="us", ours=Spread(tuple(values)), limit=Spread(tuple(took[bare][name])))
        for name, values in took[ours].items()
    ]


def _profile(ours: Ours, work: Work, directory: Path) -> None:
    """Count calls, in a round of their own; what a call costs looks larger than it is."""
    profile = cProfile.Profile()
    profile.runcall(_round, ours, work, {})
    directory.mkdir(parents=True, exist_ok=True)
    profile.dump_stats(directory / "commands.pstats")
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(45)
