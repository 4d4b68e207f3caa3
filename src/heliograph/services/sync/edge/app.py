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
from heliograph.services.sync import feed_api
from heliograph.services.sync.api import make_router
from heliograph.services.sync.edge import api
from heliograph.services.sync.edge.copies import Copies
from heliograph.services.sync.edge.parent import Parent
from heliograph.services.sync.edge.receipts import EdgeOutbox
from heliograph.services.sync.edge.settings import EdgeSettings
from heliograph.services.sync.edge.tokens import EdgeTokens
from heliograph.services.sync.edge.uplink import Uplink
from heliograph.services.sync.edge.upstream import Upstream
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.stream import Stream
from heliograph.telemetry import loop_lag
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

MAX_DRAIN_S = 5.0


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
    stream: Stream
    upstream: Upstream

    async def close(self) -> None:
        await self.stream.close()
        await self.upstream.close()
        await self.tokens.close()
        await self.parent.close()
        await self.copies.flush()


async def serve(settings: EdgeSettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Opens everything, sets `ready` when it can serve, returns after a drain once `stop` is set, raises when it cannot go on."""
    edge = await _open(settings)
    app = make_app("edge", metrics=edge.metrics, readiness=edge.readiness)
    app.include_router(make_router(edge.hub, edge.outbox, edge.tokens, edge.metrics))
    app.include_router(feed_api.make_router(edge.hub, edge.tokens))
    app.include_router(api.make_router(settings, edge.hub.node, edge.parent, edge.uplink, edge.upstream, edge.tokens))
    http_stop = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(
                serve_http(app, settings.listen_host, settings.sync_http_port, stop=http_stop, drain_s=settings.drain_s)
            )
            await _work_until(edge, ready, stop)
            http_stop.set()
    finally:
        await edge.close()


async def _open(settings: EdgeSettings) -> Edge:
    if not settings.parent_url:
        raise InvalidRequest("an edge needs a parent: set HELIOGRAPH_PARENT_URL, or use --parent")
    metrics, readiness = Metrics(), Readiness("content", "stream")
    readiness.impaired("parent", "not met yet")
    token = await asyncio.to_thread(settings.read_token)
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

    stream = Stream(hub, tokens, settings)
    hub.check_renewal = stream.renew
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
        stream=stream,
        upstream=Upstream(settings, hub, uplink, parent, copies, metrics, revoked=revoked),
    )


async def _work_until(edge: Edge, ready: asyncio.Event, stop: asyncio.Event) -> None:
    await asyncio.to_thread(_recall, edge)
    loaded = await edge.upstream.load()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(each)
                for each in (
                    edge.uplink.run(),
                    edge.upstream.run(),
                    edge.outbox.run(),
                    edge.copies.run(),
                    edge.hub.run(),
                    edge.stream.recheck(),
                    loop_lag.run(edge.metrics, stop),
                )
            ]
            if loaded or await _met(edge, stop):
                await _serve_until(edge, ready, stop)
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks[1:], return_exceptions=True)
            await edge.outbox.flush(edge.settings.drain_s)  # over the uplink, which goes last
            tasks[0].cancel()
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


async def _serve_until(edge: Edge, ready: asyncio.Event, stop: asyncio.Event) -> None:
    edge.hub.warm = True
    edge.readiness.met("content")
    gc.collect()
    gc.freeze()  # what was loaded stays; later collections need not walk it
    server = await edge.stream.serve(edge.settings.listen_host, edge.settings.sync_port)
    edge.readiness.met("stream")
    ready.set()
    log.info("edge_ready", node=edge.hub.node, environments=sum(1 for _ in edge.hub.environments()))
    await stop.wait()
    edge.readiness.unmet("drain", "stopping")
    server.close()
    await edge.hub.drain(min(edge.settings.drain_s, MAX_DRAIN_S))
