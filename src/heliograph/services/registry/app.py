"""Wiring of the registry's process."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack

import asyncpg
import structlog
from fastapi import FastAPI

from heliograph.access.store import TokenStore
from heliograph.core.errors import InvalidRequest, Unavailable
from heliograph.eventlog.postgres import shards_of
from heliograph.eventlog.wake import Bell
from heliograph.keys.live import LiveKeys
from heliograph.keys.local import LocalKeys
from heliograph.runtime.clock import now_us
from heliograph.runtime.http import make_app, serve_http
from heliograph.runtime.leaving import Leave
from heliograph.runtime.migrate import refuse_other_shards
from heliograph.runtime.postgres import Pool, open_pool
from heliograph.services.registry.answers import Endpoints
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.routes import add_routes
from heliograph.services.registry.branch import Branch
from heliograph.services.registry.changes import MAX_VERSION_BODY
from heliograph.services.registry.commit import Commits, Signers
from heliograph.services.registry.declarations import Declarations
from heliograph.services.registry.deletion import Deletion
from heliograph.services.registry.erasing import Eraser
from heliograph.services.registry.erasure import Erasure
from heliograph.services.registry.evolution import Evolution
from heliograph.services.registry.labels import Labels
from heliograph.services.registry.letters import Letters
from heliograph.services.registry.lookback import Lookback
from heliograph.services.registry.merging import Configs
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.past import Past
from heliograph.services.registry.patching import Patching
from heliograph.services.registry.promote import Promote
from heliograph.services.registry.promotion import MAX_BODY
from heliograph.services.registry.propagations import Propagations
from heliograph.services.registry.publish import Publish
from heliograph.services.registry.purge import Forgetting, Purges
from heliograph.services.registry.reading import Reading
from heliograph.services.registry.rebase import Rebase
from heliograph.services.registry.remains import Keeping
from heliograph.services.registry.renew import Renewal, Upkeep
from heliograph.services.registry.rollback import Rollback
from heliograph.services.registry.settings import RegistrySettings
from heliograph.services.registry.store import Store
from heliograph.services.registry.three_way import ThreeWay
from heliograph.services.registry.tokens import TokenDesk
from heliograph.services.registry.validation import Validation
from heliograph.telemetry import loop_lag
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

LARGE = {"/versions": MAX_VERSION_BODY, "/schemas-check": MAX_VERSION_BODY, "/promote": MAX_BODY}
DATABASE_CHECK_S = 5.0
WARM_CONNECTIONS = 3
"""Kept open and prepared: a token's look-up, a commit and the bell at the same time."""


