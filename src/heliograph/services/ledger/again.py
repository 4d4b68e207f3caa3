"""Takes in again what the ledger had set aside and an operator wants back: receipts, versions, and reports for the audit trail.

The registry marks such a letter `replaying`; here it is tried once more. What fails is waiting again, with one attempt more and the new reason.
Every effect of a record is an upsert, so one that is taken in twice does nothing the second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from heliograph.eventlog import dead_letters
from heliograph.eventlog.dead_letters import DeadLetter
from heliograph.eventlog.ports import Record, Stream
from heliograph.runtime.postgres import Pool
from heliograph.services.ledger.consume import Consumer
from heliograph.services.ledger.postgres import Tables, Writer
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

AT_ONCE: Final = 20
LOOK_S: Final = 1.0
US: Final = 1_000_000


class Again:
    def __init__(self, pool: Pool, writer: Writer, consumer: Consumer, *, metrics: Metrics, now_us: Callable[[], int]) -> None:
        self._pool = pool
        self._tables = Tables(pool)
        self._writer = writer
        self._consumer = consumer
        self._metrics = metrics
        self._now_us = now_us

    async def run(self) -> None:
        """Until cancelled. Raises Unavailable when the database is away; the letters wait."""
        while True:
            if not await self.take_in():
                await asyncio.sleep(LOOK_S)

    async def take_in(self) -> int:
        """What was asked for by now; returns how many letters that settled, one way or the other."""
        settled = 0
        for number in await self._tables.to_take_in_again(AT_ONCE):
            settled += await self._take_in(await dead_letters.one(self._pool, number))
        return settled

    async def _take_in(self, letter: DeadLetter) -> bool:
        """False: a report for the audit trail, which settles its letter itself once it is posted or has failed."""
        if letter.stream == "deliveries":
            async with self._writer.transaction():
                before = await self._writer.audit_again(letter.key, self._now_us())
            if before in ("dead", "pending"):
                return False
            wrong = None if before == "posted" else "the report is not kept any more; discard this letter"
        else:
            wrong = await self._consumer.take_in_again(_record(letter))
        await self._settle(letter, wrong)
        return True

    async def _settle(self, letter: DeadLetter, wrong: str | None) -> None:
        if wrong is None:
            await dead_letters.taken_in_again(self._pool, letter.id)
            log.info("dead_letter_taken_in", letter=letter.id, stream=letter.stream)
            return
        for stream in await dead_letters.failed_again(self._pool, [letter.id], reason=wrong):
            self._metrics.dead_letters_failed_again.labels(stream).inc()


def _record(letter: DeadLetter) -> Record:
    """As it stood in the log; of letters from before the time was kept, with the time they were set aside."""
    return Record(
        stream=Stream(letter.stream),
        shard=letter.shard or 0,
        timeline=0,
        position=letter.position or 0,
        key=letter.key,
        body=letter.body or b"",
        committed_at_us=letter.logged_at_us or int(letter.created_at.timestamp() * US),
        mark=letter.position or 0,
        trace=letter.trace,
    )
