"""Settings of the relay."""

from __future__ import annotations

from pydantic import Field

from heliograph.runtime.settings import DatabaseSettings, LogSettings


class RelaySettings(DatabaseSettings, LogSettings):
    relay_port: int = Field(7074, ge=0, le=65535, description="port of health and metrics")
    kafka_replicas: int = Field(1, ge=1, description="copies of each partition when the relay makes the topics")
    poll_s: float = Field(0.1, gt=0, description="seconds after which the event table is looked at without being woken")
    in_flight: int = Field(
        2000, ge=1, description="records on their way to Kafka; above it the relay stops reading: PostgreSQL is the buffer"
    )
    checkpoint_s: float = Field(1.0, gt=0, description="seconds between notes of what Kafka has acknowledged")
    retention_days: int = Field(7, ge=1, description="days events and receipts stay in PostgreSQL after they were relayed")
    stuck_s: float = Field(30.0, gt=0, description="seconds without an acknowledgement after which a shard counts as stuck")