async def serve(settings: RegistrySettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Sets ``ready`` when it takes requests; returns after a clean drain once ``stop`` is set.

    Raises Corrupt when there is a history without its keys, Unavailable when the database is not there or not migrated.
    """
    metrics, readiness = Metrics(), Readiness("http", "database")
    async with AsyncExitStack() as opened:
        url = settings.database_url.get_secret_value()
        pool = await open_pool(url, "heliograph registry", size=settings.database_pool, timeout_s=settings.database_timeout_s)
        opened.push_async_callback(pool.close)
        store = Store(pool, timeout_s=settings.database_timeout_s + 5, shards=await _shards(settings, pool))
        keys = await _keys(settings, store)
        tokens = TokenStore(pool, keys.now.anchor)
        await _first_start(settings, tokens)
        validation = Validation(processes=settings.validation_processes, limit_s=settings.validation_s)
        opened.push_async_callback(validation.close)
        await validation.open()
        propagations = await _propagations(settings)
        opened.push_async_callback(propagations.close)
        bell = Bell(pool)
        upkeep, context = wire(settings, pool, store, keys, tokens, validation, propagations, bell, metrics)
        opened.push_async_callback(context.evolution.close)
        app = make_app("registry", metrics=metrics, readiness=readiness, large=LARGE)
        add_routes(app, context)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(bell.run(), name="registry bell"),
                tasks.create_task(upkeep.run(), name="registry upkeep"),
                tasks.create_task(keys.follow(upkeep.renew_all), name="registry keys"),
                tasks.create_task(Eraser(context.erasure, url, metrics).run(), name="registry erasing"),
                tasks.create_task(context.forgetting.run(), name="registry forgetting"),
                tasks.create_task(loop_lag.run(metrics, stop), name="registry loop lag"),
                tasks.create_task(_watch(store, readiness), name="registry database"),
                tasks.create_task(_announce(readiness, ready), name="registry readiness"),
            ]
            await _answer(app, settings, readiness, stop, propagations)
            for task in running:
                task.cancel()


def wire(
    settings: RegistrySettings,
    pool: Pool,
    store: Store,
    keys: LiveKeys,
    tokens: TokenStore,
    validation: Validation,
    propagations: Propagations,
    bell: Bell,
    metrics: Metrics,
) -> tuple[Upkeep, Context]:
    objects = Objects(store, node_bytes=settings.node_cache_bytes, text_bytes=settings.text_cache_bytes)
    metrics.trust_expires_at_seconds.set(keys.now.expires_at_us / 1e6)
    head_life_us = int(settings.head_life_s * 1e6)
    commits = Commits(store, objects, Signers(keys.commit, keys.head), bell, metrics, head_life_us=head_life_us)
    configs = Configs(store, objects)
    three_way = ThreeWay(store, objects, configs)
    evolution = Evolution(store, objects, validation, Declarations(propagations.client))
    publish = Publish(commits, objects, validation, evolution, three_way, Rebase(store, configs), metrics)
    renewal = Renewal(store, commits, bell, head_life_us=head_life_us)
    lookback, erasure = Lookback(pool, timeout_s=store.timeout_s), Erasure(pool, timeout_s=store.timeout_s, shards=store.shards)

    def forget(digests: Collection[bytes]) -> None:
        objects.forget(digests)
        validation.forget(digests)

    context = Context(
        pool=pool,
        store=store,
        commits=commits,
        publish=publish,
        patching=Patching(publish, objects),
        branch=Branch(commits, store, objects),
        promote=Promote(commits, store, objects, configs, publish, three_way),
        rollback=Rollback(commits, store, objects, three_way),
        reading=Reading(store, objects),
        evolution=evolution,
        letters=Letters(pool, store, renewal, bell, metrics),
        lookback=lookback,
        labels=Labels(store, lookback),
        past=Past(lookback, objects),
        erasure=erasure,
        deletion=Deletion(erasure, store, renewal, bell, retain_s=settings.deletion_retain_s),
        purge=Purges(erasure, store, objects, renewal, keys.commit, bell, metrics, forget),
        forgetting=Forgetting(erasure, forget),
        keeping=Keeping(settings.event_keep_days, settings.idempotency_keep_s, bool(settings.kafka_bootstrap)),
        tokens=tokens,
        token_desk=TokenDesk(store, tokens, bell),
        propagations=propagations,
        metrics=metrics,
        keys=keys,
        endpoints=_endpoints(settings),
        wait_max_s=settings.wait_max_s,
    )
    return Upkeep(settings, pool, store, renewal, keys, metrics), context


async def _shards(settings: RegistrySettings, pool: Pool) -> int:
    try:
        found = await shards_of(pool)
    except asyncpg.UndefinedTableError:
        raise Unavailable("the database has no Heliograph tables yet: run heliograph migrate") from None
    refuse_other_shards(settings.shards, found)
    return found


async def _keys(settings: RegistrySettings, store: Store) -> LiveKeys:
    exists = await store.history_exists()
    folder = settings.data_dir / "keys"
    return LiveKeys(folder, await asyncio.to_thread(LocalKeys.open_or_create, folder, history_exists=exists, now_us=now_us()))


async def _first_start(settings: RegistrySettings, tokens: TokenStore) -> None:
    if await tokens.bootstrap(settings.data_dir / "tokens"):
        log.info("first_tokens_written", folder=str(settings.data_dir / "tokens"))


async def _propagations(settings: RegistrySettings) -> Propagations:
    """The ledger is asked with the service token that was given, or with the one of the first start."""
    url = settings.url_of(settings.ledger_url, settings.ledger_port)
    try:
        return Propagations.at(url, settings.service_token_text())
    except InvalidRequest:
        path = settings.data_dir / "tokens" / "service.token"
        text = await asyncio.to_thread(lambda: path.read_text().strip() if path.exists() else "")
        if not text:
            log.warning("no_service_token", detail="publishes that wait will not be told how far they came")
        return Propagations.at(url, text)


def _endpoints(settings: RegistrySettings) -> Endpoints:
    s = "s" if settings.sync_tls else ""
    return Endpoints(
        api=settings.url_of(settings.public_api_url, settings.registry_port),
        stream=settings.url_of(settings.public_stream_url, settings.sync_port, f"ws{s}", "/v1/stream"),
        bundles=settings.url_of(settings.public_bundles_url, settings.sync_http_port, f"http{s}"),
        ledger=settings.url_of(settings.public_ledger_url, settings.ledger_port),
    )


async def _answer(
    app: FastAPI, settings: RegistrySettings, readiness: Readiness, stop: asyncio.Event, propagations: Propagations
) -> None:
    await serve_http(
        app,
        settings.listen_host,
        settings.registry_port,
        stop=stop,
        on_started=lambda: readiness.met("http"),
        leave=Leave.of(settings, readiness, meanwhile=propagations.release),
        name="registry",
        reuse_port=settings.reuse_port,
    )


async def _watch(store: Store, readiness: Readiness) -> None:
    """Ready only while the database would take a commit."""
    while True:
        try:
            await store.rehearse(WARM_CONNECTIONS)
            readiness.met("database")
        except* Unavailable as group:
            readiness.unmet("database", str(group.exceptions[0]))
        await asyncio.sleep(DATABASE_CHECK_S)


async def _announce(readiness: Readiness, ready: asyncio.Event) -> None:
    await readiness.wait()
    ready.set()
