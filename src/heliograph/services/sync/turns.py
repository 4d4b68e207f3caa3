"""Work for one connection at a time, done so that a publish never waits for it.

After a restart thousands say hello in the same moment, each of whom is to be understood, admitted and sent what it lacks. Done as it comes, that
would hold the loop for as long as it lasts, and a version with it. Here it gets some milliseconds of each turn of the loop, fewer while a fan-out
goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from heliograph.runtime.clock import now_us

log = structlog.get_logger()

SLICE_US: Final = 5_000
SLICE_BEHIND_US: Final = 1_000
"""While a fan-out goes on: enough for nobody to starve under steady publishing."""
Work = Callable[[], None]


class Turns:
    """Belongs to one event loop. One piece of work is never divided, so each is to be small. ``fanning``: whether a fan-out goes on, or something
    else that such work has to stand back for."""

    def __init__(self, fanning: Callable[[], bool], clock: Callable[[], int] = now_us) -> None:
        self._fanning = fanning
        self._clock = clock
        self._waiting: deque[Work] = deque()
        self._spent_us = 0
        self._armed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def do(self, work: Work) -> None:
        """At once, when this turn of the loop has time left and nobody waits; otherwise in its order, in one of the next."""
        if self._waiting or self._spent_us >= self._slice_us():
            self._waiting.append(work)
        else:
            self._perform(work)
        self._arm()

    def later(self, work: Work) -> None:
        """Behind all who wait."""
        self._waiting.append(work)
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._armed, self._spent_us = False, 0
        slice_us = self._slice_us()
        while self._waiting and self._spent_us < slice_us:
            self._perform(self._waiting.popleft())
        if self._waiting or self._spent_us:  # once more, if only to begin anew
            self._arm()

    def _slice_us(self) -> int:
        return SLICE_BEHIND_US if self._fanning() else SLICE_US

    def _perform(self, work: Work) -> None:
        began = self._clock()
        try:
            work()
        except Exception:
            log.exception("connection_work_failed")  # it costs that connection, not those who wait behind it
        self._spent_us += self._clock() - began
