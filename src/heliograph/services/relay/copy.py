"""The copying itself: rows in position order to the partition of their shard.

It does not wait for acknowledgements before it reads on: the idempotent producer keeps the order, and with its gapless guarantee it fails for
good rather than leave a record out. Any such failure, and any loss of the PostgreSQL session, ends the process; its successor reads the tails and
goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from heliograph.core.errors import Corrupt, Unavailable
from heliograph.eventlog.kafka import KafkaProducer
from heliograph.runtime.postgres import Connection, translating
from heliograph.services.relay.lead import Checkpoints
from heliograph.services.relay.settings import RelaySettings
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

BATCH = 200
FULL_S = 0.005
_NEXT = f"""
select e.* from unnest($1::int[], $2::bigint[]) c (shard, after)
cross join lateral (
  select shard, position, timeline, key, body, trace, (extract(epoch from committed_at) * 1000000)::bigint as committed_at_us
  from eventlog.event where shard = c.shard and position > c.after order by position limit {BATCH}
) e
"""


class Copier:
    def __init__(
        self,
        connection: Connection,
        producer: KafkaProducer,
        topic: str,
        start: dict[int, tuple[int, int]],
        settings: RelaySettings,
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._producer = producer
        self._topic = topic
        self._settings = settings
        self._metrics = metrics
        self._sent = dict(start)
        self.acknowledged = dict(self._sent)
        self._moved_at = dict.fromkeys(self._sent, time.monotonic())  # acknowledged, or begun to wait
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Raises Corrupt when the producer has failed for good, Unavailable when PostgreSQL is gone."""
        while True:
            self.wake.clear()
            self._check_producer()
            if self._producer.in_flight > self._settings.in_flight:
                await asyncio.sleep(FULL_S)
                continue
            if not await self._copy_some():
                with suppress(TimeoutError):
                    # not wait_for: Python 3.11's loses a cancel that comes with the wake
                    async with asyncio.timeout(self._settings.poll_s):
                        await self.wake.wait()

    async def _copy_some(self) -> int:
        with translating():
            rows = await self._connection.fetch(_NEXT, list(self._sent), [position for _, position in self._sent.values()])
        for row in rows:
            while not self._hand(row):
                await asyncio.sleep(FULL_S)
                self._check_producer()
        return len(rows)

    def _check_producer(self) -> None:
        if self._producer.failed.done():
            raise Corrupt(f"the Kafka producer failed for good: {self._producer.failed.result()}")

    def _hand(self, row: Any) -> bool:
        """False when the producer takes none now: its queue is full, which it counts in bytes too, or it has failed."""
        shard, place = row["shard"], (row["timeline"], row["position"])
        try:
            self._producer.produce(self._topic, shard, row["key"], row["body"], _headers(row), self._on_delivery(shard, place))
        except Unavailable:
            return False
        if self._sent[shard] == self.acknowledged[shard]:
            self._moved_at[shard] = time.monotonic()
        self._sent[shard] = place
        return True

    def _on_delivery(self, shard: int, place: tuple[int, int]) -> Callable[[object], None]:
        handed = time.monotonic()

        def delivered(error: object) -> None:
            """In the producer's thread; single assignments of a dict are safe there."""
            if error is None:
                self.acknowledged[shard] = place
                self._moved_at[shard] = time.monotonic()
                self._metrics.relay_published.labels(str(shard)).inc()
                self._metrics.relay_publish_seconds.observe(self._moved_at[shard] - handed)
            else:
                log.error("relay_record_refused", shard=shard, position=place[1], error=str(error))

        return delivered

    async def keep_checkpoints(self, checkpoints: Checkpoints, lock: asyncio.Lock) -> None:
        """Until cancelled."""
        stored: dict[int, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(self._settings.checkpoint_s)
            news = {
                shard: place for shard, place in self.acknowledged.items() if stored.get(shard) != place and place != (0, 0)
            }
            async with lock:
                if news:
                    with translating():
                        await checkpoints.store(news)
            stored |= news

    def lag(self) -> int:
        """Records sent and not acknowledged."""
        return sum(sent[1] - self.acknowledged[shard][1] for shard, sent in self._sent.items())

    def stuck(self) -> list[int]:
        """Shards with records on their way of which Kafka has acknowledged none for too long."""
        since = time.monotonic() - self._settings.stuck_s
        return [
            shard for shard, sent in self._sent.items() if sent != self.acknowledged[shard] and self._moved_at[shard] < since
        ]


def _headers(row: Any) -> list[tuple[str, bytes]]:
    headers = [(name, str(row[name]).encode()) for name in ("position", "timeline", "committed_at_us")]
    return [*headers, ("traceparent", row["trace"].encode())] if row["trace"] else headers
