"""The listening socket of the stream, which looks at each connection before anything is made for it.

The library above tells an upgrade's handler what was asked, and not by whom. So the door leaves a note, `arrival`, in the context in which the
connection is made: what the event loop calls for this connection runs in it.
"""

from __future__ import annotations

import errno
import socket
from collections import OrderedDict
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import structlog

from heliograph.core.errors import Unavailable
from heliograph.services.sync.admission import Admission, Place, place_of
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

IN_A_ROW: Final = 128
"""Connections taken between two turns of the loop: some 10 ms of work."""
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Arrival(socket.socket):
    """A connection that came in. ``refusal``: what its request is answered, whatever it asks for."""

    __slots__ = ("_door", "place", "refusal")

    place: Place
    refusal: Unavailable | None

    def __init__(self, accepted: int, door: Door, place: Place) -> None:
        family, kind, protocol = door.kind
        super().__init__(family, kind, protocol, fileno=accepted)
        self._door: Door | None = door
        self.place = place
        self.refusal = None

    def close(self) -> None:
        door, self._door = self._door, None
        if door:
            door.left(self)
        super().close()


arrival: ContextVar[Arrival | None] = ContextVar("arrival", default=None)
"""The connection for which this code runs, until it is upgraded."""


class Door(socket.socket):
    """Takes the place of a listening socket.

    When too many have come and not asked for the stream yet, the one that has waited longest must go: honest ones take a round trip.
    """

    def __init__(self, listening: socket.socket, admission: Admission, metrics: Metrics, *, max_opening: int) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self.setblocking(False)
        self.kind = (int(self.family), int(self.type), self.proto)
        """Family, type and protocol, as numbers: a socket makes members of enumerations of its own each time it is asked."""
        self._admission = admission
        self._refused = metrics.connections_refused
        self._max_opening = max_opening
        self._opening: OrderedDict[Arrival, None] = OrderedDict()
        self._in_a_row = 0
        self._spare: socket.socket | None = socket.socket()  # a descriptor, to let somebody out when there is none left

    def accept(self) -> tuple[socket.socket, Any]:
        """The next one that may come in or gets an answer; the others are closed. Raises as `socket.accept` does, but never for want of
        descriptors."""
        while True:
            accepted, address = self._next()
            came = Arrival(accepted, self, place_of(address[0]))
            came.refusal = self._admission.arrive(came.place)
            if came.refusal and not self._admission.has_words():
                came.close()
                continue
            self._opening[came] = None
            if len(self._opening) > self._max_opening:
                self._turn_out()
            arrival.set(came)
            return came, address

    @property
    def opening(self) -> int:
        return len(self._opening)

    def upgraded(self, came: Arrival | None) -> None:
        """It has asked; from here on the stream's own limits hold."""
        arrival.set(None)
        if came is not None:
            self._opening.pop(came, None)

    def left(self, came: Arrival) -> None:
        self._opening.pop(came, None)
        self._admission.left(came.place)

    def close(self) -> None:
        if self._spare:
            self._spare.close()
            self._spare = None
        super().close()

    def _next(self) -> tuple[int, Any]:
        """The descriptor and address of whoever comes next. Raises BlockingIOError when nobody does, and now and then so that others have the loop,
        too."""
        self._in_a_row += 1
        try:
            if self._in_a_row > IN_A_ROW:
                raise BlockingIOError(errno.EAGAIN, "others have their turn")
            return self._accept_any()
        except BlockingIOError:
            self._in_a_row = 0
            raise

    def _accept_any(self) -> tuple[int, Any]:
        while True:
            try:
                accepted: tuple[int, Any] = self._accept()  # type: ignore[attr-defined]
                return accepted  # as `socket.accept` does, which makes a socket that would be another one at once
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._let_one_out()

    def _let_one_out(self) -> None:
        """Without a free descriptor nobody could even be refused, and the loop would be told of the same caller for ever."""
        self._refused.labels("descriptors").inc()
        spare, self._spare = self._spare, None
        try:
            if spare is not None:
                spare.close()
                super().accept()[0].close()
            self._spare = socket.socket()
        except OSError as error:  # somebody else was faster, or the caller has gone
            raise BlockingIOError(errno.EAGAIN, "no descriptor is free") from error

    def _turn_out(self) -> None:
        longest, _ = self._opening.popitem(last=False)
        self._refused.labels("opening").inc()
        with suppress(OSError):  # where it has gone already
            longest.shutdown(socket.SHUT_RDWR)  # its transport notices, and cleans up
