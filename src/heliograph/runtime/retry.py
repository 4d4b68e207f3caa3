"""Retries that back off with full jitter and stop.

The delay before attempt n is uniform in [0, min(cap, base x 2^n)]: clients that failed together do not come back together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self, TypeVar

from heliograph.core.errors import Unavailable

T = TypeVar("T")


def delay(attempt: int, *, base_s: float = 0.05, cap_s: float = 5.0) -> float:
    """Seconds to wait before attempt number `attempt` (the first retry is 0)."""
    return random.uniform(0, min(cap_s, base_s * 2 ** min(attempt, 30)))  # noqa: S311  # spreads load, keeps no secret


def attempts(limit: int | None = None, *, base_s: float = 0.05, cap_s: float = 5.0) -> AsyncIterator[int]:
    """Yields attempt numbers from 0 and sleeps between them; ends after `limit` attempts (None: its owner ends it by leaving or cancelling)."""
    return _Attempts(limit, base_s, cap_s)


class _Attempts:
    """Not a generator: one that is left early would be closed by a task that nobody awaits."""

    def __init__(self, limit: int | None, base_s: float, cap_s: float) -> None:
        self._limit = limit
        self._base_s = base_s
        self._cap_s = cap_s
        self._next = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        if self._limit is not None and self._next >= self._limit:
            raise StopAsyncIteration
        if self._next:
            await asyncio.sleep(delay(self._next - 1, base_s=self._base_s, cap_s=self._cap_s))
        self._next += 1
        return self._next - 1


async def until_available(call: Callable[[], Awaitable[T]], *, limit: int | None = None, cap_s: float = 5.0) -> T:
    """What `call` returns, tried again while it raises Unavailable; the last one is raised when `limit` attempts are used up."""
    last: Unavailable | None = None
    async for _ in attempts(limit, cap_s=cap_s):
        try:
            return await call()
        except Unavailable as error:
            last = error
    raise last or Unavailable
