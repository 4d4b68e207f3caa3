"""Records of the log, read and checked: what comes out fits the tables, so one bad record cannot stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from heliograph.core import names
from heliograph.core.digest import unspell
from heliograph.core.errors import Invalid
from heliograph.core.events import (
    FannedOut,
    FromRegistry,
    HeadEvent,
    InReceipts,
    NodeAlive,
    PurgeEvent,
    Receipts,
    Received,
    RevokedEvent,
    Row,
    Subscribed,
    Unsubscribed,
    VersionEvent,
)
from heliograph.core.frames import MAX_DECLARED, MAX_DECLARED_SCHEMA, State
from heliograph.core.records import Head, Version
from heliograph.core.times import to_us
from heliograph.services.ledger.answers import Address, Answer, Point
from heliograph.services.ledger.ports import CurrentHead
from heliograph.services.ledger.propagation import Commit

MAX_ID: Final = 200  # instance, connection, node: UUIDs and host names
MAX_REASON: Final = 1000  # a sentence or two for people; longer ones are cut
MAX_FINGERPRINT: Final = 8 * 1024
MAX_SELECTORS: Final = 256
MAX_INT: Final = 2**53 - 1
DAY_US: Final = 86_400_000_000  # a clock a day off is broken, and receipts are kept by day

_from_sync: Final[msgspec.json.Decoder[InReceipts]] = msgspec.json.Decoder(InReceipts)
_from_registry: Final[msgspec.json.Decoder[FromRegistry]] = msgspec.json.Decoder(FromRegistry)
_R = TypeVar("_R", Version, Head)
_E = TypeVar("_E")


Told = Subscribed | Unsubscribed | Receipts | FannedOut | NodeAlive
"""What a record of stream ``receipts`` comes to: one receipt is `Receipts` with one row."""


def from_sync(body: bytes, now_us: int) -> Told:
    """The event in a record of stream ``receipts``. Raises Invalid with what is wrong, never with what it says."""
    event = _decoded(_from_sync, body)
    if isinstance(event, Received):
        event = Receipts.of([event])
    _check_texts(body, event)
    match event:
        case Subscribed():
            _check_subscribed(event)
            _check_times(now_us, event.at_us)
        case Unsubscribed():
            _check_ids(event.instance, event.connection, event.node)
            _check_numbers(event.subscription)
            _check_times(now_us, event.at_us)
        case Receipts():
            _check_receipts(event, now_us)
        case FannedOut():
            _check_ids(event.node)
            _check_numbers(event.epoch, event.number, event.recipients)
            _check_times(now_us, event.logged_at_us, event.started_at_us, event.done_at_us)
        case NodeAlive():
            _check_ids(event.node, event.region)
            _check_numbers(event.connections)
            _check_times(now_us, event.at_us)
    if not isinstance(event, NodeAlive):
        _check_address(event.namespace, event.environment)
    return event


def from_registry(body: bytes) -> FromRegistry:
    """The event in a record of stream ``versions``. Raises Invalid."""
    event = _decoded(_from_registry, body)
    _check_texts(body, event)
    if not isinstance(event, RevokedEvent | PurgeEvent):
        _check_address(event.namespace, event.environment)
    return event


def commit_in(event: VersionEvent, committed_at_us: int) -> Commit:
    """What the ledger keeps of a version. Raises Invalid when the event, its version and its head do not belong together."""
    record, head = _record(Version, event.version.payload), head_in(event)
    point = Point(record.epoch, record.number)
    same_place = (record.namespace, record.environment) == (event.namespace, event.environment)
    if not same_place or head.version != Version.id_of(event.version.payload) or point != Point(event.epoch, event.number):
        raise Invalid("the event, its version and its head do not belong together")
    _check_numbers(*point, event.received_at_us)
    _check_trace(event.trace)
    return Commit(
        address=Address(record.namespace, record.environment),
        point=point,
        version=head.version,
        received_at_us=event.received_at_us,
        committed_at_us=committed_at_us,
    )


def made_at_us(version: str) -> int:
    """When the version in this record was made. Raises Invalid."""
    try:
        return to_us(_record(Version, version).at)
    except ValueError:
        raise Invalid("the version's time is not a time") from None


def head_in(event: VersionEvent | HeadEvent | CurrentHead) -> Head:
    """Raises Invalid when it is not a head of that environment."""
    head = _record(Head, event.head.payload)
    if (head.namespace, head.environment) != (event.namespace, event.environment):
        raise Invalid("the head is of another environment")
    _check_version(head.version)
    _check_numbers(head.epoch, head.number)
    return head


def bounded(reason: str | None) -> str | None:
    return (reason or "")[:MAX_REASON] or None


def parts_of(body: bytes) -> list[bytes]:
    """A record of many receipts as records of one each; any other one, also one that cannot be read, as it is."""
    try:
        event = _from_sync.decode(body)
    except (ValueError, RecursionError):
        return [body]
    if not isinstance(event, Receipts):
        return [body]
    return [msgspec.json.encode(msgspec.structs.replace(event, rows=(row,))) for row in event.rows]


def joined(parts: Sequence[bytes]) -> bytes:
    """The inverse of `parts_of`, of some of the parts."""
    if len(parts) == 1:
        return parts[0]
    events = [msgspec.json.decode(each, type=Receipts) for each in parts]
    return msgspec.json.encode(msgspec.structs.replace(events[0], rows=tuple(row for each in events for row in each.rows)))


def answer_in(state: State, row: Row) -> Answer:
    """What is kept of a receipt. A time that cannot be (later than the receipt, more than a day before) is the receipt's own."""
    received_at_us, applied_at_us = row.received_at_us, row.applied_at_us
    if not received_at_us - DAY_US < applied_at_us < received_at_us:
        applied_at_us = received_at_us
    return Answer(state, bounded(row.reason) if row.reason else None, applied_at_us, received_at_us)


