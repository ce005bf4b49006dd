"""The Python SDK: a session with a registry, kept up for as long as you want it.

::

    async with Client("rollbook://localhost:7848") as client:
        async with client.register(Entry(service="orders", ip="10.0.0.7", port=8080)):
            orders = await client.subscribe("orders")
            instance = orders.pick()

A client connects to any of its addresses, moves on when one stops answering, and after every reconnection
makes the registry agree with what it wants (see :mod:`rollbook.session`); callers repeat nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import aiohttp

from rollbook import frames, patterns, session
from rollbook.balance import SmoothWeightedRoundRobin, eligible
from rollbook.clock import AttentiveClock
from rollbook.limits import MAX_FRAME_BYTES
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, LeaseId, ServiceKey, service_key, url_host
from rollbook.problems import Problem, bad_value

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from rollbook.balance import Strategy
    from rollbook.model import Entry, EntryRef, Instance
    from rollbook.patterns import Pattern
    from rollbook.view import View

log = logging.getLogger("rollbook.client")

DEFAULT_PORT = 7848
TICK = 0.25
"""Seconds between looks at the clock."""

CONNECT_TIMEOUT = 5.0
"""Seconds that one attempt to connect may take."""

BACKOFF_FIRST = 0.1
BACKOFF_MOST = 5.0
"""Seconds between attempts: drawn between 0 and ``min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** attempt)``, so that
the clients of a registry that comes back do not all arrive at once ("full jitter")."""

MAX_ANSWER_BYTES = 16 * MAX_FRAME_BYTES


def session_url(address: str) -> str:
    """Turn ``rollbook://host:port``, ``host:port`` or ``host`` into the session's WebSocket URL.

    Raises:
        Problem: 400 ``bad_value``.
    """
    accepted = "host, host:port, rollbook://host:port, or ws(s)://host:port"
    text = address if "://" in address else f"rollbook://{address}"
    try:
        parts = urlsplit(text)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise bad_value("registry", address, accepted) from None
    scheme = {"rollbook": "ws", "rollbooks": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname or parts.path not in {"", "/"} or parts.query:
        raise bad_value("registry", address, accepted)
    return f"{scheme}://{url_host(parts.hostname)}:{port}/session"


def check_addresses(addresses: tuple[str, ...], field: str) -> None:
    """Check the registries' addresses of a setting.

    Raises:
        Problem: 400 ``bad_value`` naming the setting, and the address that is wrong.
    """
    if not addresses:
        raise bad_value(field, "", "at least one host[:port]")
    for address in addresses:
        try:
            session_url(address)
        except Problem as problem:
            raise bad_value(field, address, problem.accepted) from None


class Subscription:
    """A service's list, current for as long as the client is open."""

    def __init__(self, view: View, strategy: Strategy) -> None:
        self._view = view
        self._strategy = strategy
        self._changed = asyncio.Event()

    @property
    def service(self) -> ServiceKey:
        """Which service it is."""
        return self._view.service

    @property
    def instances(self) -> list[Instance]:
        """All instances, unhealthy and disabled ones too."""
        return self._view.instances

    @property
    def view(self) -> View:
        """The list with its revision and digest."""
        return self._view

    def pick(self) -> Instance:
        """Choose an instance to send a request to.

        Raises:
            Problem: 503 ``no_instance``: none is healthy and enabled with a weight.
        """
        chosen = self._strategy.pick(eligible(self._view.instances, self._view.protect_threshold))
        if chosen is None:
            raise Problem("no_instance", f"no healthy instance of {self.service} is known")
        return chosen

    async def wait_for(self, condition: Callable[[list[Instance]], bool]) -> list[Instance]:
        """Wait until the list satisfies a condition, and return it."""
        while not condition(self._view.instances):
            await self.changed()
        return self._view.instances

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    async def __aiter__(self) -> AsyncIterator[list[Instance]]:
        """Yield the list now, and after each change; changes in between are merged."""
        while True:
            changed = self._changed
            yield self._view.instances
            await changed.wait()

    def _notify(self) -> None:
        # Each change has its own event: several who wait do not take it from each other.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Matching:
    """All services that match a pattern, each with its list, current for as long as the client is open.

    A service is among them from its first instance until it has been empty for so long that the registry lets
    go of it (``--empty-service-after``); an empty list before that is no reason to forget the service. One
    that comes back after that comes as a new :class:`Subscription`. What is subscribed by name and matches is
    among them too.
    """

    def __init__(self, pattern: Pattern, find: Callable[[Pattern], dict[ServiceKey, Subscription]]) -> None:
        self.pattern = pattern
        self.problem: Problem | None = None
        """Why the pattern, or some of the services that match, are not followed; ``None`` if all are."""
        self._find = find
        self._changed = asyncio.Event()
        self._answered = asyncio.Event()

    @property
    def services(self) -> dict[ServiceKey, Subscription]:
        """The services of now."""
        return self._find(self.pattern)

    async def wait_for(
        self, condition: Callable[[dict[ServiceKey, Subscription]], bool]
    ) -> dict[ServiceKey, Subscription]:
        """Wait until the services satisfy a condition, and return them."""
        while not condition(services := self.services):
            await self.changed()
        return services

    async def changed(self) -> None:
        """Wait until a service comes or goes."""
        await self._changed.wait()

    async def __aiter__(self) -> AsyncIterator[dict[ServiceKey, Subscription]]:
        """Yield the services now, and after each that comes or goes; changes in between are merged."""
        while True:
            changed = self._changed
            yield self.services
            await changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _answer(self, problem: Problem | None) -> None:
        self.problem = problem
        self._answered.set()
        self._notify()


