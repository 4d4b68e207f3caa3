"""The log on PostgreSQL: the event table itself for versions, its sister for receipts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import asyncpg
import structlog

from heliograph.core.errors import Invalid, Unavailable
from heliograph.eventlog.ports import Gap, Marks, NewRecord, Record, Stream
from heliograph.eventlog.wake import EVENT_CHANNEL, RECEIPT_CHANNEL, Bell, heard
from heliograph.runtime.postgres import Connection, Pool, listen, open_pool, translating
from heliograph.runtime.retry import attempts

log = structlog.get_logger()

POLL_S = 1.0
"""Between two looks when nothing rings: what a ring costs that was lost with the process that had committed. Each look of an idle reader is one to
two milliseconds of CPU, because it finds nothing in the caches."""
BATCH = 500
GATHER_S = 0.002
"""How long an appender waits for others' records before it commits a batch: an fsync costs about as much."""
QUEUE_LIMIT = 100_000

_TABLE = {Stream.VERSIONS: "event", Stream.RECEIPTS: "log_receipt"}
_CHANNEL = {Stream.VERSIONS: EVENT_CHANNEL, Stream.RECEIPTS: RECEIPT_CHANNEL}
_NEXT = """
select e.* from unnest($1::int[], $2::bigint[]) c (shard, after)
cross join lateral (
  select shard, position, timeline, key, body, trace, (extract(epoch from committed_at) * 1000000)::bigint as committed_at_us
  from eventlog.{table} where shard = c.shard and position > c.after order by position limit {batch}
) e
"""


async def shards_of(source: Pool | Connection, table: str = "event") -> int:
    """How many shards the stream in this table has. Raises Unavailable."""
    with translating():
        return int(await source.fetchval(f"select count(*) from eventlog.{table}_shard"))


class PostgresReader:
    """Wakes on NOTIFY and polls; one statement reads all shards."""

    def __init__(self, url: str, pool: Pool, stream: Stream) -> None:
        self._url = url
        self._pool = pool
        self._stream = stream
        self._table = _TABLE[stream]
        self._sql = _NEXT.replace("{table}", self._table).replace("{batch}", str(BATCH))
        self._closed = False
        self._wakes: set[asyncio.Event] = set()

    async def identity(self) -> str:
        with translating():
            return "postgresql:" + str(await self._pool.fetchval("select system_identifier from pg_control_system()"))

    async def end(self) -> Marks:
        with translating():
            rows = await self._pool.fetch(f"select shard, next_position - 1 as last from eventlog.{self._table}_shard")
        return {row["shard"]: row["last"] for row in rows}

    async def earliest(self) -> Marks:
        sql = f"select shard, min(position) - 1 as before from eventlog.{self._table} group by shard"
        end = await self.end()  # first: a shard's first record, appended in between, must not be taken for its end
        with translating():
            rows = await self._pool.fetch(sql)
        return end | {row["shard"]: row["before"] for row in rows}

    async def read(self, after: Mapping[int, int]) -> AsyncIterator[list[Record | Gap]]:
        wake = asyncio.Event()
        self._wakes.add(wake)
        at: Marks = {}
        try:
            async with self._listening(wake):
                async for _ in attempts(cap_s=1.0):  # an outage begins here again, at the marks reached
                    with suppress(Unavailable):
                        at = at or {shard: after.get(shard, 0) for shard in range(await shards_of(self._pool, self._table))}
                        async for batch in self._batches(at, wake):
                            yield batch
                    if self._closed:
                        return
        finally:
            self._wakes.discard(wake)

    @asynccontextmanager
    async def _listening(self, wake: asyncio.Event) -> AsyncIterator[None]:
        """Inside, it is set for each ring, here or elsewhere."""
        channel, name = _CHANNEL[self._stream], f"heliograph {self._stream} reader"
        with heard(channel, wake.set) as notified:
            listening = asyncio.create_task(listen(self._url, channel, notified, application_name=name))
            try:
                yield
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _batches(self, at: Marks, wake: asyncio.Event) -> AsyncIterator[list[Record | Gap]]:
        while not self._closed:
            wake.clear()
            with translating():
                rows = await self._pool.fetch(self._sql, list(at), list(at.values()))
            if rows:
                yield self._in_order(rows, at)
            if len(rows) < BATCH:  # that was all; what was committed since has rung
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await wake.wait()

    def _in_order(self, rows: list[asyncpg.Record], at: Marks) -> list[Record | Gap]:
        out: list[Record | Gap] = []
        for row in rows:
            shard, position = row["shard"], row["position"]
            if position != at[shard] + 1:
                out.append(Gap(shard))
            at[shard] = position
            out.append(
                Record(
                    stream=self._stream,
                    shard=shard,
                    timeline=row["timeline"],
                    position=position,
                    key=row["key"],
                    body=row["body"],
                    committed_at_us=row["committed_at_us"],
                    mark=position,
                    trace=row["trace"],
                )
            )
        return out

    async def close(self) -> None:
        """Ends what it reads, at the latest after the statement under way. The pool is the log's."""
        self._closed = True
        for wake in self._wakes:
            wake.set()


