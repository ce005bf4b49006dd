"""A session's side of the conversation: frames in, answers out.

No I/O and no clock: it is handed what came, and has answers and timers carried out by others
(:class:`Outward`). What is pushed goes its own way, from the outlet to the subscriber.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import structlog

from rollbook import frames, patterns
from rollbook.limits import (
    MAX_ENTRIES_PER_FRAME,
    MAX_HELD_PER_FRAME,
    MAX_SERVICES_PER_BARRIER,
)
from rollbook.model import check_entry, check_ref
from rollbook.names import LeaseId, ServiceKey, check_group, check_id, check_ip, check_service, service_key
from rollbook.problems import Problem, bad_value
from rollbook_registry.auth import Role, policy
from rollbook_registry.catalog.leases import Kind, check_unreserved
from rollbook_registry.push import Offer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from rollbook.model import Entry, EntryRef
    from rollbook.patterns import Pattern
    from rollbook_registry.auth import Identity
    from rollbook_registry.book import Book
    from rollbook_registry.catalog.leases import Lease
    from rollbook_registry.push import Subscriber

log = structlog.get_logger("rollbook.session")

MAX_BARRIER: Final = 60.0
"""Seconds that a barrier may be asked to wait."""

MAX_TERM: Final = 2**53
"""Terms are whole numbers that every language's JSON can carry."""

_NONE: Final[frozenset[EntryRef]] = frozenset()


class Timer(Protocol):
    """Something that was asked for later."""

    def cancel(self) -> None:
        """Call it off."""


