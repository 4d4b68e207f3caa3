"""What only PostgreSQL's log does: it outlives promotions, which may lose its tail."""

from __future__ import annotations

import asyncio

import pytest
from tests.eventlog.conftest import PATIENCE_S, following, new

from heliograph.core.errors import Unavailable
from heliograph.eventlog import postgres
from heliograph.eventlog.ports import Gap, Stream

SHARD = 3


@pytest.fixture(params=[Stream.VERSIONS, Stream.RECEIPTS])
def stream(request) -> Stream:
    return request.param


def told(items) -> list:
    return [Gap if isinstance(each, Gap) else (each.timeline, each.position, each.body) for each in items]


FIVE = [(1, number, b"%d" % number) for number in range(1, 6)]


@pytest.fixture
async def read_five(on_postgres, stream):
    """A reader that has read five records, and goes on."""
    await on_postgres.write(stream, *new(SHARD, b"1", b"2", b"3", b"4", b"5"))
    async with on_postgres.opened() as log, following(log.reader(stream), {}) as seen:
        await seen.until(b"5")
        yield seen


# --- a server that was promoted in the place of another --------------------------------------------------------------------------


async def test_what_is_written_at_lost_positions_is_read_after_a_gap(on_postgres, stream, read_five):
    await on_postgres.promoted(stream, SHARD, 3)
    await on_postgres.write(stream, *new(SHARD, b"4 again", b"5 again"))
    await read_five.until(b"5 again")
    await on_postgres.write(stream, *new(SHARD, b"6"))
    assert told(await read_five.until(b"6")) == [*FIVE, Gap, (2, 4, b"4 again"), (2, 5, b"5 again"), (2, 6, b"6")]


async def test_a_lost_tail_is_told_before_anything_is_written_in_its_place(on_postgres, stream, read_five):
    await on_postgres.promoted(stream, SHARD, 3)
    assert told(await read_five.once(lambda: Gap(SHARD) in read_five.items)) == [*FIVE, Gap]
    await on_postgres.write(stream, *new(SHARD, b"4 again"))
    assert told(await read_five.until(b"4 again")) == [*FIVE, Gap, (2, 4, b"4 again")]


async def test_a_promotion_that_lost_nothing_is_no_gap_and_nothing_is_read_twice(on_postgres, stream, read_five):
    await on_postgres.promoted(stream, SHARD, 5)
    await on_postgres.write(stream, *new(SHARD, b"6"), *new(4, b"another shard"))
    assert told(await read_five.until(b"6", b"another shard")).count(Gap) == 0
    assert [each.body for each in read_five.records if each.shard == SHARD] == [b"1", b"2", b"3", b"4", b"5", b"6"]


async def test_a_tail_lost_in_the_second_of_two_promotions_is_found(on_postgres, stream, read_five):
    await on_postgres.promoted(stream, SHARD, 4)
    await on_postgres.write(stream, *new(SHARD, b"5 again", b"6"))
    await read_five.until(b"6")
    await on_postgres.promoted(stream, SHARD, 5, timeline=3)
    await on_postgres.write(stream, *new(SHARD, b"6 again"))
    again = [Gap, (2, 5, b"5 again"), (2, 6, b"6"), Gap, (3, 6, b"6 again")]
    assert told(await read_five.until(b"6 again")) == [*FIVE, *again]


async def test_a_promotion_that_nobody_noticed_is_found_by_the_first_record_beyond_the_mark(on_postgres, stream, read_five):
    """As behind a proxy that keeps connections."""
    await on_postgres.promoted(stream, SHARD, 3, cut=False)
    await on_postgres.write(stream, *new(SHARD, b"4 again", b"5 again", b"6"))
    again = [Gap, (2, 4, b"4 again"), (2, 5, b"5 again"), (2, 6, b"6")]
    assert told(await read_five.until(b"6")) == [*FIVE, *again]


async def test_a_reader_that_starts_beyond_the_end_reads_what_was_written_since_the_promotion(on_postgres, stream):
    await on_postgres.write(stream, *new(SHARD, b"1", b"2", b"3", b"4", b"5"))
    await on_postgres.promoted(stream, SHARD, 2)
    await on_postgres.write(stream, *new(SHARD, b"3 again", b"4 again"))
    async with on_postgres.opened() as log, following(log.reader(stream), {SHARD: 5}) as seen:
        await seen.until(b"4 again")
        await on_postgres.write(stream, *new(SHARD, b"5 again"))
        written = [(2, 3, b"3 again"), (2, 4, b"4 again"), (2, 5, b"5 again")]
        assert told(await seen.until(b"5 again")) == [Gap, *written]


