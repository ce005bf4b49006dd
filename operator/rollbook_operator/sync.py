"""From what is seen of pods to what the registry is told.

Watches and reconciles say what they saw (:meth:`Sync.seen`) or that something should be looked at
(:meth:`Sync.look_up`); one worker takes it from the queue, works out the difference and hands it to the
session, additions before removals. What a watch says about a deletion is only a hint: the API server is
asked, and only its word that there is no such pod, or another one of that name, fences it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from rollbook import events
from rollbook.frames import GonePod
from rollbook.model import check_made
from rollbook_operator import annotations as marks
from rollbook_operator import desired, retry
from rollbook_operator.complaints import BAD_ANNOTATION, REFUSED
from rollbook_operator.desired import State
from rollbook_operator.plan import plan
from rollbook_operator.queue import ConflatingQueue

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Mapping

    from rollbook.model import Entry, EntryRef
    from rollbook.problems import Problem
    from rollbook_operator.cluster import Cluster
    from rollbook_operator.complaints import Complaints
    from rollbook_operator.desired import Desired
    from rollbook_operator.metrics import Metrics
    from rollbook_operator.queue import Pending

log = structlog.get_logger("rollbook.operator")

BATCH: Final = 500
"""Pods that are evaluated before the loop gets a breath."""

LOOKUPS: Final = 16
"""Questions to the API server at the same time."""

REPEAT_FOR: Final = 2 * 3600.0
"""Seconds for which a fence is repeated to registries that start afresh; tokens live for one hour."""

NEVER: Final = -1
"""Older than any resource version."""

TERMINAL_CODES: Final = frozenset({"pod_terminating", "pod_gone"})
"""Refusals that say nothing new: the pod's end has overtaken its entry."""


class Book(Protocol):
    """What is needed of :class:`rollbook.Client`."""

    def put(self, *entries: Entry) -> None: ...  # noqa: D102
    def drop(self, *refs: EntryRef) -> None: ...  # noqa: D102
    def close_pods(self, *uids: str) -> None: ...  # noqa: D102
    def fence_pods(self, *pods: GonePod) -> None: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Seen:
    """A pod, as somebody saw it."""

    pod: Mapping[str, Any]
    reconciling: bool = False


@dataclasses.dataclass(frozen=True)
class LookUp:
    """A pod that should be looked at."""

    namespace: str
    name: str
    reconciling: bool = False


@dataclasses.dataclass
class Known:
    """What has been done about a pod."""

    namespace: str
    name: str
    version: int = NEVER
    state: State = State.OPEN
    ips: tuple[str, ...] = ()
    entries: dict[EntryRef, Entry] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Batch:
    """What a batch of evaluations comes to."""

    put: list[Entry] = dataclasses.field(default_factory=list)
    drop: list[EntryRef] = dataclasses.field(default_factory=list)
    close: list[str] = dataclasses.field(default_factory=list)
    fence: list[GonePod] = dataclasses.field(default_factory=list)


