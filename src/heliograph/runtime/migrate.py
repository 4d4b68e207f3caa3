"""Plain SQL migrations: ``heliograph/migrations/NNNN_name.sql`` in order, one transaction each, each applied once.

An advisory lock lets any number of processes start at the same time. A file that was edited after it ran, or a database that is ahead of this
code, stops the start. Migrations only add (expand); what is no longer used is removed a release later (contract).
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources

import asyncpg
import structlog

from heliograph.core.errors import Corrupt, TimedOut
from heliograph.runtime.postgres import Connection, translating
from heliograph.runtime.retry import attempts

log = structlog.get_logger()
LOCK = 0x68656C69  # "heli"
LOCK_ATTEMPTS = 120


@dataclass(frozen=True, slots=True)
class Migration:
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def packaged() -> list[Migration]:
    """The migrations of this release, in order."""
    files = sorted(
        (each for each in resources.files("heliograph.migrations").iterdir() if each.name.endswith(".sql")),
        key=lambda each: each.name,
    )
    return [Migration(each.name.removesuffix(".sql"), each.read_text()) for each in files]


async def migrate(url: str, migrations: list[Migration] | None = None) -> list[str]:
    """Brings the database at `url` (as a role that may create roles and schemas) up to date; returns the names it applied.

    Raises Corrupt for an edited file or a database that is ahead, TimedOut when another migration does not end, Unavailable.
    """
    with translating():
        connection = await asyncpg.connect(
            url, timeout=10, server_settings={"lock_timeout": "5s", "application_name": "heliograph migrate"}
        )
        try:
            await _lock(connection)
            return await _apply(connection, await asyncio.to_thread(packaged) if migrations is None else migrations)
        finally:
            await connection.close()  # the lock goes with the session, also after a crash


async def _lock(connection: Connection) -> None:
    """A try-lock: a blocking one would dead-wait with CREATE INDEX CONCURRENTLY."""
    async for _ in attempts(LOCK_ATTEMPTS, cap_s=0.5):
        if await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
            return
    raise TimedOut("another migration holds the lock and does not end")


async def _apply(connection: Connection, migrations: list[Migration]) -> list[str]:
    await connection.execute(
        "create table if not exists public.schema_migration (name text primary key, checksum text not null, at timestamptz not null default now())"
    )
    done = {
        row["name"]: row["checksum"] for row in await connection.fetch("select name, checksum from public.schema_migration")
    }
    if ahead := sorted(done.keys() - {each.name for each in migrations}):
        raise Corrupt(f"the database is ahead of this release: it has {', '.join(ahead)}")
    applied = []
    for each in migrations:
        if each.name not in done:
            await _run(connection, each)
            applied.append(each.name)
        elif done[each.name] != each.checksum:
            raise Corrupt(f"migration {each.name} was edited after it ran")
    return applied


async def _run(connection: Connection, migration: Migration) -> None:
    async with connection.transaction():
        await connection.execute(migration.sql)
        await connection.execute("reset role")  # they create what they create as its owner
        await connection.execute(
            "insert into public.schema_migration (name, checksum) values ($1, $2)", migration.name, migration.checksum
        )
    log.info("migration_applied", migration=migration.name)
