"""Pushes over UDP, whole: a registry's book, real sockets on loopback, clients that lose what they get."""

from __future__ import annotations

import asyncio
import gzip
import json
import random

import pytest
from structlog.testing import capture_logs

from registrykit import ORDERS, an_entry, key_of
from rollbook.problems import Problem
from rollbook_registry.catalog.leases import http_lease
from rollbook_registry.connections.udp import UdpPush
from rollbook_registry.push import Terms
from rollbook_registry.settings import RegistrySettings
from serverkit import until

COMPRESSED_FROM = 1024


class Dialect:
    """As Nacos' 1.x: JSON, compressed where it is long."""

    def __init__(self, book):
        self._book = book
        self.made: list[bytes] = []

    def push(self, service, clusters, token):
        found = self._book.catalog.service(service)
        hosts = [
            {"ip": i.ip, "port": i.port, "metadata": i.metadata}
            for i in (found.instances.values() if found else ())
            if not clusters or i.cluster in clusters.split(",")
        ]
        data = json.dumps({"name": service.name, "hosts": hosts, "token": token}).encode()
        self.made.append(gzip.compress(data) if len(data) >= COMPRESSED_FROM else data)
        return self.made[-1]

    @staticmethod
    def acknowledged(data):
        try:
            token = json.loads(data)["token"]
        except (ValueError, KeyError, TypeError):
            return None
        return token if isinstance(token, int) else None


class Listener(asyncio.DatagramProtocol):
    """A client; it may lose, delay, turn around and repeat what it gets and what it says.

    Args:
        rng: decides; without it nothing goes wrong.
    """

    def __init__(self, rng=None):
        self._rng = rng
        self.raw: list[bytes] = []
        self.ports: dict[str, set[int]] = {}
        """By service: what it holds."""
        self._token: dict[str, int] = {}

    def connection_made(self, transport):
        self.transport = transport
        self.address = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data, addr):
        if self._rng is None:
            self._take(data, addr)
            return
        if self._rng.random() < 0.4:
            return
        for _ in range(self._rng.choice([1, 1, 2])):
            asyncio.get_running_loop().call_later(self._rng.uniform(0, 0.06), self._take, data, addr)

    def _take(self, data, addr):
        if self.transport.is_closing():
            return
        self.raw.append(data)
        said = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if said["token"] >= self._token.get(said["name"], 0):
            self._token[said["name"]] = said["token"]
            self.ports[said["name"]] = {h["port"] for h in said["hosts"]}
        if self._rng is None or self._rng.random() > 0.4:
            self.transport.sendto(json.dumps({"token": said["token"]}).encode(), addr)


class Quiet(asyncio.DatagramProtocol):
    """A client that never answers."""

    def __init__(self):
        self.heard: list[bytes] = []

    def datagram_received(self, data, addr):
        self.heard.append(data)


@pytest.fixture
async def listen():
    transports = []

    async def listen(rng=None):
        transport, listener = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Listener(rng), local_addr=("127.0.0.1", 0)
        )
        transports.append(transport)
        return listener

    yield listen
    for transport in transports:
        transport.close()


@pytest.fixture
async def open_udp(registry):
    opened = []

    async def open_udp(dialect=None, **settings):
        # However slow the machine is, nothing is sent again or forgotten unless a test wants it.
        patient = {"udp_retry": 60.0, "udp_time_to_live": 3600.0}
        udp = await UdpPush.opened(
            dialect or Dialect(registry.book),
            RegistrySettings(**patient | settings),
            registry.book.metrics.udp,
        )
        registry.book.changes.append(udp.outlet.changed)
        opened.append(udp)
        return udp

    yield open_udp
    for udp in opened:
        registry.book.changes.remove(udp.outlet.changed)
        udp.close()


def enter(registry, *ports, **fields):
    for port in ports:
        entry = an_entry(port=port, **fields)
        registry.book.apply(lambda c, now, e=entry: c.register_http(http_lease(e.ref), e, term=0, now=now))


