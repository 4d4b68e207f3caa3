"""Retries that back off with full jitter and stop.

The delay before attempt n is uniform in [0, min(cap, base x 2^n)]: clients that failed together do not come back together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from heliograph.core.errors import Unavailable

T = TypeVar("T")


def delay(attempt: int, *, base_s: float = 0.05, cap_s: float = 5.0) -> float:
    """Seconds to wait before attempt number `attempt` (the first retry is 0)."""
    return random.uniform(0, min(cap_s, base_s * 2 ** min(attempt, 30)))  # noqa: S311  # spreads load, keeps no secret


async def attempts(limit: int | None = None, *, base_s: float = 0.05, cap_s: float = 5.0) -> AsyncIterator[int]:
    """Yields attempt numbers and sleeps between them; ends after `limit` attempts (None: its owner ends it by cancelling)."""
    attempt = 0
    while limit is None or attempt < limit:
        yield attempt
        await asyncio.sleep(delay(attempt, base_s=base_s, cap_s=cap_s))
        attempt += 1


async def until_available(call: Callable[[], Awaitable[T]], *, limit: int | None = None, cap_s: float = 5.0) -> T:
    """What `call` returns, tried again while it raises Unavailable; the last one is raised when `limit` attempts are used up."""
    last: Unavailable | None = None
    async for _ in attempts(limit, cap_s=cap_s):
        try:
            return await call()
        except Unavailable as error:
            last = error
    raise last or Unavailable