def _decoded(decoder: msgspec.json.Decoder[_E], body: bytes) -> _E:
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"not a known event{_place(error)}") from None


def _record(kind: type[_R], payload: str) -> _R:
    try:
        return kind.read(payload)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"not a {kind.__name__.lower()} record{_place(error)}") from None


def _place(error: Exception) -> str:
    """Where msgspec stumbled, without what stood there."""
    _, found, place = str(error).rpartition(" - at ")
    return f" at {place}" if found else ""


def _check_texts(body: bytes, event: object) -> None:
    """PostgreSQL's text cannot hold U+0000, which JSON can."""
    if b"\\u0000" in body and any("\0" in text for text in _texts(msgspec.to_builtins(event))):
        raise Invalid("holds U+0000")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _check_address(namespace: str, environment: str) -> None:
    names.namespace(namespace)
    names.environment(environment)


def _check_subscribed(event: Subscribed) -> None:
    _check_ids(event.instance, event.connection, event.node, event.region)
    _check_numbers(event.incarnation, event.subscription)
    if len(event.view) > MAX_SELECTORS or len(msgspec.json.encode(event.fingerprint)) > MAX_FINGERPRINT:
        raise Invalid("the view or the fingerprint is larger than the limit")
    _check_declared(event.declares or {})
    if event.have is not None:
        _check_version(event.have.version)
        _check_numbers(event.have.epoch, event.have.number)


def _check_declared(declares: dict[str, str]) -> None:
    for name, schema in declares.items():
        names.config(name)
        if len(schema.encode()) > MAX_DECLARED_SCHEMA:
            raise Invalid("a declared schema is larger than the limit")
    if len(declares) > MAX_DECLARED:
        raise Invalid("more schemas are declared than the limit")


def _check_receipts(event: Receipts, now_us: int) -> None:
    _check_ids(event.node)
    _check_version(event.version)
    _check_numbers(event.epoch, event.number)
    latest_us = now_us + DAY_US
    for row in event.rows:
        if not (0 < len(row.instance) <= MAX_ID and 0 < len(row.connection) <= MAX_ID and 0 <= row.received_at_us <= latest_us):
            _check_ids(row.instance, row.connection)
            _check_times(now_us, row.received_at_us)
        if row.trace is not None:
            _check_trace(row.trace)
        _check_numbers(row.subscription)


def _check_ids(*ids: str) -> None:
    if not all(0 < len(each) <= MAX_ID for each in ids):
        raise Invalid(f"an id is empty or longer than {MAX_ID} characters")


def _check_trace(trace: str | None) -> None:
    if trace is not None and len(trace) > MAX_ID:
        raise Invalid(f"the trace is longer than {MAX_ID} characters")


def _check_version(version: str) -> None:
    try:
        unspell(version)
    except ValueError as error:
        raise Invalid(f"the version id is {error}") from None


def _check_numbers(*numbers: int) -> None:
    for each in numbers:
        if not 0 <= each <= MAX_INT:
            raise Invalid("a number is negative or above 2^53 - 1")


def _check_times(now_us: int, *times_us: int) -> None:
    _check_numbers(*times_us)
    if max(times_us) > now_us + DAY_US:
        raise Invalid("a time lies more than a day ahead")
