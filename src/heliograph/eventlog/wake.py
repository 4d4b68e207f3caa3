"""Wakes the readers of the event table after a commit.

NOTIFY inside the commit would serialise all commits over their fsync, so it is sent after it, on another connection, at most one at a
time: rings that come while one is under way become one more. Readers poll as well; a lost ring costs at most their poll interval. Readers that
share the writer's loop, as in the embedded default, hear the ring itself and need not wait for the round trip.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakKeyDictionary

import structlog

from heliograph.core.errors import Unavailable
from heliograph.runtime.postgres import Pool, translating

log = structlog.get_logger()

EVENT_CHANNEL = "heliograph_event"
RECEIPT_CHANNEL = "heliograph_receipt"

_Hearers = defaultdict[str, set[Callable[[], None]]]
_hearers: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Hearers]] = WeakKeyDictionary()


@contextmanager
def heard(channel: str, wake: Callable[[], None]) -> Iterator[None]:
    """Inside: `wake` is called for each ring on `channel` by this loop, whichever database it is for."""
    here = _hearers_of(channel)
    here.add(wake)
    try:
        yield
    finally:
        here.discard(wake)


def _hearers_of(channel: str) -> set[Callable[[], None]]:
    return _hearers.setdefault(asyncio.get_running_loop(), defaultdict(set))[channel]


class Bell:
    def __init__(self, pool: Pool, channel: str = EVENT_CHANNEL) -> None:
        self._pool = pool
        self._channel = channel
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()
        for wake in _hearers_of(self._channel):
            wake()

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
