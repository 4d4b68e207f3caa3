"""Slow and broken clients, and stopping, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest
from starlette.responses import PlainTextResponse, StreamingResponse

from heliograph.core.errors import InvalidRequest
from heliograph.runtime import http_server
from heliograph.runtime.http_server import serve_http
from heliograph.runtime.listening import listening

CLOSED_S = 20  # far above the bounds set in these tests


class Running:
    def __init__(self, app, port, drain_s=10.0):
        self.stop, self.started = asyncio.Event(), asyncio.Event()
        self.port = port
        self.task = asyncio.create_task(
            serve_http(app, "127.0.0.1", port, stop=self.stop, on_started=self.started.set, drain_s=drain_s)
        )

    async def __aenter__(self):
        await asyncio.wait_for(self.started.wait(), CLOSED_S)
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        await asyncio.wait_for(self.task, CLOSED_S)

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port)


async def hello(scope, receive, send):
    await PlainTextResponse("hello")(scope, receive, send)


@pytest.fixture
def short_bounds(monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_S", 0.4)
    monkeypatch.setattr(http_server, "STALL_S", 0.4)


async def closed(reader):
    """What still came before the server closed."""
    try:
        return await asyncio.wait_for(reader.read(), CLOSED_S)
    except ConnectionError:
        return b""


async def test_headers_that_trickle_in_end_the_connection(short_bounds, free_port):
    async with Running(hello, free_port()) as server:
        reader, writer = await server.connect()

        async def trickle():
            while True:
                writer.write(b"X-Slow: 1\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)

        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        trickling = asyncio.create_task(trickle())
        assert await closed(reader) == b""
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        writer.close()


@pytest.mark.parametrize("says", [b"", b"\r\n"], ids=["nothing", "blank lines"])
async def test_a_connection_that_asks_for_nothing_ends(short_bounds, free_port, says):
    async with Running(hello, free_port()) as server:
        reader, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"hello")).endswith(b"hello")
        if says:
            writer.write(says)
            assert await closed(reader) == b""
        other, unused = await server.connect()
        assert await closed(other) == b""
        writer.close()
        unused.close()


async def test_headers_without_end_are_cut_off_by_their_size(free_port):
    async with Running(hello, free_port()) as server:
        reader, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(10_000):
                writer.write(b"X-%d: %s\r\n" % (number, b"y" * 1000))
                await writer.drain()
        assert number < 9_999
        assert await closed(reader) == b""
        writer.close()


async def test_a_client_that_does_not_read_is_cut_off(short_bounds, free_port):
    ended = asyncio.Event()

    async def endless(scope, receive, send):
        async def blocks():
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # a connection that is gone takes everything at once

        try:
            await StreamingResponse(blocks())(scope, receive, send)
        finally:
            ended.set()

    async with Running(endless, free_port()) as server:
        _, writer = await server.connect()
        writer.transport.pause_reading()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(ended.wait(), CLOSED_S)
        writer.transport.abort()


async def test_requests_sent_ahead_are_answered_in_order_even_when_the_first_takes_long(short_bounds, free_port):
    async def slowly(scope, receive, send):
        if scope["path"] == "/slow":
            await asyncio.sleep(1)  # longer than headers may take
        await PlainTextResponse(scope["path"])(scope, receive, send)

    async with Running(slowly, free_port()) as server:
        reader, writer = await server.connect()
        requests = [b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % name for name in (b"slow", b"b", b"c")]
        writer.write(b"".join(requests)[:-5])
        bodies = [(await reader.readuntil(b"\r\n\r\n"), await reader.readexactly(size))[1] for size in (5, 2)]
        writer.write(b"x\r\n\r\n"[1:])
        assert bodies == [b"/slow", b"/b"]
        writer.close()


async def test_more_connections_than_allowed_are_closed_at_once(free_port, monkeypatch):
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 1)
    async with Running(hello, free_port()) as server:
        kept = await server.connect()
        refused = await server.connect()
        assert await closed(refused[0]) == b""
        kept[1].write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await closed(kept[0])).endswith(b"hello")
        for each in (kept, refused):
            each[1].close()


# --- stopping -------------------------------------------------------------------------------------------------------------------


class Held:
    def __init__(self):
        self.entered, self.go_on, self.cancelled = asyncio.Event(), asyncio.Event(), False

    async def __call__(self, scope, receive, send):
        self.entered.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await PlainTextResponse("finished")(scope, receive, send)


async def test_a_drain_finishes_what_is_in_hand_and_takes_nothing_new(free_port):
    app, port = Held(), free_port()
    async with Running(app, port) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        request = asyncio.create_task(http.get("/"))
        await app.entered.wait()
        server.stop.set()
        while True:  # the listener closes in its own time
            try:
                _, writer = await server.connect()
            except ConnectionRefusedError:
                break
            writer.close()
            await asyncio.sleep(0.01)
        assert not server.task.done()
        app.go_on.set()
        assert (await request).text == "finished"
        await asyncio.wait_for(server.task, CLOSED_S)


async def test_a_drain_is_bounded(free_port, caplog):
    app, port = Held(), free_port()
    async with Running(app, port, drain_s=0.2) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        request = asyncio.create_task(http.get("/", timeout=CLOSED_S))
        await app.entered.wait()
        server.stop.set()
        await asyncio.wait_for(server.task, CLOSED_S)
        assert app.cancelled
        with pytest.raises(httpx.HTTPError):
            (await request).raise_for_status()


async def test_an_address_in_use_is_said_plainly(free_port):
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InvalidRequest, match=f"cannot listen on 127.0.0.1:{port}"):
        await serve_http(hello, "127.0.0.1", port, stop=asyncio.Event())
    with pytest.raises(InvalidRequest, match="cannot listen on"):
        listening("", "name.invalid", port)


async def test_ipv6_too(free_port):
    with listening("", "::1", 0) as door:
        assert door.family == socket.AF_INET6
