"""Edges below a world: started, stopped and started again; clients of one speak to it as they do to a sync node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
from contracts.authority import Authority
from pydantic import SecretStr
from tests.conftest import free_port
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, Service, World

from heliograph.core import frames
from heliograph.core.digest import unspell
from heliograph.core.errors import HeliographError, NotFound
from heliograph.core.history import leaf
from heliograph.core.records import Signed
from heliograph.services.sync.edge import app, upstream
from heliograph.services.sync.edge.copies import Copies
from heliograph.services.sync.edge.settings import EdgeSettings
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.feed import EVERYTHING
from heliograph.telemetry.metrics import Metrics

SCOPE = ({"namespace": NAMESPACE, "environment": ENVIRONMENT},)


async def edge_token(world: World, name: str = "office", scopes: tuple[dict[str, str], ...] = SCOPE) -> dict[str, Any]:
    made = await world.api.post("/v1/tokens", json={"kind": "edge", "name": name, "scopes": scopes})
    return dict(made.raise_for_status().json())


@dataclass
class Edge:
    """``world``: the same environment, as this edge's clients see it."""

    service: Service
    settings: EdgeSettings
    token: dict[str, Any]
    world: World

    @property
    def url(self) -> str:
        return self.settings.bundles_url

    @property
    def folder(self) -> Path:
        return self.settings.data_dir / "edge"

    async def ask(self, path: str) -> Any:
        return (await self.world.bundles.get(path)).raise_for_status().json()

    async def until(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Until its own word of itself is so."""
        async with asyncio.timeout(DEADLINE_S):
            while not what(status := await self.ask("/v1/edge")):
                await asyncio.sleep(0.02)
        return dict(status)

    async def until_connected(self) -> None:
        await self.until(lambda status: status["connected"])

    async def until_away(self) -> None:
        await self.until(lambda status: not status["connected"])


@asynccontextmanager
async def edge_below(
    world: World, url: str, folder: Path, *, token: dict[str, Any] | None = None, start: bool = True, **more: Any
) -> AsyncIterator[Edge]:
    token = token or await edge_token(world)
    settings = EdgeSettings(
        parent_url=url,
        edge_token=SecretStr(token["token"]),
        sync_port=free_port(),
        sync_http_port=free_port(),
        data_dir=folder,
        drain_s=1.0,
        **{"heartbeat_s": 20.0, "edge_reconnect_cap_s": 0.2, "node": folder.name, **more},
    )
    headers = {"Authorization": f"Bearer {world.tokens['client']}"}
    async with httpx.AsyncClient(base_url=settings.bundles_url, headers=headers, timeout=DEADLINE_S) as bundles:
        service = Service(app.serve, settings)
        edge = Edge(service, settings, token, replace(world, sync=service, bundles=bundles, stream=settings.stream_url))
        if start:
            await service.start()
        try:
            yield edge
        finally:
            await service.end()


def registry_of(world: World) -> str:
    return str(world.api.base_url)


def at_a_node(authority: Authority) -> Environment:
    """The environment as a sync node has it that has just read it from the registry."""
    environment = Environment(NAMESPACE, ENVIRONMENT, past_versions=256, frame_cache_bytes=1 << 20)
    *before, latest = authority.commits
    for each in before:
        environment.note_recovery(each.signed)
    environment.replace(authority.head(safe=1), latest.signed, dict(latest.content), [each.id for each in before])
    return environment


class Alone:
    """What an edge follows, without sockets: a test says what its parent says. ``sent``: to the parent; ``told``: why whoever asks is not served."""

    def __init__(self, folder: Path, authority: Authority, *, idle_s: float = 1e9) -> None:
        self.authority = authority
        self.sent: list[Any] = []
        self.told: list[HeliographError] = []
        self.copies = Copies(folder)
        self.metrics = Metrics()
        settings = SimpleNamespace(held=(), edge_idle_s=idle_s, past_versions=256, frame_cache_bytes=1 << 20)
        self.uplink = SimpleNamespace(connected=True, send=self.sent.append, away_s=lambda: 0.0, reconnect_soon=lambda: None)
        self.parent = SimpleNamespace(trust=authority.trust, leaves=self.leaves, recoveries=self.recoveries)
        hub: Any = SimpleNamespace(
            room=lambda *_: None,
            add_environment=lambda _: None,
            moved=lambda *_: None,
            report_everybody=lambda: None,
            tell_edges=lambda _: None,
            no_environment=lambda _, __, detail: self.told.append(NotFound(detail)),
            refuse_environment=lambda _, __, error: self.told.append(error),
        )
        more: Any = (self.uplink, self.parent, self.copies, self.metrics)
        self.upstream = upstream.Upstream(settings, hub, *more, revoked=lambda _: None)  # type: ignore[arg-type]
        self.seek = hub.look_for

    async def leaves(self, namespace: str, environment: str, after: int, upto: int) -> list[bytes]:
        return [leaf(unspell(each.id)) for each in self.authority.commits[after:upto]]

    async def recoveries(self, namespace: str, environment: str) -> list[Signed]:
        return [each.signed for each in self.authority.commits if each.version.kind == "recover"]

    @property
    def channel(self) -> upstream.Channel:
        return self.upstream._channel((NAMESPACE, ENVIRONMENT))

    async def shown(self, parent: Environment) -> Environment:
        """Once it serves what its parent has for it."""
        channel = self.channel
        for text in parent.frames(channel.id, EVERYTHING, channel.replica.cursor if channel.replica else None):
            await self.upstream.take(msgspec.json.decode(text, type=frames.FromServer))
        async with asyncio.timeout(DEADLINE_S):
            while channel.environment is None or channel.environment.cursor != parent.cursor:
                await asyncio.sleep(0.01)
        return channel.environment


@asynccontextmanager
async def alone(folder: Path, authority: Authority, **more: Any) -> AsyncIterator[Alone]:
    one = Alone(folder, authority, **more)
    await asyncio.to_thread(one.copies.open)
    try:
        yield one
    finally:
        await one.upstream.close()
        await one.copies.flush()
