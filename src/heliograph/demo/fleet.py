"""Eight sample clients, each a process of its own, and what each of them runs on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from heliograph.core.errors import TimedOut, Unavailable
from heliograph.demo.client import Order, Report
from heliograph.demo.processes import last_lines, python
from heliograph.demo.shop import NAMESPACE, SAMPLES, SHOWN, Sample
from heliograph.demo.stack import Stack
from heliograph.runtime.children import Child

CLIENT: Final = "heliograph.demo.client"


@dataclass(slots=True)
class Member:
    """``values``: the documents it runs on; ``news``: what its last change was, in words; ``gone``: its process has ended."""

    sample: Sample
    process: Child
    instance: str = ""
    number: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    news: str = ""
    gone: bool = False

    def take(self, report: Report) -> None:
        self.instance, self.number = report.instance, report.number
        for name in report.changed:
            self.news = f"{name}: {_difference(self.values.get(name), report.values.get(name))}"
            self.values.pop(name, None)
        self.values |= report.values


def _difference(before: Any, now: Any) -> str:
    """The members that are new or have another value; the whole of what is no object, or was none."""
    if now is None:
        return "deleted"
    if not isinstance(now, dict) or not isinstance(before, dict):
        return json.dumps(now)
    gone = [f"no {name}" for name in before if name not in now]
    return ", ".join(gone + [f"{name} {json.dumps(now[name])}" for name in now if before.get(name, ...) != now[name]])


class Fleet:
    def __init__(self, log: Path) -> None:
        self.members: list[Member] = []
        self._log = log
        self._news = asyncio.Condition()

    async def changed(self) -> None:
        """Until a client has said something."""
        async with self._news:
            await self._news.wait()

    async def until(self, holds: Callable[[Member], bool], what: str, timeout_s: float) -> None:
        """Until it holds for every client. Raises TimedOut naming those for which it does not, Unavailable when one has ended."""
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self._ended() or all(map(holds, self.members)))
        except TimeoutError:
            late = ", ".join(each.sample.host for each in self.members if not holds(each))
            raise TimedOut(f"not {what} within {timeout_s:.0f} s: {late}") from None
        if ended := self._ended():
            raise Unavailable(f"{ended.sample.host} has ended:\n{await asyncio.to_thread(last_lines, self._log)}")

    def _ended(self) -> Member | None:
        return next((each for each in self.members if each.gone), None)

    async def listen(self, member: Member) -> None:
        """Until the client's output ends."""
        async for line in member.process.stdout:
            async with self._news:
                member.take(msgspec.json.decode(line, type=Report))
                self._news.notify_all()
        async with self._news:
            member.gone = True
            self._news.notify_all()


@asynccontextmanager
async def fleet(stack: Stack, token: str) -> AsyncIterator[Fleet]:
    """All of them, started; each says what it runs on when it does. They are stopped side by side at the end."""
    made = Fleet(stack.folder / "clients.log")
    async with asyncio.TaskGroup() as listening, AsyncExitStack() as processes:
        for sample in SAMPLES:
            process = await processes.enter_async_context(python(CLIENT, [], stack.folder / "clients.log"))
            member = Member(sample, process)
            made.members.append(member)
            process.stdin.write(msgspec.json.encode(_order(stack, token, sample)) + b"\n")
            listening.create_task(made.listen(member), name=sample.host)
        try:
            yield made
        finally:
            for member in made.members:  # all at once: each takes a moment to say good-bye
                member.process.stdin.close()


def _order(stack: Stack, token: str, sample: Sample) -> Order:
    return Order(
        url=stack.url,
        token=token,
        namespace=NAMESPACE,
        environment=SHOWN,
        view=sample.view,
        app=sample.app,
        labels=sample.labels,
        cache_dir=str(stack.folder / sample.host),
    )
