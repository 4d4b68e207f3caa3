"""The WebSocket, subprotocol ``heliograph.v1``.

Compression is off: frames are small and shared by thousands of clients on the server. The library's own pings are off, too: the session's
heartbeats measure the clock at the same time; pings of the server are answered by the library.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, Literal, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, NegotiationError, WebSocketException
from websockets.typing import Subprotocol

from heliograph.client._codes import error_for
from heliograph.client._forks import let_go, watch
from heliograph.client._link import Take
from heliograph.client._tls import distrust
from heliograph.core.errors import Forbidden, HeliographError, InvalidRequest, MalformedFrame, Unauthenticated, Unavailable
from heliograph.core.frames import SUBPROTOCOL, FromClient, FromServer

OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
SEND_TIMEOUT_S: Final = 30.0
"""For one frame, once the socket's buffers are full. A node that reads slowly on purpose takes less."""
# a document of 1 MiB whose every character is escaped, with its record and head; larger states come in parts
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024

# at DEBUG the library writes down the handshake's headers, and so the token
_logger = logging.getLogger("heliograph.websocket")
_logger.setLevel(logging.INFO)
_decoder: msgspec.json.Decoder[FromServer] = msgspec.json.Decoder(FromServer)
_encoder = msgspec.json.Encoder()


def decode(data: bytes | str) -> FromServer:
    """Raises MalformedFrame."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise MalformedFrame("the server sent something that is not a frame of heliograph.v1") from None


class _Straight(connect):
    """Follows no redirect: no server sends one, and a portal's leads to a page, or out of TLS."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class WebSocketLink:
    transport: Literal["websocket", "polling"] = "websocket"

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        watch(self, WebSocketLink._after_fork)

    @classmethod
    async def open(cls, url: str, token: str, *, agent: str, proxy: str | None, tls: ssl.SSLContext) -> Self:
        """Raises Unavailable when it may work later, another HeliographError when it cannot."""
        try:
            return cls(
                await _Straight(
                    url,
                    subprotocols=[Subprotocol(SUBPROTOCOL)],
                    additional_headers={"Authorization": f"Bearer {token}"},
                    user_agent_header=agent,
                    compression=None,
                    proxy=proxy,
                    logger=_logger,
                    ssl=tls if url.startswith("wss:") else None,
                    ping_interval=None,
                    open_timeout=OPEN_TIMEOUT_S,
                    close_timeout=CLOSE_TIMEOUT_S,
                    max_size=MAX_FRAME_BYTES,
                )
            )
        except InvalidURI:
            raise InvalidRequest("the server's address for the stream is not a ws:// or wss:// URL") from None
        except (OSError, TimeoutError, EOFError, WebSocketException) as error:
            raise _why_not(error) from None

    async def run(self, take: Take) -> None:
        try:
            while True:
                take(self._decoded(await self._connection.recv(decode=False)))
        except ConnectionClosed as error:
            raise _closed(error) from None

    async def send(self, frames: Sequence[FromClient]) -> None:
        try:
            for frame in frames:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._connection.send(_encoder.encode(frame), text=True)
        except ConnectionClosed:
            return
        except TimeoutError:
            raise Unavailable("the server no longer reads what is sent to it") from None

    async def close(self) -> None:
        try:
            # the library's own deadline does not count while its last frame waits for the socket
            async with asyncio.timeout(CLOSE_TIMEOUT_S + 1):
                await self._connection.close()
        except (ConnectionClosed, OSError, TimeoutError):
            pass
        finally:
            self._connection.transport.abort()  # does nothing to a socket that is closed

    def _after_fork(self) -> None:
        transport = self._connection.transport
        if not transport.is_closing():  # else the number may be another file's by now
            let_go(transport.get_extra_info("socket").fileno())

    @staticmethod
    def _decoded(data: bytes) -> FromServer:
        try:
            return decode(data)
        except MalformedFrame as error:  # a broken server or proxy; perhaps the next connection meets a better one
            raise Unavailable(str(error)) from None


def _closed(error: ConnectionClosed) -> HeliographError:
    told = error.rcvd or error.sent
    if told is None:
        return Unavailable("the connection broke without a word")
    return error_for(told.code, told.reason)


def _why_not(error: Exception) -> HeliographError:
    if isinstance(error, InvalidStatus):
        return _refused_upgrade(error.response.status_code, error.response.headers)
    if isinstance(error, NegotiationError):
        return Unavailable("the server does not speak the subprotocol heliograph.v1; is this the stream's address?")
    if reason := distrust(error):
        return Unavailable(f"cannot open the stream: {reason}")
    return Unavailable(f"cannot open the stream: {type(error).__name__}{f': {error}' if str(error) else ''}")


def _refused_upgrade(status: int, headers: Mapping[str, str]) -> HeliographError:
    """Only the server's own word ends a client; a box in between that lets no WebSocket through says 403 as well."""
    own = headers.get("Content-Type", "").startswith("application/problem+json")
    retry_after = headers.get("Retry-After")
    if own and status == HTTPStatus.UNAUTHORIZED:
        return Unauthenticated("the server does not know this token; check that it belongs to this server and was not cut off")
    if own and status == HTTPStatus.FORBIDDEN:
        return Forbidden(
            "the token does not permit this connection; ask for one whose scope covers the namespace and environment"
        )
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return Unavailable(f"the server answered the WebSocket request with HTTP {status}", retry_after=seconds)
