"""Registries in this process and as processes of their own; all of them end with their test."""

from __future__ import annotations

import contextlib
import os

import hypothesis
import pytest

from processkit import RegistryProcess
from registryfixtures import connect, registry, start

__all__ = ["connect", "registry", "start"]

hypothesis.settings.register_profile("rollbook", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("rollbook")


@pytest.fixture
async def launch(tmp_path):
    """Start registries as users do: each a process."""
    async with contextlib.AsyncExitStack() as stack:
        yield lambda *flags: stack.enter_async_context(RegistryProcess(tmp_path, *flags))
