"""The test cluster itself: that it works, and that what its README claims holds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from clusters import ClusterError, machine, until
from clusters.daemons import process_ids, start_time
from clusters.session import kept
from clusters.testbed import (
    API_PORT,
    BRIDGE,
    CONTROL_DAEMONS,
    NODE_ADDRESS,
    NODE_DAEMONS,
    Testbed,
)

IMAGE = "rollbook-testbed/probe:dev"
DOCKERFILE = """
FROM python:3.11-slim AS tools
RUN python -m venv /opt/probe
FROM python:3.11-slim AS probe
COPY --from=tools /opt/probe /opt/probe
COPY serve.py /
USER 65532:65532
CMD ["/opt/probe/bin/python", "/serve.py"]
"""
SERVE = """
import http.server, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(("", 8080), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
# Where Kubernetes, containerd and CNI keep things, unless told otherwise.
FOREIGN_PLACES = (
    "/run/containerd",
    "/run/flannel",
    "/opt/cni",
    "/opt/containerd",
    "/etc/kubernetes",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)
BEGUN = time.time()
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture
def testbed(cluster):
    if not isinstance(cluster, Testbed):
        pytest.skip(f"about the testbed; this run is on {cluster.name}")
    yield cluster
    cluster.up("node")


@pytest.fixture
def own_testbed(testbed):
    """The testbed, if this test run may take it down."""
    if kept(testbed):
        pytest.skip("the cluster is somebody's: brought up by hand, or kept by ROLLBOOK_KEEP_CLUSTER")
    return testbed


@pytest.fixture(scope="session")
def probe_image(cluster, tmp_path_factory):
    context = tmp_path_factory.mktemp("probe")
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "serve.py").write_text(SERVE)
    return cluster.build_images(context, {IMAGE: "probe"})[IMAGE]


def probe(image: str, **more) -> dict:
    return {"image": image, "imagePullPolicy": "IfNotPresent", "securityContext": RESTRICTED, **more}


def pod(name: str, image: str) -> dict:
    """An application with a native sidecar."""
    ready = {"httpGet": {"path": "/etc/hostname", "port": 8080}, "periodSeconds": 1}
    sidecar = probe(image, name="sidecar", restartPolicy="Always", startupProbe=ready)
    application = probe(image, name="app", command=["python3", "-c", "import signal; signal.pause()"])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "initContainers": [sidecar],
            "containers": [application],
            "terminationGracePeriodSeconds": 1,
        },
    }


def service(name: str, target: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": target}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def ready(kubectl, namespace: str, name: str, seconds: int = 60) -> None:
    kubectl("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={seconds}s", namespace=namespace)


def names(directory: str) -> set[str]:
    path = Path(directory)
    return {entry.name for entry in path.iterdir()} if path.exists() else set()


def footprint() -> dict[str, set[str]]:
    """What a cluster could leave on the machine, looked at without the testbed's own means."""
    lines = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    tables = {line for line in lines.splitlines() if line.startswith("table")}
    chains = {line.strip() for line in lines.splitlines() if "chain" in line and "CNI" in line}
    return {
        "mounts": {
            line.split(" - ")[0].split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        },
        "interfaces": {name for _, name in socket.if_nameindex()},
        "namespaces": names("/run/netns"),
        "nftables": tables | chains,
        "control groups": {
            directory for directory, _, _ in os.walk("/sys/fs/cgroup") if "rollbook-testbed" in directory
        },
        "files": {
            str(path)
            for root in FOREIGN_PLACES
            for path in Path(root).rglob("*")
            if path.lstat().st_mtime > BEGUN
        },
        "settings": {
            f"{name}={Path('/proc/sys', name).read_text().strip()}"
            for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
        },
    }


def processes_of(testbed: Testbed) -> set[str]:
    """Command lines that mention the testbed's directories."""
    found = set()
    for pid in process_ids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(str(testbed.run_dir) in word or str(testbed.recipe.bin) in word for word in words):
            found.add(" ".join(words))
    return found


def pids(testbed: Testbed) -> dict[str, int]:
    return {name: record.pid for name, record in testbed.running().items()}


# What a cluster is good for


def test_a_pod_with_a_native_sidecar_runs_has_dns_and_can_be_reached(
    cluster, kubectl, namespace, probe_image
):
    # another name than the pod's, which is in its own /etc/hosts
    kubectl.apply(pod("server", probe_image), service("front", "server"), namespace=namespace)
    ready(kubectl, namespace, "server")

    url = "http://front/etc/hostname"
    script = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).read().decode())"
    answer = until(
        lambda: kubectl(
            "exec",
            "server",
            "--container",
            "app",
            "--",
            "python3",
            "-c",
            script,
            namespace=namespace,
            check=False,
        ),
        20,
        "the pod reaches itself by its Service's name",
    )
    assert answer.strip() == "server"
    assert '"GET /etc/hostname' in kubectl("logs", "server", "--container", "sidecar", namespace=namespace)


