"""The effects of some records, folded so that every row is written once: PostgreSQL refuses to upsert a row twice in one statement."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from heliograph.core.errors import Invalid
from heliograph.core.events import (
    DeletedEvent,
    FannedOut,
    HeadEvent,
    NodeAlive,
    PurgeEvent,
    Receipts,
    RevokedEvent,
    Row,
    Subscribed,
    Unsubscribed,
    VersionEvent,
)
from heliograph.core.records import Head
from heliograph.eventlog.ports import Record, Stream
from heliograph.services.ledger import intake
from heliograph.services.ledger.answers import Address, Answer, Point, better
from heliograph.services.ledger.ports import CurrentHead
from heliograph.services.ledger.propagation import Commit

Key = tuple[str, str, int]  # version id, instance, subscription
Slot = tuple[str, int]  # connection, subscription


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that cannot be taken in, and why. Goes to the dead letters."""

    record: Record
    reason: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Receipts, and what is kept of each row."""

    event: Receipts
    answers: list[Answer]


@dataclass(slots=True)
class Batch:
    """``events``: all events of stream ``receipts`` in their order, for the board; the rest: rows, the last or best of each key."""

    events: list[Subscribed | Unsubscribed | Answers | FannedOut | NodeAlive] = field(default_factory=list)
    subscribed: dict[Slot, Subscribed] = field(default_factory=dict)
    unsubscribed: dict[Slot, Unsubscribed] = field(default_factory=dict)
    answers: dict[Key, tuple[Receipts, Row, Answer]] = field(default_factory=dict)
    runs: dict[Slot, tuple[Receipts, Row]] = field(default_factory=dict)
    latest: dict[Slot, tuple[Receipts, Row]] = field(default_factory=dict)
    fan_outs: dict[tuple[Address, Point, str], FannedOut] = field(default_factory=dict)
    nodes: dict[str, NodeAlive] = field(default_factory=dict)
    commits: dict[str, tuple[Commit, str | None]] = field(default_factory=dict)
    heads: dict[Address, tuple[Head, str]] = field(default_factory=dict)
    unseen: list[Commit] = field(default_factory=list)
    poison: list[Poison] = field(default_factory=list)

    def add(self, record: Record, now_us: int) -> None:
        """Never raises for what a record says: one that cannot be read becomes poison; of one with many receipts, those that cannot."""
        try:
            if record.stream is Stream.RECEIPTS:
                self._add_from_sync(intake.from_sync(record.body, now_us))
            else:
                self._add_from_registry(record)
        except Invalid as error:
            self._add_apart(record, error.detail, now_us)

    def _add_apart(self, record: Record, reason: str, now_us: int) -> None:
        parts = intake.parts_of(record.body)
        if len(parts) < 2:
            self.poison.append(Poison(record, reason))
            return
        refused = []
        for part in parts:
            try:
                self._add_from_sync(intake.from_sync(part, now_us))
            except Invalid as error:
                refused.append(part)
                reason = error.detail
        if refused:
            self.poison.append(Poison(msgspec.structs.replace(record, body=intake.joined(refused)), reason))

    def add_current(self, current: CurrentHead) -> None:
        """An environment's head as its owner says it, after records were missed. Its version's story was not followed."""
        head = intake.head_in(current)
        address = Address(head.namespace, head.environment)
        at_us = intake.made_at_us(current.version.payload)
        self.unseen.append(
            Commit(
                address=address,
                point=Point(head.epoch, head.number),
                version=head.version,
                received_at_us=at_us,
                committed_at_us=at_us,
            )
        )
        self.heads[address] = (head, current.head.payload)

    def _add_from_sync(self, event: intake.Told) -> None:
        match event:
            case Subscribed():
                self._add_subscribed(event)
            case Unsubscribed():
                self.unsubscribed.setdefault((event.connection, event.subscription), event)
            case Receipts():
                self.events.append(Answers(event, [self._add_row(event, row) for row in event.rows]))
                return
            case FannedOut():
                key = Address(event.namespace, event.environment), Point(event.epoch, event.number), event.node
                self.fan_outs.setdefault(key, event)
            case NodeAlive():
                known = self.nodes.get(event.node)
                if known is None or event.at_us >= known.at_us:
                    self.nodes[event.node] = event
        self.events.append(event)

    def _add_subscribed(self, event: Subscribed) -> None:
        """The first one counts; of what is declared, the last that was said."""
        key = event.connection, event.subscription
        known = self.subscribed.setdefault(key, event)
        if event.declares is not None and known is not event:
            self.subscribed[key] = msgspec.structs.replace(known, declares=event.declares)

    def _add_row(self, event: Receipts, row: Row) -> Answer:
        answer = intake.answer_in(event.state, row)
        key, slot = (event.version, row.instance, row.subscription), (row.connection, row.subscription)
        known = self.answers.get(key)
        if known is None or better(known[2], answer) is not known[2]:
            self.answers[key] = (event, row, answer)
        latest = self.latest.get(slot)
        if latest is None or row.received_at_us >= latest[1].received_at_us:
            self.latest[slot] = (event, row)
        if event.state in ("applied", "unaffected"):
            runs = self.runs.get(slot)
            if runs is None or (event.epoch, event.number) > (runs[0].epoch, runs[0].number):
                self.runs[slot] = (event, row)
        return answer

    def _add_from_registry(self, record: Record) -> None:
        event = intake.from_registry(record.body)
        if isinstance(event, RevokedEvent | DeletedEvent | PurgeEvent):  # it keeps no texts, and its rows go by their age
            return
        if isinstance(event, VersionEvent):
            commit = intake.commit_in(event, record.committed_at_us)
            self.commits.setdefault(commit.version, (commit, event.trace))
        self._add_head(event)

    def _add_head(self, event: VersionEvent | HeadEvent) -> None:
        head = intake.head_in(event)
        address = Address(head.namespace, head.environment)
        known = self.heads.get(address)
        if known is None or _order(head) > _order(known[0]):
            self.heads[address] = (head, event.head.payload)


def _order(head: Head) -> tuple[int, int, str]:
    return head.epoch, head.number, head.issued_at
