"""Takes in the log: both streams, in batches, each batch's effects and marks in one transaction.

A record that cannot be taken in never stops the others. What does not parse is set aside; when PostgreSQL refuses a batch because of
what a row says, the batch is halved until the one is found. Setting aside is part of the transaction that moves the mark behind the
record: of one record there is one letter, and it holds all that was refused of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Final, cast

import msgspec
import structlog

from heliograph.core.errors import HeliographError
from heliograph.eventlog.ports import Gap, Log, Marks, Record, Stream
from heliograph.runtime.retry import until_available
from heliograph.services.ledger import intake
from heliograph.services.ledger.batch import Batch, Poison
from heliograph.services.ledger.ledger import Ledger
from heliograph.services.ledger.ports import CurrentHead, Registry
from heliograph.services.ledger.postgres import UNREADABLE, Progress, Writer
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

STREAMS: Final = (Stream.VERSIONS, Stream.RECEIPTS)
MAX_RECORDS: Final = 2000
MAX_BYTES: Final = 512 * 1024
"""Of records in one transaction, some 4,000 receipts: more would make waiters wait for each other."""
GATHER_S: Final = 0.02
UNHURRIED_S: Final = 0.08
"""Records of one fan-out come in a burst: wait for more of them than the first, and let the fan-out have the machine meanwhile. Receipts that nobody
waits for wait for longer; a version is there to be asked about at once."""
QUEUED_BATCHES: Final = 8  # read ahead while a transaction commits
HEADS_ATTEMPTS: Final = 5


class Consumer:
    """Belongs to one term of leading: made after the board was loaded on ``writer``'s connection, ended with it."""

    def __init__(
        self,
        source: Log,
        writer: Writer,
        ledger: Ledger,
        *,
        registry: Registry,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._log = source
        self._writer = writer
        self._ledger = ledger
        self._registry = registry
        self._metrics = metrics
        self._now_us = now_us
        self._queue: asyncio.Queue[list[Record]] = asyncio.Queue(QUEUED_BATCHES)
        self._progress: dict[Stream, Progress] = {}
        self._tails = {stream: source.reader(stream) for stream in STREAMS}  # asked for the log's end only
        self._advanced = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Raises what ends the term: Unavailable when the connection is gone."""
        async with asyncio.TaskGroup() as tasks:
            for stream in STREAMS:
                tasks.create_task(self._read(stream), name=f"ledger reads {stream}")
            tasks.create_task(self._take_in(), name="ledger takes in")

    async def caught_up(self, stream: Stream, timeout_s: float) -> bool:
        """Whether everything that was in the stream when called has been taken in, waiting for it at most so long."""
        end = await self._tails[stream].end()
        try:
            async with asyncio.timeout(timeout_s):
                while not self._has(stream, end):
                    self._advanced.clear()
                    await self._advanced.wait()
        except TimeoutError:
            return False
        return True

    def _has(self, stream: Stream, end: Marks) -> bool:
        progress = self._progress.get(stream)
        return progress is not None and all(progress.marks.get(shard, 0) >= mark for shard, mark in end.items())

    # --- reading ---

    async def _read(self, stream: Stream) -> None:
        reader = self._log.reader(stream)
        try:
            identity, earliest = await until_available(reader.identity), await until_available(reader.earliest)
            start = await self._start(stream, identity, earliest)
            async with aclosing(cast("AsyncGenerator[list[Record | Gap]]", reader.read(start))) as batches:
                async for items in batches:
                    await self._arrived(stream, items)
        finally:
            await reader.close()

    async def _start(self, stream: Stream, identity: str, earliest: Marks) -> Marks:
        """The stored marks, or the earliest of a log that was never read or is another one now: effects may be repeated."""
        async with self._writer.transaction():
            stored = await self._writer.progress(stream)
        if stored is None or stored.identity != identity:
            log.info("log_read_from_earliest", stream=str(stream), known=stored is not None)
            stored = Progress(identity, {})
        # a shard whose records all left the log is where its next record will be
        marks = {shard: max(mark, stored.marks.get(shard, mark)) for shard, mark in earliest.items()}
        self._progress[stream] = Progress(identity, marks)
        self._advanced.set()
        return marks

    async def _arrived(self, stream: Stream, items: Sequence[Record | Gap]) -> None:
        records = [each for each in items if isinstance(each, Record)]
        self._metrics.log_records_read.labels(str(stream)).inc(len(records))
        if len(records) < len(items):
            self._metrics.log_gaps.labels(str(stream)).inc(len(items) - len(records))
            await self._missed(stream)
        await self._queue.put(records)

    async def _missed(self, stream: Stream) -> None:
        """Missed versions: the registry says at least what each environment is at. Missed receipts are gone; drift will tell."""
        log.warning("log_gap", stream=str(stream))
        if stream is Stream.RECEIPTS:
            return
        try:
            heads = await until_available(self._heads, limit=HEADS_ATTEMPTS)
            batch = Batch()
            for head in heads:
                batch.add_current(head)
        except HeliographError as error:
            log.error("heads_not_read", code=error.code, detail=error.detail)
            return
        async with self._writer.transaction():
            await self._writer.write(batch)

    async def _heads(self) -> list[CurrentHead]:
        return [head async for head in self._registry.heads()]

    # --- taking in ---

    async def _take_in(self) -> None:
        while True:
            records = await self._queue.get()
            await self._gather(records)
            while _has_room(records) and not self._queue.empty():
                records = records + self._queue.get_nowait()
            for portion in _portions(records):
                started = asyncio.get_running_loop().time()
                await self.take_in(portion)
                self._metrics.ledger_batch_seconds.observe(asyncio.get_running_loop().time() - started)
                self._metrics.ledger_batch_records.observe(len(portion))
                self._advanced.set()

    async def _gather(self, records: Sequence[Record]) -> None:
        await asyncio.sleep(GATHER_S)
        if any(each.stream is Stream.VERSIONS for each in records):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(UNHURRIED_S):
                await self._ledger.awaited.wait()

    async def take_in(self, records: Sequence[Record]) -> None:
        """Commits the effects of all of them with their marks, then tells the board. Raises Unavailable: then nothing is certain."""
        batch = Batch()
        for record in records:
            batch.add(record, self._now_us())
        try:
            await self._commit(batch, records)
        except UNREADABLE as error:
            if len(records) > 1:
                half = len(records) // 2
                await self.take_in(records[:half])
                await self.take_in(records[half:])
            else:
                await self._take_apart(records[0], _refused(error))

    async def _take_apart(self, record: Record, reason: str) -> None:
        """It is refused. Of many receipts in it, those that are not are taken in before the mark; all of it is repeated after a crash in between."""
        parts = intake.parts_of(record.body)
        refused = [part for part in parts if not await self._takes(record, part)] if len(parts) > 1 else parts
        poison = [Poison(msgspec.structs.replace(record, body=intake.joined(refused)), reason)] if refused else []
        await self._commit(Batch(poison=poison), [record])

    async def _takes(self, record: Record, part: bytes) -> bool:
        return await self.take_in_again(msgspec.structs.replace(record, body=part)) is None

    async def take_in_again(self, record: Record) -> str | None:
        """One that was refused before; the log's marks stay. Returns what is wrong with it still. Raises Unavailable."""
        batch = Batch()
        batch.add(record, self._now_us())
        if batch.poison:
            return batch.poison[0].reason
        try:
            await self._write(batch, {})
        except UNREADABLE as error:
            return _refused(error)
        return None

    async def _commit(self, batch: Batch, records: Sequence[Record]) -> None:
        await self._write(batch, self._after(records))
        for poison in batch.poison:
            self._metrics.dead_letters.labels(str(poison.record.stream)).inc()

    async def _write(self, batch: Batch, progress: dict[Stream, Progress]) -> None:
        async with self._writer.transaction():
            await self._writer.not_flushed()
            written = await self._writer.write(batch)
            asides = await self._writer.set_rejections_aside(batch)
            for poison in batch.poison:
                await self._writer.set_aside(poison, self._progress[poison.record.stream].identity)
            for stream, reached in progress.items():
                await self._writer.set_progress(stream, reached)
        self._progress |= progress
        self._ledger.took_in(batch, written)
        self._metrics.dead_letters.labels("deliveries").inc(asides.count("new"))
        self._metrics.dead_letters_failed_again.labels("deliveries").inc(asides.count("again"))
        for state, count in Counter(answer.state for _, _, answer in batch.answers.values()).items():
            self._metrics.receipts.labels(state).inc(count)

    def _after(self, records: Sequence[Record]) -> dict[Stream, Progress]:
        marks: dict[Stream, Marks] = {}
        for record in records:
            marks.setdefault(record.stream, dict(self._progress[record.stream].marks))[record.shard] = record.mark
        return {stream: Progress(self._progress[stream].identity, reached) for stream, reached in marks.items()}


def _has_room(records: Sequence[Record]) -> bool:
    return len(records) < MAX_RECORDS and sum(len(each.body) for each in records) < MAX_BYTES


def _portions(records: Sequence[Record]) -> Iterator[list[Record]]:
    """For one transaction each."""
    portion: list[Record] = []
    size = 0
    for each in records:
        portion.append(each)
        size += len(each.body)
        if len(portion) >= MAX_RECORDS or size >= MAX_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _refused(error: Exception) -> str:
    return f"PostgreSQL refuses it: {type(error).__name__}"
