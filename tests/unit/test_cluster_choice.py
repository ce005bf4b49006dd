"""The test cluster's driver without a cluster: which one is chosen, which processes are its own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import ClusterError, UnavailableError, choose, until
from clusters.daemons import Record, Supervisor, boot_id, fingerprint, kill_all, start_time
from clusters.images import INSIDE, canonical, lend, pip_settings
from clusters.kind import Kind
from clusters.kubeconfig import OwnCluster
from clusters.machine import Claims, Mount, require_port
from clusters.recipe import SOURCES, Recipe
from clusters.tools import CommandError, Kubectl, cache_root, locked, run, tool_env

linux = pytest.mark.skipif(sys.platform != "linux", reason="about /proc, which is Linux'")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLLBOOK_CACHE", str(tmp_path / "cache"))


# Which cluster


@dataclasses.dataclass
class Machine:
    """A machine as the choice sees it: a Debian with root and Go, unless said otherwise."""

    programs: frozenset[str] = frozenset({"go", "kubectl", "helm"})
    docker: bool = False
    is_linux: bool = True
    debian: bool = True
    is_root: bool = True
    config: Path | None = None

    def installed(self, program):
        return program in self.programs

    def docker_answers(self):
        return self.docker

    def linux(self):
        return self.is_linux

    def debian_family(self):
        return self.debian

    def root(self):
        return self.is_root

    def kubeconfig(self):
        return self.config


BARE = Machine()
KIND = Machine(programs=frozenset({"kind", "kubectl", "helm"}), docker=True)
LAPTOP = Machine(
    programs=frozenset({"docker", "kind", "kubectl", "helm"}), is_linux=False, debian=False, is_root=False
)
CONFIG = Path("/home/somebody/.kube/config")


@pytest.mark.parametrize(
    ("wanted", "machine", "chosen"),
    [
        (None, BARE, "testbed"),
        ("", BARE, "testbed"),
        ("auto", BARE, "testbed"),
        ("auto", dataclasses.replace(BARE, programs=frozenset({"go"})), "testbed"),
        ("auto", dataclasses.replace(BARE, programs=frozenset({"go", "docker", "kind"})), "testbed"),
        ("auto", dataclasses.replace(BARE, config=CONFIG), "testbed"),
        ("auto", KIND, "kind"),
        ("auto", dataclasses.replace(KIND, config=CONFIG), "kind"),
        ("auto", dataclasses.replace(LAPTOP, docker=True), "kind"),
        ("kind", KIND, "kind"),
        ("testbed", BARE, "testbed"),
        ("testbed", dataclasses.replace(BARE, docker=True), "testbed"),
        ("kubeconfig", dataclasses.replace(BARE, config=CONFIG), "kubeconfig"),
    ],
)
def test_the_cluster_that_is_chosen(wanted, machine, chosen):
    environ = {} if wanted is None else {"ROLLBOOK_CLUSTER": wanted}
    assert choose(environ, machine).name == chosen


@pytest.mark.parametrize(
    ("wanted", "machine", "said"),
    [
        ("none", BARE, "no cluster, as ROLLBOOK_CLUSTER=none says"),
        (
            "auto",
            dataclasses.replace(KIND, programs=frozenset({"go"})),
            "kind needs the program kind, the program kubectl",
        ),
        (
            "auto",
            dataclasses.replace(KIND, programs=frozenset({"kind", "kubectl"})),
            "kind needs the program helm",
        ),
        ("auto", LAPTOP, "kind needs a Docker engine that answers"),
        (
            "auto",
            dataclasses.replace(BARE, is_root=False),
            "testbed needs root, or else a Docker engine and kind",
        ),
        (
            "auto",
            dataclasses.replace(BARE, programs=frozenset()),
            "testbed needs the Go toolchain (go), or else",
        ),
        ("auto", dataclasses.replace(BARE, debian=False), "kind needs a Docker engine that answers"),
        ("auto", dataclasses.replace(LAPTOP, config=CONFIG), "kind needs a Docker engine that answers"),
        ("kind", BARE, "kind needs a Docker engine that answers, the program kind"),
        ("testbed", LAPTOP, "testbed needs Linux, Debian or a relative of it, root, the Go toolchain (go)"),
        ("kubeconfig", BARE, "kubeconfig needs a kubeconfig file (KUBECONFIG or ~/.kube/config)"),
        (
            "kubeconfig",
            Machine(programs=frozenset(), config=CONFIG),
            "kubeconfig needs the program kubectl, the program helm",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(wanted, machine, said):
    with pytest.raises(UnavailableError) as raised:
        choose({"ROLLBOOK_CLUSTER": wanted}, machine)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_value_that_means_nothing_is_an_error_and_not_a_reason_to_skip():
    with pytest.raises(ClusterError) as raised:
        choose({"ROLLBOOK_CLUSTER": "minikube"}, BARE)
    assert not isinstance(raised.value, UnavailableError)
    assert str(raised.value) == (
        "ROLLBOOK_CLUSTER='minikube' means nothing; accepted are auto, kind, testbed, kubeconfig, none"
    )


def test_the_cache_is_in_the_home_directory_unless_it_is_put_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ROLLBOOK_CACHE")
    assert cache_root() == tmp_path / ".cache/rollbook"
    monkeypatch.setenv("ROLLBOOK_CACHE", "~/elsewhere")
    assert cache_root() == tmp_path / "elsewhere"
    monkeypatch.setenv("ROLLBOOK_CACHE", "elsewhere")
    with pytest.raises(ClusterError, match="ROLLBOOK_CACHE='elsewhere': an absolute path is needed"):
        cache_root()


# Whose process


@pytest.fixture
def supervisor(tmp_path):
    supervisor = Supervisor(tmp_path / "pid", tmp_path / "log")
    yield supervisor
    for name in supervisor.running():
        supervisor.stop(name, grace=0)


@pytest.fixture
def foreign():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def start(supervisor, name="sleeper", *argv):
    supervisor.start(name, argv or ["sleep", "60"], recipe="r1", env={"PATH": os.environ["PATH"]})
    return supervisor.find(name)


@linux
def test_a_daemon_is_found_by_its_record_and_ended(supervisor):
    record = start(supervisor)
    assert record == Supervisor(supervisor.records, supervisor.logs).find("sleeper")
    assert record.recipe == "r1"
    assert os.getsid(record.pid) == record.pid  # it does not go with our terminal
    assert start_time(record.pid) == record.started
    supervisor.stop("sleeper")
    assert start_time(record.pid) is None
    assert supervisor.running() == {}


@linux
def test_what_a_daemon_prints_is_in_its_log(supervisor):
    start(supervisor, "talker", "sh", "-c", "echo hello; echo trouble >&2")
    until(lambda: supervisor.find("talker") is None, 5, "it ended")
    assert supervisor.tail("talker").splitlines() == ["hello", "trouble"]


@linux
@pytest.mark.parametrize("lie", ["start time", "boot"])
def test_a_process_with_a_recorded_id_that_is_not_the_recorded_process_is_left_alone(
    supervisor, foreign, lie
):
    started, boot = start_time(foreign.pid), boot_id()
    assert started is not None
    record = Record(foreign.pid, *((started - 1, boot) if lie == "start time" else (started, "another")), "r")
    supervisor.records.mkdir()
    path = supervisor.records / "daemon"
    path.write_text(" ".join(map(str, dataclasses.astuple(record))))
    supervisor.stop("daemon")
    assert foreign.poll() is None
    assert not path.exists()
    path.write_text(" ".join(map(str, dataclasses.astuple(record))))
    assert supervisor.find("daemon") is None
    assert supervisor.running() == {}
    assert foreign.poll() is None


@linux
@pytest.mark.parametrize("text", ["", "123", "x 1 boot r", "1 2 3"])
def test_a_damaged_record_is_no_record(supervisor, text):
    supervisor.records.mkdir()
    (supervisor.records / "daemon").write_text(text)
    assert supervisor.find("daemon") is None
    supervisor.stop("daemon")


@linux
def test_a_stopped_daemon_is_ended_too(supervisor):
    record = start(supervisor)
    os.kill(record.pid, signal.SIGSTOP)
    supervisor.stop("sleeper", grace=5)
    assert start_time(record.pid) is None


@linux
def test_a_daemon_that_ignores_the_request_is_killed(supervisor):
    record = start(supervisor, "stubborn", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
    until(lambda: "ready" in supervisor.tail("stubborn"), 5, "it ignores TERM")
    supervisor.stop("stubborn", grace=0.1)
    assert start_time(record.pid) is None


@linux
def test_a_zombie_does_not_run():
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert start_time(zombie.pid) is None
    finally:
        zombie.wait()


@linux
def test_a_name_with_parentheses_and_spaces_confuses_nobody(tmp_path):
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        until(lambda: "a)" in Path(f"/proc/{process.pid}/comm").read_text(), 5, "it runs")
        assert isinstance(start_time(process.pid), int)
        process.kill()


@linux
def test_only_processes_that_are_asked_about_again_are_killed(foreign):
    kill_all([foreign.pid], lambda pid: pid != foreign.pid)
    assert foreign.poll() is None
    kill_all([foreign.pid], lambda pid: pid == foreign.pid)
    assert foreign.wait() == -signal.SIGKILL


def test_another_configuration_is_another_fingerprint(tmp_path):
    file = tmp_path / "file"
    file.write_text("a")
    before = fingerprint(["x", "y"], [file])
    assert before == fingerprint(["x", "y"], [file])
    assert before != fingerprint(["xy"], [file])
    file.write_text("b")
    assert before != fingerprint(["x", "y"], [file])


@linux
def test_a_claim_is_kept_with_its_first_value_for_this_boot_only(tmp_path):
    claims = Claims(tmp_path / "claims.json")
    assert "bridge" not in claims
    claims.add("sysctl", "0")
    claims.add("sysctl", "1")
    claims.add("bridge")
    assert (Claims(claims.path).get("sysctl"), "bridge" in claims) == ("0", True)
    claims.path.write_text(json.dumps({"boot": "another", "bridge": True}))
    assert "bridge" not in claims
    claims.path.write_text("{")
    assert "bridge" not in claims
    claims.clear()
    assert not claims.path.exists()


@linux
def test_a_taken_port_is_named_with_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ClusterError, match=rf"port {port}, which etcd needs, is taken by process {os.getpid()} \("
        ):
            require_port(port, "etcd")
    require_port(port, "etcd")


def test_a_mount_point_with_a_space_is_read():
    mount = Mount(r"36 35 98:0 /mnt1 /a\040b rw,noatime master:1 - ext3 /dev/root rw")
    assert (mount.point, mount.kind) == (Path("/a b"), "ext3")


# Locks


def test_a_lock_names_its_holder_and_outlives_it_in_what_it_started(tmp_path):
    path = tmp_path / "lock"
    with locked(path, purpose="building", wait=0) as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
        with pytest.raises(
            ClusterError, match=rf"in use by pid {os.getpid()} \(building\); testing has to wait"
        ):
            locked(path, purpose="testing", wait=0).__enter__()
    with pytest.raises(ClusterError, match="in use by another process"):
        locked(path, purpose="testing", wait=0).__enter__()
    child.kill()
    child.wait()
    with locked(path, purpose="testing", wait=0):
        pass


# Images


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("rollbook/registry:dev", "docker.io/rollbook/registry:dev"),
        ("rollbook/registry", "docker.io/rollbook/registry:latest"),
        ("python:3.11-slim", "docker.io/library/python:3.11-slim"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("localhost/a", "localhost/a:latest"),
        ("host:5000/a/b:1", "host:5000/a/b:1"),
        ("host:5000/a/b", "host:5000/a/b:latest"),
        ("a/b@sha256:00", "docker.io/a/b@sha256:00"),
    ],
)
def test_an_images_full_name_is_the_kubelets(reference, full):
    assert canonical(reference) == full


def test_pip_finds_packages_in_a_build_as_it_does_on_the_machine(tmp_path):
    links, certificate = tmp_path / "wheels", tmp_path / "ca.pem"
    links.mkdir()
    certificate.touch()
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        f"[global]\ncert = {certificate}\nindex_url = https://configured.invalid\nrequire-virtualenv = true\n"
        "[install]\nretries = 9\nuser = true\n"
    )
    environ = {
        "PIP_INDEX_URL": "https://name:100%25@preferred.invalid/simple",
        "PIP_FIND_LINKS": f"{links} https://links.invalid",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_TARGET": "/somewhere",
    }
    settings = pip_settings(environ, [tmp_path / "missing", configuration])
    assert settings == {
        "cert": str(certificate),
        "index-url": "https://name:100%25@preferred.invalid/simple",
        "retries": "9",
        "find-links": f"{links} https://links.invalid",
    }
    text, mounts = lend(settings, tmp_path / "cache")
    assert text.splitlines() == [
        "[global]",
        f"cache-dir = {INSIDE}/pip",
        f"cert = {INSIDE}/cert-0",
        "index-url = https://name:100%25@preferred.invalid/simple",
        "retries = 9",
        f"find-links = {INSIDE}/find-links-0",
        " https://links.invalid",
    ]
    assert mounts == [
        (tmp_path / "cache", INSIDE),
        (certificate, INSIDE / "cert-0"),
        (links, INSIDE / "find-links-0"),
    ]


def test_another_recipe_is_another_directory(tmp_path):
    sources = tmp_path / "sources"
    for name in ("kube/go.mod", "dns/go.mod", "image/base.sh"):
        (sources / name).parent.mkdir(parents=True)
        (sources / name).write_bytes((SOURCES / name).read_bytes())

    def key() -> str:
        return Recipe(tmp_path, tmp_path, sources).key

    before = key()
    assert before == key()
    assert before.startswith("1.34.")
    (sources / "image/base.sh").write_text("echo other\n")
    assert key() != before
    (sources / "kube/go.mod").write_text("module x\n")
    with pytest.raises(ClusterError, match=r"go\.mod does not require k8s\.io/kubernetes vX\.Y\.Z"):
        key()


# Programs


def test_a_program_that_fails_says_why():
    with pytest.raises(CommandError, match="sh -c echo broken >&2; exit 3: exit status 3: broken"):
        run(["sh", "-c", "echo broken >&2; exit 3"])
    with pytest.raises(CommandError, match="no-such-program: not found"):
        run(["no-such-program"])
    with pytest.raises(CommandError, match=r"took longer than 0.1 s: so far"):
        run(["sh", "-c", "echo so far; exec sleep 60"], timeout=0.1)
    assert run(["cat"], input="through").stdout == "through"


def test_waiting_names_what_did_not_happen():
    assert until(lambda: "done", 0, "nothing") == "done"
    with pytest.raises(ClusterError, match="the sky falls: not within 0 s"):
        until(lambda: False, 0, "the sky falls")


FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$FAKE_LOG"
state=$FAKE_STATE
case "$(basename "$0") $*" in
  "kind get clusters") cat "$state/clusters" 2>/dev/null; exit 0;;
  "kind create cluster "*) echo somebodys >> "$state/clusters"; echo rollbook-test >> "$state/clusters"
     : > "$(echo "$*" | sed 's/.*--kubeconfig //')";;
  "kind delete cluster "*) rm "$state/clusters";;
  "docker start "*) test ! -e "$state/broken";;
  "docker exec "*crictl*) echo 4711;;
  "docker inspect "*) echo running;;
  *"get pods"*) cat "$state/pods.json";;
  "kubectl config view"*) echo "context of $(cat "$state/context")";;
  *"config current-context"*) cat "$KUBECONFIG";;
esac
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """kind, docker, kubectl and helm that write down how they were called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("kind", "docker", "kubectl", "helm"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls"))
    monkeypatch.setenv("FAKE_STATE", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "the-users-own"))
    monkeypatch.setenv("HELM_KUBECONTEXT", "production")

    def calls() -> list[str]:
        log = tmp_path / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return calls


