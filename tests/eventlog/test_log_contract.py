"""What `ports` promises of every log, whoever keeps it."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import defaultdict

import pytest
from tests.eventlog.conftest import PATIENCE_S, following, new

from heliograph.core.errors import Unavailable
from heliograph.core.events import SHARDS
from heliograph.eventlog.ports import Gap, Stream
from heliograph.runtime.clock import now_us

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
LAST = SHARDS - 1


@pytest.fixture(params=[Stream.VERSIONS, Stream.RECEIPTS])
def stream(request) -> Stream:
    return request.param


def numbered(shard: int, start: int, end: int):
    return new(shard, *(b"%d/%d" % (shard, number) for number in range(start, end)))


def by_shard(items) -> dict[int, list]:
    """Bodies in the order they came; a gap stands for itself."""
    out = defaultdict(list)
    for each in items:
        out[each.shard].append(Gap if isinstance(each, Gap) else each.body)
    return dict(out)


def marks_after(records) -> dict[int, int]:
    return {each.shard: each.mark for each in records}


# --- what is read ----------------------------------------------------------------------------------------------------------------


async def test_every_shard_is_read_in_the_order_it_was_written_and_nothing_twice(log, stream):
    written = [each for shard in (0, 7, LAST) for each in numbered(shard, 0, 200)]
    shards = [each.shard for each in written]
    random.Random(1).shuffle(shards)
    queues = {shard: iter(numbered(shard, 0, 200)) for shard in (0, 7, LAST)}
    await log.write(stream, *(next(queues[shard]) for shard in shards))
    items = await log.read(stream, {}, b"0/199", b"7/199", b"%d/199" % LAST)
    assert by_shard(items) == by_shard(written)


async def test_timeline_and_position_only_ever_rise_within_a_shard(log, stream):
    await log.write(stream, *numbered(3, 0, 50), *numbered(4, 0, 50))
    items = await log.read(stream, {}, b"3/49", b"4/49")
    for shard in (3, 4):
        places = [(each.timeline, each.position) for each in items if each.shard == shard]
        assert places == [(1, position) for position in range(1, 51)]


@pytest.mark.parametrize(("body", "trace"), [(b"", None), (b"\x00\xff not text", TRACE)])
async def test_a_record_is_read_as_it_was_written(log, stream, body, trace):
    before = now_us()
    await log.write(stream, *new(5, body, trace=trace))
    [record] = await log.read(stream, {}, body)
    assert (record.stream, record.shard, record.key, record.body, record.trace) == (stream, 5, "key-5", body, trace)
    assert before <= record.committed_at_us <= now_us()


async def test_bodies_above_256_kib_arrive_whole_between_small_ones(log, stream):
    large = [random.Random(size).randbytes(size) for size in (300_000, 900_000)]
    await log.write(stream, *new(2, b"before", *large, b"after"))
    assert by_shard(await log.read(stream, {}, b"after")) == {2: [b"before", *large, b"after"]}


async def test_the_largest_event_times_ten_arrives_whole(log, stream):
    body = random.Random(0).randbytes(8 * 1024 * 1024)
    await log.write(stream, *new(2, body, b"after"))
    assert by_shard(await log.read(stream, {}, b"after")) == {2: [body, b"after"]}


async def test_readers_do_not_take_from_each_other(log, stream):
    await log.write(stream, *numbered(1, 0, 3))
    async with (
        log.opened() as opened,
        following(opened.reader(stream), {}) as one,
        following(opened.reader(stream), {}) as other,
    ):
        assert by_shard(await one.until(b"1/2")) == by_shard(await other.until(b"1/2")) == {1: [b"1/0", b"1/1", b"1/2"]}


async def test_the_two_streams_are_apart(log):
    await log.write(Stream.VERSIONS, *new(1, b"version"))
    await log.write(Stream.RECEIPTS, *new(1, b"receipt"))
    assert by_shard(await log.read(Stream.VERSIONS, {}, b"version")) == {1: [b"version"]}
    assert by_shard(await log.read(Stream.RECEIPTS, {}, b"receipt")) == {1: [b"receipt"]}


# --- waiting ---------------------------------------------------------------------------------------------------------------------


async def test_a_reader_that_waits_is_woken_by_each_later_append(log, stream):
    async with log.opened() as opened, following(opened.reader(stream), {}) as seen:
        for number in range(5):
            await log.write(stream, *new(number, b"%d" % number))
            await seen.until(b"%d" % number)
        assert by_shard(seen.items) == {number: [b"%d" % number] for number in range(5)}


async def test_an_empty_log_begins_where_it_ends_and_its_first_record_is_no_gap(log, stream):
    async with log.opened() as opened:
        reader = opened.reader(stream)
        earliest = await reader.earliest()
        assert earliest == await reader.end()
        assert sorted(earliest) == list(range(SHARDS))
        async with following(reader, earliest) as seen:
            await log.write(stream, *new(9, b"first"))
            assert by_shard(await seen.until(b"first")) == {9: [b"first"]}


# --- marks -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [1, 4, 7])
async def test_a_reader_that_resumes_at_stored_marks_skips_nothing_and_doubles_nothing(log, stream, taken):
    await log.write(stream, *numbered(1, 0, 4), *numbered(6, 0, 4))
    items = await log.read(stream, {}, b"1/3", b"6/3")
    stored = await log.marks(stream, "earliest") | marks_after(items[:taken])
    await log.write(stream, *new(1, b"1/4"), *new(6, b"6/4"), *new(7, b"7/0"))
    rest = await log.read(stream, stored, b"1/4", b"6/4", b"7/0")
    expected = [*items[taken:], *new(1, b"1/4"), *new(6, b"6/4"), *new(7, b"7/0")]
    assert by_shard(rest) == by_shard(expected)


async def test_a_reader_that_starts_at_older_marks_sees_the_very_same_records_again(log, stream):
    await log.write(stream, *numbered(1, 0, 6))
    items = await log.read(stream, {}, b"1/5")
    assert await log.read(stream, marks_after(items[:2]), b"1/5") == items[2:]
    assert await log.read(stream, marks_after(items[:2]), b"1/5") == items[2:]


async def test_from_the_end_only_what_comes_later_is_read(log, stream):
    await log.write(stream, *numbered(1, 0, 6), *numbered(2, 0, 3))
    end = await log.marks(stream, "end")
    await log.write(stream, *new(1, b"later"), *new(3, b"first of its shard"))
    items = await log.read(stream, end, b"later", b"first of its shard")
    assert by_shard(items) == {1: [b"later"], 3: [b"first of its shard"]}


async def test_the_end_is_the_mark_of_each_shards_last_record(log, stream):
    await log.write(stream, *numbered(1, 0, 6), *numbered(2, 0, 3))
    items = await log.read(stream, {}, b"1/5", b"2/2")
    assert await log.marks(stream, "end") == await log.marks(stream, "earliest") | marks_after(items)


async def test_from_the_earliest_everything_is_read(log, stream):
    await log.write(stream, *numbered(1, 0, 3))
    earliest = await log.marks(stream, "earliest")
    assert by_shard(await log.read(stream, earliest, b"1/2")) == by_shard(numbered(1, 0, 3))


async def test_a_log_keeps_its_identity_when_it_is_opened_again_and_written(log, stream):
    async with log.opened() as one:
        identity = await one.reader(stream).identity()
    await log.write(stream, *new(1, b"record"))
    async with log.opened() as other:
        assert await other.reader(stream).identity() == identity


async def test_marks_beyond_the_end_are_a_gap_and_nothing_is_skipped_after_it(log, stream):
    """Whoever stored them had read a tail that the log has lost."""
    await log.write(stream, *numbered(1, 0, 5), *numbered(2, 0, 2))
    beyond = {shard: mark + (3 if shard == 1 else 0) for shard, mark in (await log.marks(stream, "end")).items()}
    async with log.opened() as opened, following(opened.reader(stream), beyond) as seen:
        await seen.once(lambda: Gap(1) in seen.items)
        await log.write(stream, *new(1, b"1/5"), *new(2, b"2/2"))
        items = by_shard(await seen.until(b"1/5", b"2/2"))
    assert items == {1: [Gap, *(b"1/%d" % number for number in range(6))], 2: [b"2/2"]}


# --- retention -------------------------------------------------------------------------------------------------------------------


async def test_records_that_expired_unread_are_a_gap_before_the_next_one(log, stream):
    await log.write_old(stream, *numbered(1, 0, 5), *numbered(2, 0, 2))
    items = await log.read(stream, {}, b"1/4", b"2/1")
    stored = marks_after([*items, *[each for each in items if each.body == b"1/1"]])
    await log.expire(stream)
    await log.write(stream, *new(1, b"1/5", b"1/6"), *new(2, b"2/2"))
    rest = await log.read(stream, stored, b"1/6", b"2/2")
    assert by_shard(rest) == {1: [Gap, b"1/5", b"1/6"], 2: [b"2/2"]}


async def test_a_reader_that_had_read_what_expired_sees_no_gap(log, stream):
    await log.write_old(stream, *numbered(1, 0, 5))
    async with log.opened() as opened, following(opened.reader(stream), {}) as seen:
        await seen.until(b"1/4")
        await log.expire(stream)
        await log.write(stream, *new(1, b"1/5"))
        assert by_shard(await seen.until(b"1/5")) == {1: [b"1/%d" % number for number in range(6)]}


async def test_after_everything_expired_the_earliest_is_the_end(log, stream):
    await log.write_old(stream, *numbered(1, 0, 5))
    await log.expire(stream)
    earliest = await log.marks(stream, "earliest")
    assert earliest == await log.marks(stream, "end")
    await log.write(stream, *new(1, b"next"))
    assert by_shard(await log.read(stream, earliest, b"next")) == {1: [b"next"]}


async def test_the_earliest_is_before_the_first_record_that_is_kept(log, stream):
    await log.write_old(stream, *numbered(1, 0, 5))
    await log.expire(stream)
    await log.write(stream, *new(1, b"kept", b"too"))
    earliest = await log.marks(stream, "earliest")
    assert by_shard(await log.read(stream, earliest, b"too")) == {1: [b"kept", b"too"]}


# --- appending -------------------------------------------------------------------------------------------------------------------


async def test_one_append_reaches_every_shard_in_its_own_order(log):
    written = [each for number in range(30) for shard in range(SHARDS) for each in new(shard, b"%d/%d" % (shard, number))]
    async with log.opened() as opened:
        await opened.appender(Stream.RECEIPTS).append(written)
    items = await log.read(Stream.RECEIPTS, {}, *(b"%d/29" % shard for shard in range(SHARDS)))
    assert by_shard(items) == by_shard(written)


async def test_what_many_append_at_once_is_all_there_and_in_the_order_of_each(log):
    async def author(appender, name: int) -> None:
        for number in range(10):
            await appender.append(new(4, b"%d:%d:a" % (name, number), b"%d:%d:b" % (name, number)))

    async with log.opened() as opened, asyncio.TaskGroup() as tasks:
        appender = opened.appender(Stream.RECEIPTS)
        authors = [tasks.create_task(author(appender, name)) for name in range(8)]
        await asyncio.wait(authors)
    items = await log.read(Stream.RECEIPTS, {}, *(b"%d:9:b" % name for name in range(8)))
    assert len(items) == 160
    for name in range(8):
        own = [each.body for each in items if each.body.startswith(b"%d:" % name)]
        assert own == [b"%d:%d:%s" % (name, number, half) for number in range(10) for half in (b"a", b"b")]


async def test_what_an_append_returned_for_is_below_the_end(log):
    async with log.opened() as opened:
        reader, appender = opened.reader(Stream.RECEIPTS), opened.appender(Stream.RECEIPTS)
        for number in range(1, 6):
            before = await reader.end()
            await appender.append(new(4, b"%d" % number))
            assert {shard for shard, mark in (await reader.end()).items() if mark > before[shard]} == {4}


async def test_nothing_to_append_is_no_work(log):
    async with log.opened() as opened:
        await opened.appender(Stream.RECEIPTS).append([])
        assert await opened.reader(Stream.RECEIPTS).end() == await opened.reader(Stream.RECEIPTS).earliest()


async def test_an_append_that_the_log_refuses_says_so_and_costs_only_itself(log):
    """Shard 99 does not exist."""
    async with log.opened() as opened:
        appender = opened.appender(Stream.RECEIPTS)
        await appender.append(new(1, b"before"))
        with pytest.raises(Unavailable):
            await appender.append(new(99, b"refused"))
        await appender.append(new(1, b"after"))
    assert by_shard(await log.read(Stream.RECEIPTS, {}, b"after")) == {1: [b"before", b"after"]}


# --- closing ---------------------------------------------------------------------------------------------------------------------


def kafka_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("kafka")]


async def test_closing_the_log_ends_its_readers_and_appenders_and_leaves_no_task(log, stream):
    tasks, threads = asyncio.all_tasks(), kafka_threads()
    opened = await log.open()
    await opened.appender(Stream.RECEIPTS).append(new(1, b"receipt"))
    await log.write(stream, *new(2, b"record"))
    async with following(opened.reader(stream), {}) as seen:
        await seen.until(b"record")
        async with asyncio.timeout(PATIENCE_S):
            await opened.close()
            await seen.task
    assert asyncio.all_tasks() == tasks
    if stream is Stream.RECEIPTS:
        assert kafka_threads() == threads


async def test_closing_a_reader_ends_what_it_reads(log, stream):
    async with log.opened() as opened:
        reader = opened.reader(stream)
        async with following(reader, {}) as seen, asyncio.timeout(PATIENCE_S):
            await log.write(stream, *new(2, b"record"))
            await seen.until(b"record")
            await reader.close()
            await seen.task


async def test_a_reader_whose_caller_leaves_leaves_no_task(log, stream):
    await log.write(stream, *new(2, b"record"))
    async with log.opened() as opened:
        reader, tasks = opened.reader(stream), asyncio.all_tasks()
        async with following(reader, {}) as seen:
            await seen.until(b"record")
        assert asyncio.all_tasks() == tasks


async def test_an_append_under_way_is_finished_by_closing(log):
    opened = await log.open()
    appender = opened.appender(Stream.RECEIPTS)
    await appender.append(new(1, b"0"))
    under_way = asyncio.gather(*(appender.append(new(1, b"%d" % number)) for number in range(1, 50)))
    await asyncio.sleep(0)  # each has begun
    async with asyncio.timeout(PATIENCE_S):
        await opened.close()
        await under_way
    items = await log.read(Stream.RECEIPTS, {}, *(b"%d" % number for number in range(50)))
    assert len(items) == 50


async def test_nothing_is_appended_to_a_log_that_is_closed(log):
    opened = await log.open()
    appender = opened.appender(Stream.RECEIPTS)
    await appender.append(new(1, b"before"))
    await opened.close()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Unavailable, match="closed"):
            await appender.append(new(1, b"after"))
