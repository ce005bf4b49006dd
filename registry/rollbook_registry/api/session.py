"""Sessions: one WebSocket for attach, register, beat, subscribe and push.

A reader takes the client's frames one by one into the book; a writer sends answers and pushes when the
socket takes them. Neither ever waits for the other's client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from rollbook import frames
from rollbook.limits import MAX_ENTRIES_PER_FRAME, MAX_FRAME_BYTES
from rollbook.model import check_entry, check_ref
from rollbook.names import LeaseId, ServiceKey, check_id, check_ip, service_key
from rollbook.problems import Problem, bad_value
from rollbook_registry.api.doors import identity
from rollbook_registry.api.routes import Answer, Route
from rollbook_registry.auth import Role, policy
from rollbook_registry.catalog import PodsMarked
from rollbook_registry.catalog.leases import Kind, check_unreserved
from rollbook_registry.push import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rollbook.model import Entry, EntryRef
    from rollbook_registry.api.routes import Values
    from rollbook_registry.auth import Identity
    from rollbook_registry.book import Book
    from rollbook_registry.catalog import Event

log = structlog.get_logger("rollbook.session")

MAX_ANSWERS: Final = 1000
"""Answers that may wait for a client that asks without reading; then its requests are read no more."""

MAX_BARRIER: Final = 60.0
"""Seconds that a barrier may be asked to wait."""

MAX_TERM: Final = 2**53
"""Terms are whole numbers that every language's JSON can carry."""

CLOSE_TOKEN_EXPIRED: Final = 4001
CLOSE_IDLE: Final = 4002


