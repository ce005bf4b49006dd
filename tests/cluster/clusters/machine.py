"""What a node changes on the machine it runs on, and how all of that is undone.

Two rules keep foreign clusters safe. What can carry our name or lie under our directory does (control groups,
mounts, sockets, network namespaces, CNI results). What cannot (kube-proxy's nftables tables, sysctls) and the
bridge are claimed in a file before they are touched; what exists without a claim is somebody else's and an
error, never taken over and never removed.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusters.api import ClusterError
from clusters.daemons import boot_id, command_line, kill_all, process_ids
from clusters.tools import run, until, which

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
CONTAINER_LOG_LINKS = Path("/var/log/containers")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins/kubelet.sock")
CNI_RESULTS = Path("/var/lib/cni/results")
SYSCTLS = ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables")
SHIM_SOCKETS = Path("/run/containerd/s")
_LISTENING = "0A"


class Claims:
    """What of the machine is ours to undo, by this boot; written before it is done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        # a reboot has undone everything
        return data if isinstance(data, dict) and data.get("boot") == boot_id() else {}

    def __contains__(self, what: str) -> bool:
        return what in self._read()

    def get(self, what: str) -> Any:
        """The value noted with a claim, None without one."""
        return self._read().get(what)

    def add(self, what: str, value: Any = True) -> None:
        """Note a claim; the value of an earlier one stays."""
        claims = self._read()
        if what in claims:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(claims | {"boot": boot_id(), what: value}))
        new.replace(self.path)

    def clear(self) -> None:
        """Forget all: everything is undone."""
        self.path.unlink(missing_ok=True)


# Ports


def require_port(port: int, owner: str) -> None:
    """Make sure that a daemon will be able to listen.

    Raises:
        ClusterError: somebody else does, and who that is.
    """
    if _free(port):
        return
    if holder := port_holder(port):
        raise ClusterError(f"port {port}, which {owner} needs, is taken by {holder}")
    # a process that is being killed no longer shows what it holds, until it lets go of it
    until(lambda: _free(port), 5, f"port {port}, which {owner} needs, is given back by whoever holds it")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True


def port_holder(port: int) -> str | None:
    """Which process listens on a TCP port."""
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == _LISTENING:
                sockets.add(f"socket:[{fields[9]}]")
    for pid in process_ids():
        with contextlib.suppress(OSError):
            if any(str(entry.readlink()) in sockets for entry in Path(f"/proc/{pid}/fd").iterdir()):
                return f"process {pid} ({' '.join(command_line(pid))[:80]})"
    return None


# Network


def make_bridge(claims: Claims, name: str, address: str, network: str) -> None:
    """Make the bridge that pods are attached to; its address is the node's."""
    wanted = ipaddress.ip_network(network)
    for route in json.loads(run(["ip", "-json", "-4", "route", "show"]).stdout or "[]"):
        destination = route["dst"]
        if route.get("dev") != name and destination != "default":
            # a wider route (a company's 10.0.0.0/8, say) goes on working for everything else
            present = ipaddress.ip_network(destination)
            if isinstance(present, ipaddress.IPv4Network) and present.subnet_of(wanted):  # type: ignore[arg-type]
                raise ClusterError(
                    f"the pods' network {network} is in use: {destination} is routed to {route['dev']}"
                )
    exists = _has_interface(name)
    if exists and "bridge" not in claims:
        raise ClusterError(
            f"network interface {name} exists though this test cluster did not make it;"
            f" `ip link delete {name}` if nobody uses it"
        )
    claims.add("bridge", name)
    if not exists:
        run(["ip", "link", "add", name, "type", "bridge"])
    run(["ip", "address", "replace", f"{address}/{wanted.prefixlen}", "dev", name])
    run(["ip", "link", "set", name, "up"])


def _has_interface(name: str) -> bool:
    return any(present == name for _, present in socket.if_nameindex())


def claim_proxy_tables(claims: Claims) -> None:
    """Make sure that no other kube-proxy works on this machine, before ours does."""
    present = [f"{family} {name}" for family, name in PROXY_TABLES if _table_exists(family, name)]
    if present and "nftables" not in claims:
        raise ClusterError(
            f"the nftables table `{present[0]}` exists: another kube-proxy runs on this machine,"
            f" or has not cleaned up (then `nft delete table {present[0]}`)"
        )
    claims.add("nftables")


def _table_exists(family: str, name: str) -> bool:
    nft = which("nft")
    return nft is not None and run([nft, "list", "table", family, name], check=False).returncode == 0


