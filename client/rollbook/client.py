"""The Python SDK: a session with a registry, kept up for as long as you want it.

::

    async with Client("rollbook://localhost:7848") as client:
        async with client.register(Entry(service="orders", ip="10.0.0.7", port=8080)):
            orders = await client.subscribe("orders")
            instance = orders.pick()

A client connects to any of its addresses, moves on when one stops answering, and after every reconnection
makes the registry agree with what it wants (see :mod:`rollbook.session`); callers repeat nothing.

What waits, waits for as long as it takes; bound it with ``asyncio.timeout``. Whatever is cancelled, by that
or otherwise, leaves nothing behind: an entry whose registration is cancelled is dropped, and a service whose
subscription is cancelled is followed no more unless somebody else follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from rollbook import balance, directory, events, frames, names, patterns
from rollbook.addresses import DEFAULT_HTTP_PORT, http_url, session_url
from rollbook.connection import Connection
from rollbook.following import Following, fresh
from rollbook.model import check_made
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, LeaseId, ServiceKey, service_key
from rollbook.problems import Problem, bad_value
from rollbook.promises import Promises
from rollbook.session import Session
from rollbook.subscription import Matching, Subscription

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Sequence

    from rollbook.balance import Strategy
    from rollbook.connection import Token
    from rollbook.model import Entry, EntryRef, ServiceCount
    from rollbook.patterns import Pattern
    from rollbook.view import View

log = logging.getLogger("rollbook.client")

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that :meth:`Client.aclose` waits for the registry's word, unless told otherwise."""

RETRY: Final = 10.0
"""Seconds, times a random factor between a half and one and a half, until what the registry would not have
any more (an entry of a ``register`` block that it had before, a list that was followed) is offered again."""


class _Listed(NamedTuple):
    subscription: Subscription
    state: Following


class _Matched(NamedTuple):
    matching: Matching
    state: Following


