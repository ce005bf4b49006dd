"""The main job on a real Kubernetes, each test named after its sentence."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from scenes.stage import IMAGE, Stage, wait_until

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
RELEASE_NAMESPACE = "rollbook-system"
REGISTRY = f"http://rollbook.{RELEASE_NAMESPACE}:8848"

# The rules are 15 s and 30 s after the last beat, which came up to 5 s before a process was stopped. The
# slack is for looking (long polls of the recorder), not for the rule.
BEAT, UNHEALTHY, REMOVED, SLACK = 5.0, 15.0, 30.0, 4.0


@pytest.fixture(scope="session")
def rollbook(cluster, kubectl, helm, images):
    """Rollbook, installed by Helm with default values from freshly built images."""
    helm(
        "upgrade",
        "--install",
        "rollbook",
        str(ROOT / "charts/rollbook"),
        "--namespace",
        RELEASE_NAMESPACE,
        "--create-namespace",
        "--set",
        "image.tag=dev",
        "--set",
        "image.pullPolicy=IfNotPresent",
        "--wait",
        "--timeout",
        "180s",
    )
    yield
    helm("uninstall", "rollbook", "--namespace", RELEASE_NAMESPACE, "--wait", "--timeout", "120s")


@pytest.fixture
def stage(rollbook, kubectl, namespace):
    return Stage(kubectl, namespace, IMAGE)


def _tail(kubectl, stage, pod, sink):
    """Follow a pod's log into a list, since it is gone with the pod."""
    process = subprocess.Popen(
        [*kubectl.command, "-n", stage.namespace, "logs", "-f", pod, "-c", "app"],
        stdout=subprocess.PIPE,
        text=True,
    )

    def read():
        for line in process.stdout:
            if line.startswith("{"):
                sink.append(json.loads(line))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return process, thread


def _sidecar_pid(cluster, stage, pod):
    return cluster.node_pid(pod, "rollbook-sidecar", stage.namespace)


def _metric(stage, kubectl, name):
    text = kubectl(
        "-n",
        RELEASE_NAMESPACE,
        "get",
        "--raw",
        f"/api/v1/namespaces/{RELEASE_NAMESPACE}/pods/rollbook-registry-0:8848/proxy/metrics",
    )
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_from_install_to_a_listing_on_localhost_in_another_pod(stage, kubectl):
    pods = kubectl.json("-n", RELEASE_NAMESPACE, "get", "pods")["items"]
    parts = {p["metadata"]["labels"]["app.kubernetes.io/component"] for p in pods}
    assert {"registry", "operator", "webhook"} <= parts
    for pod in pods:
        ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
        assert ready["status"] == "True", pod["metadata"]["name"]

    stage.orders("orders", replicas=3)
    stage.caller("caller", "orders")
    stage.rolled_out("orders")
    stage.until_listed("caller", lambda seen: sum(seen.values()) == 3, "three healthy orders", 30)

    status, answer = stage.ask("caller", "http://localhost:8849/services/orders")
    assert status == 200
    assert {i["ip"] for i in answer["instances"]} == stage.ips("orders")
    assert all(i["healthy"] and i["ready"] and i["alive"] for i in answer["instances"])
    assert {i["owner"] for i in answer["instances"]} == {p["metadata"]["uid"] for p in stage.pods("orders")}
    picked = [stage.ask("caller", "http://localhost:8849/services/orders/pick")[1]["ip"] for _ in range(6)]
    assert {picked.count(ip) for ip in stage.ips("orders")} == {2}


def test_the_provider_recovers_before_the_removal_time(stage, cluster):
    stage.orders("orders", replicas=2)
    stage.caller("caller", "orders")
    stage.rolled_out("orders")
    stage.until_listed("caller", lambda seen: sum(seen.values()) == 2, "both healthy", 30)
    victim = stage.pods("orders")[0]
    ip = victim["status"]["podIP"]
    pid = _sidecar_pid(cluster, stage, victim["metadata"]["name"])

    stopped = time.time()
    cluster.host_signal(pid, signal.SIGSTOP)
    try:
        stage.until_listed("caller", lambda seen: seen[ip] is False, "it unhealthy", UNHEALTHY + SLACK)
        time.sleep(max(0.0, stopped + 20 - time.time()))  # the specification's 20 s
    finally:
        cluster.host_signal(pid, signal.SIGCONT)
    stage.until_listed("caller", lambda seen: seen[ip] is True, "it healthy again", BEAT + SLACK)

    states = [s for s in stage.seen("caller") if s.t >= stopped]
    of_it = [s.instances.get(ip) for s in states]
    assert [k for k, _ in itertools.groupby(of_it)] == [False, True], "both changes, in order, never removed"
    turned = next(s.t for s in states if s.instances[ip] is False) - stopped
    assert UNHEALTHY - BEAT - 1 <= turned <= UNHEALTHY + SLACK
    others = {o: h for s in states for o, h in s.instances.items() if o != ip}
    assert all(others.values()), "nobody else was touched"
    picked = {stage.ask("caller", "http://localhost:8849/services/orders/pick")[1]["ip"] for _ in range(4)}
    assert ip in picked, "balancing uses it again"


