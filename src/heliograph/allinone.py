"""Every service in one process on an embedded PostgreSQL: `heliograph dev`, and the start of `heliograph demo`.

The services are the very same as in production, started by the same functions; they still meet over loopback HTTP and in the event log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from heliograph.core.errors import Corrupt
from heliograph.core.events import MAX_SHARDS
from heliograph.keys.local import write_private
from heliograph.runtime.embedded_postgres import EmbeddedPostgres
from heliograph.runtime.migrate import migrate
from heliograph.runtime.settings import ServiceSettings
from heliograph.runtime.supervisor import Supervisor
from heliograph.services.ledger import app as ledger
from heliograph.services.ledger.settings import LedgerSettings
from heliograph.services.registry import app as registry
from heliograph.services.registry.settings import RegistrySettings
from heliograph.services.sync import app as sync
from heliograph.services.sync.settings import SyncSettings

DATABASE = "postgres"


class AllInOneSettings(ServiceSettings):
    """Each service's own settings are read from the environment too; what is here they share."""

    registry_port: int = Field(7070, ge=0, le=65535, description="port of the REST API")
    sync_port: int = Field(7071, ge=0, le=65535, description="port of the WebSocket stream")
    sync_http_port: int = Field(7072, ge=0, le=65535, description="port of bundles, long poll and receipts")
    ledger_port: int = Field(7073, ge=0, le=65535, description="port of propagation, instances and drift")

    shards: int | None = Field(
        None,
        ge=1,
        le=MAX_SHARDS,
        description="shards of the versions stream, for a database that is made now; unset: 16, or what it was made with",
    )

    @property
    def url(self) -> str:
        return f"http://{self.listen_host}:{self.registry_port}"

    @property
    def admin_token_file(self) -> Path:
        return self.data_dir.absolute() / "tokens" / "admin.token"


async def serve(settings: AllInOneSettings, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Raises AlreadyExists when another process uses the data folder. Ends loudly when PostgreSQL or a service does."""
    async with _database(settings.data_dir / "postgres", settings.shards) as postgres:
        supervisor = Supervisor(
            [
                ("registry", partial(registry.serve, RegistrySettings(**_for_role(settings, postgres, "registry")))),
                ("ledger", partial(ledger.serve, LedgerSettings(**_for_role(settings, postgres, "ledger")))),
                ("sync", partial(sync.serve, SyncSettings(**_for_role(settings, postgres, "sync")))),
            ]
        )
        await asyncio.to_thread(_write_cli_file, settings)
        async with _ended(postgres, stop):
            await supervisor.run(stop=stop, on_ready=ready.set)


def _for_role(settings: AllInOneSettings, postgres: EmbeddedPostgres, role: str) -> dict[str, Any]:
    return {
        "data_dir": settings.data_dir,
        "listen_host": settings.listen_host,
        "region": settings.region,
        "drain_s": settings.drain_s,
        "keep_alive_grace_s": 0.0,  # nobody takes over, so nobody need wait
        "database_url": SecretStr(postgres.url(f"heliograph_{role}", DATABASE)),
        "service_token_file": settings.data_dir / "tokens" / "service.token" if role != "registry" else None,
        "registry_url": settings.url,
        "registry_port": settings.registry_port,
        "sync_port": settings.sync_port,
        "sync_http_port": settings.sync_http_port,
        "ledger_port": settings.ledger_port,
        "kafka_bootstrap": "",
    }


@asynccontextmanager
async def _database(folder: Path, shards: int | None) -> AsyncIterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    try:
        await migrate(postgres.url("postgres", DATABASE), shards=shards)
        yield postgres
    finally:
        await postgres.stop()


@asynccontextmanager
async def _ended(postgres: EmbeddedPostgres, stop: asyncio.Event) -> AsyncIterator[None]:
    """A database that dies by itself ends everything: a start by hand, or by systemd, recovers it."""
    died = False

    async def watch() -> None:
        nonlocal died
        await postgres.ended()
        died = True
        stop.set()

    watching = asyncio.create_task(watch(), name="embedded postgres")
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    if died:
        raise Corrupt(f"the embedded PostgreSQL ended by itself; see {postgres.folder / 'server.log'}")


def _write_cli_file(settings: AllInOneSettings) -> None:
    """So that `heliograph …` in this folder needs no address and no token."""
    told = {"url": settings.url, "token_file": str(settings.admin_token_file)}
    write_private(settings.data_dir / "cli.json", json.dumps(told, indent=2).encode() + b"\n")
