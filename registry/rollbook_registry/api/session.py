"""Sessions: one WebSocket for attach, register, beat, subscribe and push.

A reader takes the client's frames one by one into the book; a writer sends answers and pushes when the
socket takes them. Neither ever waits for the other's client.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from rollbook import frames, patterns
from rollbook.limits import (
    MAX_ENTRIES_PER_FRAME,
    MAX_FRAME_BYTES,
    MAX_HELD_PER_FRAME,
    MAX_SERVICES_PER_BARRIER,
)
from rollbook.model import check_entry, check_ref
from rollbook.names import LeaseId, ServiceKey, check_group, check_id, check_ip, check_service, service_key
from rollbook.problems import Problem, bad_value
from rollbook_registry.api.doors import identity
from rollbook_registry.api.routes import Answer, Route
from rollbook_registry.auth import Role, policy
from rollbook_registry.catalog import PodsMarked
from rollbook_registry.catalog.leases import Kind, check_unreserved
from rollbook_registry.connections import Connection
from rollbook_registry.push import Offer, Subscriber

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rollbook.model import Entry, EntryRef
    from rollbook.patterns import Pattern
    from rollbook_registry.api.routes import Values
    from rollbook_registry.auth import Identity
    from rollbook_registry.book import Book
    from rollbook_registry.catalog import Event
    from rollbook_registry.catalog.leases import Lease

log = structlog.get_logger("rollbook.session")

MAX_ANSWERS: Final = 1000
"""Answers that may wait for a client that asks without reading; then its requests are read no more."""

MAX_BARRIER: Final = 60.0
"""Seconds that a barrier may be asked to wait."""

SECOND_LOOK: Final = 0.5
"""Seconds after which a session that seems to be idle is looked at again, and closed if it is."""

MAX_TERM: Final = 2**53
"""Terms are whole numbers that every language's JSON can carry."""

MAX_REASON_BYTES: Final = 123
"""Bytes of a reason that a WebSocket close frame can carry (RFC 6455, 5.5)."""

CLOSE_PATIENCE: Final = 2.0
"""Seconds that a client has to answer a close frame."""


class Closing(enum.IntEnum):
    """Why the registry ends a session: the close frame's code, and the metric's reason."""

    TOKEN_EXPIRED = 4001
    IDLE = 4002
    NOT_ACKNOWLEDGING = 4003


