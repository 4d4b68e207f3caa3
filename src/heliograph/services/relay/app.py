"""The wiring of the relay.

Start: HTTP, topics, producer (made before it leads, so that a standby is connected already), the lead, tails and checkpoints, copying. A broker
that is away is waited for. A PostgreSQL session that is lost, or a producer that failed for good, ends the process: its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
from functools import partial

import asyncpg
import structlog

from heliograph.core.errors import InvalidRequest, Unavailable
from heliograph.eventlog.kafka import KafkaProducer, KafkaReader, Options, create_topics
from heliograph.eventlog.ports import Stream
from heliograph.eventlog.postgres import shards_of
from heliograph.eventlog.wake import EVENT_CHANNEL
from heliograph.runtime.http import make_app, serve_http
from heliograph.runtime.leaving import Leave
from heliograph.runtime.postgres import Connection, connect, disconnect, listen, translating
from heliograph.runtime.retry import until_available
from heliograph.services.relay.copy import Copier
from heliograph.services.relay.lead import Checkpoints, leading, versions_topic
from heliograph.services.relay.settings import RelaySettings
from heliograph.services.relay.tail import shared, tails
from heliograph.telemetry import loop_lag
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

DAYS_AHEAD = 7
RETENTION_EVERY_S = 3600.0
LAG_EVERY_S = 1.0
_LAG = """
select s.shard, s.next_position - 1 - c.position as events, coalesce(extract(epoch from clock_timestamp() - e.committed_at), 0)::float8 as seconds
from unnest($1::int[], $2::bigint[]) c (shard, position) join eventlog.event_shard s using (shard)
left join lateral (
  select committed_at from eventlog.event e where e.shard = c.shard and e.position > c.position order by e.position limit 1
) e on true
"""


async def serve(settings: RelaySettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Sets `ready` when it leads or stands by; returns once `stop` is set; raises when it cannot go on."""
    if not settings.kafka_bootstrap:
        raise InvalidRequest("a relay needs HELIOGRAPH_KAFKA_BOOTSTRAP; without Kafka no relay is needed")
    metrics, readiness = Metrics(), Readiness("kafka", "database")
    app = make_app("relay", metrics=metrics, readiness=readiness)
    async with asyncio.TaskGroup() as group:
        group.create_task(
            serve_http(
                app,
                settings.listen_host,
                settings.relay_port,
                stop=stop,
                leave=Leave.of(settings, readiness),
                name="relay",
                reuse_port=settings.reuse_port,
            )
        )
        group.create_task(loop_lag.run(metrics, stop))
        relaying = group.create_task(_relay(settings, metrics, readiness, ready))
        await _until(stop, relaying)
        relaying.cancel()


async def _until(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, task}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()


async def _relay(settings: RelaySettings, metrics: Metrics, readiness: Readiness, ready: asyncio.Event) -> None:
    options: Options = dict(settings.kafka_options)
    url, topic = settings.database_url.get_secret_value(), versions_topic(settings.kafka_prefix)

    shards = await until_available(lambda: _shards(url))

    async def topics() -> None:
        make = partial(create_topics, settings.kafka_bootstrap, settings.kafka_prefix, options)
        await asyncio.to_thread(make, shards=shards, replicas=settings.kafka_replicas)

    await until_available(topics)
    producer = KafkaProducer(settings.kafka_bootstrap, options)
    try:
        readiness.met("kafka")

        def on_standby() -> None:
            readiness.met("database")
            ready.set()

        async with leading(url, timeout_s=settings.database_timeout_s, on_standby=on_standby) as connection:
            log.info("relay_leads")
            metrics.relay_leading.set(1)
            topic_id = await until_available(
                KafkaReader(settings.kafka_bootstrap, settings.kafka_prefix, Stream.VERSIONS, options).identity
            )
            places = await until_available(lambda: asyncio.to_thread(tails, settings.kafka_bootstrap, topic, shards, options))
            checkpoints = Checkpoints(connection, topic_id)
            kept = await checkpoints.load()
            start = await shared(connection, {shard: max(place, kept.get(shard, (0, 0))) for shard, place in places.items()})
            log.info("relay_resumes", positions=sum(position for _, position in start.values()))
            try:
                await _copy(
                    Copier(connection, producer, topic, start, settings, metrics),
                    connection,
                    checkpoints,
                    settings,
                    metrics,
                    readiness,
                )
            finally:
                await producer.close()  # while it still leads: the next one begins after what Kafka has by then
    finally:
        metrics.relay_leading.set(0)
        await producer.close()


async def _shards(url: str) -> int:
    """Raises Unavailable."""
    connection = await connect(url, "heliograph relay")
    try:
        return await shards_of(connection)
    except asyncpg.UndefinedTableError:
        raise Unavailable("the database has no Heliograph tables yet: run heliograph migrate") from None
    finally:
        await disconnect(connection)


async def _copy(
    copier: Copier,
    connection: Connection,
    checkpoints: Checkpoints,
    settings: RelaySettings,
    metrics: Metrics,
    readiness: Readiness,
) -> None:
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    url = settings.database_url.get_secret_value()
    async with asyncio.TaskGroup() as group:
        group.create_task(copier.run())
        group.create_task(listen(url, EVENT_CHANNEL, lambda _: copier.wake.set(), application_name="heliograph relay bell"))
        group.create_task(_look_after(copier, url, checkpoints, settings, metrics, readiness))
        await lost.wait()
        raise Unavailable("the PostgreSQL session is gone, and the lead with it")


async def _look_after(
    copier: Copier, url: str, checkpoints: Checkpoints, settings: RelaySettings, metrics: Metrics, readiness: Readiness
) -> None:
    """Checkpoints, lag and retention, on a connection of their own. Until cancelled."""
    with translating():
        connection = await asyncpg.connect(
            url, timeout=5, server_settings={"application_name": "heliograph relay housekeeping"}
        )
    checkpoints.use(connection)
    lock = asyncio.Lock()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(copier.keep_checkpoints(checkpoints, lock))
            group.create_task(_watch_lag(copier, connection, lock, metrics, readiness))
            group.create_task(_retain(connection, lock, settings.retention_days))
    finally:
        connection.terminate()


async def _watch_lag(
    copier: Copier, connection: Connection, lock: asyncio.Lock, metrics: Metrics, readiness: Readiness
) -> None:
    while True:
        async with lock:
            with translating():
                rows = await connection.fetch(
                    _LAG, list(copier.acknowledged), [position for _, position in copier.acknowledged.values()]
                )
        for row in rows:
            metrics.relay_lag_events.labels(str(row["shard"])).set(row["events"])
            metrics.relay_lag_seconds.labels(str(row["shard"])).set(row["seconds"])
        if stuck := copier.stuck():
            log.error("relay_stuck", shards=stuck, waiting=copier.lag())
            readiness.unmet("progress", f"Kafka does not acknowledge shards {', '.join(map(str, stuck))}")
        else:
            readiness.met("progress")
        await asyncio.sleep(LAG_EVERY_S)


async def _retain(connection: Connection, lock: asyncio.Lock, days: int) -> None:
    while True:
        async with lock:
            with translating():
                await connection.execute("select eventlog.make_partitions($1)", DAYS_AHEAD)
                dropped = await connection.fetchval("select eventlog.drop_partitions('event', $1, true)", days)
                dropped += await connection.fetchval("select eventlog.drop_partitions('log_receipt', $1, false)", days)
        if dropped:
            log.info("partitions_dropped", count=dropped)
        await asyncio.sleep(RETENTION_EVERY_S)
