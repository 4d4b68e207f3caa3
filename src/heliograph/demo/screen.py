"""The live view: the head, the eight clients, and for each publish the receipts as they come in."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from heliograph.cli.show import bar, short
from heliograph.core.errors import HeliographError
from heliograph.demo.cast import Actor
from heliograph.demo.sample import CONFIG, ENVIRONMENT, NAMESPACE
from heliograph.demo.shop import Shop

REFRESH_S = 0.1
SHOWN = 5


class Screen:
    def __init__(self, shop: Shop, actors: list[Actor], paste: str) -> None:
        self._shop = shop
        self._actors = actors
        self._paste = paste
        self._head: dict[str, Any] = {}
        self._stories: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._times: dict[str, dict[int, float]] = {}

    async def run(self, console: Console, stop: asyncio.Event) -> None:
        """Until Ctrl-C."""
        console.print(self._paste, soft_wrap=True, highlight=False, markup=False)
        with Live(self._view(), console=console, refresh_per_second=10, transient=False) as live:
            while not stop.is_set():
                try:
                    await self._look()
                except (HeliographError, OSError) as error:
                    console.log(f"waiting for the services: {error}")
                live.update(self._view())
                try:
                    await asyncio.wait_for(stop.wait(), REFRESH_S)
                except TimeoutError:
                    continue

    async def _look(self) -> None:
        self._head = await self._shop.head()
        number = self._head["number"]
        first = max(2, number - SHOWN + 1)
        for each in range(first, number + 1):
            known = self._stories.get(each)
            if known is None or known["state"] == "open":
                told = await self._shop.propagation(each)
                if told:
                    self._stories[each] = told
        while len(self._stories) > SHOWN:
            self._stories.popitem(last=False)

    def _view(self) -> Group:
        return Group(self._head_line(), self._clients(), self._publishes())

    def _head_line(self) -> Text:
        if not self._head:
            return Text("…")
        return Text.assemble(
            (f"{NAMESPACE}/{ENVIRONMENT}", "bold"),
            " is at ",
            (f"version {self._head['number']}", "bold green"),
            f"  {short(self._head['version'])}   root {short(self._head['root'])}",
        )

    def _clients(self) -> Panel:
        table = Table("client", "app", "view", "runs", "max_items", box=None, expand=True, header_style="dim")
        for actor in self._actors:
            current = actor.number == self._head.get("number")
            ended = actor.child.returncode is not None
            table.add_row(
                actor.sample.host,
                actor.sample.app,
                ", ".join(actor.sample.view) if actor.sample.view != ("",) else "everything",
                Text(
                    "ended" if ended else f"version {actor.number or '…'}",
                    style="red" if ended else "green" if current else "yellow",
                ),
                Text(str(actor.value if actor.value is not None else ""), style="bold"),
            )
        return Panel(table, title=f"eight clients, and {CONFIG} as they see it", border_style="dim", title_align="left")

    def _publishes(self) -> Panel:
        lines = []
        for number, told in reversed(self._stories.items()):
            times = told["times_ms"]["applied"]
            ms = f"   p50 {times['p50']:.1f} ms, p99 {times['p99']:.1f} ms" if times["count"] else ""
            lines.append(Text.assemble((f"version {number:<5}", "bold"), bar(told, width=24), (ms, "cyan")))
        return Panel(
            Group(*lines) if lines else Text("nothing was published yet", style="dim"),
            title="receipts",
            border_style="dim",
            title_align="left",
        )
