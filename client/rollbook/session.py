"""The client's side of a session, as a state machine without I/O.

It holds what the process wants to be true (its entries, its subscriptions, for an operator the pods it has
closed and fenced) and works out which frames make the registry agree: after a first connection, a
reconnection, a restart of the registry or the end of the lease alike. Nothing has to be repeated by callers.

Feed it: :meth:`connected`, :meth:`received`, :meth:`tick`, :meth:`disconnected`, and the wishes (:meth:`put`,
:meth:`drop`, :meth:`subscribe`, ...). After each, send what :meth:`take_frames` returns and handle what
:meth:`take_events` returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from rollbook import events, frames
from rollbook.limits import MAX_ENTRIES_PER_FRAME, MAX_HELD_PER_FRAME
from rollbook.names import ServiceKey
from rollbook.problems import Problem, from_details
from rollbook.view import OutOfStep, View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rollbook.model import Entry, EntryRef
    from rollbook.names import LeaseId
    from rollbook.patterns import Pattern

PING_AFTER: Final = 2.0
"""Seconds without a frame from the registry after which it is pinged."""

DEAD_AFTER: Final = 5.0
"""Seconds without an answer to a ping after which the connection is given up."""

BEAT_INTERVAL: Final = 5.0
"""Seconds between beats until the registry has said what it expects."""

BATCH: Final = 500
"""Entries in one ``register`` frame; small enough for the registry's loop, large enough to be quick."""


class _Offer(NamedTuple):
    refs: tuple[EntryRef, ...]


class _Withdrawal(NamedTuple):
    refs: tuple[EntryRef, ...]


class _PodsClosed(NamedTuple):
    uids: tuple[str, ...]


class _PodsFenced(NamedTuple):
    uids: tuple[str, ...]


class _SyncTold(NamedTuple):
    pass


class _Question(NamedTuple):
    service: ServiceKey


class _PatternQuestion(NamedTuple):
    pattern: Pattern


_Pending = _Offer | _Withdrawal | _PodsClosed | _PodsFenced | _SyncTold | _Question | _PatternQuestion | None


