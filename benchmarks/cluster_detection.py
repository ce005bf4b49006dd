"""Detection times in a cluster: from Ready, or from deletion, to another pod's sidecar knowing of it.

It needs a cluster with Rollbook whose one node is this machine, since times of its pods are compared with
times of this process: ``make cluster``, then ``eval "$(python -m clusters env)"``. A caller pod follows a
service at its own sidecar and writes down what it sees; this process watches the same pods at the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from benchmarks.process import Skipped
from benchmarks.report import Result, Row, Spread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmarks.rounds import Options

SERVICE: Final = "bench-orders"
REPLICAS: Final = 4
AT_ONCE: Final = 2
"""Pods deleted in one round."""

ROUNDS: Final = 6
WRITES: Final = 10
PATIENCE: Final = 90.0
FOLLOW: Final = Path(__file__).with_name("follow.py")

Json = dict[str, Any]


async def _kubectl(*arguments: str, stdin: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problem = await process.communicate(stdin.encode())
    if process.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {problem.decode().strip()}")
    return out.decode()


async def _image() -> str:
    """Find Rollbook in the cluster; its operator's image runs our pods, too: it has Python, and is there.

    Raises:
        Skipped: there is no such cluster.
    """
    if not os.environ.get("KUBECONFIG"):
        raise Skipped('KUBECONFIG is not set; `make cluster`, then `eval "$(python -m clusters env)"`')
    if shutil.which("kubectl") is None:
        raise Skipped("there is no kubectl")
    try:
        found = await _kubectl(
            "get",
            "deployments",
            "-A",
            "-l",
            "app.kubernetes.io/name=rollbook",
            "-o",
            "json",
            "--request-timeout=5s",
        )
    except RuntimeError as error:
        raise Skipped(f"the cluster that KUBECONFIG names does not answer: {error}") from None
    deployments = json.loads(found)["items"]
    waiting = [d["metadata"]["name"] for d in deployments if not d["status"].get("availableReplicas")]
    if not deployments or waiting:
        raise Skipped(f"not available there: {', '.join(waiting) or 'Rollbook'}")
    image: str = deployments[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    return image


def _container(image: str, *command: str) -> Json:
    return {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
    }


def _caller(image: str) -> Json:
    annotations = {"rollbook.io/inject": "true", "rollbook.io/subscribe": SERVICE}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "caller", "annotations": annotations},
        "spec": {
            "enableServiceLinks": False,
            "containers": [_container(image, "python", "-c", FOLLOW.read_text(), SERVICE)],
        },
    }


def _deployment(image: str) -> Json:
    labels = {"app": SERVICE}
    container = _container(image, "python", "-m", "http.server", "8080", "--directory", "/tmp")
    container["ports"] = [{"containerPort": 8080}]
    container["readinessProbe"] = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": SERVICE},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "rollbook.io/register": "true",
                        "rollbook.io/service": SERVICE,
                        "rollbook.io/port": "8080",
                    },
                },
                "spec": {"enableServiceLinks": False, "containers": [container]},
            },
        },
    }


class Times:
    """When what was seen of each pod, by UID, in Unix time."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.ready: dict[str, float] = {}
        self.terminating: dict[str, float] = {}
        self.written: dict[str, float] = {}
        self.listed: dict[str, float] = {}
        self.unlisted: dict[str, float] = {}
        self._changed = asyncio.Event()

    def watched(self, pod: Json, now: float) -> None:
        """Take what the API server says."""
        uid = pod["metadata"]["uid"]
        self.names[uid] = pod["metadata"]["name"]
        conditions = pod.get("status", {}).get("conditions", [])
        if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
            self.ready.setdefault(uid, now)
        if "deletionTimestamp" in pod["metadata"]:
            self.terminating.setdefault(uid, now)
        mark = pod["metadata"].get("annotations", {}).get("bench/write")
        if mark:
            self.written.setdefault(mark, now)
        self._changed.set()

    def followed(self, line: bytes) -> None:
        """Take what the caller's sidecar says."""
        came, instances = json.loads(line)
        for uid, healthy in instances.items():
            if healthy:
                self.listed.setdefault(uid, came)
        for uid in self.listed:
            if uid not in instances:
                self.unlisted.setdefault(uid, came)
        self._changed.set()

    @property
    def present(self) -> list[str]:
        """The pods that are listed and not terminating, by UID."""
        return [u for u in self.listed if u not in self.unlisted and u not in self.terminating]

    def are_unlisted(self, uids: list[str]) -> bool:
        """Say whether none of these pods is listed any more."""
        return all(uid in self.unlisted for uid in uids)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something to have been seen.

        Raises:
            RuntimeError: it was not, in time.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise RuntimeError(f"within {PATIENCE:g} s there was no {what}") from None


