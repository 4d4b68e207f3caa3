from __future__ import annotations

import asyncio
from typing import Any, cast

from heliograph.eventlog.wake import EVENT_CHANNEL, RECEIPT_CHANNEL, Bell, heard
from heliograph.runtime.postgres import Pool


def bell(channel: str = EVENT_CHANNEL) -> Bell:
    return Bell(cast("Pool", cast("Any", None)), channel)


async def test_a_reader_beside_the_writer_hears_the_ring_itself() -> None:
    rings: list[str] = []
    with heard(EVENT_CHANNEL, lambda: rings.append("event")), heard(RECEIPT_CHANNEL, lambda: rings.append("receipt")):
        bell().ring()
        assert rings == ["event"]
        bell(RECEIPT_CHANNEL).ring()
        assert rings == ["event", "receipt"]
    bell().ring()
    assert rings == ["event", "receipt"]


async def test_a_ring_is_not_heard_in_another_loop() -> None:
    """An event of another loop must not be set from here."""
    rings: list[str] = []

    async def ring() -> None:
        bell().ring()

    with heard(EVENT_CHANNEL, lambda: rings.append("event")):
        await asyncio.to_thread(asyncio.run, ring())
    assert rings == []


class Notifications:
    """A pool, as far as a bell uses one: what it was told to notify."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def execute(self, _: str, channel: str, rung_by: str) -> None:
        self.sent.put_nowait((channel, rung_by))


async def test_a_reader_is_not_woken_again_by_the_notification_of_a_ring_that_it_heard() -> None:
    rings: list[str] = []
    pool = Notifications()
    bell = Bell(cast("Pool", cast("Any", pool)))
    ringing = asyncio.create_task(bell.run())
    try:
        with heard(EVENT_CHANNEL, lambda: rings.append("event")) as notified:
            bell.ring()
            channel, rung_by = await asyncio.wait_for(pool.sent.get(), 30)
            assert channel == EVENT_CHANNEL
            notified(rung_by)
            assert rings == ["event"]
            notified("another process")
            notified("")  # of a listener that has just connected
            assert rings == ["event"] * 3
    finally:
        ringing.cancel()
        await asyncio.gather(ringing, return_exceptions=True)
