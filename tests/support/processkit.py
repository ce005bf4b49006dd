"""A registry as users run it: a process of its own, whose memory, log and metrics a test may look at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp


class RegistryProcess:
    """One registry; leave the ``async with`` block and it is gone.

    Args:
        directory: for its files.
        flags: beside the ports, which it chooses itself.
    """

    def __init__(self, directory: Path, *flags: str) -> None:
        self._directory = directory
        self._flags = flags
        self.log: list[dict] = []

    async def __aenter__(self):
        # Variables of whoever runs the tests are not this registry's.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROLLBOOK_")}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from rollbook_registry.cli import main; main()", "--auth", "none",
            "--nacos-grpc", "false", "--data-dir", str(self._directory / "book"), "--http-port", "0",
            "--session-port", "0", *self._flags, env=environment, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        async with asyncio.timeout(30):
            while not (serving := [e for e in self.log if e.get("event") == "serving"]):
                assert self._process.returncode is None, self.log
                await asyncio.sleep(0.02)
        self.http_port, self.session_port = serving[0]["http"], serving[0]["sessions"]
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.address = f"127.0.0.1:{self.session_port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            async with asyncio.timeout(20):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        await self._reading

    async def _read(self) -> None:
        while line := await self._process.stderr.readline():
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.decode(errors="replace"), "level": "error"})

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def complaints(self) -> list[dict]:
        """What it logged as an error."""
        return [e for e in self.log if e.get("level") in {"error", "critical"}]

    def stop(self) -> None:
        """Stop it in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def rss(self) -> float:
        """Its resident memory, in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    async def get(self, path: str):
        """GET; returns status and body."""
        async with self._http.get(self.url + path) as response:
            return response.status, await response.read()

    async def request(self, method: str, path: str, json_body=None):
        """Send a request; returns status and body."""
        async with self._http.request(method, self.url + path, json=json_body) as response:
            return response.status, await response.read()

    async def metric(self, name: str, **labels: str) -> float:
        """One metric; 0 if it isn't there."""
        text = (await self.get("/metrics"))[1].decode()
        wanted = {f'{k}="{v}"' for k, v in labels.items()}
        total = 0.0
        for line in text.splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and wanted <= set((found[1] or "").split(",")):
                total += float(found[2])
        return total
