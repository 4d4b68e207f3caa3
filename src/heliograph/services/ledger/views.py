"""Rows as the API shows them: receipts, instances, drift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import asyncpg
import msgspec

from heliograph.core.frames import Fingerprint
from heliograph.core.records import Cursor, Head
from heliograph.core.rollout import desired_version

Cause = Literal["rejected", "disconnected", "silent", "slow"]


class ReceiptView(msgspec.Struct, frozen=True):
    """``late``: came after the propagation was closed; not part of its digest."""

    instance: str
    subscription: int
    state: str
    reason: str | None
    applied_at_us: int
    received_at_us: int
    connection: str
    node: str
    late: bool


class Running(msgspec.Struct, frozen=True):
    epoch: int
    number: int
    version: str
    since_us: int


class LastReceipt(msgspec.Struct, frozen=True):
    number: int
    state: str
    reason: str | None
    at_us: int


class SubscriptionView(msgspec.Struct, frozen=True):
    id: int
    view: list[str]
    runs: Running | None
    last_receipt: LastReceipt | None


class InstanceView(msgspec.Struct, frozen=True):
    """``connected``: False also while nobody knows (``unknown``), because its node is lost. ``runs``: the oldest of its subscriptions."""

    instance: str
    fingerprint: Fingerprint
    region: str
    node: str
    connected: bool
    unknown: bool
    since_us: int
    until_us: int | None
    runs: Running | None
    desired: Cursor | None
    last_receipt: LastReceipt | None
    subscriptions: list[SubscriptionView]


class ThenView(msgspec.Struct, frozen=True):
    """An instance at a time in the past. ``ran``: the oldest of its subscriptions; null: it had applied none of the latest versions by then, or its
    receipts are not kept."""

    instance: str
    fingerprint: Fingerprint
    region: str
    node: str
    since_us: int
    until_us: int | None
    ran: Running | None
    subscriptions: list[ThenSubscription]


class ThenSubscription(msgspec.Struct, frozen=True):
    id: int
    view: list[str]
    ran: Running | None


class DeclaredView(msgspec.Struct, frozen=True):
    """One schema that live instances declare for a config; ``sample`` and ``apps`` name some of them."""

    config: str
    schema: str
    instances: int
    sample: list[str]
    apps: list[str | None]


class DriftView(msgspec.Struct, frozen=True):
    """``age_s``: since the first version that it lacks was committed, or since it subscribed when it has none.

    ``cause``: it *rejected* (see ``reason``); it is *disconnected*; *silent*: connected, but not a word since it fell behind, or its
    node is lost; *slow*: it answers, but is not there yet.
    """

    instance: str
    subscription: int
    fingerprint: Fingerprint
    region: str
    node: str
    runs: Running | None
    desired: Cursor
    age_s: float
    cause: Cause
    reason: str | None


def receipt(row: asyncpg.Record) -> ReceiptView:
    return ReceiptView(**row)


def instances(rows: Iterable[asyncpg.Record], head: Head | None) -> Iterator[InstanceView]:
    """``rows``: subscriptions, those of one instance together."""
    for name, group in groupby(rows, key=itemgetter("instance")):
        yield _instance(name, list(group), head)


def instances_then(rows: Iterable[asyncpg.Record]) -> Iterator[ThenView]:
    """``rows``: subscriptions, those of one instance together."""
    for name, group in groupby(rows, key=itemgetter("instance")):
        yield _instance_then(name, list(group))


def drift(row: asyncpg.Record, head: Head, now_us: int) -> DriftView | None:
    """None when a rollout wants exactly what it runs."""
    runs, desired = _runs(row), desired_version(head, row["instance"])
    if runs is not None and Cursor(runs.epoch, runs.number, runs.version) == desired:
        return None
    behind_us = row["missed_at_us"] if row["missed_at_us"] is not None else row["since_us"]
    cause, reason = _cause(row, behind_us)
    return DriftView(
        instance=row["instance"],
        subscription=row["subscription"],
        fingerprint=_fingerprint(row),
        region=row["region"],
        node=row["node"],
        runs=runs,
        desired=desired,
        age_s=max(0, now_us - behind_us) / 1e6,
        cause=cause,
        reason=reason,
    )


def _instance(name: str, rows: list[asyncpg.Record], head: Head | None) -> InstanceView:
    subscriptions = [_subscription(row) for row in rows]
    newest, unknown = rows[0], rows[0]["node_lost"] and rows[0]["until_us"] is None
    running = [each.runs for each in subscriptions]
    answered = [each.last_receipt for each in subscriptions if each.last_receipt]
    return InstanceView(
        instance=name,
        fingerprint=_fingerprint(newest),
        region=newest["region"],
        node=newest["node"],
        connected=newest["until_us"] is None and not unknown,
        unknown=unknown,
        since_us=newest["since_us"],
        until_us=newest["until_us"],
        runs=min((each for each in running if each), key=lambda r: (r.epoch, r.number)) if all(running) else None,
        desired=desired_version(head, name) if head else None,
        last_receipt=max(answered, key=lambda each: each.at_us, default=None),
        subscriptions=subscriptions,
    )


def _instance_then(name: str, rows: list[asyncpg.Record]) -> ThenView:
    subscriptions = [ThenSubscription(row["subscription"], row["view"], _ran(row)) for row in rows]
    running = [each.ran for each in subscriptions]
    return ThenView(
        instance=name,
        fingerprint=_fingerprint(rows[0]),
        region=rows[0]["region"],
        node=rows[0]["node"],
        since_us=rows[0]["since_us"],
        until_us=rows[0]["until_us"],
        ran=min((each for each in running if each), key=lambda r: (r.epoch, r.number)) if all(running) else None,
        subscriptions=subscriptions,
    )


def _ran(row: asyncpg.Record) -> Running | None:
    if row["ran_number"] is None:
        return None
    return Running(row["ran_epoch"], row["ran_number"], row["ran_version"], row["ran_since_us"])


def _subscription(row: asyncpg.Record) -> SubscriptionView:
    return SubscriptionView(row["subscription"], row["view"], _runs(row), _last_receipt(row))


def _runs(row: asyncpg.Record) -> Running | None:
    if row["runs_number"] is None:
        return None
    return Running(row["runs_epoch"], row["runs_number"], row["runs_version"], row["runs_since_us"])


def _last_receipt(row: asyncpg.Record) -> LastReceipt | None:
    if row["answered_number"] is None:
        return None
    return LastReceipt(row["answered_number"], row["answered_state"], row["answered_reason"], row["answered_at_us"])


def _fingerprint(row: asyncpg.Record) -> Fingerprint:
    return msgspec.json.decode(row["fingerprint"], type=Fingerprint)


def _cause(row: asyncpg.Record, behind_us: int) -> tuple[Cause, str | None]:
    if row["until_us"] is not None:
        return "disconnected", row["ended"]
    if row["node_lost"]:
        return "silent", f"its node {row['node']} is lost"
    answered: Any = row["answered_at_us"]
    if answered is None or answered < behind_us:
        return "silent", None
    if row["answered_state"] == "rejected":
        return "rejected", row["answered_reason"]
    return "slow", None
