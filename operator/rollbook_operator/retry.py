"""Trying again: how long to wait, and after which errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp

from rollbook.kube import KubeError

if TYPE_CHECKING:
    import random

FIRST: Final = 0.2
MOST: Final = 30.0
"""Seconds before another attempt: drawn between 0 and ``min(MOST, FIRST * 2 ** attempt)``, so that what
failed together does not come back together ("full jitter")."""

_MAX_EXPONENT: Final = 10

API_ERRORS: Final = (KubeError, aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""What a request to the API server may fail with; a ``ValueError`` is an answer that is not JSON."""


def delay(attempt: int, rng: random.Random) -> float:
    """Return the seconds to wait after a failed attempt, the first one being 0."""
    return rng.uniform(0, min(MOST, FIRST * 2 ** min(attempt, _MAX_EXPONENT)))


async def pause(attempt: int, rng: random.Random) -> None:
    """Wait before trying again."""
    await asyncio.sleep(delay(attempt, rng))
