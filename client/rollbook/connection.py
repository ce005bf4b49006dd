"""Connection: the sockets of a session. It connects to one of several addresses, carries frames, and goes on.

Everything that is decided is decided by :class:`rollbook.session.Session`; here are time, chance and I/O.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Final, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import DefaultResolver

from rollbook.clock import AttentiveClock
from rollbook.events import Connected, Disconnected, Event, Unreachable
from rollbook.following import Changing
from rollbook.limits import MAX_FRAME_BYTES

if TYPE_CHECKING:
    import random
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp.abc import ResolveResult

    from rollbook.frames import Codec
    from rollbook.session import Session

Token: TypeAlias = "Callable[[], str | Awaitable[str | None] | None]"  # noqa: S105  # a type of one
"""Called at each connection for the identity to show."""

log = logging.getLogger("rollbook.client")

TICK: Final = 0.25
"""Seconds between looks at the clock."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds that one attempt to connect may take: token, name, TCP, TLS and WebSocket together."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds that a registry has to answer the goodbye of a connection that is given up."""

BACKOFF_FIRST: Final = 0.1
BACKOFF_MOST: Final = 5.0
"""Seconds between attempts: drawn between 0 and ``min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** attempt)``, so that
the clients of a registry that comes back do not all arrive at once ("full jitter")."""

MAX_ANSWER_BYTES: Final = 16 * MAX_FRAME_BYTES
"""Bytes of one frame of the registry's that are read; the list of a very large service is one frame."""


def backoff(attempt: int, rng: random.Random) -> float:
    """Return the seconds until the next attempt to connect.

    Args:
        attempt: how many have failed in a row, less one.
        rng: where it is drawn.
    """
    # No outage is so long that a power of two of its attempts would be needed, or would fit a float.
    return rng.uniform(0, min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(attempt, 16)))


