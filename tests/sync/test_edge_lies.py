"""A parent that lies: what it alters is refused by the edge, which serves on what it had, and by any client that it is shown to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.sync.conftest import DEADLINE_S, World
from tests.sync.edges import edge_below
from tests.sync.test_node import metric
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from heliograph.core import frames
from heliograph.core.errors import Refused

Alter = Callable[[dict[str, Any]], dict[str, Any]]


def honest(frame: dict[str, Any]) -> dict[str, Any]:
    return frame


def another_document(frame: dict[str, Any]) -> dict[str, Any]:
    for change in frame.get("changes", ()):
        change["document"] = '{"text":"forged"}'
    return frame


def another_signature(frame: dict[str, Any]) -> dict[str, Any]:
    if "version" in frame:
        for each in frame["version"]["signatures"]:
            each["sig"] = "A" * 86 + "=="
    return frame


def another_version(frame: dict[str, Any]) -> dict[str, Any]:
    if "version" in frame:
        frame["version"]["payload"] = frame["version"]["payload"].replace('"kind":"publish"', '"kind":"rollback"')
    return frame


def no_changes(frame: dict[str, Any]) -> dict[str, Any]:
    return frame | {"changes": []} if "changes" in frame else frame


@dataclass
class Liar:
    """Between an edge and its parent. Passes on what it hears, altered by ``alter``."""

    world: World
    alter: Alter = honest
    told: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    http_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    async def stream(self, below: ServerConnection) -> None:
        headers = {"Authorization": below.request.headers["Authorization"]}  # type: ignore[union-attr]
        async with connect(
            self.world.stream, subprotocols=[frames.SUBPROTOCOL], additional_headers=headers, compression=None
        ) as above:
            up = asyncio.create_task(self.up(below, above))
            with suppress(ConnectionClosed):
                async for text in above:
                    frame = json.loads(text)
                    altered = self.alter(json.loads(text))
                    await below.send(json.dumps(altered))
                    if altered != frame:
                        self.told.set()
            up.cancel()

    async def up(self, below: Any, above: Any) -> None:
        with suppress(ConnectionClosed):
            async for text in below:
                await above.send(text, text=True)
        await above.close()

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
        body = (await self.world.api.get(path)).json()
        if path == "/v1/endpoints":
            body["stream"] = f"ws://127.0.0.1:{self.port}/v1/stream"
        data = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def lying(world: World) -> AsyncIterator[Liar]:
    liar = Liar(world)
    async with serve(liar.stream, "127.0.0.1", 0, subprotocols=[frames.SUBPROTOCOL], compression=None) as sockets:
        liar.port = sockets.sockets[0].getsockname()[1]
        async with await asyncio.start_server(liar.http, "127.0.0.1", 0) as http:
            liar.http_port = http.sockets[0].getsockname()[1]
            yield liar


@pytest.mark.parametrize("alter", [another_document, another_signature, another_version, no_changes])
async def test_what_a_parent_altered_is_refused_by_the_edge_and_by_clients(world, tmp_path, alter):
    await world.publish(banner={"text": "true"})
    async with (
        lying(world) as liar,
        edge_below(world, liar.url, tmp_path / "office") as edge,
        edge.world.client() as client,
        replace(world, stream=f"ws://127.0.0.1:{liar.port}/v1/stream").client() as shown_to,
    ):
        await client.until(2)
        await shown_to.until(2)
        liar.alter = alter
        await world.publish(banner={"text": "also true"})
        with pytest.raises(Refused):
            await shown_to.until(3)
        async with asyncio.timeout(DEADLINE_S):
            await liar.told.wait()
            while not await metric(edge.world, "heliograph_edge_refused_total"):
                await asyncio.sleep(0.02)
        [shown] = (await edge.ask("/v1/edge"))["environments"]
        assert (shown["number"], shown["confirmed"]) == (2, False)
        assert client.configs == {"banner": {"text": "true"}}
        async with edge.world.client() as late:  # what was verified goes on being served
            await late.until(2)
            assert late.configs == {"banner": {"text": "true"}}
        liar.alter = honest
        await client.until(3)  # a snapshot was asked for
        assert client.configs == {"banner": {"text": "also true"}}
        assert client.kinds.count("SnapshotFrame") == 1
        await edge.until(lambda status: status["environments"][0]["confirmed"])


async def test_a_parent_with_keys_of_its_own_is_not_believed(world, tmp_path):
    """The anchor in the edge's token tells."""
    async with lying(world) as liar:
        other = (await world.api.get("/v1/trust")).json()
        other["payload"] = other["payload"][:-8] + "AAAA" + other["payload"][-4:]
        asked = asyncio.Event()

        async def get(path: str) -> Any:
            if path == "/v1/trust":
                asked.set()
                return Answer(other)
            return await world.api.get(path)

        liar.world = replace(world, api=Api(get))  # type: ignore[arg-type]
        async with edge_below(world, liar.url, tmp_path / "office", start=False) as edge:
            await edge.service.start(until_ready=False)
            async with asyncio.timeout(DEADLINE_S):
                await asked.wait()
                while "untrusted-root" not in await impairment(edge):
                    await asyncio.sleep(0.02)
            assert not edge.service.ready.is_set()


@dataclass
class Answer:
    body: Any

    def json(self) -> Any:
        return self.body


@dataclass
class Api:
    get: Any
    base_url: str = ""


async def impairment(edge: Any) -> str:
    try:
        return (await edge.world.bundles.get("/readyz")).text
    except OSError:
        return ""
