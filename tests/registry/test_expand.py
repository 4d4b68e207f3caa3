"""What an earlier release left behind, after the migrations of this one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from heliograph.runtime.migrate import migrate, packaged

VERSION = """insert into registry.version values ('shop', 'dev', $1, sha256($1::bigint::text::bytea), 1, sha256('root'), '{}', '[]', '{}', '[]', null,
             $2, 0, 0, null)"""


@pytest.fixture
async def older(postgres_server: Any) -> AsyncIterator[str]:
    """A database at the last migration before this part's."""
    admin = await asyncpg.connect(postgres_server.url())
    name = f"older_{secrets.token_hex(6)}"
    await admin.execute(f"create database {name}")
    url = postgres_server.url(database=name)
    await migrate(url, [each for each in await asyncio.to_thread(packaged) if each.name < "0007"])
    yield url
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def test_versions_that_were_there_are_indexed(older: str) -> None:
    connection = await asyncpg.connect(older)
    await connection.execute(VERSION, 1, [])
    await connection.execute(VERSION, 2, ["a", "folder/b"])
    await migrate(older)
    await connection.execute(VERSION, 3, ["a"])
    rows = await connection.fetch("select name, number from registry.change order by 1, 2")
    assert [tuple(row) for row in rows] == [("a", 2), ("a", 3), ("folder/b", 2)]
    await connection.close()
