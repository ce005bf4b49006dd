"""The testbed: a one-node Kubernetes made of Go modules and Debian packages, run by root as plain processes.

Nothing is downloaded ready-made and no container engine is needed; `recipe` builds it, `machine` undoes what
it does to the machine, `daemons` keeps its processes. This file knows what runs, in which order, and when it
works.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import ssl
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clusters import logs, machine
from clusters.api import ClusterError, Level, UnsupportedError
from clusters.daemons import Record, Supervisor, boot_id, fingerprint
from clusters.images import canonical
from clusters.recipe import PAUSE_IMAGE, SOURCES, Recipe, cni_directory
from clusters.tools import CommandError, Kubectl, cache_root, locked, run, say, search_path, until, which

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Chosen to collide with nobody: none of them is another program's default, nor in the range of NodePorts or
# of the kernel's ephemeral ports.
API_PORT = 26443
ETCD_PORT = 26379
ETCD_PEER_PORT = 26380
CONTROLLERS_PORT = 26257
SCHEDULER_PORT = 26259
KUBELET_PORT = 26250
KUBELET_HEALTH_PORT = 26248
PROXY_HEALTH_PORT = 26256
PROXY_METRICS_PORT = 26249
DNS_PORT = 26053
DNS_READY_PORT = 26181
KWOK_PORT = 26247

NODE = "node-a"
BRIDGE = "rollbook0"
NETWORK = "rollbook-testbed"
POD_CIDR = "10.244.0.0/24"
NODE_ADDRESS = "10.244.0.1"
SERVICE_CIDR = "10.96.0.0/16"

NODE_DAEMONS = ("kubelet", "coredns", "kube-proxy", "containerd")
CONTROL_DAEMONS = ("kwok", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")

LOCK_WAIT = 1800.0
"""Somebody else's cold build may be going on."""
UNRESPONSIVE_AFTER = 15.0
"""A daemon that runs but does not answer for so long is started anew (it may be stopped, or stuck)."""
# Kubernetes makes sockets in directories of its own names; a socket's path has at most 107 characters.
LONGEST_SOCKET = "kubelet/pod-resources/kubelet.sock"


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process of the cluster: how to start it and how to see that it works."""

    name: str
    argv: list[str]
    ready: Callable[[], bool]
    within: float = 60
    ports: tuple[int, ...] = ()
    configuration: tuple[Path, ...] = ()


class Testbed:
    """The testbed as a test cluster; see `clusters.api.Cluster`."""

    name = "testbed"
    __test__ = False  # pytest: not a class of tests

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or cache_root()
        self.state_dir = self.cache / "testbed"
        self.run_dir = self.state_dir / "run"
        self.recipe = Recipe(self.state_dir, self.cache)
        self.supervisor = Supervisor(self.run_dir / "pid", self.run_dir / "log")
        self.claims = machine.Claims(self.run_dir / "claims.json")
        # the name of the control group that all containers are in says whose they are, beyond doubt
        self.cgroup = f"/rollbook-testbed-{hashlib.sha256(str(self.run_dir).encode()).hexdigest()[:8]}"
        self._tls: ssl.SSLContext | None = None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._pki / "admin.kubeconfig"

    @property
    def bin_dir(self) -> Path:
        """The programs that the recipe built."""
        return self.recipe.bin

    @property
    def _pki(self) -> Path:
        return self.run_dir / "pki"

    @property
    def _conf(self) -> Path:
        return self.run_dir / "conf"

    @property
    def _socket(self) -> Path:
        return self.run_dir / "containerd.sock"

    # Up

    def up(self, level: Level, *, kwok: bool = False) -> None:
        """Build what is missing, then start what does not run and restart what does not answer."""
        self._require_a_fit_machine()
        with self._exclusive("bringing the test cluster up") as lock:
            self.recipe.build(level, kwok=kwok, lock=lock)
            begun = time.monotonic()
            started = self._up(level, kwok=kwok)
        if started:
            took = time.monotonic() - begun
            say(
                f"Kubernetes {self.recipe.kubernetes} is up ({level});"
                f" started {', '.join(started)} in {took:.1f} s"
            )

    def _up(self, level: Level, *, kwok: bool) -> list[str]:
        pki = [str(SOURCES / "pki.sh"), str(self._pki), NODE_ADDRESS, NODE, str(API_PORT)]
        # A cluster survives neither a reboot (etcd does not sync its files) nor another recipe.
        origin = f"{boot_id()} {self.recipe.key} {self.cgroup} {fingerprint(pki, [SOURCES / 'pki.sh'])}"
        note = self.run_dir / "origin"
        if self.run_dir.exists() and not (note.exists() and note.read_text() == origin):
            if self.running():
                say("the cluster that runs was made by another version of the testbed: starting from nothing")
            self._down(wipe=True)
        self.run_dir.mkdir(exist_ok=True)
        note.write_text(origin)
        machine.make_bridge(self.claims, BRIDGE, NODE_ADDRESS, POD_CIDR)
        run(pki, timeout=60)
        started = self._bring_up(self._etcd())
        started += self._bring_up(self._api_server())
        started += self._bring_up(
            self._controller_manager(), self._scheduler(), *([self._kwok()] if kwok else [])
        )
        # what pods need to be admitted
        until(
            lambda: self._ask("/api/v1/namespaces/default/serviceaccounts/default") is not None,
            60,
            "the controller manager makes the default service account",
        )
        if level == "node":
            started += self._node_up()
        return started

    def _node_up(self) -> list[str]:
        begun = time.time()
        machine.claim_proxy_tables(self.claims)
        machine.claim_device_plugins(self.claims)
        machine.set_sysctl(self.claims, "net.ipv4.ip_forward", "1")
        machine.set_sysctl(self.claims, "net.bridge.bridge-nf-call-iptables", "1")
        self.claims.add("cgroup", self.cgroup)
        machine.make_cgroup(self.cgroup)
        self._write_node_configuration()
        started = self._bring_up(self._containerd())
        if PAUSE_IMAGE not in self._ctr("images", "list", "--quiet").split():
            self._ctr("images", "import", str(self.recipe.pause_archive), timeout=60)
        manifest = (self._conf / "node.yaml").read_text()
        applied = self._conf / "node.applied"
        if not applied.exists() or applied.read_text() != manifest:
            Kubectl(self).apply(manifest)
            applied.write_text(manifest)
        started += self._bring_up(self._kubelet(), self._kube_proxy(), self._coredns())
        # what an earlier kubelet said of the node is not good enough
        since = begun if started else 0
        until(
            lambda: self._node_ready(since),
            90,
            f"node {NODE} is Ready (see {self.supervisor.logs}/kubelet.log)",
        )
        return started

    def _node_ready(self, since: float = 0) -> bool:
        answer = self._ask(f"/api/v1/nodes/{NODE}")
        conditions = json.loads(answer)["status"].get("conditions", []) if answer else []
        return any(
            item["type"] == "Ready"
            and item["status"] == "True"
            and datetime.fromisoformat(item["lastHeartbeatTime"]).timestamp() >= int(since)
            for item in conditions
        )

    def _bring_up(self, *daemons: Daemon) -> list[str]:
        """Start those that do not run (as they should), all at once, and wait until all of them work."""
        started = [daemon.name for daemon in daemons if self._ensure_started(daemon)]
        for daemon in daemons:
            if daemon.name not in started and not self._answers(daemon, UNRESPONSIVE_AFTER):
                say(f"{daemon.name} runs but does not answer: starting it anew")
                self.supervisor.stop(daemon.name)
                self._ensure_started(daemon)
                started.append(daemon.name)
        for daemon in daemons:
            if not self._answers(daemon, daemon.within):
                log = self.supervisor.logs / f"{daemon.name}.log"
                how = "does not work" if self.supervisor.find(daemon.name) else "ended"
                raise ClusterError(
                    f"{daemon.name} {how}; the end of {log}:\n{self.supervisor.tail(daemon.name)}"
                )
        return started

    def _ensure_started(self, daemon: Daemon) -> bool:
        wanted = fingerprint(daemon.argv, daemon.configuration)
        record = self.supervisor.find(daemon.name)
        if record is not None and record.recipe == wanted:
            return False
        if record is not None:
            self.supervisor.stop(daemon.name)
        for port in daemon.ports:
            machine.require_port(port, daemon.name)
        self.supervisor.start(daemon.name, daemon.argv, recipe=wanted, env=self._daemon_env)
        return True

    def _answers(self, daemon: Daemon, within: float) -> bool:
        """Whether it works within so many seconds; it may also end."""

        def settled() -> bool:
            return daemon.ready() or self.supervisor.find(daemon.name) is None

        try:
            until(settled, within, daemon.name, interval=0.05)
        except ClusterError:
            return False
        return self.supervisor.find(daemon.name) is not None

    @property
    def _daemon_env(self) -> dict[str, str]:
        # nothing of the caller's: proxies and Go's variables would change how the cluster behaves
        return {"PATH": search_path(self.recipe.bin), "HOME": str(self.run_dir), "LANG": "C.UTF-8"}

    def _require_a_fit_machine(self) -> None:
        if os.geteuid() != 0:
            raise ClusterError("the testbed runs a kubelet and needs root")
        if len(f"{self.run_dir}/{LONGEST_SOCKET}") > 107:
            raise ClusterError(
                f"{self.run_dir} is too long for the sockets in it; set ROLLBOOK_CACHE to a shorter path"
            )
        self.state_dir.mkdir(parents=True, exist_ok=True)
        if machine.file_system_of(self.state_dir.resolve()) == "overlay":
            raise ClusterError(
                f"{self.state_dir} is on an overlay file system, on which images cannot be unpacked;"
                " set ROLLBOOK_CACHE to a directory on a disk"
            )

    def _exclusive(self, purpose: str) -> contextlib.AbstractContextManager[int]:
        return locked(self.state_dir / "lock", purpose=purpose, wait=LOCK_WAIT)

    # The daemons

    def _program(self, name: str) -> str:
        return str(self.recipe.bin / name)

    def _etcd(self) -> Daemon:
        client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PEER_PORT}"
        argv = [
            self._program("etcd"),
            "--name=testbed",
            f"--data-dir={self.run_dir}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=testbed={peer}",
            "--unsafe-no-fsync",  # it need not survive the machine, see _up
            "--log-level=warn",
        ]
        return Daemon(
            "etcd", argv, lambda: _get(f"{client}/readyz") is not None, ports=(ETCD_PORT, ETCD_PEER_PORT)
        )

    def _api_server(self) -> Daemon:
        pki = self._pki
        argv = [
            self._program("kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
            "--bind-address=0.0.0.0",
            f"--secure-port={API_PORT}",
            f"--advertise-address={NODE_ADDRESS}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={pki}/front.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={pki}/front-client.crt",
            f"--proxy-client-key-file={pki}/front-client.key",
            "--max-requests-inflight=800",
            "--max-mutating-requests-inflight=400",
        ]
        return Daemon(
            "kube-apiserver", argv, lambda: self._ask("/readyz") is not None, within=90, ports=(API_PORT,)
        )

    def _controller_manager(self) -> Daemon:
        pki, kubeconfig = self._pki, f"{self._pki}/kube-controller-manager.kubeconfig"
        argv = [
            self._program("kube-controller-manager"),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={CONTROLLERS_PORT}",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials=true",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--leader-elect=false",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--concurrent-deployment-syncs=10",
            f"--flex-volume-plugin-dir={self.run_dir}/kubelet-plugins",  # or it makes one in /usr/libexec
        ]
        probe = f"https://127.0.0.1:{CONTROLLERS_PORT}/healthz"
        return Daemon(
            "kube-controller-manager", argv, lambda: _get(probe) is not None, ports=(CONTROLLERS_PORT,)
        )

    def _scheduler(self) -> Daemon:
        kubeconfig = f"{self._pki}/kube-scheduler.kubeconfig"
        argv = [
            self._program("kube-scheduler"),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={SCHEDULER_PORT}",
            "--leader-elect=false",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]
        probe = f"https://127.0.0.1:{SCHEDULER_PORT}/healthz"
        return Daemon("kube-scheduler", argv, lambda: _get(probe) is not None, ports=(SCHEDULER_PORT,))

    def _kwok(self) -> Daemon:
        argv = kwok_command(self._program("kwok"), self.kubeconfig, NODE_ADDRESS)
        probe = f"http://127.0.0.1:{KWOK_PORT}/healthz"
        return Daemon("kwok", argv, lambda: _get(probe) is not None, ports=(KWOK_PORT,))

    def _containerd(self) -> Daemon:
        configuration = self._conf / "containerd.toml"
        argv = [which("containerd") or "containerd", "--config", str(configuration)]
        return Daemon("containerd", argv, self._containerd_answers, configuration=(configuration,))

    def _containerd_answers(self) -> bool:
        if not self._socket.exists():
            return False
        with contextlib.suppress(ClusterError):
            self._ctr("images", "list", "--quiet", timeout=5)
            return True
        return False

    def _kubelet(self) -> Daemon:
        configuration = self._conf / "kubelet.yaml"
        argv = [
            self._program("kubelet"),
            f"--config={configuration}",
            f"--kubeconfig={self._pki}/kubelet.kubeconfig",
            f"--root-dir={self.run_dir}/kubelet",
            f"--cert-dir={self.run_dir}/kubelet/pki",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
            "--node-labels=testbed/real=true",
        ]
        probe = f"http://127.0.0.1:{KUBELET_HEALTH_PORT}/healthz"
        return Daemon(
            "kubelet",
            argv,
            lambda: _get(probe) is not None,
            ports=(KUBELET_PORT, KUBELET_HEALTH_PORT),
            configuration=(configuration,),
        )

    def _kube_proxy(self) -> Daemon:
        configuration = self._conf / "kube-proxy.yaml"
        argv = [self._program("kube-proxy"), f"--config={configuration}"]
        # livez: healthz is also about the node, which may still be on its way
        probe = f"http://127.0.0.1:{PROXY_HEALTH_PORT}/livez"
        return Daemon(
            "kube-proxy",
            argv,
            lambda: _get(probe) is not None,
            ports=(PROXY_HEALTH_PORT, PROXY_METRICS_PORT),
            configuration=(configuration,),
        )

    def _coredns(self) -> Daemon:
        configuration = self._conf / "Corefile"
        argv = [self._program("coredns"), "-conf", str(configuration)]
        probe = f"http://127.0.0.1:{DNS_READY_PORT}/ready"
        return Daemon(
            "coredns",
            argv,
            lambda: _get(probe) is not None,
            ports=(DNS_PORT, DNS_READY_PORT),
            configuration=(configuration,),
        )

    def _write_node_configuration(self) -> None:
        values = {
            "RUN": str(self.run_dir),
            "RUNC": which("runc") or "runc",
            "CNI_BIN": str(cni_directory()),
            "NODE": NODE,
            "NODE_ADDRESS": NODE_ADDRESS,
            "BRIDGE": BRIDGE,
            "NETWORK": NETWORK,
            "CGROUP": self.cgroup,
            "POD_CIDR": POD_CIDR,
            "KUBELET_PORT": str(KUBELET_PORT),
            "KUBELET_HEALTH_PORT": str(KUBELET_HEALTH_PORT),
            "PROXY_HEALTH_PORT": str(PROXY_HEALTH_PORT),
            "PROXY_METRICS_PORT": str(PROXY_METRICS_PORT),
            "DNS_PORT": str(DNS_PORT),
            "DNS_READY_PORT": str(DNS_READY_PORT),
        }
        (self._conf / "cni").mkdir(parents=True, exist_ok=True)
        for name in ("podlogs", "kubelet-plugins"):
            (self.run_dir / name).mkdir(exist_ok=True)
        for template in sorted((SOURCES / "node").iterdir()):
            text = template.read_text()
            for name, value in values.items():
                text = text.replace(f"@{name}@", value)
            folder = self._conf / "cni" if template.suffix == ".conflist" else self._conf
            _write(folder / template.name, text)
        # the pods' names are CoreDNS's business alone
        _write(self._conf / "resolv.conf", "nameserver 127.0.0.1\n")

    # Asking

    def _ask(self, path: str) -> bytes | None:
        """What the API server answers the administrator, None unless that is a success."""
        if self._tls is None:
            if not (self._pki / "admin.crt").exists():
                return None
            self._tls = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
            self._tls.load_cert_chain(self._pki / "admin.crt", self._pki / "admin.key")
        return _get(f"https://127.0.0.1:{API_PORT}{path}", self._tls)

    def _ctr(self, *args: str, timeout: float = 30) -> str:
        argv = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", *args]
        return run(argv, timeout=timeout).stdout

    def status(self) -> list[str]:
        """The daemons that run, and where things are."""
        running = self.supervisor.running()
        lines = [f"testbed, Kubernetes {self.recipe.kubernetes}, in {self.state_dir}"]
        lines += [
            f"{name}: running, process {running[name].pid}" if name in running else f"{name}: not running"
            for name in (*reversed(CONTROL_DAEMONS), *reversed(NODE_DAEMONS))
        ]
        if "kube-apiserver" in running:
            lines.append(f"API server: {'ready' if self._ask('/readyz') is not None else 'not ready'}")
        if "kubelet" in running:
            lines.append(f"node {NODE}: {'ready' if self._node_ready() else 'not ready'}")
        return lines

    def running(self) -> Mapping[str, Record]:
        """The daemons that run now."""
        return self.supervisor.running()

    # Down

    def down(self, *, wipe: bool = False) -> None:
        """End it all and undo what it did to the machine; objects and images stay unless `wipe`.

        To the pods this is a power failure: with the cluster's next start their controllers bring them back.
        """
        if not self.run_dir.exists():
            return
        if os.geteuid() != 0:
            raise ClusterError("only root can take the testbed down")
        with self._exclusive("taking the test cluster down"):
            self._down(wipe=wipe)

    def _down(self, *, wipe: bool) -> None:
        # the kubelet and containerd first: they would restart what is killed next
        for name in NODE_DAEMONS:
            self.supervisor.stop(name)
        if cgroup := self.claims.get("cgroup"):
            machine.remove_cgroup(str(cgroup))
        machine.remove_shims(self._socket, self.run_dir / "containerd/state")
        for name in CONTROL_DAEMONS:
            # the API server waits for its watchers for a minute when asked nicely
            self.supervisor.stop(name, grace=1 if name == "kube-apiserver" else 5)
        machine.unmount_below(self.run_dir)
        machine.undo_network(self.claims)
        machine.undo_device_plugins(self.claims)
        machine.remove_foreign_traces(self.run_dir / "podlogs", NETWORK, self.run_dir / "containerd")
        if left := self.leftovers():
            raise ClusterError(f"not everything of the test cluster could be removed: {'; '.join(left)}")
        self.claims.clear()
        self._tls = None
        for name in ("containerd/state", "runc", "cni", "pid", "podlogs"):
            machine.remove_tree(self.run_dir / name)
        for path in self.run_dir.glob("containerd.sock*"):
            path.unlink()
        if wipe:
            machine.remove_tree(self.run_dir)
            machine.remove_tree(self.state_dir / "tools")

    def leftovers(self) -> list[str]:
        """What of this cluster is on the machine now, outside of its directory."""
        found = [f"daemon {name} (process {record.pid})" for name, record in self.running().items()]
        recorded = {record.pid for record in self.running().values()}
        found += machine.strays(self.state_dir, {*NODE_DAEMONS, *CONTROL_DAEMONS}, recorded)
        found += [f"shim process {pid}" for pid in machine.shims(self._socket)]
        found += [f"mount {point}" for point in machine.mounts_below(self.run_dir)]
        found += [f"log link {link}" for link in machine.container_log_links(self.run_dir / "podlogs")]
        found += [f"file {path}" for path in machine.cni_results(NETWORK, self.run_dir / "containerd")]
        if cgroup := self.claims.get("cgroup"):
            found += [f"control group {tree}" for tree in machine.cgroup_trees(str(cgroup))]
        found += machine.network_leftovers(self.claims)
        if "device-plugins" in self.claims and machine.DEVICE_PLUGINS.exists():
            found.append(f"socket {machine.DEVICE_PLUGINS}")
        return found

    # Images

    def build_images(self, context: Path, images: Mapping[str, str]) -> dict[str, str]:
        """Build with buildah and import into containerd what has changed."""
        with self._exclusive("building images"):
            if self.supervisor.find("containerd") is None:
                raise ClusterError("images go onto the node: bring the cluster up at level node first")
            if not images:
                return {}
            first, *others = images.items()
            # the first builds the stages that all have in common
            self._put_on_node(context, *first)
            with ThreadPoolExecutor(2) as pool:
                for done in [pool.submit(self._put_on_node, context, *image) for image in others]:
                    done.result()
        return {tag: tag for tag in images}

    def _put_on_node(self, context: Path, tag: str, target: str) -> None:
        begun = time.monotonic()
        buildah = self.recipe.buildah
        buildah.build(context, tag, target)
        if not self._is_on_node(canonical(tag), buildah.image_id(tag)):
            with tempfile.NamedTemporaryFile(dir=buildah.store, suffix=".tar") as archive:
                known = self._ctr("content", "list", "--quiet").split()
                buildah.export(tag, Path(archive.name), known=known)
                try:
                    self._ctr("images", "import", archive.name, timeout=300)
                except CommandError:
                    # containerd may have dropped something just now that no image needed any more
                    buildah.export(tag, Path(archive.name))
                    self._ctr("images", "import", archive.name, timeout=300)
        say(f"image {tag} is on the node after {time.monotonic() - begun:.1f} s")

    def _is_on_node(self, name: str, image_id: str | None) -> bool:
        """Whether containerd means by this name the image with this id (which it lists by its id, too)."""
        lines = self._ctr("images", "list").splitlines()[1:]
        digests = {fields[0]: fields[2] for line in lines if (fields := line.split())}
        return name in digests and digests[name] == digests.get(f"sha256:{image_id}")

    # The node

    def collect_logs(self, dest: Path) -> None:
        """The daemons' logs and everything the API knows."""
        logs.copy_tails(self.supervisor.logs, dest / "daemons")
        (dest / "status.txt").write_text("\n".join(self.status()) + "\n")
        if self.supervisor.find("kube-apiserver"):
            logs.collect(self, dest)

    def node_pid(self, pod: str, container: str, namespace: str) -> int:
        """From containerd's list of tasks; the node is this machine."""
        identity = logs.running_container(Kubectl(self), pod, container, namespace)
        for line in self._ctr("tasks", "list").splitlines()[1:]:
            task, pid, state = line.split()[:3]
            if task == identity and state in {"RUNNING", "PAUSED"}:
                return int(pid)
        raise ClusterError(
            f"containerd has no running task of container {container} of pod {namespace}/{pod}"
        )

    def host_signal(self, pid: int, sig: int) -> None:
        """Signal a process of a container, and no other."""
        descriptor = os.pidfd_open(pid)
        try:
            if not machine.in_cgroup(pid, self.cgroup):
                raise ClusterError(f"process {pid} is not in one of the test cluster's containers")
            signal.pidfd_send_signal(descriptor, sig)
        finally:
            os.close(descriptor)

    def node_exec(self, *argv: str, timeout: float = 30) -> str:
        """The node is this machine."""
        if self.supervisor.find("kubelet") is None:
            raise UnsupportedError("the testbed has no node now: bring it up at level node first")
        return run(argv, timeout=timeout).stdout


def kwok_command(program: str, kubeconfig: Path, node_address: str) -> list[str]:
    """How kwok is run: it simulates the nodes labelled `type=kwok`."""
    return [
        program,
        f"--kubeconfig={kubeconfig}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-label-selector=type=kwok",
        f"--node-ip={node_address}",
        "--cidr=10.200.0.0/16",
        "--node-lease-duration-seconds=40",  # a machine that pauses must not lose its nodes
        f"--server-address=127.0.0.1:{KWOK_PORT}",
    ]


def _write(path: Path, text: str) -> None:
    """Write a file that differs: kube-proxy ends when its own is touched."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _get(url: str, tls: ssl.SSLContext | None = None) -> bytes | None:
    """The body of a successful answer on loopback, None otherwise."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # their own certificates, made at each start; on loopback nothing but their health is asked
        unverified = ssl._create_unverified_context() if tls is None else tls
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=5, context=unverified)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.read() if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
