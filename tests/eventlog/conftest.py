"""The log in its two homes, under one face: written as its writers write it, aged and thinned out as retention does it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from heliograph.eventlog.kafka import KafkaLog, KafkaProducer, topic_name
from heliograph.eventlog.ports import Gap, Log, Marks, NewRecord, Reader, Record, Stream
from heliograph.eventlog.postgres import PostgresLog
from heliograph.runtime.clock import now_us

PATIENCE_S = 60
OLD = (datetime.now(UTC) - timedelta(days=9)).date()


def new(shard: int, *bodies: bytes, trace: str | None = None) -> list[NewRecord]:
    return [NewRecord(shard, f"key-{shard}", body, trace) for body in bodies]


class Seen:
    """A reader at work, and what it has yielded."""

    def __init__(self, reader: Reader, after: Mapping[int, int]) -> None:
        self.items: list[Record | Gap] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._take(reader, after))
        self.task.add_done_callback(lambda _: self._news.set())

    async def _take(self, reader: Reader, after: Mapping[int, int]) -> None:
        async with aclosing(reader.read(after)) as batches:
            async for batch in batches:
                assert batch, "a batch holds something"
                self.items += batch
                self._news.set()

    async def until(self, *bodies: bytes) -> list[Record | Gap]:
        """Everything seen, once all of these bodies are among it."""
        return await self.once(lambda: set(bodies) <= {each.body for each in self.records})

    async def once(self, true: Callable[[], bool]) -> list[Record | Gap]:
        """Everything seen, once this is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self._news.clear()
                if self.task.done():
                    raise AssertionError("the reader has ended") from self.task.exception()
                await self._news.wait()
        return list(self.items)

    @property
    def records(self) -> list[Record]:
        return [each for each in self.items if isinstance(each, Record)]


@asynccontextmanager
async def following(reader: Reader, after: Mapping[int, int]) -> AsyncIterator[Seen]:
    seen = Seen(reader, after)
    try:
        yield seen
    finally:
        seen.task.cancel()
        await asyncio.gather(seen.task, return_exceptions=True)


class Home:
    """Where a log lives: opens it, and stands in for the commit and the relay, who write versions."""

    url: Callable[[str], str]
    bootstrap: str
    prefix: str

    async def open(self) -> Log:
        raise NotImplementedError

    async def write(self, stream: Stream, *records: NewRecord) -> None:
        raise NotImplementedError

    async def write_old(self, stream: Stream, *records: NewRecord) -> None:
        """Written so long ago that `expire` takes them."""
        raise NotImplementedError

    async def expire(self, stream: Stream) -> None:
        raise NotImplementedError

    async def read(self, stream: Stream, after: Mapping[int, int], *until: bytes) -> list[Record | Gap]:
        """What a log opened anew yields, until all of these bodies are among it."""
        async with self.opened() as log, following(log.reader(stream), after) as seen:
            return await seen.until(*until)

    async def marks(self, stream: Stream, of: str) -> Marks:
        async with self.opened() as log:
            return await getattr(log.reader(stream), of)()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Log]:
        log = await self.open()
        try:
            yield log
        finally:
            await log.close()

    async def append(self, *records: NewRecord) -> None:
        async with self.opened() as log:
            await log.appender(Stream.RECEIPTS).append(records)

    async def end(self) -> None:
        """Whoever wrote here goes."""