def test_kind_has_a_cluster_and_a_kubeconfig_of_its_own(fakes, tmp_path):
    kind = Kind()
    kind.up("node")
    own = f"--name rollbook-test --kubeconfig {kind.kubeconfig}"
    assert fakes() == ["kind get clusters", "kind get clusters", f"kind create cluster --wait 180s {own}"]
    kind.up("node")
    assert f"kind export kubeconfig {own}" in fakes()
    assert kind.build_images(tmp_path, {"rollbook/registry:dev": "registry"}) == {
        "rollbook/registry:dev": "rollbook/registry:dev"
    }
    assert fakes() == [
        f"docker build --target registry --tag rollbook/registry:dev {tmp_path}",
        "kind load docker-image rollbook/registry:dev --name rollbook-test",
    ]
    assert not (tmp_path / "the-users-own").exists()
    kind.down()
    assert fakes()[-1] == f"kind delete cluster {own}"
    assert not kind.kubeconfig.exists()


def test_a_kind_cluster_that_does_not_come_back_is_made_anew(fakes, tmp_path):
    kind = Kind()
    kind.up("node")
    (tmp_path / "broken").touch()
    fakes()
    kind.up("node")
    assert [call.split(" --")[0] for call in fakes()] == [
        "kind get clusters",
        "docker start rollbook-test-control-plane",
        "kind get clusters",
        "kind delete cluster",
        "kind create cluster",
    ]


