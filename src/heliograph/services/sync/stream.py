"""The WebSocket stream on picows. Everything here is about sockets; what frames mean is in `session`.

Facts about the library that shape this: it delivers fragments as they come and does not check UTF-8, reserved bits or the order of fragments; it
answers pings by itself, into a buffer without bound, unless told not to, and never CLOSE; it shows an exception of the factory to the client,
and refuses Firefox's ``Connection: keep-alive, Upgrade`` unless the header is mended first. Its read buffer doubles while a read fills it, so that
what the kernel keeps unread is its bound.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import call
from typing import Any, Final, cast

import msgspec
import structlog
from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)

from heliograph.access.permissions import Action, allow, permits
from heliograph.access.principal import Knows, Principal
from heliograph.core.errors import HeliographError, NotReady, Overloaded, Throttled, Unauthenticated
from heliograph.core.frames import MAX_CLIENT_FRAME, SUBPROTOCOL, ErrorFrame
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.runtime.listening import listening
from heliograph.runtime.tls import HANDSHAKE_S as TLS_HANDSHAKE_S
from heliograph.services.sync.admission import Admission
from heliograph.services.sync.connections import Connection
from heliograph.services.sync.door import Arrival, Door, arrival
from heliograph.services.sync.feed import EdgeSession
from heliograph.services.sync.fragments import PROTOCOL_ERROR, Fragments, Violation, may_close_with, text_frame, whole
from heliograph.services.sync.handshake import refused, token_of
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.members import Way
from heliograph.services.sync.session import Session
from heliograph.services.sync.settings import HubSettings
from heliograph.services.sync.tickets import Tickets
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode

TEXT: Final = (
    WSMsgType.TEXT
)  # an attribute of an enumeration, and comparing two by value, cost more than what is done with the frame
SEND_BUFFER: Final = 64 * 1024
"""Kernel bytes per socket: a client that stops reading is noticed after some 150 KiB instead of 4 MB."""
RECEIVE_BUFFER: Final = 64 * 1024
"""Kernel bytes that a client may send unread; the largest frame fits, and the library's buffer grows no further than this."""
CONGESTION: Final = b"cubic"
"""Frames are small and far apart, nothing to pace: under BBR each send arms a timer, a fifth of a fan-out's time (docs/benchmarks.md)."""
DEAD_PEER_MS: Final = 30_000
BACKLOG: Final = 4096
BURST_S: Final = 10.0
"""Of its allowance that a quiet client has saved up."""
MAX_DEBT_S: Final = 30.0
"""Beyond the allowance and all that was saved: nobody honest sends that between two turns of the loop."""
MAX_CHARGE_S: Final = 10.0
"""A snapshot that was asked for delays what the client says next by that at most: it may be rightful, and large."""
MAX_EARLY: Final = 2
"""Messages before the token is checked: hello, and one that follows at once."""
MAX_WAITING: Final = 1000
"""Messages of a client that is not read for sending too much."""
MAX_HELD: Final = 4096
"""Frames that wait for a full socket: the parts of a large snapshot of each subscription, and no more ever come."""
RELAYED_SHARE: Final = 0.01
"""Of what a frame costs its connection's allowance, when it is an edge's: it speaks for all clients below it."""
CLOSE_S: Final = 2.0
"""Seconds for a client to answer our close, and to take what is before it: a socket closed on what it still sends is reset, and it may never
read why."""
MAX_REASON: Final = 120
RECHECK_S: Final = 30.0
HANDSHAKE_S: Final = 5
NAME_BYTES: Final = 12
NAMES_DRAWN: Final = 256


