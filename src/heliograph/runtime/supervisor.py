"""Runs services beside each other: started in order, each when the one before is ready; stopped in reverse. If one dies, all end loudly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from heliograph.core.errors import HeliographError, TimedOut

log = structlog.get_logger()

READY_S: Final = 120.0
STOP_S: Final = 60.0  # each service bounds its own drain; this is for one that does not


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

    async def run(self) -> None:
        await self.serve(ready=self.ready, stop=self.stop)


class Supervisor:
    """`ready_s` bounds each service's start, `stop_s` each one's end: seconds, after which it is cancelled."""

    def __init__(self, services: list[tuple[str, Serve]], *, ready_s: float = READY_S, stop_s: float = STOP_S) -> None:
        self._services = [Supervised(name, serve) for name, serve in services]
        self._ready_s = ready_s
        self._stop_s = stop_s

    async def run(self, *, stop: asyncio.Event, on_ready: Callable[[], None] | None = None) -> None:
        """Until `stop` is set or a service ends by itself, which is an error whatever it says. Always stops what it started."""
        try:
            for each in self._services:
                await self._start(each, stop)
                if stop.is_set():
                    return
            if on_ready:
                on_ready()
            await self._until(stop)
        finally:
            await self._stop_all()

    async def _start(self, each: Supervised, stop: asyncio.Event) -> None:
        each.task = asyncio.create_task(each.run(), name=each.name)
        await self._until(each.ready, stop, timeout_s=self._ready_s)
        if not each.ready.is_set() and not stop.is_set():
            raise TimedOut(f"{each.name} was not ready after {self._ready_s:.0f} s")
        log.info("service_ready", service=each.name)

    async def _until(self, *events: asyncio.Event, timeout_s: float | None = None) -> None:
        """Until one of `events` is set. Raises what a service raised that ended meanwhile."""
        running = {each.task for each in self._services if each.task}
        waits = {asyncio.create_task(each.wait()) for each in events}
        try:
            await asyncio.wait(running | waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for service in self._services:
            if service.task and service.task.done():
                service.task.result()
                raise HeliographError(f"{service.name} ended although nobody stopped it")

    async def _stop_all(self) -> None:
        for each in reversed(self._services):
            each.stop.set()
            if each.task:
                await self._ended(each, each.task)

    async def _ended(self, each: Supervised, task: asyncio.Task[None]) -> None:
        _, late = await asyncio.wait([task], timeout=self._stop_s)
        if late:
            log.error("service_did_not_stop", service=each.name, after_s=self._stop_s)
            task.cancel()
            await asyncio.wait([task], timeout=self._stop_s)
        if task.done() and not task.cancelled() and (error := task.exception()):
            log.error("service_failed", service=each.name, error=type(error).__name__)
