"""Two clocks: the wall, which receipts are stamped with, and one that never jumps, which timers run on."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

SAMPLES: Final = 8
JUMP_US: Final = 50_000
"""What a busy machine may take between the readings of two clocks is no jump."""


class Moment(NamedTuple):
    """``wall_us``: microseconds since the Unix epoch, may jump. ``steady_us``: microseconds, only differences mean anything."""

    wall_us: int
    steady_us: int

    @classmethod
    def now(cls) -> Moment:
        return cls(time.time_ns() // 1000, time.monotonic_ns() // 1000)


class ClockOffset:
    """How far the server's clock is ahead of ours, estimated as in SNTP: of the last eight exchanges the one with the shortest delay counts.

    What was measured before the wall clock jumped says nothing of the time after, and is forgotten with the next exchange. Read from any thread.
    """

    def __init__(self) -> None:
        self._samples: tuple[tuple[int, int], ...] = ()  # (delay, offset), microseconds
        self._apart_us: int | None = None  # wall minus steady clock, at the last exchange

    def exchanged(self, sent_us: int, received_there_us: int, sent_there_us: int, received: Moment) -> None:
        """Four stamps of one exchange; the middle two are the server's. A negative delay means that a clock jumped: not counted."""
        known = () if self._jumped(received) else self._samples
        delay = (received.wall_us - sent_us) - (sent_there_us - received_there_us)
        if delay >= 0 and sent_us > 0:
            offset = ((received_there_us - sent_us) + (sent_there_us - received.wall_us)) // 2
            known = (*known[1 - SAMPLES :], (delay, offset))
        self._samples = known

    def _jumped(self, now: Moment) -> bool:
        before, self._apart_us = self._apart_us, now.wall_us - now.steady_us
        return before is not None and abs(self._apart_us - before) > JUMP_US

    @property
    def us(self) -> int:
        """0 before the first exchange."""
        samples = self._samples
        return min(samples)[1] if samples else 0

    @property
    def known(self) -> bool:
        return bool(self._samples)