class Sessions:
    """All sessions of this registry.

    Args:
        book: the book.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._open: dict[Subscriber, Session] = {}
        self._late: dict[tuple[Subscriber, ServiceKey], float] = {}
        book.listeners.append(self._heard)

    def routes(self) -> list[Route]:
        """Return what is served here."""
        return [
            Route(
                method="GET",
                path="/session",
                handler=self.session,
                answers=(Answer(status=101, about="The WebSocket stands; docs/api.md has its frames."),),
                writes=True,
                open_query=True,
                problems=("bad_value",),
            )
        ]

    async def session(self, request: web.Request, _: Values) -> web.StreamResponse:
        """Take up a session: a WebSocket of the subprotocol `rollbook.v1.msgpack` or `rollbook.v1.json`."""
        who = await identity(request)
        policy.may_open_session(who)
        limit = self._book.settings.max_sessions
        if len(self._open) >= limit:
            raise Problem(
                "registry_full", f"this registry has {limit} sessions and may have no more (--max-sessions)"
            )
        offered = [
            p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if p.strip()
        ]
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_value("Upgrade", request.headers.get("Upgrade", ""), "websocket")
        if not set(offered) & set(frames.SUBPROTOCOLS):
            raise bad_value("Sec-WebSocket-Protocol", offered, " or ".join(frames.SUBPROTOCOLS))
        socket = web.WebSocketResponse(
            protocols=frames.SUBPROTOCOLS,
            compress=False,
            max_msg_size=MAX_FRAME_BYTES,
            autoping=True,
            timeout=CLOSE_PATIENCE,
        )
        await socket.prepare(request)
        if isinstance(request.protocol, Connection):
            request.protocol.is_session()
        session = Session(self._book, socket, who)
        self._open[session.subscriber] = session
        try:
            await session.run()
        finally:
            del self._open[session.subscriber]
            _let_go(socket.exception())
        return socket

    async def run(self) -> None:
        """Look after those who do not acknowledge, until cancelled."""
        interval = min(1.0, self._book.settings.ack_timeout / 4)
        while True:
            await asyncio.sleep(interval)
            self.look()

    def look(self) -> None:
        """Close the sessions that do not acknowledge what they were sent.

        They get nothing more, and hold barriers up. Who is late is closed at the second look only: if it was
        this process that did not read, it has done so by then.
        """
        patience = self._book.settings.ack_timeout
        late = {(who, key): since for who, key, since in self._book.outlet.unacknowledged(patience)}
        for (who, key), since in late.items():
            session = self._open.get(who)
            if session is not None and self._late.get((who, key)) == since:
                session.end(
                    Closing.NOT_ACKNOWLEDGING,
                    f"{key.name} not acknowledged for {patience:g} s (--ack-timeout)",
                )
        self._late = late

    def settled(self) -> None:
        """Tell everybody that the book is settled."""
        for session in self._open.values():
            session.answer(frames.Settled())

    def _heard(self, event: Event) -> None:
        """Tell everybody of pods that are gone while some may hold them that this book never knew."""
        if isinstance(event, PodsMarked) and not self._book.outlet.settled:
            owners = [pod.uid for pod in event.pods]
            for session in self._open.values():
                if session.follows:
                    session.answer(frames.Gone(owners=owners))

    async def goodbye(self, reason: str) -> None:
        """Ask everybody to go elsewhere, and close."""
        await asyncio.gather(*(s.goodbye(reason) for s in list(self._open.values())), return_exceptions=True)

    def __len__(self) -> int:
        return len(self._open)


def _let_go(error: BaseException | None) -> None:
    """Have what ended a connection hold its frames no more.

    The socket keeps the exception, and the frames of its traceback keep the socket: with its buffers, request
    and connection a cycle that only the collector would ever find.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


