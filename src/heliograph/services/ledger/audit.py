"""Tells the audit trail, which the registry keeps, of every closed propagation. Blocks nothing; gives up into the dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from heliograph.core.errors import HeliographError, Unavailable
from heliograph.runtime.retry import delay
from heliograph.services.ledger.ports import Registry
from heliograph.services.ledger.postgres import Audit, Writer
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

AT_ONCE: Final = 20
POLL_S: Final = 1.0
RETRY_BASE_S: Final = 1.0
RETRY_CAP_S: Final = 300.0  # ten attempts reach over about a quarter of an hour


class Auditor:
    def __init__(
        self, writer: Writer, registry: Registry, *, attempts: int, metrics: Metrics, now_us: Callable[[], int]
    ) -> None:
        self._writer = writer
        self._registry = registry
        self._attempts = attempts
        self._metrics = metrics
        self._now_us = now_us
        self._closed = asyncio.Event()

    def notice(self) -> None:
        """A propagation was closed."""
        self._closed.set()

    async def run(self) -> None:
        """Until cancelled. Raises Unavailable when the writer's connection is gone."""
        while True:
            if not await self.post_due():
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._closed.wait()
                self._closed.clear()

    async def post_due(self) -> int:
        """Posts what is due now, one after the other; returns how many there were."""
        async with self._writer.transaction():
            due = await self._writer.audits_due(self._now_us(), AT_ONCE)
        for audit in due:
            await self._post(audit)
        return len(due)

    async def _post(self, audit: Audit) -> None:
        try:
            await self._registry.record_closed(audit.report, audit.trace)
        except Unavailable as error:
            await self._later(audit, error)
        except HeliographError as error:
            await self._never(audit, error)
        else:
            async with self._writer.transaction():
                await self._writer.audit_posted(audit.version)

    async def _later(self, audit: Audit, error: HeliographError) -> None:
        if audit.attempts + 1 >= self._attempts:
            await self._never(audit, error)
            return
        self._metrics.retries.labels("audit").inc()
        wait_s = RETRY_BASE_S + delay(audit.attempts, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        async with self._writer.transaction():
            await self._writer.audit_failed(audit.version, self._now_us() + int(wait_s * 1e6))

    async def _never(self, audit: Audit, error: HeliographError) -> None:
        log.error("audit_set_aside", version=audit.version, code=error.code, detail=error.detail)
        async with self._writer.transaction():
            again = await self._writer.audit_dead(audit, f"{error.code}: {error.detail}"[:1000])
        counter = self._metrics.dead_letters_failed_again if again else self._metrics.dead_letters
        counter.labels("deliveries").inc()
