"""What stands between a client and its server answers, forbids, redirects, swallows and hangs: the client goes on, and believes none of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from heliograph.client import Heliograph, Retry

DEADLINE_S = 20.0
QUICK = Retry(first_s=0.01, cap_s=0.05)


@pytest.fixture
def connect(server: Any, tmp_path: Path) -> Callable[..., Heliograph]:
    def make(**more: Any) -> Heliograph:
        told = {"namespace": "shop", "environment": "production", "cache_dir": tmp_path, "retry": QUICK, **more}
        return Heliograph(server.url, token=server.authority.token(), **told)

    return make


async def eventually(reached: Callable[[], Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while not (found := reached()):
            await asyncio.sleep(0.005)
    return found


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
    await server.stop()
    await server.start()
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
