"""Registries that start and end with a test, and how much is tried of what hypothesis makes up."""

from __future__ import annotations

import os

import hypothesis
import pytest

from rawkit import connector
from serverkit import starter

hypothesis.settings.register_profile(
    "rollbook", max_examples=50, deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("rollbook")


@pytest.fixture
async def start(tmp_path):
    """Start registries; all of it ends with the test."""
    async with starter(tmp_path) as start:
        yield start


@pytest.fixture
async def connect():
    """Open connections of bytes; they end with the test."""
    async with connector() as connect:
        yield connect


@pytest.fixture
async def registry(start):
    return await start()
