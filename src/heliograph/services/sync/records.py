"""What sync tells the ledger, as records of the log. Receipts of one version come by the thousand, so those that follow each other in a shard are one
record: what a record costs the log and its readers is then shared by all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from heliograph.core.events import SHARDS, FromSync, Receipts, Received, shard_of
from heliograph.eventlog.ports import NewRecord

MAX_ROWS: Final = 500
MAX_REASONS: Final = 64 * 1024
"""Receipts in one record, and characters of their reasons: both together are below `events.MAX_EVENT` whatever the characters are."""
Told = tuple[FromSync, str]
"""An event and the key of its shard: the instance, or the node."""
_encode = msgspec.json.Encoder().encode


class _Run:
    """Receipts that fit one record."""

    __slots__ = ("key", "reasons", "receipts", "shard")

    def __init__(self, shard: int, key: str, first: Received) -> None:
        self.shard = shard
        self.key = key
        self.receipts = [first]
        self.reasons = len(first.reason or "")

    def takes(self, receipt: Received) -> bool:
        """Whether it is one of these now."""
        first, reason = self.receipts[0], receipt.reason
        if (
            receipt.version != first.version
            or receipt.state != first.state
            or receipt.node != first.node
            or receipt.number != first.number
            or receipt.epoch != first.epoch
            or receipt.environment != first.environment
            or receipt.namespace != first.namespace
            or len(self.receipts) >= MAX_ROWS
        ):
            return False
        if reason:
            self.reasons += len(reason)
            if self.reasons > MAX_REASONS:
                return False
        self.receipts.append(receipt)
        return True

    def record(self) -> NewRecord:
        if len(self.receipts) == 1:
            return one_record(self.receipts[0], self.key)
        return NewRecord(self.shard, self.receipts[0].node, _encode(Receipts.of(self.receipts)), self.receipts[0].trace)


def one_record(event: FromSync, key: str) -> NewRecord:
    return NewRecord(shard_of(key, shards=SHARDS), key, _encode(event), getattr(event, "trace", None))


def records(told: Iterable[Told]) -> list[NewRecord]:
    """In the order of their first events. In each shard, and so of each instance, no event comes before one that was told earlier."""
    made: list[NewRecord | _Run] = []
    last: dict[int, _Run] = {}  # of each shard, while nothing else has followed
    for event, key in told:
        shard = shard_of(key, shards=SHARDS)
        if not isinstance(event, Received):
            last.pop(shard, None)
            made.append(one_record(event, key))
        elif (run := last.get(shard)) is None or not run.takes(event):
            last[shard] = run = _Run(shard, key, event)
            made.append(run)
    return [each.record() if isinstance(each, _Run) else each for each in made]