class Client:
    """A session with one of several registries.

    Args:
        addresses: ``host``, ``host:port`` or ``rollbook://host:port`` (``rollbooks://`` with TLS).
        token: called at each connection for the identity to show; ``None`` shows none.
        kind: ``session``; an operator says ``operator``.
        epoch: of an operator.
        lease: this process' id; made at random if not given.
        subprotocol: how frames are spelled.
        rng: where jitter comes from.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *addresses: str,
        token: Callable[[], str | None] | None = None,
        kind: frames.Kind = "session",
        epoch: int = 0,
        lease: LeaseId | None = None,
        subprotocol: str = frames.MSGPACK,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not addresses:
            raise bad_value("registry", "", "at least one address")
        self._urls = [session_url(a) for a in addresses]
        self._token = token
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._clock = clock
        self._codec = frames.Codec(subprotocol)
        self.session = session.Session(lease or LeaseId(secrets.token_hex(16)), kind=kind, epoch=epoch)
        self._rng.shuffle(self._urls)
        self._subscriptions: dict[ServiceKey, Subscription] = {}
        self._matchings: dict[Pattern, Matching] = {}
        self._waiting: dict[int, asyncio.Future[frames.Done]] = {}
        self._confirming: dict[EntryRef, asyncio.Future[None]] = {}
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._outbox = asyncio.Event()
        self._connection = asyncio.Event()
        self._disconnection = asyncio.Event()
        self._disconnection.set()
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[session.Event], None]] = []
        self.last_heard = 0.0
        """Monotonic seconds at which the registry was last heard."""
        self.peer = ""
        """The session URL in use, or last tried."""
        self.last_error = ""
        """Why the last attempt to connect failed; empty after one that didn't."""

    # --- life ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def start(self) -> None:
        """Start connecting, in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="rollbook-client")

    async def aclose(self, *, release: bool = True, timeout: float = 2.0) -> None:
        """Say goodbye and stop.

        Args:
            release: end the lease, so that its entries leave the book now; otherwise it lives on for the
                removal time, for whoever attaches to it again.
            timeout: seconds to wait for the registry's word.
        """
        if self._task is None:
            return
        if release and self.connected and self.session.attached:
            with contextlib.suppress(Problem, TimeoutError):
                await asyncio.wait_for(self._answer(self.session.release()), timeout)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        for answer in self._waiting.values():
            answer.cancel()
        for confirmation in self._confirming.values():
            confirmation.cancel()

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        return self._connection.is_set()

    async def wait_connected(self) -> None:
        """Wait until a session stands."""
        await self._connection.wait()

    async def wait_disconnected(self) -> None:
        """Wait until none does."""
        await self._disconnection.wait()

    def listen(self, listener: Callable[[session.Event], None]) -> None:
        """Have a function called, in order, with everything that happens (see :mod:`rollbook.session`)."""
        self._listeners.append(listener)

    # --- entries ---------------------------------------------------------------------------------------

    def put(self, *entries: Entry) -> None:
        """Want entries in the book; the client keeps offering them until the registry has them."""
        self.session.put(entries)
        self._flush()

    def drop(self, *refs: EntryRef) -> None:
        """Want entries out of the book."""
        self.session.drop(refs)
        self._flush()

    def set_down(self, *refs: EntryRef) -> None:
        """Say which of the entries' applications do not work at present."""
        self.session.set_down(refs, self._clock())
        self._flush()

    async def confirmed(self, *refs: EntryRef) -> None:
        """Wait until the registry has acknowledged these entries.

        Raises:
            Problem: why it won't have one of them.
        """
        loop = asyncio.get_running_loop()
        waits = []
        for ref in refs:
            if not self.session.is_confirmed(ref):
                future = self._confirming.get(ref)
                if future is None or future.done():
                    future = self._confirming[ref] = loop.create_future()
                waits.append(asyncio.shield(future))
        await asyncio.gather(*waits)

    @contextlib.asynccontextmanager
    async def register(self, *entries: Entry) -> AsyncIterator[None]:
        """Hold entries in the book for the length of a ``with`` block.

        Raises:
            Problem: why the registry won't have one of them.
        """
        refs = [e.ref for e in entries]
        self.put(*entries)
        try:
            await self.confirmed(*refs)
            yield
        finally:
            self.drop(*refs)

    # --- lists -----------------------------------------------------------------------------------------

    async def subscribe(
        self,
        service: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        group: str = DEFAULT_GROUP,
        strategy: Strategy | None = None,
    ) -> Subscription:
        """Follow a service's list; returns when the first list has come."""
        subscription = self.follow(service_key(service, namespace=namespace, group=group), strategy)
        while not subscription.view.known:
            await subscription.changed()
        return subscription

    def follow(self, service: ServiceKey, strategy: Strategy | None = None) -> Subscription:
        """As :meth:`subscribe`, without waiting for the first list."""
        view = self.session.subscribe(service)
        subscription = self._subscription(view, strategy)
        self._flush()
        return subscription

    def unfollow(self, service: ServiceKey) -> None:
        """Stop following a service; a pattern that matches goes on following it."""
        if service in self._subscriptions:
            self.session.unsubscribe(service)
            if service not in self.session.views:
                del self._subscriptions[service]
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
                or services, followed by one session. Nothing is followed then.
        """
        wanted = patterns.pattern(pattern, namespace=namespace, group=group)
        matching = self.follow_matching(wanted)
        await matching._answered.wait()  # noqa: SLF001  # one class in two parts
        if matching.problem is not None:
            self.unfollow_matching(wanted)
            raise matching.problem
        for service, subscription in matching.services.items():
            while not subscription.view.known and self._subscriptions.get(service) is subscription:
                await subscription.changed()
        return matching

    def follow_matching(self, pattern: Pattern) -> Matching:
        """As :meth:`subscribe_matching`, without waiting, and with as many services as may be followed."""
        matching = self._matchings.get(pattern)
        if matching is None:
            matching = self._matchings[pattern] = Matching(pattern, self._find)
            self.session.follow(pattern)
            self._flush()
        return matching

    def unfollow_matching(self, pattern: Pattern) -> None:
        """Stop following a pattern; services that are subscribed or match another stay."""
        if self._matchings.pop(pattern, None) is not None:
            self.session.unfollow(pattern)
            for service in [s for s in self._subscriptions if s not in self.session.views]:
                del self._subscriptions[service]
            self._flush()

    def refresh(self, service: ServiceKey) -> None:
        """Compare the list with the registry's; equal digests cost a few bytes."""
        self.session.refresh(service)
        self._flush()

    # --- requests --------------------------------------------------------------------------------------

    async def barrier(self, *services: ServiceKey, timeout: float) -> bool:  # the registry's
        """Wait until all current subscribers have acknowledged all that changed so far.

        Returns:
            Whether they all did within the timeout (seconds).

        Raises:
            Problem: ``registry_unreachable``.
        """
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

    # --- inside ----------------------------------------------------------------------------------------

    def _subscription(self, view: View, strategy: Strategy | None = None) -> Subscription:
        subscription = self._subscriptions.get(view.service)
        if subscription is None:
            subscription = Subscription(view, strategy or SmoothWeightedRoundRobin())
            self._subscriptions[view.service] = subscription
        return subscription

    def _find(self, pattern: Pattern) -> dict[ServiceKey, Subscription]:
        views = self.session.views
        return {s: self._subscription(view) for s, view in views.items() if pattern.matches(s)}

    def _came_or_went(self, service: ServiceKey) -> None:
        for pattern, matching in self._matchings.items():
            if pattern.matches(service):
                matching._notify()  # noqa: SLF001  # one class in two parts

    def _answer(self, id_: int) -> Awaitable[frames.Done]:
        future: asyncio.Future[frames.Done] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = future
        self._flush()
        return future

    def _flush(self) -> None:
        self._outbox.set()
        self._dispatch()

    def _dispatch(self) -> None:
        for event in self.session.take_events():
            match event:
                case session.ListChanged() | session.Found() | session.Lost() | session.PatternAnswered():
                    self._on_list(event)
                case session.Confirmed(refs):
                    for ref in refs:
                        self._settle(ref, None)
                case session.Rejected(ref, problem):
                    self._settle(ref, problem)
                case session.Answered():
                    self._answered(event)
                case _:
                    pass
            for listener in self._listeners:
                listener(event)

    def _on_list(
        self, event: session.ListChanged | session.Found | session.Lost | session.PatternAnswered
    ) -> None:
        match event:
            case session.ListChanged(service):
                if service in self._subscriptions:
                    self._subscriptions[service]._notify()  # noqa: SLF001  # one class in two parts
            case session.Found(service):
                self._came_or_went(service)
            case session.Lost(service):
                lost = self._subscriptions.pop(service, None)
                if lost is not None:
                    lost._notify()  # noqa: SLF001  # one class in two parts
                self._came_or_went(service)
            case session.PatternAnswered(pattern, problem):
                if pattern in self._matchings:
                    self._matchings[pattern]._answer(problem)  # noqa: SLF001  # one class in two parts

    def _answered(self, event: session.Answered) -> None:
        waiting = self._waiting.pop(event.id, None)
        if waiting is None or waiting.done():
            return
        if event.done is not None:
            waiting.set_result(event.done)
        else:
            waiting.set_exception(event.problem or Problem("internal", "no answer"))

    def _settle(self, ref: EntryRef, problem: Problem | None) -> None:
        future = self._confirming.pop(ref, None)
        if future is not None and not future.done():
            if problem is None:
                future.set_result(None)
            else:
                future.set_exception(problem)

    async def _run(self) -> None:
        attempt = 0
        async with aiohttp.ClientSession() as http:
            while True:
                url = self._urls[0]
                self.peer = url
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        ws = await self._connect(http, url)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self.last_error = str(error) or type(error).__name__
                    log.debug("cannot connect to %s: %s", url, self.last_error)
                else:
                    self.last_error = ""
                    since = self._clock()
                    async with ws:
                        await self._serve(ws)
                    if self._clock() - since > BACKOFF_MOST:
                        # One that is closed again at once is no reason to hurry.
                        attempt = 0
                self._urls.append(self._urls.pop(0))
                most = min(BACKOFF_MOST, BACKOFF_FIRST * 2**attempt)
                attempt += 1
                await asyncio.sleep(self._rng.uniform(0, most))

    async def _connect(self, http: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
        try:
            token = self._token() if self._token else None
        except Exception as error:  # see below
            # Somebody else's function: whatever it raises, there is no token now, and perhaps there will be.
            raise ConnectionError(f"there is no token: {error!r}") from error
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return await http.ws_connect(
            url,
            protocols=[self._codec.subprotocol],
            headers=headers,
            compress=0,
            autoclose=True,
            max_msg_size=MAX_ANSWER_BYTES,
        )

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Carry frames until the connection ends or is given up."""
        self.session.connected(self._clock())
        self.last_heard = self._clock()
        self._connection.set()
        self._disconnection.clear()
        log.info("connected to %s", self.peer)
        self._flush()
        tasks = [
            asyncio.create_task(self._read(ws), name="rollbook-client-read"),
            asyncio.create_task(self._write(ws), name="rollbook-client-write"),
            asyncio.create_task(self._tick(), name="rollbook-client-tick"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connection.clear()
            self._disconnection.set()
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            self.session.disconnected()
            self._dispatch()
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, (aiohttp.ClientError, OSError)):
                log.warning("session with %s broke: %r", self.peer, outcome)
        log.info("disconnected from %s (code %s)", self.peer, ws.close_code)

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        async for message in ws:
            if message.type not in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}:
                break
            self.last_heard = self._clock()
            self.session.received(self._codec.answer(message.data), self.last_heard)
            self._flush()
            if self.session.dead:
                return

    async def _write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._outbox.wait()
            self._outbox.clear()
            for frame in self.session.take_frames():
                data = self._codec.encode(frame)
                if self._codec.binary:
                    await ws.send_bytes(data)
                else:
                    await ws.send_str(data.decode())

    async def _tick(self) -> None:
        attentive = AttentiveClock(self._clock())
        while not self.session.dead:
            await asyncio.sleep(TICK)
            now = self._clock()
            self.session.tick(now, attentive.look(now))
            self._flush()
