"""What appends to Kafka while there is none, or while it fails for good. No broker is needed: nobody listens where these connect to."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.eventlog.conftest import PATIENCE_S, new

from heliograph.core.errors import Unavailable
from heliograph.eventlog import kafka
from heliograph.eventlog.kafka import KafkaAppender
from heliograph.eventlog.ports import Stream

NOBODY = "127.0.0.1:1"


@pytest.fixture
async def appender(monkeypatch):
    monkeypatch.setattr(kafka, "APPEND_S", 0.2)
    appender = KafkaAppender(NOBODY, "x", Stream.RECEIPTS, {})
    yield appender
    await appender.close()


async def refused(appender: KafkaAppender, body: bytes) -> None:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Unavailable):
            await appender.append(new(0, body))


async def test_what_an_append_was_refused_for_waits_in_the_producer_no_more(appender):
    """Whoever hands it over again makes no copy of it."""
    for _ in range(3):
        await refused(appender, b"the same receipt")
        async with asyncio.timeout(PATIENCE_S):
            while appender._producer.in_flight:  # counts what librdkafka has to say, too
                await asyncio.sleep(0.01)


async def test_a_producer_that_fails_for_good_refuses_at_once_what_is_on_its_way(appender, monkeypatch):
    monkeypatch.setattr(kafka, "APPEND_S", 3600)
    under_way = asyncio.create_task(appender.append(new(0, b"on its way")))
    await asyncio.sleep(0)  # it is handed over
    appender._producer._fail("for good")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Unavailable, match="for good"):
            await under_way


async def test_closing_refuses_what_cannot_be_delivered_first(appender, monkeypatch):
    monkeypatch.setattr(kafka, "APPEND_S", 3600)
    monkeypatch.setattr(kafka, "FLUSH_S", 0.1)
    under_way = asyncio.create_task(appender.append(new(0, b"on its way")))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        await appender.close()
        with pytest.raises(Unavailable):
            await under_way


def threads() -> int:
    return sum(each.name == "kafka producer" for each in threading.enumerate())


async def test_producers_that_failed_leave_no_thread(appender):
    before = threads()
    for _ in range(3):
        await refused(
            appender, b"x" * (kafka.MAX_MESSAGE + (1 << 20))
        )  # librdkafka refuses it, which counts as failed for good
        async with asyncio.timeout(PATIENCE_S):
            await appender._producer.failed
    await appender.close()
    assert threads() == before
