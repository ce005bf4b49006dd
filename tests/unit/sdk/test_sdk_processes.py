"""The SDK with registries and user's programs as processes, which are killed, stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap

import pytest

from ports import free_port
from processkit import RegistryProcess
from registrykit import a_ref, an_entry
from rollbook import Client, frames, session
from serverkit import until

TIMEOUT = 60.0
SERVICES = 1000


def soon(work):
    return asyncio.wait_for(work, TIMEOUT)


@contextlib.asynccontextmanager
async def killed_and_started_again(directory, between, *, keeps_its_book):
    """Run a registry, and after ``between`` kill it and start another on its ports."""
    ports = "--http-port", str(free_port()), "--session-port", str(free_port())
    async with RegistryProcess(directory / "a", *ports, "--snapshot-interval", "1s") as first:
        await between(first)
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: not first.alive, timeout=TIMEOUT)
    another = directory / ("a" if keeps_its_book else "b")
    async with RegistryProcess(another, *ports) as second:
        yield second


def counting(client):
    """Count the frames that a client gets from now on, by their names."""
    counted = {}
    received = client.session.received

    def count(frame, now):
        counted[type(frame).__name__] = counted.get(type(frame).__name__, 0) + 1
        received(frame, now)

    client.session.received = count
    return counted


@pytest.mark.parametrize("keeps_its_book", [True, False])
async def test_after_a_kill_everything_is_done_again(tmp_path, keeps_its_book):
    async with contextlib.AsyncExitStack() as stack:
        updates = []

        async def follow():
            async for update in orders.changes():
                updates.append([[i.port for i in part] for part in update])  # noqa: PERF401  # as they come

        async def work(first):
            nonlocal writer, reader, orders, boot
            writer = await stack.enter_async_context(Client(first.address))
            reader = await stack.enter_async_context(Client(first.address))
            await stack.enter_async_context(writer.register(an_entry(1), an_entry(2)))
            orders = await soon(reader.subscribe("orders"))
            await soon(orders.wait_for(lambda instances: len(instances) == 2))
            if keeps_its_book:
                saved = first._directory / "book" / "snapshot"
                await until(saved.exists, timeout=TIMEOUT)
            following = asyncio.create_task(follow())
            stack.callback(following.cancel)
            boot = writer.session.boot

        writer = reader = orders = boot = None
        async with killed_and_started_again(tmp_path, work, keeps_its_book=keeps_its_book) as second:
            await until(lambda: writer.session.boot != boot, timeout=TIMEOUT)
            await soon(writer.confirmed(a_ref(1), a_ref(2)))
            status, body = await second.get("/services/orders")
            assert (status, sorted(i["port"] for i in json.loads(body)["instances"])) == (200, [1, 2])
            assert {orders.pick().port for _ in range(4)} == {1, 2}
            # Nobody who followed it has seen anything of that; what is new comes.
            writer.put(an_entry(3))
            await soon(orders.wait_for(lambda instances: len(instances) == 3))
            await until(lambda: len(updates) > 1)
            assert updates == [[[1, 2], [], []], [[3], [], []]]
            await writer.aclose()
            await soon(orders.wait_for(lambda instances: not [i for i in instances if i.port == 3]))


async def test_a_thousand_lists_that_are_held_are_not_sent_again(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        names = [f"s{n}" for n in range(SERVICES)]

        async def work(first):
            nonlocal reader, counted
            writer = Client(first.address)
            await writer.__aenter__()
            stack.push_async_callback(writer.aclose)
            entries = [an_entry(1, service=name) for name in names]
            writer.put(*entries)
            await soon(writer.confirmed(*(e.ref for e in entries)))
            reader = await stack.enter_async_context(Client(first.address))
            lists = await soon(asyncio.gather(*(reader.subscribe(name) for name in names)))
            await until(lambda: all(len(s.instances) == 1 for s in lists), timeout=TIMEOUT)
            saved = first._directory / "book" / "snapshot"
            await until(saved.exists, timeout=TIMEOUT)
            # The second from now on was begun after all registrations.
            for port in (1, 2):
                before = saved.stat().st_mtime_ns
                writer.put(an_entry(port, service="last"))
                await until(lambda before=before: saved.stat().st_mtime_ns != before, timeout=TIMEOUT)
            counted = counting(reader)

        reader, counted = None, {}
        async with killed_and_started_again(tmp_path, work, keeps_its_book=True):
            await until(
                lambda: counted.get("Current", 0) + counted.get("Snapshot", 0) >= SERVICES, timeout=TIMEOUT
            )
            assert "Snapshot" not in counted
            assert all(reader.session.views[key].known for key in reader.session.views)


async def test_a_registry_that_is_stopped_is_left_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "PING_AFTER", 0.5)
    monkeypatch.setattr(session, "DEAD_AFTER", 2.5)
    async with (
        RegistryProcess(tmp_path / "a") as a,
        RegistryProcess(tmp_path / "b") as b,
        Client(a.address, b.address) as client,
        client.register(an_entry()),
    ):
        used, other = (a, b) if a.address in client.peer else (b, a)
        used.stop()
        await until(lambda: other.address in client.peer and client.connected, timeout=TIMEOUT)
        await until(lambda: client.session.is_confirmed(a_ref()), timeout=TIMEOUT)


# --- a user's program -----------------------------------------------------------------------------------

PROGRAM = """
import asyncio, signal, sys
from rollbook import Client, Entry

