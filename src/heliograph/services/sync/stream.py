"""The WebSocket stream on picows. Everything here is about sockets; what frames mean is in `session`.

Facts about the library that shape this: it delivers fragments as they come and does not check UTF-8, answers pings by itself but not CLOSE, shows an
exception of the listener factory to the client, and refuses Firefox's ``Connection: keep-alive, Upgrade`` unless the header is mended first.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
from contextlib import suppress
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
from heliograph.access.principal import Authenticator
from heliograph.core import token
from heliograph.core.errors import HeliographError, InvalidRequest, Overloaded, Unauthenticated
from heliograph.core.frames import MAX_CLIENT_FRAME, SUBPROTOCOL, ErrorFrame
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.runtime.listening import listening
from heliograph.services.sync.hub import Connection, Hub
from heliograph.services.sync.session import Session
from heliograph.services.sync.settings import SyncSettings

log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode

PATH: Final = b"/v1/stream"
SEND_BUFFER: Final = 64 * 1024
"""Kernel bytes per socket: a client that stops reading is noticed after some 150 KiB instead of 4 MB."""
CONGESTION: Final = b"cubic"
"""Frames are small and far apart, nothing to pace: under BBR each send arms a timer, a fifth of a fan-out's time (docs/benchmarks.md)."""
DEAD_PEER_MS: Final = 30_000
BACKLOG: Final = 4096
_NEVER_SENT: Final = frozenset({1005, 1006, 1015})
RECHECK_S: Final = 30.0
HANDSHAKE_S: Final = 5


