"""The examples of the pages, run against a real registry; what they say they print, they print."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import signal
from pathlib import Path

import pytest
import pytest_asyncio

from processkit import RegistryProcess

ROOT = Path(__file__).parents[3]
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def examples():
    """All Python blocks of the pages for users, with the output that follows them."""
    for page in ("README.md", "docs/sdk.md"):
        text = (ROOT / page).read_text()
        for found in _BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield pytest.param(found[1], found[2] or "", id=f"{page}:{line}")


async def run(source):
    """Run a block; it may await at its top, or be a program with a loop of its own."""
    code = compile(source, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)
        else:
            await asyncio.to_thread(exec, code, names)
    return printed.getvalue()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def registry(tmp_path_factory):
    async with RegistryProcess(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("source", "expected"), list(examples()))
async def test_the_example_does_what_the_page_says(source, expected, registry):
    source = source.replace("localhost:7848", registry.address)
    source = source.replace("http_port=8848", f"http_port={registry.http_port}")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        printed = await asyncio.wait_for(run(source), 60)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, handler)
    assert printed == expected
    # Each cleans up behind itself.
    _, found = await registry.get("/services/orders")
    assert b'"instances":[]' in found


def test_there_are_examples():
    assert len(list(examples())) > 9
