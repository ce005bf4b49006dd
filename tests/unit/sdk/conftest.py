"""Registries that start and end with a test."""

from __future__ import annotations

import pytest

from serverkit import starter


@pytest.fixture
async def start(tmp_path):
    """Start registries in this process; all of it ends with the test."""
    async with starter(tmp_path) as start:
        yield start


@pytest.fixture
async def registry(start):
    return await start()
