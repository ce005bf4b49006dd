"""Registries that start and end with a test."""

from __future__ import annotations

from registryfixtures import registry, start

__all__ = ["registry", "start"]
