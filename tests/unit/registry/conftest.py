"""Registries that start and end with a test, and how much is tried of what hypothesis makes up."""

from __future__ import annotations

import os

import hypothesis

from registryfixtures import connect, registry, start

__all__ = ["connect", "registry", "start"]

hypothesis.settings.register_profile(
    "rollbook", max_examples=50, deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("rollbook")
