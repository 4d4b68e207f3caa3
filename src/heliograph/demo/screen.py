"""The live view: the head, the eight clients with what they run, and for each publish the receipts as they come in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from heliograph.cli import show
from heliograph.core.errors import NotFound, Unavailable
from heliograph.demo.author import Author
from heliograph.demo.fleet import Fleet, Member
from heliograph.demo.shop import NAMESPACE, SHOWN

LOOK_S: Final = 0.05
"""Between two looks at the ledger while receipts come in."""
PATIENCE_S: Final = 15.0
PUBLISHES: Final = 5


@dataclass(slots=True)
class Publish:
    """One version as far as the ledger knows it. ``after_ms``: instance -> when it had applied it."""

    number: int
    version: dict[str, Any]
    story: dict[str, Any] | None = None
    after_ms: dict[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.story is not None and (self.story["state"] == "closed" or not self.story["missing"])


class Screen:
    def __init__(self, author: Author, fleet: Fleet) -> None:
        self._author = author
        self._fleet = fleet
        self._publishes: list[Publish] = []
        self._trouble = ""
        self._moved = asyncio.Event()

    # --- following --------------------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Looks at the head whenever a client reports one, and at its receipts until all are there."""
        while True:
            try:
                await self._look()
                self._trouble = ""
            except Unavailable as error:
                self._trouble = error.detail
                await asyncio.sleep(1)
            self._moved.set()

    async def _look(self) -> None:
        newest = max((each.number for each in self._fleet.members), default=0)
        shown = self._publishes[0].number if self._publishes else 0
        for number in range(max(shown, newest - PUBLISHES, 0) + 1, newest + 1):
            self._publishes.insert(0, Publish(number, await self._author.version(SHOWN, number)))
        del self._publishes[PUBLISHES:]
        unfinished = [each for each in self._publishes if not each.complete]
        for each in unfinished:
            await self._ask(each)
        try:
            async with asyncio.timeout(LOOK_S if unfinished else PATIENCE_S):
                await self._fleet.changed()
        except TimeoutError:
            return

    async def _ask(self, publish: Publish) -> None:
        try:
            publish.story = await self._author.propagation(SHOWN, publish.number)
            receipts = await self._author.receipts(SHOWN, publish.number)
        except NotFound:  # the ledger has not read it yet
            return
        since_us = publish.story["received_at_us"]
        publish.after_ms = {name: max(0, each["applied_at_us"] - since_us) / 1000 for name, each in receipts.items()}

    async def draw(self, live: Live) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            live.update(self.view(), refresh=True)

    # --- drawing ----------------------------------------------------------------------------------------------------------------

    def view(self) -> Group:
        parts: list[Any] = [self._head(), self._clients(), self._receipts()]
        if self._trouble:
            parts.append(Text(f"  {self._trouble}", style="yellow"))
        return Group(*parts)

    def _head(self) -> Text:
        if not self._publishes:
            return Text("…")
        told = self._publishes[0].version
        return Text.assemble(
            (f"{NAMESPACE}/{SHOWN}", "bold"),
            " is at ",
            (f"version {told['number']}", "bold green"),
            (
                f"  {show.short(told['version'])}  {told['kind']} at {show.clock(told['at'])}  {told['message'] or ''}",
                "bright_black",
            ),
        )

    def _clients(self) -> Panel:
        table = Table(
            "client", "app", "region", "sdk", "runs", "after", "last change", box=None, expand=True, header_style="bright_black"
        )
        head = self._publishes[0] if self._publishes else None
        for each in self._fleet.members:
            table.add_row(*self._client(each, head))
        return Panel(table, title="eight client processes", title_align="left", border_style="bright_black")

    def _client(self, member: Member, head: Publish | None) -> Iterator[Text]:
        """A row."""
        current = head is not None and member.number == head.number
        style = "red" if member.gone else "green" if current else "yellow"
        after = head.after_ms.get(member.instance) if head else None
        yield Text(member.sample.host)
        yield from (Text(each, style="bright_black") for each in (member.sample.app, member.sample.region, member.sample.sdk))
        yield Text("ended" if member.gone else f"version {member.number}" if member.number else "starting", style=style)
        yield Text("" if after is None else show.ms(after), style="cyan")
        yield Text(member.news, style="bold" if current else "", no_wrap=True, overflow="ellipsis")

    def _receipts(self) -> Panel:
        lines = [Text.assemble((f"version {each.number:<4}", "bold"), *_progress(each)) for each in self._publishes]
        content = Group(*lines) if lines else Text("nothing was published yet", style="bright_black")
        return Panel(content, title="receipts", title_align="left", border_style="bright_black")


def _progress(publish: Publish) -> Iterator[Text | tuple[str, str]]:
    if publish.story is None:
        yield "  …", "bright_black"
        return
    yield show.bar(publish.story, width=24)
    applied = publish.story["times_ms"]["applied"]
    if applied["count"]:
        yield f"   p50 {show.ms(applied['p50'])}  max {show.ms(applied['max'])}", "cyan"


async def run(author: Author, fleet: Fleet, above: str) -> None:
    """Until it is cancelled. ``above``: printed once, plainly, so that it can be copied."""
    show.say(above)
    screen = Screen(author, fleet)
    with Live(screen.view(), console=show.out, auto_refresh=False) as live:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(screen.follow(), name="follow")
            tasks.create_task(screen.draw(live), name="draw")
