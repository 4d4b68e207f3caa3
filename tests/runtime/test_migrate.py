from __future__ import annotations

import asyncio
import secrets

import asyncpg
import pytest

from heliograph.core.errors import Corrupt, InvalidRequest, TimedOut
from heliograph.runtime import migrate as module
from heliograph.runtime.migrate import LOCK, Migration, migrate, packaged

A = Migration("0001_a", "create table a (i int)")
B = Migration("0002_b", "create table b (i int)")


@pytest.fixture
async def new_database(postgres_server):
    admin = await asyncpg.connect(postgres_server.url())
    made = []

    async def make(**options):
        name = f"empty_{secrets.token_hex(6)}"
        made.append(name)
        await admin.execute(f"create database {name} " + " ".join(f"{key} {value}" for key, value in options.items()))
        return name

    yield make
    for name in made:
        await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def empty(new_database, postgres_server):
    return postgres_server.url(database=await new_database())


async def fetchval(url, query):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_four_at_once_apply_each_once(empty):
    applied = await asyncio.gather(*(migrate(empty, [A, B]) for _ in range(4)))
    assert sorted(name for names in applied for name in names) == ["0001_a", "0002_b"]


async def test_an_edited_file_and_a_database_ahead_stop_the_start(empty):
    await migrate(empty, [A, B])
    with pytest.raises(Corrupt, match="0001_a was edited"):
        await migrate(empty, [Migration("0001_a", "create table a (i bigint)"), B])
    with pytest.raises(Corrupt, match="ahead of this release: it has 0002_b"):
        await migrate(empty, [A])


async def test_what_was_numbered_before_one_that_ran_is_refused_and_nothing_runs(empty):
    await migrate(empty, [B])
    with pytest.raises(Corrupt, match="0001_a comes before 0002_b"):
        await migrate(empty, [A, B])
    assert await fetchval(empty, "select to_regclass('a')") is None


async def test_a_failing_one_leaves_nothing_and_says_which(empty):
    with pytest.raises(Corrupt, match="0002_b failed and left nothing behind: division by zero"):
        await migrate(empty, [A, Migration("0002_b", "create table b (i int); select 1 / 0")])
    assert await fetchval(empty, "select to_regclass('b')") is None
    assert await fetchval(empty, "select array_agg(name) from schema_migration") == ["0001_a"]


async def test_it_gives_up_on_a_migration_that_does_not_end(empty, monkeypatch):
    monkeypatch.setattr(module, "LOCK_S", 0.3)
    other = await asyncpg.connect(empty)
    await other.execute("select pg_advisory_lock($1)", LOCK)
    with pytest.raises(TimedOut, match="another migration"):
        await migrate(empty, [A])
    await other.close()
    assert await migrate(empty, [A]) == ["0001_a"]


async def test_a_role_that_may_not_is_told_so(new_database, postgres_server):
    name = await new_database()
    await migrate(postgres_server.url(database=name))
    with pytest.raises(InvalidRequest, match="permission denied"):
        await migrate(
            postgres_server.url("heliograph_sync", name),
            [*await asyncio.to_thread(packaged), Migration("9999_z", "create table z (i int)")],
        )


def packaged_roles():
    return next(each for each in packaged() if each.name == "0001_roles")


async def test_databases_of_one_server_may_be_migrated_at_the_same_time(new_database, postgres_server):
    """Roles belong to the server, locks to a database: both may want to make the same role."""
    name = "made_" + secrets.token_hex(4)
    make = (await asyncio.to_thread(packaged_roles)).sql.replace("heliograph_", name)
    urls = [postgres_server.url(database=await new_database()) for _ in range(4)]
    for applied in await asyncio.gather(*(migrate(url, [Migration("0001_roles", make)]) for url in urls)):
        assert applied == ["0001_roles"]
    admin = await asyncpg.connect(urls[0])
    made = await admin.fetch("select rolname from pg_roles where rolname like $1", name + "%")
    assert len(made) == 6
    for url in urls:
        await fetchval(url, f"drop owned by {name}owner")
    for role in made:
        await admin.execute(f"drop role {role['rolname']}")
    await admin.close()


async def test_services_own_nothing_and_may_not_change_history(database):
    owners = (
        "select array_agg(distinct tableowner) from pg_tables where schemaname in ('eventlog', 'access', 'registry', 'ledger')"
    )
    assert await fetchval(database.url(), owners) == ["heliograph_owner"]
    for role in ("registry", "sync", "ledger", "relay"):
        for verb in ("update registry.version set number = 0", "delete from registry.object", "delete from eventlog.event"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await fetchval(database.url(f"heliograph_{role}"), verb)


async def test_a_second_run_of_the_packaged_ones_does_nothing(database):
    assert await migrate(database.url()) == []
    names = [each.name for each in await asyncio.to_thread(packaged)]
    assert names == sorted(names)
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