class PostgresAppender:
    """Batches what many callers append into one transaction at a time, so that each fsync is shared."""

    def __init__(self, pool: Pool, stream: Stream = Stream.RECEIPTS) -> None:
        if stream is not Stream.RECEIPTS:
            raise ValueError("versions are appended by the commit itself")
        self._pool = pool
        self._bell = Bell(pool, RECEIPT_CHANNEL)
        self._waiting: list[tuple[Sequence[NewRecord], asyncio.Future[None]]] = []
        self._queued = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._work = asyncio.Event()
        self._closed = False

    async def append(self, records: Sequence[NewRecord]) -> None:
        if not records:
            return
        if self._closed:
            raise Unavailable("the log is closed")
        if self._queued > QUEUE_LIMIT:
            raise Unavailable("too many receipts wait for the log", retry_after=1)
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._run(), name="receipt appender"),
                asyncio.create_task(self._bell.run(), name="receipt bell"),
            ]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, done))
        self._queued += len(records)
        self._work.set()
        await done

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            await asyncio.sleep(GATHER_S)
            while batch := self._take():
                await self._commit(batch)
            self._work.clear()

    def _take(self) -> list[tuple[Sequence[NewRecord], asyncio.Future[None]]]:
        taken, count = [], 0
        while self._waiting and count < BATCH:
            taken.append(self._waiting.pop(0))
            count += len(taken[-1][0])
        self._queued -= count
        return taken

    async def _commit(self, batch: list[tuple[Sequence[NewRecord], asyncio.Future[None]]]) -> None:
        records = [record for records, _ in batch for record in records]
        error: Exception | None = None
        try:
            with translating():
                await self._pool.execute(
                    "select eventlog.append_receipts($1, $2, $3, $4)",
                    [each.shard for each in records],
                    [each.key for each in records],
                    [each.body for each in records],
                    [each.trace for each in records],
                )
            self._bell.ring()
        except Unavailable as unavailable:
            error = unavailable
        except asyncpg.DataError:
            error = Invalid("a record says something that the log cannot hold")
        except asyncpg.PostgresError as failed:
            log.error("receipts_refused", error=type(failed).__name__, records=len(records))
            error = Unavailable("the log refused the receipts")
        for _, done in batch:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

    async def close(self) -> None:
        """What was handed over before is finished first."""
        self._closed = True
        if self._waiting:
            await asyncio.wait([done for _, done in self._waiting])
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class PostgresLog:
    """The log of the embedded default, and of any installation without Kafka."""

    def __init__(self, url: str, pool: Pool) -> None:
        self._url = url
        self._pool = pool
        self._made: list[PostgresReader | PostgresAppender] = []

    @classmethod
    async def open(cls, url: str, application_name: str) -> PostgresLog:
        return cls(url, await open_pool(url, f"{application_name} log", size=4))

    def reader(self, stream: Stream) -> PostgresReader:
        reader = PostgresReader(self._url, self._pool, stream)
        self._made.append(reader)
        return reader

    def appender(self, stream: Stream) -> PostgresAppender:
        appender = PostgresAppender(self._pool, stream)
        self._made.append(appender)
        return appender

    async def close(self) -> None:
        for each in self._made:
            await each.close()
        await self._pool.close()
