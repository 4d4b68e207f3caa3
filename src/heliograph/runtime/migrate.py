"""Plain SQL migrations: ``heliograph/migrations/NNNN_name.sql`` in order, one transaction each, each applied once.

An advisory lock lets any number of processes start at the same time. A file that was edited after it ran, one that was added before one that
ran, or a database that is ahead of this code stops the start. Migrations only add (expand); what is no longer used is removed a release later
(contract).
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

import asyncpg
import structlog

from heliograph.core.errors import Corrupt, InvalidRequest, TimedOut
from heliograph.core.events import MAX_SHARDS
from heliograph.runtime.postgres import Connection, connect, disconnect, translating
from heliograph.runtime.retry import attempts

log = structlog.get_logger()

LOCK: Final = 0x68656C69  # "heli"
LOCK_S: Final = 60.0
OLDEST_SERVER: Final = 15


@dataclass(frozen=True, slots=True)
class Migration:
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def packaged() -> list[Migration]:
    """The migrations of this release, in order. Reads files: in a thread, where there is a loop."""
    files = sorted(
        (each for each in resources.files("heliograph.migrations").iterdir() if each.name.endswith(".sql")),
        key=lambda each: each.name,
    )
    return [Migration(each.name.removesuffix(".sql"), each.read_text()) for each in files]


async def migrate(url: str, migrations: list[Migration] | None = None, *, shards: int | None = None) -> list[str]:
    """Brings the database at `url` (as a role that may create roles and schemas) up to date; returns the names it applied.

    ``shards``: of the versions stream, for a database that is made now; None: as it has, or 16.

    Raises Corrupt for an edited or failing file or a database that is ahead, InvalidRequest for a server that is too old or a role that may
    not do this, TimedOut when another migration does not end, Unavailable.
    """
    if shards is not None and not 1 <= shards <= MAX_SHARDS:
        raise InvalidRequest(f"HELIOGRAPH_SHARDS is from 1 to {MAX_SHARDS}")
    wanted = await asyncio.to_thread(packaged) if migrations is None else migrations
    connection = await connect(url, "heliograph migrate", lock_timeout="5s")
    try:
        if connection.get_server_version().major < OLDEST_SERVER:
            raise InvalidRequest(f"PostgreSQL {OLDEST_SERVER} or newer is needed")
        with translating():
            await _lock(connection)
            return await _apply(connection, wanted, shards)
    finally:
        await disconnect(connection)  # the lock goes with the session, also after a crash


async def _lock(connection: Connection) -> None:
    """A try-lock: a blocking one would dead-wait with CREATE INDEX CONCURRENTLY."""
    try:
        async with asyncio.timeout(LOCK_S):
            async for _ in attempts(cap_s=0.5):
                if await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
                    return
    except TimeoutError:
        raise TimedOut("another migration holds the lock and does not end") from None


async def _apply(connection: Connection, migrations: list[Migration], shards: int | None) -> list[str]:
    try:
        await connection.execute(
            "create table if not exists public.schema_migration "
            "(name text primary key, checksum text not null, at timestamptz not null default now())"
        )
        rows = await connection.fetch("select name, checksum from public.schema_migration")
    except asyncpg.InsufficientPrivilegeError as error:
        raise InvalidRequest(f"migrations need the database's owner: {error.args[0]}") from None
    missing = _missing({row["name"]: row["checksum"] for row in rows}, migrations)
    if shards is not None and not rows:
        await connection.execute("select set_config('heliograph.shards', $1, false)", str(shards))
    for each in missing:
        await _run(connection, each)
    if shards is not None:
        refuse_other_shards(shards, await connection.fetchval("select count(*) from eventlog.event_shard"))
    return [each.name for each in missing]


def refuse_other_shards(wanted: int | None, found: int) -> None:
    """``wanted`` None: whatever there is. Raises InvalidRequest."""
    if wanted is not None and wanted != found:
        raise InvalidRequest(
            f"HELIOGRAPH_SHARDS is {wanted}, but this database was made with {found}: an environment's shard is part of the log, so the number "
            f"stays; set it to {found}, or leave it out"
        )


def _missing(done: dict[str, str], migrations: list[Migration]) -> list[Migration]:
    """Those to run, after everything that ran. Raises Corrupt."""
    if ahead := sorted(done.keys() - {each.name for each in migrations}):
        raise Corrupt(f"the database is ahead of this release: it has {', '.join(ahead)}")
    if edited := [each.name for each in migrations if done.get(each.name, each.checksum) != each.checksum]:
        raise Corrupt(f"migration {edited[0]} was edited after it ran")
    missing = [each for each in migrations if each.name not in done]
    if done and missing and missing[0].name < max(done):
        raise Corrupt(f"migration {missing[0].name} comes before {max(done)}, which ran already; give it a higher number")
    return missing


async def _run(connection: Connection, migration: Migration) -> None:
    try:
        with translating():
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute("reset role")  # they create what they create as its owner
                await connection.execute(
                    "insert into public.schema_migration (name, checksum) values ($1, $2)", migration.name, migration.checksum
                )
    except asyncpg.InsufficientPrivilegeError as error:
        raise InvalidRequest(f"migration {migration.name} needs a role that may do more: {error.args[0]}") from None
    except asyncpg.PostgresError as error:
        raise Corrupt(f"migration {migration.name} failed and left nothing behind: {error.args[0]}") from error
    log.info("migration_applied", migration=migration.name)
