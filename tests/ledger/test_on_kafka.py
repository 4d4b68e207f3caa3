"""The same ledger with Kafka as its log: marks are offsets, and the log's end is asked of the brokers."""

from __future__ import annotations

import msgspec
import pytest

from heliograph.core.events import shard_of
from heliograph.eventlog.kafka import KafkaLog
from heliograph.eventlog.ports import NewRecord, Stream

pytestmark = pytest.mark.kafka


async def append(stage, stream, shard, event):
    appender = stage.log.appender(stream)
    await appender.append([NewRecord(shard, "key", msgspec.json.encode(event))])


@pytest.fixture
async def on_kafka(stage, kafka, kafka_prefix):
    postgres = stage.log
    stage.log = KafkaLog(kafka.bootstrap, kafka_prefix, {})
    yield stage
    await stage.log.close()
    stage.log = postgres


async def test_receipts_are_counted_terms_change_and_deadlines_pass(on_kafka, story, counts):
    stage, v = on_kafka, story.version(received=0)
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1000), story.subscribed("b", -1000), story.alive(0))
        await append(stage, Stream.VERSIONS, shard_of(*story.address), v)
        await stage.receipts(story.answer("a", v, "applied", 30))
        await stage.raw_receipt(b"poison")
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 1, "missing": 1}
    await stage.receipts(story.answer("b", v, "rejected", 40, reason="no"))
    stage.new_ledger()
    async with stage.leading() as term:
        await stage.caught_up(term)
        stage.clock.set(120_000)
        await term.keeper.tick()
        report = await stage.report(1)
    assert (report.state, counts(report)) == ("closed", {"applied": 1, "rejected": 1})
    [letter, refused] = await stage.rows("select stream, reason from eventlog.dead_letter order by id")
    assert letter["stream"] == "receipts"
    assert (refused["stream"], refused["reason"]) == ("deliveries", "no")