def test_a_container_can_be_stopped_from_the_node(cluster, kubectl, namespace, probe_image):
    kubectl.apply(pod("server", probe_image), namespace=namespace)
    ready(kubectl, namespace, "server")
    uid = kubectl.json("get", "pod", "server", namespace=namespace)["metadata"]["uid"]
    pid = cluster.node_pid("server", "sidecar", namespace)
    assert cluster.node_pid(uid, "sidecar", namespace) == pid

    def state() -> str:
        status = cluster.node_exec("cat", f"/proc/{pid}/status")
        return next(line.split()[1] for line in status.splitlines() if line.startswith("State:"))

    cluster.host_signal(pid, signal.SIGSTOP)
    until(lambda: state() == "T", 5, "the process is stopped")
    cluster.host_signal(pid, signal.SIGCONT)
    until(lambda: state() == "S", 5, "the process goes on")
    with pytest.raises(ClusterError, match="no container nonsense; it has sidecar, app"):
        cluster.node_pid("server", "nonsense", namespace)
    with pytest.raises(ClusterError, match="no pod nobody"):
        cluster.node_pid("nobody", "app", namespace)


def test_the_apis_logs_are_collected_those_of_a_crash_too(cluster, kubectl, namespace, probe_image, tmp_path):
    manifest = pod("crash", probe_image)
    manifest["spec"]["containers"][0] |= {
        "command": [
            "sh",
            "-c",
            "mkdir /memory/once || exec sleep 600; echo it was me; exit 3",
        ],
        "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
    }
    manifest["spec"]["volumes"] = [{"name": "memory", "emptyDir": {}}]
    manifest["spec"]["securityContext"] = {"fsGroup": 65532}
    kubectl.apply(manifest, namespace=namespace)
    ready(kubectl, namespace, "crash")
    cluster.collect_logs(tmp_path)
    here = tmp_path / "pods" / namespace / "crash"
    assert "it was me" in (here / "app.previous.log").read_text()
    assert (
        "Back-off" in (here / "describe.txt").read_text() or "Started" in (here / "describe.txt").read_text()
    )
    assert "crash" in (tmp_path / "events.txt").read_text()


def test_kubectl_says_why_it_fails(kubectl, namespace):
    with pytest.raises(ClusterError, match='pods "nobody" not found'):
        kubectl("get", "pod", "nobody", namespace=namespace)


def test_simulated_nodes_run_pods(kwok, kubectl, namespace):
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"fake-{namespace}", "labels": {"type": "kwok"}},
        "spec": {"taints": [{"key": "kwok", "effect": "NoSchedule"}]},
    }
    fake = {"nodeName": f"fake-{namespace}", "containers": [{"name": "app", "image": "fake"}]}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fake"}, "spec": fake}
    kubectl.apply(node)
    try:
        kubectl.apply(
            {**manifest, "spec": {**fake, "tolerations": [{"operator": "Exists"}]}}, namespace=namespace
        )
        ready(kubectl, namespace, "fake")
    finally:
        kubectl("delete", "pods", "--all", namespace=namespace)
        kubectl("delete", "node", f"fake-{namespace}")


