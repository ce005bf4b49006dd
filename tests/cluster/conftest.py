"""Fixtures for tests on a Kubernetes cluster: which one, its life, and what is kept of a failure.

The cluster is brought up before the first test, outside of any test's time limit and with its progress on the
terminal, at the highest level that the chosen tests ask for.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from clusters import (
    Cluster,
    ClusterError,
    Helm,
    Kubectl,
    Level,
    UnavailableError,
    UnsupportedError,
    choose,
    until,
)
from clusters.session import DEFAULT_TAG, images_of_the_project, kept, session_lock
from clusters.tools import say

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
# All the others are made from the first two.
FIXTURES = frozenset({"cluster", "control_cluster", "images", "kwok"})

WAIT_FOR_ANOTHER_RUN = 3600.0


class Ground:
    """The cluster of this test run."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self.level: Level = "control"
        self._problem: ClusterError | None = None
        self._lock = contextlib.ExitStack()

    def stand(self, level: Level) -> Cluster:
        """The cluster, at this level at least."""
        if self._problem is not None:
            raise self._problem
        try:
            if self.cluster is None:
                self.cluster = self._begin()
            elif level == "control" or self.level == "node":
                return self.cluster
            self.cluster.up(level)
        except ClusterError as error:
            self._problem = error
            raise
        self.level = level
        return self.cluster

    def _begin(self) -> Cluster:
        cluster = choose()
        self._lock.enter_context(session_lock(cluster, "a test run", wait=WAIT_FOR_ANOTHER_RUN))
        if not kept(cluster):
            cluster.down(wipe=True)  # what a test run that was killed has left
        return cluster

    def end(self) -> None:
        """Take it down, unless it is to be kept."""
        with self._lock:
            if self.cluster is not None and not kept(self.cluster):
                self.cluster.down(wipe=True)


GROUND = pytest.StashKey[Ground]()


@contextlib.contextmanager
def _on_the_terminal(config: pytest.Config) -> Iterator[None]:
    # a build takes minutes: whoever waits must see it move
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        yield


def _wanted(item: pytest.Item) -> frozenset[str]:
    return FIXTURES.intersection(getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster; test the cluster before what runs on it."""
    for item in items:
        if item.path.is_relative_to(HERE) and _wanted(item):
            item.add_marker(pytest.mark.cluster)
    slots = [number for number, item in enumerate(items) if item.path.is_relative_to(HERE)]
    ours = sorted((items[number] for number in slots), key=lambda item: item.path.name != "test_testbed.py")
    for number, item in zip(slots, ours, strict=True):
        items[number] = item


def pytest_collection_finish(session: pytest.Session) -> None:
    """Bring the cluster up before the first test."""
    config = session.config
    config.stash[GROUND] = ground = Ground()
    wanted = {name for item in session.items if item.path.is_relative_to(HERE) for name in _wanted(item)}
    if not wanted or config.option.collectonly:
        return
    # what is wrong is said by each fixture that needs it
    with _on_the_terminal(config), contextlib.suppress(ClusterError):
        cluster = ground.stand("node" if "cluster" in wanted else "control")
        if "images" in wanted:
            images_of_the_project(cluster, REPOSITORY, DEFAULT_TAG)
        if "kwok" in wanted:
            cluster.up(ground.level, kwok=True)


@pytest.hookimpl(trylast=True)  # after an interruption, this hook is what ends the fixtures
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take the cluster down after the last test."""
    ground = session.config.stash.get(GROUND, None)
    if ground is not None:
        with _on_the_terminal(session.config):
            try:
                ground.end()
            except ClusterError as error:
                say(str(error))
                session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect all logs of the cluster when a test on it fails."""
    report = yield
    ground = item.config.stash.get(GROUND, None)
    if report.failed and report.when != "teardown" and ground and ground.cluster and _wanted(item):
        dest = item.config.rootpath / "build/cluster-logs" / re.sub(r"[^\w.-]+", "_", item.name)
        try:
            shutil.rmtree(dest, ignore_errors=True)
            ground.cluster.collect_logs(dest)
            said = f"logs, events and descriptions of everything: {dest}"
        except (ClusterError, OSError) as error:
            said = f"collecting logs in {dest} failed: {error}"
        report.sections.append(("Test cluster", said))
    return report


def _get(request: pytest.FixtureRequest, level: Level) -> Cluster:
    ground = request.config.stash[GROUND]
    problem: ClusterError
    try:
        with _on_the_terminal(request.config):
            return ground.stand(level)
    except ClusterError as error:
        problem = error
    if isinstance(problem, UnavailableError):
        _skip(problem)
    pytest.fail(str(problem), pytrace=False)


def _skip(reason: ClusterError) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"under CI a test must not be skipped: {reason}", pytrace=False)
    pytest.skip(str(reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """Skip tests whose fixtures need what the chosen cluster cannot do."""
    try:
        yield
    except UnsupportedError as error:
        _skip(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Skip tests that need what the chosen cluster cannot do."""
    try:
        yield
    except UnsupportedError as error:
        _skip(error)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A cluster with a node that runs containers."""
    return _get(request, "node")


@pytest.fixture(scope="session")
def control_cluster(request: pytest.FixtureRequest) -> Cluster:
    """A control plane; the same cluster as `cluster` when other tests want that."""
    return _get(request, "control")


@pytest.fixture(scope="session")
def kwok(request: pytest.FixtureRequest, control_cluster: Cluster) -> Cluster:
    """The cluster with kwok, which simulates nodes labelled `type=kwok`."""
    with _on_the_terminal(request.config):
        control_cluster.up(request.config.stash[GROUND].level, kwok=True)
    return control_cluster


@pytest.fixture(scope="session")
def kubectl(control_cluster: Cluster) -> Kubectl:
    """`kubectl("get", "pods", namespace=…)`, `.json(…)`, `.apply(…)`; raises with kubectl's message."""
    return Kubectl(control_cluster)


@pytest.fixture(scope="session")
def helm(control_cluster: Cluster) -> Helm:
    """`helm("install", …)`; raises with helm's message."""
    return Helm(control_cluster)


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> dict[str, str]:
    """Freshly built images of the project: `registry`, `sidecar`, `operator` → what a pod spec has to say."""
    try:
        return images_of_the_project(cluster, REPOSITORY, DEFAULT_TAG)
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def namespace(request: pytest.FixtureRequest, kubectl: Kubectl) -> Iterator[str]:
    """A fresh Kubernetes namespace, with the service account that pods need; deleted afterwards."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    name = f"{slug}-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    until(
        lambda: kubectl("get", "serviceaccount", "default", "--ignore-not-found", namespace=name),
        30,
        f"the default service account of namespace {name} is made",
    )
    yield name
    try:
        # First the namespace, so that no controller makes pods anew. What is waited for is that its pods are
        # gone, which the next test could notice; the rest takes the API server another 5 s.
        kubectl("delete", "namespace", name, "--wait=false")
        kubectl("delete", "pods", "--all", "--grace-period=1", "--timeout=60s", namespace=name)
    except ClusterError as error:
        say(f"namespace {name} could not be deleted: {error}")
