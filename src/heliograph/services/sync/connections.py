"""A connection as the hub knows it, and its way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from heliograph.services.sync.members import Way
from heliograph.services.sync.session import Session
from heliograph.services.sync.transfers import Transfer

MAX_REFUSED: Final = 100
"""Receipts of one connection for which there was no room. A client with more comes again later with all of them."""
AGAIN_US: Final = 150_000_000
"""A receipt for which there was no room comes again by then (the SDK's longest pause is two minutes), or never: a fail-over has lost its version."""
Text = tuple[bytes, int]
"""A message, and when it came."""


class Pipe(Protocol):
    """A connection's way out. `send` never waits; a full one says so through `Hub.paused`."""

    def send(self, data: bytes) -> None: ...

    def rest(self, data: bytes) -> None:
        """What `Connection.way` has not taken of a frame."""
        ...

    def cork(self) -> None:
        """What is sent from now on goes out in one write, at `uncork`."""
        ...

    def uncork(self) -> None: ...

    def ping(self) -> None: ...

    def queued(self) -> int:
        """Bytes that the socket has not taken."""
        ...

    def charge(self, size: int) -> None:
        """The client has asked for so many bytes: they count as its own."""
        ...

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


@dataclass(slots=True, eq=False)
class Connection:
    """Moments are of `clock.moment_us`. ``paused_us``: when the socket became full, 0: it is not. ``slot``: where it lies on the hub's wheel.

    ``taken``: the highest ``seq`` of its receipts that are on their way into the log. ``durable``: the highest one that is there.

    ``way``: of an open WebSocket that takes whole frames now and for which nothing waits; None: only its pipe knows how to send.
    """

    session: Session
    pipe: Pipe
    opened_us: int
    heard_us: int
    held: bool = False  # out of the walk: its socket is full, or a large frame is on its way
    way: Way = None
    paused_us: int = 0
    pinged_us: int = 0
    stall_us: int = 0
    slot: int = -1
    transfer: Transfer | None = None
    early: list[Text] | None = None  # what it has said and nobody has heard yet
    taken: int = -1
    durable: int = -1
    refused: dict[int, int] | None = None  # those for which there was no room, with when that was, until they are durable
    ack_due: bool = False

    def aim(self, way: Way) -> None:
        """The hub may write to it from now on; None: no more."""
        self.way = way
        if way is None:
            self.part()

    def hold(self) -> None:
        """Out of the walk, until it is `held` no more."""
        self.held = True
        self.part()

    def part(self) -> None:
        for subscriber in self.session.subscribers.values():
            if subscriber.company is not None:
                subscriber.company.part(subscriber)

    @property
    def unanswered(self) -> bool:
        """An acknowledgement is due: a receipt was taken that is not durable, or of which the client was not told."""
        return self.taken > self.durable or self.ack_due

    def is_taken(self, seq: int) -> bool:
        """It came before: it is durable, or on its way to be."""
        return seq <= self.taken and (self.refused is None or seq not in self.refused)

    def refuse(self, seq: int, at_us: int) -> bool:
        """There was no room for this receipt: it has to come again. False: for too many of this connection."""
        self.refused = (self.refused or {}) | {seq: at_us}
        return len(self.refused) <= MAX_REFUSED

    def settle(self, seq: int) -> None:
        """This receipt is durable, and with it all that were taken before it."""
        self.durable = max(self.durable, seq)
        if self.refused is not None:
            self.refused.pop(seq, None)

    def acknowledged(self, at_us: int) -> int:
        """Every receipt up to this ``seq`` is durable, or its client has given it up; -1: none is known to be."""
        if not self.refused:
            return self.durable
        due = [seq for seq, refused_us in self.refused.items() if at_us - refused_us < AGAIN_US]
        return min(self.durable, *(seq - 1 for seq in due)) if due else self.durable
