"""The whole way of a receipt, on a real PostgreSQL with the real log: append, take in, ask."""

from __future__ import annotations

import asyncio

import pytest

from heliograph.core.errors import NotFound
from heliograph.core.records import Cursor


async def test_a_publish_is_followed_from_the_first_byte_to_every_receipt(stage, story, counts):
    async with stage.leading() as term:
        await stage.receipts(*(story.subscribed(f"i{n:02}", -10 - n, region="eu" if n < 15 else "us") for n in range(20)))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(
            story.fanned_out(v, logged=4, started=5, done=9, recipients=20),
            *(story.answer(f"i{n:02}", v, "applied", 10 + n) for n in range(19)),
            story.answer("i19", v, "rejected", 30, reason="max_items: must be 20 at most"),
        )
        await stage.caught_up(term)
        report = await stage.report(1)
    assert report.state == "open"
    assert counts(report) == {"applied": 19, "rejected": 1}
    assert (report.instances, report.share) == (20, 0.95)
    assert (report.times_ms.commit, report.times_ms.log, report.times_ms.fan_out) == (2.0, 4.0, 9.0)
    assert (report.times_ms.applied.p50, report.times_ms.applied.p95, report.times_ms.applied.max) == (19.0, 28.0, 28.0)
    assert report.by.region["us"].rejected == 1
    assert [(each.instance, each.reason) for each in report.rejections] == [("i19", "max_items: must be 20 at most")]
