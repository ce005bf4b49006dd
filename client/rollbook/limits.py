"""Limits on what one message may carry; each error that comes of them names the limit.

They hold at every door, so that nothing is accepted at one and refused at another.
"""

from __future__ import annotations

from typing import Final

MAX_METADATA_PAIRS: Final = 128
"""Pairs in one instance's metadata."""

MAX_METADATA_BYTES: Final = 8192
"""Bytes of one instance's metadata, keys and values together, as UTF-8."""

MAX_DESCRIPTION_LENGTH: Final = 1024
"""Characters of a text for people: a title, a reason."""

MAX_WEIGHT: Final = 10000.0
"""Nacos' own limit."""

MAX_ENTRIES_PER_FRAME: Final = 10_000
"""Instances in one ``register``, ``beat`` or ``deregister`` frame; clients split above it."""

MAX_SERVICES_PER_BARRIER: Final = 1000
"""Services that one ``barrier`` frame may name."""

MAX_HELD_PER_FRAME: Final = 1000
"""Lists that one ``follow`` frame may offer; clients split above it, which keeps it below the next limit."""

MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
"""Bytes of one session frame that the registry reads."""

MAX_BODY_BYTES: Final = 1024 * 1024
"""Bytes of one HTTP body that the registry reads."""

MAX_SELECTOR_LENGTH: Final = 1024
"""Characters of one selector on metadata."""

MAX_SELECTOR_TERMS: Final = 32
"""Terms of one selector, which commas separate."""
