"""The wiring of one sync node.

Start: HTTP (alive, not ready), log and registry, content of every environment, stream, ready. Stop: not ready, listener closed, clients sent
elsewhere (`drain`), last receipts appended; HTTP is served until the stream has nobody left.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
from contextlib import nullcontext
from dataclasses import dataclass, field

import structlog

from heliograph.access.introspect import Introspector
from heliograph.core.errors import HeliographError
from heliograph.eventlog import dead_letters
from heliograph.eventlog.open import open_log
from heliograph.eventlog.ports import Log, Record
from heliograph.eventlog.ports import Stream as LogStream
from heliograph.runtime.http import make_app, serve_http
from heliograph.runtime.leaving import Leave
from heliograph.runtime.listening import handed_over
from heliograph.runtime.place import Place, own_place
from heliograph.runtime.postgres import Pool, open_pool
from heliograph.runtime.siblings import Siblings
from heliograph.runtime.waiting import first_of
from heliograph.services.sync.follow import Follower
from heliograph.services.sync.front import Front, certificate_of
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.registry import Registry
from heliograph.services.sync.settings import SyncSettings
from heliograph.telemetry.health import OwnHealth, Readiness
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything one node is made of."""

    settings: SyncSettings
    metrics: Metrics
    readiness: Readiness
    events: Log
    letters: Pool | None
    registry: Registry
    introspector: Introspector
    outbox: Outbox
    hub: Hub
    front: Front
    follower: Follower

    async def close(self) -> None:
        await self.front.stream.close()
        await self.follower.close()
        await self.introspector.close()
        await self.registry.close()
        await self.events.close()
        if self.letters:
            await self.letters.close()


async def serve(settings: SyncSettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Opens everything, sets `ready` when it can serve, returns after a drain once `stop` is set, raises when it cannot go on."""
    place = own_place()
    node = await _open(settings, place)
    http = _Http()
    leave = Leave.of(settings, node.readiness, meanwhile=http.drained.wait)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_serve_http(node, place, http, stop, leave))
            await _work_until(node, http, ready, stop, leave)
            http.drained.set()
    finally:
        await node.close()


@dataclass(frozen=True, slots=True)
class _Http:
    """When HTTP may answer, when it does, and when the stream has nobody left."""

    warm: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    drained: asyncio.Event = field(default_factory=asyncio.Event)


async def _serve_http(node: Node, place: Place | None, http: _Http, stop: asyncio.Event, leave: Leave) -> None:
    """At once, so that it can be asked why it is not ready yet; in the place of another worker, or on a socket that an older process may still
    serve, only when it can answer as well as that one."""
    settings, own = node.settings, OwnHealth(node.metrics, node.readiness)
    siblings = Siblings(place, own) if place else None
    if place:
        node.metrics.worker_starts.set(place.start)
    beside_another = place.replaces if place else "sync-http" in handed_over()
    if beside_another:
        await first_of(http.warm, stop)
    app = make_app("sync", metrics=node.metrics, readiness=node.readiness, health=siblings)
    async with siblings.answering() if siblings else nullcontext():
        await serve_http(
            node.front.over_http(app),
            settings.listen_host,
            settings.sync_http_port,
            stop=stop,
            on_started=http.started.set,
            leave=leave,
            name="sync-http",
            reuse_port=settings.reuse_port,
            tls=node.front.tls,
        )


async def _open(settings: SyncSettings, place: Place | None) -> Node:
    token = await asyncio.to_thread(settings.service_token_text)
    database_url = settings.database_url.get_secret_value()
    metrics = Metrics()
    certificate = await certificate_of(settings, metrics)
    events = await open_log(settings, "heliograph sync", database_url=database_url)
    letters = await open_pool(database_url, "heliograph sync dead letters", size=1) if database_url else None
    registry = Registry(settings.registry_url, token)
    introspector = Introspector(settings.registry_url, token)
    outbox = Outbox(events.appender(LogStream.RECEIPTS), metrics)
    hub = Hub(_node_id(settings.node, place), settings, outbox, metrics)

    def revoked(tokens: tuple[str, ...]) -> None:
        introspector.forget(tokens)
        hub.revoked(tokens)

    front = Front.of(
        hub, outbox, introspector, settings, metrics, secret=token, backlog=lambda: outbox.waiting, certificate=certificate
    )
    reader = events.reader(LogStream.VERSIONS)
    return Node(
        settings=settings,
        metrics=metrics,
        readiness=Readiness("content", "stream"),
        events=events,
        letters=letters,
        registry=registry,
        introspector=introspector,
        outbox=outbox,
        hub=hub,
        front=front,
        follower=Follower(reader, registry, hub, settings, metrics, letters=_Letters(letters, metrics), revoked=revoked),
    )


def _node_id(name: str, place: Place | None) -> str:
    """A name of its own for each start of each worker: the ledger knows them apart."""
    worker = f"-{place.number}" if place else ""
    return f"{name}{worker}-{secrets.token_hex(4)}"


class _Letters:
    """Into the table of dead letters, or, where this node has no database, into the log alone. Implements `follow.Letters`."""

    def __init__(self, pool: Pool | None, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics

    async def set_aside(self, record: Record, reason: str, attempts: int) -> None:
        self._metrics.dead_letters.labels(str(record.stream)).inc()
        try:
            if self._pool is not None:
                await dead_letters.set_aside(self._pool, record, consumer="sync", reason=reason, attempts=attempts)
                return
            log.error("dead_letter_without_a_table", position=record.position, shard=record.shard, reason=reason)
        except HeliographError as error:
            log.error("dead_letter_not_stored", error=error.code, position=record.position, shard=record.shard)

    async def failed_again(self, letters: tuple[int, ...], reason: str) -> None:
        try:
            if self._pool is not None:
                for stream in await dead_letters.failed_again(self._pool, letters, reason=reason):
                    self._metrics.dead_letters_failed_again.labels(stream).inc()
                return
            log.error("dead_letter_failed_again", letters=letters, reason=reason)
        except HeliographError as error:
            log.error("dead_letter_not_stored", error=error.code, letters=letters)


async def _work_until(node: Node, http: _Http, ready: asyncio.Event, stop: asyncio.Event, leave: Leave) -> None:
    loading = asyncio.create_task(node.follower.load())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():  # told to stop while it still loads
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        return
    stopping.cancel()
    marks = loading.result()
    node.hub.warm = True
    node.readiness.met("content")
    gc.collect()
    gc.freeze()  # what was loaded stays; later collections need not walk it
    http.warm.set()
    await http.started.wait()
    server = await node.front.listen()
    node.readiness.met("stream")
    ready.set()
    log.info("sync_ready", node=node.hub.node, environments=sum(1 for _ in node.hub.environments()))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in (node.follower.run(marks), *node.front.work(stop))]
            await stop.wait()
            await leave.turn_away()
            server.close()
            await node.front.drain()
            await node.outbox.flush(node.settings.drain_s)
            for task in tasks:
                task.cancel()
    finally:
        await node.outbox.flush(node.settings.drain_s)