def set_sysctl(claims: Claims, name: str, value: str) -> None:
    """Set a kernel parameter and remember what it was."""
    path = Path("/proc/sys", *name.split("."))
    if not path.exists() and name.startswith("net.bridge."):
        run(["modprobe", "br_netfilter"], check=False)
    try:
        old = path.read_text().strip()
    except OSError as error:
        raise ClusterError(f"this kernel has no {name}, which pods' networking needs: {error}") from None
    if old != value:
        claims.add(f"sysctl {name}", old)
        path.write_text(value)


def undo_network(claims: Claims) -> None:
    """Remove what `make_bridge`, kube-proxy and `set_sysctl` made, by their claims."""
    if "nftables" in claims:
        for family, name in PROXY_TABLES:
            if _table_exists(family, name):
                run(["nft", "delete", "table", family, name])
    bridge = claims.get("bridge")
    if bridge and _has_interface(bridge):
        run(["ip", "link", "delete", str(bridge)])
    for name in SYSCTLS:
        old = claims.get(f"sysctl {name}")
        path = Path("/proc/sys", *name.split("."))
        if old is not None and path.exists():
            path.write_text(str(old))


def network_leftovers(claims: Claims) -> list[str]:
    """What `undo_network` would undo."""
    found = []
    if "nftables" in claims:
        found += [
            f"nftables table {family} {name}" for family, name in PROXY_TABLES if _table_exists(family, name)
        ]
    bridge = claims.get("bridge")
    if bridge and _has_interface(bridge):
        found.append(f"network interface {bridge}")
    for name in SYSCTLS:
        old = claims.get(f"sysctl {name}")
        path = Path("/proc/sys", *name.split("."))
        if old is not None and path.exists() and path.read_text().strip() != old:
            found.append(f"changed {name}")
    return found


# Control groups


def cgroup_roots() -> list[Path]:
    """Where the hierarchies of control groups are mounted: one with v2, one a controller with v1."""
    roots = []
    for mount in _mounts():
        if mount.kind in {"cgroup", "cgroup2"} and mount.point not in roots:
            roots.append(mount.point)
    return roots


def make_cgroup(name: str) -> None:
    """Make the tree that all containers will be in. The kubelet insists that it exists."""
    for root in cgroup_roots():
        directory = root / name.strip("/")
        if (root / "cgroup.controllers").exists():
            # v2: children get the controllers that their parent passes on
            for controller in (root / "cgroup.controllers").read_text().split():
                with contextlib.suppress(OSError):
                    (root / "cgroup.subtree_control").write_text(f"+{controller}")
        directory.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # v1: a new cpuset is empty, and nothing can run in an empty one
            if (
                (root / setting).exists()
                and (directory / setting).exists()
                and not (root / "cgroup.controllers").exists()
            ):
                (directory / setting).write_text((root / setting).read_text())


def cgroup_trees(name: str) -> list[Path]:
    """Where that tree exists now."""
    return [tree for root in cgroup_roots() if (tree := root / name.strip("/")).is_dir()]


def cgroup_processes(name: str) -> set[int]:
    """All processes in that tree."""
    pids: set[int] = set()
    for tree in cgroup_trees(name):
        for directory, _, _ in os.walk(tree):
            with contextlib.suppress(OSError):
                pids.update(map(int, (Path(directory) / "cgroup.procs").read_text().split()))
    return pids


def in_cgroup(pid: int, name: str) -> bool:
    """Whether a process is in that tree."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any((line.split(":", 2)[2] + "/").startswith(name + "/") for line in lines)


def remove_cgroup(name: str) -> None:
    """Kill everything in that tree and remove it."""
    for _ in range(20):  # what is killed may be forking
        pids = cgroup_processes(name)
        if not pids:
            break
        kill_all(pids, lambda pid: in_cgroup(pid, name))
    for tree in cgroup_trees(name):
        for directory, _, _ in os.walk(tree, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


# Containers


def shims(containerd_socket: Path) -> list[int]:
    """The processes that stand between our containerd and its containers; they outlive it."""
    return [pid for pid in process_ids() if _is_shim(pid, containerd_socket)]


def _is_shim(pid: int, containerd_socket: Path) -> bool:
    argv = command_line(pid)
    return bool(argv) and "containerd-shim" in argv[0] and str(containerd_socket) in argv


def remove_shims(containerd_socket: Path, state: Path) -> None:
    """End the shims, and unlink their sockets, which are outside of containerd's directory."""
    kill_all(shims(containerd_socket), lambda pid: _is_shim(pid, containerd_socket))
    for note in state.glob("io.containerd.runtime.v2.task/*/*/address"):
        address = note.read_text().strip()
        path = Path(address.removeprefix("unix://"))
        if path.parent == SHIM_SOCKETS:
            path.unlink(missing_ok=True)