@contextlib.asynccontextmanager
async def _namespace() -> AsyncIterator[str]:
    name = f"rollbook-bench-{secrets.token_hex(3)}"
    await _kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        await _kubectl("delete", "namespace", name, "--wait=false")


@contextlib.asynccontextmanager
async def _running(*arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run kubectl for the length of a ``with`` block, and read what it prints."""
    process = await asyncio.create_subprocess_exec(
        "kubectl", *arguments, stdout=asyncio.subprocess.PIPE, limit=2**22
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def _in_background(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(http: aiohttp.ClientSession, pods: str, times: Times) -> None:
    no_limit = aiohttp.ClientTimeout(total=None)
    async with http.get(f"{pods}?watch=true", timeout=no_limit) as answer:
        async for line in answer.content:
            now = time.time()
            times.watched(json.loads(line)["object"], now)
    raise RuntimeError("the watch ended")


async def _follow(lines: asyncio.StreamReader, times: Times) -> None:
    while line := await lines.readline():
        times.followed(line)
    raise RuntimeError("the caller ended")


async def run(options: Options) -> Result:
    """Measure."""
    del options  # what takes time here are pods
    image = await _image()
    times = Times()
    deleted: dict[str, float] = {}
    written: dict[str, float] = {}
    async with contextlib.AsyncExitStack() as stack:
        namespace = await stack.enter_async_context(_namespace())
        await _kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(_caller(image)))
        await _kubectl("wait", "-n", namespace, "pod/caller", "--for=condition=Ready", "--timeout=90s")
        proxy = await stack.enter_async_context(_running("proxy", "--port=0"))
        port = int((await proxy.readline()).rsplit(b":", 1)[1])
        http = await stack.enter_async_context(aiohttp.ClientSession(read_bufsize=2**22))
        pods = f"http://127.0.0.1:{port}/api/v1/namespaces/{namespace}/pods"
        log = await stack.enter_async_context(_running("logs", "-n", namespace, "-f", "caller", "-c", "main"))
        await stack.enter_async_context(_in_background(_watch(http, pods, times)))
        await stack.enter_async_context(_in_background(_follow(log, times)))
        await _kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(_deployment(image)))
        await times.until(lambda: len(times.present) >= REPLICAS, f"list of {REPLICAS} pods")
        for n in range(WRITES):
            mark = str(n)
            written[mark] = time.time()
            change = {"metadata": {"annotations": {"bench/write": mark}}}
            await http.patch(
                f"{pods}/caller",
                data=json.dumps(change),
                headers={"Content-Type": "application/merge-patch+json"},
                raise_for_status=True,
            )
            await times.until(partial(times.written.__contains__, mark), "event of a write")
        for _ in range(ROUNDS):
            chosen = times.present[:AT_ONCE]
            for uid in chosen:
                deleted[uid] = time.time()
                await http.delete(f"{pods}/{times.names[uid]}", raise_for_status=True)
            await times.until(partial(times.are_unlisted, chosen), "list without a deleted pod")
            await times.until(lambda: len(times.present) >= REPLICAS, "list with a new pod")
    return _result(times, deleted, written)


def _result(times: Times, deleted: dict[str, float], written: dict[str, float]) -> Result:
    def between(first: dict[str, float], then: dict[str, float]) -> Spread:
        return Spread(tuple((then[key] - first[key]) * 1000 for key in first if key in then))

    writes = between(written, times.written)
    return Result(
        rows=[
            Row(
                name="Ready (seen by a raw watch) -> listed elsewhere as healthy",
                unit="ms",
                ours=between(times.ready, times.listed),
                limit=writes,
            ),
            Row(
                name="deletion sent -> unlisted elsewhere",
                unit="ms",
                ours=between(deleted, times.unlisted),
                limit=between(deleted, times.terminating),
            ),
        ],
        limit="a raw watch: from a write's being sent (first row: of an annotation) to its event",
        notes=[f"{len(times.listed)} pods became Ready, {len(deleted)} were deleted, {AT_ONCE} at a time"],
    )