async def main():
    async with Client(sys.argv[1]) as client:
        async with client.register(Entry(service="orders", ip="10.0.0.1", port=8080)):
            print("registered", flush=True)
            {body}

asyncio.run(main())
"""


async def run(registry, body):
    """Run a program that holds an entry; returns its process once it does."""
    indented = textwrap.indent(textwrap.dedent(body), " " * 12).strip()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM.format(body=indented), registry.address,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert await soon(process.stdout.readline()) == b"registered\n"
    return process


async def reasons(registry):
    _, body = await registry.get("/services/orders/events")
    return [event["reason"] for event in json.loads(body)["events"]]


@pytest.mark.parametrize(
    ("body", "number", "status"),
    [
        ("sys.stdin.read()", None, 0),
        ("sys.stdin.read(); raise ValueError('its own')", None, 1),
        ("sys.stdin.read(); sys.exit(3)", None, 3),
        (
            """
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            print("ready", flush=True)
            await stop.wait()
            """,
            signal.SIGTERM,
            0,
        ),
        ("print('ready', flush=True); await asyncio.Event().wait()", signal.SIGINT, -2),
    ],
    ids=["end", "exception", "exit", "own handler of TERM", "interrupt"],
)
async def test_however_a_program_leaves_the_block_its_entries_leave_the_book(tmp_path, body, number, status):
    async with RegistryProcess(tmp_path) as registry, Client(registry.address) as other:
        orders = await soon(other.subscribe("orders"))
        process = await run(registry, body)
        await soon(orders.wait_for(lambda instances: len(instances) == 1))
        # What reads it goes on now, and not before its entry has been seen.
        process.stdin.close()
        if number is not None:
            assert await soon(process.stdout.readline()) == b"ready\n"
            process.send_signal(number)
        await soon(orders.wait_for(lambda instances: not instances))
        _, errors = await soon(process.communicate())
        assert process.returncode == status, errors.decode()
        # By its own word, not by its silence.
        assert (await reasons(registry))[0] in {"deregistered", "released"}


async def test_signals_are_the_programs_own(tmp_path):
    """Without a handler TERM ends it where it is, and its entry leaves by its silence."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    flags = "--unhealthy-after", "1s", "--remove-after", "2s", "--beat-interval", "500ms"
    async with RegistryProcess(tmp_path, *flags) as registry, Client(registry.address) as other:
        orders = await soon(other.subscribe("orders"))
        assert {number: signal.getsignal(number) for number in before} == before
        process = await run(registry, "await asyncio.Event().wait()")
        await soon(orders.wait_for(lambda instances: len(instances) == 1))
        process.terminate()
        assert await soon(process.wait()) == -signal.SIGTERM
        await soon(orders.wait_for(lambda instances: not instances))
        assert (await reasons(registry))[0] == "expired"


def test_frames_have_the_names_that_are_counted_here():
    assert {frames.Current.__name__, frames.Snapshot.__name__} == {"Current", "Snapshot"}
