"""How the clients of a node that goes away are sent elsewhere.

A crowd that moves at once is a storm to those who take it in. So it leaves in the order in which it came, some at a time: each is told `drain`, has a
moment of its own in which to connect elsewhere, and runs on what it has meanwhile. Who does not go by itself is closed, with a code that says come
back. Nobody is closed whose receipts wait to become durable, nor told to go while it lacks a version that it cannot take now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from heliograph.core import frames
from heliograph.runtime import problems
from heliograph.services.sync.connections import Connection
from heliograph.services.sync.fan_out import SLICE
from heliograph.services.sync.hub import Hub

log = structlog.get_logger()

TICK_S: Final = 0.05
LEAVE_S: Final = 1.0
"""Within so many seconds, at a random moment, one that was told goes."""
PATIENCE_S: Final = 2.0
"""Then so long until it is closed: its loop may be busy with something else."""
TELLING: Final = 0.5
"""All are told within this share of the time; the rest is for going."""
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Pace:
    """`per_s` clients a second are told, each leaves within `leave_s`."""

    per_s: float
    leave_s: float

    @classmethod
    def of(cls, clients: int, *, per_s: float, within_s: float) -> Pace:
        """The wished pace, or the one that it takes to tell all of them in time."""
        pace = max(per_s, clients / (within_s * TELLING))
        return cls(pace, min(LEAVE_S, within_s / 4, max(clients, 1) / pace))

    def told_after(self, seconds: float) -> int:
        return int(self.per_s * seconds) + 1


class Drain:
    """`opening`: connections whose token is being checked; they become the hub's in a moment."""

    def __init__(self, hub: Hub, *, per_s: float, within_s: float, opening: Callable[[], int] = lambda: 0) -> None:
        self._hub = hub
        self._per_s = per_s
        self._within_s = within_s
        self._opening = opening
        self._told: dict[Connection, float] = {}  # when its patience ends
        self._count = 0

    async def run(self) -> None:
        """Until everybody has gone, or the time is over; who is left then is closed."""
        hub = self._hub
        hub.leave()
        began = now = asyncio.get_running_loop().time()
        pace = Pace.of(len(hub), per_s=self._per_s, within_s=self._within_s)
        log.info("drain_began", connections=len(hub), per_s=round(pace.per_s))
        while (len(hub) or self._opening()) and now < began + self._within_s:
            self._tell(pace, pace.told_after(now - began), now)
            self._close_those_who_stay(now)
            await asyncio.sleep(TICK_S)
            now = asyncio.get_running_loop().time()
        log.info("drain_ended", left=len(hub))
        for index, connection in enumerate(hub.connections()):
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if connection in hub:
                self._close(connection)

    def _tell(self, pace: Pace, most: int, now: float) -> None:
        told = _encode(frames.Drain(within_s=pace.leave_s))
        for connection in self._hub.connections():
            if self._count >= most:
                return
            if connection not in self._told and not connection.paused_us:
                self._count += 1
                self._told[connection] = now + pace.leave_s + PATIENCE_S
                connection.pipe.send(told)

    def _close_those_who_stay(self, now: float) -> None:
        for connection, until in list(self._told.items()):
            if until > now:
                return
            if connection not in self._hub:
                del self._told[connection]
            elif not connection.unanswered:
                self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._hub.close(connection, problems.DRAIN, "the node is going away")