def strike(registry, port):
    ref = an_entry(port=port).ref
    registry.book.apply(lambda c, now: c.deregister_everywhere(ref, operators=True, now=now))


def counted(registry, outcome):
    return registry.book.metrics.registry.get_sample_value("rollbook_udp_pushes_total", {"outcome": outcome})


async def test_a_subscriber_hears_of_a_change_and_its_acknowledgement_is_heard(registry, open_udp, listen):
    udp, client = await open_udp(), await listen()
    udp.outlet.subscribe(ORDERS, *client.address)
    enter(registry, 8080)
    await until(lambda: client.ports.get("orders") == {8080})
    await until(lambda: counted(registry, "acknowledged"))
    value = registry.book.metrics.registry.get_sample_value
    assert value("rollbook_udp_push_seconds_count") == 1
    assert value("rollbook_udp_subscriptions") == 1
    assert 'rollbook_udp_pushes_total{outcome="sent"} 1.0' in await registry.text("/metrics")


async def test_one_datagram_tells_what_one_command_or_several_at_once_have_changed(
    registry, open_udp, listen
):
    udp, client = await open_udp(), await listen()
    udp.outlet.subscribe(ORDERS, *client.address)
    enter(registry, *range(8080, 8180))
    await until(lambda: client.ports.get("orders") == set(range(8080, 8180)))
    assert len(client.raw) == 1


async def test_compressed_bytes_arrive_as_they_were_made(registry, open_udp, listen):
    dialect = Dialect(registry.book)
    udp, client = await open_udp(dialect), await listen()
    udp.outlet.subscribe(ORDERS, *client.address)
    enter(registry, *range(8080, 8180))
    await until(lambda: client.raw)
    assert client.raw == dialect.made
    assert client.raw[0][:2] == b"\x1f\x8b"


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_bad_network_whoever_goes_on_asking_holds_the_newest_list_in_the_end(
    registry, open_udp, listen, seed
):
    rng = random.Random(seed)
    udp = await open_udp(udp_retry=0.05, udp_tries=100)
    clients = [await listen(random.Random(rng.random())) for _ in range(8)]
    for client in clients:
        for name in ("orders", "carts"):
            udp.outlet.subscribe(key_of(name), *client.address)
    alive = set()
    for _ in range(40):
        port = rng.randrange(8080, 8100)
        if port in alive:
            strike(registry, port)
            alive.remove(port)
        else:
            enter(registry, port)
            alive.add(port)
        enter(registry, 9000 + len(alive), service="carts")
        await asyncio.sleep(0)
        if rng.random() < 0.3:
            await asyncio.sleep(0.01)
    carts = {i.port for i in registry.catalog.service(key_of("carts")).instances.values()}
    for client in clients:
        await until(lambda c=client: c.ports.get("orders") == alive and c.ports.get("carts") == carts)
    await until(lambda: not udp.outlet._flying)
    assert counted(registry, "repeated")


async def test_whoever_never_answers_is_sent_no_more_than_the_tries(registry, open_udp):
    transport, quiet = await asyncio.get_running_loop().create_datagram_endpoint(
        Quiet, local_addr=("127.0.0.1", 0)
    )
    udp = await open_udp(udp_retry=0.01, udp_tries=2)
    udp.outlet.subscribe(ORDERS, *transport.get_extra_info("sockname"))
    enter(registry, 8080)
    await until(lambda: counted(registry, "forgotten"))
    assert len(udp.outlet) == 0
    enter(registry, 8081)
    await until(lambda: len(quiet.heard) == 2)
    assert counted(registry, "sent") == 1
    assert counted(registry, "repeated") == 1
    transport.close()


async def test_whoever_stops_asking_is_forgotten_without_anything_else_happening(open_udp, listen):
    udp, client = await open_udp(udp_time_to_live=1.0), await listen()
    udp.outlet.subscribe(ORDERS, *client.address)
    await until(lambda: len(udp.outlet) == 0)


