"""What stands between a client and its server answers, forbids, redirects, swallows and hangs: the client goes on, and believes none of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http import HTTPStatus
from typing import Any

import pytest
from tests.client.conftest import eventually

from heliograph.client import Heliograph
from heliograph.client._receipts import Answered
from heliograph.client._transport_websocket import WebSocketLink
from heliograph.core.records import Cursor

DEADLINE_S = 20.0


class Box:
    """In front of the server's HTTP: while it is ``shut``, it answers every post itself."""

    def __init__(self, server: Any, status: int, body: bytes, kind: str = "text/html") -> None:
        self.shut, self.posts = True, 0
        self._answer = b"HTTP/1.1 %d No\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
            status,
            kind.encode(),
            len(body),
            body,
        )
        self._behind = server._serve_http
        server._serve_http = self.serve

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not (self.shut and head.startswith(b"POST")):
            await self._behind(Again(head, reader), writer)
            return
        self.posts += 1
        writer.write(self._answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()


class Again:
    """A request whose head was read already."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader) -> None:
        self._lines = head.splitlines(keepends=True)
        self._reader = reader

    async def readline(self) -> bytes:
        return self._lines.pop(0)

    async def readexactly(self, count: int) -> bytes:
        return await self._reader.readexactly(count)


# --- receipts over HTTP -------------------------------------------------------------------------------------------------------------------


HTML, PROBLEM = "text/html", "application/problem+json"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (403, b"<p>sorry", HTML),
        (404, b"<p>sorry", HTML),
        (405, b'{"code":"method-not-allowed"}', "application/json"),
        (407, b"{}", PROBLEM),
        (408, b'{"code":"unavailable"}', PROBLEM),
        (413, b'{"code":3}', PROBLEM),
    ],
)
async def test_only_the_servers_own_word_gives_a_receipt_up(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, kind: str
) -> None:
    monkeypatch.setattr("heliograph.client._receipts.RESEND_US", 10_000)
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    box = Box(server, status, body, kind)
    await restart_http(server)
    async with connect() as client:
        await eventually(lambda: box.posts > 1)
        assert (client.status.receipts_pending, client.status.transport) == (1, "polling")
        box.shut = False
        assert (await server.receipt(2)).state == "applied"
        await eventually(lambda: client.status.receipts_pending == 0)


# --- the stream ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["https://config.example/v1/stream", "wss://127.0.0.1:1/v1/stream", "http://["])
async def test_a_redirected_upgrade_leads_to_polling(
    server: Any, connect: Any, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def redirect(connection: Any, _: Any) -> Any:
        answer = connection.respond(HTTPStatus.FOUND, "this way")
        answer.headers["Location"] = where
        return answer

    server._upgrade = redirect
    await server.stop_stream()
    await server.start_stream()
    async with connect() as client:
        assert client.status.transport == "polling"
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
    assert "an unexpected error" not in caplog.text


async def test_a_box_that_swallows_what_follows_the_upgrade_leads_to_polling(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each connection lives as long as a good one."""
    monkeypatch.setattr("heliograph.client._connection.SETTLED_US", 0)
    monkeypatch.setattr("heliograph.client._session.WELCOME_S", 0.05)

    async def swallow(socket: Any) -> None:
        async for _ in socket:
            pass

    server._serve_stream = swallow
    await server.stop_stream()
    await server.start_stream()
    async with connect(start_timeout=DEADLINE_S) as client:
        assert client.status.transport == "polling"


async def test_a_server_that_no_longer_reads_is_left(server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it still speaks, and is not silent."""
    links = record_links(monkeypatch)
    monkeypatch.setattr("heliograph.client._transport_websocket.SEND_TIMEOUT_S", 0.1)
    async with connect() as client:
        stops_reading(await server.connection(1), links[0])
        flood(client)
        await server.connection(2)
        server.connections[0].socket.transport.abort()


async def test_a_server_that_no_longer_reads_does_not_hold_up_closing(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = record_links(monkeypatch)
    async with connect() as client:
        connection = await server.connection(1)
        stops_reading(connection, links[0])
        flood(client)
        await eventually(lambda: links[0]._connection.paused)
        closing = asyncio.create_task(client.close())
        done, _ = await asyncio.wait({closing}, timeout=DEADLINE_S)
        connection.socket.transport.abort()
        assert done


def record_links(monkeypatch: pytest.MonkeyPatch) -> list[WebSocketLink]:
    links: list[WebSocketLink] = []
    made = WebSocketLink.__init__

    def recorded(link: WebSocketLink, connection: Any) -> None:
        links.append(link)
        made(link, connection)

    monkeypatch.setattr(WebSocketLink, "__init__", recorded)
    return links


def stops_reading(connection: Any, link: WebSocketLink) -> None:
    """Small buffers stand for a long way: on loopback the kernel takes megabytes."""
    shrink(link._connection.transport, socket.SO_SNDBUF)
    shrink(connection.socket.transport, socket.SO_RCVBUF)
    connection.socket.transport.pause_reading()


def shrink(transport: asyncio.BaseTransport, buffer: int) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, buffer, 4096)


def flood(client: Heliograph) -> None:
    """More receipts than the buffers hold, as after an outage of the log."""
    assert client._engine is not None
    session = client._engine._session
    assert session is not None
    for number in range(1_000):
        session.receipts.add(Answered(1, Cursor(1, 1, f"v{number}"), "rejected", "r" * 2_000), now_us=0, jitter_us=0)
    client._engine.connection.hurry()


# --- answers without end ------------------------------------------------------------------------------------------------------------------


class Drip:
    """Answers requests for ``path`` with a body that never ends: a byte now and then, or as fast as it is read."""

    def __init__(self, server: Any, path: str, part: bytes, pause_s: float) -> None:
        self.asked = 0
        self._path, self._part, self._pause_s = path, part, pause_s
        self._behind = server._serve_http
        server._serve_http = self.serve

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if self._path.encode() not in head.splitlines()[0]:
            await self._behind(Again(head, reader), writer)
            return
        self.asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(self._part)
                await writer.drain()
                await asyncio.sleep(self._pause_s)
        writer.close()


DRIPS = pytest.mark.parametrize(("part", "pause_s"), [(b" ", 0.05), (b" " * 65_536, 0.0)], ids=["slow", "fast"])


def limit(monkeypatch: pytest.MonkeyPatch, pause_s: float) -> None:
    """Either the time or the size is what ends it."""
    monkeypatch.setattr("heliograph.client._discovery.ANSWER_S", 0.2 if pause_s else 600.0)
    monkeypatch.setattr("heliograph.client._transport_polling.POLL_S", 0.2 if pause_s else 600.0)
    monkeypatch.setattr("heliograph.client._transport_polling.POST_S", 0.2 if pause_s else 600.0)
    monkeypatch.setattr("heliograph.client._transport_polling.MAX_POLL_BYTES", 1024 * 1024)


@DRIPS
async def test_endpoints_without_end_keep_nobody_from_the_stream(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, part: bytes, pause_s: float
) -> None:
    async with connect() as client:
        first = await server.connection(1)
        limit(monkeypatch, pause_s)
        drip = Drip(server, "/v1/endpoints", part, pause_s)
        await restart_http(server)
        client._engine._reach.doubt()
        await first.close(1001)
        await server.connection(2)
        assert drip.asked > 0


@DRIPS
async def test_a_poll_without_end_is_asked_again(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, part: bytes, pause_s: float
) -> None:
    limit(monkeypatch, pause_s)
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    drip = Drip(server, "/v1/bundles", part, pause_s)
    await restart_http(server)
    client = connect(start_timeout=DEADLINE_S)
    starting = asyncio.create_task(client.start())
    await eventually(lambda: drip.asked > 1 or starting.done())
    drip._path = "/nowhere"
    await starting
    assert client.config("search")["pages"] == 10
    await client.close()


@DRIPS
async def test_an_answer_without_end_to_receipts_leaves_them_owed(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, part: bytes, pause_s: float
) -> None:
    monkeypatch.setattr("heliograph.client._receipts.RESEND_US", 10_000)
    limit(monkeypatch, pause_s)
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    drip = Drip(server, "/v1/receipts", part, pause_s)
    await restart_http(server)
    async with connect() as client:
        await eventually(lambda: drip.asked > 1)
        assert client.status.receipts_pending == 1
        drip._path = "/nowhere"
        assert (await server.receipt(2)).state == "applied"


async def restart_http(server: Any) -> None:
    """So that it serves as it was told to since it began."""
    server._http.close()
    server._http = await asyncio.start_server(server._serve_http, "127.0.0.1", server.http_port)
