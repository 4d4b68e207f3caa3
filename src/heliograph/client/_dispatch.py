"""From the receive path to the application: in order, each once, and never waiting for a slow callback.

Every subscriber has its own mailbox, and every callback its own task. A mailbox holds `CAPACITY` notices; when it is full, a new notice is
merged into the last one (old values of the first, new values of the last, ``conflated`` counts what was merged). So a slow subscriber
skips, but it never sees an older version after a newer one, never one twice, and always ends on the latest.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, Self, TypeVar

from heliograph.client._forks import OfThisProcess

CAPACITY: Final = 64
_log = logging.getLogger("heliograph")


class Notice(Protocol):
    def merged(self, later: Self) -> Self:
        """One notice that stands for both."""


N = TypeVar("N", bound=Notice)
T = TypeVar("T")


class Mailbox(Generic[N]):
    """Bounded, then conflated. One reader."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._waiting: deque[N] = deque()
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, notice: N) -> None:
        if self._closed:
            return
        if len(self._waiting) >= self._capacity:
            notice = self._waiting.pop().merged(notice)
        self._waiting.append(notice)
        self._filled.set()

    def close(self) -> None:
        """The reader gets what is there already, then the end."""
        self._closed = True
        self._filled.set()

    def clear(self) -> None:
        self._waiting.clear()

    @property
    def closed(self) -> bool:
        return self._closed

    def take(self) -> N | None:
        """The next notice, if it is there already."""
        return self._waiting.popleft() if self._waiting else None

    async def get(self) -> N | None:
        """The next notice; None when closed and empty."""
        while not self._waiting:
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        return self.take()


class Feed(OfThisProcess, Generic[N, T]):
    """A mailbox as the application reads it: ``translate`` makes what it wants of a notice, or None where the notice is not for it.

    An async iterator; ends when the client closes or `cancel` is called. Works from the moment it is made, so nothing is missed between
    making it and the first step.
    """

    def __init__(self, translate: Callable[[N], T | None], forget: Callable[[Feed[N, T]], None]) -> None:
        self.mailbox: Mailbox[N] = Mailbox()
        self._translate = translate
        self._forget = forget

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while (notice := await self.mailbox.get()) is not None:
            if (wanted := self._translate(notice)) is not None:
                return wanted
        raise StopAsyncIteration

    def take(self) -> T | None:
        """What is there already, without waiting; None when nothing is."""
        while (notice := self.mailbox.take()) is not None:
            if (wanted := self._translate(notice)) is not None:
                return wanted
        return None

    @property
    def ended(self) -> bool:
        """Nothing more will come than what is there already."""
        return self.mailbox.closed

    def cancel(self) -> None:
        """Ends the feed at once; what waits is dropped."""
        self._forget(self)
        self.mailbox.clear()
        self.mailbox.close()

    async def aclose(self) -> None:
        self.cancel()


async def call_each(feed: Feed[N, T], callback: Callable[[T], Awaitable[None] | None]) -> None:
    """Calls, and awaits where there is something to await, until the feed ends. What a callback raises is logged and ends nothing; so is the cancel
    of something that it awaited, unless this task is cancelled itself."""
    async for notice in feed:
        try:
            answer = callback(notice)
            if inspect.isawaitable(answer):
                await answer
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            _log.exception(
                "a callback of the application failed: %s", getattr(callback, "__qualname__", type(callback).__name__)
            )


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