def test_the_provider_recovers_after_the_removal_time(stage, cluster, kubectl):
    stage.orders("orders", replicas=2)
    stage.caller("caller", "orders")
    stage.rolled_out("orders")
    stage.until_listed("caller", lambda seen: sum(seen.values()) == 2, "both healthy", 30)
    victim = stage.pods("orders")[0]
    name, ip = victim["metadata"]["name"], victim["status"]["podIP"]
    pid = _sidecar_pid(cluster, stage, name)
    ignored_before = _metric(stage, kubectl, 'rollbook_beats_total{result="ended"')
    term_before = _terms(stage, name)[-1]

    stopped = time.time()
    cluster.host_signal(pid, signal.SIGSTOP)
    try:
        stage.until_listed("caller", lambda seen: ip not in seen, "it gone", REMOVED + SLACK)
        time.sleep(max(0.0, stopped + 40 - time.time()))  # the specification's 40 s
        assert ip not in stage.last("caller"), "reconciling does not bring it back"
    finally:
        cluster.host_signal(pid, signal.SIGCONT)
    stage.until_listed("caller", lambda seen: seen.get(ip), "it back and healthy", BEAT + SLACK)

    removed = next(s.t for s in stage.seen("caller") if s.t > stopped and ip not in s.instances) - stopped
    assert REMOVED - BEAT - 1 <= removed <= REMOVED + SLACK
    assert _metric(stage, kubectl, 'rollbook_beats_total{result="ended"') > ignored_before, "its late beat"
    assert _terms(stage, name)[-1] > term_before, "a higher term"
    assert _events(stage, name, "lease_ended"), "it was told that its lease had ended"
    _, answer = stage.ask("caller", "http://localhost:8849/services/orders")
    assert [i["ip"] for i in answer["instances"]].count(ip) == 1, "no stale entry beside it"
    assert len(answer["instances"]) == 2


def _events(stage, pod, event):
    return [line for line in stage.lines(pod, "rollbook-sidecar") if line.get("event") == event]


def _terms(stage, pod):
    return [line["term"] for line in _events(stage, pod, "registered")]


def test_a_beat_of_an_unknown_instance_that_carries_it_registers_it(stage, kubectl):
    stage.caller("caller", "unheard-of")
    uid = kubectl.json("-n", stage.namespace, "get", "pod", "caller")["metadata"]["uid"]
    ip = kubectl.json("-n", stage.namespace, "get", "pod", "caller")["status"]["podIP"]
    identity = {"Authorization": f"Bearer {stage.token('caller')}"}
    url = f"{REGISTRY}/services/unheard-of/instances/{ip}:9000:DEFAULT:{uid}/beat"

    status, problem = stage.ask("caller", url, method="PUT", **identity)
    assert (status, problem["code"]) == (404, "unknown_instance"), "a light beat says too little"
    status, _ = stage.ask(
        "caller", url, method="PUT", body={"ip": ip, "port": 9000, "owner": uid}, **identity
    )
    assert status == 202
    stage.until_listed("caller", lambda seen: seen == {ip: True}, "it, healthy", 5)
    status, _ = stage.ask("caller", url, method="PUT", **identity)
    assert status == 202, "from now on a light beat will do"


def _assert_unlisted_before_term(stage, victims, sinks, callers):
    for pod in victims:
        ip = pod["status"]["podIP"]
        term = next(line for line in sinks[pod["metadata"]["name"]] if line.get("event") == "term")
        assert ip not in term["listed"], f"its own sidecar still lists {ip}"
        for caller in callers:
            before = [s for s in stage.seen(caller) if s.t <= term["t"]]
            assert ip not in before[-1].instances, f"{caller} still lists {ip} when its application gets TERM"