# What the testbed claims


def test_up_twice_changes_nothing(testbed):
    before = pids(testbed)
    assert set(before) >= {*CONTROL_DAEMONS, *NODE_DAEMONS} - {"kwok"}
    testbed.up("node")
    testbed.up("control")
    assert pids(testbed) == before


@pytest.mark.parametrize("victim", ["kube-apiserver", "kubelet", "containerd", "etcd"])
def test_a_killed_daemon_is_replaced_and_nothing_else(testbed, kubectl, namespace, probe_image, victim):
    kubectl.apply(pod("survivor", probe_image), namespace=namespace)
    ready(kubectl, namespace, "survivor")
    container = testbed.node_pid("survivor", "sidecar", namespace)
    before = pids(testbed)

    os.kill(before[victim], signal.SIGKILL)
    until(lambda: start_time(before[victim]) is None, 5, f"{victim} is gone")
    testbed.up("node")

    after = pids(testbed)
    assert after[victim] != before[victim]
    others = {name for name in before if name not in {victim, "kube-controller-manager", "kube-scheduler"}}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert testbed.node_pid("survivor", "sidecar", namespace) == container
    kubectl.apply(pod("newcomer", probe_image), namespace=namespace)
    ready(kubectl, namespace, "newcomer")


def test_a_daemon_that_hangs_is_replaced(testbed):
    before = pids(testbed)
    os.kill(before["kube-scheduler"], signal.SIGSTOP)
    testbed.up("node")
    after = pids(testbed)
    assert after.pop("kube-scheduler") != before.pop("kube-scheduler")
    assert after == before


def test_everything_killed_at_once_comes_back_with_its_pods(testbed, kubectl, namespace, probe_image):
    kubectl.apply(pod("survivor", probe_image), namespace=namespace)
    ready(kubectl, namespace, "survivor")
    for pid in pids(testbed).values():
        os.kill(pid, signal.SIGKILL)
    testbed.up("node")
    ready(kubectl, namespace, "survivor")
    kubectl.apply(pod("newcomer", probe_image), namespace=namespace)
    ready(kubectl, namespace, "newcomer")


@pytest.mark.parametrize("crashed", [False, True], ids=["down", "down after everything was killed"])
def test_down_leaves_nothing_behind_and_up_brings_the_pods_back(
    own_testbed, kubectl, namespace, probe_image, crashed
):
    kubectl.apply(pod("survivor", probe_image), namespace=namespace)
    ready(kubectl, namespace, "survivor")
    during = footprint()
    assert processes_of(own_testbed)
    assert BRIDGE in during["interfaces"]
    assert any(str(own_testbed.run_dir) in point for point in during["mounts"])
    if crashed:
        for pid in pids(own_testbed).values():
            os.kill(pid, signal.SIGKILL)

    own_testbed.down()

    after = footprint()
    assert processes_of(own_testbed) == set()
    assert not [point for point in after["mounts"] if str(own_testbed.cache) in point]
    assert not [name for name in after["interfaces"] if name == BRIDGE or name.startswith("veth")]
    assert not [table for table in after["nftables"] if "kube-proxy" in table or "CNI" in table]
    assert after["namespaces"] == set()
    assert not [path for path in after["control groups"] if own_testbed.cgroup in path]
    assert during["files"]
    assert after["files"] == set()
    assert own_testbed.leftovers() == []
    own_testbed.down()  # once more does no harm

    own_testbed.up("node")
    ready(kubectl, namespace, "survivor")
    assert footprint()["settings"] == during["settings"]


def test_a_wiped_cluster_has_forgotten_its_objects(own_testbed, kubectl):
    before = footprint()
    kubectl("create", "configmap", "memory", namespace="default")
    own_testbed.down(wipe=True)
    assert not own_testbed.run_dir.exists()
    after = footprint()
    assert {kind: things - before[kind] for kind, things in after.items() if kind != "settings"} == {
        kind: set() for kind in before if kind != "settings"
    }
    own_testbed.up("node")
    assert "memory" not in kubectl("get", "configmaps", "--output", "name", namespace="default")


