"""How the SDK comes to a registry, and back to one: addresses, names, TLS, tokens, jitter."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import logging
import random
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ports import free_port
from registrykit import a_ref, an_entry
from rollbook import Client, connection, events, session
from rollbook.connection import BACKOFF_FIRST, BACKOFF_MOST, backoff
from serverkit import until

TIMEOUT = 30.0


class InOrder(random.Random):
    """Tries addresses in the order in which they are given, and waits for nothing."""

    def shuffle(self, x):
        pass

    def uniform(self, a, b):
        return 0.0


@contextlib.asynccontextmanager
async def listening(take, host="127.0.0.1", port=0, **options):
    """Listen with a handler of connections; yields the port."""
    tasks = set()

    async def handle(reader, writer):
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await take(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, host, port, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def silent(reader, writer):
    """Take a connection, and never say anything."""
    await reader.read()
    await asyncio.Event().wait()


def forwarding(port):
    """Carry bytes to and from a port of this machine."""

    async def take(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source, sink):
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    return take


def soon(work):
    return asyncio.wait_for(work, TIMEOUT)


# --- several addresses ----------------------------------------------------------------------------------


async def test_a_dead_and_a_silent_address_are_passed_over(registry, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.3)
    dead = f"127.0.0.1:{free_port()}"
    async with listening(silent) as port:
        heard = []
        client = Client(dead, f"127.0.0.1:{port}", registry.address, rng=InOrder())
        client.listen(heard.append)
        async with client:
            await soon(client.wait_connected())
            assert registry.address in client.peer
            assert client.last_error == ""
        unreachable = [e for e in heard if isinstance(e, events.Unreachable)]
        assert [dead in unreachable[0].url, str(port) in unreachable[1].url] == [True, True]
        assert "no answer within" in unreachable[1].reason


async def test_a_registry_that_falls_silent_is_left_for_another(registry, monkeypatch):
    """It took the session and then stopped, as a machine that is gone or a process under SIGSTOP does."""
    monkeypatch.setattr(session, "PING_AFTER", 0.3)
    # More than one look at the clock may count for, so that a machine which stalls does not decide it.
    monkeypatch.setattr(session, "DEAD_AFTER", 2.5)
    stop = asyncio.Event()

    async def stopping(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", registry.server.session_port)

        async def pump(source, sink):
            while data := await source.read(65536):
                if stop.is_set():
                    await asyncio.Event().wait()
                sink.write(data)

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async with listening(stopping) as port:
        heard = []
        client = Client(f"127.0.0.1:{port}", registry.address, rng=InOrder())
        client.listen(heard.append)
        async with client, client.register(an_entry()):
            orders = await soon(client.subscribe("orders"))
            assert str(port) in client.peer
            stop.set()
            await soon(client.wait_disconnected())
            # The list stays, and is picked from.
            assert orders.pick().port == 8080
            await soon(client.wait_connected())
            assert registry.address in client.peer
            await until(lambda: client.session.is_confirmed(a_ref()))
        (left,) = [e for e in heard if isinstance(e, events.Disconnected)][:1]
        assert left.reason == "no answer to a ping for 2.5 s"


async def test_a_name_with_several_addresses_finds_the_one_that_answers(registry, monkeypatch):
    """As of a headless Service: one of its addresses takes connections and never answers."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.3)
    port = registry.server.session_port
    looked_up = []

    async def getaddrinfo(host, *_, **__):
        looked_up.append(host)
        found = ("127.0.0.2", port), ("127.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    async with listening(silent, "127.0.0.2", port):
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        client = Client(f"rollbook.example:{port}", rng=random.Random(3))
        async with client:
            await soon(client.wait_connected())
        assert set(looked_up) == {"rollbook.example"}


async def test_the_addresses_of_a_name_are_tried_in_an_order_that_chance_gives():
    class Found:
        async def resolve(self, *_):
            return list(range(3))

    first = set()
    for seed in range(60):
        resolver = connection._Shuffled(random.Random(seed))
        resolver._resolver = Found()
        first.add((await resolver.resolve("x"))[0])
    assert first == {0, 1, 2}


def test_where_clients_begin_is_spread():
    first = {Client("a", "b", "c", rng=random.Random(n))._connection._urls[0] for n in range(60)}
    assert len(first) == 3


# --- jitter ---------------------------------------------------------------------------------------------


def test_attempts_are_spread_ever_wider_up_to_a_bound():
    for attempt in (0, 1, 2, 3, 5, 6, 10_000):
        most = min(BACKOFF_MOST, BACKOFF_FIRST * 2**attempt) if attempt < 100 else BACKOFF_MOST
        pauses = [backoff(attempt, random.Random(n)) for n in range(1000)]
        assert 0 <= min(pauses) < 0.1 * most
        assert 0.9 * most < max(pauses) <= most
        # In each tenth of the time there are about as many.
        tenths = [sum(int(10 * p / most) == n for p in pauses) for n in range(10)]
        assert min(tenths) > 60


# --- being told -----------------------------------------------------------------------------------------


async def test_an_outage_is_told_once_and_its_end(registry, caplog):
    caplog.set_level(logging.INFO, "rollbook")
    dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    failed = []
    client = Client(*dead, rng=InOrder())
    client.listen(failed.append)
    async with client:
        await until(lambda: len(failed) >= 8)
    told = [r for r in caplog.records if r.name.startswith("rollbook")]
    assert [(r.levelname, r.getMessage().partition(":")[0]) for r in told] == [
        ("WARNING", "cannot connect to ws")
    ]
    assert dead[1] in told[0].getMessage()
    assert client.last_error


async def test_an_idle_client_says_nothing(registry, caplog, monkeypatch):
    monkeypatch.setattr(session, "PING_AFTER", 0.0)
    caplog.set_level(logging.DEBUG, "rollbook")
    client = await registry.client()
    await soon(client.wait_connected())
    caplog.clear()
    pings = []
    received = client.session.received
    monkeypatch.setattr(client.session, "received", lambda f, now: (pings.append(f), received(f, now)))
    await until(lambda: len(pings) > 3)
    assert [r for r in caplog.records if r.name.startswith("rollbook.client")] == []


# --- tokens ---------------------------------------------------------------------------------------------


async def authorization(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    found = [line for line in head.decode().split("\r\n") if line.lower().startswith("authorization:")]
    return found[0].partition(": ")[2] if found else None


@pytest.mark.parametrize("kind", ["function", "async", "none", "empty"])
async def test_a_token_is_asked_for_at_each_connection(kind):
    shown = []
    asked = iter(range(10))

    async def later():
        await asyncio.sleep(0)
        return f"t{next(asked)}"

    token = {
        "function": lambda: f"t{next(asked)}",
        "async": later,
        "none": lambda: None,
        "empty": lambda: "",
    }[kind]

    async def take(reader, writer):
        shown.append(await authorization(reader))

    async with listening(take) as port, Client(f"127.0.0.1:{port}", token=token, rng=InOrder()):
        expected = ["Bearer t0", "Bearer t1"] if kind in {"function", "async"} else [None]
        # aiohttp may send the same request twice where a connection breaks.
        await until(lambda: len(shown) >= 3 and list(dict.fromkeys(shown))[:2] == expected)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (lambda: 1 / 0, "there is no token: ZeroDivisionError"),
        (lambda: "a\nX-Admin: 1", "there is no token: it holds characters"),
        (lambda: "schlüssel", "there is no token: it holds characters"),
        (lambda: asyncio.sleep(3600), "no answer within 0.2 s"),
    ],
)
async def test_without_a_token_nothing_is_shown_and_it_is_asked_for_again(token, reason, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.2)
    failed = []
    client = Client("127.0.0.1:1", token=token, rng=InOrder())
    client.listen(failed.append)
    async with client:
        await until(lambda: len(failed) >= 2)
    assert all(e.reason.startswith(reason) for e in failed)


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def test_a_session_over_tls_is_verified(registry, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    async with (
        listening(forwarding(registry.server.session_port), ssl=context) as port,
        listening(forwarding(registry.server.http_port), ssl=context) as http_port,
    ):
        address = f"rollbooks://127.0.0.1:{port}"
        async with Client(address, ssl=trusting, http_port=http_port) as client:
            async with client.register(an_entry()):
                orders = await soon(client.subscribe("orders"))
                assert orders.pick().port == 8080
                assert [s.service for s in await soon(client.services())] == ["orders"]
            assert client.peer.startswith("wss://")
        # The system's authorities do not know it.
        failed = []
        stranger = Client(address, rng=InOrder())
        stranger.listen(failed.append)
        async with stranger:
            await until(lambda: failed)
        assert "certificate" in failed[0].reason.lower()
        assert not stranger.connected
