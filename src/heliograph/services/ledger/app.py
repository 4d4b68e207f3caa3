"""Wiring of the ledger's process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from heliograph.access.introspect import Introspector
from heliograph.eventlog.open import open_log
from heliograph.runtime.clock import now_us
from heliograph.runtime.http import make_app, serve_http
from heliograph.runtime.postgres import open_pool
from heliograph.services.ledger.api import Api
from heliograph.services.ledger.lead import CONDITION, Leader
from heliograph.services.ledger.ledger import Ledger
from heliograph.services.ledger.postgres import Tables
from heliograph.services.ledger.registry import HttpRegistry
from heliograph.services.ledger.settings import LedgerSettings
from heliograph.telemetry import loop_lag
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics


async def serve(settings: LedgerSettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Sets ``ready`` when it takes in the log and answers; returns after a clean drain once ``stop`` is set."""
    metrics, readiness = Metrics(), Readiness("http", CONDITION)
    url, token = settings.database_url.get_secret_value(), settings.service_token_text()
    async with AsyncExitStack() as opened:
        pool = await open_pool(url, "heliograph ledger", size=settings.database_pool, timeout_s=settings.database_timeout_s)
        opened.push_async_callback(pool.close)
        source = await open_log(settings, "heliograph ledger", database_url=url)
        opened.push_async_callback(source.close)
        registry = HttpRegistry.at(settings.registry_url, token)
        opened.push_async_callback(registry.close)
        introspector = Introspector(settings.registry_url, token)
        opened.push_async_callback(introspector.close)

        tables = Tables(pool)
        ledger = Ledger(tables, metrics, now_us)
        leader = Leader(
            settings,
            source=source,
            pool=pool,
            ledger=ledger,
            registry=registry,
            metrics=metrics,
            readiness=readiness,
            now_us=now_us,
        )
        app = make_app("ledger", metrics=metrics, readiness=readiness)
        Api(ledger, tables, introspector, settings, now_us).add_to(app)

        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(leader.run(), name="ledger leader"),
                tasks.create_task(loop_lag.run(metrics, stop), name="ledger loop lag"),
                tasks.create_task(_announce(readiness, ready), name="ledger readiness"),
            ]
            await serve_http(
                app,
                settings.listen_host,
                settings.ledger_port,
                stop=stop,
                on_started=lambda: readiness.met("http"),
                drain_s=settings.drain_s,
                name="ledger",
                reuse_port=settings.reuse_port,
            )
            for task in running:
                task.cancel()


async def _announce(readiness: Readiness, ready: asyncio.Event) -> None:
    await readiness.wait()
    ready.set()
