"""Receipts on their way: which were given, which are due, which are durable. Pure; times are steady microseconds.

Promises:

- A receipt stays here until the server says that it is durable, across any number of connections.
- It leaves only on a connection whose other end knows the version: it showed that one or a later one here, or we said in hello that we
  hold it. A node that is behind would take it for a lie and close the connection.
- What was refused because it did not verify is told to the connection that said it, and to no other; it never stands in for an answer that is
  of what did verify.
- Receipts leave in the order in which versions were answered; ``seq`` grows within a connection.
- The queue is bounded by `LIMIT` receipts. Beyond it the oldest that a later one covers is left out (an applied version covers the applied and
  unaffected ones before it), a rejection only when nothing is covered. A thousand versions are none that a node could have sent within the moments
  for which receipts wait; a log of receipts that is away for long makes as many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from heliograph.core.frames import Receipt, State
from heliograph.core.records import Cursor

LIMIT: Final = 1024
RESEND_US: Final = 5_000_000
RESEND_CAP_US: Final = 60_000_000


@dataclass(frozen=True, slots=True)
class Answered:
    """What an instance did with one version of one subscription; ``applied_at_us`` is its own wall clock."""

    subscription: int
    cursor: Cursor
    state: State
    reason: str | None = None
    applied_at_us: int = 0
    trace: str | None = None
    verified: bool = True


@dataclass(slots=True)
class _Pending:
    answered: Answered
    due_us: int
    seq: int | None = None  # given when it is first sent on the connection at hand
    attempts: int = 0


class Receipts:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._queue: list[_Pending] = []
        self._last_seq = 0
        self._held: Mapping[int, Cursor | None] = {}
        self._shown: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, answered: Answered, *, now_us: int, jitter_us: int) -> None:
        """``jitter_us`` 0: at once, and everything that waits goes with it. Otherwise with the next random moment within that bound."""
        if any(_repeats(answered, waiting.answered) for waiting in self._queue):
            return
        self._queue = [waiting for waiting in self._queue if not _outdoes(answered, waiting.answered)]
        if jitter_us == 0:
            for waiting in self._unsent():
                waiting.due_us = min(waiting.due_us, now_us)
        # what this server may not be told stays, however long it is overdue: nothing leaves with it
        leaving = (waiting.due_us for waiting in self._unsent() if self._is_known(waiting.answered))
        due = min(leaving, default=now_us + int(self._random.uniform(0, jitter_us)))
        self._queue.append(_Pending(answered, due))
        if len(self._queue) > LIMIT:
            self._queue.remove(_covered(self._queue) or self._queue[0])

    def due(self, now_us: int, clock_offset_us: int) -> list[Receipt]:
        """The frames to send now. Each comes back after a growing while until it is acknowledged."""
        ready = [waiting for waiting in self._queue if waiting.due_us <= now_us and self._is_known(waiting.answered)]
        return [self._send(waiting, now_us, clock_offset_us) for waiting in ready]

    def acknowledged(self, seq: int) -> None:
        """Every receipt of this connection up to ``seq`` is durable."""
        self._queue = [waiting for waiting in self._queue if waiting.seq is None or waiting.seq > seq]

    def connected(self, held: Mapping[int, Cursor | None]) -> None:
        """A new connection, on which we say that we hold this of each subscription: numbers start again."""
        self._last_seq = 0
        self._held = dict(held)
        self._shown.clear()
        self._queue = [waiting for waiting in self._queue if waiting.answered.verified]

    def shown(self, subscription: int, cursor: Cursor) -> None:
        """The server at the other end of this connection knows this version and those before it."""
        self._shown[subscription] = max(self._shown.get(subscription, (0, 0)), (cursor.epoch, cursor.number))

    def again(self, *, now_us: int, jitter_us: int) -> None:
        """The connection is open: what is not durable is due within the jitter."""
        moment = now_us + int(self._random.uniform(0, jitter_us))
        for waiting in self._queue:
            waiting.seq, waiting.attempts, waiting.due_us = None, 0, moment

    def hurry(self, now_us: int) -> None:
        """What was not sent yet is due now: the client is about to leave."""
        for waiting in self._unsent():
            waiting.due_us = now_us

    def drop_lost(self, subscription: int, epoch: int, number: int) -> None:
        """The history was restarted at ``number`` and is in ``epoch`` now: from there on, versions of older epochs are no more, and what runs now
        covers them."""
        self._queue = [each for each in self._queue if not _is_lost(each.answered, subscription, epoch, number)]

    @property
    def wake_us(self) -> int | None:
        return min((waiting.due_us for waiting in self._queue if self._is_known(waiting.answered)), default=None)

    def _is_known(self, answered: Answered) -> bool:
        cursor = answered.cursor
        shown = self._shown.get(answered.subscription, (0, 0))
        return (cursor.epoch, cursor.number) <= shown or self._held.get(answered.subscription) == cursor

    def _unsent(self) -> list[_Pending]:
        return [waiting for waiting in self._queue if waiting.seq is None]

    def _send(self, waiting: _Pending, now_us: int, clock_offset_us: int) -> Receipt:
        if waiting.seq is None:
            self._last_seq += 1
            waiting.seq = self._last_seq
        pause = min(RESEND_CAP_US, RESEND_US << min(waiting.attempts, 8))
        waiting.attempts += 1
        waiting.due_us = now_us + pause + int(self._random.uniform(0, pause))
        answered = waiting.answered
        return Receipt(
            seq=waiting.seq,
            subscription=answered.subscription,
            epoch=answered.cursor.epoch,
            number=answered.cursor.number,
            version=answered.cursor.version,
            state=answered.state,
            reason=answered.reason,
            applied_at_us=answered.applied_at_us,
            clock_offset_us=clock_offset_us,
            trace=answered.trace,
        )


def _repeats(new: Answered, held: Answered) -> bool:
    if _outdoes(held, new):
        return True
    return _matter(new) == _matter(held) and (new.reason, new.verified) == (held.reason, held.verified)


def _outdoes(one: Answered, other: Answered) -> bool:
    """The same of the same version, but of what verified: it is said on any connection, and the other only on the one at hand."""
    return _matter(one) == _matter(other) and one.verified and not other.verified


def _matter(answered: Answered) -> tuple[int, Cursor, State]:
    return answered.subscription, answered.cursor, answered.state


def _is_lost(answered: Answered, subscription: int, epoch: int, number: int) -> bool:
    cursor = answered.cursor
    return answered.subscription == subscription and cursor.epoch < epoch and cursor.number >= number


def _covered(queue: list[_Pending]) -> _Pending | None:
    """The oldest receipt that says nothing which a later one does not imply."""
    applied: dict[int, int] = {}  # by subscription: the place of the last one
    good: dict[int, int] = {}
    for place, waiting in enumerate(queue):
        subscription, state = waiting.answered.subscription, waiting.answered.state
        if state == "applied":
            applied[subscription] = good[subscription] = place
        elif state == "unaffected":
            good[subscription] = place
    covering = {"applied": applied, "unaffected": good}
    for place, waiting in enumerate(queue):
        if place < covering.get(waiting.answered.state, {}).get(waiting.answered.subscription, -1):
            return waiting
    return None
