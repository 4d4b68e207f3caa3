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
