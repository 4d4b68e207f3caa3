"""Server-Sent Events: the stream for clients that read HTTP and cannot hold a socket, browsers and ``curl`` among them.

An answer without end is a connection of the hub like any other, with the same frames, cursor, limits and rules for slow clients. Its hello comes in
the request's address; its receipts, if it sends any, by ``POST /v1/receipts``. What goes out is written straight to the transport: no task waits for
one client, nothing is queued for it, and an event is wrapped once for all who get its frame.

An event carries an ``id`` only when the client's state is whole after it. A break between two parts of a large snapshot therefore leaves
``Last-Event-ID`` where the client really is.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from random import uniform
from typing import Final

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from heliograph.access.principal import Principal
from heliograph.core import frames
from heliograph.core.records import Head, Signed
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.runtime.http_server import GuardedProtocol, chunk, connection_of
from heliograph.services.sync.connections import Connection
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.kept import Kept
from heliograph.services.sync.session import Opened, Session
from heliograph.services.sync.settings import HubSettings
from heliograph.services.sync.stream import DEAD_PEER_MS, SEND_BUFFER, Stream

RETRY_S: Final = (1.0, 5.0)
"""Between these an `EventSource` comes back after a break: clients that were lost together do not come back together."""
MAX_WRAPPED: Final = 16 * 1024 * 1024
"""Bytes of events that are kept for the next client."""
TICK_S: Final = 1.0
SLICE: Final = 200
"""Comments between two turns of the loop."""
HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold events back
    "Access-Control-Allow-Origin": "*",  # whoever reads has shown a token or a ticket; no cookie stands for one
}
_COMMENT: Final = chunk(b":\n\n")
_encode = msgspec.json.Encoder().encode


class _Seen(msgspec.Struct):
    """As much of a frame as its event needs."""

    type: str
    head: Signed | None = None
    part: int = 1
    parts: int = 1


_look = msgspec.json.Decoder(_Seen).decode


class Events:
    """All answers of one node. Belongs to one event loop."""

    def __init__(self, hub: Hub, stream: Stream, settings: HubSettings) -> None:
        self._hub = hub
        self._stream = stream
        self._pause_s = settings.heartbeat_s / 2
        self._wheel: deque[_Pipe] = deque()
        self._wrapped: Kept[bytes, bytes] = Kept(MAX_WRAPPED)

    async def answer(self, hello: frames.Hello, asking: Principal, token: str) -> Response:
        """An answer without end. Raises what is wrong with the request, Overloaded, NotFound; an instance without a name is nobody's."""
        session = self._session(asking, anonymous=not hello.instance)
        if session.anonymous:
            hello = msgspec.structs.replace(hello, instance=session.connection)
        opened = session.open(hello)
        [wanted] = opened.subscribers
        self._stream.admit()
        await self._hub.find(wanted.namespace, wanted.environment)
        self._stream.enter(asking.id)
        return _EventStream(self, opened, token)

    def _session(self, asking: Principal, *, anonymous: bool) -> Session:
        return Session(
            connection=secrets.token_hex(12),
            node=self._hub.node,
            principal=asking,
            history=self._hub,
            opened_us=now_us(),
            heartbeat_us=0,  # it cannot send any: a client that is gone is found by the comments it is sent
            heard_us=now_us(),
            anonymous=anonymous,
        )

    def begin(self, opened: Opened, token: str, protocol: GuardedProtocol) -> None:
        pipe = _Pipe(self, self._hub, protocol)
        connection = pipe.connection = self._hub.connect(opened.subscribers[0].session, pipe)
        self._stream.watch(connection, token)
        transport = protocol.hand_over(pipe)
        _tune(transport.get_extra_info("socket"))
        pipe.write(chunk(_retry()))
        self._hub.begin(connection, opened)
        self._wait(pipe, now_us())

    def ended(self, connection: Connection) -> None:
        self._stream.ended(connection)

    def never_began(self, opened: Opened) -> None:
        self._stream.leave(opened.subscribers[0].session.principal.id)

    def wrapped(self, frame: bytes) -> bytes:
        """The frame as an event, as a chunk of the body. Kept for the next client when it is about no one of them."""
        if (found := self._wrapped.get(frame)) is not None:
            return found
        seen = _look(frame)
        event = chunk(_event(seen, frame))
        if seen.head is not None:
            self._wrapped.put(frame, event, len(event))
        return event

    async def run(self) -> None:
        """Comments, so that neither a client nor a proxy between takes silence for the end: one each half heartbeat. Until cancelled."""
        while True:
            await asyncio.sleep(min(TICK_S, self._pause_s / 2))
            while self._comment_some():  # noqa: ASYNC110  # lets others have the loop, waits for nothing
                await asyncio.sleep(0)

    def _comment_some(self) -> bool:
        """To those whose time has come, who stand first; whether there are more."""
        at_us = now_us()
        for _ in range(SLICE):
            if not self._wheel or self._wheel[0].due_us > at_us:
                return False
            pipe = self._wheel.popleft()
            if pipe.open:
                pipe.comment()
                self._wait(pipe, at_us)
        return True

    def _wait(self, pipe: _Pipe, at_us: int) -> None:
        pipe.due_us = at_us + int(self._pause_s * 1e6)
        self._wheel.append(pipe)