class Session:
    """What this process wants of the registry, and how far the registry agrees.

    Args:
        lease: this process' id, at random.
        kind: ``session`` or ``operator``.
        epoch: of an operator.
    """

    def __init__(self, lease: LeaseId, *, kind: frames.Kind = "session", epoch: int = 0) -> None:
        self.lease = lease
        self.kind: frames.Kind = kind
        self.epoch = epoch
        self.term = 0
        self.boot = ""
        self.beat_interval = BEAT_INTERVAL
        self.attached = False
        self.dead = False
        self.died_of = ""
        """Why the connection is to be given up, once it is dead; for people."""
        self.entries: dict[EntryRef, Entry] = {}
        self.views: dict[ServiceKey, View] = {}
        """The lists that are followed, by name or because they match a pattern."""
        self.patterns: dict[Pattern, None] = {}
        """The patterns that are followed."""
        self.refusals: dict[ServiceKey, Problem] = {}
        """Why lists that are wanted by name are not followed; until they are, or are wanted no more."""
        self.lease_problem: Problem | None = None
        """Why the registry will not hear this lease; ``None`` while it does, or has not been asked."""
        self._named: set[ServiceKey] = set()
        self._connected = False
        self._attaching = False
        self._confirmed: set[EntryRef] = set()
        self._rejected: dict[EntryRef, Problem] = {}
        self._down: set[EntryRef] = set()
        self._offer: dict[EntryRef, None] = {}
        self._singly: set[EntryRef] = set()
        self._withdraw: dict[EntryRef, None] = {}
        self._closed: dict[str, bool] = {}
        self._fenced: dict[str, tuple[frames.GonePod, bool]] = {}
        self._pending: dict[int, _Pending] = {}
        self._questions: dict[ServiceKey, int] = {}
        self._next_id = 0
        self._frames: list[frames.Request] = []
        self._events: list[events.Event] = []
        self._last_received = 0.0
        self._last_beat = 0.0
        self._ping_sent: float | None = None
        self._synced_wanted = False
        self._is_synced = False

    # --- wishes ----------------------------------------------------------------------------------------

    def put(self, entries: Iterable[Entry]) -> None:
        """Want these entries in the book; those that are there already are changed.

        An entry says whether its application works, too: it replaces what :meth:`set_down` said.
        """
        for entry in entries:
            ref = entry.ref
            self.entries[ref] = entry
            if entry.alive is True:
                self._down.discard(ref)
            else:
                self._down.add(ref)
            self._withdraw.pop(ref, None)
            self._confirmed.discard(ref)
            self._rejected.pop(ref, None)
            self._offer[ref] = None
        self._work()

    def drop(self, refs: Iterable[EntryRef]) -> None:
        """Want these entries out of the book."""
        for named in refs:
            entry = self.entries.pop(named, None)
            if entry is not None:
                # As it was put: what is equal in Python (a port of 80.0) the registry might not read.
                ref = entry.ref
                self._offer.pop(ref, None)
                self._confirmed.discard(ref)
                self._rejected.pop(ref, None)
                self._down.discard(ref)
                self._withdraw[ref] = None
        self._work()

    @property
    def attaching(self) -> bool:
        """Whether the registry has been asked to attach the lease, and has not answered."""
        return self._attaching

    def is_confirmed(self, ref: EntryRef) -> bool:
        """Say whether the registry has acknowledged the entry as it was last put."""
        return ref in self._confirmed

    def rejection(self, ref: EntryRef) -> Problem | None:
        """Return why the registry refused the entry, if it did when it was last offered."""
        return self._rejected.get(ref)

    @property
    def leaving(self) -> set[EntryRef]:
        """The entries that were dropped, and have yet to be taken out of the book."""
        asked = (what.refs for what in self._pending.values() if isinstance(what, _Withdrawal))
        return {ref for refs in (self._withdraw, *asked) for ref in refs}

    def set_down(self, down: Iterable[EntryRef], now: float) -> None:
        """Say which entries' applications do not work; a difference is told at once, by a beat."""
        # As they were put, as in `drop`.
        wanted = {self.entries[ref].ref for ref in down if ref in self.entries}
        if wanted != self._down:
            # Kept in the entries too, so that whoever hears of them afresh hears the last verdict.
            for ref in wanted ^ self._down:
                self.entries[ref] = msgspec.structs.replace(self.entries[ref], alive=ref not in wanted)
            self._down = wanted
            if self.attached:
                self._beat(now)

    def subscribe(self, service: ServiceKey) -> View:
        """Want a service's list, and all changes to it."""
        view = self.views.get(service) or self._add_view(service)
        if service not in self._named:
            self._named.add(service)
            if self._connected:
                self._ask(view)
        return view

    def unsubscribe(self, service: ServiceKey) -> None:
        """Stop wanting it; where a pattern matches it, it goes on being followed for that."""
        if service not in self._named:
            return
        self._named.discard(service)
        self.refusals.pop(service, None)
        if not self._matched(service):
            del self.views[service]
        if self._connected:
            namespace, group, name = service
            self._frames.append(frames.Unsubscribe(namespace=namespace, group=group, service=name))

    def follow(self, pattern: Pattern) -> None:
        """Want the lists of all services that match, those that are there and those to come."""
        if pattern not in self.patterns:
            self.patterns[pattern] = None
            if self._connected:
                self._ask_pattern(pattern, {})

    def unfollow(self, pattern: Pattern) -> None:
        """Stop wanting them, except those that are subscribed or match another pattern."""
        if pattern not in self.patterns:
            return
        del self.patterns[pattern]
        for service in [s for s in self.views if self._brought(s) and not self._matched(s)]:
            del self.views[service]
        if self._connected:
            namespace, group, name = pattern
            self._frames.append(frames.Unfollow(namespace=namespace, group=group, pattern=name))

    def refresh(self, service: ServiceKey) -> None:
        """Compare a list with the registry's (the safety net beneath the deltas)."""
        view = self.views.get(service)
        if view is not None and self._connected:
            self._ask(view)

    def close_pods(self, uids: Iterable[str]) -> None:
        """Operator: want these pods closed."""
        for uid in uids:
            self._closed.setdefault(uid, False)
        self._work()

    def fence_pods(self, pods: Iterable[frames.GonePod]) -> None:
        """Operator: want these pods fenced."""
        for pod in pods:
            if pod.uid not in self._fenced:
                self._fenced[pod.uid] = (pod, False)
                self._closed.pop(pod.uid, None)
        self._work()

    def forget_pods(self, uids: Iterable[str]) -> None:
        """Operator: stop repeating these closings and fences to registries that start."""
        for uid in uids:
            self._closed.pop(uid, None)
            self._fenced.pop(uid, None)

    def synced(self) -> None:
        """Operator: all that is known has been put; older operators' entries may go once it has arrived."""
        self._synced_wanted = self._is_synced = True
        self._work()

    def barrier(self, services: Iterable[ServiceKey], timeout: float) -> int:
        """Ask for a barrier; :class:`rollbook.events.Answered` comes with this id."""
        names = [(s.namespace, s.group, s.name) for s in services]
        return self._ask_once(lambda id_: frames.Barrier(id=id_, services=names, timeout=timeout))

    def release(self) -> int:
        """End the lease for good; :class:`rollbook.events.Answered` comes with this id."""
        self.entries.clear()
        self._offer.clear()
        self._withdraw.clear()
        self._confirmed.clear()
        self._rejected.clear()
        self._down.clear()
        return self._ask_once(lambda id_: frames.Release(id=id_))

    # --- what happens ----------------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """A connection stands: attach, and ask for every list."""
        self._connected = True
        self.dead = False
        self._last_received = now
        self._ping_sent = None
        if self.entries or self._withdraw or self.kind == "operator":
            self._attach()
        for view in self.views.values():
            view.unsettle()
        for service in self._named:
            self._ask(self.views[service])
        offered: dict[ServiceKey, None] = {}
        for pattern in self.patterns:
            self._ask_pattern(pattern, offered)

    def disconnected(self) -> None:  # one arm a kind of request
        """The connection is gone; what was asked and not answered is asked again next time."""
        self._connected = self.attached = self._attaching = False
        # The next registry may hear the lease: whoever waits is to wait for its word.
        self.lease_problem = None
        self._frames.clear()
        self._questions.clear()
        pending, self._pending = self._pending, {}
        for id_, what in pending.items():
            match what:
                case _Offer(refs):
                    self._offer.update({r: None for r in refs if r in self.entries})
                case _Withdrawal(refs):
                    self._withdraw.update({r: None for r in refs if r not in self.entries})
                case None:
                    self._events.append(
                        events.Answered(id_, None, Problem("registry_unreachable", "the connection was lost"))
                    )
                case _PodsClosed(uids):
                    self._closed.update({u: False for u in uids if u in self._closed})
                case _PodsFenced(uids):
                    self._fenced.update({u: (self._fenced[u][0], False) for u in uids if u in self._fenced})
                case _SyncTold():
                    self._synced_wanted = True

    def received(self, frame: frames.Answer, now: float) -> None:  # noqa: C901, PLR0912  # one arm a frame
        """A frame came."""
        self._last_received = now
        self._ping_sent = None
        match frame:
            case frames.Delta() | frames.Snapshot() | frames.Current():
                self._list_frame(frame)
            case frames.Followed():
                self._on_followed(frame)
            case frames.Vanished():
                self._on_vanished(ServiceKey(frame.namespace, frame.group, frame.service))
            case frames.Omitted():
                service = ServiceKey(frame.namespace, frame.group, frame.service)
                self._events.append(events.NotListed(service, from_details(frame.problem)))
                self._on_vanished(service)
            case frames.Attached():
                self._on_attached(frame, now)
            case frames.Done():
                self._on_done(frame)
            case frames.Refused():
                self._on_refused(frame)
            case frames.LeaseEnded():
                if frame.lease == self.lease and self.attached:
                    self.term = max(self.term, frame.term)
                    self._events.append(events.Ended(self.term))
                    self.attached = False
                    self._attach()
            case frames.Settled():
                # Told even where nobody was only held: that the list is settled is news to those who wait.
                for service, view in self.views.items():
                    self._events.append(events.ListChanged(service, view.settle(), 0.0))
            case frames.Gone():
                for service, view in self.views.items():
                    change = view.gone(frame.owners)
                    if change:
                        self._events.append(events.ListChanged(service, change, 0.0))
            case frames.Goodbye(reason=reason):
                self._die(f"the registry said goodbye: {reason}")
            case frames.Pong():
                pass

    def tick(self, now: float, attentive_now: float) -> None:
        """Time has passed: beat and ping when due.

        Args:
            now: monotonic seconds; beats are due by it.
            attentive_now: seconds of an :class:`rollbook.clock.AttentiveClock`; a registry is not given up
                for silence that this process slept through.
        """
        if not self._connected:
            return
        if self.attached and now - self._last_beat >= self.beat_interval:
            self._beat(now)
        if self._ping_sent is None:
            if now - self._last_received >= PING_AFTER:
                self._ping_sent = attentive_now
                self._frames.append(frames.Ping())
        elif attentive_now - self._ping_sent >= DEAD_AFTER:
            self._die(f"no answer to a ping for {DEAD_AFTER:g} s")

    def take_frames(self) -> list[frames.Request]:
        """Return the frames to be sent now, in order."""
        taken, self._frames = self._frames, []
        return taken

    def take_events(self) -> list[events.Event]:
        """Return what happened, in order."""
        taken, self._events = self._events, []
        return taken

    # --- inside ----------------------------------------------------------------------------------------

    def _die(self, reason: str) -> None:
        self.dead = True
        self.died_of = reason

    def _id(self, what: _Pending) -> int:
        self._next_id += 1
        self._pending[self._next_id] = what
        return self._next_id

    def _ask_once(self, make: Callable[[int], frames.Request]) -> int:
        id_ = self._id(None)
        if self._connected:
            self._frames.append(make(id_))
        else:
            del self._pending[id_]
            self._events.append(events.Answered(id_, None, Problem("registry_unreachable", "not connected")))
        return id_

    def _attach(self) -> None:
        if not self._attaching:
            self._attaching = True
            self.lease_problem = None
            self._frames.append(
                frames.Attach(lease=self.lease, term=self.term, kind=self.kind, epoch=self.epoch)
            )

    def _on_attached(self, frame: frames.Attached, now: float) -> None:
        self._attaching = False
        self.attached = True
        self.term = frame.term
        self.beat_interval = frame.beat_interval
        self._last_beat = now
        if frame.boot != self.boot:
            if self.boot:
                self._events.append(events.Rebooted(frame.boot))
            self.boot = frame.boot
            self._closed = dict.fromkeys(self._closed, False)
            self._fenced = {uid: (pod, False) for uid, (pod, _) in self._fenced.items()}
            if self._is_synced:
                self._synced_wanted = True
        # Offering everything again costs one frame and needs no reasoning about what arrived before.
        self._confirmed.clear()
        self._rejected.clear()
        self._offer = dict.fromkeys(self.entries)
        self._work()

    def _beat(self, now: float) -> None:
        self._last_beat = now
        # A name that the registry will not take would spoil the beat. Of others that it refused it may hold
        # what was put before, so it has to hear of those.
        down = [ref for ref in self._down if not _names_nothing(self._rejected.get(ref))]
        self._frames.append(frames.Beat(term=self.term, down=sorted(down, key=repr)))

    def _ask(self, view: View, *, afresh: bool = False) -> None:
        """Subscribe, saying what is held already unless the whole list is wanted."""
        namespace, group, name = view.service
        held = view.known and not afresh
        self._pending.pop(self._questions.pop(view.service, 0), None)
        id_ = self._questions[view.service] = self._id(_Question(view.service))
        self._frames.append(
            frames.Subscribe(
                id=id_,
                namespace=namespace,
                group=group,
                service=name,
                revision=view.revision if held else "",
                digest=view.digest if held else "",
                named=view.service in self._named,
            )
        )

    # --- patterns --------------------------------------------------------------------------------------

    def _matched(self, service: ServiceKey) -> bool:
        return any(pattern.matches(service) for pattern in self.patterns)

    def _brought(self, service: ServiceKey) -> bool:
        """Say whether a service that is followed is so because of patterns alone."""
        return service not in self._named

    def _add_view(self, service: ServiceKey) -> View:
        view = self.views[service] = View(service)
        if self._matched(service):
            self._events.append(events.Found(service))
        return view

    def _ask_pattern(self, pattern: Pattern, offered: dict[ServiceKey, None]) -> None:
        """Follow a pattern, saying what is held already and was not offered with another one."""
        namespace, group, name = pattern
        held = []
        for service, view in self.views.items():
            if self._brought(service) and view.known and service not in offered and pattern.matches(service):
                offered[service] = None
                held.append(
                    frames.Held(
                        service=service.name, group=service.group, revision=view.revision, digest=view.digest
                    )
                )
        for start in range(0, max(1, len(held)), MAX_HELD_PER_FRAME):
            self._frames.append(
                frames.Follow(
                    id=self._id(_PatternQuestion(pattern)),
                    namespace=namespace,
                    group=group,
                    pattern=name,
                    held=held[start : start + MAX_HELD_PER_FRAME],
                )
            )

    def _on_followed(self, frame: frames.Followed) -> None:
        what = self._pending.pop(frame.id, None)
        if not isinstance(what, _PatternQuestion) or what.pattern not in self.patterns:
            return
        pattern = what.pattern
        there = {ServiceKey(pattern.namespace, group, name) for group, name in frame.services}
        for service in there:
            if service not in self.views:
                self._add_view(service)
        # What was named, but vanished before its list came, nobody will tell of.
        for service, view in list(self.views.items()):
            if (
                not view.known
                and service not in there
                and self._brought(service)
                and pattern.matches(service)
            ):
                self._on_vanished(service)
        if what not in self._pending.values():
            problem = from_details(frame.problem) if frame.problem is not None else None
            self._events.append(events.PatternAnswered(pattern, problem))

    def _on_vanished(self, service: ServiceKey) -> None:
        self._pending.pop(self._questions.pop(service, 0), None)
        # One that has been subscribed meanwhile is asked for already.
        if service in self.views and self._brought(service):
            change = self.views.pop(service).vanish()
            if change:
                self._events.append(events.ListChanged(service, change, 0.0))
            self._events.append(events.Lost(service))

    # --- entries ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Ask for all that is wanted and not asked yet: additions before removals."""
        if not self.attached:
            if self._connected and (self._offer or self._withdraw or self._closed or self._fenced):
                self._attach()
            return
        singly = [r for r in self._offer if r in self._singly]
        together = [r for r in self._offer if r not in self._singly]
        self._offer.clear()
        self._singly.clear()
        chunks: list[tuple[EntryRef, ...]] = [(r,) for r in singly]
        chunks += [tuple(together[n : n + BATCH]) for n in range(0, len(together), BATCH)]
        for refs in chunks:
            entries = [self.entries[r] for r in refs]
            self._frames.append(frames.Register(id=self._id(_Offer(refs)), entries=entries))
        if self._withdraw:
            leaving = tuple(self._withdraw)[:MAX_ENTRIES_PER_FRAME]
            for ref in leaving:
                del self._withdraw[ref]
            self._ask_out(leaving)
        uids = tuple(uid for uid, told in self._closed.items() if not told)
        if uids:
            self._closed.update(dict.fromkeys(uids, True))
            self._frames.append(frames.Close(id=self._id(_PodsClosed(uids)), uids=list(uids)))
        gone = [pod for pod, told in self._fenced.values() if not told]
        if gone:
            for pod in gone:
                self._fenced[pod.uid] = (pod, True)
            self._frames.append(frames.Fence(id=self._id(_PodsFenced(tuple(p.uid for p in gone))), pods=gone))
        offered = any(isinstance(p, _Offer) for p in self._pending.values())
        if self._synced_wanted and not offered:
            # A refused frame is offered again entry by entry: the list is complete when nothing is out.
            self._synced_wanted = False
            self._frames.append(frames.Synced(id=self._id(_SyncTold())))

    def _ask_out(self, refs: tuple[EntryRef, ...]) -> None:
        self._frames.append(frames.Deregister(id=self._id(_Withdrawal(refs)), entries=list(refs)))

    def _taken_out(self, refs: tuple[EntryRef, ...]) -> None:
        """Tell what is out of the book: not what was put, or dropped again, since that was asked."""
        leaving = self.leaving
        gone = tuple(r for r in refs if r not in self.entries and r not in leaving)
        self._events.append(events.Withdrawn(gone))

    def _is_offered(self, ref: EntryRef) -> bool:
        return ref in self._offer or any(
            isinstance(what, _Offer) and ref in what.refs for what in self._pending.values()
        )

    def _on_done(self, frame: frames.Done) -> None:
        match self._pending.pop(frame.id, _Withdrawal(())):
            case _Offer(refs):
                # A newer put of the same entry has been offered under another id: that one confirms it.
                waiting = {r for p in self._pending.values() if isinstance(p, _Offer) for r in p.refs}
                sure = tuple(r for r in refs if r in self.entries and r not in waiting)
                self._confirmed.update(sure)
                self._events.append(events.Confirmed(sure))
            case _Withdrawal(refs) if refs:
                self._taken_out(refs)
            case None:
                self._events.append(events.Answered(frame.id, frame, None))
            case _:
                pass
        if self._withdraw or self._synced_wanted:
            self._work()

    def _on_refused(self, frame: frames.Refused) -> None:
        problem = from_details(frame.problem)
        match self._pending.pop(frame.id, _Withdrawal(())):
            case _Offer(refs):
                self._on_offer_refused(refs, problem)
            case _Withdrawal(refs) if refs:
                self._on_withdrawal_refused(refs)
            case None:
                self._events.append(events.Answered(frame.id, None, problem))
            case _Question(service):
                if service in self._named:
                    self.refusals[service] = problem
                self._events.append(events.NotListed(service, problem))
            case _PatternQuestion(pattern):
                self._events.append(events.PatternAnswered(pattern, problem))
            case _ if frame.id == 0:
                self._attaching = False
                self.lease_problem = problem
                self._events.append(events.LeaseRefused(problem))
            case _:
                self._events.append(events.Answered(frame.id, None, problem))

    def _on_offer_refused(self, refs: tuple[EntryRef, ...], problem: Problem) -> None:
        if len(refs) == 1:
            (ref,) = refs
            # A newer put is not refused with the older one: it has an answer of its own to come.
            if ref in self.entries and not self._is_offered(ref):
                self._rejected[ref] = problem
                self._events.append(events.Rejected(ref, problem))
        else:
            # All or nothing: offer each by itself, so that only the bad one stays out.
            again = [r for r in refs if r in self.entries]
            self._singly.update(again)
            self._offer.update(dict.fromkeys(again))
        self._work()

    def _on_withdrawal_refused(self, refs: tuple[EntryRef, ...]) -> None:
        if len(refs) == 1:
            # The registry cannot read the name, or does not hear the lease any more: it has no such entry.
            self._taken_out(refs)
        else:
            # All or nothing, here too; what has been put again meanwhile stays.
            for ref in refs:
                if ref not in self.entries:
                    self._ask_out((ref,))
        self._work()

    def _list_frame(self, frame: frames.Delta | frames.Snapshot | frames.Current) -> None:
        service = ServiceKey(frame.namespace, frame.group, frame.service)
        view = self.views.get(service)
        if view is None:
            if not isinstance(frame, frames.Snapshot) or not self._matched(service):
                return
            view = self._add_view(service)
        self._pending.pop(self._questions.pop(service, 0), None)
        self.refusals.pop(service, None)
        at = 0.0
        threshold = view.protect_threshold
        try:
            if isinstance(frame, frames.Delta):
                change = view.delta(frame)
                at = frame.at
            elif isinstance(frame, frames.Snapshot):
                change = view.snapshot(frame)
            else:
                change = view.current(frame)
        except OutOfStep:
            self._ask(view, afresh=True)
            return
        self._frames.append(
            frames.Ack(
                namespace=frame.namespace, group=frame.group, service=frame.service, revision=frame.revision
            )
        )
        # A snapshot is told even when it changes nothing: it ends the wait for the first list.
        if change or threshold != view.protect_threshold or not isinstance(frame, frames.Delta):
            self._events.append(events.ListChanged(service, change, at))


def _names_nothing(problem: Problem | None) -> bool:
    """Say whether an entry was refused for what a beat names it by."""
    return problem is not None and problem.field.rpartition(".")[2] in {"ip", "port"}
