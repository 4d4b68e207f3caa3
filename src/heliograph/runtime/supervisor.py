"""Runs services beside each other: started in order, each when the one before is ready; stopped in reverse. If one dies, all end loudly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from heliograph.core.errors import Corrupt, TimedOut

log = structlog.get_logger()
READY_S = 120.0


class Serve(Protocol):
    """Opens everything, sets `ready` when it can do its work, returns after a clean drain once `stop` is set, raises when it cannot go on."""

    def __call__(self, *, ready: asyncio.Event, stop: asyncio.Event) -> Awaitable[None]: ...


@dataclass
class Supervised:
    name: str
    serve: Serve
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Supervisor:
    def __init__(self, services: list[tuple[str, Serve]]) -> None:
        self._services = [Supervised(name, serve) for name, serve in services]

    async def run(self, *, stop: asyncio.Event, on_ready: Callable[[], None] | None = None) -> None:
        """Until `stop` is set or a service ends by itself, which is an error whatever it says. Always stops what it started."""
        try:
            for each in self._services:
                await self._start(each, stop)
                if stop.is_set():
                    return
            if on_ready:
                on_ready()
            await self._watch(stop)
        finally:
            await self._stop_all()

    async def _start(self, each: Supervised, stop: asyncio.Event) -> None:
        each.task = asyncio.create_task(_as_coroutine(each), name=each.name)
        await _first(each.task, each.ready.wait(), stop.wait(), timeout_s=READY_S)
        if each.task.done():
            self._ended(each)
        if not each.ready.is_set() and not stop.is_set():
            raise TimedOut(f"{each.name} was not ready after {READY_S:.0f} s")
        log.info("service_ready", service=each.name)

    async def _watch(self, stop: asyncio.Event) -> None:
        running = [each.task for each in self._services if each.task]
        await _first(*running, stop.wait())
        if not stop.is_set():
            self._ended(next(each for each in self._services if each.task and each.task.done()))

    def _ended(self, each: Supervised) -> None:
        assert each.task
        each.task.result()
        raise Corrupt(f"{each.name} ended although nobody stopped it")

    async def _stop_all(self) -> None:
        for each in reversed(self._services):
            each.stop.set()
            if each.task:
                await asyncio.wait([each.task])
                if not each.task.cancelled() and (error := each.task.exception()):
                    log.error("service_failed", service=each.name, error=type(error).__name__)


async def _as_coroutine(each: Supervised) -> None:
    await each.serve(ready=each.ready, stop=each.stop)


async def _first(*waits: Awaitable[object], timeout_s: float | None = None) -> None:
    """Until one of them is done; those made here for waiting are cancelled, tasks given are left alone."""
    given = {each for each in waits if isinstance(each, asyncio.Task)}
    tasks = {asyncio.ensure_future(each) for each in waits}
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        made = tasks - given
        for task in made:
            task.cancel()
        await asyncio.gather(*made, return_exceptions=True)
