"""The command as users start it, beside the registry's own command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

BIN = Path(sys.executable).parent


@pytest.fixture
async def start():
    """Start a command; whatever is left of it is ended with the test."""
    started = []

    async def spawn(name: str, *arguments: object, env: dict[str, str] | None = None):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ROLLBOOK_")}
        process = await asyncio.create_subprocess_exec(
            BIN / name,
            *map(str, arguments),
            env={**clean, **(env or {})},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        if process.returncode is None:
            process.kill()
        # Not only wait: what it wrote has to be read, or a full pipe would hold it.
        await process.communicate()


@pytest.fixture
async def get(eventually):
    async with aiohttp.ClientSession() as http:

        async def ask(port: int, path: str, accept=lambda _response, _body: True, **options):
            """Ask until somebody answers and the answer is acceptable."""

            async def once():
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"http://127.0.0.1:{port}{path}", **options) as response:
                        body = await response.json(content_type=None)
                        return (response, body) if accept(response, body) else None

            return await eventually(once, 20.0)

        yield ask


async def test_it_serves_without_a_registry_and_sigterm_ends_it_with_status_0(
    start, get, free_port, absent_registry
):
    port = free_port()
    sidecar = await start(
        "rollbook-sidecar",
        *("--lookup-port", port, "--hooks-port", 0, "--first-lookup-timeout", "50ms"),
        env={"ROLLBOOK_REGISTRY": absent_registry},
    )
    response, _ = await get(port, "/healthz")
    assert response.status == 200
    response, problem = await get(port, "/services/orders")
    assert (response.status, problem["code"]) == (503, "registry_unreachable")
    sidecar.send_signal(signal.SIGTERM)
    _, logged = await sidecar.communicate()
    assert sidecar.returncode == 0
    assert b"Traceback" not in logged


async def test_a_taken_port_ends_it_with_a_message_that_names_the_flag(start, absent_registry):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        sidecar = await start(
            "rollbook-sidecar", "--registry", absent_registry, "--lookup-port", port, "--hooks-port", 0
        )
        _, logged = await sidecar.communicate()
    assert sidecar.returncode == 1
    assert b"--lookup-port" in logged
    assert b"Traceback" not in logged


async def test_the_whole_way_with_a_real_registry(start, get, free_port, tmp_path, eventually):
    http_port, session_port, provider, hooks, caller = (free_port() for _ in range(5))
    registry_flags = ("--data-dir", tmp_path, "--http-port", http_port, "--session-port", session_port)
    registry_flags += ("--grpc-port", 0)
    registry = await start("rollbook-registry", *registry_flags)
    application = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = application.sockets[0].getsockname()[1]
    address = f"127.0.0.1:{session_port}"
    await start(
        "rollbook-sidecar",
        *("--registry", address, "--lookup-port", provider, "--hooks-port", hooks),
        *("--service", "orders", "--ports", port, "--linger", "0s", "--drain-secret", "0123abcd"),
        *("--hooks-host", "127.0.0.1"),
    )
    asker = await start("rollbook-sidecar", "--registry", address, "--lookup-port", caller, "--hooks-port", 0)

    def lists(*healthy: bool):
        return lambda r, body: r.status == 200 and [i["healthy"] for i in body["instances"]] == [*healthy]

    async with application:
        response, found = await get(caller, "/services/orders", lists(True))
        assert found["instances"][0]["port"] == port
        assert response.headers["X-Rollbook-Stale"] == "false"
        _, chosen = await get(caller, "/services/orders/pick")
        assert (chosen["ip"], chosen["port"]) == ("127.0.0.1", port)

        # The registry goes: answers go on, and say so.
        registry.terminate()
        await registry.communicate()
        response, same = await get(
            caller, "/services/orders", lambda r, _: r.headers.get("X-Rollbook-Stale") == "true"
        )
        assert [i["key"] for i in same["instances"]] == [i["key"] for i in found["instances"]]

        # It comes back: everybody is in the book again.
        await start("rollbook-registry", *registry_flags)
        await get(caller, "/services/orders", lambda r, _: r.headers.get("X-Rollbook-Stale") == "false")
        await get(http_port, "/services/orders", lists(True))

        await get(provider, "/services/orders", lambda r, _: r.headers.get("X-Rollbook-Stale") == "false")

        # Draining: when the hook answers, the other sidecar does not list it any more.
        _, drained = await get(hooks, "/drain/wait", headers={"X-Rollbook-Drain": "0123abcd"})
        assert drained["outcome"] == "acknowledged"
        _, after = await get(caller, "/services/orders", lambda *_: True)
        assert after["instances"] == []

    asker.send_signal(signal.SIGINT)
    await asker.communicate()
    assert asker.returncode == 0