class Outward(Protocol):
    """What a session cannot do itself."""

    def answer(self, frame: frames.Answer) -> None:
        """Have a frame sent, before whatever is pushed because of what it answers."""

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Have a function called."""


class _Wait:
    """A barrier that the client waits for."""

    __slots__ = ("remove", "timer")

    def __init__(self) -> None:
        self.timer: Timer | None = None
        self.remove: Callable[[], int] | None = None
        """Takes the barrier away, and says how many were behind; nobody is if it was lifted at once."""

    def end(self) -> int:
        """Wait no more; return how many were behind."""
        # They hold each other, and should go without the collector's help.
        timer, self.timer = self.timer, None
        remove, self.remove = self.remove, None
        if timer is not None:
            timer.cancel()
        return remove() if remove is not None else 0


class Session:
    """One client's session.

    Args:
        book: the book.
        who: the client.
        codec: how its frames are spelled.
        subscriber: who gets what is pushed to it.
        outward: carries out what it cannot do itself.

    Attributes:
        lease: whose session it is, once it has attached.
    """

    __slots__ = (
        "_beats",
        "_book",
        "_codec",
        "_epoch",
        "_operator",
        "_out",
        "_subscriber",
        "_told_gone",
        "_waits",
        "_who",
        "lease",
    )

    def __init__(
        self, book: Book, who: Identity, *, codec: frames.Codec, subscriber: Subscriber, outward: Outward
    ) -> None:
        self._book = book
        self._who = who
        self._codec = codec
        self._subscriber = subscriber
        self._out = outward
        self._operator = False
        self._epoch = 0
        self._told_gone = False
        self._waits: set[_Wait] | None = None  # most sessions never wait, and an empty set is large
        self.lease: LeaseId | None = None
        self._beats = book.metrics.beats.counts

    @property
    def who(self) -> Identity:
        """The client."""
        return self._who

    @property
    def follows(self) -> bool:
        """Whether it subscribes to anything."""
        return bool(self._subscriber.subscriptions or self._subscriber.patterns)

    def leave(self) -> None:
        """Be over, and not to be used any more: its lease goes on, attached to nobody."""
        for wait in self._waits or ():
            wait.end()
        self._waits = None
        self._book.outlet.leave(self._subscriber)
        lease = self.lease
        if lease is not None:
            self._book.apply(lambda c, now: c.detach(lease, self, now))
        # They hold it, too.
        del self._out, self._subscriber

    def take(self, data: bytes | str) -> None:
        """Carry out a frame; whatever is wrong with it is answered, and nothing was changed then."""
        id_ = 0
        try:
            frame = self._codec.request(data)
            id_ = getattr(frame, "id", 0)
            self._handle(frame)
        except Problem as problem:
            self._book.metrics.refusals.labels(problem.code).inc()
            self._out.answer(frames.Refused(id=id_, problem=problem.details()))

    def _handle(self, frame: frames.Request) -> None:  # noqa: C901, PLR0912  # one arm a frame
        match frame:
            case frames.Beat():
                self._beat(frame)
            case frames.Ack():
                self._acknowledge(frame)
            case frames.Ping():
                self._out.answer(frames.Pong(n=frame.n))
            case frames.Subscribe():
                self._subscribe(frame)
            case frames.Follow():
                self._follow(frame)
            case frames.Unfollow():
                self._book.outlet.unfollow(self._subscriber, _pattern(frame))
            case frames.Unsubscribe():
                self._book.outlet.unsubscribe(self._subscriber, _key(frame))
            case frames.Attach():
                self._attach(frame)
            case frames.Register():
                self._register(frame)
            case frames.Deregister():
                self._deregister(frame)
            case frames.Release():
                lease = self._held()
                self._book.apply(lambda c, now: c.release(lease, now))
                self._out.answer(frames.Done(id=frame.id))
            case frames.Barrier():
                self._put_up(frame)
            case frames.Close():
                self._operate("close pods")
                uids = [check_id(uid, f"uids[{n}]") for n, uid in enumerate(frame.uids)]
                self._book.apply(lambda c, now: c.close_pods(uids, now))
                self._out.answer(frames.Done(id=frame.id))
            case frames.Fence():
                self._operate("fence pods")
                pods = [_gone(pod, f"pods[{n}].") for n, pod in enumerate(frame.pods)]
                self._book.apply(lambda c, now: c.fence_pods(pods, now))
                self._book.metrics.fenced.inc(len(pods))
                self._out.answer(frames.Done(id=frame.id))
            case frames.Synced():
                lease = self._operate("say that the list is complete")
                self._book.apply(lambda c, now: c.synced(lease, now))
                self._out.answer(frames.Done(id=frame.id))

    def _acknowledge(self, frame: frames.Ack) -> None:
        key = ServiceKey(frame.namespace, frame.group, frame.service)
        # What is followed has a name that was checked.
        if key not in self._subscriber.subscriptions:
            key = _key(frame)
        self._book.outlet.acknowledge(self._subscriber, key, frame.revision)

    def _attached(self) -> LeaseId:
        if self.lease is None:
            raise Problem("bad_frame", "the session has no lease", field="type", accepted="attach first")
        return self.lease

    def _held(self) -> LeaseId:
        """Return the lease that this session may write to.

        What a broken connection still carries must not be taken after the client has come back by another.
        """
        id_ = self._attached()
        lease = self._book.catalog.lease(id_)
        if lease is not None and lease.holder is not self:
            raise Problem("lease_ended", f"lease {id_} was taken up by another session")
        return id_

    def _operate(self, what: str) -> LeaseId:
        policy.may_operate(self._who, what)
        lease = self._attached()
        if not self._operator:
            raise Problem(
                "forbidden", f"to {what}, attach with kind operator", field="kind", accepted="operator"
            )
        self._book.catalog.check_epoch(self._epoch)
        return lease

    def _attach(self, frame: frames.Attach) -> None:
        policy.may_write(self._who)
        operator = frame.kind == "operator"
        if operator:
            policy.may_operate(self._who, "attach as an operator")
        lease = LeaseId(check_id(frame.lease, "lease"))
        for field, number in (("term", frame.term), ("epoch", frame.epoch)):
            if not 0 <= number <= MAX_TERM:
                raise bad_value(field, number, f"a whole number from 0 to {MAX_TERM}")
        if self.lease not in {None, lease}:
            raise bad_value("lease", lease, f"{self.lease}: a session has one lease")
        known = self._book.catalog.lease(lease)
        if not check_unreserved(lease):
            raise bad_value("lease", lease, "an id made at random; this one is the registry's own")
        if known is not None and known.owner:
            policy.may_speak_for(self._who, known.owner)
        if self._who.role is Role.POD:
            # A pod that may not speak any more hears so at once, rather than at its first entry.
            self._book.catalog.pods.check(self._who.pod_uid, self._book.now())
        attachment = self._book.apply(
            lambda c, now: c.attach(
                lease,
                kind=Kind.OPERATOR if operator else Kind.SESSION,
                term=frame.term,
                holder=self,
                now=now,
                epoch=frame.epoch,
            )
        )
        self.lease = lease
        self._operator = operator
        self._epoch = frame.epoch
        settings = self._book.settings
        self._out.answer(
            frames.Attached(
                boot=self._book.boot,
                term=attachment.term,
                resumed=attachment.resumed,
                settled=self._book.outlet.settled,
                beat_interval=settings.beat_interval,
                unhealthy_after=settings.unhealthy_after,
                remove_after=settings.remove_after,
            )
        )

    def _register(self, frame: frames.Register) -> None:
        lease = self._held()
        entries = self._check(frame.entries)
        held = self._book.catalog.lease(lease)
        if held is not None:
            self._check_room(held, entries)
        term = self._book.apply(lambda c, now: c.register(lease, entries, now))
        self._out.answer(frames.Done(id=frame.id, term=term))

    def _check_room(self, held: Lease, entries: list[Entry]) -> None:
        limit = self._book.settings.max_entries
        # Usually there is room for all of them, and then nothing need be compared.
        if (
            len(held.entries) + len(entries) > limit
            and len({*held.entries, *(e.ref for e in entries)}) > limit
        ):
            raise Problem("limit_reached", f"a session may hold at most {limit} instances (--max-entries)")

    def _deregister(self, frame: frames.Deregister) -> None:
        lease = self._held()
        _count(frame.entries)
        refs = [check_ref(ref, f"entries[{n}].") for n, ref in enumerate(frame.entries)]
        self._book.apply(lambda c, now: c.deregister(lease, refs, now))
        self._out.answer(frames.Done(id=frame.id))

    def _beat(self, frame: frames.Beat) -> None:
        lease = self._attached()
        down = _NONE
        if frame.down:
            _count(frame.down)
            down = frozenset(check_ref(ref, f"down[{n}].") for n, ref in enumerate(frame.down))
        carried = self._check(frame.entries) if frame.entries else []
        try:
            self._book.apply(lambda c, now: c.beat(lease, term=frame.term, down=down, now=now))
        except Problem as problem:
            if problem.code == "lease_ended":
                self._beats["session", "ended"] += 1
                known = self._book.catalog.lease(lease)
                term = known.term if known else self._book.catalog.ended(lease) or 0
                self._out.answer(frames.LeaseEnded(lease=lease, term=term))
                return
            self._beats["session", "refused"] += 1
            raise
        self._beats["session", "heard"] += 1
        if carried:
            self._enter_unknown(lease, carried)

    def _enter_unknown(self, lease: LeaseId, carried: list[Entry]) -> None:
        """Have what a full beat carries, and the book does not have, entered off its path."""
        held = self._book.catalog.lease(lease)
        unknown = [e for e in carried if held is not None and e.ref not in held.entries]
        if held is not None and unknown:
            self._check_room(held, unknown)
            self._book.defer(lambda c, now: c.register(lease, unknown, now), entries=len(unknown))

    def _check(self, entries: list[Entry]) -> list[Entry]:
        _count(entries)
        checked = [check_entry(e, f"entries[{n}].") for n, e in enumerate(entries)]
        for n, entry in enumerate(checked):
            if not entry.ephemeral:
                raise bad_value(
                    f"entries[{n}].ephemeral",
                    entry.ephemeral,
                    "true; POST .../instances lays persistent ones down",
                )
        policy.may_enter(self._who, checked, operator=self._operator)
        return checked

    def _subscribe(self, frame: frames.Subscribe) -> None:
        key = _key(frame)
        outlet = self._book.outlet
        take_up = outlet.subscribe if frame.named else outlet.compare
        take_up(self._subscriber, key, revision=frame.revision, digest=frame.digest)
        self._tell_gone()
        self._tell_current([key])

    def _follow(self, frame: frames.Follow) -> None:
        pattern = _pattern(frame)
        held = {}
        _count(frame.held, "held", MAX_HELD_PER_FRAME)
        for n, offer in enumerate(frame.held):
            key = ServiceKey(
                pattern.namespace,
                check_group(offer.group, f"held[{n}].group"),
                check_service(offer.service, f"held[{n}].service"),
            )
            if not pattern.matches(key):
                raise bad_value(f"held[{n}]", str(key), f"a service that matches {pattern}")
            held[key] = Offer(offer.revision, offer.digest)
        found, problem = self._book.outlet.follow(self._subscriber, pattern, held)
        self._tell_gone()
        self._out.answer(
            frames.Followed(
                id=frame.id,
                services=[(key.group, key.name) for key in found],
                problem=problem.details() if problem else None,
            )
        )
        self._tell_current(held)

    def _tell_gone(self) -> None:
        """Tell of pods that the book may never have shown, once, to who may hold them."""
        if not self._told_gone and self._book.gone:
            self._told_gone = True
            self._out.answer(frames.Gone(owners=list(self._book.gone)))

    def _tell_current(self, keys: Iterable[ServiceKey]) -> None:
        """Answer for those lists that the client holds as they are; the others are on their way."""
        for key in keys:
            current = self._book.outlet.current(key, self._subscriber)
            if current is not None:
                self._out.answer(current)

    def _put_up(self, frame: frames.Barrier) -> None:
        policy.may_write(self._who)
        if not 0 <= frame.timeout <= MAX_BARRIER:
            raise bad_value("timeout", frame.timeout, f"seconds from 0 to {MAX_BARRIER:g}")
        if len(frame.services) > MAX_SERVICES_PER_BARRIER:
            raise Problem(
                "too_large",
                f"{len(frame.services)} services in a barrier; at most {MAX_SERVICES_PER_BARRIER} are taken",
                field="services",
                accepted=f"at most {MAX_SERVICES_PER_BARRIER}",
            )
        limit = self._book.settings.max_barriers
        waits = self._waits = self._waits or set()
        if len(waits) >= limit:
            raise Problem(
                "limit_reached", f"a session may wait for at most {limit} barriers at once (--max-barriers)"
            )
        keys = {
            service_key(name, namespace=namespace, group=group) for namespace, group, name in frame.services
        }
        wait = _Wait()
        waits.add(wait)
        wait.timer = self._out.later(frame.timeout, lambda: self._end_wait(wait, frame.id, keys))
        remove = self._book.outlet.barrier(keys, lambda: self._end_wait(wait, frame.id, keys))
        if wait in waits:
            wait.remove = remove

    def _end_wait(self, wait: _Wait, id_: int, keys: set[ServiceKey]) -> None:
        """A barrier has been lifted, or its time is up."""
        if not self._waits or wait not in self._waits:
            return
        self._waits.discard(wait)
        behind = wait.end()
        if behind:
            log.info("barrier_incomplete", behind=behind, services=[str(k) for k in sorted(keys)][:10])
        self._out.answer(frames.Done(id=id_, complete=not behind))


def _key(frame: frames.ServiceFrame) -> ServiceKey:
    return service_key(frame.service, namespace=frame.namespace, group=frame.group)


def _gone(pod: frames.GonePod, field: str) -> frames.GonePod:
    uid = check_id(pod.uid, f"{field}uid")
    return frames.GonePod(uid=uid, ips=[check_ip(ip, f"{field}ips[{n}]") for n, ip in enumerate(pod.ips)])


def _count(
    items: Collection[Entry | EntryRef | frames.Held],
    field: str = "entries",
    most: int = MAX_ENTRIES_PER_FRAME,
) -> None:
    if len(items) > most:
        raise Problem(
            "too_large",
            f"{len(items)} {field} in one frame; at most {most} are taken",
            field=field,
            accepted=f"at most {most}",
        )


def _pattern(frame: frames.PatternFrame) -> Pattern:
    return patterns.pattern(frame.pattern, namespace=frame.namespace, group=frame.group)
