"""The number of shards is chosen when a database is made, and stays."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from heliograph.core.errors import InvalidRequest
from heliograph.core.events import SHARDS, shard_of
from heliograph.eventlog.ports import Record, Stream
from heliograph.eventlog.postgres import PostgresLog
from heliograph.runtime.migrate import migrate
from heliograph.services.registry.settings import RegistrySettings

from .conftest import Author, Running, good, running

ENVIRONMENTS = [f"e{number}" for number in range(12)]


@pytest.fixture(params=[1, 64])
async def sharded(
    postgres_server: Any, settings: RegistrySettings, request: Any
) -> AsyncIterator[tuple[int, RegistrySettings, str]]:
    """A database with another number of shards than usual, and settings of a registry over it."""
    name = f"shards_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(postgres_server.url())
    await admin.execute(f"create database {name}")
    try:
        url = postgres_server.url(database=name)
        await migrate(url, shards=request.param)
        role = postgres_server.url("heliograph_registry", name)
        yield request.param, settings.model_copy(update={"database_url": type(settings.database_url)(role)}), url
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()


async def test_environments_live_in_the_shards_that_there_are(sharded: tuple[int, RegistrySettings, str]) -> None:
    """Commits, heads, deletions, revocations and purges go there, and a reader finds all of them."""
    shards, settings, url = sharded
    async with running(settings) as registry, httpx.AsyncClient(base_url=registry.url, timeout=60) as http:
        admin = Author(http, registry.token())
        good(await admin.ask("POST", "/v1/namespaces", json={"name": "shop"}), 201)
        for name in ENVIRONMENTS:
            good(await admin.ask("POST", "/v1/namespaces/shop/environments", json={"name": name}), 201)
            good(await admin.ask("PUT", f"/v1/namespaces/shop/environments/{name}/configs/a", json={"v": name}), 201)
        good(await admin.ask("PUT", "/v1/namespaces/shop/environments/e0/configs/a", json={"v": 2}), 201)
        asked = {"environment": "e0", "config": "a", "versions": [2], "reason": "r", "order": "o"}
        good(await admin.ask("POST", "/v1/namespaces/shop/purges", json=asked), 201)
        good(await admin.ask("DELETE", "/v1/namespaces/shop/environments/e1"))
        token = good(await admin.ask("POST", "/v1/tokens", json={"kind": "admin", "name": "t", "scopes": [{"namespace": "*"}]}))
        good(await admin.ask("DELETE", f"/v1/tokens/{token['id']}"))
    found = await _read(url)
    assert {each.shard for each in found if each.key.startswith("shop/")} == {
        shard_of("shop", each, shards=shards) for each in ENVIRONMENTS
    }
    for each in found:
        if each.key in {f"shop/{name}" for name in ENVIRONMENTS}:
            assert each.shard == shard_of(*each.key.split("/"), shards=shards)
    revoked = [each for each in found if b'"revoked"' in each.body]
    assert sorted(each.shard for each in revoked) == list(range(shards))


async def _read(url: str) -> list[Record]:
    log = await PostgresLog.open(url, "test")
    try:
        end = await log.reader(Stream.VERSIONS).end()
        found: list[Record] = []
        async for batch in log.reader(Stream.VERSIONS).read({}):
            found += [each for each in batch if isinstance(each, Record)]
            if len(found) >= sum(end.values()):
                return found
        raise AssertionError("the reader ended")
    finally:
        await log.close()


async def test_another_number_is_refused_with_what_to_do(sharded: tuple[int, RegistrySettings, str]) -> None:
    shards, settings, url = sharded
    with pytest.raises(InvalidRequest, match=f"made with {shards}.*set it to {shards}, or leave it out"):
        await migrate(url, shards=7)
    with pytest.raises(InvalidRequest, match=f"made with {shards}"):
        async with running(settings.model_copy(update={"shards": 7})):
            pass
    assert await migrate(url) == await migrate(url, shards=shards) == []
    async with running(settings.model_copy(update={"shards": shards})):
        pass


async def test_sixteen_unless_something_else_is_said(registry: Running, sql: asyncpg.Connection) -> None:
    assert await sql.fetchval("select count(*) from eventlog.event_shard") == SHARDS
    assert await sql.fetchval("select count(*) from eventlog.log_receipt_shard") == SHARDS


async def test_nobody_changes_it_by_hand(sql: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.RestrictViolationError, match="part of the log"):
        await sql.execute("insert into eventlog.event_shard (shard) values (16)")
    with pytest.raises(asyncpg.RestrictViolationError, match="part of the log"):
        await sql.execute("delete from eventlog.event_shard where shard = 15")


@pytest.mark.parametrize("shards", [0, 257])
async def test_numbers_out_of_range_are_refused_before_anything_happens(database: Any, shards: int) -> None:
    with pytest.raises(InvalidRequest, match="from 1 to 256"):
        await migrate(database.url(), shards=shards)
