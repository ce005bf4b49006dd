"""Asking an instance once, over real sockets, on the loop of the standard library and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
import time
from pathlib import Path

import pytest

from ports import free_port
from rollbook_registry.checks.deadline import LaggedError, deadline
from rollbook_registry.checks.probes import MAX_INTERIM, MAX_LINE, Probes, is_to_itself
from rollbook_registry.checks.reach import Reach
from rollbook_registry.checks.verdict import Answer, Finding, Target
from serverkit import until

# A socket that nobody closed is a failure, even if the collector finds it in time.
pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]

LOOPBACK = Reach(allow=("127.0.0.0/8", "::1/128"))
LONG = 20.0
"""A timeout that no test waits for."""
SHORT = 0.1


class Service:
    """An instance, and what it saw."""

    def __init__(self, behave):
        self._behave = behave
        self.requests = []
        self.open = 0
        self.seen = 0

    async def serve(self, reader, writer):
        self.open += 1
        self.seen += 1
        try:
            await self._behave(self, reader, writer)
        except OSError:
            pass  # it was reset, which is the checker's good right
        finally:
            self.open -= 1
            writer.transport.abort()

    async def request(self, reader):
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())


def http(answer):
    """Read a request and answer it, then wait for the other side to close."""

    async def behave(service, reader, writer):
        await service.request(reader)
        writer.write(answer)
        await reader.read()

    return behave


async def silent(_service, reader, _writer):
    await reader.read()
    await reader.read()


@pytest.fixture
async def instance():
    """Start instances that behave as told; give their targets."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(behave, *, host="127.0.0.1", kind="http", path="/"):
            service = Service(behave)
            server = await asyncio.start_server(service.serve, host, 0)
            stack.callback(server.close)
            service.target = Target(kind, host, server.sockets[0].getsockname()[1], path)
            return service

        yield start


async def ask(target, *, timeout=LONG, reach=LOOPBACK, lookup=None):
    with Probes(reach, lookup=lookup) as probes:
        return await probes.ask(target, timeout=timeout)


def known(**hosts):
    """A name server that knows these."""

    async def lookup(host):
        found = hosts[host.replace(".", "_")]
        if isinstance(found, BaseException):
            raise found
        return found

    return lookup


# TCP


async def test_tcp_passes_if_somebody_accepts_and_leaves_at_once(instance):
    service = await instance(silent, kind="tcp")
    assert await ask(service.target) == Answer(Finding.PASSED)
    await until(lambda: service.seen == 1 and service.open == 0)


@pytest.mark.parametrize("kind", ["tcp", "http"])
async def test_where_nobody_listens_it_is_refused(kind):
    answer = await ask(Target(kind, "127.0.0.1", free_port(), "/"))
    assert answer.finding is Finding.REFUSED
    assert "refused" in answer.detail