class Sessions:
    """All sessions of this registry.

    Args:
        book: the book.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._open: set[Session] = set()
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
        offered = [
            p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if p.strip()
        ]
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_value("Upgrade", request.headers.get("Upgrade", ""), "websocket")
        if not set(offered) & set(frames.SUBPROTOCOLS):
            raise bad_value("Sec-WebSocket-Protocol", offered, " or ".join(frames.SUBPROTOCOLS))
        socket = web.WebSocketResponse(
            protocols=frames.SUBPROTOCOLS, compress=False, max_msg_size=MAX_FRAME_BYTES, autoping=True
        )
        await socket.prepare(request)
        session = Session(self._book, socket, who)
        self._open.add(session)
        try:
            await session.run()
        finally:
            self._open.discard(session)
        return socket

    def settled(self) -> None:
        """Tell everybody that the book is settled."""
        for session in self._open:
            session.answer(frames.Settled())

    def _heard(self, event: Event) -> None:
        """Tell everybody of pods that are gone while some may hold them that this book never knew."""
        if isinstance(event, PodsMarked) and not self._book.outlet.settled:
            owners = [pod.uid for pod in event.pods]
            for session in self._open:
                if session.follows:
                    session.answer(frames.Gone(owners=owners))

    async def goodbye(self, reason: str) -> None:
        """Ask everybody to go elsewhere, and close."""
        await asyncio.gather(*(s.goodbye(reason) for s in list(self._open)), return_exceptions=True)

    def __len__(self) -> int:
        return len(self._open)


class Session:
    """One client's session."""

    def __init__(self, book: Book, socket: web.WebSocketResponse, who: Identity) -> None:
        self._book = book
        self._socket = socket
        self._who = who
        self._codec = frames.Codec(socket.ws_protocol or frames.MSGPACK)
        self._awake = asyncio.Event()
        self._written = asyncio.Event()
        self._subscriber = Subscriber(self._codec, self._awake.set)
        self._answers: list[frames.Answer] = []
        self._lease: LeaseId | None = None
        self._operator = False
        self._epoch = 0
        self._told_gone = False
        self._barriers: set[asyncio.Task[None]] = set()
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
            await asyncio.wait((reader, writer, minder), return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [reader, writer, minder, *self._barriers]
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                    log.error("session_failed", who=self._who.name, exc_info=outcome)
            self._book.outlet.leave(self._subscriber)
            lease = self._lease
            if lease is not None:
                self._book.apply(lambda c, now: c.detach(lease, self, now))
            with contextlib.suppress(ConnectionError, RuntimeError):
                await self._socket.close()

    @property
    def follows(self) -> bool:
        """Whether it subscribes to anything."""
        return bool(self._subscriber.positions)

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
        while True:
            left = self._heard_at + idle - loop.time()
            if left <= 0:
                await self._close(CLOSE_IDLE, "idle")
                return
            if self._who.expires:
                valid = self._who.expires - time.time()
                if valid <= 0:
                    await self._close(CLOSE_TOKEN_EXPIRED, "token expired")
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
            for data in self._book.outlet.take(self._subscriber):
                await self._send(data)

    async def _send(self, data: bytes) -> None:
        if self._codec.binary:
            await self._socket.send_bytes(data)
        else:
            await self._socket.send_str(data.decode())

    async def _close(self, code: int, why: str) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._socket.close(code=code, message=why.encode())

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
                self._book.outlet.acknowledge(self._subscriber, _key(frame), frame.revision)
            case frames.Ping():
                self.answer(frames.Pong(n=frame.n))
            case frames.Subscribe():
                self._subscribe(frame)
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
                self.answer(frames.Done(id=frame.id))
            case frames.Barrier():
                task = asyncio.create_task(self._barrier(frame), name="barrier")
                self._barriers.add(task)
                task.add_done_callback(self._barriers.discard)
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
        if not 0 <= frame.term <= MAX_TERM:
            raise bad_value("term", frame.term, f"a whole number from 0 to {MAX_TERM}")
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
        limit = self._book.settings.max_entries
        if held is not None and len({*held.entries, *(e.ref for e in entries)}) > limit:
            raise Problem("limit_reached", f"a session may hold at most {limit} instances (--max-entries)")
        term = self._book.apply(lambda c, now: c.register(lease, entries, now))
        self.answer(frames.Done(id=frame.id, term=term))

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
        if unknown:
            self._book.defer(lambda c, now: c.register(lease, unknown, now))

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
        subscriber = self._subscriber
        limit = self._book.settings.max_subscriptions
        if key not in subscriber.positions and len(subscriber.positions) >= limit:
            raise Problem(
                "limit_reached", f"a session may hold at most {limit} subscriptions (--max-subscriptions)"
            )
        if not self._told_gone and self._book.gone:
            self._told_gone = True
            self.answer(frames.Gone(owners=list(self._book.gone)))
        self._book.outlet.subscribe(subscriber, key, revision=frame.revision, digest=frame.digest)
        current = self._book.outlet.current(key, subscriber)
        if current is not None:
            self.answer(current)

    async def _barrier(self, frame: frames.Barrier) -> None:
        try:
            policy.may_write(self._who)
            keys = [ServiceKey(*triple) for triple in frame.services]
            if not 0 <= frame.timeout <= MAX_BARRIER:
                raise bad_value("timeout", frame.timeout, f"seconds from 0 to {MAX_BARRIER:g}")
        except Problem as problem:
            self.answer(frames.Refused(id=frame.id, problem=problem.details()))
            return
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
            log.info("barrier_incomplete", behind=behind, services=[str(k) for k in keys])
        self.answer(frames.Done(id=frame.id, complete=not behind))


def _key(frame: frames.ServiceFrame) -> ServiceKey:
    return service_key(frame.service, namespace=frame.namespace, group=frame.group)


def _gone(pod: frames.GonePod, field: str) -> frames.GonePod:
    uid = check_id(pod.uid, f"{field}uid")
    return frames.GonePod(uid=uid, ips=[check_ip(ip, f"{field}ips[{n}]") for n, ip in enumerate(pod.ips)])


def _count(items: Iterable[Entry] | Iterable[EntryRef]) -> None:
    count = sum(1 for _ in items)
    if count > MAX_ENTRIES_PER_FRAME:
        raise Problem(
            "too_large",
            f"{count} entries in one frame; at most {MAX_ENTRIES_PER_FRAME} are taken",
            field="entries",
            accepted=f"at most {MAX_ENTRIES_PER_FRAME}",
        )