class Sync:
    """The operator's knowledge of pods, and the way from it to the registry.

    Args:
        book: the session.
        cluster: where to ask.
        complaints: where to complain.
        metrics: where to count.
        clock: monotonic seconds.
        rng: where jitter comes from.
    """

    def __init__(
        self,
        book: Book,
        cluster: Cluster,
        complaints: Complaints,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._book = book
        self._cluster = cluster
        self._complaints = complaints
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self.pods: dict[str, Known] = {}
        """By UID: every pod that concerns Rollbook and is not known to be gone."""

        self.differences: Counter[str] = Counter()
        """What reconciling has found since :meth:`begin_reconcile`, by kind."""

        self._queue: ConflatingQueue[str, Seen | LookUp] = ConflatingQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(LOOKUPS)
        self._progress = asyncio.Event()
        self._gone: dict[str, float] = {}
        self._waiting: dict[EntryRef, float] = {}
        self._refused: set[EntryRef] = set()
        self._retry: set[EntryRef] = set()

    # --- what is seen ----------------------------------------------------------------------------------

    def seen(self, pod: Mapping[str, Any], *, reconciling: bool = False) -> None:
        """Somebody saw a pod."""
        self._enqueue(Seen(pod, reconciling), self._clock())

    def deleted(self, pod: Mapping[str, Any]) -> None:
        """A watch says that a pod has been deleted, or has left its selection: have it looked at."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        if uid in self.pods or marks.ours(metadata.get("annotations") or {}):
            self.look_up(uid, namespace=metadata["namespace"], name=metadata["name"])

    def look_up(self, uid: str, *, namespace: str, name: str, reconciling: bool = False) -> None:
        """Have the API server asked what has become of a pod."""
        if uid not in self._gone:
            self._queue.put(uid, LookUp(namespace, name, reconciling), self._clock())

    def begin_reconcile(self) -> None:
        """A reconcile starts: count what it finds, and offer again what the registry has refused."""
        self.differences.clear()
        for ref in self._refused:
            known = self.pods.get(ref.owner)
            if known is not None:
                known.version = NEVER
                self._retry.add(ref)
        self._refused.clear()

    def outdated_fences(self) -> list[str]:
        """Forget, and return, the pods that were fenced so long ago that nobody can speak for them."""
        horizon = self._clock() - REPEAT_FOR
        old = [uid for uid, since in self._gone.items() if since < horizon]
        for uid in old:
            del self._gone[uid]
        return old

    # --- work ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work off the queue, for ever."""
        try:
            while True:
                batch = await self._queue.take(BATCH)
                self._work(batch)
                self._progress.set()
                await asyncio.sleep(0)
        finally:
            for task in self._tasks:
                task.cancel()

    async def settle(self) -> None:
        """Wait until all that has been said so far has been worked off and looked up."""
        while len(self._queue) or self._tasks:
            self._progress.clear()
            await self._progress.wait()

    def handle(self, event: events.Event) -> None:
        """Listen to the session."""
        match event:
            case events.Confirmed(refs):
                now = self._clock()
                for ref in refs:
                    since = self._waiting.pop(ref, None)
                    if since is not None:
                        self._metrics.latency.observe(now - since)
                    self._refused.discard(ref)
            case events.Rejected(ref, problem):
                self._on_rejected(ref, problem)
            case events.Answered(_, None, problem) if problem is not None:
                if problem.code != "registry_unreachable":
                    log.error("request_refused", code=problem.code, detail=problem.detail)
            case _:
                pass

    @property
    def entries(self) -> int:
        """How many entries it speaks for."""
        return sum(len(known.entries) for known in self.pods.values())

    @property
    def queued(self) -> int:
        """How many pods wait to be evaluated or looked up."""
        return len(self._queue) + len(self._tasks)

    # --- inside ----------------------------------------------------------------------------------------

    def _work(self, items: list[Pending[str, Seen | LookUp]]) -> None:
        batch = _Batch()
        for uid, value, since in items:
            if isinstance(value, LookUp):
                self._spawn(uid, self._ask(uid, value, since))
            else:
                node = desired.node_of(value.pod)
                zone = self._cluster.known_zone(node)
                if zone is None:
                    self._spawn(uid, self._learn_zone(node, value, since))
                else:
                    try:
                        self._evaluate(batch, value, zone, since)
                    except Exception:  # one odd object must not keep the others out of the book
                        self._metrics.decisions.labels("failed").inc()
                        log.exception("evaluation_failed", uid=uid)
        self._tell(batch)

    def _tell(self, batch: _Batch) -> None:
        """Additions before removals: a roll-out in one batch never shows an empty list."""
        if batch.put:
            self._book.put(*batch.put)
        if batch.close:
            self._book.close_pods(*batch.close)
        if batch.fence:
            self._book.fence_pods(*batch.fence)
        if batch.drop:
            self._book.drop(*batch.drop)

    def _evaluate(self, batch: _Batch, value: Seen, zone: str, since: float) -> None:
        pod = value.pod
        uid, version = pod["metadata"]["uid"], version_of(pod)
        known = self.pods.get(uid)
        if uid in self._gone or (known is not None and version < known.version):
            return
        wanted = desired.desire(pod, zone)
        for entry in wanted.entries:
            # Here, where it fails for this pod alone: the book takes all of a batch, or nothing.
            check_made(entry)
        self._metrics.decisions.labels(wanted.reason).inc()
        if wanted.state is State.GONE:
            self._leave(batch, uid, reconciling=value.reconciling)
        elif known is not None or wanted.concerned:
            known = known or Known(wanted.namespace, wanted.name)
            self.pods[uid] = known
            known.version = version
            known.ips = wanted.ips
            self._adjust(batch, known, wanted, value.reconciling, since)
            if not wanted.concerned:
                del self.pods[uid]

    def _adjust(
        self,
        batch: _Batch,
        known: Known,
        wanted: Desired,
        reconciling: bool,  # noqa: FBT001  # private
        since: float,
    ) -> None:
        """Make what has been entered for a pod what it should be."""
        if wanted.state is State.CLOSED and known.state is not State.CLOSED:
            batch.close.append(wanted.uid)
        known.state = wanted.state
        difference = plan(wanted.entries, known.entries)
        if reconciling:
            self.differences["missing"] += len(difference.missing)
            self.differences["different"] += len(difference.different)
            self.differences["surplus"] += len(difference.surplus)
        for entry in difference.put:
            known.entries[entry.ref] = entry
            self._waiting[entry.ref] = since
        again = [e for e in wanted.entries if e.ref in self._retry and e not in difference.put]
        self._retry.difference_update(e.ref for e in wanted.entries)
        for ref in difference.surplus:
            self._strike(known, ref)
        batch.put += [*difference.put, *again]
        batch.drop += difference.surplus
        where = {"namespace": known.namespace, "name": known.name, "uid": wanted.uid}
        if difference:
            put, drop = len(difference.put), len(difference.surplus)
            log.info("pod_evaluated", **where, reason=wanted.reason, put=put, dropped=drop)
        for problem in wanted.problems:
            self._complaints.warn(**where, reason=BAD_ANNOTATION, note=str(problem))

    def _leave(self, batch: _Batch, uid: str, *, reconciling: bool) -> None:
        """A pod is confirmed gone.

        Its addresses are fenced with it only if it was seen alive. Of one that was found dead nobody knows
        for how long: somebody else may live there.
        """
        known = self.pods.pop(uid, None)
        self._gone[uid] = self._clock()
        batch.fence.append(GonePod(uid=uid, ips=list(known.ips) if known is not None else []))
        if known is None:
            return
        if reconciling:
            self.differences["vanished"] += 1
        batch.drop += known.entries
        for ref in list(known.entries):
            self._strike(known, ref)
        log.info("pod_gone", namespace=known.namespace, name=known.name, uid=uid)

    def _strike(self, known: Known, ref: EntryRef) -> None:
        known.entries.pop(ref, None)
        self._waiting.pop(ref, None)
        self._refused.discard(ref)
        self._retry.discard(ref)

    def _enqueue(self, seen: Seen, since: float) -> None:
        uid = seen.pod["metadata"]["uid"]
        if uid in self._gone:
            return
        match self._queue.get(uid):
            case LookUp():
                return  # the API server is about to be asked, and its answer can only be newer
            case Seen(other) if version_of(other) > version_of(seen.pod):
                return
            case _:
                self._queue.put(uid, seen, since)

    def _spawn(self, uid: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something that takes time."""
        task = asyncio.create_task(work, name=f"rollbook-operator-{uid}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._progress.set()

    async def _ask(self, uid: str, look: LookUp, since: float) -> None:
        found = await self._persist("pod", lambda: self._cluster.pod(look.namespace, look.name))
        if found is not None:
            # Whether it is this one or its successor of the same name: it is news.
            self._enqueue(Seen(found, look.reconciling), since)
        if (found is None or found["metadata"]["uid"] != uid) and uid not in self._gone:
            batch = _Batch()
            self._metrics.decisions.labels("not_found").inc()
            self._leave(batch, uid, reconciling=look.reconciling)
            self._tell(batch)

    async def _learn_zone(self, node: str, seen: Seen, since: float) -> None:
        await self._persist("node", lambda: self._cluster.ask_zone(node))
        self._enqueue(seen, since)

    async def _persist(self, request: str, attempt: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Ask until there is an answer."""
        attempts = 0
        while True:
            try:
                async with self._slots:
                    return await attempt()
            except retry.API_ERRORS as error:
                log.warning("api_error", request=request, attempt=attempts, error=str(error) or repr(error))
                self._metrics.retries.labels(request).inc()
                await retry.pause(attempts, self._rng)
                attempts += 1

    def _on_rejected(self, ref: EntryRef, problem: Problem) -> None:
        self._waiting.pop(ref, None)
        known = self.pods.get(ref.owner)
        self._metrics.rejected.labels(problem.code).inc()
        if known is None or ref not in known.entries or problem.code in TERMINAL_CODES:
            return
        self._refused.add(ref)
        note = f"the registry refused {ref.service}:{ref.port}: {problem.detail}"
        self._complaints.warn(
            namespace=known.namespace, name=known.name, uid=ref.owner, reason=REFUSED, note=note
        )


def version_of(pod: Mapping[str, Any]) -> int:
    """Read how new an object is, so that what was seen earlier and arrives later changes nothing.

    Kubernetes' resource versions of one resource are comparable numbers (KEP-5504). Where they were not,
    every sight would count as newest, and the next reconcile would put right what came in the wrong order.
    """
    text = str(pod["metadata"].get("resourceVersion") or "")
    return int(text) if text.isascii() and text.isdigit() else 1 << 63
