from __future__ import annotations

import asyncio
import secrets

import asyncpg
import pytest

from heliograph.core.errors import Corrupt
from heliograph.runtime.migrate import Migration, migrate, packaged

A = Migration("0001_a", "create table a (i int)")
B = Migration("0002_b", "create table b (i int)")


@pytest.fixture
async def empty(postgres_server):
    name = f"empty_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(postgres_server.url())
    await admin.execute(f"create database {name}")
    yield postgres_server.url(database=name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def test_four_at_once_apply_each_once(empty):
    applied = await asyncio.gather(*(migrate(empty, [A, B]) for _ in range(4)))
    assert sorted(name for names in applied for name in names) == ["0001_a", "0002_b"]


async def test_an_edited_file_and_a_database_ahead_stop_the_start(empty):
    await migrate(empty, [A, B])
    with pytest.raises(Corrupt, match="0001_a was edited"):
        await migrate(empty, [Migration("0001_a", "create table a (i bigint)"), B])
    with pytest.raises(Corrupt, match="ahead of this release: it has 0002_b"):
        await migrate(empty, [A])


async def test_a_failing_one_leaves_nothing(empty):
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty, [A, Migration("0002_b", "create table b (i int); select 1 / 0")])
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("select to_regclass('b')") is None
    assert await connection.fetchval("select array_agg(name) from schema_migration") == ["0001_a"]
    await connection.close()


async def test_a_second_run_of_the_packaged_ones_does_nothing(database):
    assert await migrate(database.url()) == []
    assert len(packaged()) >= 3
