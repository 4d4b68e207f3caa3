"""A page in a real browser: `EventSource` and `WebSocket`, from another origin, with a ticket in the address."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.postgres import require
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE

from heliograph.runtime.children import DEVNULL, start

PAGE = """<!doctype html><title>test</title><script>
const told = (source, kind, id) => fetch("/told", {method: "POST", body: JSON.stringify({source, kind, id})});
const events = new EventSource("%(events)s");
for (const kind of ["welcome", "snapshot", "delta", "advance", "current"])
  events.addEventListener(kind, (event) => told("events", kind, event.lastEventId));
events.onerror = () => told("events", events.readyState === EventSource.CLOSED ? "over" : "broken", "");
const socket = new WebSocket("%(stream)s", ["heliograph.v1"]);
socket.onopen = () => socket.send(JSON.stringify({
  type: "hello", instance: "page", incarnation: 1, fingerprint: {sdk: "page", sdk_version: "1"},
  subscriptions: [{id: 1, namespace: "%(namespace)s", environment: "%(environment)s", view: [""], have: null}],
}));
socket.onmessage = (message) => told("socket", JSON.parse(message.data).type, "");
socket.onclose = (event) => told("socket", "closed", String(event.code));
</script>"""
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


class Browser:
    """One page, and what it tells."""

    def __init__(self, page: str) -> None:
        self._page = page.encode()
        self._told: dict[str, asyncio.Queue[tuple[str, str]]] = {"events": asyncio.Queue(), "socket": asyncio.Queue()}

    async def next(self, source: str) -> tuple[str, str]:
        return await asyncio.wait_for(self._told[source].get(), DEADLINE_S)

    async def until(self, source: str, *kinds: str) -> tuple[str, str]:
        while (told := await self.next(source))[0] not in kinds:
            pass
        return told

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
            body = await reader.readexactly(length)
            if body:
                said = json.loads(body)
                self._told[said["source"]].put_nowait((said["kind"], said["id"]))
            answer = self._page if head.startswith(b"GET / ") else b""
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def showing(page: str, profile: Path) -> AsyncIterator[Browser]:
    command = shutil.which("chromium")
    require(command, "Chromium is not installed (make setup)")
    assert command
    browser = Browser(page)
    server = await asyncio.start_server(browser.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    child = await start(
        command, *QUIET, f"--user-data-dir={profile}", url, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
    )
    try:
        yield browser
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        server.close()
        await server.wait_closed()


@pytest.mark.timeout(5 * DEADLINE_S)
async def test_a_page_follows_an_environment_and_comes_back_where_it_was(world: Any, tmp_path: Path) -> None:
    await world.publish(banner={"text": "a"})
    await world.synced(2)
    ticket = (await world.bundles.post("/v1/tickets")).raise_for_status().json()["ticket"]
    bundles = str(world.bundles.base_url).rstrip("/")
    addresses = {
        "events": f"{bundles}/v1/events/{NAMESPACE}/{ENVIRONMENT}?ticket={ticket}",
        "stream": f"{world.stream}?ticket={ticket}",
        "namespace": NAMESPACE,
        "environment": ENVIRONMENT,
    }
    async with showing(PAGE % addresses, tmp_path / "profile") as browser:
        _, cursor = await browser.until("events", "snapshot")
        assert cursor.startswith("1.2.")
        assert await browser.next("socket") == ("welcome", "")
        assert await browser.next("socket") == ("snapshot", "")
        await world.publish(banner={"text": "b"})
        _, cursor = await browser.until("events", "delta")
        assert cursor.startswith("1.3.")
        assert (await browser.until("socket", "delta"))[0] == "delta"

        await world.sync.end()
        assert (await browser.until("socket", "closed"))[1] != "1006"  # told why, not cut off
        assert (await browser.until("events", "broken", "over"))[0] == "broken"
        await world.sync.start()
        kind, _ = await browser.until("events", "snapshot", "current")
        assert kind == "current"  # the browser said by itself where it was
        await world.publish(banner={"text": "c"})
        _, cursor = await browser.until("events", "delta")
        assert cursor.startswith("1.4.")
