"""Wakes the readers of the event table after a commit.

NOTIFY inside the commit would serialise all commits over their fsync, so it is sent after it, on another connection, at most one at a
time: rings that come while one is under way become one more. Readers poll as well; a lost ring costs at most their poll interval.
"""

from __future__ import annotations

import asyncio

import structlog

from heliograph.core.errors import Unavailable
from heliograph.runtime.postgres import Pool, translating

log = structlog.get_logger()

EVENT_CHANNEL = "heliograph_event"
RECEIPT_CHANNEL = "heliograph_receipt"


class Bell:
    def __init__(self, pool: Pool, channel: str = EVENT_CHANNEL) -> None:
        self._pool = pool
        self._channel = channel
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            try:
                with translating():
                    await self._pool.execute("select pg_notify($1, '')", self._channel)
            except Unavailable:
                log.warning("bell_unheard", channel=self._channel)  # readers poll
