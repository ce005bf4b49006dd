"""A small API server and a small registry, as far as the operator and the webhook speak to them."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import time

import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from rollbook import frames
from rollbook.kube import KubeApi
from rollbook.problems import Problem

MANAGED = "rollbook.io/managed"


async def until(condition, timeout=5.0):
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {condition.__code__.co_name} {condition.__code__.co_firstlineno}")
        await asyncio.sleep(0.005)
    return value


def make_pod(name="orders-1", *, namespace="shop", uid=None, annotations=None, labels=None, **more):
    """A running, ready pod that asks to be registered."""
    given = {"rollbook.io/register": "true", "rollbook.io/service": "orders", "rollbook.io/port": "8080"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{name}",
            "labels": {MANAGED: "true"} if labels is None else labels,
            "annotations": given if annotations is None else annotations,
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.1.0.1",
            "podIPs": [{"ip": "10.1.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    for path, value in more.items():
        where = pod
        *parents, last = path.split("__")
        for part in parents:
            where = where.setdefault(part, {})
        where[last] = value
    return pod


class FakeKube:
    """Lists, watches, gets and patches, with selectors, pages and resource versions."""

    def __init__(self):
        self.version = 100
        self.pods = {}
        self.nodes = {
            "node-1": {"metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "zone-a"}}}
        }
        self.objects = {}
        self.events = []
        self.history = []
        self.watchers = []
        self.requests = []
        self.failures = {}
        self.page_size = None
        self.until = until

    # --- what a test does ------------------------------------------------------------------------------

    def put(self, pod):
        pod = copy.deepcopy(pod)
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        old = self.pods.get(key)
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.pods[key] = pod
        self._tell(old, pod)
        return pod

    def delete(self, namespace, name, *, silently=False):
        old = self.pods.pop((namespace, name))
        self.version += 1
        gone = copy.deepcopy(old)
        gone["metadata"]["resourceVersion"] = str(self.version)
        if not silently:
            self._tell(old, None, gone)

    def end_watches(self):
        for queue, _ in self.watchers:
            queue.put_nowait(None)

    def count(self, method, path):
        return sum(1 for m, p, _ in self.requests if m == method and p == path)

    # --- inside ----------------------------------------------------------------------------------------

    def _tell(self, old, new, gone=None):
        self.history.append((self.version, old, new, gone))
        for queue, wants in self.watchers:
            event = self._event(old, new, gone, wants)
            if event:
                queue.put_nowait(event)

    @staticmethod
    def _event(old, new, gone, wants):
        was, is_ = old is not None and wants(old), new is not None and wants(new)
        if is_:
            return {"type": "MODIFIED" if was else "ADDED", "object": new}
        if was:
            return {"type": "DELETED", "object": gone or new}
        return None

    @staticmethod
    def _selector(text):
        if not text:
            return lambda pod: True
        if text == f"{MANAGED}=true":
            return lambda pod: pod["metadata"].get("labels", {}).get(MANAGED) == "true"
        assert text == f"{MANAGED}!=true", text
        return lambda pod: pod["metadata"].get("labels", {}).get(MANAGED) != "true"

    @staticmethod
    def _shape(obj, accept):
        if "PartialObjectMetadata" in accept:
            return {
                "apiVersion": "meta.k8s.io/v1",
                "kind": "PartialObjectMetadata",
                "metadata": obj["metadata"],
            }
        return obj

    def app(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request):
        path = request.path
        body = await request.json() if request.can_read_body else None
        if request.query.get("watch") == "true":
            self.requests.append(("WATCH", path, body))
            return await self._watch(request)
        self.requests.append((request.method, path, body))
        failures = self.failures.get((request.method, path))
        if failures:
            return self._status(failures.pop(0), "Broken", "as the test wanted")
        return self._answer(request, path, body)

    def _answer(self, request, path, body):  # noqa: PLR0911  # one answer a kind of object
        discovery = self._discovery(path)
        if discovery is not None:
            return web.json_response(discovery)
        accept = request.headers.get("Accept", "")
        if path == "/api/v1/pods":
            wants = self._selector(request.query.get("labelSelector"))
            return self._list([p for p in self.pods.values() if wants(p)], request, accept)
        if path == "/api/v1/nodes":
            return self._list(list(self.nodes.values()), request, accept)
        parts = path.strip("/").split("/")
        if path.startswith("/api/v1/nodes/"):
            found = self.nodes.get(parts[-1])
            return web.json_response(self._shape(found, accept)) if found else self._missing(path)
        if parts[-2:-1] == ["pods"]:
            found = self.pods.get((parts[3], parts[5]))
            return web.json_response(found) if found else self._missing(path)
        if path.endswith("/events") and request.method == "POST":
            self.events.append(body)
            return web.json_response(body, status=201)
        return self._object(request, path, body)

    def _object(self, request, path, body):  # noqa: PLR0911  # one answer a method
        """Any other object: leases, secrets, webhook configurations."""
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return self._status(409, "AlreadyExists", path)
            return self._store(path, body, 201)
        old = self.objects.get(path)
        if old is None:
            return self._missing(path)
        if request.method == "PUT":
            if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
                return self._status(409, "Conflict", path)
            return self._store(path, body, 200)
        if request.method == "PATCH":
            assert request.content_type == "application/strategic-merge-patch+json"
            new = copy.deepcopy(old)
            for change in body["webhooks"]:
                hook = next(h for h in new["webhooks"] if h["name"] == change["name"])
                hook["clientConfig"].update(change["clientConfig"])
            return self._store(path, new, 200)
        return web.json_response(old)

    def _store(self, path, body, status):
        body = copy.deepcopy(body)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = body
        return web.json_response(body, status=status)

    def _list(self, items, request, accept):
        size = self.page_size or int(request.query.get("limit") or 500)
        start = int(request.query.get("continue") or 0)
        metadata = {"resourceVersion": str(self.version)}
        if start + size < len(items):
            metadata["continue"] = str(start + size)
        shaped = [self._shape(i, accept) for i in items[start : start + size]]
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": shaped})

    async def _watch(self, request):
        accept = request.headers.get("Accept", "")
        wants = self._selector(request.query.get("labelSelector"))
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        queue = asyncio.Queue()
        since = int(request.query.get("resourceVersion") or 0)
        for version, old, new, gone in self.history:
            if version > since and (event := self._event(old, new, gone, wants)):
                queue.put_nowait(event)
        self.watchers.append((queue, wants))
        try:
            while (event := await queue.get()) is not None:
                shaped = {"type": event["type"], "object": self._shape(event["object"], accept)}
                await response.write(json.dumps(shaped).encode() + b"\n")
        finally:
            self.watchers.remove((queue, wants))
        return response

    @staticmethod
    def _discovery(path):
        verbs = ["get", "list", "watch", "patch"]
        groups = {
            "apiextensions.k8s.io": [("customresourcedefinitions", "CustomResourceDefinition", False)],
            "admissionregistration.k8s.io": [],
        }
        if path == "/api":
            return {"versions": ["v1"]}
        if path == "/apis":
            return {
                "groups": [
                    {"name": g, "versions": [{"version": "v1"}], "preferredVersion": {"version": "v1"}}
                    for g in groups
                ]
            }
        kinds = {
            "/api/v1": [("pods", "Pod", True), ("namespaces", "Namespace", False), ("events", "Event", True)]
        }
        kinds |= {f"/apis/{g}/v1": k for g, k in groups.items()}
        if path not in kinds:
            return None
        return {
            "resources": [
                {"name": n, "singularName": n[:-1], "kind": k, "namespaced": ns, "verbs": verbs}
                for n, k, ns in kinds[path]
            ]
        }

    def _missing(self, path):
        return self._status(404, "NotFound", path)

    @staticmethod
    def _status(code, reason, message):
        return web.json_response(
            {"kind": "Status", "code": code, "reason": reason, "message": message}, status=code
        )


class FakeRegistry:
    """Answers the session protocol and keeps what it was told; refuses what a test wants refused."""

    def __init__(self):
        self.book = {}
        self.closed = []
        self.fenced = {}
        self.synced = 0
        self.told = []
        self.attached = []
        self.refuse = {}
        self.refuse_attach = None
        self.boot = "boot-1"
        self.sockets = []

    def app(self):
        app = web.Application()
        app.router.add_get("/session", self._session)
        return app

    async def _session(self, request):
        ws = web.WebSocketResponse(protocols=frames.SUBPROTOCOLS)
        await ws.prepare(request)
        self.sockets.append(ws)
        codec = frames.Codec(ws.ws_protocol)
        async for message in ws:
            if message.type is WSMsgType.BINARY:
                for answer in self._on(codec.request(message.data), request):
                    await ws.send_bytes(codec.encode(answer))
        self.sockets.remove(ws)
        return ws

    async def disconnect(self):
        for ws in list(self.sockets):
            await ws.close()

    def _on(self, frame, request):
        self.told.append(frame)
        match frame:
            case frames.Attach():
                self.attached.append((frame, request.headers.get("Authorization")))
                if self.refuse_attach:
                    return [frames.Refused(problem=self.refuse_attach.details())]
                return [
                    frames.Attached(
                        boot=self.boot,
                        term=frame.term + 1,
                        resumed=False,
                        settled=True,
                        beat_interval=5,
                        unhealthy_after=15,
                        remove_after=30,
                    )
                ]
            case frames.Register():
                for entry in frame.entries:
                    code = self.refuse.get(entry.service)
                    if code:
                        return [frames.Refused(id=frame.id, problem=Problem(code, "not that one").details())]
                self.book.update({e.ref: e for e in frame.entries})
            case frames.Deregister():
                for ref in frame.entries:
                    self.book.pop(ref, None)
            case frames.Close():
                self.closed += frame.uids
            case frames.Fence():
                self.fenced.update({p.uid: p.ips for p in frame.pods})
            case frames.Synced():
                self.synced += 1
            case frames.Ping():
                return [frames.Pong(n=frame.n)]
            case _:
                return []
        return [frames.Done(id=frame.id)]

    def services(self):
        return sorted(e.service for e in self.book.values())


@pytest.fixture
def pod():
    return make_pod


@pytest.fixture
def eventually():
    return until


@pytest.fixture
async def kube_server():
    fake = FakeKube()
    server = TestServer(fake.app(), host="127.0.0.1")
    await server.start_server()
    fake.url = str(server.make_url("")).rstrip("/")
    yield fake
    fake.end_watches()
    await server.close()


@pytest.fixture
async def kube(kube_server):
    async with KubeApi(kube_server.url, context=None) as api:
        yield api


@pytest.fixture
async def registry():
    fake = FakeRegistry()
    server = TestServer(fake.app(), host="127.0.0.1")
    await server.start_server()
    fake.address = f"127.0.0.1:{server.port}"
    yield fake
    await fake.disconnect()
    await server.close()


@pytest.fixture
def decode_patch():
    return lambda response: json.loads(base64.b64decode(response["patch"])) if "patch" in response else []