class Client:
    """A session with one of several registries. It belongs to the event loop that it is started in.

    Args:
        addresses: ``host``, ``host:port`` or ``rollbook://host:port`` (``rollbooks://`` with TLS); the port
            is 7848 if none is given. They are tried in turns, from a random one on; of a name with several
            addresses any may be chosen.
        token: called at each connection for the identity to show; ``None`` shows none. An ordinary function
            is called in the event loop, so it must not take long (reading a small file is fine); what may
            take long is an ``async`` one. If it fails, the attempt to connect does.
        ssl: for ``rollbooks://``; ``None`` verifies the registry by the system's certificate authorities.
        http_port: where the registry answers plain HTTP, for :meth:`services`.
        kind: ``session``; an operator says ``operator``.
        epoch: of an operator.
        lease: this process' id; made at random if not given.
        subprotocol: how frames are spelled.
        rng: where jitter comes from, and where balancing begins.
        clock: monotonic seconds.

    Raises:
        Problem: 400 ``bad_value`` naming what is wrong.
    """

    def __init__(
        self,
        *addresses: str,
        token: Token | None = None,
        ssl: ssl.SSLContext | None = None,
        http_port: int = DEFAULT_HTTP_PORT,
        kind: frames.Kind = "session",
        epoch: int = 0,
        lease: LeaseId | None = None,
        subprotocol: str = frames.MSGPACK,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not addresses:
            raise bad_value("registry", "", "at least one address")
        urls = [session_url(a) for a in addresses]
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._rng.shuffle(urls)
        self._clock = clock
        self._http_port = names.check_port(http_port, "http_port")
        self.session = Session(lease or LeaseId(secrets.token_hex(16)), kind=kind, epoch=epoch)
        """What this client wants, and how far the registry agrees; for reading."""
        self._connection = Connection(
            self.session,
            frames.Codec(subprotocol),
            urls=urls,
            token=token,
            tls=ssl,
            rng=self._rng,
            clock=clock,
            dispatch=self._dispatch,
            tell=self._linked,
        )
        self._listed: dict[ServiceKey, _Listed] = {}
        self._matched: dict[Pattern, _Matched] = {}
        self._answers: Promises[int, frames.Done] = Promises()
        self._confirming: Promises[EntryRef, None] = Promises()
        self._leaving: Promises[EntryRef, None] = Promises()
        self._held: set[EntryRef] = set()
        """Entries of ``register`` blocks that the registry has had."""
        self._lost: set[EntryRef] = set()
        """Those of them that it would not have when they were offered last."""
        self._retry: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._dispatching = False
        self._attached = False
        self._linked_events: list[events.Event] = []
        self._listeners: list[Callable[[events.Event], None]] = []

    # --- life ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def start(self) -> None:
        """Start connecting, in the background; ``async with`` does so.

        Raises:
            Problem: 503 ``client_closed``: it was closed, which is for good.
        """
        if self._closed:
            raise _closed()
        if self._task is None:
            self._task = asyncio.create_task(self._connection.run(), name="rollbook-client")
            self._task.add_done_callback(self._ended)

    async def aclose(self, *, release: bool = True, timeout: float | None = None) -> None:
        """Say goodbye and stop, for good. Everybody who waits gets 503 ``client_closed``; iterations end.

        Args:
            release: end the lease, so that its entries leave the book now; otherwise it lives on for the
                removal time, for whoever attaches to it again.
            timeout: seconds to wait for the registry's word; ``None`` for :data:`CLOSE_TIMEOUT`. Without a
                connection nothing is waited for, and the entries leave the book by their silence.
        """
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        try:
            if release and self._task is not None:
                with contextlib.suppress(Problem, TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT if timeout is None else timeout):
                        await self._release()
        finally:
            # Also where this is cancelled: nothing goes on in the background.
            self._end_waits()
            if self._task is not None:
                self._task.cancel()
                # Not awaited as it is: its cancellation is not to be mistaken for one of whoever called.
                await asyncio.wait([self._task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for a connection that has ended by itself or by others, which it should not."""
        if self._closed:
            return
        if not task.cancelled():
            log.error("the client has ended by an error of its own", exc_info=task.exception())
        self._closed = True
        self._end_waits()

    async def _release(self) -> None:
        while self.connected and self.session.attaching:
            # What was entered over an earlier connection can be released in a moment.
            await self._connection.changing.next.wait()
        if self.connected and self.session.attached:
            await self._answer(self.session.release())

    def _end_waits(self) -> None:
        self._answers.break_all(_closed())
        self._confirming.break_all(_closed())
        self._leaving.break_all(_closed())
        for _, state in (*self._listed.values(), *self._matched.values()):
            state.finish(_closed())
        self._connection.changing.finish(_closed())

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        return self._connection.standing

    @property
    def last_heard(self) -> float:
        """Monotonic seconds at which the registry was last heard; 0 if it never was."""
        return self._connection.last_heard

    @property
    def peer(self) -> str:
        """The session URL in use, or last tried."""
        return self._connection.peer

    @property
    def last_error(self) -> str:
        """Why the last attempt to connect failed; empty after one that didn't."""
        return self._connection.last_error

    async def wait_connected(self) -> None:
        """Wait until a session stands.

        Raises:
            Problem: 503 ``client_closed``.
        """
        self._check_running()
        while not self.connected:
            await self._connection.changing.changed()

    async def wait_disconnected(self) -> None:
        """Wait until none does."""
        while self.connected:
            await self._connection.changing.next.wait()

    def listen(self, listener: Callable[[events.Event], None]) -> None:
        """Have a function called, in order, with everything that happens (see :mod:`rollbook.events`).

        It is called in the event loop and must not take long. What it raises is logged, and no more.
        """
        self._listeners.append(listener)

    # --- entries ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def register(self, *entries: Entry) -> AsyncIterator[None]:
        """Hold entries in the book for the length of a ``with`` block; it begins when the registry has them.

        At its end, however it ends, they are taken out: that is sent at once, and not waited for; leaving the
        client's own block waits for the registry's word. :meth:`put` changes them meanwhile. Should a
        registry refuse within the block what one had accepted before, it is asked again every ten seconds or
        so.

        Raises:
            Problem: why the registry won't have one of them (none stays entered then); 400 ``bad_value``
                without asking it; 409 ``conflict``: this client holds one of them already.
        """
        self._check_running()
        refs = [e.ref for e in _checked(entries)]
        for n, ref in enumerate(refs):
            if ref in self.session.entries or ref in refs[:n]:
                raise Problem("conflict", f"{_spelled(ref)} is registered by this client already")
        self._put(entries)
        try:
            await self.confirmed(*refs)
            self._held.update(refs)
            yield
        finally:
            self._held.difference_update(refs)
            self._lost.difference_update(refs)
            self.drop(*refs)

    async def deregister(self, *refs: EntryRef) -> None:
        """Take entries out of the book; returns when the registry has acknowledged it.

        Those that this client does not hold are no error.

        Raises:
            Problem: 503 ``client_closed``; 409 ``conflict``: somebody put one of them again meanwhile; why
                the registry won't hear this client's lease.
        """
        self._check_running()
        self.drop(*refs)
        await self._leaving.all(self.session.leaving.intersection(refs))

    def put(self, *entries: Entry) -> None:
        """Want entries in the book, or changed; the client keeps offering them until the registry has them.

        Their ``alive`` replaces what :meth:`set_down` has said of them.
        What it won't have is told by :class:`rollbook.events.Rejected` and :meth:`confirmed`. It is offered
        again at the next connection, or when it is put again.

        Raises:
            Problem: 400 ``bad_value`` without asking the registry; none of them is put then.
        """
        self._put(_checked(entries))

    def _put(self, entries: Sequence[Entry]) -> None:
        self._leaving.break_((e.ref for e in entries), Problem("conflict", "it was put again"))
        self.session.put(entries)
        self._flush()

    def drop(self, *refs: EntryRef) -> None:
        """Want entries out of the book; :meth:`deregister` waits for it, too."""
        self.session.drop(refs)
        self._confirming.break_(refs, Problem("unknown_instance", "it was dropped meanwhile"))
        self._flush()

    def set_down(self, *refs: EntryRef) -> None:
        """Say which of the entries' applications do not work at present: these, and no others."""
        self.session.set_down(refs, self._clock())
        self._flush()

    async def confirmed(self, *refs: EntryRef) -> None:
        """Wait until the registry has acknowledged these entries.

        Raises:
            Problem: why it won't have one of them, said now or before: it is not offered again by asking;
                404 ``unknown_instance``: it is not put, or was dropped meanwhile.
        """
        self._check_running()
        session = self.session
        for ref in refs:
            if ref not in session.entries:
                raise Problem("unknown_instance", f"{_spelled(ref)} is not put, so it won't be confirmed")
            problem = session.rejection(ref) or (None if session.is_confirmed(ref) else session.lease_problem)
            if problem is not None:
                raise fresh(problem)
        await self._confirming.all(ref for ref in refs if not session.is_confirmed(ref))

    # --- lists -----------------------------------------------------------------------------------------

    async def subscribe(
        self,
        service: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        group: str = DEFAULT_GROUP,
        strategy: Strategy | str | None = None,
    ) -> Subscription:
        """Follow a service's list; returns when the first list has come.

        A service that nobody has registered has an empty list. Who subscribes again gets the same object; if
        the registry has refused the list meanwhile, it is asked again first.

        Args:
            service: its name.
            namespace: its namespace.
            group: its group.
            strategy: how ``pick`` chooses: one of :data:`rollbook.balance.STRATEGIES`, or your own. Given
                again, it replaces the one there is; see also :meth:`Subscription.where`.

        Raises:
            Problem: 400 ``bad_value`` naming the argument; 429 ``limit_reached`` and others: why the registry
                does not let it be followed (nothing is followed then); 503 ``client_closed``.
        """
        self._check_running()
        key = service_key(service, namespace=namespace, group=group)
        subscription, state = listed = self._follow(key, strategy)
        state.awaited += 1
        try:
            if state.problem is not None:
                self.refresh(key)
                await state.another_answer()
            await state.first(lambda: subscription.view.known)
            state.kept = True
        finally:
            state.awaited -= 1
            # It may have ended, and somebody else follow the service anew.
            if not (state.kept or state.awaited or self._closed) and self._listed.get(key) is listed:
                self.unfollow(key)
        return subscription

    def follow(self, service: ServiceKey, strategy: Strategy | str | None = None) -> Subscription:
        """As :meth:`subscribe`, without waiting for the first list; the client need not be started yet.

        Raises:
            Problem: 400 ``bad_value``: there is no such strategy; 503 ``client_closed``.
        """
        if self._closed:
            raise _closed()
        listed = self._follow(service, strategy)
        listed.state.kept = True
        return listed.subscription

    def unfollow(self, service: ServiceKey) -> None:
        """Stop following a service, whoever follows it; a pattern that matches goes on following it."""
        listed = self._listed.get(service)
        if listed is not None:
            listed.state.kept = False
            self.session.unsubscribe(service)
            self._forget_lists()
            self._flush()

    async def subscribe_matching(
        self, pattern: str, *, namespace: str = DEFAULT_NAMESPACE, group: str = DEFAULT_GROUP
    ) -> Matching:
        """Follow all services that match a pattern; returns when the lists of those of now have come.

        ::

            shops = await client.subscribe_matching("shop-*", group="*")
            async for services in shops:
                print(*services)

        Args:
            pattern: of the name; ``*`` stands for any run of characters.
            namespace: theirs, exactly.
            group: theirs, or a pattern.

        Raises:
            Problem: 400 ``bad_value``; 429 ``limit_reached`` if the registry will not have so many patterns,
                or services, followed by one session (nothing is followed then); 503 ``client_closed``.
        """
        self._check_running()
        wanted = patterns.pattern(pattern, namespace=namespace, group=group)
        matching, state = matched = self._follow_matching(wanted)
        state.awaited += 1
        try:
            if state.problem is not None:
                raise fresh(state.problem)
            await state.first(lambda: state.answered and state.problem is None)
            for subscription, listed in [self._listed[service] for service in matching.services]:
                while not (subscription.view.known or listed.problem or listed.end):
                    await listed.next.wait()
            state.check()
            state.kept = True
        finally:
            state.awaited -= 1
            if not (state.kept or state.awaited or self._closed) and self._matched.get(wanted) is matched:
                self.unfollow_matching(wanted)
        return matching

    def follow_matching(self, pattern: Pattern) -> Matching:
        """As :meth:`subscribe_matching`, without waiting, and with as many services as may be followed.

        Raises:
            Problem: 503 ``client_closed``.
        """
        if self._closed:
            raise _closed()
        matched = self._follow_matching(pattern)
        matched.state.kept = True
        return matched.matching

    def unfollow_matching(self, pattern: Pattern) -> None:
        """Stop following a pattern; services that are subscribed or match another stay."""
        matched = self._matched.pop(pattern, None)
        if matched is not None:
            matched.state.finish(_not_followed(str(pattern)))
            self.session.unfollow(pattern)
            self._forget_lists()
            self._flush()

    def refresh(self, service: ServiceKey) -> None:
        """Compare the list with the registry's; equal digests cost a few bytes."""
        self.session.refresh(service)
        self._flush()

    async def services(
        self, *, namespace: str = DEFAULT_NAMESPACE, group: str | None = None
    ) -> list[ServiceCount]:
        """Return the names of all services of a namespace, with how many instances they have.

        It is asked for over plain HTTP, of the registry that the session is with, at ``http_port``: a session
        tells lists, not names. To follow names as they come and go, use :meth:`subscribe_matching`.

        Args:
            namespace: whose.
            group: theirs; ``None`` for all groups.

        Raises:
            Problem: 400 ``bad_value``; 503 ``registry_unreachable``; 503 ``client_closed``.
        """
        names.check_namespace(namespace)
        if group is not None:
            names.check_group(group)
        await self.wait_connected()
        base = http_url(self.peer, self._http_port)
        try:
            return await directory.services(self._connection.get, base, namespace=namespace, group=group)
        except Problem:
            self._check_running()  # closed meanwhile: that is why
            raise

    # --- requests --------------------------------------------------------------------------------------

    async def barrier(self, *services: ServiceKey, timeout: float) -> bool:  # the registry's
        """Wait until all current subscribers have acknowledged all that changed so far.

        Returns:
            Whether they all did within the timeout (seconds).

        Raises:
            Problem: 503 ``registry_unreachable``: there is no session, or it broke; 503 ``client_closed``.
        """
        self._check_running()
        done = await self._answer(self.session.barrier(services, timeout))
        return done.complete

    def close_pods(self, *uids: str) -> None:
        """Operator: these pods are terminating."""
        self.session.close_pods(uids)
        self._flush()

    def fence_pods(self, *pods: frames.GonePod) -> None:
        """Operator: these pods are confirmed gone."""
        self.session.fence_pods(pods)
        self._flush()

    def synced(self) -> None:
        """Operator: a complete list has been put."""
        self.session.synced()
        self._flush()

    # --- inside: what is followed ----------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._closed:
            raise _closed()
        if self._task is None:
            raise RuntimeError("the client is not started: use it by `async with`, or call start()")

    def _follow(self, service: ServiceKey, strategy: Strategy | str | None) -> _Listed:
        chosen = balance.strategy(strategy, rng=self._rng) if isinstance(strategy, str) else strategy
        listed = self._list(self.session.subscribe(service))
        if chosen is not None:
            listed.subscription.balance_by(chosen)
        self._flush()
        return listed

    def _list(self, view: View) -> _Listed:
        listed = self._listed.get(view.service)
        if listed is not None and listed.subscription.view is not view:
            # The service has gone and is followed anew, before its end has been told.
            listed.state.finish(_not_followed(str(view.service)))
            listed = None
        if listed is None:
            state = Following()
            subscription = Subscription(view, state, balance.strategy(rng=self._rng), self._rng)
            listed = self._listed[view.service] = _Listed(subscription, state)
        return listed

    def _follow_matching(self, pattern: Pattern) -> _Matched:
        matched = self._matched.get(pattern)
        if matched is None:
            state = Following()
            matched = self._matched[pattern] = _Matched(Matching(pattern, state, self._find), state)
            self.session.follow(pattern)
            self._flush()
        return matched

    def _find(self, pattern: Pattern) -> dict[ServiceKey, Subscription]:
        views = self.session.views
        return {s: self._list(view).subscription for s, view in views.items() if pattern.matches(s)}

    def _forget_lists(self) -> None:
        """Let go of the subscriptions that the session follows no more."""
        for service in [s for s in self._listed if s not in self.session.views]:
            self._listed.pop(service).state.finish(_not_followed(str(service)))

    def _came_or_went(self, service: ServiceKey) -> None:
        for pattern, (_, state) in self._matched.items():
            if pattern.matches(service):
                state.notify()

    # --- inside: who waits -----------------------------------------------------------------------------

    async def _answer(self, id_: int) -> frames.Done:
        answer = self._answers.expect(id_)
        self._flush()
        return await asyncio.shield(answer)

    # --- inside: what happens --------------------------------------------------------------------------

    def _flush(self) -> None:
        self._connection.flush()
        self._dispatch()

    def _dispatch(self) -> None:
        if self._dispatching:
            # A listener has wished for something: its events come after those that are being told.
            return
        self._dispatching = True
        try:
            while happened := [*self._linked_events, *self.session.take_events()]:
                self._linked_events.clear()
                for event in happened:
                    self._take(event)
                    self._tell(event)
        finally:
            self._dispatching = False
        if self.session.attached is not self._attached:
            self._attached = self.session.attached
            self._connection.changing.notify()

    def _linked(self, event: events.Event) -> None:
        """Take notice of what happened to the connection."""
        self._linked_events.append(event)
        self._dispatch()

    def _tell(self, event: events.Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                # Somebody else's function: the session, and the other listeners, are none of its concern.
                log.exception("a listener failed at %r", event)

    def _take(self, event: events.Event) -> None:
        match event:
            case events.Confirmed(refs):
                self._lost.difference_update(refs)
                for ref in refs:
                    self._confirming.keep(ref, None)
            case events.Withdrawn(refs):
                for ref in refs:
                    self._leaving.keep(ref, None)
            case events.Answered(id_, done, refusal):
                if done is not None:
                    self._answers.keep(id_, done)
                else:
                    self._answers.break_([id_], refusal or Problem("internal", "no answer"))
            case events.Rejected() | events.LeaseRefused():
                self._take_refusal(event)
            case _:
                self._take_list(event)

    def _take_refusal(self, event: events.Rejected | events.LeaseRefused) -> None:
        match event:
            case events.Rejected(ref, problem):
                self._confirming.break_([ref], problem)
                self._lose(self._held & {ref}, problem)
            case events.LeaseRefused(problem):
                self._confirming.break_all(problem)
                self._leaving.break_all(problem)
                self._connection.changing.notify()
                self._lose(self._held, problem)

    def _take_list(self, event: events.Event) -> None:
        match event:
            case events.ListChanged(service, change):
                if service in self._listed:
                    state = self._listed[service].state
                    state.problem = self.session.refusals.get(service)
                    state.take(change)
            case events.NotListed(service, problem):
                if service in self._listed:
                    self._refuse(service, self._listed[service].state, problem)
            case events.Found(service):
                self._came_or_went(service)
            case events.Lost(service):
                self._forget_lists()
                self._came_or_went(service)
            case events.PatternAnswered(pattern, refusal):
                if pattern in self._matched:
                    self._matched[pattern].state.answer(refusal)
            case _:
                pass

    def _refuse(self, service: ServiceKey, state: Following, problem: Problem) -> None:
        """Take notice that the registry does not let a service be followed; people hear of it once."""
        if state.kept:
            if state.problem is None:
                log.warning("the list of %s is not kept current: %s", service, problem.detail)
            self._retry_later()
        state.answer(problem)

    def _lose(self, refs: set[EntryRef], problem: Problem) -> None:
        """Take notice that the registry would not have what it had before; people hear of it once."""
        for ref in refs - self._lost:
            log.warning("the registry does not have %s any more: %s", _spelled(ref), problem.detail)
        self._lost |= refs
        if refs:
            self._retry_later()

    def _retry_later(self) -> None:
        if self._retry is None and not self._closed:
            pause = RETRY * self._rng.uniform(0.5, 1.5)
            self._retry = asyncio.get_running_loop().call_later(pause, self._try_again)

    def _try_again(self) -> None:
        """Offer again what the registry would not have any more."""
        self._retry = None
        entries = self.session.entries
        self.session.put([entries[ref] for ref in self._lost if ref in entries])
        for service in self.session.refusals:
            self.session.refresh(service)
        self._flush()


def _closed() -> Problem:
    return Problem("client_closed", "the client is closed")


def _not_followed(what: str) -> Problem:
    return Problem("not_followed", f"{what} is not followed any more")


def _spelled(ref: EntryRef) -> str:
    return f"{ref.service_key} at {ref.key}"


def _checked(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Check entries as the registry will.

    Raises:
        Problem: 400 ``bad_value`` naming the field and the accepted form.
    """
    return [check_made(entry, f"entries[{n}].") for n, entry in enumerate(entries)]