def test_kinds_processes_are_signalled_in_its_node(fakes, tmp_path):
    kind = Kind()
    kind.up("node")
    status = [{"name": "sidecar", "state": {"running": {}}, "containerID": "containerd://0815"}]
    pod = {"metadata": {"name": "orders", "uid": "u-1"}, "status": {"initContainerStatuses": status}}
    (tmp_path / "pods.json").write_text(json.dumps({"items": [pod]}))
    assert kind.node_pid("u-1", "sidecar", "shop") == 4711
    assert fakes()[-1].endswith("crictl inspect --output go-template --template {{.info.pid}} 0815")
    kind.host_signal(4711, signal.SIGSTOP)
    assert fakes() == [f"docker exec rollbook-test-control-plane kill -{int(signal.SIGSTOP)} 4711"]
    with pytest.raises(ClusterError, match="pod shop/orders has no container nonsense; it has sidecar"):
        kind.node_pid("orders", "nonsense", "shop")
    status[0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    (tmp_path / "pods.json").write_text(json.dumps({"items": [pod]}))
    with pytest.raises(ClusterError, match=r"does not run: .*CrashLoopBackOff"):
        kind.node_pid("orders", "sidecar", "shop")


def test_a_context_that_was_chosen_stays_when_the_user_switches(fakes, tmp_path):
    (tmp_path / "context").write_text("staging")
    cluster = OwnCluster()
    cluster.up("control")
    (tmp_path / "context").write_text("production")
    assert cluster.kubeconfig.read_text() == "context of staging\n"
    assert cluster.kubeconfig.stat().st_mode & 0o077 == 0
    with pytest.raises(ClusterError, match="ROLLBOOK_IMAGE_REGISTRY must name one"):
        cluster.build_images(tmp_path, {"rollbook/registry:dev": "registry"})
    with pytest.raises(ClusterError, match="kubeconfig has no access to nodes"):
        cluster.node_pid("pod", "container", "namespace")
    fakes()
    cluster.down(wipe=True)
    assert not any(call.startswith("kubectl") for call in fakes())


def test_the_tools_get_the_test_clusters_settings_and_nobody_elses(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")
    cluster = Kind()
    cluster.up("node")
    env = tool_env(cluster)
    assert env["KUBECONFIG"] == str(cluster.kubeconfig)
    assert "HELM_KUBECONTEXT" not in env
    assert "HTTPS_PROXY" not in env
    assert env["HELM_CONFIG_HOME"].startswith(str(cluster.state_dir))
    fakes()
    (tmp_path / "pods.json").write_text('{"items": []}')
    assert Kubectl(cluster).json("get", "pods", namespace="shop") == {"items": []}
    assert fakes() == [f"kubectl --kubeconfig {cluster.kubeconfig} --namespace shop get pods --output json"]


def test_the_command_line_says_what_is_wrong(tmp_path):
    repository = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(repository / "tests/cluster"), "ROLLBOOK_CLUSTER": "minikube"}
    done = subprocess.run(
        [sys.executable, "-m", "clusters", "status"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "ROLLBOOK_CLUSTER='minikube' means nothing; accepted are auto, kind, testbed, kubeconfig, none\n"
    )