class Stream:
    def __init__(
        self,
        hub: Hub,
        authenticator: Knows,
        settings: HubSettings,
        admission: Admission,
        tickets: Tickets,
        metrics: Metrics,
    ) -> None:
        self.hub = hub
        self.settings = settings
        self.ending: set[_Listener] = set()
        """Closed by us or by the client, and not gone yet."""
        self.encrypts = False
        self.throttled = metrics.clients_throttled
        self.frame_s = 1 / settings.frames_per_s
        self.byte_s = 1 / settings.bytes_per_s
        self.clock: Callable[[], float] = time.monotonic
        """Read for every frame: once it serves, the loop's own, which is a memory read and as old as the loop's turn."""
        self._admission = admission
        self._metrics = metrics
        self._door: Door | None = None
        self._renewing: set[Connection] = set()
        self._authenticator = authenticator
        self._tickets = tickets
        self._tokens: dict[Connection, str] = {}
        self._greeting = 0
        self._names = connection_names()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.base_events.Server:
        """Starts listening. Raises InvalidRequest when it cannot."""
        self.clock = asyncio.get_running_loop().time
        self.encrypts = tls is not None
        self.hub.fan_out.write = call if tls else os.write
        bound: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": TLS_HANDSHAKE_S} if tls else {}
        taken = listening("sync", host, port, reuse_port=self.settings.reuse_port, prepare=_prepare)
        self._door = Door(taken, self._admission, self._metrics, max_opening=self.settings.max_opening)
        return await ws_create_server(
            self._listener,
            sock=self._door,
            websocket_handshake_timeout=HANDSHAKE_S,
            logger_name=_Quiet(logging.getLogger("picows"), {}),
            enable_auto_ping=False,
            enable_auto_pong=False,
            max_frame_size=MAX_CLIENT_FRAME,
            read_buffer_init_size=2048,
            use_aiofastnet=True,
            backlog=BACKLOG,
            **bound,
        )

    async def recheck(self) -> None:
        """Asks again about the tokens of open connections: the safety net below `revoked` events. Until cancelled."""
        while True:
            await asyncio.sleep(RECHECK_S)
            for text in set(self._tokens.values()):
                await asyncio.sleep(0)  # each may be one of thousands, and known
                try:
                    await self._authenticator.principal(text)
                except Unauthenticated:
                    for connection in [each for each, known in self._tokens.items() if known == text]:
                        self.hub.close(connection, problems.REVOKED, "the token is no longer valid")
                except HeliographError:
                    break  # cannot be checked now; nobody is thrown out for that
                except Exception:
                    log.exception("tokens_not_rechecked")
                    break

    def renew(self, connection: Connection, text: str) -> None:
        """The client will go on under a new token, if that one permits what it is subscribed to; otherwise it goes on under the old one. One at a
        time: of more the registry would be asked in vain."""
        if connection in self._renewing:
            connection.pipe.send(_encode(ErrorFrame(code=Throttled.code, detail="another token is being checked; wait for it")))
            return
        self._renewing.add(connection)
        task = asyncio.create_task(self._renew(connection, text))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._renewed(connection, done))

    def _renewed(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._renewing.discard(connection)

    async def _renew(self, connection: Connection, text: str) -> None:
        session = connection.session
        try:
            principal = await self._authenticator.principal(text)
            for each in session.subscribers.values():
                allow(principal, Action.CONNECT, each.namespace, each.environment)
            if connection not in self._tokens:
                return
            self._admission.enter(principal.id)
        except HeliographError as error:
            connection.pipe.send(_encode(ErrorFrame(code=error.code, detail=error.detail)))
            return
        self._admission.leave(session.principal.id)
        session.principal = principal
        self._tokens[connection] = text

    @property
    def greeting(self) -> int:
        """Connections whose token is being checked."""
        return self._greeting

    async def farewell(self) -> None:
        """Until those who were told that it is over have heard it; who takes long is cut off."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self.ending:  # noqa: ASYNC110  # each ends by itself, or by its timer
                    await asyncio.sleep(0.01)
        for listener in list(self.ending):
            listener.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.farewell()

    @property
    def opening(self) -> int:
        """Connections that have not asked for the stream yet."""
        return self._door.opening if self._door else 0

    # --- one connection's beginning and end ---

    def _listener(self, request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
        came = arrival.get()
        if self._door:
            self._door.upgraded(came)
        try:
            return self._accepted(request, came)
        except HeliographError as error:
            return refused(error)
        except Exception:
            log.exception("upgrade_failed")
            return refused(HeliographError("an error of the server"))

    def _accepted(self, request: WSUpgradeRequest, came: Arrival | None) -> WSUpgradeResponseWithListener:
        if came is not None and came.refusal is not None:
            raise came.refusal
        text = token_of(request, self._redeemed)
        self._admit_greeting()
        response = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": SUBPROTOCOL})
        return WSUpgradeResponseWithListener(response, _Listener(self, text))

    def _redeemed(self, ticket: str) -> str:
        return self._tickets.redeem(ticket, now_us())

    def admit(self) -> None:
        """Raises Overloaded or NotReady when this node takes no more connections now."""
        try:
            self.hub.admit()
        except (Overloaded, NotReady) as error:
            raise self._admission.refuse("draining" if self.hub.draining else "node", error) from None
        self._admission.check_load()

    def _admit_greeting(self) -> None:
        self.admit()
        if self._greeting >= self.settings.max_handshakes:
            full = Overloaded("too many connections are being opened at once", retry_after=1)
            raise self._admission.refuse("handshakes", full)

    def greet(self, listener: _Listener, text: str) -> None:
        """At once, when it is known whose the token is, as of most that come."""
        if (principal := self._authenticator.known(text)) is not None:
            self._let_in_or_refuse(listener, text, principal)
            return
        self._greeting += 1
        task = asyncio.create_task(self._authenticate(listener, text))
        self._tasks.add(task)
        task.add_done_callback(self._greeted)

    def _greeted(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._greeting -= 1

    async def _authenticate(self, listener: _Listener, text: str) -> None:
        try:
            principal = await self._authenticator.principal(text)
        except HeliographError as error:
            _refuse(listener, error)
            return
        except Exception:
            log.exception("token_not_checked")
            _refuse(listener, HeliographError("an error of the server"))
            return
        if listener.open:
            self._let_in_or_refuse(listener, text, principal)

    def _let_in_or_refuse(self, listener: _Listener, text: str, principal: Principal) -> None:
        try:
            self._let_in(listener, text, principal)
        except HeliographError as error:
            _refuse(listener, error)

    def _let_in(self, listener: _Listener, text: str, principal: Principal) -> None:
        """Raises Unauthenticated, Throttled."""
        if not permits(principal, Action.CONNECT, *_first_scope(principal.scopes)):
            raise Unauthenticated("this kind of token does not open streams")
        self._admission.enter(principal.id)
        kind = EdgeSession if principal.kind == "edge" else Session
        session = kind(
            connection=next(self._names),
            node=self.hub.node,
            principal=principal,
            history=self.hub,
            opened_us=now_us(),
            heartbeat_us=int(self.settings.heartbeat_s * 1e6),
            heard_us=now_us(),
        )
        connection = self.hub.connect(session, listener)
        self.watch(connection, text)
        listener.begin(connection)

    def enter(self, token: str) -> None:
        """Counts a connection of this token, until `leave` or until one that is watched has `ended`. Raises Throttled."""
        self._admission.enter(token)

    def leave(self, token: str) -> None:
        self._admission.leave(token)

    def watch(self, connection: Connection, text: str) -> None:
        """It goes on for as long as this token is valid."""
        self._tokens[connection] = text

    def ended(self, connection: Connection) -> None:
        if self._tokens.pop(connection, None) is not None:
            self._admission.leave(connection.session.principal.id)
        self.hub.gone(connection)


class _Listener(WSListener):
    """One socket. Implements `Pipe`.

    Nothing grows here. A full socket gets no more: what must follow waits as references to shared frames, and nothing is read, so that no more
    answers are made. A client that sends too much is not read for a while; what it had sent by then waits, and too much of it ends the connection.
    """

    __slots__ = (
        "_connection",
        "_corked",
        "_early",
        "_ending",
        "_flows",
        "_fragments",
        "_held",
        "_pong",
        "_share",
        "_spent_s",
        "_stream",
        "_text",
        "_throttled",
        "_transport",
        "_way",
        "open",
    )

    def __init__(self, stream: Stream, text: str) -> None:
        self._stream = stream
        self._text = text
        self._transport: WSTransport | None = None
        self._connection: Connection | None = None
        self._early: deque[bytes] | None = None  # messages that wait for the token's check, or for their sender to slow down
        self._fragments: Fragments | None = None
        self._held: deque[bytes] | None = None  # what waits for a full socket
        self._pong: bytes | None = None  # owed to the last ping that came while it was full
        self._share = 1.0
        self._spent_s = 0.0  # until when what it has sent keeps its allowance busy
        self._throttled: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._flows = False  # open, and neither full nor corked
        self._corked = False
        self._way: Way = None
        self.open = False

    # --- Pipe ---

    def send(self, data: bytes) -> None:
        if self._flows:
            self._transport.send(TEXT, data)  # type: ignore[union-attr]  # it flows, so it is there
        elif self.open:
            self._hold(data)

    def rest(self, data: bytes) -> None:
        if self._transport:
            self._transport.underlying_transport.write(data)

    def cork(self) -> None:
        if self._flows:
            self._flows, self._corked, self._held = False, True, deque()

    def uncork(self) -> None:
        if not self._corked:
            return
        self._corked = False
        held, self._held = self._held, None
        if self.open and self._transport:
            self._flows = True
            self._transport.underlying_transport.write(b"".join(map(text_frame, held or ())))

    def ping(self) -> None:
        if self._flows and self._transport:
            self._transport.send_ping()

    def queued(self) -> int:
        return self._transport.underlying_transport.get_write_buffer_size() if self._transport else 0

    def charge(self, size: int) -> None:
        now_s = self._stream.clock()
        spent_s = max(self._spent_s, now_s) + size * self._stream.byte_s
        self._spent_s = min(spent_s, now_s + BURST_S + MAX_CHARGE_S)

    def close(self, code: int, reason: str) -> None:
        """Waits `CLOSE_S` for the client's own close, so that ours reaches it; less when it cannot come."""
        if not self.open or not self._transport:
            return
        unread = not self._flows or self._throttled is not None
        self._shut()
        self._transport.send_close(cast("WSCloseCode", code), reason.encode("ascii", "replace")[:MAX_REASON])
        if unread:
            self._transport.disconnect()

    def abort(self) -> None:
        """Without waiting for a full socket to take the close frame."""
        if self._transport:
            self._transport.underlying_transport.abort()

    # --- picows ---

    def begin(self, connection: Connection) -> None:
        self._connection = connection
        self._aim()
        if connection.session.relays:
            self._share = RELAYED_SHARE
        if not self._flows:
            self._stream.hub.paused(connection)
        self._catch_up_reading()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self.open = self._flows = True
        out = transport.underlying_transport
        self._way = out.write if self._stream.encrypts else out.get_extra_info("socket").fileno()
        transport.underlying_transport.set_write_buffer_limits(high=0)
        text, self._text = self._text, ""
        self._stream.greet(self, text)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if not self.open:
            if frame.msg_type is WSMsgType.CLOSE:
                transport.disconnect()
            return
        try:
            self._took(frame)
        except Violation as violation:
            self._end(violation.code, violation.reason)
        except Exception:
            log.exception("frame_failed")
            self._end(problems.UNAVAILABLE, "an error of the server")

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002
        self._shut(gone=True)
        if self._ending:
            self._ending.cancel()
        self._stream.ending.discard(self)
        if self._connection:
            self._stream.ended(self._connection)

    def pause_writing(self) -> None:
        if not self.open or not self._flows:
            return
        self._flows = False
        self._aim()
        self._read()
        if self._connection:
            self._stream.hub.paused(self._connection)

    def resume_writing(self) -> None:
        if not self.open or self._flows or not self._transport:
            return
        self._flows = True
        while self._held and self._flows:
            self._transport.send(TEXT, self._held.popleft())
        if not self._flows:  # full again; `pause_writing` has told the hub
            return
        self._held = None
        self._aim()
        if self._pong is not None:
            self._transport.send_pong(self._pong)
            self._pong = None
        if self._connection and self._flows:
            self._stream.hub.resumed(self._connection)
        self._read()

    # --- what it sends ---

    def _took(self, frame: WSFrame) -> None:
        """Receipts come by the ten thousand at once: what every frame goes through is as short as it can be."""
        stream = self._stream
        now_s = stream.clock()
        spent_s = max(now_s, self._spent_s)
        self._spent_s = spent_s = spent_s + (stream.frame_s + frame.payload_size * stream.byte_s) * self._share
        if spent_s - now_s > BURST_S:
            self._overspent(spent_s - now_s - BURST_S)
        if self._connection:
            self._connection.heard_us = int(now_s * 1e6)
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            raise Violation(PROTOCOL_ERROR, "no extension was negotiated")
        if kind is TEXT and frame.fin and self._fragments is None:
            self._take(whole(frame.get_payload_as_bytes()))
        else:
            self._took_other(kind, frame)

    def _took_other(self, kind: WSMsgType, frame: WSFrame) -> None:
        if kind is WSMsgType.CLOSE:
            self._said_goodbye(frame)
        elif kind is WSMsgType.PING:
            self._pinged(frame.get_payload_as_bytes())
        elif kind is not WSMsgType.PONG:
            self._fragment(kind, frame)

    def _fragment(self, kind: WSMsgType, frame: WSFrame) -> None:
        continues = kind is WSMsgType.CONTINUATION
        if continues != (self._fragments is not None):
            raise Violation(PROTOCOL_ERROR, "a fragment of nothing" if continues else "a message inside another one")
        if kind is WSMsgType.BINARY:
            raise Violation(problems.MALFORMED_FRAME, "text frames only")
        fragments = self._fragments = self._fragments or Fragments()
        text = fragments.add(frame.get_payload_as_bytes(), last=frame.fin)
        if text is not None:
            self._fragments = None
            self._take(text)

    def _take(self, text: bytes) -> None:
        if self._connection and not self._throttled:
            self._stream.hub.take(self._connection, text)
            return
        waiting = self._early = self._early or deque()
        waiting.append(text)
        if not self._connection and len(waiting) > MAX_EARLY:
            raise Violation(problems.PROTOCOL, "too much before the welcome")
        if len(waiting) > MAX_WAITING:
            raise Violation(problems.LIMITS, "too many messages at once")

    def _pinged(self, payload: bytes) -> None:
        """Pings that came too fast or while it does not read are answered by one pong to the last of them (RFC 6455 section 5.5.3)."""
        if self._flows and self._transport:
            self._transport.send_pong(payload)
        else:
            self._pong = payload

    # --- how much it sends ---

    def _overspent(self, over_s: float) -> None:
        """Its allowance, a token bucket kept as the moment until which it is empty, would be used up for so long."""
        if over_s > MAX_DEBT_S:
            raise Violation(problems.LIMITS, "too many frames or bytes a second")
        if self._throttled is None:
            self._stream.throttled.inc()
            self._throttle(over_s)
            self._read()

    def _throttle(self, over_s: float) -> None:
        self._throttled = asyncio.get_running_loop().call_later(over_s, self._unthrottle)

    def _unthrottle(self) -> None:
        self._throttled = None
        self._catch_up_reading()

    def _catch_up_reading(self) -> None:
        """Takes what has waited, as far as the allowance goes."""
        while self._early and self._connection and self.open and self._throttled is None:
            over_s = self._spent_s - self._stream.clock() - BURST_S
            if over_s > 0:
                self._throttle(over_s)
            else:
                self._stream.hub.take(self._connection, self._early.popleft())
        self._read()

    def _aim(self) -> None:
        """The hub may write to the socket itself, or not."""
        if self._connection:
            self._connection.aim(self._way if self._flows else None)

    def _read(self) -> None:
        """Reads on, or not: see the class."""
        if self._transport and self.open:
            if self._flows and self._throttled is None:
                self._transport.underlying_transport.resume_reading()
            else:
                self._transport.underlying_transport.pause_reading()

    # --- ends ---

    def _hold(self, data: bytes) -> None:
        held = self._held = self._held if self._held is not None else deque()
        held.append(data)
        if len(held) > MAX_HELD:
            self._end(problems.SLOW_CONSUMER, "did not read")
            self.abort()

    def _end(self, code: int, reason: str) -> None:
        if self._connection:
            self._stream.hub.close(self._connection, code, reason)
        else:
            self.close(code, reason)

    def _shut(self, *, gone: bool = False) -> None:
        """No more in or out, and an end within `CLOSE_S`, unless it has ended."""
        was_open, self.open, self._flows = self.open, False, False
        self._aim()
        self._held = self._early = self._fragments = self._pong = None
        if self._throttled:
            self._throttled.cancel()
        if was_open and not gone:
            self._stream.ending.add(self)
            self._ending = asyncio.get_running_loop().call_later(CLOSE_S, self.abort)

    def _said_goodbye(self, frame: WSFrame) -> None:
        assert self._transport
        code = cast("int", frame.get_close_code()) if frame.payload_size else 1000
        self._shut()
        self._transport.send_close(cast("WSCloseCode", code if may_close_with(code) else PROTOCOL_ERROR), b"")
        self._transport.disconnect()


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """What the library logs of clients' faults: they are counted by close code, and a log that a client can fill is none."""

    def error(self, *_: object, **__: object) -> None:
        pass


def connection_names() -> Iterator[str]:
    """Unguessable, 96 bits each; the system is asked for many at a time, because asking costs more than a welcome."""
    while True:
        drawn = secrets.token_hex(NAME_BYTES * NAMES_DRAWN)
        yield from (drawn[at : at + 2 * NAME_BYTES] for at in range(0, len(drawn), 2 * NAME_BYTES))


def _refuse(listener: _Listener, error: HeliographError) -> None:
    listener.close(problems.close_code_of(error), problems.close_reason_of(error))


def _first_scope(scopes: tuple[Any, ...]) -> tuple[str, str]:
    return (scopes[0].namespace, scopes[0].environment) if scopes else ("", "")


def _prepare(door: socket.socket) -> None:
    """What is accepted inherits it."""
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    if hasattr(socket, "TCP_CONGESTION"):
        with suppress(OSError):  # where it is not there, or not for us, the system's default will do
            door.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
