"""A registry, as a process, that is killed while it is written to; and what of that is there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys

import aiohttp

WRITERS = 8
PORTS = (1, 2, 3)


class Record:
    """Something that can be laid down and taken back, and what may be there of it.

    While a write is under way both the old and the new may be; when it has been answered, only the new.
    """

    def __init__(self, writer: int, kind: str, port: int = 0) -> None:
        self.writer = writer
        self.kind = kind
        self.port = port
        self.possible: set[float | None] = {None}

    @property
    def path(self) -> str:
        service = f"/services/s{self.writer}"
        if self.kind == "settings":
            return f"{service}/settings"
        instance = f"{service}/instances/10.0.0.1:{self.port}"
        return instance if self.kind == "instance" else f"{instance}/override"

    def write(self, value: float | None, chance: random.Random):
        """How to have it so: method, path, body."""
        if value is None:
            return "DELETE", self.path, None
        if self.kind == "settings":
            return "PUT", self.path, {"metadata": {"n": str(value)}}
        if self.kind == "override":
            return "PUT", self.path, {"weight": value}
        if None not in self.possible and chance.random() < 0.3:
            return "PATCH", self.path, {"weight": value}
        body = {"ip": "10.0.0.1", "port": self.port, "weight": value, "ephemeral": False}
        return "POST", f"/services/s{self.writer}/instances", {**body, "check": {"type": "none"}}

    async def read(self, http, url) -> float | None:
        if self.kind == "instance":
            async with http.get(f"{url}/services/s{self.writer}") as response:
                found = (await response.json())["instances"]
            return next((i["weight"] for i in found if i["port"] == self.port), None)
        async with http.get(url + self.path) as response:
            body = await response.json(content_type=None)
        if response.status == 404:
            return None
        return float(body["metadata"]["n"]) if self.kind == "settings" else body["override"]["weight"]


async def killed_and_back(directory, *, rounds: int, seed: int) -> int:
    """Kill a registry right after an answer and start it again, so many times.

    Returns:
        How many writes were acknowledged; every one of them was there.
    """
    chance = random.Random(seed)
    # An override would hide the weight that was laid down: it is about another instance.
    records = [
        [
            *(Record(w, "instance", port) for port in PORTS),
            *(Record(w, "override", port + len(PORTS)) for port in PORTS),
            Record(w, "settings"),
        ]
        for w in range(WRITERS)
    ]
    answered = 0
    for life in range(rounds + 1):
        async with _registry(directory) as (process, url), aiohttp.ClientSession() as http:
            for record in (r for mine in records for r in mine):
                found = await record.read(http, url)
                assert found in record.possible, f"seed {seed}, life {life}: {record.path} is {found}"
                record.possible = {found}
            if life == rounds:
                break
            answered += await _write_until_killed(process, http, url, records, chance)
    return answered


async def _write_until_killed(process, http, url, records, chance) -> int:
    fatal = chance.randrange(1, 200)
    answered = 0

    async def write(mine, chance):
        nonlocal answered
        for n in range(10_000):
            record = chance.choice(mine)
            value = None if chance.random() < 0.3 else float(n % 9_000 + 1)
            method, path, body = record.write(value, chance)
            before, record.possible = record.possible, record.possible | {value}
            async with http.request(method, url + path, json=body) as response:
                status, text = response.status, await response.read()
            if status == 404:
                assert None in before, f"{method} {path}: {text}"
                record.possible = {None}
            else:
                assert status in {200, 201, 204}, f"{method} {path}: {text}"
                record.possible = {value}
            answered += 1
            if answered == fatal:
                process.kill()

    writers = [asyncio.create_task(write(mine, random.Random(chance.random()))) for mine in records]
    outcomes = await asyncio.gather(*writers, return_exceptions=True)
    for outcome in outcomes:
        if not isinstance(outcome, aiohttp.ClientError | OSError):
            raise outcome
    assert await process.wait() == -9
    return answered


@contextlib.asynccontextmanager
async def _registry(directory):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROLLBOOK_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from rollbook_registry.cli import main; main()", "--auth", "none",
        "--nacos-grpc", "false", "--data-dir", str(directory), "--http-port", "0", "--session-port", "0",
        "--log-level", "info", env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = []
    try:
        async with asyncio.timeout(30):
            while not said or said[-1].get("event") != "serving":
                line = await process.stderr.readline()
                assert line, f"it ended: {said}"
                said.append(json.loads(line))
        reading = asyncio.create_task(process.stderr.read())
        yield process, f"http://127.0.0.1:{said[-1]['http']}"
        await _end(process)
        await reading
    finally:
        await _end(process)


async def _end(process):
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await process.wait()
