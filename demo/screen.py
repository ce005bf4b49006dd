"""What the terminal shows: a live picture, or lines where there is no terminal."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from demo.house import House
    from demo.story import Story

REFRESH = 0.25
LINES_EVERY = 5.0
"""Seconds between the lines that sum up the requests, without a terminal."""


class Screen:
    """Shows the demonstration."""

    def __init__(self) -> None:
        self.console = Console()
        self._happened: deque[tuple[float, str]] = deque(maxlen=9)

    def tell(self, at: float, text: str) -> None:
        """Show something that happened."""
        self._happened.append((at, text))
        if not self.console.is_terminal:
            self.console.print(f"{at:6.1f} s  {text}", highlight=False, soft_wrap=True)

    async def show(self, house: House, story: Story) -> None:
        """Keep the picture current, until cancelled."""
        if not self.console.is_terminal:
            await self._lines(house, story)
            return
        with Live(console=self.console, auto_refresh=False, screen=False, transient=False) as live:
            while True:
                live.update(self._picture(house, story), refresh=True)
                await asyncio.sleep(REFRESH)

    async def _lines(self, house: House, story: Story) -> None:
        for what, url in house.addresses:
            self.console.print(f"try: curl {url}   # {what}", highlight=False, soft_wrap=True)
        last: Counter[str] = Counter()
        while True:
            await asyncio.sleep(LINES_EVERY)
            spread = ", ".join(f"{n} {c}" for n, c in sorted((story.answers - last).items())) or "none"
            last = story.answers.copy()
            listed = ", ".join(
                f"{n} {'healthy' if i['healthy'] else 'unhealthy'}"
                for n, i in sorted(story.instances.items())
            )
            self.console.print(
                f"{story.elapsed:6.1f} s  in the book: {listed or 'nobody'}; "
                f"requests answered in the last {LINES_EVERY:g} s: {spread}",
                highlight=False,
                soft_wrap=True,
            )

    def _picture(self, house: House, story: Story) -> RenderableType:
        return Group(
            Panel(
                self._book(house, story), title="who serves [b]orders[/b], as the caller's sidecar sees it"
            ),
            Panel(self._events(), title="what happened"),
            Panel(_addresses(house), title="try it: curl"),
            Text(f"{story.elapsed:.0f} s; Ctrl-C ends it", style="dim"),
        )

    def _book(self, house: House, story: Story) -> RenderableType:
        table = Table(box=None, expand=True)
        for column in ("instance", "address", "state", "answered", "share of the last 50 requests"):
            table.add_column(column)
        recent = Counter(story.recent)
        total = max(1, len(story.recent))
        for orders in house.orders:
            found = story.instances.get(orders.name)
            state = Text("not in the book", style="dim")
            if found is not None:
                state = (
                    Text("healthy", style="green") if found["healthy"] else Text("unhealthy", style="yellow")
                )
            if story.hanging == orders.name:
                state.append("  (hangs)", style="red")
            share = recent[orders.name] / total
            table.add_row(
                orders.name,
                f"127.0.0.1:{orders.port}",
                state,
                str(story.answers[orders.name]),
                Text("█" * round(share * 24), style="cyan").append(f" {share:.0%}", style="default"),
            )
        table.add_row("", "", "", "", f"{story.retried} sent again elsewhere, {story.failed} failed")
        return table

    def _events(self) -> RenderableType:
        if not self._happened:
            return Text("starting…", style="dim")
        return Text("\n".join(f"{at:6.1f} s  {text}" for at, text in self._happened))


def _addresses(house: House) -> RenderableType:
    table = Table(box=None, show_header=False)
    for what, url in house.addresses:
        table.add_row(url, Text(what, style="dim"))
    return table
