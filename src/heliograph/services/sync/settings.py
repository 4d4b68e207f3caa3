"""Settings of sync."""

from __future__ import annotations

import socket

from pydantic import Field, SecretStr

from heliograph.runtime.settings import LogSettings


class SyncSettings(LogSettings):
    database_url: SecretStr = Field(
        SecretStr(""), description="PostgreSQL, for the log where there is no Kafka, and for dead letters"
    )
    registry_url: str = Field("http://127.0.0.1:7070", description="the registry's API: heads, states, tokens")
    sync_port: int = Field(7071, ge=0, le=65535, description="port of the WebSocket stream")
    sync_http_port: int = Field(7072, ge=0, le=65535, description="port of bundles, long poll, receipts, health")
    node: str = Field(default_factory=socket.gethostname, description="name of this node, for people; made unique per start")

    heartbeat_s: float = Field(
        25.0, gt=0, description="seconds within which a client must be heard of; three missed end a connection"
    )
    receipt_jitter_ms: int = Field(500, ge=0, description="bound of the random delay of receipts that nobody waits for")
    sample_share: float = Field(0.02, ge=0, le=1, description="share of connections asked to answer every version at once")
    hello_s: float = Field(10.0, gt=0, description="seconds in which hello must arrive")
    # a client that needs longer than this for what fits a socket buffer has stopped reading
    stall_s: float = Field(15.0, gt=0, description="seconds a connection may stay full before it is closed")
    head_spread_s: float = Field(
        60.0, ge=0, description="seconds over which renewed heads are spread, so that they are no burst"
    )
    # half of what one worker takes in with TLS, so that those who are there already are served beside
    drain_clients_per_s: float = Field(
        1000.0,
        gt=0,
        description="clients a second whom a stopping node sends elsewhere; more if `drain_s` is too short for that",
    )
    max_connections: int = Field(50_000, ge=1, description="connections of this node; more are told to try again later")
    max_handshakes: int = Field(500, ge=1, description="connections between upgrade and hello at a time")
    past_versions: int = Field(
        256, ge=1, description="versions per environment from which deltas are made; from older ones: snapshots"
    )
    frame_cache_bytes: int = Field(64 * 1024 * 1024, ge=0, description="bytes of encoded frames kept per environment's head")
    # with full jitter: the third attempt comes within a second, a quarantined environment is then tried every few seconds
    reload_backoff_s: float = Field(0.2, gt=0, description="bound of the first pause before an environment is read again")
    reload_attempts: int = Field(
        3, ge=1, description="times an environment may fail to load before the event that asked for it becomes a dead letter"
    )