def claim_device_plugins(claims: Claims) -> None:
    """Make sure that no other kubelet works on this machine: the place of this socket is the same for all."""
    if "device-plugins" not in claims:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(DEVICE_PLUGINS))
            raise ClusterError(f"another kubelet runs on this machine: {DEVICE_PLUGINS} answers")
    claims.add("device-plugins")


def undo_device_plugins(claims: Claims) -> None:
    """Remove that socket, and the directories that the kubelet made for it."""
    if "device-plugins" in claims:
        DEVICE_PLUGINS.unlink(missing_ok=True)
        for directory in (DEVICE_PLUGINS.parent, DEVICE_PLUGINS.parent.parent):
            with contextlib.suppress(OSError):
                directory.rmdir()


def remove_foreign_traces(pod_logs: Path, network: str, containerd: Path) -> None:
    """Remove the few files that kubelet, CNI and containerd insist on keeping at places of their own."""
    for trace in [*container_log_links(pod_logs), *cni_results(network, containerd)]:
        trace.unlink(missing_ok=True)
    for directory in (
        CONTAINER_LOG_LINKS,
        CNI_RESULTS,
        CNI_RESULTS.parent,
        SHIM_SOCKETS,
        SHIM_SOCKETS.parent,
    ):
        with contextlib.suppress(OSError):  # gone, or in use by others
            directory.rmdir()


def cni_results(network: str, containerd: Path) -> list[Path]:
    """What CNI remembers of our pods' networks, and of their loopback interfaces."""
    results = list(CNI_RESULTS.glob(f"{network}-*"))
    for sandbox in containerd.glob("*/io.containerd.grpc.v1.cri/sandboxes/*"):
        results += CNI_RESULTS.glob(f"cni-loopback-{sandbox.name}-*")
    return results


def container_log_links(pod_logs: Path) -> list[Path]:
    """The kubelet's links to our pods' logs."""
    links = CONTAINER_LOG_LINKS.iterdir() if CONTAINER_LOG_LINKS.is_dir() else ()
    return [link for link in links if link.is_symlink() and link.readlink().is_relative_to(pod_logs)]


def strays(directory: Path, programs: Collection[str], recorded: Collection[int]) -> list[str]:
    """Daemons made of programs in a directory that no record knows: somebody has removed the records."""
    found = []
    for pid in set(process_ids()).difference(recorded):
        argv = command_line(pid)
        program = Path(argv[0]) if argv else Path()
        if program.name in programs and any(str(directory) in word for word in argv):
            found.append(f"process {pid} ({program}), which has no record; end it with `kill {pid}`")
    return found


# Mounts


class Mount:
    """One line of /proc/self/mountinfo."""

    def __init__(self, line: str) -> None:
        before, _, behind = line.partition(" - ")
        self.point = Path(_unescape(before.split()[4]))
        self.kind = behind.split()[0]


def _unescape(field: str) -> str:
    # spaces and the like are written as \040
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _mounts() -> Iterator[Mount]:
    return map(Mount, Path("/proc/self/mountinfo").read_text().splitlines())


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at and under a directory, the last mounted first."""
    return [mount.point for mount in _mounts() if mount.point.is_relative_to(directory)][::-1]


def unmount_below(directory: Path) -> None:
    """Unmount everything at and under a directory; what is busy is detached."""
    for point in mounts_below(directory):
        if run(["umount", str(point)], check=False).returncode:
            run(["umount", "--lazy", str(point)], check=False)


def file_system_of(path: Path) -> str:
    """The type of the file system that a directory is on."""
    best = max(
        (mount for mount in _mounts() if path.is_relative_to(mount.point)),
        key=lambda mount: len(mount.point.parts),
    )
    return best.kind


def remove_tree(directory: Path) -> None:
    """Remove a directory of ours with all that is in it, but never through a mount."""
    unmount_below(directory)
    if left := mounts_below(directory):
        raise ClusterError(f"{left[0]} is still mounted and cannot be unmounted; {directory} stays")
    if directory.exists():
        shutil.rmtree(directory)