async def test_a_port_where_nobody_listens_harms_nobody(registry, open_udp, listen):
    udp, client, gone = await open_udp(udp_retry=0.01), await listen(), await listen()
    gone.transport.close()
    udp.outlet.subscribe(ORDERS, *gone.address)
    udp.outlet.subscribe(ORDERS, *client.address)
    enter(registry, 8080)
    await until(lambda: client.ports.get("orders") == {8080})
    await until(lambda: len(udp.outlet) == 1)
    enter(registry, 8081)
    await until(lambda: client.ports.get("orders") == {8080, 8081})


async def test_what_is_no_acknowledgement_is_counted_and_changes_nothing(registry, open_udp, listen):
    udp, client, stranger = await open_udp(), await listen(), await listen()
    udp.outlet.subscribe(ORDERS, *client.address)
    said = [b"\xff" * 2000, b"{}", b'{"token": "x"}', b'{"token": 1}', b"[]", b"null"]
    for data in said:
        stranger.transport.sendto(data, ("127.0.0.1", udp.port))
    await until(lambda: counted(registry, "unknown") == len(said))
    enter(registry, 8080)
    await until(lambda: client.ports.get("orders") == {8080})


async def test_a_list_that_fits_into_no_datagram_is_logged_once(registry, open_udp, listen):
    class Wide(Dialect):
        def push(self, *asked):
            return super().push(*asked).ljust(65_508)

    udp, client = await open_udp(Wide(registry.book)), await listen()
    udp.outlet.subscribe(ORDERS, *client.address)
    with capture_logs() as logs:
        for port in (8080, 8081):
            enter(registry, port)
            await until(lambda p=port: counted(registry, "too_large") == p - 8079)
    told = [e for e in logs if e["event"] == "too_large_for_udp"]
    assert [(e["service"], e["bytes"]) for e in told] == [(str(ORDERS), 65_508)]
    assert client.raw == []


async def test_while_the_system_takes_no_more_everything_is_merged_into_one(registry, open_udp, listen):
    udp, client = await open_udp(), await listen()
    udp.outlet.subscribe(ORDERS, *client.address)
    udp.pause_writing()
    for port in range(8080, 8090):
        enter(registry, port)
        await asyncio.sleep(0)
    assert counted(registry, "sent") is None
    udp.resume_writing()
    await until(lambda: client.ports.get("orders") == set(range(8080, 8090)))
    assert len(client.raw) == 1


async def test_ten_thousand_subscribers_do_not_hold_the_loop_in_one_go(registry, open_udp, listen):
    udp, client = await open_udp(max_udp_per_address=10_000), await listen()
    written = []
    udp._transport, real = _Written(written), udp._transport
    for n in range(10_000):
        udp.outlet.subscribe(key_of(f"s{n}"), *client.address)
    for n in range(10_000):
        udp.outlet.changed(key_of(f"s{n}"))
    turns = 0
    while len(written) < 10_000:
        before = len(written)
        await asyncio.sleep(0)
        assert len(written) - before <= 100
        turns += 1
    assert turns >= 100
    udp._transport = real


class _Written:
    def __init__(self, written):
        self._written = written

    def sendto(self, data, addr):
        self._written.append((data, addr))


async def test_a_port_that_is_taken_is_named(registry, open_udp):
    taken = await open_udp()
    with pytest.raises(OSError, match=rf"127\.0\.0\.1 UDP port {taken.port} \(--udp-port\): "):
        await open_udp(udp_port=taken.port)


async def test_this_machine_may_subscribe_only_where_nobody_else_reaches_the_registry(open_udp):
    wide = RegistrySettings(host="0.0.0.0", auth="none").udp_terms
    assert not wide.loopback
    udp = await open_udp()
    with pytest.raises(Problem, match="accepted: the IPv4 address of one host"):
        udp.outlet.subscribe(ORDERS, "224.0.0.1", 30000)
    assert RegistrySettings(udp_retry=2.0, udp_tries=5, max_udp_per_address=7).udp_terms == Terms(
        interval=2.0, tries=5, most_per_address=7, loopback=True
    )
