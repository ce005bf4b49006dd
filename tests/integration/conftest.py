"""Real registries, as processes of their own, which end with their test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

import aiohttp
import hypothesis
import pytest

from ports import free_port

hypothesis.settings.register_profile("rollbook", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("rollbook")


class Process:
    """A registry that runs."""

    def __init__(self, http_port: int, session_port: int) -> None:
        self.url = f"http://127.0.0.1:{http_port}"
        self.address = f"127.0.0.1:{session_port}"


@contextlib.asynccontextmanager
async def registry_process(directory, *flags: str):
    """Run a registry until the block ends; it is ready when the block begins."""
    http_port, session_port = free_port(), free_port()
    log = directory / "registry.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from rollbook_registry.cli import main; main()", "--auth", "none",
            "--nacos-grpc", "false", "--data-dir", str(directory / "book"), "--http-port", str(http_port),
            "--session-port", str(session_port), *flags, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as http:
            while True:
                assert process.returncode is None, log.read_text()
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"http://127.0.0.1:{http_port}/readyz") as response:
                        if response.status == 200:
                            break
                await asyncio.sleep(0.05)
        yield Process(http_port, session_port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@pytest.fixture
async def start_registry(tmp_path):
    """Start registries; they end with the test."""
    async with contextlib.AsyncExitStack() as stack:
        yield lambda *flags: stack.enter_async_context(registry_process(tmp_path, *flags))
