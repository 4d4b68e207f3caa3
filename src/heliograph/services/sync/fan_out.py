"""How a version reaches those who follow an environment.

The walk goes over groups in slices of some milliseconds, the first of them at once, before anything else that waits for the loop; in between,
receipts and new connections are served. When the head moves on during a walk, those not yet reached are brought straight to the newest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from heliograph.core.names import View
from heliograph.runtime.clock import now_us
from heliograph.services.sync.connections import Connection
from heliograph.services.sync.environment import Content, Environment, is_ahead
from heliograph.services.sync.fragments import text_frame
from heliograph.services.sync.members import Members, Way
from heliograph.services.sync.reports import Reports
from heliograph.services.sync.session import Subscriber
from heliograph.services.sync.transfers import is_large
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

SLICE_US: Final = 15_000
"""Of sending at a stretch: some two thousand clients at 5 to 7 µs each. What else waits for the loop is late by that at most."""
SLICE: Final = 50
"""Subscribers between two looks at the clock."""
Write = Callable[[Way, bytes], int | None]
"""Writes to a `Connection.way`; how many bytes it has taken, or None where what it cannot take is its own affair. Raises OSError."""
Take = Callable[[Content | None], None]
"""Gets a view that was gathered; None: it could not be."""
Group = Members[Subscriber, Connection]


class Slices:
    """Of a walk that other work waits for."""

    def __init__(self, began_us: int) -> None:
        self._until_us = began_us + SLICE_US

    def begin(self) -> None:
        self._until_us = now_us() + SLICE_US

    def over(self) -> bool:
        return now_us() >= self._until_us


@dataclass(slots=True)
class Room:
    """An environment with those who follow it."""

    environment: Environment
    groups: dict[tuple[View, int], Group] = field(default_factory=dict)
    gathering: dict[View, list[Take]] = field(default_factory=dict)
    moved: bool = False
    logged_us: int = 0
    asked_us: int = 0  # when it was last asked for over HTTP
    fanning: Iterator[None] | None = None


class FanOut:
    """Belongs to one event loop. ``send``: frames by a connection's own pipe. ``spawn``: work in the background, which somebody awaits."""

    def __init__(
        self,
        send: Callable[[Connection, list[bytes]], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        reports: Reports,
        metrics: Metrics,
    ) -> None:
        self.write: Write = os.write
        """To the ways of this node's connections, which are all of one kind."""
        self.walks = 0
        """That go on in the background."""
        self._send = send
        self._spawn = spawn
        self._reports = reports
        self._frames_sent = metrics.frames_sent.labels("state")

    def goes_on(self) -> bool:
        return self.walks > 0

    def begin(self, room: Room) -> None:
        """At once with a first slice; in the background with what that does not reach. A walk that goes on already takes the new head along."""
        if room.fanning is not None:
            return
        room.fanning = self._fan_out(room)
        if self._has_more(room, room.fanning):
            self._spawn(self._go_on(room, room.fanning))

    async def _go_on(self, room: Room, walk: Iterator[None]) -> None:
        self.walks += 1
        try:
            await asyncio.sleep(0)
            while self._has_more(room, walk):  # noqa: ASYNC110  # lets others have the loop, waits for nothing
                await asyncio.sleep(0)
        finally:
            self.walks -= 1

    def _has_more(self, room: Room, walk: Iterator[None]) -> bool:
        """Sends one slice. A walk that fails is over; the next version begins another."""
        try:
            next(walk)
        except StopIteration:
            room.fanning = None
        except Exception:
            room.fanning = None
            log.exception("fan_out_failed", namespace=room.environment.namespace, environment=room.environment.environment)
        return room.fanning is not None

    def _fan_out(self, room: Room) -> Iterator[None]:
        """Until everybody is at the head, also one that comes meanwhile. Yields where others may have the loop."""
        while room.moved:
            room.moved = False
            environment, logged_us, started_us = room.environment, room.logged_us, now_us()
            target = environment.head
            recipients = yield from self._walk(room, Slices(started_us))
            if recipients:
                self._reports.fanned_out(environment, target.cursor, recipients, logged_us, started_us)

    def _walk(self, room: Room, slices: Slices) -> Generator[None, None, int]:
        """Sends the head to all who are not at it; how many."""
        sent = 0
        for (view, number), members in list(room.groups.items()):
            members.tidy()
            sent += yield from self._walk_together(room.environment, view, number, members, slices)
            sent += yield from self._walk_alone(room.environment, view, number, members, slices)
            self._frames_sent.inc(len(members))
        return sent

    def _walk_together(
        self, environment: Environment, view: View, number: int, members: Group, slices: Slices
    ) -> Generator[None, None, int]:
        """One frame for all of them. Those not reached when the head moves on are alone from then, and go straight to the newest."""
        have, target = members.cursor, environment.cursor
        if not members.ways or have == target or is_ahead(have, target):
            return 0
        parts = environment.frames(number, view, have)
        if is_large(parts):
            members.part_all()
            return 0
        frame, sent = text_frame(parts[0]), 0
        size, write = len(frame), self.write
        members.set_out(target)
        while some := members.next(SLICE):
            for way in some:
                if way is None:
                    continue
                members.last = way
                try:
                    taken = write(way, frame)
                except OSError:  # full, or gone: the pipe finds out which
                    taken = 0
                if taken != size and taken is not None:
                    member = members.whose(way)
                    members.part(member)
                    members[member].pipe.rest(frame[taken:])
            sent += members.passed(some)
            if slices.over():
                yield
                slices.begin()
                if environment.cursor is not target:
                    break
        members.part_rest()
        return sent

    def _walk_alone(
        self, environment: Environment, view: View, number: int, members: Group, slices: Slices
    ) -> Generator[None, None, int]:
        """The frame of those who were at the same version is looked up once."""
        target, have = environment.cursor, object()
        parts: list[bytes] = []
        sent = 0
        for subscriber, connection in list(members.alone.items()):
            if connection.held or subscriber.cursor is target or subscriber not in members.alone:
                continue
            if subscriber.cursor is not have:
                if subscriber.cursor == target or is_ahead(subscriber.cursor, target):
                    continue
                have = subscriber.cursor
                parts = environment.frames(number, view, subscriber.cursor)
            subscriber.cursor = target
            self._send(connection, parts)
            if not connection.held:
                members.take_in(subscriber, connection.way)
            sent += 1
            if sent % SLICE == 0 and slices.over():
                yield
                slices.begin()
                if environment.cursor is not target:
                    target, have = environment.cursor, object()
        return sent
