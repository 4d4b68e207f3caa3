"""Real processes that a test starts, kills without warning, and starts again; each ended by its own pid."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from heliograph.runtime.children import Child, start

ROOT = Path(__file__).resolve().parents[2]
START_S = 120


@dataclass
class Managed:
    """One program that can be started again. ``ready_url``: answers 200 when it can do its work."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    ready_url: str
    child: Child | None = field(default=None, repr=False)

    async def start(self) -> None:
        with self.log.open("ab") as out:
            self.child = await start(*self.command, env={**os.environ, **self.env}, stdout=out, stderr=out, cwd=ROOT)

    async def ready(self, *, revived: bool = False) -> None:
        """``revived``: somebody starts it again when it ends, so wait through that."""
        async with asyncio.timeout(START_S), httpx.AsyncClient() as http:
            while not await self._answers(http):
                if not revived and (self.child is None or self.child.returncode is not None):
                    raise AssertionError(f"{self.name} ended at start:\n{self.tail()}")
                await asyncio.sleep(0.05)

    async def _answers(self, http: httpx.AsyncClient) -> bool:
        try:
            return (await http.get(self.ready_url)).status_code == 200
        except httpx.HTTPError:
            return False

    async def kill(self) -> None:
        """SIGKILL, whatever it is doing; harmless when it is gone already."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        if self.child is None:
            return
        if self.child.returncode is None:
            self.child.send_signal(how)
        try:
            await asyncio.wait_for(self.child.wait(), 60)
        except TimeoutError:
            self.child.kill()
            await self.child.wait()
            raise AssertionError(f"{self.name} did not end after {how.name}:\n{self.tail()}") from None

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.returncode is None

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


def heliograph(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "heliograph.cli", *arguments]


@asynccontextmanager
async def keeping_alive(processes: Sequence[Managed], pause_s: float = 0.1) -> AsyncIterator[None]:
    """What systemd or Kubernetes does: starts again whatever has ended."""

    async def keep(each: Managed) -> None:
        while True:
            if not each.running:
                await each.start()
            assert each.child
            await each.child.wait()
            await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(keep(each)) for each in processes]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
