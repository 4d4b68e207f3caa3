"""The service as it is started: settings in, ports open, ready, drained."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest

from heliograph.access.principal import Principal, Scope
from heliograph.core import token
from heliograph.core.errors import InvalidRequest
from heliograph.runtime.clock import now_us
from heliograph.runtime.http import Json, make_app, serve_http
from heliograph.services.ledger.app import serve
from heliograph.services.ledger.settings import LedgerSettings
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

SERVICE = token.mint("service", "s" * 30, None)


@pytest.fixture
async def registry(free_port):
    """Knows one token, and keeps what it is told for the audit trail."""
    port, stop, started = free_port(), asyncio.Event(), asyncio.Event()
    app = make_app("registry", metrics=Metrics(), readiness=Readiness())
    known = Principal(id="t1", kind="service", name="ledger", scopes=(Scope(),))
    app.state.audits = []

    @app.post("/v1/internal/introspect")
    async def introspect():
        return Json(known)

    @app.post("/v1/internal/audit")
    async def audit(body: dict):
        app.state.audits.append(body)
        return Json({})

    serving = asyncio.create_task(serve_http(app, "127.0.0.1", port, stop=stop, on_started=started.set))
    await started.wait()
    app.state.url = f"http://127.0.0.1:{port}"
    yield app
    stop.set()
    await serving


async def test_from_start_to_drain(stage, story, registry, free_port):
    settings = LedgerSettings(
        database_url=stage.database.url("heliograph_ledger"),
        registry_url=registry.state.url,
        service_token=SERVICE,
        ledger_port=free_port(),
        propagation_settle_s=0,
        drain_s=1,
    )
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(settings, ready=ready, stop=stop))
        await ready.wait()
        headers = {"Authorization": f"Bearer {SERVICE}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.ledger_port}", headers=headers) as client:
            assert (await client.get("/readyz")).status_code == 200
            assert "heliograph_loop_lag_seconds" in (await client.get("/metrics")).text
            story.start_us = now_us()
            await stage.receipts(story.subscribed("a", -1000), story.alive(-1000))
            v = await stage.commit(story.version(received=-500), at=-400)
            held = tasks.create_task(client.get("/v1/internal/propagations/shop/production/1?share=1&timeout=30", timeout=40))
            await stage.receipts(story.answer("a", v, "applied", -300))
            assert (await held).json()["applied"] == 1
            while not registry.state.audits:
                await asyncio.sleep(0.01)
            assert (await client.get("/v1/propagations/shop/production/1")).json()["state"] == "closed"
        stop.set()
    [said] = registry.state.audits
    assert said["action"] == "propagation.closed"
    assert said["detail"]["applied"] == 1
    assert msgspec.json.encode(said)


async def test_no_service_token_is_said_plainly(stage):
    settings = LedgerSettings(database_url=stage.database.url("heliograph_ledger"))
    with pytest.raises(InvalidRequest, match="HELIOGRAPH_SERVICE_TOKEN_FILE"):
        await serve(settings, ready=asyncio.Event(), stop=asyncio.Event())
