"""What happens in the demonstration, and what the caller sees of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.house import House

CALM = 5.0
"""Seconds in which all is well, at the start and after each round."""

AFTERMATH = 3.0
"""Seconds between an instance's removal and its return."""

RULE = "rule: the last beat, up to 5 s before it hung, plus"

REQUEST_INTERVAL = 0.1
REQUEST_TIMEOUT = 0.4


class Story:
    """Watches the service through the caller's sidecar, sends requests, and has instances hang in turn.

    Args:
        house: the processes.
        tell: is told each thing that happens, with the seconds since the start.
    """

    def __init__(self, house: House, tell: Callable[[float, str], None]) -> None:
        self._house = house
        self._tell_others = tell
        self._started = time.monotonic()
        self._sidecar = f"http://127.0.0.1:{house.caller_port}/services/orders"
        self._seen = asyncio.Condition()
        self.instances: dict[str, dict[str, Any]] = {}
        self.answers: Counter[str] = Counter()
        self.recent: deque[str] = deque(maxlen=50)
        self.hanging = ""
        self.retried = 0
        self.failed = 0
        self.saw: list[str] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def tell(self, text: str) -> None:
        """Say what has happened."""
        self.saw.append(f"{self.elapsed:6.1f} s  {text}")
        self._tell_others(self.elapsed, text)

    async def run(self) -> None:
        """Play, until cancelled."""
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(http))
            tasks.create_task(self._call(http))
            tasks.create_task(self._play())

    async def _play(self) -> None:
        names = [o.name for o in self._house.orders]
        await self._until(lambda: all(self._healthy(n) for n in names))
        self.tell(f"{' and '.join(names)} are in the book; requests are spread over both")
        turn = 0
        while True:
            await asyncio.sleep(CALM)
            # The second one first: the story names one instance from the start to the end of a round.
            turn += 1
            await self._round(turn % len(self._house.orders))

    async def _round(self, number: int) -> None:
        victim = self._house.orders[number]
        victim.freeze()
        self.hanging = victim.name
        start = time.monotonic()
        self.tell(f"{victim.name} hangs: its application and its sidecar are stopped")
        await self._until(lambda: not self._healthy(victim.name))
        self.tell(f"{victim.name} left balancing after {time.monotonic() - start:.1f} s ({RULE} 15 s)")
        await self._until(lambda: victim.name not in self.instances)
        self.tell(f"{victim.name} was struck out after {time.monotonic() - start:.1f} s ({RULE} 30 s)")
        await asyncio.sleep(AFTERMATH)
        victim.thaw()
        self.hanging = ""
        start = time.monotonic()
        self.tell(f"{victim.name} goes on")
        await self._until(lambda: self._healthy(victim.name))
        self.tell(
            f"{victim.name} is back in the book and in balancing after {time.monotonic() - start:.1f} s; "
            "its late beat was ignored, it registered afresh"
        )

    def _healthy(self, name: str) -> bool:
        return bool(self.instances.get(name, {}).get("healthy"))

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._seen:
            await self._seen.wait_for(condition)

    async def _watch(self, http: aiohttp.ClientSession) -> None:
        """Follow the list by long polls at the caller's sidecar."""
        revision = ""
        while True:
            query = {"wait": "30s", "revision": revision} if revision else {}
            try:
                async with http.get(self._sidecar, params=query) as response:
                    answer = await response.json(content_type=None)
                    if response.ok:
                        revision = answer["revision"]
                        async with self._seen:
                            self.instances = {i["instance_id"]: i for i in answer["instances"]}
                            self._seen.notify_all()
                        continue
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)  # the sidecar has no list yet
            self._house.check()

    async def _call(self, http: aiohttp.ClientSession) -> None:
        """Be the caller: ask the sidecar whom to ask, and ask that one; once more if it doesn't answer."""
        await self._until(lambda: bool(self.instances))
        while True:
            for attempt in range(3):
                name = await self._request(http)
                if name:
                    self.answers[name] += 1
                    self.recent.append(name)
                    self.retried += attempt > 0
                    break
            else:
                self.failed += 1
            await asyncio.sleep(REQUEST_INTERVAL)

    async def _request(self, http: aiohttp.ClientSession) -> str:
        limit = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
        try:
            async with http.get(f"{self._sidecar}/pick") as response:
                if not response.ok:
                    return ""
                chosen = await response.json(content_type=None)
            async with http.get(f"http://{chosen['ip']}:{chosen['port']}/", timeout=limit) as response:
                return (await response.text()).strip()
        except (aiohttp.ClientError, TimeoutError):
            return ""
