"""The log on PostgreSQL: the event table itself for versions, its sister for receipts.

A server that was promoted may lack the newest records, and uses their positions again on its higher timeline. A reader remembers the timeline of the
record at each of its marks. It asks whether that record is still there when it starts, when it was cut off, and before it reads on into another
timeline; where it is not, it yields a `Gap` and goes back to the last record that both servers have.
"""

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
_HELD = """
select s.shard, s.next_position - 1 as last, server.recovering, server.timeline,
  (select e.timeline from eventlog.{table} e where e.shard = s.shard and e.position = c.mark) as held
from eventlog.{table}_shard s left join unnest($1::int[], $2::bigint[]) c (shard, mark) using (shard)
cross join (
  select pg_is_in_recovery() as recovering, case when not pg_is_in_recovery() then eventlog.current_timeline() end as timeline
) server
"""
_SHARED = """
select c.shard, e.timeline, least(c.mark, coalesce(
  e.position, (select min(position) - 1 from eventlog.{table} where shard = c.shard), s.next_position - 1
)) as position
from unnest($1::int[], $2::bigint[], $3::int[]) c (shard, mark, timeline) join eventlog.{table}_shard s using (shard)
left join lateral (
  select position, timeline from eventlog.{table}
  where c.timeline > 0 and shard = c.shard and position <= c.mark and timeline <= c.timeline order by position desc limit 1
) e on true
"""


async def shards_of(source: Pool | Connection, table: str = "event") -> int:
    """How many shards the stream in this table has. Raises Unavailable."""
    with translating():
        return int(await source.fetchval(f"select count(*) from eventlog.{table}_shard"))


class _Place:
    """How far one reading is: of each shard the last position, and the timeline of the record there where it is known.

    ``doubtful``: the server may be another one by now, which need not have what was read.
    """

    def __init__(self, after: Mapping[int, int]) -> None:
        self.at: Marks = dict(after)
        self.timelines: dict[int, int | None] = {}
        self.doubtful = True
        self.wake = asyncio.Event()

    def has_lost(self, row: asyncpg.Record) -> bool:
        """Whether the record at the shard's mark is another one now, or there cannot be one: where it is only missing, it has expired."""
        shard = row["shard"]
        seen, held = self.timelines.get(shard), row["held"]
        return row["last"] < self.at.get(shard, 0) or (None not in (seen, held) and seen != held)

    def timeline_before(self, row: asyncpg.Record) -> int:
        """The timeline of the last record seen; where a reader started from marks alone, the one before the server was promoted."""
        return self.timelines.get(row["shard"]) or (row["timeline"] or 1) - 1

    def turns(self, rows: list[asyncpg.Record]) -> bool:
        """Whether a shard goes on in another timeline than that of the record before."""
        firsts = {row["shard"]: row["timeline"] for row in reversed(rows)}
        return any(self.timelines.get(shard) not in (None, timeline) for shard, timeline in firsts.items())


