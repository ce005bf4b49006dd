"""Registries that start and end with a test, and how much is tried of what hypothesis makes up."""

from __future__ import annotations

import contextlib
import os

import aiohttp
import hypothesis
import pytest

from rollbook_registry.server import Server
from rollbook_registry.settings import RegistrySettings
from serverkit import Registry

hypothesis.settings.register_profile(
    "rollbook", max_examples=50, deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("rollbook")


@pytest.fixture
async def start(tmp_path):
    """Start registries; all of it ends with the test."""
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())

        async def start(api=None, **settings):
            defaults = {
                "data_dir": tmp_path,
                "http_port": 0,
                "session_port": 0,
                "auth": "none",
                "nacos_grpc": False,
            }
            server = Server(RegistrySettings(**{**defaults, **settings}), api)
            await stack.enter_async_context(server)
            return Registry(server, http, stack)

        yield start


@pytest.fixture
async def registry(start):
    return await start()
