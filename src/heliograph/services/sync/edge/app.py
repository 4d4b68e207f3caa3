"""The wiring of one edge.

Start: token and disk, HTTP (alive, not ready), the uplink; ready with the stream once the parent was met, or the disk had something to serve. Stop:
not ready, listener closed, clients asked to come back elsewhere, last receipts relayed, copies written.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
from dataclasses import dataclass

import structlog

from heliograph.access.introspect import Introspector
from heliograph.core.errors import InvalidRequest
from heliograph.runtime.http import make_app, serve_http
from heliograph.runtime.leaving import Leave
from heliograph.services.sync.edge import api
from heliograph.services.sync.edge.copies import Copies
from heliograph.services.sync.edge.parent import Parent
from heliograph.services.sync.edge.receipts import EdgeOutbox
from heliograph.services.sync.edge.settings import EdgeSettings
from heliograph.services.sync.edge.tokens import EdgeTokens
from heliograph.services.sync.edge.uplink import Uplink
from heliograph.services.sync.edge.upstream import Upstream
from heliograph.services.sync.front import Front, certificate_of
from heliograph.services.sync.hub import Hub
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Everything one edge is made of."""

    settings: EdgeSettings
    metrics: Metrics
    readiness: Readiness
    copies: Copies
    parent: Parent
    tokens: EdgeTokens
    uplink: Uplink
    outbox: EdgeOutbox
    hub: Hub
    front: Front
    upstream: Upstream

    async def close(self) -> None:
        await self.front.stream.close()
        await self.upstream.close()
        await self.tokens.close()
        await self.parent.close()
        await self.copies.flush()


async def serve(settings: EdgeSettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Opens everything, sets `ready` when it can serve, returns after a drain once `stop` is set, raises when it cannot go on."""
    edge = await _open(settings)
    app = make_app("edge", metrics=edge.metrics, readiness=edge.readiness)
    app.include_router(api.make_router(settings, edge.hub.node, edge.parent, edge.uplink, edge.upstream, edge.tokens))
    front = edge.front.over_http(app)
    drained = asyncio.Event()
    leave = Leave.of(settings, edge.readiness, meanwhile=drained.wait)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(
                serve_http(
                    front,
                    settings.listen_host,
                    settings.sync_http_port,
                    stop=stop,
                    leave=leave,
                    name="sync-http",
                    reuse_port=settings.reuse_port,
                    tls=edge.front.tls,
                )
            )
            await _work_until(edge, ready, stop, leave)
            drained.set()
    finally:
        await edge.close()


async def _open(settings: EdgeSettings) -> Edge:
    if not settings.parent_url:
        raise InvalidRequest("an edge needs a parent: set HELIOGRAPH_PARENT_URL, or use --parent")
    metrics, readiness = Metrics(), Readiness("content", "stream")
    readiness.impaired("parent", "not met yet")
    token = await asyncio.to_thread(settings.read_token)
    certificate = await certificate_of(settings, metrics)
    copies = Copies(settings.data_dir / "edge")
    await asyncio.to_thread(copies.open)
    parent = Parent(settings.parent_url, token, copies)
    node = f"{settings.node}-{secrets.token_hex(4)}"
    uplink = Uplink(settings, node, parent, metrics, readiness)
    introspector = Introspector("", lambda: parent.token.text, client=parent.http)
    tokens = EdgeTokens(introspector, copies, lambda: uplink.connected, settings.edge_tokens_kept_s)
    outbox = EdgeOutbox(uplink, metrics, lambda: uplink.connected)
    hub = Hub(node, settings, outbox, metrics)

    def revoked(ids: tuple[str, ...]) -> None:
        tokens.forget(ids)
        hub.revoked(ids)

    # receipts may wait here for days: no reason to turn clients away
    front = Front.of(hub, outbox, tokens, settings, metrics, secret=token.text, backlog=lambda: 0, certificate=certificate)
    return Edge(
        settings=settings,
        metrics=metrics,
        readiness=readiness,
        copies=copies,
        parent=parent,
        tokens=tokens,
        uplink=uplink,
        outbox=outbox,
        hub=hub,
        front=front,
        upstream=Upstream(settings, hub, uplink, parent, copies, metrics, revoked=revoked),
    )


async def _work_until(edge: Edge, ready: asyncio.Event, stop: asyncio.Event, leave: Leave) -> None:
    await asyncio.to_thread(_recall, edge)
    loaded = await edge.upstream.load()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(each)
                for each in (
                    edge.uplink.run(),
                    edge.upstream.run(),
                    edge.copies.run(),
                    *edge.front.work(stop),
                )
            ]
            if loaded or await _met(edge, stop):
                await _serve_until(edge, ready, stop, leave)
            await edge.outbox.flush(edge.settings.drain_s)  # while all goes on: what is on its way is told once
            for task in tasks:
                task.cancel()
    finally:
        log.info("edge_stopping", receipts_waiting=edge.outbox.waiting)


def _recall(edge: Edge) -> None:
    edge.parent.recall()
    edge.tokens.recall()


async def _met(edge: Edge, stop: asyncio.Event) -> bool:
    """With nothing on disk there is nothing to serve before the parent was there once."""
    waits = [asyncio.create_task(edge.uplink.met_once()), asyncio.create_task(stop.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    return not stop.is_set()


async def _serve_until(edge: Edge, ready: asyncio.Event, stop: asyncio.Event, leave: Leave) -> None:
    edge.hub.warm = True
    edge.readiness.met("content")
    gc.collect()
    gc.freeze()  # what was loaded stays; later collections need not walk it
    server = await edge.front.listen()
    edge.readiness.met("stream")
    ready.set()
    log.info("edge_ready", node=edge.hub.node, environments=sum(1 for _ in edge.hub.environments()))
    await stop.wait()
    await leave.turn_away()
    server.close()
    await edge.front.drain()
