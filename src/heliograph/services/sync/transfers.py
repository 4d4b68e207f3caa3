"""Large frames on their way to single connections, a part at a time.

The next part goes when the socket has drained, in the turns that all such work shares. Meanwhile the connection is out of the fan-out: it ends
what it has begun, and then gets one frame to where the head is by then. What sockets have not taken yet is bounded for the whole node: who would
exceed it waits in line, with nothing queued for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from heliograph.services.sync.turns import Turns
from heliograph.telemetry.metrics import Metrics

PACED_BYTES: Final = 64 * 1024
"""From here on a frame is more than what a socket's buffer takes at once."""


class Way(Protocol):
    def send(self, data: bytes) -> None: ...


class Receiver(Protocol):
    """A connection, as far as its transfers go. ``transfer`` is there from `begin` until the socket has taken all of it."""

    transfer: Transfer | None
    paused_us: int

    @property
    def pipe(self) -> Way: ...


R = TypeVar("R", bound=Receiver)


@dataclass(slots=True)
class Transfer:
    parts: deque[bytes]
    unread: int = 0  # bytes that count, while the socket is full
    parked: bool = False


class Transfers(Generic[R]):
    """Belongs to one event loop. ``done`` is told of each receiver that has all its parts."""

    def __init__(self, turns: Turns, limit: int, metrics: Metrics, done: Callable[[R], None]) -> None:
        self._turns = turns
        self._limit = limit
        self._metrics = metrics
        self._done = done
        self._parked: deque[R] = deque()
        self.unread = 0

    def begin(self, receiver: R, parts: list[bytes]) -> None:
        """Takes its turn like everybody. Not to be called while it has another."""
        receiver.transfer = Transfer(deque(parts))
        self._line_up(receiver)

    def resumed(self, receiver: R) -> None:
        """Its socket has drained."""
        if (transfer := receiver.transfer) is None:
            return
        self._release(transfer)
        if transfer.parts:
            if not transfer.parked:
                self._line_up(receiver)
        else:
            self._finish(receiver)

    def ended(self, receiver: R) -> None:
        """It is gone, with whatever was on its way."""
        if (transfer := receiver.transfer) is not None:
            receiver.transfer = None
            self._release(transfer)

    def _line_up(self, receiver: R) -> None:
        if self._parked:
            self._park(receiver)
        else:
            self._turns.later(partial(self._step, receiver))

    def _park(self, receiver: R) -> None:
        assert receiver.transfer
        receiver.transfer.parked = True
        self._parked.append(receiver)
        self._metrics.transfers_waiting.set(len(self._parked))

    def _step(self, receiver: R) -> None:
        transfer = receiver.transfer
        if transfer is None or receiver.paused_us:  # gone; or full for another reason, and told of when it drains
            self._next()
            return
        if self.unread and self.unread + len(transfer.parts[0]) > self._limit:
            self._park(receiver)
            return
        part = transfer.parts.popleft()
        receiver.pipe.send(part)
        if receiver.paused_us:
            self._count(transfer, len(part))
            return
        if transfer.parts:
            self._line_up(receiver)
        else:
            self._finish(receiver)
        self._next()

    def _finish(self, receiver: R) -> None:
        receiver.transfer = None
        self._done(receiver)

    def _count(self, transfer: Transfer, size: int) -> None:
        transfer.unread += size
        self.unread += size
        self._metrics.transfer_bytes_unread.set(self.unread)

    def _release(self, transfer: Transfer) -> None:
        """Room for one who waits in line."""
        self._count(transfer, -transfer.unread)
        self._next()

    def _next(self) -> None:
        while self._parked:
            receiver = self._parked.popleft()
            self._metrics.transfers_waiting.set(len(self._parked))
            if receiver.transfer is not None and receiver.transfer.parked:
                receiver.transfer.parked = False
                self._turns.later(partial(self._step, receiver))
                return


def is_large(parts: list[bytes]) -> bool:
    """Whether these go by a transfer rather than at once."""
    return len(parts) > 1 or len(parts[0]) > PACED_BYTES
