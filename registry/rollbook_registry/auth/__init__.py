"""Who is speaking, and what they may say."""

from __future__ import annotations

from rollbook_registry.auth.identity import ANONYMOUS, LOCAL, Identity, Role

__all__ = ["ANONYMOUS", "LOCAL", "Identity", "Role"]
