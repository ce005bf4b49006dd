"""Fixtures of those who test against registries in their own process; a ``conftest.py`` imports them."""

from __future__ import annotations

import pytest

from rawkit import connector
from serverkit import starter

__all__ = ["connect", "registry", "start"]


@pytest.fixture
async def start(tmp_path):
    """Start registries in this process; all of it ends with the test."""
    async with starter(tmp_path) as start:
        yield start


@pytest.fixture
async def registry(start):
    """A registry in this process, with its defaults."""
    return await start()


@pytest.fixture
async def connect():
    """Open connections of bytes; they end with the test."""
    async with connector() as connect:
        yield connect