class _EventStream(Response):
    """Begins like any answer; after its head the connection is the hub's."""

    def __init__(self, events: Events, opened: Opened, token: str) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._opened = opened
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        began = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await asyncio.sleep(0)  # uvloop writes at the end of a turn
            protocol = connection_of(scope)
            if not protocol.gone:
                began = True
                self._events.begin(self._opened, self._token, protocol)
        finally:
            if not began:
                self._events.never_began(self._opened)


class _Pipe:
    """One answer's way out. Implements `connections.Pipe` and `http_server.Taker`."""

    __slots__ = ("_events", "_hub", "_protocol", "connection", "due_us", "open", "write")

    def __init__(self, events: Events, hub: Hub, protocol: GuardedProtocol) -> None:
        self._events = events
        self._hub = hub
        self._protocol = protocol
        self.connection: Connection | None = None
        self.due_us = 0  # for a comment
        self.open = True
        self.write = protocol.transport.write

    def send(self, data: bytes) -> None:
        if self.open:
            self.write(self._events.wrapped(data))

    def rest(self, data: bytes) -> None:  # noqa: ARG002
        raise AssertionError("the hub has no way to this socket")

    def cork(self) -> None:
        """The event loop writes at the end of its turn what was written in it."""

    def uncork(self) -> None:
        """See `cork`."""

    def ping(self) -> None:
        self.comment()

    def queued(self) -> int:
        return self._protocol.transport.get_write_buffer_size()

    def charge(self, size: int) -> None:
        """Nothing can be asked for here."""

    def comment(self) -> None:
        if self.connection and not self.connection.held:
            self.write(_COMMENT)

    def close(self, code: int, reason: str) -> None:
        """The codes of the stream by their names; when to come back is for the client to know."""
        if self.open:
            self.open = False
            told = frames.ErrorFrame(code=problems.CLOSE_CODES[code][0], detail=reason)
            self.write(chunk(_retry() + _event(_Seen("error"), _encode(told))))
            self._protocol.finish()

    def abort(self) -> None:
        self.open = False
        self._protocol.transport.abort()

    # --- Taker ---

    def paused(self) -> None:
        if self.connection and self.open:
            self._hub.paused(self.connection)

    def resumed(self) -> None:
        if self.connection and self.open and self.connection.paused_us:
            self._hub.resumed(self.connection)

    def lost(self) -> None:
        self.open = False
        if self.connection:
            self._events.ended(self.connection)


def _tune(of: socket.socket | None) -> None:
    """As the stream's sockets: a client that stops reading, or is dead, is noticed early."""
    if of is not None:
        of.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            of.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)


def _event(seen: _Seen, frame: bytes) -> bytes:
    """Frames are JSON without line breaks, so one ``data`` line holds any of them."""
    whole = b""
    if seen.head and seen.part == seen.parts and seen.type != "head":
        whole = b"id: %b\n" % str(Head.read(seen.head.payload).cursor).encode()
    return b"%bevent: %b\ndata: %b\n\n" % (whole, seen.type.encode(), frame)


def _retry() -> bytes:
    return b"retry: %d\n\n" % (uniform(*RETRY_S) * 1000)  # noqa: S311  # spreads load, keeps no secret
