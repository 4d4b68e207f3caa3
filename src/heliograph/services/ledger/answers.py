"""Receipts as the ledger keeps them: one answer per (instance, subscription, version), joined without regard to order.

A receipt may arrive twice (the client resends until it is acknowledged, the log is at least once) and in any order. `better` is
commutative, associative and idempotent, so whatever the order and however often, the same answer remains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from heliograph.core.digest import Digest, spell
from heliograph.core.frames import State

# an instance that refused a version and took it later has taken it; what it runs now is the better answer
RANK: Final[dict[State, int]] = {"rejected": 1, "superseded": 2, "unaffected": 3, "applied": 4}


class Address(NamedTuple):
    """An environment of a namespace."""

    namespace: str
    environment: str


class Point(NamedTuple):
    """A version's place in its environment's history; ordered as heads are."""

    epoch: int
    number: int


class Answer(NamedTuple):
    """What one subscription of one instance said of one version.

    ``applied_at_us``: the client's clock, corrected by its offset. ``received_at_us``: when a sync node took the receipt.
    """

    state: State
    reason: str | None
    applied_at_us: int
    received_at_us: int


def better(one: Answer, other: Answer) -> Answer:
    """The answer that stays: the higher state, then the earlier receipt; the rest only so that ties have an order too."""
    return max(one, other, key=lambda a: (RANK[a.state], -a.received_at_us, -a.applied_at_us, a.reason or ""))


class Line(NamedTuple):
    """One receipt in the digest of a closed propagation."""

    instance: str
    subscription: int
    state: State
    reason: str | None
    applied_at_us: int
    received_at_us: int


def digest_of(version: str, lines: Iterable[Line]) -> Digest:
    """The digest that stands in the audit trail for all receipts of ``version``.

        SHA-256( "heliograph/v1/receipts" LF  version id LF  line LF  line LF … )

    A line is the canonical JSON text (RFC 8785) of ``[instance, subscription, state, reason|null, applied_at_us,
    received_at_us]``. Lines come in the order of (instance, subscription), instances by their bytes. Anyone who may read the
    receipts can compute it again.
    """
    hasher = hashlib.sha256(b"heliograph/v1/receipts\n" + version.encode() + b"\n")
    encode = msgspec.json.Encoder().encode  # strings, integers and null only: this is their canonical text (asserted by a test)
    for line in lines:
        hasher.update(encode(line) + b"\n")
    return spell(hasher.digest())
