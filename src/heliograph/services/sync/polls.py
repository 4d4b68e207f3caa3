"""Requests that wait for a version that is not there yet.

A poll that waits is a future and a timer. Those who wait for an environment are woken some at a time, and only a few between two slices of a fan-out:
they have a request to answer each, and the sockets come first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from heliograph.core.errors import NotFound
from heliograph.core.records import Cursor
from heliograph.services.sync.environment import Environment
from heliograph.telemetry.metrics import Metrics

WOKEN: Final = 50
"""Between two turns of the loop, some 0.1 ms of answering each."""
WOKEN_BEHIND: Final = 5
"""While a fan-out goes on: enough for polls not to starve under steady publishing."""
Waiting = dict[asyncio.Future[None], None]
Gone = Callable[[Callable[[], None]], None]
"""Is given whom to call should the client go."""


class Polls:
    """Belongs to one event loop. ``fanning``: whether sockets are being served now."""

    def __init__(self, metrics: Metrics, fanning: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._fanning = fanning
        self._waiting: dict[Environment, Waiting] = {}
        self._held = 0

    def __len__(self) -> int:
        return self._held

    async def hold(self, environment: Environment, have: Cursor, wait_s: float, gone: Gone) -> None:
        """Until the head is another one, `wait_s` are over, the client is gone, or the node is to stop. Raises NotFound when the environment is
        deleted meanwhile."""
        if environment.cursor != have or environment.closed:
            return
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        waiting = self._waiting.setdefault(environment, {})
        waiting[answer] = None
        timer = loop.call_later(wait_s, _settle, answer)
        gone(lambda: _settle(answer))
        self._count(1)
        try:
            await answer
        finally:
            timer.cancel()
            self._count(-1)
            self._forget(environment, waiting, answer)
        if environment.closed:
            raise NotFound(f"the environment {environment.namespace}/{environment.environment} was deleted")

    def _count(self, by: int) -> None:
        self._held += by
        self._metrics.polls_held.set(self._held)

    def _forget(self, environment: Environment, waiting: Waiting, answer: asyncio.Future[None]) -> None:
        waiting.pop(answer, None)
        if not waiting and self._waiting.get(environment) is waiting:
            del self._waiting[environment]

    def awaits(self, environment: Environment) -> bool:
        return environment in self._waiting

    async def wake(self, environment: Environment) -> None:
        """Everybody who waits for it now."""
        await self._release(self._waiting.pop(environment, {}), 0)

    async def drain(self, within_s: float) -> None:
        """Everybody, spread over so many seconds: they come back to another node."""
        everybody = {answer: None for waiting in self._waiting.values() for answer in waiting}
        await self._release(everybody, within_s * WOKEN / max(len(everybody), WOKEN))

    async def _release(self, waiting: Waiting, pause_s: float) -> None:
        while waiting:
            await asyncio.sleep(pause_s)
            for answer in list(waiting)[: WOKEN_BEHIND if self._fanning() else WOKEN]:
                waiting.pop(answer, None)
                _settle(answer)


def _settle(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_result(None)
