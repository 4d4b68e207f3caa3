"""What sync tells the ledger: receipts, who is connected, how a fan-out went. Appended in batches; a receipt is acknowledged when it is durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from heliograph.core.errors import HeliographError, Invalid
from heliograph.core.events import FromSync, Received
from heliograph.eventlog.ports import Appender, NewRecord
from heliograph.runtime.clock import now_us
from heliograph.runtime.retry import delay
from heliograph.services.sync.records import Told, records
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

BATCH: Final = 2000
MAX_WAITING: Final = 200_000
GATHER_S: Final = 0.05
"""How long the first of a batch waits for more. Receipts come spread over a second: without it each would be a transaction of its own, and they would
take the machine from the next version."""
Durable = Callable[[], None]
Waiting = tuple[FromSync | None, str, Durable | None]


class Outbox:
    """Order is kept per instance (they share a shard) and nothing is dropped that was accepted; when too much waits, `put` refuses a receipt,
    which its client will send again."""

    def __init__(self, appender: Appender, metrics: Metrics) -> None:
        self._appender = appender
        self._metrics = metrics
        self._waiting: list[Waiting] = []
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._appending = asyncio.Lock()  # one batch after the other, whoever asks
        self._on_their_way = 0
        metrics.receipts_waiting.set_function(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """Events taken and not yet durable."""
        return len(self._waiting) + self._on_their_way

    def put(self, event: FromSync, key: str, durable: Durable | None = None) -> bool:
        """`durable` is called once the event is. Only what has such a caller may be refused, or what an outbox of another kind reports again. Whether
        it was taken."""
        if durable is not None and not self.has_room:
            return False
        self._add(event, key, durable)
        return True

    @property
    def has_room(self) -> bool:
        return len(self._waiting) <= MAX_WAITING

    def after(self, durable: Durable) -> None:
        """`durable` is called once everything is that was put before."""
        self._add(None, "", durable)

    def withdraw(self, durable: Durable) -> None:
        """What was put with it and is not being appended yet: it will be put again."""
        self._waiting = [each for each in self._waiting if each[2] is not durable]

    def _add(self, event: FromSync | None, key: str, durable: Durable | None) -> None:
        self._waiting.append((event, key, durable))
        self._work.set()
        if len(self._waiting) >= BATCH:
            self._hurry.set()

    def hurry(self) -> None:
        """Somebody waits for what was put: it is appended without waiting for more."""
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled; see `flush`."""
        while True:
            await self._work.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._hurry.wait()
            self._hurry.clear()
            self._work.clear()
            await self._drain()

    async def flush(self, within_s: float) -> None:
        """Returns when nothing waits. The last appends of a stopping node: what `run` has begun is finished first, so nothing is appended twice."""
        try:
            async with asyncio.timeout(within_s):
                await self._drain()
        except TimeoutError:
            log.warning("receipts_left_behind", count=len(self._waiting))  # never acknowledged: their clients send them again

    async def _drain(self) -> None:
        """An event that the log refuses for what it says is found by halves and left out: no client's word holds up the others'."""
        async with self._appending:
            size = BATCH
            while self._waiting:
                batch, self._waiting = self._waiting[:size], self._waiting[size:]
                if await self._append(batch):
                    size = min(BATCH, 2 * size)
                elif len(batch) > 1:
                    self._waiting, size = batch + self._waiting, len(batch) // 2
                else:
                    log.error("event_refused_by_the_log", key=batch[0][1])
                    _settle(batch)  # as far as it ever will be; else it came again for ever

    def _records(self, told: list[Told]) -> list[NewRecord]:
        return records(told)

    async def _append(self, batch: list[Waiting]) -> bool:
        """Whether the log takes them."""
        started = now_us()
        self._on_their_way = len(batch)
        try:
            await self._until_appended(self._records([(event, key) for event, key, _ in batch if event]))
        except asyncio.CancelledError:
            self._waiting = batch + self._waiting
            raise
        except (Invalid, ValueError):  # the second: it cannot be encoded
            return False
        finally:
            self._on_their_way = 0
        for state, count in Counter(event.state for event, _, _ in batch if isinstance(event, Received)).items():
            self._metrics.receipts_taken.labels(state).inc(count)
        self._metrics.log_append_seconds.labels("receipts").observe((now_us() - started) / 1e6)
        _settle(batch)
        return True

    async def _until_appended(self, records: list[NewRecord]) -> None:
        attempt = 0
        while records:
            try:
                await self._appender.append(records)
            except Invalid:
                raise
            except HeliographError as error:
                log.warning("receipts_not_appended", error=error.code, attempt=attempt, waiting=self.waiting)
                await asyncio.sleep(delay(attempt, cap_s=2.0))
                attempt += 1
            else:
                return


def _settle(batch: list[Waiting]) -> None:
    for _, _, durable in batch:
        if durable:
            durable()
