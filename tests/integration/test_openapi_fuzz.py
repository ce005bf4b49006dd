"""A real registry does what /openapi.json says, whatever schemathesis makes up.

Its checks: no answer but those that are described, in status, content type, headers and form; what the
description forbids is refused, what it allows is taken; no 5xx. ``fuzz/`` has what it is told beside that.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import aiohttp

FUZZ = Path(__file__).parent / "fuzz"
EXAMPLES = 40
"""Cases an operation and kind of data; what was found was found with 300."""


async def settled(url: str) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}/prometheus/sd") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)


async def test_the_registry_does_what_its_description_says(start_registry, tmp_path):
    registry = await start_registry(
        "--beat-interval", "200ms", "--unhealthy-after", "1s", "--remove-after", "1s"
    )
    await settled(registry.url)
    path = os.pathsep.join(filter(None, (str(FUZZ), os.environ.get("PYTHONPATH"))))
    repeatable = ["--generation-deterministic"] if os.environ.get("CI") else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()",
        "--no-color", "--config-file", str(FUZZ / "schemathesis.toml"),
        "run", f"{registry.url}/openapi.json", "--max-examples", str(EXAMPLES), *repeatable,
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert b" passed" in output
