"""Settings of the sidecar: what can be set, its default, and which values go together."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from pathlib import Path  # noqa: TC003  # rollbook.settings reads the annotations when the program runs

from rollbook import names
from rollbook.addresses import check_addresses
from rollbook.limits import MAX_WEIGHT
from rollbook.logs import FORMATS, LEVELS
from rollbook.model import MAX_TIMING_MS
from rollbook.names import DEFAULT_CLUSTER, DEFAULT_GROUP, DEFAULT_NAMESPACE, MAX_PORT
from rollbook.problems import bad_value
from rollbook.settings import setting
from rollbook_sidecar import forms, registration

_A_DAY = MAX_TIMING_MS / 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one sidecar; each is a flag and a ``ROLLBOOK_`` variable.

    Raises:
        Problem: 400 ``bad_value`` naming the flag, if values do not go together.
    """

    registry: tuple[str, ...] = setting(
        ..., "Registries, HOST[:PORT] separated by commas (port 7848 if none is said)."
    )
    lookup_host: str = setting(
        "127.0.0.1",
        "Address to serve lookups on.",
        danger="On anything but loopback, others can read the book through this pod.",
    )
    lookup_port: int = setting(
        8849, "Port to serve lookups on; 0 takes a free one.", minimum=0, maximum=MAX_PORT
    )
    hooks_host: str = setting(
        "",
        "Address to serve the startup probe and the drain hooks on; by default all addresses if there is a "
        "drain secret, else loopback.",
    )
    hooks_port: int = setting(
        8850, "Port of the startup probe and the drain hooks; 0: none.", minimum=0, maximum=MAX_PORT
    )
    service: str = setting("", "Service to register the application in; empty registers nothing.")
    ports: str = setting("", "Where the application listens: 8080, or http=8080,grpc=9090.")
    namespace: str = setting(DEFAULT_NAMESPACE, "Namespace to register in.")
    group: str = setting(DEFAULT_GROUP, "Group to register in.")
    cluster: str = setting(DEFAULT_CLUSTER, "Part of the service that it belongs to, usually the zone.")
    weight: float = setting(1.0, "Share in balancing; 0 gets no traffic.", minimum=0, maximum=MAX_WEIGHT)
    metadata: str = setting("", "Free pairs: a JSON object of texts, or k=v,k2=v2.")
    instance_id: str = setting(
        registration.DEFAULT_TEMPLATE,
        "Name for people; may hold " + ", ".join(f"{{{name}}}" for name in forms.PLACEHOLDERS) + ".",
    )
    ip: str = setting(
        "", "Address at which others reach the application; by default the one that faces the registry."
    )
    owner: str = setting("", "UID of the pod, in Kubernetes.")
    pod_name: str = setting(
        "", "Name of the pod, the {pod} and {host} of the instance id; by default the host's name."
    )
    node_name: str = setting(
        "", "Name of the node, the {node} of the instance id; by default the host's name."
    )
    health_check: str = setting(
        "tcp",
        "How the application is checked: tcp (each port), http:/path (the port named http, else the first; "
        "any answer from 200 to 399), or none.",
        danger="With none, the roll is answered for an application that does not work.",
    )
    heartbeat_interval: float = setting(
        0.0,
        "Time between beats, if more often than the registry expects them; 0: as the registry says.",
        unit="s",
        minimum=0,
        maximum=_A_DAY,
        formula="At most --unhealthy-after / 3.",
    )
    unhealthy_after: float = setting(
        0.0,
        "Silence after which the instance turns unhealthy; 0: as the registry says.",
        unit="s",
        minimum=0,
        maximum=_A_DAY,
        formula="At least 3 x the interval between beats, and at most --remove-after.",
        danger="Below two intervals between beats a single late beat takes the instance out of balancing.",
    )
    remove_after: float = setting(
        0.0,
        "Silence after which the instance is removed; 0: as the registry says.",
        unit="s",
        minimum=0,
        maximum=_A_DAY,
        formula="At least 2 x --unhealthy-after.",
    )
    check_interval: float = setting(
        5.0,
        "Time between checks of the application while it works; while it does not, at most 1 s.",
        unit="s",
        minimum=0.1,
        maximum=3600,
        formula="An application that fails is out of balancing after at most "
        "--check-failures x (--check-interval + --check-timeout).",
    )
    check_timeout: float = setting(
        1.0,
        "Time that one check may take.",
        unit="s",
        minimum=0.05,
        maximum=60,
        formula="Longer than the application's longest pause, for instance of its garbage collector.",
    )
    check_failures: int = setting(
        2,
        "Checks in a row that must fail before the application counts as down.",
        minimum=1,
        maximum=100,
        danger="With 1, a single slow answer takes the instance out of balancing.",
    )
    subscribe: tuple[str, ...] = setting(
        (), "Services to follow from the start: service, group@@service or namespace/group@@service."
    )
    max_services: int = setting(
        1000,
        "Services followed at once; above it the one that was not asked for the longest time is dropped.",
        minimum=1,
        maximum=100_000,
        formula="At most the registry's --max-subscriptions.",
        danger="Below the services that the application uses, each lookup drops a list that is needed next.",
    )
    first_lookup_timeout: float = setting(
        2.0,
        "Time that a lookup waits for a service's first list before it is answered 503.",
        unit="s",
        minimum=0,
        maximum=60,
        formula="Less than the application waits for a lookup.",
    )
    reread_interval: float = setting(
        30.0,
        "Time between comparisons of each list with the registry's, the safety net beneath the pushes.",
        unit="s",
        minimum=0.1,
        maximum=3600,
    )
    token_file: Path | None = setting(
        None, "File with the token to show the registry, read at each connection."
    )
    drain_secret: str = setting(
        "", "What the header X-Rollbook-Drain must hold for the drain hooks to act.", secret=True
    )
    drain_timeout: float = setting(
        10.0,
        "Time that draining waits at most for all subscribers to know.",
        unit="s",
        minimum=0,
        maximum=_A_DAY,
        formula="Min(10 s, a third of the pod's grace period).",
        danger="Together with --linger it must leave the application time within the pod's grace period.",
    )
    linger: float = setting(
        2.0,
        "Time that draining waits afterwards, for requests to addresses that were just looked up.",
        unit="s",
        minimum=0,
        maximum=_A_DAY,
        formula="As long as callers keep an address before they use it.",
    )
    log_level: str = setting("info", "What is logged.", choices=LEVELS)
    log_format: str = setting("json", "How it is logged.", choices=FORMATS)

    def __post_init__(self) -> None:
        check_addresses(self.registry, "--registry")
        self._check_listeners()
        self._check_registration()
        if len({forms.service(item) for item in self.subscribe}) > self.max_services:
            raise bad_value("--subscribe", f"{len(self.subscribe)} services", "at most --max-services")

    @property
    def hooks_address(self) -> str:
        """The address that the hooks listen on, chosen if it was not said."""
        if self.hooks_host:
            return self.hooks_host
        if not self.drain_secret:
            return "127.0.0.1"
        return "::" if ":" in self.ip else "0.0.0.0"  # noqa: S104  # the kubelet calls the pod's address; guarded by the secret

    def _check_listeners(self) -> None:
        names.check_ip(self.lookup_host, "--lookup-host")
        if self.hooks_host:
            names.check_ip(self.hooks_host, "--hooks-host")
        if not (self.drain_secret.isascii() and (self.drain_secret.isprintable())):
            raise bad_value("--drain-secret", "(not shown)", "printable ASCII")
        if self.drain_secret != self.drain_secret.strip():
            raise bad_value("--drain-secret", "(not shown)", "a text without spaces around it")
        if self.hooks_port and not self.drain_secret and not forms.is_loopback(self.hooks_address):
            raise bad_value(
                "--hooks-host",
                self.hooks_host,
                "a loopback address, unless --drain-secret is given (others could drain this pod)",
            )
        if self.hooks_port and self.hooks_port == self.lookup_port:
            raise bad_value("--hooks-port", self.hooks_port, "another port than --lookup-port")

    def _check_registration(self) -> None:
        found = forms.ports(self.ports)
        if found and not self.service:
            raise bad_value("--service", "", "a service's name, since --ports is given")
        if self.service and not found:
            raise bad_value("--ports", "", "8080 or http=8080,grpc=9090, since --service is given")
        if self.ip:
            address = names.check_ip(self.ip, "--ip")
            if _is_unspecified(address):
                raise bad_value("--ip", self.ip, "an address that others can connect to")
        forms.metadata(self.metadata)
        forms.health_check(self.health_check)
        forms.check_template(self.instance_id)
        for flag, value in (
            ("--heartbeat-interval", self.heartbeat_interval),
            ("--unhealthy-after", self.unhealthy_after),
            ("--remove-after", self.remove_after),
        ):
            if 0 < value < 0.001:  # noqa: PLR2004  # timings travel in whole milliseconds
                raise bad_value(flag, f"{value:g} s", "0, or at least 1 ms")
        if self.remove_after and self.unhealthy_after > self.remove_after:
            raise bad_value(
                "--unhealthy-after",
                f"{self.unhealthy_after:g} s",
                f"at most --remove-after, which is {self.remove_after:g} s",
            )
        if self.service:
            # What remains (lengths, characters, sizes) is checked where every door checks it.
            registration.entries(self, ip=self.ip or "127.0.0.1", host=socket.gethostname(), field="--")


def _is_unspecified(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False
