"""Two clocks: the wall, which receipts are stamped with, and one that never jumps, which timers run on."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

SAMPLES: Final = 8


class Moment(NamedTuple):
    """``wall_us``: microseconds since the Unix epoch, may jump. ``steady_us``: microseconds, only differences mean anything."""

    wall_us: int
    steady_us: int

    @classmethod
    def now(cls) -> Moment:
        return cls(time.time_ns() // 1000, time.monotonic_ns() // 1000)


class ClockOffset:
    """How far the server's clock is ahead of ours, estimated as in SNTP: of the last eight exchanges the one with the shortest delay counts.

    Read from any thread.
    """

    def __init__(self) -> None:
        self._samples: tuple[tuple[int, int], ...] = ()  # (delay, offset), microseconds

    def exchanged(self, sent_us: int, received_there_us: int, sent_there_us: int, received_us: int) -> None:
        """Four stamps of one exchange; the middle two are the server's. A negative delay means that a clock jumped: not counted."""
        delay = (received_us - sent_us) - (sent_there_us - received_there_us)
        if delay >= 0 and sent_us > 0:
            offset = ((received_there_us - sent_us) + (sent_there_us - received_us)) // 2
            self._samples = (*self._samples[1 - SAMPLES :], (delay, offset))

    @property
    def us(self) -> int:
        """0 before the first exchange."""
        samples = self._samples
        return min(samples)[1] if samples else 0

    @property
    def known(self) -> bool:
        return bool(self._samples)
