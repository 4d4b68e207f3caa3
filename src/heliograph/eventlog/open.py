"""Which log: Kafka where its addresses are set, PostgreSQL's event table otherwise."""

from __future__ import annotations

from heliograph.eventlog.kafka import KafkaLog
from heliograph.eventlog.ports import Log
from heliograph.eventlog.postgres import PostgresLog
from heliograph.runtime.settings import LogSettings


async def open_log(settings: LogSettings, application_name: str, *, database_url: str = "") -> Log:
    """`database_url` is needed without Kafka only."""
    if settings.kafka_bootstrap:
        return KafkaLog(settings.kafka_bootstrap, settings.kafka_prefix, dict(settings.kafka_options))
    return await PostgresLog.open(database_url, application_name)