@pytest.fixture
def full():
    """The port of a listener that takes no connection any more, and says nothing about it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(16):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(SHORT)
            try:
                waiting.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        else:
            pytest.fail("the listener never was full")
        yield port


@pytest.mark.parametrize("kind", ["tcp", "http"])
async def test_a_connection_that_is_never_accepted_times_out(full, kind):
    answer = await ask(Target(kind, "127.0.0.1", full, "/"), timeout=SHORT)
    assert answer == Answer(Finding.TIMED_OUT, "no answer within 0.1 s")


async def test_a_connection_to_itself_is_nobody():
    with socket.socket() as lonely:
        lonely.bind(("127.0.0.1", 0))
        lonely.connect(lonely.getsockname())
        assert is_to_itself(lonely)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        assert not is_to_itself(connection)
    with socket.socket() as unconnected:
        assert not is_to_itself(unconnected)


# HTTP


@pytest.mark.parametrize("status", [200, 204, 301, 302, 399])
async def test_http_passes_from_200_to_399_and_follows_nothing(instance, status):
    elsewhere = await instance(silent)
    location = f"http://127.0.0.1:{elsewhere.target.port}/"
    service = await instance(http(f"HTTP/1.1 {status} So\r\nLocation: {location}\r\n\r\n".encode()))
    assert await ask(service.target) == Answer(Finding.PASSED)
    assert elsewhere.seen == 0


@pytest.mark.parametrize("status", [101, 400, 404, 500, 503])
async def test_every_other_status_is_told(instance, status):
    service = await instance(http(f"HTTP/1.1 {status} So\r\n\r\n".encode()))
    assert await ask(service.target) == Answer(Finding.BAD_STATUS, f"status {status}")


async def test_each_check_is_one_request_on_a_connection_of_its_own(instance):
    service = await instance(http(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), path="/ready?deep=1%202")
    for _ in range(3):
        assert (await ask(service.target)).finding is Finding.PASSED
    await until(lambda: service.open == 0)
    assert service.seen == 3
    [request] = set(service.requests)
    assert request == (
        "GET /ready?deep=1%202 HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{service.target.port}\r\n"
        "User-Agent: rollbook-registry\r\n"
        "Accept: */*\r\n"
        "Connection: close\r\n\r\n"
    )


async def test_a_slow_answer_within_the_timeout_passes(instance):
    asked, go = asyncio.Event(), asyncio.Event()

    async def behave(service, reader, writer):
        await service.request(reader)
        asked.set()
        for part in (b"HTTP/", b"1.1 ", b"200 OK", b"\r\n"):
            await go.wait()
            writer.write(part)
            await writer.drain()
        await reader.read()

    service = await instance(behave)
    check = asyncio.create_task(ask(service.target))
    await asked.wait()
    assert not check.done()
    go.set()
    assert await check == Answer(Finding.PASSED)


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK", b"HTTP/1.1 100 Continue\r\nX: y\r\n"], ids=["none", "half", "1xx"]
)
async def test_an_answer_that_does_not_come_or_does_not_end_times_out(instance, beginning):
    service = await instance(http(beginning))
    answer = await ask(service.target, timeout=SHORT)
    assert answer == Answer(Finding.TIMED_OUT, "no answer within 0.1 s")
    await until(lambda: service.open == 0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
        (b"HTTP/2 200\r\n", "not HTTP"),
        (b"HTTP/1.1 999 So\r\n", "not HTTP"),
        (b"HTTP/1.1 2000 So\r\n", "not HTTP"),
        (b"\x16\x03\x01\x00\n", "not HTTP"),
        (b"x" * (MAX_LINE + 1), "a line of more than"),
        (b"HTTP/1.1 102 Wait\r\n\r\n" * (MAX_INTERIM + 1), "without end"),
        (b"HTTP/1.1 103 Hints\r\n" + b"Link: x\r\n" * 500, "without end"),
    ],
)
async def test_what_is_no_http_answer_is_told(instance, answer, said):
    found = await ask((await instance(http(answer))).target)
    assert found.finding is Finding.BAD_ANSWER
    assert said in found.detail


async def test_interim_answers_are_passed_over(instance):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style>\r\n\r\n"
    service = await instance(http(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + b"HTTP/1.0 204\r\n\r\n"))
    assert await ask(service.target) == Answer(Finding.PASSED)


async def test_a_connection_that_ends_without_an_answer_is_asked_only_once(instance):
    async def leave(service, reader, _writer):
        await service.request(reader)

    service = await instance(leave)
    answer = await ask(service.target)
    assert answer.finding is Finding.BAD_ANSWER
    assert service.seen == 1


async def test_a_connection_that_is_reset_is_a_bad_answer(instance):
    async def reset(service, reader, writer):
        await service.request(reader)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    answer = await ask((await instance(reset)).target)
    assert answer.finding is Finding.BAD_ANSWER
    assert "reset" in answer.detail.lower()


async def test_a_body_without_end_is_not_read(instance):
    sent = []

    async def flood(service, reader, writer):
        await service.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent.append(65536)

    service = await instance(flood)
    assert await ask(service.target) == Answer(Finding.PASSED)
    await until(lambda: service.open == 0)
    # What the system's own buffers took, and nowhere near what was offered.
    assert sum(sent) < 100_000_000


# Names and addresses


async def test_ipv6_is_asked_by_its_address_in_brackets(instance):
    try:
        service = await instance(http(b"HTTP/1.1 200 OK\r\n\r\n"), host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert await ask(service.target) == Answer(Finding.PASSED)
    assert f"Host: [::1]:{service.target.port}\r\n" in service.requests[0]


async def test_a_name_is_looked_up_and_is_what_the_host_header_says(instance):
    service = await instance(http(b"HTTP/1.1 200 OK\r\n\r\n"))
    target = service.target._replace(host="localhost")
    assert await ask(target) == Answer(Finding.PASSED)
    assert f"Host: localhost:{target.port}\r\n" in service.requests[0]


@pytest.mark.parametrize("kind", ["tcp", "http"])
async def test_of_several_addresses_one_that_accepts_is_enough(instance, kind):
    service = await instance(http(b"HTTP/1.1 200 OK\r\n\r\n"), kind=kind)
    target = service.target._replace(host="db.example")
    lookup = known(db_example=["127.1.2.3", "127.0.0.1"])
    assert await ask(target, lookup=lookup) == Answer(Finding.PASSED)
    nobody = await ask(target, lookup=known(db_example=["127.1.2.3", "127.1.2.4"]))
    assert nobody.finding is Finding.REFUSED


@pytest.mark.parametrize(
    ("failure", "finding"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), Finding.UNRESOLVED),
        (UnicodeError("label too long"), Finding.UNRESOLVED),
        ([], Finding.UNRESOLVED),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), Finding.NO_NAME_SERVER),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), Finding.NO_NAME_SERVER),
        (TimeoutError("the name server is slow"), Finding.NO_NAME_SERVER),
    ],
)
async def test_a_name_that_does_not_exist_is_a_failure_and_a_name_server_that_fails_is_not(failure, finding):
    answer = await ask(Target("tcp", "db.example", 5432), lookup=known(db_example=failure))
    assert answer.finding is finding
    assert "db.example" in answer.detail


async def test_a_name_server_that_does_not_answer_in_time_is_no_fault_of_the_instance():
    async def hang(_host):
        await asyncio.Event().wait()

    answer = await ask(Target("tcp", "db.example", 5432), lookup=hang, timeout=SHORT)
    assert answer == Answer(Finding.NO_NAME_SERVER, "db.example was not looked up within 0.1 s")


@pytest.mark.parametrize("kind", ["tcp", "http"])
@pytest.mark.parametrize("host", ["127.0.0.1", "rebound.example"])
async def test_what_may_not_be_reached_is_never_connected_to(instance, kind, host):
    service = await instance(http(b"HTTP/1.1 200 OK\r\n\r\n"), kind=kind)
    lookup = known(rebound_example=["127.0.0.1", "::ffff:127.0.0.1"])
    answer = await ask(service.target._replace(host=host), reach=Reach(), lookup=lookup)
    assert answer.finding is Finding.FORBIDDEN
    assert "127.0.0.0/8" in answer.detail
    assert "--check-allow" in answer.detail
    # Whoever came after it has been served, so nobody was before.
    assert (await ask(service.target)).finding is Finding.PASSED
    await until(lambda: service.seen == 1)


async def test_of_several_addresses_only_those_that_may_be_reached_are_tried(instance):
    service = await instance(silent, kind="tcp")
    reach = Reach(allow=("127.0.0.2/32",))
    target = service.target._replace(host="db.example")
    answer = await ask(target, reach=reach, lookup=known(db_example=["127.0.0.1", "127.0.0.2"]))
    assert answer.finding is Finding.REFUSED
    assert service.seen == 0


# Faults of ours


async def test_no_descriptors_left_is_a_fault_of_ours(instance):
    service = await instance(silent, kind="tcp")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(0))
        assert (await ask(service.target)).finding is Finding.OWN_FAULT
    assert (await ask(service.target)).finding is Finding.PASSED


async def test_time_in_which_this_process_was_stopped_is_not_the_instances(instance):
    """Held up beyond the timeout, the check has still to send its request and to hear the answer."""

    async def behave(service, reader, writer):
        time.sleep(2 * SHORT)  # the instance is on the checker's own loop: this stops the checker
        await service.request(reader)
        for part in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n"):
            writer.write(part)
            await asyncio.sleep(0)
        await reader.read()

    service = await instance(behave)
    assert await ask(service.target, timeout=SHORT) == Answer(Finding.PASSED)


class LateClock:
    """A clock by which every timer is late."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


