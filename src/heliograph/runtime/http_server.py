"""The HTTP server: uvicorn on the loop that runs already, with the deadlines that it has not.

A client may be slow with its headers, its body or its reading, on purpose or not. Each of the three has a bound here (the body's is in `http_edge`),
so that a thousand such clients cost a thousand sockets for some seconds and nothing else.

It leaves politely: whoever keeps a connection open may be sending on it in the very moment in which it is closed, and would never know whether the
request was heard. So a server that stops answers one more request on each, with `Connection: close`, and closes those that ask nothing for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from itertools import cycle
from typing import Any, Final, Protocol, cast

import msgspec
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from heliograph.runtime.clock import now_us
from heliograph.runtime.leaving import Leave
from heliograph.runtime.listening import listening
from heliograph.runtime.tls import HANDSHAKE_S

HEAD_S: Final = 10.0
"""Seconds in which a request's first line and headers must have arrived, from its first byte or from the connection's begin."""
MAX_HEAD: Final = 64 * 1024
MAX_MESSAGE: Final = 64 * 1024 * 1024
"""Raw bytes of one request, with chunk headers and trailers: above the largest body that any route takes."""
STALL_S: Final = 30.0
"""Seconds for which a client may take nothing of an answer that is ready."""
KEEP_ALIVE_S: Final = 65  # above a load balancer's usual 60, so that it closes first
MAX_CONNECTIONS: Final = 20_000
BACKLOG: Final = 1024
LOOK_S: Final = 0.02
"""Seconds between two looks at the connections of a server that leaves."""


class _State(ServerState):
    """What a server's connections know of it. ``leaving``: each answer is the last one on its connection."""

    leaving = False


TICK_S: Final = 1.0
TICKS_A_DAY: Final = 864_000
"""Uvicorn's, of which there are ten a second; at every tenth one it writes the Date header anew, and the others would be for nothing."""
_EXTENSION: Final = "heliograph.connection"


class Taker(Protocol):
    """Who writes the rest of an answer straight to the transport, without a task that waits. Called in the loop; nothing may raise."""

    def paused(self) -> None:
        """The socket is full: write no more than what must be."""
        ...

    def resumed(self) -> None: ...

    def lost(self) -> None: ...


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Cuts it off when its client is too slow with headers or with reading, or sends too much."""

    _taker: Taker | None = None  # the bounds on reading are its own then
    _gone: Callable[[], None] | None = None
    _head_timer: asyncio.TimerHandle | None = None  # runs while headers are awaited
    _stall_timer: asyncio.TimerHandle | None = None  # runs while the client does not read
    _head_size = 0
    _message_size = 0
    _asking = False  # a request has begun whose headers are not complete
    _rests_since = 0.0  # loop time of the last answer, or of the connection's begin

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._rests_since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            self.loop.call_soon(transport.abort)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._taker is not None:
            self._overhear(data)
            return
        awaited_head = self._head_timer is not None
        super().data_received(data)
        if self._head_timer is None and self._idle:  # bytes that are no request must not keep it open
            self._await_head()
        self._message_size += len(data)
        if awaited_head and self._head_timer is not None:
            self._head_size += len(data)
        if self._head_size > MAX_HEAD or self._message_size > MAX_MESSAGE:
            self._cut_off()

    def pause_writing(self) -> None:
        if self._taker is not None:
            self._taker.paused()
            return
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        if self._taker is not None:
            self._taker.resumed()
            return
        super().resume_writing()
        self._cancel_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head()
        self._cancel_stall()
        super().connection_lost(exc)
        if self._taker is not None:
            self._taker.lost()
        if self._gone is not None:
            self._gone()

    # --- what the parser and uvicorn call ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["received_at_us"] = now_us()
        self.scope["extensions"] = {_EXTENSION: self}  # type: ignore[dict-item]  # the standard knows its own only
        self._message_size = 0
        self._asking = True
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer is not None:  # trailers are dropped: nobody checked them when the request began
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._cancel_head()
        self._asking = False
        super().on_headers_complete()
        if cast("_State", self.server_state).leaving:
            self.part()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._rests_since = self.loop.time()
        if self.transport.is_closing() and self.parser is not None:  # closes when the client has read what is left, if ever
            self._await_reader()

    def timeout_keep_alive_handler(self) -> None:
        self._cut_off()

    def send_400_response(self, msg: str) -> None:
        detail = "this is not HTTP as the server understands it"
        body = {"type": "urn:heliograph:problem:bad-http", "title": msg, "status": 400, "detail": detail, "code": "bad-http"}
        text = msgspec.json.encode(body)
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
            f"content-length: {len(text)}\r\n\r\n"
        )
        self.transport.write(head.encode() + text)
        self.transport.close()
        self._await_reader()

    # --- leaving ---

    def part(self) -> None:
        """The answer to come is the last one. One that has begun without saying so is followed by one more."""
        if not self._idle and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def close_at_rest(self, for_s: float) -> None:
        """Unless somebody asked something, or was answered, within so many seconds."""
        if self._idle and self._taker is None and not self._asking and self.loop.time() - self._rests_since >= for_s:
            self.transport.close()

    # --- an answer without end ---

    @property
    def gone(self) -> bool:
        return self.parser is None

    def when_gone(self, told: Callable[[], None] | None) -> None:
        """Who is told when the client goes before it has its answer; at once, if it has gone already."""
        self._gone = told
        if told is not None and self.gone:
            told()

    def hand_over(self, taker: Taker) -> asyncio.Transport:
        """To be called once the head of the answer is out, and not when the client is `gone`. What is written then, in chunks, is the taker's
        affair; the request is over for everybody else, and the client's next one is not read."""
        self._taker = taker
        self.cycle.response_complete = True
        self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # an answer may last for days
        self._cancel_stall()
        self.transport.set_write_buffer_limits(high=0)  # told of the first byte that the kernel does not take
        return self.transport

    def finish(self) -> None:
        """Ends what was handed over once the client has read it, within the usual bound."""
        if not self.transport.is_closing():
            self.transport.write(b"0\r\n\r\n")
            self.transport.close()
            self._await_reader()

    def _overhear(self, data: bytes) -> None:
        """Dropped, within bounds: a client that goes on talking takes the answer for that of its next request."""
        self._message_size += len(data)
        if self._message_size > MAX_HEAD:
            self._cut_off()

    # --- bounds ---

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._cancel_head()
        self._head_size = 0
        self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.pipeline:  # we do not read on before what was sent earlier is answered
            self._await_head()
        else:
            self._cut_off()

    def _await_reader(self) -> None:
        self._cancel_stall()
        self._stall_timer = self.loop.call_later(STALL_S, self._cut_off)

    def _cut_off(self) -> None:
        """Not close(), which would wait for the client to read."""
        if self.parser is not None:
            self.transport.abort()

    def _cancel_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def connection_of(scope: Scope) -> GuardedProtocol:
    """The connection that a request came on."""
    return cast("GuardedProtocol", scope["extensions"][_EXTENSION])


