"""The registry's settings."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from heliograph.core.events import MAX_SHARDS
from heliograph.runtime.settings import DatabaseSettings


class RegistrySettings(DatabaseSettings):
    registry_port: int = Field(7070, ge=0, le=65535, description="port of the REST API")

    # only to tell clients where things are, and where to ask the ledger
    sync_port: int = Field(7071, ge=0, le=65535, description="port of the stream, for the default of the public address")
    sync_http_port: int = Field(7072, ge=0, le=65535, description="port of the bundles, for the default of the public address")
    ledger_port: int = Field(7073, ge=0, le=65535, description="port of the ledger, for the default of its addresses")
    sync_tls: bool = Field(False, description="whether sync's ports have TLS, for the defaults of the public addresses")
    public_api_url: str = Field("", description="where clients reach the REST API; empty: this host and port")
    public_stream_url: str = Field("", description="where clients reach the stream; empty: this host and the stream's port")
    public_bundles_url: str = Field("", description="where clients reach bundles; empty: this host and the bundles' port")
    public_ledger_url: str = Field("", description="where people reach the ledger; empty: this host and the ledger's port")
    ledger_url: str = Field("", description="where the registry reaches the ledger; empty: this host and the ledger's port")

    # long enough that clients stay fresh through a registry's restart, short enough that a stolen head key is soon worth nothing
    head_life_s: float = Field(600.0, gt=0, description="seconds a signed head is good for")
    head_renew_s: float = Field(300.0, gt=0, description="seconds after which it is signed anew: half its life")
    wait_max_s: float = Field(30.0, gt=0, description="seconds a publish may wait for its propagation at most")

    node_cache_bytes: int = Field(64 << 20, ge=1 << 20, description="memory for the nodes of tries")
    text_cache_bytes: int = Field(32 << 20, ge=1 << 20, description="memory for leaves and schemas")
    validation_processes: int = Field(2, ge=1, le=64, description="processes for validations that may take long")
    validation_s: float = Field(2.0, gt=0, description="seconds one validation may take")

    # a month: long enough that somebody who is away comes back to it
    deletion_retain_s: float = Field(
        30 * 86400.0,
        ge=3600,
        description="seconds after which what was deleted is erased for good; until then it can be restored",
    )

    # well beyond any client's retries
    idempotency_keep_s: float = Field(7 * 86400.0, gt=0, description="seconds an idempotency key is remembered")
    # long enough to ask afterwards what was done, and why
    letter_keep_s: float = Field(
        30 * 86400.0,
        gt=0,
        description="seconds a dead letter is kept after it was told again or discarded; one that waits stays",
    )
    # authors of one shard share its lock row, which is held through the disk's sync: about 500 commits a second each
    shards: int | None = Field(
        None,
        ge=1,
        le=MAX_SHARDS,
        description="shards that the database must have been made with (`heliograph migrate --shards`); unset: any number",
    )
    event_keep_days: int = Field(7, ge=1, description="days that events and receipts stay in PostgreSQL's log")
    kafka_bootstrap: str = Field("", description="set when the log is Kafka: events are then kept until they are relayed")

    @model_validator(mode="after")
    def _heads_are_renewed_in_time(self) -> Self:
        if self.head_renew_s >= self.head_life_s:
            raise ValueError(
                "HELIOGRAPH_HEAD_RENEW_S must be less than HELIOGRAPH_HEAD_LIFE_S: heads are renewed before they expire"
            )
        return self

    def url_of(self, given: str, port: int, scheme: str = "http", path: str = "") -> str:
        """What was set, or this host with a port."""
        host = f"[{self.listen_host}]" if ":" in self.listen_host else self.listen_host
        return given or f"{scheme}://{host}:{port}{path}"
