"""The event log as a port. Two adapters, one contract suite: PostgreSQL and Kafka.

Guarantees, per shard:

- **Order**: a reader sees records in ascending (timeline, position), each at most once; copies that a zombie relay appended are dropped.
- **Completeness**: no record is skipped silently. Where one is missing (retention, a lost tail), the reader yields a `Gap`; whoever consumes reads
  what it missed from the owner of the data.
- **Durability**: an append returns when the record survives a crash of the process and of the server's process.

Delivery is at least once across restarts: a reader that starts at older marks sees records again. Effects are idempotent by what the record says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

Marks = dict[int, int]
"""Where a reader is: shard -> the adapter's own resume token (PostgreSQL: last position read; Kafka: next offset)."""


class Stream(StrEnum):
    VERSIONS = "versions"
    RECEIPTS = "receipts"
    DEAD_LETTERS = "dead-letters"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as read. ``mark`` is the resume token that follows it: store it with the effects."""

    stream: Stream
    shard: int
    timeline: int
    position: int
    key: str
    body: bytes
    committed_at_us: int
    mark: int
    trace: str | None = None


class Gap(msgspec.Struct, frozen=True, gc=False):
    """Records of a shard are missing before the next one: read the state from its owner."""

    shard: int


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    shard: int
    key: str
    body: bytes
    trace: str | None = None


class Reader(Protocol):
    async def identity(self) -> str:
        """Names this very log; marks are worth something only while it stays the same."""
        ...

    async def end(self) -> Marks:
        """Marks behind the last record there is now, for every shard. Raises Unavailable."""
        ...

    async def earliest(self) -> Marks:
        """Marks before the first record that is kept."""
        ...

    def read(self, after: Mapping[int, int]) -> AsyncIterator[list[Record | Gap]]:
        """Batches, as soon as there are any; goes on for ever, riding out outages of the log. The caller ends it by closing the iterator."""
        ...

    async def close(self) -> None: ...


class Appender(Protocol):
    async def append(self, records: Sequence[NewRecord]) -> None:
        """Returns when all are durable; they are adjacent and in order within each shard unless others append too. Raises Unavailable: then some
        of them may be there; Invalid when one says something that the log cannot hold: then none is."""
        ...

    async def close(self) -> None: ...


class Log(Protocol):
    """Where readers and appenders come from; closes those it made."""

    def reader(self, stream: Stream) -> Reader: ...

    def appender(self, stream: Stream) -> Appender: ...

    async def close(self) -> None: ...
