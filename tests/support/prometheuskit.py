"""The real Prometheus: Debian's, taken out of its package without being installed.

An installed one would be started as a service on port 9090; the tests need a program, not a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import aiohttp
import yaml

from ports import free_port


class NoPrometheus(Exception):  # noqa: N818  # a state of the machine, not a mistake
    """There is none here, and why."""


def program() -> Path:
    """Return the program: the one on the PATH, or Debian's, fetched once into the cache.

    Raises:
        NoPrometheus: there is neither, and why.
    """
    installed = shutil.which("prometheus")
    if installed is not None:
        return Path(installed)
    cache = Path(os.environ.get("ROLLBOOK_CACHE") or Path.home() / ".cache/rollbook") / "prometheus"
    fetched = cache / "root/usr/bin/prometheus"
    if not fetched.exists():
        _fetch(cache)
    return fetched


def _fetch(cache: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoPrometheus("prometheus is not on the PATH, and this is no Debian to fetch it from")
    cache.mkdir(parents=True, exist_ok=True)
    download = ("apt-get", "download", "prometheus")
    try:
        _run(*download, cwd=cache)
    except NoPrometheus:
        # A machine that was made a moment ago has no lists of packages yet, an old one old lists.
        if os.geteuid() != 0:
            raise
        _run("apt-get", "update", cwd=cache)
        _run(*download, cwd=cache)
    packages = sorted(cache.glob("prometheus_*.deb"), key=lambda p: p.stat().st_mtime)
    unpacked = cache / f"root.{os.getpid()}"
    _run("dpkg-deb", "--extract", str(packages[-1]), str(unpacked), cwd=cache)
    for package in packages:
        package.unlink()
    with contextlib.suppress(OSError):
        # Whoever was first has the place; it is the same program.
        unpacked.rename(cache / "root")
    shutil.rmtree(unpacked, ignore_errors=True)


def _run(*argv: str, cwd: Path) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode != 0:
        raise NoPrometheus(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http

    async def get(self, path: str):
        async with self._http.get(self._url + path) as response:
            return (await response.json())["data"]

    async def targets(self) -> dict[str, dict[str, str]]:
        """Return the labels before relabelling, by address, of what it has discovered."""
        found = await self.get("/api/v1/targets")
        everything = [*found["activeTargets"], *found["droppedTargets"]]
        return {t["discoveredLabels"]["__address__"]: t["discoveredLabels"] for t in everything}

    async def until(self, condition, timeout: float = 30.0):
        """Look again and again until a function of the targets holds, and return them."""
        async with asyncio.timeout(timeout):
            while not condition(targets := await self.targets()):
                await asyncio.sleep(0.1)
        return targets


@contextlib.asynccontextmanager
async def running(binary: Path, directory: Path, scrape: dict):
    """Run a Prometheus with one scrape configuration; it ends with the block."""
    port = free_port()
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(binary),
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            cwd=directory,
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as http:
            await _ready(process, f"http://127.0.0.1:{port}", http, directory / "prometheus.log")
            yield Prometheus(f"http://127.0.0.1:{port}", http)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ready(process, url: str, http: aiohttp.ClientSession, log: Path) -> None:
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, log.read_text()
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{url}/-/ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)
