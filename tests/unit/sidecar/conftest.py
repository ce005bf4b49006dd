"""A registry that speaks frames over a real WebSocket, and sidecars that talk to it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

import ports
from rollbook import frames
from rollbook.digest import digest, spell
from rollbook.model import Instance
from rollbook.names import ServiceKey, instance_key
from rollbook_sidecar.app import Sidecar
from rollbook_sidecar.settings import Settings

if TYPE_CHECKING:
    from rollbook.problems import Problem


def an_instance(port: int = 8080, **fields) -> Instance:
    cluster = fields.get("cluster", "DEFAULT")
    key = instance_key(ip="10.0.0.1", port=port, cluster=cluster)
    return Instance(**{"key": key, "ip": "10.0.0.1", "port": port, **fields})


def key_of(name: str) -> ServiceKey:
    return ServiceKey("public", "DEFAULT_GROUP", name)


class FakeRegistry:
    """Says what a test wants it to say, and remembers what it was told."""

    def __init__(self) -> None:
        self.port = 0
        self.boot = "boot"
        self.settled = True
        self.frames: list[frames.Request] = []
        self.lists: dict[ServiceKey, list[Instance]] = {}
        self.revisions: dict[ServiceKey, int] = {}
        self.protect_threshold: float | None = None
        self.entries: dict = {}
        self.down: set = set()
        self.silent_lists = False
        self.refusals: dict[type, Problem] = {}
        self.barrier_opens = asyncio.Event()
        self.barrier_opens.set()
        self.complete = True
        self.told = asyncio.Event()
        self.term = 0
        self._sockets: dict[web.WebSocketResponse, set[ServiceKey]] = {}
        self._runner: web.AppRunner | None = None
        self._codec = frames.Codec(frames.MSGPACK)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/session", self._session)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        for ws in list(self._sockets):
            await ws.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def push(self, name: str, *instances: Instance) -> None:
        """Change a list, and tell it by a delta."""
        service = key_of(name)
        before = {i.key: i for i in self.lists.get(service, [])}
        base = self.revision(service)
        self.lists[service] = list(instances)
        self.revisions[service] = self.revisions.get(service, 0) + 1
        after = {i.key: i for i in instances}
        delta = frames.Delta(
            service=name,
            base=base,
            revision=self.revision(service),
            digest=spell(digest(instances)),
            put=[i for k, i in after.items() if before.get(k) != i],
            drop=[k for k in before if k not in after],
            protect_threshold=self.protect_threshold,
        )
        for ws, wanted in self._sockets.items():
            if service in wanted:
                await self._send(ws, delta)

    async def say(self, frame: frames.Answer) -> None:
        for ws in self._sockets:
            await self._send(ws, frame)

    def revision(self, service: ServiceKey) -> str:
        return f"{self.boot}.{self.revisions.get(service, 0)}"

    def got(self, kind: type) -> list:
        return [f for f in self.frames if isinstance(f, kind)]

    async def until(self, condition) -> None:
        """Wait until what it was told satisfies a condition."""
        async with asyncio.timeout(5):
            while not condition():
                self.told.clear()
                await self.told.wait()

    async def _send(self, ws: web.WebSocketResponse, frame: frames.Answer) -> None:
        await ws.send_bytes(self._codec.encode(frame))

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=frames.SUBPROTOCOLS, compress=False)
        await ws.prepare(request)
        self._sockets[ws] = set()
        waits = []
        try:
            async for message in ws:
                frame = self._codec.request(message.data)
                self.frames.append(frame)
                if isinstance(frame, frames.Barrier):
                    waits.append(asyncio.create_task(self._barrier(ws, frame)))
                else:
                    await self._take(ws, frame)
                self.told.set()
        finally:
            del self._sockets[ws]
            for wait in waits:
                wait.cancel()
            self.told.set()
        return ws

    async def _barrier(self, ws: web.WebSocketResponse, frame: frames.Barrier) -> None:
        await self.barrier_opens.wait()
        await self._send(ws, frames.Done(id=frame.id, complete=self.complete))

    async def _take(self, ws: web.WebSocketResponse, frame: frames.Request) -> None:
        problem = self.refusals.get(type(frame))
        if problem is not None:
            await self._send(ws, frames.Refused(id=getattr(frame, "id", 0), problem=problem.details()))
            return
        match frame:
            case frames.Attach():
                self.term = max(self.term, frame.term) + 1
                answer = frames.Attached(
                    boot=self.boot,
                    term=self.term,
                    resumed=False,
                    settled=self.settled,
                    beat_interval=5.0,
                    unhealthy_after=15.0,
                    remove_after=30.0,
                )
                await self._send(ws, answer)
            case frames.Register():
                self.entries.update({e.ref: e for e in frame.entries})
                self.down -= {e.ref for e in frame.entries if e.alive}
                self.down |= {e.ref for e in frame.entries if not e.alive}
                await self._send(ws, frames.Done(id=frame.id, term=self.term))
            case frames.Beat():
                self.down = set(frame.down)
            case frames.Deregister():
                for ref in frame.entries:
                    self.entries.pop(ref, None)
                await self._send(ws, frames.Done(id=frame.id))
            case frames.Release():
                self.entries.clear()
                await self._send(ws, frames.Done(id=frame.id))
            case frames.Subscribe():
                await self._subscribe(ws, frame)
            case frames.Unsubscribe():
                self._sockets[ws].discard(ServiceKey(frame.namespace, frame.group, frame.service))
            case frames.Ping():
                await self._send(ws, frames.Pong(n=frame.n))

    async def _subscribe(self, ws: web.WebSocketResponse, frame: frames.Subscribe) -> None:
        service = ServiceKey(frame.namespace, frame.group, frame.service)
        self._sockets[ws].add(service)
        if self.silent_lists:
            return
        where = {"namespace": frame.namespace, "group": frame.group, "service": frame.service}
        held = self.lists.get(service, [])
        revision = self.revision(service)
        if frame.revision and frame.digest == spell(digest(held)):
            current = frames.Current(
                **where, revision=revision, settled=self.settled, protect_threshold=self.protect_threshold
            )
            await self._send(ws, current)
        else:
            snapshot = frames.Snapshot(
                **where,
                revision=revision,
                digest=spell(digest(held)),
                settled=self.settled,
                instances=held,
                protect_threshold=self.protect_threshold,
            )
            await self._send(ws, snapshot)


class Caller:
    """Asks a running sidecar."""

    def __init__(self, sidecar: Sidecar, http: aiohttp.ClientSession) -> None:
        self.sidecar = sidecar
        self._http = http

    async def get(self, path: str, *, method: str = "GET", hooks: bool = False, **options):
        port = self.sidecar.hooks_port if hooks else self.sidecar.lookup_port
        async with self._http.request(method, f"http://127.0.0.1:{port}{path}", **options) as response:
            body = await response.read()
            is_json = response.content_type.endswith("json")
            return response, await response.json(content_type=None) if is_json and body else body.decode()


@pytest.fixture
async def registry():
    fake = FakeRegistry()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def absent_registry(free_port):
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def free_port():
    return ports.free_port


@pytest.fixture
def run(free_port):
    """Run a sidecar in this process for the length of a block."""

    @contextlib.asynccontextmanager
    async def running(*registries: str, **fields):
        chosen = {
            "lookup_port": 0,
            "hooks_port": free_port(),
            "health_check": "none",
            "first_lookup_timeout": 2.0,
            "linger": 0.0,
            **fields,
        }
        sidecar = Sidecar(Settings(registry=registries, **chosen))
        async with sidecar.running(), aiohttp.ClientSession() as http:
            yield Caller(sidecar, http)

    return running


@pytest.fixture
def instance():
    return an_instance


@pytest.fixture
def service():
    return key_of


@pytest.fixture
def eventually():
    """Wait until a condition, which may be a coroutine function, holds."""

    async def wait(condition, seconds: float = 5.0):
        async with asyncio.timeout(seconds):
            while True:
                found = condition()
                found = await found if asyncio.iscoroutine(found) else found
                if found:
                    return found
                await asyncio.sleep(0.01)

    return wait