@pytest.mark.parametrize("way", ["delete", "roll", "drain"])
def test_no_list_names_a_pod_when_its_application_gets_term(stage, kubectl, way):
    service = f"orders-{way}"
    stage.orders(service, replicas=2)
    callers = ["caller-1", "caller-2"]
    for caller in callers:
        stage.caller(caller, service)
    stage.rolled_out(service)
    for caller in callers:
        stage.until_listed(caller, lambda seen: sum(seen.values()) == 2, "both healthy", 30)
    before = stage.pods(service)
    victims = before[:1] if way == "delete" else before
    sinks = {p["metadata"]["name"]: [] for p in victims}
    tails = [_tail(kubectl, stage, name, sink) for name, sink in sinks.items()]
    wait_until(lambda: all(sinks.values()), what="the logs are followed", seconds=20)
    try:
        if way == "delete":
            kubectl("-n", stage.namespace, "delete", "pod", victims[0]["metadata"]["name"], "--wait=true")
        elif way == "roll":
            kubectl("-n", stage.namespace, "rollout", "restart", f"deployment/{service}")
            stage.rolled_out(service)
        else:
            node = victims[0]["spec"]["nodeName"]
            try:
                kubectl(
                    "drain", node, f"--pod-selector=app={service}", "--ignore-daemonsets", "--timeout=90s"
                )
            finally:
                kubectl("uncordon", node)
        wait_until(
            lambda: all(any(x.get("event") == "term" for x in sink) for sink in sinks.values()),
            what="every victim's application got TERM",
            seconds=60,
        )
    finally:
        for process, thread in tails:
            process.terminate()
            process.wait()
            thread.join()
    _assert_unlisted_before_term(stage, victims, sinks, callers)


def test_a_one_replica_rolling_update_never_shows_an_empty_list(stage, kubectl):
    stage.orders("single", replicas=1)
    stage.caller("caller", "single")
    stage.rolled_out("single")
    stage.until_listed("caller", lambda seen: list(seen.values()) == [True], "it healthy", 30)
    old, since = stage.ips("single"), time.time()
    for _ in range(3):
        kubectl("-n", stage.namespace, "rollout", "restart", "deployment/single")
        stage.rolled_out("single")
    new = stage.ips("single") - old
    stage.until_listed("caller", lambda seen: set(seen) == new and all(seen.values()), "only the new one", 30)
    states = [s for s in stage.seen("caller") if s.t >= since]
    assert len(states) >= 6, "additions and removals of three roll-outs"
    assert all(any(s.instances.values()) for s in states), [s.instances for s in states]


def test_late_beats_are_refused_and_another_pods_token_can_do_nothing(stage, kubectl):
    stage.orders("orders", replicas=2)
    stage.caller("caller", "orders")
    stage.rolled_out("orders")
    stage.until_listed("caller", lambda seen: sum(seen.values()) == 2, "both healthy", 30)
    victim = stage.pods("orders")[0]
    name, uid, ip = victim["metadata"]["name"], victim["metadata"]["uid"], victim["status"]["podIP"]
    its_own = {"Authorization": f"Bearer {stage.token(name)}"}
    anothers = {"Authorization": f"Bearer {stage.token('caller')}"}
    _, listed = stage.ask("caller", "http://localhost:8849/services/orders")
    key = next(i["key"] for i in listed["instances"] if i["ip"] == ip)
    assert key.endswith(uid)
    instance = f"{REGISTRY}/services/orders/instances/{key}"
    whole = {"ip": ip, "port": 8080, "owner": uid}

    for method, url, body in [
        ("PUT", f"{instance}/beat", None),
        ("PUT", f"{instance}/beat", whole),
        ("PATCH", instance, {"weight": 0}),
        ("DELETE", instance, None),
        ("POST", f"{REGISTRY}/services/orders/instances", whole),
    ]:
        status, problem = stage.ask("caller", url, method=method, body=body, **anothers)
        assert (status, problem["code"]) == (403, "forbidden"), (method, problem)
        status, problem = stage.ask("caller", url, method=method, body=body)
        assert (status, problem["code"]) == (401, "unauthenticated"), (method, problem)
    for hook in ("self", "wait"):
        status, problem = stage.ask("caller", f"http://{ip}:8850/drain/{hook}", X_Rollbook_Drain="guess")
        assert (status, problem["code"]) == (403, "forbidden"), hook
    assert stage.last("caller")[ip] is True, "nothing of it had an effect"

    kubectl("-n", stage.namespace, "delete", "pod", name, "--wait=true")
    wait_until(
        lambda: (
            (stage.ask("caller", f"{instance}/beat", method="PUT", body=whole, **its_own)[1] or {}).get(
                "code"
            )
            == "pod_gone"
        ),
        what="the pod is fenced",
        seconds=30,
    )
    for method, url, body in [
        ("PUT", f"{instance}/beat", None),
        ("PUT", f"{instance}/beat", whole),
        ("POST", f"{REGISTRY}/services/orders/instances", whole),
    ]:
        status, problem = stage.ask("caller", url, method=method, body=body, **its_own)
        assert (status, problem["code"]) == (410, "pod_gone"), (method, problem)
    assert ip not in stage.last("caller")


