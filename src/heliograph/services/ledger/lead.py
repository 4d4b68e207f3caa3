"""Terms of leading. One ledger at a time takes in the log; others wait, are ready, answer reads from the tables, and take over
within a moment.

A term begins with the lock and a board made from the tables, and ends with the connection that holds the lock: whatever was not
committed by then never happened, and the next term, here or elsewhere, begins from what was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import structlog

from heliograph.core.errors import Unavailable
from heliograph.eventlog.ports import Log
from heliograph.runtime.postgres import Pool, translating
from heliograph.runtime.retry import attempts
from heliograph.services.ledger.again import Again
from heliograph.services.ledger.audit import Auditor
from heliograph.services.ledger.board import Board
from heliograph.services.ledger.consume import Consumer
from heliograph.services.ledger.keep import DAYS_AHEAD, Keeper
from heliograph.services.ledger.ledger import Ledger
from heliograph.services.ledger.ports import Registry
from heliograph.services.ledger.postgres import Tables, Writer
from heliograph.services.ledger.settings import LedgerSettings
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

LEAD_POLL_S: Final = 0.1
CLOSE_S: Final = 2.0
CONDITION: Final = "records"


class Term:
    """The parts that live as long as one term."""

    def __init__(self, leader: Leader, writer: Writer) -> None:
        settings, metrics, now_us = leader.settings, leader.metrics, leader.now_us
        self.writer = writer
        self.consumer = Consumer(leader.log, writer, leader.ledger, registry=leader.registry, metrics=metrics, now_us=now_us)
        self.auditor = Auditor(writer, leader.registry, attempts=settings.audit_attempts, metrics=metrics, now_us=now_us)
        self.keeper = Keeper(
            settings,
            self.consumer,
            writer,
            leader.ledger,
            tables=Tables(leader.pool),
            metrics=metrics,
            now_us=now_us,
            on_closed=self.auditor.notice,
        )
        self.again = Again(leader.pool, writer, self.consumer, metrics=metrics, now_us=now_us)

    async def run(self) -> None:
        """Until cancelled, or until the connection is gone."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.consumer.run(), name="ledger consumer")
            tasks.create_task(self.keeper.run(), name="ledger keeper")
            tasks.create_task(self.auditor.run(), name="ledger auditor")
            tasks.create_task(self.again.run(), name="ledger takes in again")


class Leader:
    def __init__(
        self,
        settings: LedgerSettings,
        *,
        source: Log,
        pool: Pool,
        ledger: Ledger,
        registry: Registry,
        metrics: Metrics,
        readiness: Readiness,
        now_us: Callable[[], int],
    ) -> None:
        self.settings = settings
        self.log = source
        self.pool = pool
        self.ledger = ledger
        self.registry = registry
        self.metrics = metrics
        self.now_us = now_us
        self._readiness = readiness

    async def run(self) -> None:
        """One term after the other, until cancelled."""
        async for _ in attempts(cap_s=1.0):
            try:
                async with self.term() as term:
                    await term.run()
            except* Unavailable as group:
                log.warning("term_ended", reason=str(_first(group)))
            except* asyncpg.PostgresError as group:
                log.error("term_failed", error=type(_first(group)).__name__)  # its text may hold a row's values
            self._readiness.unmet(CONDITION, "no connection to the tables")
            self.ledger.rebuilt(Board())  # what another one leads on to is in the tables

    @asynccontextmanager
    async def term(self) -> AsyncIterator[Term]:
        """The lock, the board, and the parts, not yet running. Raises Unavailable."""
        async with self._connection() as connection:
            writer = Writer(connection)
            await self._take_lead(writer)
            async with writer.transaction():
                await writer.prepare_days(DAYS_AHEAD)
                board = await writer.load()
            self.ledger.rebuilt(board)
            self._readiness.met(CONDITION)
            log.info("term_began", open=sum(1 for _ in board.all_open()))
            yield Term(self, writer)

    async def _take_lead(self, writer: Writer) -> None:
        """One that waits for it is ready: to be so only as the leader would mean that none could be replaced before it has gone."""
        if await writer.try_lead():
            return
        self._readiness.met(CONDITION)
        log.info("ledger_stands_by")
        while not await writer.try_lead():  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(LEAD_POLL_S)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        with translating():
            connection = await asyncpg.connect(
                self.settings.database_url.get_secret_value(),
                timeout=5,
                command_timeout=self.settings.database_timeout_s,
                server_settings={"application_name": "heliograph ledger writer", "timezone": "UTC"},
            )
        try:
            yield connection
        finally:
            try:
                await connection.close(timeout=CLOSE_S)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