def chunk(data: bytes) -> bytes:
    """A part of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Server(uvicorn.Server):
    """Without uvicorn's signal handlers: stopping is our supervisor's decision."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self.server_state = _State()
        self._tls = tls
        self._on_started = on_started
        self._ends = asyncio.Event()

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens by itself: uvicorn has no bound for a TLS handshake."""
        await super().startup([])
        for each in sockets or ():
            self.servers.append(await self._listen(each))
        self._on_started()

    async def main_loop(self) -> None:
        """As uvicorn's, which looks whether it shall end at each tick only."""
        ticks = cycle(range(0, TICKS_A_DAY, 10))
        while not await self.on_tick(next(ticks)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._ends.wait()

    def end(self) -> None:
        self.should_exit = True
        self._ends.set()

    async def _listen(self, door: socket.socket) -> asyncio.Server:
        def connection() -> asyncio.Protocol:
            return GuardedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        bound: dict[str, Any] = {"ssl": self._tls, "ssl_handshake_timeout": HANDSHAKE_S} if self._tls else {}
        return await asyncio.get_running_loop().create_server(connection, sock=door, backlog=BACKLOG, **bound)

    async def leave(self, leave: Leave) -> None:
        """Returns when every connection has gone, or the time is over. Who comes meanwhile is served until the listener closes."""
        cast("_State", self.server_state).leaving = True
        for each in self._open():
            each.part()
        await leave.turn_away()
        await leave.meanwhile()
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + leave.drain_s
        while self.server_state.connections and loop.time() < deadline:
            for each in self._open():
                each.close_at_rest(leave.keep_alive_grace_s)
            await asyncio.sleep(LOOK_S)

    def _open(self) -> list[GuardedProtocol]:
        return cast("list[GuardedProtocol]", list(self.server_state.connections))

    async def cut_off_the_rest(self) -> None:
        """Whom the drain was too short for."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=1)


async def serve_http(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    stop: asyncio.Event,
    on_started: Callable[[], None] = lambda: None,
    leave: Leave | None = None,
    name: str = "",
    reuse_port: bool = False,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serves until `stop`, then leaves as `leave` says. `name`, `reuse_port`: as `listening` takes them.

    Raises InvalidRequest when it cannot listen.
    """
    server = _Server(_config(app), on_started, tls)
    door = listening(name, host, port, reuse_port=reuse_port)
    serving = asyncio.create_task(server.serve(sockets=[door]), name=f"http {port}")
    leaving = asyncio.create_task(_leave_after(stop, server, leave or Leave()), name=f"http {port} stop")
    try:
        await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        server.end()
        await serving
        await server.cut_off_the_rest()
        door.close()


async def _leave_after(stop: asyncio.Event, server: _Server, leave: Leave) -> None:
    await stop.wait()
    if server.started:
        await server.leave(leave)


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",  # its warnings are about what clients send
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,  # after `leave` has waited for them
    )