class Session:
    """One client's session."""

    def __init__(self, book: Book, socket: web.WebSocketResponse, who: Identity) -> None:
        self._book = book
        self._socket = socket
        self._who = who
        self._codec = frames.Codec(socket.ws_protocol or frames.MSGPACK)
        self._awake = asyncio.Event()
        self._written = asyncio.Event()
        self.subscriber = Subscriber(
            self._codec,
            self._awake.set,
            most=book.settings.max_subscriptions,
            most_patterns=book.settings.max_patterns,
        )
        self._answers: list[frames.Answer] = []
        self._lease: LeaseId | None = None
        self._operator = False
        self._epoch = 0
        self._told_gone = False
        self._barriers: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._heard_at = asyncio.get_running_loop().time()
        # Looking a labelled child up costs as much as the beat that it counts.
        self._heard = book.metrics.beats.labels("session", "heard")

    async def run(self) -> None:
        """Carry frames until the connection ends."""
        reader = asyncio.create_task(self._read(), name="session-read")
        writer = asyncio.create_task(self._write(), name="session-write")
        minder = asyncio.create_task(self._mind(), name="session-mind")
        try:
            # Whichever ends first ends the session: none is of use without the others.
            await asyncio.wait((reader, writer, minder, self._ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [reader, writer, minder, *self._barriers]
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                    log.error("session_failed", who=self._who.name, exc_info=outcome)
            self._book.outlet.leave(self.subscriber)
            lease = self._lease
            if lease is not None:
                self._book.apply(lambda c, now: c.detach(lease, self, now))
            code, reason = self._ending.result() if self._ending.done() else (int(WSCloseCode.OK), "")
            with contextlib.suppress(ConnectionError, RuntimeError):
                await self._socket.close(code=code, message=reason.encode()[:MAX_REASON_BYTES])

    def end(self, why: Closing, reason: str) -> None:
        """End it, and say so; its client may come back at once."""
        if not self._ending.done():
            self._book.metrics.sessions_closed.labels(why.name.lower()).inc()
            log.info(
                "session_ended", why=why.name.lower(), who=self._who.name, lease=self._lease, reason=reason
            )
            self._ending.set_result((int(why), reason))

    @property
    def follows(self) -> bool:
        """Whether it subscribes to anything."""
        return bool(self.subscriber.positions or self.subscriber.patterns)

    async def goodbye(self, reason: str) -> None:
        """Tell the client to go elsewhere, and close."""
        with contextlib.suppress(ConnectionError, RuntimeError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._send(self._codec.encode(frames.Goodbye(reason=reason)))
                await self._socket.close(code=WSCloseCode.GOING_AWAY, message=reason.encode())

    def answer(self, frame: frames.Answer) -> None:
        """Have a frame sent."""
        self._answers.append(frame)
        self._awake.set()

    # --- the socket ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message = await self._socket.receive()
            if message.type not in {WSMsgType.BINARY, WSMsgType.TEXT}:
                return
            self._heard_at = loop.time()
            self._take(message.data)
            if len(self._answers) > MAX_ANSWERS:
                self._written.clear()
                await self._written.wait()

    async def _mind(self) -> None:
        """End the session with its token, or when its client has been silent for too long.

        One sleeper a session, which looks again when it wakes, costs nothing a frame; a timeout around each
        read was a quarter of what a beat costs.
        """
        loop = asyncio.get_running_loop()
        idle = self._book.settings.idle_timeout
        suspect = -1.0
        while True:
            left = self._heard_at + idle - loop.time()
            if left <= 0:
                # What it said may have come while this process did not read: then the second look shows it.
                if self._heard_at == suspect:
                    self.end(Closing.IDLE, "idle")
                    return
                suspect = self._heard_at
                left = SECOND_LOOK
            if self._who.expires:
                valid = self._who.expires - time.time()
                if valid <= 0:
                    self.end(Closing.TOKEN_EXPIRED, "token expired")
                    return
                left = min(left, valid)
            await asyncio.sleep(left)

    async def _write(self) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            answers, self._answers = self._answers, []
            for answer in answers:
                await self._send(self._codec.encode(answer))
            self._written.set()
            for data in self._book.outlet.take(self.subscriber):
                await self._send(data)

    async def _send(self, data: bytes) -> None:
        if self._codec.binary:
            await self._socket.send_bytes(data)
        else:
            await self._socket.send_str(data.decode())

    # --- the frames ------------------------------------------------------------------------------------

    def _take(self, data: bytes | str) -> None:
        id_ = 0
        try:
            frame = self._codec.request(data)
            id_ = getattr(frame, "id", 0)
            self._handle(frame)
        except Problem as problem:
            self._book.metrics.refusals.labels(problem.code).inc()
            self.answer(frames.Refused(id=id_, problem=problem.details()))

    def _handle(self, frame: frames.Request) -> None:  # noqa: C901, PLR0912  # one arm a frame
        match frame:
            case frames.Beat():
                self._beat(frame)
            case frames.Ack():
                self._book.outlet.acknowledge(self.subscriber, _key(frame), frame.revision)
            case frames.Ping():
                self.answer(frames.Pong(n=frame.n))
            case frames.Subscribe():
                self._subscribe(frame)
            case frames.Follow():
                self._follow(frame)
            case frames.Unfollow():
                self._book.outlet.unfollow(self.subscriber, _pattern(frame))
            case frames.Unsubscribe():
                self._book.outlet.unsubscribe(self.subscriber, _key(frame))
            case frames.Attach():
                self._attach(frame)
            case frames.Register():
                self._register(frame)
            case frames.Deregister():
                self._deregister(frame)
            case frames.Release():
                lease = self._held()
                self._book.apply(lambda c, now: c.release(lease, now))
                self.answer(frames.Done(id=frame.id))
            case frames.Barrier():
                self._put_up(frame)
            case frames.Close():
                self._operate("close pods")
                uids = [check_id(uid, f"uids[{n}]") for n, uid in enumerate(frame.uids)]
                self._book.apply(lambda c, now: c.close_pods(uids, now))
                self.answer(frames.Done(id=frame.id))
            case frames.Fence():
                self._operate("fence pods")
                pods = [_gone(pod, f"pods[{n}].") for n, pod in enumerate(frame.pods)]
                self._book.apply(lambda c, now: c.fence_pods(pods, now))
                self._book.metrics.fenced.inc(len(pods))
                self.answer(frames.Done(id=frame.id))
            case frames.Synced():
                lease = self._operate("say that the list is complete")
                self._book.apply(lambda c, now: c.synced(lease, now))
                self.answer(frames.Done(id=frame.id))

    def _attached(self) -> LeaseId:
        if self._lease is None:
            raise Problem("bad_frame", "the session has no lease", field="type", accepted="attach first")
        return self._lease

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
        if self._lease not in {None, lease}:
            raise bad_value("lease", lease, f"{self._lease}: a session has one lease")
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
        self._lease = lease
        self._operator = operator
        self._epoch = frame.epoch
        settings = self._book.settings
        self.answer(
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
        self.answer(frames.Done(id=frame.id, term=term))

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
        self.answer(frames.Done(id=frame.id))

    def _beat(self, frame: frames.Beat) -> None:
        lease = self._attached()
        _count(frame.down)
        down = frozenset(check_ref(ref, f"down[{n}].") for n, ref in enumerate(frame.down))
        carried = self._check(frame.entries) if frame.entries else []
        try:
            self._book.apply(lambda c, now: c.beat(lease, term=frame.term, down=down, now=now))
        except Problem as problem:
            if problem.code == "lease_ended":
                self._book.metrics.beats.labels("session", "ended").inc()
                known = self._book.catalog.lease(lease)
                term = known.term if known else self._book.catalog.ended(lease) or 0
                self.answer(frames.LeaseEnded(lease=lease, term=term))
                return
            self._book.metrics.beats.labels("session", "refused").inc()
            raise
        self._heard.inc()
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
        take_up(self.subscriber, key, revision=frame.revision, digest=frame.digest)
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
        found, problem = self._book.outlet.follow(self.subscriber, pattern, held)
        self._tell_gone()
        self.answer(
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
            self.answer(frames.Gone(owners=list(self._book.gone)))

    def _tell_current(self, keys: Iterable[ServiceKey]) -> None:
        """Answer for those lists that the client holds as they are; the others are on their way."""
        for key in keys:
            current = self._book.outlet.current(key, self.subscriber)
            if current is not None:
                self.answer(current)

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
        if len(self._barriers) >= limit:
            raise Problem(
                "limit_reached", f"a session may wait for at most {limit} barriers at once (--max-barriers)"
            )
        keys = {
            service_key(name, namespace=namespace, group=group) for namespace, group, name in frame.services
        }
        task = asyncio.create_task(self._barrier(frame, keys), name="barrier")
        self._barriers.add(task)
        task.add_done_callback(self._barriers.discard)

    async def _barrier(self, frame: frames.Barrier, keys: set[ServiceKey]) -> None:
        lifted = asyncio.Event()
        remove = self._book.outlet.barrier(keys, lifted.set)
        try:
            async with asyncio.timeout(frame.timeout):
                await lifted.wait()
        except TimeoutError:
            pass
        finally:
            behind = remove()
        if behind:
            log.info("barrier_incomplete", behind=behind, services=[str(k) for k in sorted(keys)][:10])
        self.answer(frames.Done(id=frame.id, complete=not behind))


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