class Stream:
    def __init__(self, hub: Hub, authenticator: Authenticator, settings: SyncSettings) -> None:
        self.hub = hub
        self.settings = settings
        self._authenticator = authenticator
        self._tokens: dict[Connection, str] = {}
        self._greeting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.base_events.Server:
        """Starts listening. Raises InvalidRequest when it cannot."""
        bound: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_S} if tls else {}
        return await ws_create_server(
            self._listener,
            sock=listening("sync", host, port, reuse_port=self.settings.reuse_port, prepare=_prepare),
            websocket_handshake_timeout=HANDSHAKE_S,
            logger_name=logging.LoggerAdapter(logging.getLogger("picows"), {}),
            enable_auto_ping=False,
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
            for connection, text in list(self._tokens.items()):
                try:
                    await self._authenticator.principal(text)
                except Unauthenticated:
                    self.hub.close(connection, problems.REVOKED, "the token is no longer valid")
                except HeliographError:
                    break  # cannot be checked now; nobody is thrown out for that

    def renew(self, connection: Connection, text: str) -> None:
        """The client will go on under a new token, if that one permits what it is subscribed to; otherwise it goes on under the old one."""
        task = asyncio.create_task(self._renew(connection, text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self, connection: Connection, text: str) -> None:
        session = connection.session
        try:
            principal = await self._authenticator.principal(text)
            for each in session.subscribers.values():
                allow(principal, Action.CONNECT, each.namespace, each.environment)
        except HeliographError as error:
            connection.pipe.send(_encode(ErrorFrame(code=error.code, detail=error.detail)))
            return
        if connection in self._tokens:
            session.principal = principal
            self._tokens[connection] = text

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one connection's beginning and end ---

    def _listener(self, request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
        try:
            return self._accepted(request)
        except HeliographError as error:
            return _refused(error)
        except Exception:
            log.exception("upgrade_failed")
            return _refused(HeliographError("an error of the server"))

    def _accepted(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        if request.path.split(b"?", 1)[0] != PATH:
            raise InvalidRequest(f"the stream is at {PATH.decode()}")
        _mend(request)
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if SUBPROTOCOL not in {each.strip() for each in offered.split(",")}:
            raise InvalidRequest(f"the subprotocol {SUBPROTOCOL} must be offered: Sec-WebSocket-Protocol: {SUBPROTOCOL}")
        text = _bearer(request)
        token.parse(text)
        self.hub.admit()
        if self._greeting >= self.settings.max_handshakes:
            raise Overloaded("too many connections are being opened at once", retry_after=1)
        response = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": SUBPROTOCOL})
        return WSUpgradeResponseWithListener(response, _Listener(self, text))

    def greet(self, listener: _Listener, text: str) -> None:
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
            if not permits(principal, Action.CONNECT, *_first_scope(principal.scopes)):
                raise Unauthenticated("this kind of token does not open streams")
        except HeliographError as error:
            listener.close(problems.close_code_of(error), error.code)
            return
        session = Session(
            connection=secrets.token_hex(12),
            node=self.hub.node,
            principal=principal,
            history=self.hub,
            opened_us=now_us(),
            heartbeat_us=int(self.settings.heartbeat_s * 1e6),
            heard_us=now_us(),
        )
        if listener.open:
            connection = self.hub.connect(session, listener)
            self._tokens[connection] = text
            listener.begin(connection)

    def ended(self, connection: Connection) -> None:
        self._tokens.pop(connection, None)
        self.hub.disconnect(connection, "connection lost")


class _Listener(WSListener):
    """One socket. Implements `Pipe`. Text that comes before the token is checked waits, bounded by one frame."""

    def __init__(self, stream: Stream, text: str) -> None:
        self._stream = stream
        self._text = text
        self._transport: WSTransport | None = None
        self._connection: Connection | None = None
        self._early: list[bytes] = []
        self._fragments = bytearray()
        self.open = False

    # --- Pipe ---

    def send(self, data: bytes) -> None:
        if self.open and self._transport:
            self._transport.send(WSMsgType.TEXT, data)

    def close(self, code: int, reason: str) -> None:
        if self.open and self._transport:
            self.open = False
            self._transport.send_close(cast("WSCloseCode", code), reason.encode()[:100])  # any number will do
            self._transport.disconnect()

    def abort(self) -> None:
        """Without waiting for a full socket to take the close frame."""
        if self._transport:
            self._transport.underlying_transport.abort()

    # --- picows ---

    def begin(self, connection: Connection) -> None:
        self._connection = connection
        early, self._early = self._early, []
        for text in early:
            self._stream.hub.take(connection, text)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self.open = True
        transport.underlying_transport.set_write_buffer_limits(high=0)
        text, self._text = self._text, ""
        self._stream.greet(self, text)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if not self.open:
            return
        if frame.msg_type == WSMsgType.CLOSE:
            self._said_goodbye(transport, frame)
        elif frame.msg_type in (WSMsgType.TEXT, WSMsgType.CONTINUATION) and not frame.rsv1:
            self._message(frame)
        elif frame.msg_type == WSMsgType.BINARY or frame.rsv1:
            self._end(problems.MALFORMED_FRAME, "text frames only, without extensions")

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002
        self.open = False
        if self._connection:
            self._stream.ended(self._connection)

    def pause_writing(self) -> None:
        if self._connection and self.open:
            self._stream.hub.paused(self._connection)

    def resume_writing(self) -> None:
        if self._connection and self.open and self._connection.paused_us:
            self._stream.hub.resumed(self._connection)

    # --- messages ---

    def _message(self, frame: WSFrame) -> None:
        self._fragments += frame.get_payload_as_bytes()
        if len(self._fragments) > MAX_CLIENT_FRAME:
            self._end(problems.LIMITS, "a message too large")
            return
        if not frame.fin:
            return
        text, self._fragments = bytes(self._fragments), bytearray()
        if self._connection:
            self._stream.hub.take(self._connection, text)
        elif len(self._early) < 2:  # hello, and one that follows at once
            self._early.append(text)
        else:
            self._end(problems.PROTOCOL, "too much before the welcome")

    def _end(self, code: int, reason: str) -> None:
        if self._connection:
            self._stream.hub.close(self._connection, code, reason)
        else:
            self.close(code, reason)

    def _said_goodbye(self, transport: WSTransport, frame: WSFrame) -> None:
        self.open = False
        code = cast("int", frame.get_close_code())
        echoed = code if 1000 <= code <= 4999 and code not in _NEVER_SENT else 1000
        transport.send_close(cast("WSCloseCode", echoed), b"")
        transport.disconnect()


def _mend(request: WSUpgradeRequest) -> None:
    """Firefox says ``Connection: keep-alive, Upgrade``, which the library's check would refuse."""
    if "upgrade" in request.headers.get("Connection", "").lower():
        request.headers["Connection"] = "Upgrade"


def _bearer(request: WSUpgradeRequest) -> str:
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text:
        raise Unauthenticated("send a token: Authorization: Bearer hel_…")
    return str(text.strip())


def _first_scope(scopes: tuple[Any, ...]) -> tuple[str, str]:
    return (scopes[0].namespace, scopes[0].environment) if scopes else ("", "")


def _refused(error: HeliographError) -> WSUpgradeResponseWithListener:
    body = f"{error.detail}\n".encode()
    response = WSUpgradeResponse.create_error_response(problems.status_of(error), body, problems.headers(error))
    return WSUpgradeResponseWithListener(response, None)


def _prepare(door: socket.socket) -> None:
    """What is accepted inherits it."""
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_CONGESTION"):
        with suppress(OSError):  # where it is not there, or not for us, the system's default will do
            door.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