async def test_a_record_at_the_mark_that_expired_is_no_lost_tail(on_postgres, stream):
    await on_postgres.write_old(stream, *new(SHARD, b"1", b"2"))
    async with on_postgres.opened() as log, following(log.reader(stream), {}) as seen:
        await seen.until(b"2")
        await on_postgres.expire(stream)
        await on_postgres.promoted(stream, SHARD, 2)
        await on_postgres.write(stream, *new(SHARD, b"3"))
        assert told(await seen.until(b"3")) == [(1, 1, b"1"), (1, 2, b"2"), (2, 3, b"3")]


async def test_a_server_that_is_not_promoted_yet_is_not_asked_what_is_lost(on_postgres, stream):
    """It may only be behind, and have the records in a moment."""
    await on_postgres.write(stream, *new(SHARD, b"1", b"2"))
    async with on_postgres.opened() as log:
        reader = log.reader(stream)
        place = postgres._Place({SHARD: 5})
        promoted, reader._held = reader._held, reader._held.replace("pg_is_in_recovery()", "true")
        with pytest.raises(Unavailable, match="behind"):
            await reader._gone_back(place)
        reader._held = promoted
        assert await reader._gone_back(place) == [Gap(SHARD)]


async def test_the_marks_are_looked_at_again_only_where_something_happened(on_postgres, stream, monkeypatch):
    looks = []
    true = postgres.PostgresReader._gone_back

    async def counted(reader, place):
        looks.append(dict(place.at))
        return await true(reader, place)

    monkeypatch.setattr(postgres.PostgresReader, "_gone_back", counted)
    async with on_postgres.opened() as log, following(log.reader(stream), {}) as seen:
        for number in range(1, 20):
            await on_postgres.write(stream, *new(SHARD, b"%d" % number))
            await seen.until(b"%d" % number)
    assert 1 <= len(looks) <= 2  # at its start, and when its listener was there


# --- appending -------------------------------------------------------------------------------------------------------------------


class Pool:
    """Commits when it is let, or raises what it is told to."""

    def __init__(self) -> None:
        self.begun, self.let = asyncio.Event(), asyncio.Event()
        self.committed: list[bytes] = []
        self.error: BaseException | None = None

    async def execute(self, sql: str, *values) -> None:
        if "append_receipts" not in sql:
            return
        self.begun.set()
        await self.let.wait()
        if self.error:
            raise self.error
        self.committed += values[2]


@pytest.fixture
async def pool():
    return Pool()


@pytest.fixture
async def appender(pool):
    appender = postgres.PostgresAppender(pool)
    yield appender
    await appender.close()


@pytest.mark.parametrize("stays", [True, False], ids=["who appends waits", "who appends has gone"])
async def test_closing_finishes_what_is_being_committed(pool, appender, stays):
    appending = asyncio.create_task(appender.append(new(1, b"in hand")))
    await pool.begun.wait()
    if not stays:
        appending.cancel()
        await asyncio.gather(appending, return_exceptions=True)
    closing = asyncio.create_task(appender.close())
    await asyncio.sleep(0)
    pool.let.set()
    async with asyncio.timeout(PATIENCE_S):
        await closing
        assert pool.committed == [b"in hand"]
        if stays:
            await appending


async def test_closing_finishes_what_waits_behind_what_is_being_committed(pool, appender):
    first = asyncio.create_task(appender.append(new(1, b"in hand")))
    await pool.begun.wait()
    second = asyncio.create_task(appender.append(new(1, b"behind it")))
    await asyncio.sleep(0)
    closing = asyncio.create_task(appender.close())
    await asyncio.sleep(0)
    pool.let.set()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(closing, first, second)
    assert pool.committed == [b"in hand", b"behind it"]


async def test_what_nobody_expected_of_the_database_is_told_and_the_next_append_goes_on(pool, appender):
    pool.let.set()
    pool.error = RuntimeError("nobody expected it")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Unavailable):
            await appender.append(new(1, b"fails"))
        pool.error = None
        await appender.append(new(1, b"next"))
    assert pool.committed == [b"next"]
