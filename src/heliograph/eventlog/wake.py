"""Wakes the readers of the event table after a commit.

NOTIFY inside the commit would serialise all commits over their fsync, so it is sent after it, on another connection, at most one at a
time: rings that come while one is under way become one more. Readers poll as well; a lost ring costs at most their poll interval. Readers that
share the writer's loop, as in the embedded default, hear the ring itself and need not wait for the round trip, nor be woken by it once more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import uuid4
from weakref import WeakKeyDictionary

import structlog

from heliograph.core.errors import Unavailable
from heliograph.runtime.postgres import Pool, translating

log = structlog.get_logger()

EVENT_CHANNEL = "heliograph_event"
RECEIPT_CHANNEL = "heliograph_receipt"


class _Loop:
    """What is here: who hears which channel, and the name under which this loop rings."""

    def __init__(self) -> None:
        self.name = uuid4().hex
        self.hearers = defaultdict[str, set[Callable[[], None]]](set)


_loops: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop]] = WeakKeyDictionary()


def _here() -> _Loop:
    loop = asyncio.get_running_loop()
    if (found := _loops.get(loop)) is None:
        found = _loops[loop] = _Loop()
    return found


@contextmanager
def heard(channel: str, wake: Callable[[], None]) -> Iterator[Callable[[str], None]]:
    """Inside: `wake` is called for each ring on `channel` by this loop, whichever database it is for. Gives what to call for a notification from
    elsewhere, with its text: it wakes as well, unless the ring was heard here."""
    here = _here()
    here.hearers[channel].add(wake)
    try:
        yield lambda rung_by: None if rung_by == here.name else wake()
    finally:
        here.hearers[channel].discard(wake)


class Bell:
    def __init__(self, pool: Pool, channel: str = EVENT_CHANNEL) -> None:
        self._pool = pool
        self._channel = channel
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()
        for wake in _here().hearers[self._channel]:
            wake()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            try:
                with translating():
                    await self._pool.execute("select pg_notify($1, $2)", self._channel, _here().name)
            except Unavailable:
                log.warning("bell_unheard", channel=self._channel)  # readers poll
