"""Bodies of log records. Encoded with msgspec as JSON; told apart by ``type``.

Stream ``versions``: sharded by `shard_of(namespace, environment)`; applied by number (`VersionEvent`) or issue time (`HeadEvent`).
Stream ``receipts``: sharded by `shard_of(instance)` (or node, for `FannedOut` and `NodeAlive`); every effect is an upsert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Self

import msgspec

from heliograph.core.frames import Answer, Fingerprint, State
from heliograph.core.records import Cursor, Signed

SHARDS = 16
"""Of the receipts stream; and of the versions stream, unless an installation was made with another number."""
MAX_SHARDS = 256
MOST_SHARDED = 65_536
"""Keys whose shard is remembered: more than a node has connections by default, some 15 MB when all are there."""
MAX_EVENT_TEXT = 256 * 1024
"""Bytes of documents in one event; above it they are left out and fetched by digest."""
MAX_EVENT = 768 * 1024
"""Bytes of a whole event: below what a broker takes by default (1 MiB)."""


@lru_cache(maxsize=MOST_SHARDED)
def shard_of(*parts: str, shards: int = SHARDS) -> int:
    """Stable for ever: the first 8 bytes of SHA-256 over the parts joined by ``/``, modulo the number of shards. Remembered: it was a sixth of what a
    receipt costs sync, whose instances answer version after version."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "big") % shards


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    pass


class ChangedConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``leaf`` None: deleted. ``document`` is left out when the event's texts exceed 256 KiB in all; the digest is always there."""

    name: str
    leaf: str | None
    document_digest: str | None = None
    document: str | None = None


class VersionEvent(Event, frozen=True, kw_only=True, tag="version"):
    namespace: str
    environment: str
    epoch: int
    number: int
    version: Signed
    head: Signed
    changes: tuple[ChangedConfig, ...]
    received_at_us: int
    trace: str | None = None
    answer: Answer = "soon"
    partial: bool = False


class Replay(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dead letters that this event tells again, by id. ``push``: instances refuse the version; send them the state anew."""

    letters: tuple[int, ...]
    push: bool = False


class HeadEvent(Event, frozen=True, kw_only=True, tag="head"):
    """``trace``, ``replay``: of an operator who had it told again; whatever that makes clients say carries the trace."""

    namespace: str
    environment: str
    head: Signed
    trace: str | None = None
    replay: Replay | None = None


class RevokedEvent(Event, frozen=True, kw_only=True, tag="revoked"):
    """Tokens that are no longer valid, by id."""

    tokens: tuple[str, ...]


class DeletedEvent(Event, frozen=True, kw_only=True, tag="deleted"):
    """An environment is gone, at first until somebody restores it, which its next head tells. Applied as often as it comes; a release that does
    not know it sets it aside and serves what it has until it restarts."""

    namespace: str
    environment: str
    at_us: int
    erase_at_us: int


class PurgeEvent(Event, frozen=True, kw_only=True, tag="purge"):
    """Texts of a namespace, by digest, that nobody is to keep. No head names one."""

    namespace: str
    digests: tuple[str, ...]
    at_us: int


FromRegistry = VersionEvent | HeadEvent | RevokedEvent | DeletedEvent | PurgeEvent


class Subscribed(Event, frozen=True, kw_only=True, tag="subscribed"):
    """An instance's subscription is live on a node. ``connection`` is unique for ever.

    ``declares``: config -> text of the JSON Schema that the application reads it as. Told again, under the same connection, when that changes.
    """

    namespace: str
    environment: str
    instance: str
    incarnation: int
    connection: str
    subscription: int
    view: tuple[str, ...]
    node: str
    region: str
    token: str
    fingerprint: Fingerprint
    have: Cursor | None
    at_us: int
    declares: dict[str, str] | None = None


class Unsubscribed(Event, frozen=True, kw_only=True, tag="unsubscribed"):
    namespace: str
    environment: str
    instance: str
    connection: str
    subscription: int
    node: str
    reason: str
    at_us: int


class Received(Event, frozen=True, kw_only=True, tag="received"):
    """A receipt as the sync node took it, with its own clock. ``applied_at_us`` is already corrected by the client's offset."""

    namespace: str
    environment: str
    instance: str
    connection: str
    subscription: int
    node: str
    epoch: int
    number: int
    version: str
    state: State
    reason: str | None
    applied_at_us: int
    received_at_us: int
    trace: str | None = None


class Row(msgspec.Struct, frozen=True, array_like=True):
    """What one subscription of one instance said, in `Receipts`: an array, as their names would be most of it."""

    instance: str
    connection: str
    subscription: int
    applied_at_us: int
    received_at_us: int
    reason: str | None = None
    trace: str | None = None


class Receipts(Event, frozen=True, kw_only=True, tag="receipts"):
    """The same as a `Received` of each row, which a node took one after the other: said once, what they share is a tenth of the work."""

    namespace: str
    environment: str
    node: str
    epoch: int
    number: int
    version: str
    state: State
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, received: Sequence[Received]) -> Self:
        """Of one version, with one state, taken by one node."""
        one = received[0]
        return cls(
            namespace=one.namespace,
            environment=one.environment,
            node=one.node,
            epoch=one.epoch,
            number=one.number,
            version=one.version,
            state=one.state,
            rows=tuple(
                Row(e.instance, e.connection, e.subscription, e.applied_at_us, e.received_at_us, e.reason, e.trace)
                for e in received
            ),
        )

    def received(self, row: Row) -> Received:
        return Received(
            namespace=self.namespace,
            environment=self.environment,
            instance=row.instance,
            connection=row.connection,
            subscription=row.subscription,
            node=self.node,
            epoch=self.epoch,
            number=self.number,
            version=self.version,
            state=self.state,
            reason=row.reason,
            applied_at_us=row.applied_at_us,
            received_at_us=row.received_at_us,
            trace=row.trace,
        )


class FannedOut(Event, frozen=True, kw_only=True, tag="fanned_out"):
    """One node finished sending one version: ``logged_at_us`` when its reader had the record, then first and last send."""

    namespace: str
    environment: str
    epoch: int
    number: int
    node: str
    recipients: int
    logged_at_us: int
    started_at_us: int
    done_at_us: int


class NodeAlive(Event, frozen=True, kw_only=True, tag="node_alive"):
    """Every 2 s. A node silent for 10 s is dead: its instances become ``unknown``."""

    node: str
    region: str
    connections: int
    at_us: int
    leaving: bool = False


FromSync = Subscribed | Unsubscribed | Received | FannedOut | NodeAlive
InReceipts = FromSync | Receipts
"""What a record of stream ``receipts`` says."""