class OnPostgres(Home):
    def __init__(self, url: Callable[[str], str]) -> None:
        self.url = url

    async def open(self) -> Log:
        return await PostgresLog.open(self.url("heliograph_sync"), "test")

    async def write(self, stream: Stream, *records: NewRecord) -> None:
        if stream is Stream.RECEIPTS:
            await self.append(*records)
            return
        async with self.connected("heliograph_registry") as connection:
            for each in records:
                await connection.execute(
                    "select eventlog.append_event($1, $2, $3, $4)", each.shard, each.key, each.body, each.trace
                )

    async def write_old(self, stream: Stream, *records: NewRecord) -> None:
        table = {Stream.VERSIONS: "event", Stream.RECEIPTS: "log_receipt"}[stream]
        async with self.connected("postgres") as connection, connection.transaction():
            await connection.execute("set local role heliograph_owner")
            await connection.execute(
                f"create table if not exists eventlog.{table}_{OLD:%Y%m%d} partition of eventlog.{table} "
                f"for values from ('{OLD} 00:00Z') to ('{OLD} 24:00Z')"
            )
            for each in records:
                await connection.execute(
                    f"""with p as (update eventlog.{table}_shard set next_position = next_position + 1 where shard = $1
                                   returning next_position - 1 as position)
                        insert into eventlog.{table} select $1, position, 1, $2, $3, $4, '{OLD} 12:00Z' from p""",
                    *(each.shard, each.key, each.body, each.trace),
                )

    async def expire(self, stream: Stream) -> None:
        """As the upkeep of the registry and the relay does."""
        table = {Stream.VERSIONS: "event", Stream.RECEIPTS: "log_receipt"}[stream]
        async with self.connected("heliograph_registry") as connection:
            assert await connection.fetchval("select eventlog.drop_partitions($1, 7, false)", table) == 1

    async def promoted(self, stream: Stream, shard: int, last: int, *, timeline: int = 2, cut: bool = True) -> None:
        """Another server stands in this one's place, which had the shard's records up to `last` when it was promoted. ``cut``: and everybody's
        connections to the one before end."""
        table = {Stream.VERSIONS: "event", Stream.RECEIPTS: "log_receipt"}[stream]
        async with self.connected("postgres") as connection:
            async with connection.transaction():
                await connection.execute("set local session_replication_role = replica")
                await connection.execute(f"delete from eventlog.{table} where shard = $1 and position > $2", shard, last)
                await connection.execute(
                    f"update eventlog.{table}_shard set next_position = $2 + 1 where shard = $1", shard, last
                )
                await connection.execute(
                    "create or replace function eventlog.current_timeline() returns int language sql volatile as "
                    f"'select {timeline}'"
                )
            if cut:
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> "
                    "pg_backend_pid()"
                )

    @asynccontextmanager
    async def connected(self, role: str) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.url(role))
        try:
            yield connection
        finally:
            await connection.close()


class OnKafka(Home):
    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self._relay: KafkaProducer | None = None
        self._positions: dict[int, int] = defaultdict(int)
        self._old: Marks = {}

    async def open(self) -> Log:
        return KafkaLog(self.bootstrap, self.prefix, {})

    async def write(self, stream: Stream, *records: NewRecord) -> None:
        if stream is Stream.RECEIPTS:
            await self.append(*records)
            return
        places = []
        for each in records:
            self._positions[each.shard] += 1
            places.append((each, 1, self._positions[each.shard]))
        await self.relay(*places)

    async def relay(self, *places: tuple[NewRecord, int, int]) -> None:
        """As a relay appends: each record with its timeline and position."""
        if self._relay is None:
            self._relay = KafkaProducer(self.bootstrap, {})
        loop, waiting = asyncio.get_running_loop(), []
        for record, timeline, position in places:
            headers = [("position", b"%d" % position), ("timeline", b"%d" % timeline), ("committed_at_us", b"%d" % now_us())]
            if record.trace:
                headers.append(("traceparent", record.trace.encode()))
            waiting.append(loop.create_future())
            self._relay.produce(
                topic_name(self.prefix, Stream.VERSIONS),
                record.shard,
                record.key,
                record.body,
                headers,
                _into(loop, waiting[-1]),
            )
        async with asyncio.timeout(PATIENCE_S):
            assert not [error for error in await asyncio.gather(*waiting) if error]

    async def write_old(self, stream: Stream, *records: NewRecord) -> None:
        await self.write(stream, *records)
        self._old = await self.marks(stream, "end")

    async def expire(self, stream: Stream) -> None:
        topic = topic_name(self.prefix, stream)
        ends = [TopicPartition(topic, shard, offset) for shard, offset in self._old.items()]
        await self.administer(lambda admin: admin.delete_records(ends))

    async def administer(self, call: Callable) -> None:
        """`call(admin)` returns futures by what they are about; waits for them."""

        def run() -> None:
            admin = AdminClient({"bootstrap.servers": self.bootstrap})
            for each in call(admin).values():
                each.result(PATIENCE_S)

        await asyncio.to_thread(run)

    async def end(self) -> None:
        if self._relay is not None:
            await self._relay.close()


def _into(loop: asyncio.AbstractEventLoop, future: asyncio.Future) -> Callable:
    return lambda error: loop.call_soon_threadsafe(future.set_result, error)


@pytest.fixture
def on_postgres(database) -> OnPostgres:
    return OnPostgres(database.url)


@pytest.fixture
async def on_kafka(kafka, kafka_prefix) -> AsyncIterator[OnKafka]:
    home = OnKafka(kafka.bootstrap, kafka_prefix)
    yield home
    await home.end()


@pytest.fixture(params=["on_postgres", pytest.param("on_kafka", marks=pytest.mark.kafka)])
def log(request) -> Home:
    return request.getfixturevalue(request.param)