class _Shuffled(AbstractResolver):
    """Looks names up anew at each attempt, and tries their addresses in a random order.

    A name with several addresses (a headless Service) spreads its clients over them, and an address that
    takes connections but does not answer is not tried first each time.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily | int = 0
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)  # type: ignore[arg-type]  # aiohttp's own passes 0
        self._rng.shuffle(found)
        return found

    async def close(self) -> None:
        await self._resolver.close()


class Connection:
    """Keeps one session connected, for as long as :meth:`run` runs.

    Args:
        session: whose frames are carried.
        codec: how they are spelled.
        urls: WebSocket URLs, of which any will do; tried in turns.
        token: called at each connection for the identity to show.
        tls: for ``wss``; ``None`` verifies by the system's authorities.
        rng: where jitter comes from.
        clock: monotonic seconds.
        dispatch: called when the session may have events.
        tell: called with what happens to the connection itself.
    """

    def __init__(
        self,
        session: Session,
        codec: Codec,
        *,
        urls: Sequence[str],
        token: Token | None,
        tls: ssl.SSLContext | None,
        rng: random.Random,
        clock: Callable[[], float],
        dispatch: Callable[[], None],
        tell: Callable[[Event], None],
    ) -> None:
        self._session = session
        self._codec = codec
        self._urls = list(urls)
        self._token = token
        self._tls = tls
        self._rng = rng
        self._clock = clock
        self._dispatch = dispatch
        self._tell = tell
        self._outbox = asyncio.Event()
        self._http: aiohttp.ClientSession | None = None
        self.standing = False
        self.changing = Changing()
        """Wakes those who wait for a connection, or its lease, to stand or to stand no more."""
        self.last_heard = 0.0
        self.peer = ""
        self.last_error = ""

    def flush(self) -> None:
        """Have the session's frames sent."""
        self._outbox.set()

    async def run(self) -> None:
        """Connect, again and again."""
        attempt = failures = 0
        connector = aiohttp.TCPConnector(
            resolver=_Shuffled(self._rng), use_dns_cache=False, ssl=True if self._tls is None else self._tls
        )
        async with aiohttp.ClientSession(connector=connector) as self._http:
            while True:
                url = self.peer = self._urls[0]
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        ws = await self._connect(self._http, url)
                except Exception as error:  # noqa: BLE001  # whatever it is, only trying on can help
                    failures += 1
                    self._failed(url, error, warn=failures == len(self._urls))
                else:
                    failures = 0
                    self.last_error = ""
                    since = self._clock()
                    async with ws:
                        await self._serve(ws)
                    if self._clock() - since > BACKOFF_MOST:
                        # One that is closed again at once is no reason to hurry.
                        attempt = 0
                self._urls.append(self._urls.pop(0))
                await asyncio.sleep(backoff(attempt, self._rng))
                attempt += 1

    async def get(self, url: str, query: dict[str, str], timeout: float) -> tuple[int, bytes]:
        """GET over HTTP, with the same identity; returns status and body.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: nobody answers.
        """
        if self._http is None or self._http.closed:
            raise ConnectionError("the client is not running")
        async with asyncio.timeout(timeout):
            headers = await self._identity()
            async with self._http.get(url, params=query, headers=headers) as response:
                return response.status, await response.read()

    # --- inside ----------------------------------------------------------------------------------------

    async def _identity(self) -> dict[str, str]:
        if self._token is None:
            return {}
        try:
            token = self._token()
            if inspect.isawaitable(token):
                token = await token
        except Exception as error:
            # Somebody else's function: whatever it raises, there is no token now, and perhaps there will be.
            raise ConnectionError(f"there is no token: {error!r}") from error
        if not token:
            return {}
        if not (token.isascii() and token.isprintable()):
            raise ConnectionError("there is no token: it holds characters that no token has")
        return {"Authorization": f"Bearer {token}"}

    async def _connect(self, http: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
        return await http.ws_connect(
            url,
            protocols=[self._codec.subprotocol],
            headers=await self._identity(),
            compress=0,
            autoclose=True,
            max_msg_size=MAX_ANSWER_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
        )

    def _failed(self, url: str, error: Exception, *, warn: bool) -> None:
        """Tell of an attempt in vain: people once an outage, when all addresses have been tried."""
        late = isinstance(error, TimeoutError) and not str(error)
        self.last_error = f"no answer within {CONNECT_TIMEOUT:g} s" if late else str(error) or repr(error)
        level = logging.WARNING if warn else logging.DEBUG
        log.log(level, "cannot connect to %s: %s; trying on", url, self.last_error)
        self._tell(Unreachable(url, self.last_error))

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Carry frames until the connection ends or is given up."""
        self._session.connected(self._clock())
        self.last_heard = self._clock()
        self.standing = True
        log.info("connected to %s", self.peer)
        self._tell(Connected(self.peer))
        self.changing.notify()
        self.flush()
        tasks = [
            asyncio.create_task(self._read(ws), name="rollbook-client-read"),
            asyncio.create_task(self._write(ws), name="rollbook-client-write"),
            asyncio.create_task(self._tick(), name="rollbook-client-tick"),
        ]
        ended: set[asyncio.Task[None]] = set()
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.standing = False
            reason = self._why(ended, ws) if ended else "closed by this client"
            self._session.disconnected()
            self._dispatch()
            self._tell(Disconnected(self.peer, reason))
            self.changing.notify()
            log.info("disconnected from %s: %s", self.peer, reason)

    def _why(self, ended: set[asyncio.Task[None]], ws: aiohttp.ClientWebSocketResponse) -> str:
        for task in ended:
            error = task.exception()
            if error is not None:
                if not isinstance(error, (aiohttp.ClientError, OSError)):
                    log.warning("the session with %s broke: %r", self.peer, error)
                return str(error) or repr(error)
        return self._session.died_of if self._session.dead else f"closed with code {ws.close_code}"

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        async for message in ws:
            if message.type not in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}:
                break
            self.last_heard = self._clock()
            self._session.received(self._codec.answer(message.data), self.last_heard)
            self.flush()
            self._dispatch()
            if self._session.dead:
                return

    async def _write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._outbox.wait()
            self._outbox.clear()
            for frame in self._session.take_frames():
                data = self._codec.encode(frame)
                if self._codec.binary:
                    await ws.send_bytes(data)
                else:
                    await ws.send_str(data.decode())

    async def _tick(self) -> None:
        attentive = AttentiveClock(self._clock())
        while not self._session.dead:
            await asyncio.sleep(TICK)
            now = self._clock()
            self._session.tick(now, attentive.look(now))
            self.flush()
            self._dispatch()
