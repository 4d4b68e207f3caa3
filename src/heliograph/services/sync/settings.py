"""Settings of sync: those of any hub, and those of a node that follows the log."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from heliograph.runtime.settings import LogSettings, ServiceSettings

MAX_WORKERS = 256


class HubSettings(ServiceSettings):
    """Of whatever holds clients' connections: a sync node, an edge."""

    sync_port: int = Field(7071, ge=0, le=65535, description="port of the WebSocket stream")
    sync_http_port: int = Field(7072, ge=0, le=65535, description="port of bundles, long poll, receipts, health")
    node: str = Field(default_factory=socket.gethostname, description="name of this node, for people; made unique per start")

    tls_cert_file: Path | None = Field(
        None, description="certificate chain in PEM, for both ports; loaded again when it changes. None: no TLS"
    )
    tls_key_file: Path | None = Field(None, description="its private key in PEM, not encrypted; it may be the same file")

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
    # half a minute for a part of a snapshot, 256 KiB: what a mobile line on a bad day still does
    slow_bytes_per_s: int = Field(
        8 * 1024, ge=1, description="bytes a second at which a full connection must at least drain, on top of `stall_s`"
    )

    # half of what one worker takes in with TLS, so that those who are there already are served beside
    drain_clients_per_s: float = Field(
        1000.0,
        gt=0,
        description="clients a second whom a stopping node sends elsewhere; more if `drain_s` is too short for that",
    )
    max_connections: int = Field(
        50_000, ge=1, description="connections of one process, so of each worker; more are told to try again later"
    )
    max_connections_per_token: int = Field(
        20_000, ge=0, description="connections of one token on this node, so that one fleet leaves room for others; 0: no limit"
    )
    max_connections_per_address: int = Field(
        10_000,
        ge=0,
        description="connections of one address (IPv6: of one /64); behind a proxy or NAT all come from one; 0: no limit",
    )
    proxy_addresses: str = Field(
        "",
        description="addresses of proxies in front of this node, separated by commas, to which limits of an address do not apply",
    )
    connects_per_address_s: float = Field(
        1000.0, ge=0, description="attempts to connect of one address a second, with five seconds' worth saved up; 0: no limit"
    )
    requests_per_address_s: float = Field(
        2000.0, ge=0, description="HTTP requests of one address a second, with five seconds' worth saved up; 0: no limit"
    )
    max_opening: int = Field(
        5000, ge=1, description="connections that have not asked for the stream yet; with more, the longest waiting is closed"
    )
    max_handshakes: int = Field(500, ge=1, description="connections whose token is being checked at a time")

    # an SDK sends a frame per version and subscription at most, usually far fewer; the longest burst is a reconnect's receipts
    frames_per_s: float = Field(
        500.0,
        gt=0,
        description="WebSocket frames of one connection a second, pings and fragments too; ten seconds' worth saved up",
    )
    bytes_per_s: float = Field(
        1024 * 1024,
        gt=0,
        description="bytes of one connection a second, its own and snapshots it asks for; ten seconds' worth saved up",
    )
    # a fan-out's slice is 15 ms, a full collection of garbage some 70 ms
    busy_lag_s: float = Field(
        0.5,
        gt=0,
        description="seconds the event loop may be late, over some seconds, before new connections are told to wait",
    )
    busy_backlog: int = Field(
        100_000, ge=1, description="receipts and reports not yet durable, above which new connections are told to wait"
    )
    past_versions: int = Field(
        256, ge=1, description="versions per environment from which deltas are made; from older ones: snapshots"
    )
    transfer_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="bytes of large frames sent and not yet read, of all clients together; who would exceed it waits its turn",
    )
    frame_cache_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="bytes of encoded frames kept per environment's head, and as many of the views they are made from",
    )

    @model_validator(mode="after")
    def _certificate_and_key_go_together(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("HELIOGRAPH_TLS_CERT_FILE and HELIOGRAPH_TLS_KEY_FILE go together: set both or none")
        return self


class SyncSettings(HubSettings, LogSettings):
    database_url: SecretStr = Field(
        SecretStr(""), description="PostgreSQL, for the log where there is no Kafka, and for dead letters"
    )
    registry_url: str = Field("http://127.0.0.1:7070", description="the registry's API: heads, states, tokens")
    workers: int = Field(
        1, ge=0, le=MAX_WORKERS, description="processes that share the two ports; 0: one for each core that it may use"
    )
    # with full jitter: the third attempt comes within a second, a quarantined environment is then tried every few seconds
    reload_backoff_s: float = Field(0.2, gt=0, description="bound of the first pause before an environment is read again")
    reload_attempts: int = Field(
        3, ge=1, description="times an environment may fail to load before the event that asked for it becomes a dead letter"
    )
