"""The registry's settings; ``docs/settings.md`` is their table."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from rollbook.logs import FORMATS, LEVELS
from rollbook.problems import bad_value
from rollbook.settings import setting
from rollbook_registry.auth.identity import Accounts
from rollbook_registry.catalog.definitions import (
    MAX_CHECK_INTERVAL,
    MAX_CHECK_ROW,
    MIN_CHECK_INTERVAL,
    Check,
)
from rollbook_registry.checks.reach import Reach
from rollbook_registry.push.datagrams import Terms

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ACCOUNT = re.compile(r"[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegistrySettings:
    """All that can be set."""

    data_dir: Path = setting(
        Path("rollbook-data"),
        "The directory that the registry keeps its files in; made if it isn't there.",
        danger="Two registries must not share one.",
    )
    snapshot_interval: float = setting(
        30.0,
        "How often the instances that live by beats are saved, if anything has changed, so that a restart "
        "begins with them. What was removed is noted at once, and does not come back.",
        unit="s",
        minimum=1.0,
        maximum=3600.0,
        formula="At most --remove-after: what was entered since the last one is not there after a restart.",
    )
    store_timeout: float = setting(
        10.0,
        "How long a write of what stays (persistent instances, overrides, settings) may take until it is "
        "answered 503.",
        unit="s",
        minimum=0.1,
        maximum=300.0,
    )
    host: str = setting(
        "127.0.0.1",
        "The address to listen on.",
        danger="Beyond loopback everybody who reaches it can read; writing needs --auth kubernetes.",
    )
    http_port: int = setting(8848, "The port of the HTTP API; 0 takes any.", minimum=0, maximum=65535)
    session_port: int = setting(7848, "The port of sessions; 0 takes any.", minimum=0, maximum=65535)
    grpc_port: int = setting(
        9848,
        "The port where Nacos' clients are told that their protocol is not spoken yet; 0 takes any.",
        minimum=0,
        maximum=65535,
    )
    nacos_grpc: bool = setting(
        default=True, help="Whether to open --grpc-port; a registry that doesn't has no gRPC in memory."
    )
    auth: str = setting(
        "auto",
        "Who may write: 'kubernetes' asks for service account tokens, 'none' asks nobody; 'auto' is "
        "'kubernetes' in a cluster and 'none' elsewhere.",
        choices=("auto", "kubernetes", "none"),
        danger="With 'none' everybody who reaches the port may write.",
    )
    operator_account: str = setting(
        "",
        "The operator's service account, as namespace/name; it may enter what is true of any pod.",
        danger="Whoever can make tokens for this account may change the whole book.",
    )
    audience: str = setting(
        "rollbook",
        "The audience that tokens must be made for.",
        formula="The same as the webhook's --audience.",
        danger="An audience that the API server's own tokens have lets every pod's ordinary token in.",
    )
    administrator_accounts: tuple[str, ...] = setting(
        (),
        "Service accounts, namespace/name separated by commas, that may lay down what stays (persistent "
        "instances, overrides, settings) and speak for anybody.",
        danger="Who has such an account can take any instance offline.",
    )
    beat_interval: float = setting(
        5.0,
        "How often clients are asked to beat.",
        unit="s",
        minimum=0.05,
        maximum=3600.0,
        formula="At most --unhealthy-after / 3. The registry hears clients / --beat-interval beats a second.",
    )
    unhealthy_after: float = setting(
        15.0,
        "Silence after which an instance is not alive and leaves balancing.",
        unit="s",
        minimum=0.1,
        maximum=86400.0,
        formula="3 x --beat-interval, which bears two lost beats.",
        danger="Below two beat intervals a single late beat takes an instance out of balancing.",
    )
    remove_after: float = setting(
        30.0,
        "Silence after which an instance leaves the book; also how long a registry that has started is not "
        "yet settled.",
        unit="s",
        minimum=0.2,
        maximum=86400.0,
        formula="2 x --unhealthy-after; more than a client takes to come back to a registry that restarted.",
        danger="Short of a client's way back, a broken connection takes its instances out of the book.",
    )
    operator_remove_after: float = setting(
        600.0,
        "Silence of the operator after which what only it entered leaves the book.",
        unit="s",
        minimum=1.0,
        maximum=86400.0,
        formula="Longer than the operator's longest absence: an upgrade, a lost node, a slow image.",
        danger="When it has passed, every pod without a sidecar leaves the book at once.",
    )
    empty_service_after: float = setting(
        60.0, "How long a service without instances stays listed.", unit="s", minimum=0.0
    )
    expiry_tick: float = setting(
        0.25,
        "How often the timing wheel turns: the precision of all expiry.",
        unit="s",
        minimum=0.01,
        maximum=1.0,
        formula="At most --unhealthy-after / 20.",
    )
    protection_share: float = setting(
        0.15,
        "Share of the leases at the start of a window that may end in it by silence; when more are silent "
        "at once, the rest are kept for the time being. 1 protects nothing.",
        minimum=0.0,
        maximum=1.0,
        formula="More than the largest failure that is ordinary: the share of instances on one node or zone.",
        danger="With 0 nothing beyond --protection-floor is ever struck out for silence alone.",
    )
    protection_floor: int = setting(
        20,
        "Leases that may end by silence in a window in any case.",
        minimum=0,
        maximum=1_000_000,
        formula="The pods of the largest node.",
    )
    protection_window: float = setting(
        60.0,
        "Length of a window of protection.",
        unit="s",
        minimum=1.0,
        maximum=3600.0,
        formula="At least 2 x --remove-after: all of one failure belongs into one or two windows.",
    )
    stuck_after: float = setting(
        300.0,
        "How long a pod may be terminating until the disagreement report names it.",
        unit="s",
        minimum=1.0,
        maximum=86400.0,
        formula="Longer than the longest grace period of pods.",
    )
    max_instances: int = setting(
        200_000,
        "Instances in the book, in all.",
        minimum=1,
        maximum=10_000_000,
        formula="Twice what is expected, for a roll-out of everything at once.",
        danger="At the limit new pods are refused; their clients come again, and say so in their logs.",
    )
    max_services: int = setting(
        50_000,
        "Services in the book, in all; empty ones that are still listed count.",
        minimum=1,
        maximum=10_000_000,
        formula="As --max-instances, and what comes and goes within --empty-service-after.",
    )
    max_events: int = setting(
        50_000,
        "Events that are remembered for /events, in all; of one service at most 200.",
        minimum=0,
        maximum=1_000_000,
    )
    max_connections: int = setting(
        15_000,
        "Connections to the HTTP and the session port, in all; one more is answered 503 registry_full. "
        "--max-connections less --max-sessions may be no sessions. Probes are answered all the same.",
        minimum=2,
        maximum=1_000_000,
        formula="--max-sessions, and as many as plain HTTP clients may keep; at most the descriptors that "
        "the system allows, less 128.",
        danger="An idle connection costs about 10 KiB of memory.",
    )
    max_sessions: int = setting(
        10_000,
        "Sessions, in all; one more is answered 503 registry_full. Plain HTTP cannot take their places.",
        minimum=1,
        maximum=1_000_000,
        formula="One for each sidecar and each process with the SDK, those of a replica that fails included.",
        danger="A session costs about 11 KiB of memory, with an instance and three "
        "subscriptions; a client without one has no way into the book.",
    )
    max_connections_per_address: int = setting(
        0,
        "Connections of one client address; 0: as many as there may be in all.",
        minimum=0,
        maximum=1_000_000,
        formula="Several times the processes behind the address that has most of them.",
        danger="Behind a load balancer or a node's address translation many clients have one address.",
    )
    request_timeout: float = setting(
        10.0,
        "Time within which a request must begin on a new connection; within which its head must be complete "
        "once it has begun; and within which its body must be. Then it is answered 408 too_slow, or closed.",
        unit="s",
        minimum=0.1,
        maximum=3600.0,
        formula="Several round trips of the slowest client; nobody waits for a slow one but itself.",
    )
    keepalive_timeout: float = setting(
        75.0,
        "Time for which a connection may rest between requests.",
        unit="s",
        minimum=0.1,
        maximum=86400.0,
        formula="Longer than clients and proxies keep theirs, so that it is they who close.",
    )
    write_timeout: float = setting(
        30.0,
        "Time for which a client may leave unread what it was sent, once all buffers are full; then its "
        "connection is reset. A session is taken up again by its client.",
        unit="s",
        minimum=0.1,
        maximum=3600.0,
        formula="The largest list divided by the slowest client's bandwidth.",
    )
    ack_timeout: float = setting(
        10.0,
        "Time within which a session must acknowledge a list or a change; then it is closed (4003) and its "
        "client comes back for the whole list.",
        unit="s",
        minimum=0.1,
        maximum=3600.0,
        formula="At most the sidecars' --drain-timeout: until then who is silent holds every drain up.",
        danger="Below the longest pause of clients that are short of CPU, they reconnect again and again.",
    )
    tcp_keepalive: float = setting(
        15.0,
        "Silence on a connection after which the kernel asks whether its peer is there; after as long again "
        "without an answer the peer is given up.",
        unit="s",
        minimum=1.0,
        maximum=7200.0,
        formula="Less than what firewalls and load balancers between keep of a connection that rests.",
    )
    max_long_polls: int = setting(
        5_000,
        "Requests with wait= that may wait at once, in all.",
        minimum=1,
        maximum=1_000_000,
        formula="At most --max-connections less --max-sessions.",
    )
    max_barriers: int = setting(
        16,
        "Barriers that one session may wait for at once.",
        minimum=1,
        maximum=10_000,
        formula="A sidecar that drains needs one.",
    )
    max_deferred: int = setting(
        100_000,
        "Instances that came with full beats and wait for their registration, in all.",
        minimum=1,
        maximum=10_000_000,
        formula="As many as --max-instances would have all clients register at once.",
    )
    max_list_cache: int = setting(
        32 * 1024 * 1024,
        "Bytes of lists, as JSON, that are kept for the next who ask for the same; beyond it the oldest go.",
        unit="bytes",
        minimum=0,
        maximum=2**40,
        formula="The lists that are read over HTTP, once for each filter that clients use.",
        danger="Below it each request for a list spells it again, and the registry's loop waits meanwhile.",
    )
    max_subscriptions: int = setting(
        10_000,
        "Subscriptions that one session may hold.",
        minimum=1,
        maximum=1_000_000,
        formula="At least the sidecars' --max-services.",
    )
    max_patterns: int = setting(
        100,
        "Patterns of service names that one session may follow; the services that they bring count as "
        "subscriptions.",
        minimum=0,
        maximum=10_000,
    )
    max_entries: int = setting(
        20_000,
        "Instances that one session may hold.",
        minimum=1,
        maximum=1_000_000,
        formula="All pods of the cluster: the operator enters them over one session.",
    )
    idle_timeout: float = setting(
        60.0,
        "Silence after which a session is closed; clients ping every 2 s.",
        unit="s",
        minimum=0.1,
        formula="Several times the clients' ping interval, 2 s.",
        danger="Of the clients that do not ping, only those that beat more often keep their session.",
    )
    udp_port: int = setting(
        0,
        "The UDP port that pushes to Nacos' 1.x clients come from, and acknowledgements go to; 0 takes any. "
        "Not used yet: Nacos' 1.x clients are not served.",
        minimum=0,
        maximum=65535,
        formula="A port of its own where a firewall must be told of it.",
    )
    udp_time_to_live: float = setting(
        30.0,
        "Time for which a client that does not ask for a service's list is told of its changes over UDP. "
        "Not used yet: Nacos' 1.x clients are not served.",
        unit="s",
        minimum=1.0,
        maximum=3600.0,
        formula="3 x the interval at which clients ask; Nacos' ask every 10 s.",
    )
    udp_retry: float = setting(
        1.0,
        "Time without an acknowledgement after which a client is sent the list, as it is then, once more. "
        "Not used yet: Nacos' 1.x clients are not served.",
        unit="s",
        minimum=0.01,
        maximum=60.0,
        formula="Longer than a client's pause to collect garbage.",
        danger="Below the time of an ordinary answer everything is sent several times.",
    )
    udp_tries: int = setting(
        3,
        "Pushes in a row without an acknowledgement after which a client is told nothing more over UDP "
        "until it asks again. "
        "Not used yet: Nacos' 1.x clients are not served.",
        minimum=1,
        maximum=100,
    )
    max_udp_subscriptions: int = setting(
        20_000,
        "Subscriptions over UDP, in all; beyond it clients hear of changes when they ask. "
        "Not used yet: Nacos' 1.x clients are not served.",
        minimum=1,
        maximum=1_000_000,
        formula="Clients that can do no better, times the services that each follows.",
    )
    max_udp_per_address: int = setting(
        1000,
        "Subscriptions over UDP of one client address. Not used yet: Nacos' 1.x clients are not served.",
        minimum=1,
        maximum=1_000_000,
        danger="Behind a node's address translation many clients have one address.",
    )
    check_type: str = setting(
        "tcp",
        "How a persistent instance is checked that has no check of its own: 'tcp' (a connection), 'http' "
        "(GET /, any answer from 200 to 399), or 'none': it counts as alive.",
        choices=("tcp", "http", "none"),
    )
    check_interval: float = setting(
        5.0,
        "How often a persistent instance is checked, unless its definition says otherwise.",
        unit="s",
        minimum=MIN_CHECK_INTERVAL,
        maximum=MAX_CHECK_INTERVAL,
        formula="At least persistent instances x --check-timeout / --check-concurrency, if all were silent.",
    )
    check_timeout: float = setting(
        1.0,
        "What one check may take in all, looking up a name included; at most --check-interval.",
        unit="s",
        minimum=0.01,
        maximum=MAX_CHECK_INTERVAL,
    )
    check_failures: int = setting(
        3,
        "Checks in a row that must fail until a persistent instance counts as not alive. An instance that "
        "refuses is noticed after up to --check-failures times --check-interval; one that does not answer, "
        "--check-timeout later.",
        minimum=1,
        maximum=MAX_CHECK_ROW,
        danger="With 1 a single lost packet takes an instance out of balancing.",
    )
    check_successes: int = setting(
        1,
        "Checks in a row that must pass until it counts as alive again.",
        minimum=1,
        maximum=MAX_CHECK_ROW,
    )
    check_concurrency: int = setting(
        100,
        "Checks under way at a time. If every instance is silent, no more than --check-concurrency / "
        "--check-timeout checks are made in a second; others begin late, and nobody is judged by that.",
        minimum=1,
        maximum=10_000,
    )
    check_first_rate: float = setting(
        1000.0,
        "First checks a second: after a start, or when many instances are defined at once.",
        unit="a second",
        minimum=1.0,
    )
    check_allow: tuple[str, ...] = setting(
        (),
        "Networks that checks may reach although a wider one is refused, such as 127.0.0.0/8, separated by "
        "commas. Of all networks that hold an address the narrowest counts. Loopback is allowed where --host "
        "is loopback.",
        danger="Whoever may define a persistent instance has the registry connect to these addresses.",
    )
    check_deny: tuple[str, ...] = setting(
        (),
        "Networks that checks may not reach, in addition to loopback, link-local, multicast and reserved "
        "addresses and clouds' metadata services, separated by commas.",
    )
    collect_interval: float = setting(
        3600.0,
        "How often Python's collector looks at everything, in a moment when there is little to do; 0: never.",
        unit="s",
        minimum=0.0,
        maximum=604_800.0,
        danger="It takes 2 ms for each 1000 instances, in which nobody is answered.",
    )
    slow_step: float = setting(
        0.1,
        "Time for which one step may hold the event loop until it is counted, and, once a minute, logged.",
        unit="s",
        minimum=0.01,
        maximum=60.0,
    )
    log_level: str = setting("info", "What to log.", choices=LEVELS)
    log_format: str = setting("json", "How to log: for machines or for people.", choices=FORMATS)

    def __post_init__(self) -> None:
        """Check what only shows in combination.

        Raises:
            Problem: 400 ``bad_value`` naming the flag.
        """
        if self.unhealthy_after > self.remove_after:
            raise bad_value(
                "--unhealthy-after",
                self.unhealthy_after,
                f"at most --remove-after, which is {self.remove_after}",
            )
        if self.beat_interval >= self.unhealthy_after:
            raise bad_value(
                "--beat-interval",
                self.beat_interval,
                f"less than --unhealthy-after, which is {self.unhealthy_after}",
            )
        if self.check_timeout > self.check_interval:
            raise bad_value(
                "--check-timeout",
                self.check_timeout,
                f"at most --check-interval, which is {self.check_interval}",
            )
        _ = self.reach
        if self.max_sessions >= self.max_connections:
            raise bad_value(
                "--max-sessions",
                self.max_sessions,
                f"less than --max-connections, which is {self.max_connections}",
            )
        if self.operator_account and not _ACCOUNT.fullmatch(self.operator_account):
            raise bad_value("--operator-account", self.operator_account, "namespace/name")
        for account in self.administrator_accounts:
            if not _ACCOUNT.fullmatch(account):
                raise bad_value("--administrator-accounts", account, "namespace/name, separated by commas")
        if self.auth == "auto" and not self.needs_identity and self.host not in _LOOPBACK:
            raise bad_value(
                "--host",
                self.host,
                "a loopback address; or say --auth none if everybody who reaches the port may write",
            )

    @property
    def accounts(self) -> Accounts:
        """Who may do more than speak for its pod."""
        return Accounts(self.operator_account, frozenset(self.administrator_accounts))

    @property
    def default_check(self) -> Check:
        """How a persistent instance is checked that has no check of its own."""
        return Check(
            type=self.check_type,  # type: ignore[arg-type]  # one of the choices
            interval=self.check_interval,
            timeout=self.check_timeout,
            failures=self.check_failures,
            successes=self.check_successes,
        )

    @property
    def udp_terms(self) -> Terms:
        """What subscribers over UDP may expect; on this machine only if nobody else reaches the registry."""
        return Terms(
            time_to_live=self.udp_time_to_live,
            interval=self.udp_retry,
            tries=self.udp_tries,
            most=self.max_udp_subscriptions,
            most_per_address=self.max_udp_per_address,
            loopback=self.host in _LOOPBACK,
        )

    @property
    def reach(self) -> Reach:
        """Where checks may go: a registry that only its own machine reaches may check that machine."""
        own = ("127.0.0.0/8", "::1/128") if self.host in _LOOPBACK else ()
        allowed = [network for network in own if network not in self.check_deny]
        return Reach(allow=dict.fromkeys((*self.check_allow, *allowed)), deny=self.check_deny)

    @property
    def needs_identity(self) -> bool:
        """Whether writers must show a token."""
        if self.auth == "auto":
            return "KUBERNETES_SERVICE_HOST" in os.environ
        return self.auth == "kubernetes"