class PostgresReader:
    """Wakes on NOTIFY and polls; one statement reads all shards."""

    def __init__(self, url: str, pool: Pool, stream: Stream) -> None:
        self._url = url
        self._pool = pool
        self._stream = stream
        self._table = _TABLE[stream]
        self._next = _NEXT.replace("{table}", self._table).replace("{batch}", str(BATCH))
        self._held = _HELD.replace("{table}", self._table)
        self._shared = _SHARED.replace("{table}", self._table)
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
        place = _Place(after)
        self._wakes.add(place.wake)
        try:
            async with self._listening(place):
                async for _ in attempts(cap_s=1.0):  # an outage begins here again, at the marks reached
                    with suppress(Unavailable):
                        async for batch in self._batches(place):
                            yield batch
                    place.doubtful = True
                    if self._closed:
                        return
        finally:
            self._wakes.discard(place.wake)

    @asynccontextmanager
    async def _listening(self, place: _Place) -> AsyncIterator[None]:
        """Inside, it is woken by each ring, here or elsewhere, and doubtful whenever the listener had to connect: the pool, too, may be connected
        to another server then, and does not say so."""
        channel, name = _CHANNEL[self._stream], f"heliograph {self._stream} reader"
        with heard(channel, place.wake.set) as notified:

            def told(text: str) -> None:
                place.doubtful |= not text
                notified(text)

            listening = asyncio.create_task(listen(self._url, channel, told, application_name=name))
            try:
                yield
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _batches(self, place: _Place) -> AsyncIterator[list[Record | Gap]]:
        while not self._closed:
            place.wake.clear()
            if place.doubtful and (gaps := await self._gone_back(place)):
                yield gaps
            with translating():
                rows = await self._pool.fetch(self._next, list(place.at), list(place.at.values()))
            if place.turns(rows) and (gaps := await self._gone_back(place)):
                yield gaps
                continue  # the rows are beyond what was lost
            if rows:
                yield self._in_order(rows, place)
            if len(rows) < BATCH:  # that was all; what was committed since has rung
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await place.wake.wait()

    async def _gone_back(self, place: _Place) -> list[Record | Gap]:
        """Goes back in each shard that has lost what was read, and says in which. Raises Unavailable, also for a server that lacks records and is not
        promoted yet: it may have them in a moment."""
        place.doubtful = False  # before the question: another one may come while it is under way
        with translating():
            rows = await self._pool.fetch(self._held, list(place.at), list(place.at.values()))
        lost = {row["shard"]: place.timeline_before(row) for row in rows if place.has_lost(row)}
        if lost and rows[0]["recovering"]:
            raise Unavailable("the database is behind what was read", retry_after=1)
        shared = await self._last_shared(place, lost) if lost else []
        place.at = {row["shard"]: place.at.get(row["shard"], 0) for row in rows}
        place.at |= {row["shard"]: row["position"] for row in shared}
        place.timelines = {row["shard"]: row["held"] for row in rows} | {row["shard"]: row["timeline"] for row in shared}
        return [Gap(shard) for shard in lost]

    async def _last_shared(self, place: _Place, lost: Mapping[int, int]) -> list[asyncpg.Record]:
        """What the servers before and after a loss both have is up to the last record of the timeline before it, or of an older one."""
        log.warning("log_tail_lost", stream=str(self._stream), shards=list(lost))
        with translating():
            return await self._pool.fetch(self._shared, list(lost), [place.at[shard] for shard in lost], list(lost.values()))

    def _in_order(self, rows: list[asyncpg.Record], place: _Place) -> list[Record | Gap]:
        out: list[Record | Gap] = []
        for row in rows:
            shard, position = row["shard"], row["position"]
            if position != place.at[shard] + 1:
                out.append(Gap(shard))
            place.at[shard], place.timelines[shard] = position, row["timeline"]
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
        """Until it is closed and nothing waits."""
        while not self._closed or self._waiting:
            await self._work.wait()
            await asyncio.sleep(GATHER_S)
            while batch := self._take():
                await self._settle(batch)
            self._work.clear()

    def _take(self) -> list[tuple[Sequence[NewRecord], asyncio.Future[None]]]:
        taken, count = [], 0
        while self._waiting and count < BATCH:
            taken.append(self._waiting.pop(0))
            count += len(taken[-1][0])
        self._queued -= count
        return taken

    async def _settle(self, batch: list[tuple[Sequence[NewRecord], asyncio.Future[None]]]) -> None:
        """Whoever waits is told, whatever happens."""
        error: Exception | None = Unavailable("the log is closed")
        try:
            error = await self._commit([record for records, _ in batch for record in records])
        finally:
            for _, done in batch:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(None)

    async def _commit(self, records: list[NewRecord]) -> Exception | None:
        """What is told to those who handed them over; None: they are durable."""
        try:
            with translating():
                await self._pool.execute(
                    "select eventlog.append_receipts($1, $2, $3, $4)",
                    [each.shard for each in records],
                    [each.key for each in records],
                    [each.body for each in records],
                    [each.trace for each in records],
                )
        except Unavailable as unavailable:
            return unavailable
        except asyncpg.DataError:
            return Invalid("a record says something that the log cannot hold")
        except Exception as failed:  # of whatever kind: the next batch is not to wait for ever
            log.error("receipts_refused", error=type(failed).__name__, records=len(records))
            return Unavailable("the log refused the receipts")
        self._bell.ring()
        return None

    async def close(self) -> None:
        """What was handed over before is finished first, also what nobody waits for any more."""
        self._closed = True
        self._work.set()
        if self._tasks:
            await asyncio.wait(self._tasks[:1])
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