def test_a_process_id_that_became_somebody_elses_is_left_alone(own_testbed):
    before = pids(own_testbed)
    record = own_testbed.supervisor.records / "kube-scheduler"
    _, *rest = record.read_text().split()
    foreign = subprocess.Popen(["sleep", "60"])
    try:
        os.kill(before["kube-scheduler"], signal.SIGKILL)
        until(lambda: start_time(before["kube-scheduler"]) is None, 5, "the scheduler is gone")
        record.write_text(" ".join([str(foreign.pid), *rest]))
        own_testbed.down()
        assert foreign.poll() is None
        record.parent.mkdir(exist_ok=True)
        record.write_text(" ".join([str(foreign.pid), *rest]))
        own_testbed.up("node")
        assert foreign.poll() is None
        assert pids(own_testbed)["kube-scheduler"] != foreign.pid
    finally:
        foreign.kill()
        foreign.wait()


def test_a_taken_port_is_named_with_its_holder(own_testbed):
    own_testbed.down()
    with (
        socket.create_server(("127.0.0.1", API_PORT)),
        pytest.raises(
            ClusterError,
            match=rf"port {API_PORT}, which kube-apiserver needs, is taken by process {os.getpid()} ",
        ),
    ):
        own_testbed.up("control")
    assert "kube-apiserver" not in pids(own_testbed)


def test_a_foreign_kube_proxy_is_left_alone(own_testbed):
    own_testbed.down()
    subprocess.run(["nft", "add", "table", "ip", "kube-proxy"], check=True)
    try:
        with pytest.raises(ClusterError, match="nftables table `ip kube-proxy` exists"):
            own_testbed.up("node")
        own_testbed.down()
        subprocess.run(["nft", "list", "table", "ip", "kube-proxy"], check=True, capture_output=True)
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "kube-proxy"], check=True)


def test_signals_go_to_containers_only(testbed):
    with pytest.raises(ClusterError, match="not in one of the test cluster's containers"):
        testbed.host_signal(os.getpid(), signal.SIGSTOP)


def test_the_node_has_an_address_that_pods_reach(testbed):
    assert machine.cgroup_trees(testbed.cgroup)
    assert testbed.node_exec("ip", "-brief", "address", "show", BRIDGE).split()[2] == f"{NODE_ADDRESS}/24"


def test_a_rebuild_after_a_change_of_the_sources_is_quick(testbed, tmp_path):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "serve.py").write_text(SERVE)
    testbed.build_images(tmp_path, {IMAGE: "probe"})
    (tmp_path / "serve.py").write_text(SERVE + f"# {time.time()}\n")
    begun = time.monotonic()
    testbed.build_images(tmp_path, {IMAGE: "probe"})
    assert time.monotonic() - begun < 60  # 5 to 10 s; dependencies installed anew take minutes


def test_what_the_machine_lends_to_a_build_is_not_in_the_image(testbed, tmp_path, monkeypatch):
    links = tmp_path / "links"
    links.mkdir()
    context = tmp_path / "context"
    context.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_INDEX_URL", "https://name:secret@index.invalid/simple")
    (context / "Dockerfile").write_text(
        "FROM python:3.11-slim AS seen\n"
        "RUN pip config list | grep -q index.invalid && pip config list | grep -q find-links"
        " && test -d /var/cache/testbed/pip && test -s /etc/ssl/certs/ca-certificates.crt\n"
        "FROM python:3.11-slim AS probe\n"
        "COPY --from=seen /etc/pip.conf /seen/pip.conf\n"
        "COPY --from=seen /var/cache/testbed /seen/cache\n"
        'RUN test ! -s /seen/pip.conf && test -z "$(ls /seen/cache)" && ! env | grep -i ^pip_\n'
    )
    testbed.build_images(context, {IMAGE: "probe"})
