"""What is committed in PostgreSQL is in Kafka: in order, complete, as it was."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from heliograph.core.errors import Corrupt
from heliograph.eventlog.kafka import KafkaProducer
from heliograph.eventlog.ports import Gap
from heliograph.services.relay.lead import versions_topic

pytestmark = pytest.mark.kafka


def bodies(count: int, start: int = 0) -> list[bytes]:
    return [f"event {number}".encode() for number in range(start, start + count)]


async def administer(relayed, call):
    """`call(admin)` returns futures by topic; waits for them."""

    def run() -> None:
        admin = AdminClient({"bootstrap.servers": relayed.bootstrap})
        for each in call(admin).values():
            each.result(30)

    await asyncio.to_thread(run)


async def take_events_of(relayed, size: int) -> None:
    """The most bytes that the broker takes in one event."""
    limit = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, versions_topic(relayed.prefix), incremental_configs=[limit])
    await administer(relayed, lambda admin: admin.incremental_alter_configs([resource]))


async def checkpointed(relayed, shard: int, position: int) -> None:
    async with asyncio.timeout(30):
        while not await relayed.rows("select from eventlog.checkpoint where shard = $1 and position = $2", shard, position):
            await asyncio.sleep(0.02)


async def test_events_arrive_as_they_were_committed(relayed):
    async with relayed.relaying():
        for shard in (0, 7, 15):
            await relayed.commit(shard, *bodies(20), trace="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
        await relayed.commit(7, b"", b"\x00\xff not text")
        assert await relayed.arrived() == await relayed.committed()


async def test_what_many_commit_at_once_arrives_in_the_order_of_the_commits(relayed):
    async with relayed.relaying():
        async with asyncio.TaskGroup() as tasks:
            for author in range(8):
                tasks.create_task(relayed.commit(author % 2, *bodies(25, start=author * 100)))
        assert await relayed.arrived() == await relayed.committed()


async def test_what_was_committed_before_any_relay_ran_is_copied(relayed):
    for shard in range(16):
        await relayed.commit(shard, *bodies(3))
    assert await relayed.relayed() == await relayed.committed()


async def test_more_than_one_batch_of_a_shard_is_copied_completely(relayed):
    await relayed.rows("select eventlog.append_event(5, 'key', n::text::bytea, null) from generate_series(1, 1001) n")
    assert await relayed.relayed() == await relayed.committed()


async def test_a_relay_that_restarts_goes_on_where_it_was(relayed):
    await relayed.commit(3, *bodies(10))
    await relayed.relayed()
    await relayed.commit(3, *bodies(5, start=10))
    assert await relayed.relayed() == await relayed.committed()
    assert await relayed.appended() == 15


async def test_a_partition_that_retention_has_emptied_is_not_filled_again(relayed):
    await relayed.commit(3, *bodies(10))
    async with relayed.relaying():
        await relayed.arrived()
        await checkpointed(relayed, 3, 10)
    everything = TopicPartition(versions_topic(relayed.prefix), 3, 10)
    await administer(relayed, lambda admin: admin.delete_records([everything]))
    await relayed.commit(3, b"after")
    async with relayed.relaying():
        kept = await relayed.arrived(after=await relayed.earliest())
    assert [row[1] for row in kept[3]] == [11]


async def test_topics_made_anew_get_everything_that_is_kept(relayed):
    await relayed.commit(3, *bodies(10))
    async with relayed.relaying():
        await relayed.arrived()
        await checkpointed(relayed, 3, 10)
    await administer(relayed, lambda admin: admin.delete_topics([versions_topic(relayed.prefix)]))
    await relayed.commit(3, b"after")
    assert await relayed.relayed() == await relayed.committed()
    assert await relayed.appended() == 11


@pytest.mark.parametrize("kibibytes", [256, 768, 5 * 1024])
async def test_a_large_event_arrives_between_small_ones(relayed, kibibytes):
    async with relayed.relaying():
        await relayed.commit(2, b"before", b"x" * (kibibytes * 1024 + 1), b"after")
        assert await relayed.arrived() == await relayed.committed()


async def test_an_event_that_the_broker_refuses_ends_the_relay_and_is_never_skipped(relayed):
    await take_events_of(relayed, 2000)
    await relayed.commit(2, *bodies(3))
    with pytest.RaisesGroup(pytest.RaisesExc(Corrupt, match="failed for good"), flatten_subgroups=True):
        async with relayed.relaying(), asyncio.timeout(60):
            await relayed.arrived()
            await relayed.commit(2, b"x" * 5000, b"after")
            await asyncio.Event().wait()
    assert await relayed.appended() == 3
    await take_events_of(relayed, 10_000)
    assert await relayed.relayed() == await relayed.committed()


async def test_a_full_queue_to_kafka_makes_the_relay_wait(relayed):
    await relayed.commit(4, *bodies(300))
    small = {"queue.buffering.max.messages": "10"}
    assert await relayed.relayed(kafka_options=small) == await relayed.committed()
    assert await relayed.appended() == 300


async def test_a_day_leaves_postgresql_only_after_kafka_has_it(relayed):
    day = datetime.now(UTC).date() - timedelta(days=9)
    name = f"event_{day:%Y%m%d}"
    await relayed.rows(
        f"create table eventlog.{name} partition of eventlog.event for values from ('{day} 00:00Z') to ('{day} 24:00Z')"
    )
    await relayed.rows(f"alter table eventlog.{name} owner to heliograph_owner")
    await relayed.rows(
        f"insert into eventlog.event select 6, n, 1, 'key', 'old', null, '{day} 12:00Z' from generate_series(1, 5) n"
    )
    await relayed.rows("update eventlog.event_shard set next_position = 6 where shard = 6")
    async with relayed.relaying():
        assert [row[1] for row in (await relayed.arrived())[6]] == [1, 2, 3, 4, 5]
        await checkpointed(relayed, 6, 5)
    async with relayed.relaying(), asyncio.timeout(60):
        while await relayed.rows("select where to_regclass($1) is not null", f"eventlog.{name}"):
            await asyncio.sleep(0.02)


async def append(relayed, shard: int, *places: tuple[int, int]) -> None:
    """As a relay does, whoever it may be."""
    producer = KafkaProducer(relayed.bootstrap, {})
    for timeline, position in places:
        headers = [("position", str(position).encode()), ("timeline", str(timeline).encode()), ("committed_at_us", b"1")]
        producer.produce(versions_topic(relayed.prefix), shard, "key", b"lost", headers, lambda _: None)
    await producer.close(30)


async def test_a_promoted_database_that_lost_its_last_events_is_followed_on_its_own_timeline(relayed):
    """Kafka has 1 to 5 of timeline 1; the promoted standby had only 1 to 3 and goes on with 4 of timeline 2."""
    await append(relayed, 9, *((1, position) for position in range(1, 6)))
    await relayed.rows(
        """insert into eventlog.event select 9, n, case when n > 3 then 2 else 1 end, 'key', 'kept', null, now()
           from generate_series(1, 7) n"""
    )
    await relayed.rows("update eventlog.event_shard set next_position = 8 where shard = 9")
    async with relayed.relaying():
        seen = await relayed.read({9: (2, 7)})
    assert [(each.timeline, each.position) for each in seen if not isinstance(each, Gap)] == [
        *((1, position) for position in range(1, 6)),
        *((2, position) for position in range(4, 8)),
    ]
    assert isinstance(seen[5], Gap)


async def test_a_promoted_database_is_followed_also_when_it_has_not_come_as_far_as_kafka_yet(relayed):
    await append(relayed, 9, *((1, position) for position in range(1, 6)))
    await relayed.rows("insert into eventlog.event select 9, n, 1, 'key', 'kept', null, now() from generate_series(1, 3) n")
    await relayed.rows("update eventlog.event_shard set next_position = 4 where shard = 9")
    async with relayed.relaying() as relay:
        await relay.until(type(relay).leads)
        await relayed.rows("insert into eventlog.event values (9, 4, 2, 'key', 'new', null, now())")
        await relayed.rows("update eventlog.event_shard set next_position = 5 where shard = 9")
        seen = await relayed.read({9: (2, 4)})
    assert [(each.timeline, each.position) for each in seen[-1:]] == [(2, 4)]


async def test_topics_are_made_by_the_relay(relayed):
    relayed.prefix += "x"
    await relayed.commit(1, b"first")
    assert await relayed.relayed() == await relayed.committed()