async def test_whoever_is_late_at_every_look_does_not_judge():
    with pytest.raises(LaggedError):
        async with deadline(0.01, clock=LateClock()):
            await asyncio.Event().wait()


async def test_a_deadline_in_time_is_a_deadline_and_leaves_other_errors_alone():
    with pytest.raises(TimeoutError) as ended:
        async with deadline(0.01, clock=lambda: 0.0):
            await asyncio.Event().wait()
    assert not isinstance(ended.value, LaggedError)
    with pytest.raises(ZeroDivisionError):
        async with deadline(0.01):
            raise ZeroDivisionError
    async with deadline(LONG):
        pass


async def test_whoever_is_cancelled_within_a_deadline_is_cancelled():
    entered = asyncio.Event()

    async def wait():
        async with deadline(LONG):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Nothing is left behind


def descriptors():
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def test_no_socket_is_left_behind_however_a_check_ends(instance, full):
    services = [
        await instance(http(b"HTTP/1.1 200 OK\r\n\r\n")),
        await instance(http(b"HTTP/1.1 500 No\r\n\r\n")),
        await instance(http(b"no http\r\n")),
        await instance(silent),
        await instance(silent, kind="tcp"),
    ]
    targets = [service.target for service in services]
    targets += [Target("tcp", "127.0.0.1", full), Target("tcp", "127.0.0.1", free_port())]
    named = Target("tcp", "db.example", services[-1].target.port)
    lookup = known(db_example=["127.1.2.3", "127.0.0.1", "127.0.0.2"])
    await ask(targets[0])
    before = descriptors()
    with Probes(LOOPBACK, lookup=lookup) as probes:
        for _ in range(2):
            await asyncio.gather(*(probes.ask(target, timeout=SHORT) for target in [*targets, named]))
        # And cancelled, at whatever point they are.
        for turns in range(12):
            tasks = [asyncio.create_task(probes.ask(target, timeout=LONG)) for target in [*targets, named]]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: all(service.open == 0 for service in services))
    await until(lambda: descriptors() <= before)
