"""What time alone does: nodes fall silent, deadlines pass, partitions age. All of it measured against the log, not only the clock.

A ledger that was away for an hour finds an hour of receipts in the log. Before it calls anything late or lost it makes sure that it
has taken in all that was there: the *horizon* is the moment up to which that is so, and only the horizon passes deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

import msgspec
import structlog

from heliograph.core.errors import Unavailable
from heliograph.eventlog.ports import Stream
from heliograph.services.ledger.consume import Consumer
from heliograph.services.ledger.ledger import Ledger
from heliograph.services.ledger.postgres import Tables, Writer
from heliograph.services.ledger.propagation import Propagation
from heliograph.services.ledger.report import Report
from heliograph.services.ledger.settings import LedgerSettings
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

CATCH_UP_S: Final = 1.0
PAUSE_S: Final = 0.02  # between two looks when somebody is in a hurry
CLOSE_AT_ONCE: Final = 50  # in one transaction: they share its fsync, and batches of receipts wait for it
MEASURE_EVERY_S: Final = 5.0
SWEEP_EVERY_S: Final = 60.0
RETAIN_EVERY_S: Final = 3600.0
DAYS_AHEAD: Final = 7
DAY_US: Final = 86_400_000_000


class Keeper:
    def __init__(
        self,
        settings: LedgerSettings,
        consumer: Consumer,
        writer: Writer,
        ledger: Ledger,
        *,
        tables: Tables,
        metrics: Metrics,
        now_us: Callable[[], int],
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._consumer = consumer
        self._writer = writer
        self._ledger = ledger
        self._tables = tables
        self._metrics = metrics
        self._now_us = now_us
        self._on_closed = on_closed

    async def run(self) -> None:
        """Until cancelled. Raises Unavailable when the writer's connection is gone."""
        await self.retain()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(RETAIN_EVERY_S, self.retain), name="ledger retention")
            tasks.create_task(self._every(SWEEP_EVERY_S, self.sweep), name="ledger sweep")
            tasks.create_task(self._every(MEASURE_EVERY_S, self.measure), name="ledger figures")
            tasks.create_task(self._tick_for_ever(), name="ledger ticks")

    async def tick(self) -> None:
        """One look at everything that is due."""
        if self._time_matters():
            await self._advance_horizon()
        await self._lose_silent_nodes()
        while due := list(islice(self._due(), CLOSE_AT_ONCE)):
            await self._close(due)
        self._metrics.propagations_open.set(sum(1 for _ in self._ledger.board.all_open()))

    def _time_matters(self) -> bool:
        """Asking the log for its end costs a round trip or, with Kafka, several. Until the board follows it, it is asked, so that nobody who comes to
        wait has to wait for that."""
        board = self._ledger.board
        return (
            not self._ledger.follows
            or any(board.all_open())
            or bool(board.silent_nodes(self._now_us() - _us(self._settings.node_silence_s)))
        )

    async def _advance_horizon(self) -> None:
        now_us = self._now_us()
        try:
            if await self._consumer.caught_up(Stream.RECEIPTS, CATCH_UP_S):
                self._ledger.reached(now_us)
            else:
                self._ledger.fell_behind()
        except Unavailable as error:
            self._ledger.fell_behind()
            log.warning("log_end_unknown", detail=error.detail)  # nothing is called late or lost until it is known again

    async def _tick_for_ever(self) -> None:
        while True:
            await self.tick()
            await asyncio.sleep(PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.tick_s):
                    await self._ledger.hurry.wait()
            self._ledger.hurry.clear()

    async def _every(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await chore()

    # --- nodes ---

    async def _lose_silent_nodes(self) -> None:
        silent = self._ledger.board.silent_nodes(self._ledger.horizon_us - _us(self._settings.node_silence_s))
        if silent:
            log.warning("nodes_lost", nodes=sorted(silent))
            async with self._writer.transaction():
                await self._writer.lose_nodes(silent, self._ledger.horizon_us)
            self._ledger.nodes_lost(silent)

    async def sweep(self) -> None:
        """Instances of long lost nodes have gone; what ended long ago leaves the memory."""
        await self._advance_horizon()
        horizon_us = self._ledger.horizon_us
        async with self._writer.transaction():
            gone = await self._writer.forget_nodes(horizon_us - _us(self._settings.node_forget_s), horizon_us)
        self._ledger.ended(gone)
        self._ledger.board.forget(horizon_us - _us(self._settings.propagation_deadline_s))

    # --- closing ---

    def _due(self) -> Iterator[tuple[Propagation, str]]:
        horizon_us, settings = self._ledger.horizon_us, self._settings
        for propagations in self._ledger.board.open_by_environment():
            for position, propagation in enumerate(propagations, start=1):
                committed_at_us = propagation.commit.committed_at_us
                quiet_us = horizon_us - max(committed_at_us, propagation.changed_at_us)
                if horizon_us - committed_at_us >= _us(settings.propagation_deadline_s):
                    yield propagation, "deadline"
                elif len(propagations) - position >= settings.propagation_max_open:
                    yield propagation, "overtaken"
                elif propagation.complete and quiet_us >= _us(settings.propagation_settle_s):
                    yield propagation, "complete"

    async def _close(self, due: list[tuple[Propagation, str]]) -> None:
        closed: list[tuple[Propagation, Report]] = []
        async with self._writer.transaction():
            for propagation, outcome in due:
                if outcome == "complete" and not propagation.complete:
                    continue  # somebody came back while this transaction waited for its turn
                report = msgspec.structs.replace(propagation.report(), outcome=outcome, closed_at_us=self._now_us())
                closed.append((propagation, await self._writer.close(propagation.commit.version, report)))
        for propagation, report in closed:
            self._ledger.closed(propagation, report)
            self._metrics.propagations_closed.labels(str(report.outcome)).inc()
            log.info(
                "propagation_closed",
                namespace=report.namespace,
                environment=report.environment,
                number=report.number,
                outcome=report.outcome,
                instances=report.instances,
                applied=report.applied,
                rejected=report.rejected,
                missing=report.missing,
                p99_ms=report.times_ms.applied.p99,
            )
        self._on_closed()

    # --- figures and old rows ---

    async def measure(self) -> None:
        self._metrics.connected_instances.clear()
        for region, count in self._ledger.board.connected_by_region().items():
            self._metrics.connected_instances.labels(region).set(count)
        patience_us = self._now_us() - _us(self._settings.drift_grace_s)
        self._metrics.drifting_instances.set(await self._tables.count_behind(patience_us))

    async def retain(self) -> None:
        settings = self._settings
        async with self._writer.transaction():
            await self._writer.prepare_days(DAYS_AHEAD)
            dropped = await self._writer.retain(
                self._now_us(),
                receipts_days=settings.retention_receipts_days,
                versions_days=settings.retention_versions_days,
                subscriptions_days=settings.retention_subscriptions_days,
            )
            await self._writer.forget_schemas(self._now_us() - settings.retention_subscriptions_days * DAY_US)
        if dropped:
            log.info("receipts_dropped", days=dropped)


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)
