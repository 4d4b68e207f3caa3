"""Settings of the ledger."""

from __future__ import annotations

from pydantic import Field

from heliograph.runtime.settings import DatabaseSettings, LogSettings


class LedgerSettings(DatabaseSettings, LogSettings):
    ledger_port: int = Field(7073, ge=0, le=65535, description="port of the HTTP API")
    registry_url: str = Field("http://127.0.0.1:7070", description="the registry's API: tokens, heads, the audit trail")

    propagation_deadline_s: float = Field(
        60.0, gt=0, description="seconds after which a propagation is closed with what it has"
    )
    # the nodes' own times of fan-out come a moment after the last receipt
    propagation_settle_s: float = Field(0.5, ge=0, description="seconds a complete propagation stays open for late reports")
    propagation_max_open: int = Field(
        256, ge=1, description="open propagations of one environment; beyond it the oldest is closed"
    )
    node_silence_s: float = Field(
        10.0, gt=0, description="seconds without a sign of life after which a sync node is lost; it gives one every 2"
    )
    node_forget_s: float = Field(
        300.0, gt=0, description="seconds after which instances of a lost node that did not come back have gone"
    )
    tick_s: float = Field(1.0, gt=0, description="seconds between looks at deadlines and silent nodes")

    drift_grace_s: float = Field(
        10.0, ge=0, description="seconds an instance may take to run the desired version before it drifts"
    )
    # a pod that was replaced on purpose is no drift
    drift_gone_s: float = Field(
        600.0, ge=0, description="seconds for which an instance that went away still counts as drifting"
    )
    instances_gone_s: float = Field(3600.0, ge=0, description="seconds for which an instance that went away is still listed")

    audit_attempts: int = Field(
        10, ge=1, description="attempts to write a closed propagation to the audit trail before it is set aside"
    )

    retention_receipts_days: int = Field(30, ge=1, description="days receipts are kept")
    retention_versions_days: int = Field(365, ge=1, description="days the reports of propagations are kept")
    retention_subscriptions_days: int = Field(7, ge=1, description="days ended subscriptions are kept")