def test_the_registry_is_killed_and_nobody_is_lost_or_flaps(stage, kubectl):
    stage.orders("orders", replicas=3)
    stage.caller("caller", "orders")
    stage.rolled_out("orders")
    stage.until_listed("caller", lambda seen: sum(seen.values()) == 3, "all healthy", 30)
    before = stage.last("caller")
    since = time.time()
    kubectl("-n", RELEASE_NAMESPACE, "delete", "pod", "rollbook-registry-0", "--grace-period=0", "--force")

    wait_until(lambda: _staleness(stage, since)[-1:] == [True], what="the sidecar says stale", seconds=30)
    status, answer = stage.ask("caller", "http://localhost:8849/services/orders")
    assert status == 200
    assert len(answer["instances"]) == 3, "the sidecar goes on answering"
    kubectl(
        "-n", RELEASE_NAMESPACE, "wait", "--for=condition=Ready", "pod/rollbook-registry-0", "--timeout=90s"
    )
    wait_until(lambda: _staleness(stage, since)[-1:] == [False], what="it has reconnected", seconds=30)
    # The new registry's book settles after the removal time; only then could somebody be missed.
    wait_until(
        lambda: stage.ask("caller", "http://localhost:8849/services/orders")[1]["settled"],
        what="the book is settled",
        seconds=REMOVED + SLACK + 30,
        every=1.0,
    )
    time.sleep(2 * BEAT)  # and beats go on
    states = [s for s in stage.seen("caller") if s.t >= since]
    assert all(s.instances == before for s in states), [s.instances for s in states if s.instances != before]
    _, answer = stage.ask("caller", f"{REGISTRY}/services/orders")
    assert {i["ip"]: i["healthy"] for i in answer["instances"]} == before, "and the new book has them all"


def _staleness(stage, since):
    return [s.stale for s in stage.seen("caller") if s.t >= since]


def test_a_pod_made_while_the_webhook_is_down_is_registered_without_a_sidecar(stage, kubectl):
    stage.caller("caller", "orders")
    kubectl("-n", RELEASE_NAMESPACE, "scale", "deployment/rollbook-webhook", "--replicas=0")
    try:
        wait_until(
            lambda: (
                not kubectl.json(
                    "-n", RELEASE_NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=webhook"
                )["items"]
            ),
            what="the webhook is down",
            seconds=60,
        )
        stage.orders("orders", replicas=1)
        stage.rolled_out("orders")
    finally:
        kubectl("-n", RELEASE_NAMESPACE, "scale", "deployment/rollbook-webhook", "--replicas=2")
        kubectl("-n", RELEASE_NAMESPACE, "rollout", "status", "deployment/rollbook-webhook", "--timeout=120s")
    (pod,) = stage.pods("orders")
    assert not pod["spec"].get("initContainers"), "it has no sidecar"
    ip = pod["status"]["podIP"]
    stage.until_listed("caller", lambda seen: seen == {ip: True}, "it, healthy", 30)
    name = pod["metadata"]["name"]
    kubectl("-n", stage.namespace, "delete", "deployment", "orders", "--wait=true")
    kubectl("-n", stage.namespace, "wait", "--for=delete", f"pod/{name}", "--timeout=60s")
    stage.until_listed("caller", lambda seen: ip not in seen, "it gone", 30)
