"""The registry's way to PostgreSQL: a named statement, bounded in time, with the server's failures in our words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from heliograph.core.events import SHARDS, shard_of
from heliograph.runtime.postgres import Connection, Pool, translating
from heliograph.services.registry.heads import Place
from heliograph.services.registry.statements import SQL


class Database:
    """``timeout_s``: bound of one statement together with the wait for a free connection. ``shards``: that the versions stream has."""

    def __init__(self, pool: Pool, *, timeout_s: float = 20.0, shards: int = SHARDS) -> None:
        self._pool = pool
        self.shards = shards
        self._timeout_s = timeout_s

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    def shard(self, place: Place) -> int:
        """Where an environment's events go."""
        return shard_of(place.namespace, place.environment, shards=self.shards)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        with translating():
            async with self._pool.acquire(timeout=self._timeout_s) as connection, connection.transaction():
                yield connection  # type: ignore[misc]  # the pool's proxy is a connection in all but type

    async def _rows(self, name: str, *values: Any) -> list[Any]:
        with translating():
            async with asyncio.timeout(self._timeout_s):
                return await self._pool.fetch(SQL[name], *values)

    async def _row(self, name: str, *values: Any, within: Connection | None = None) -> Any:
        """The first row, None if there is none; in a transaction of its own or ``within`` one."""
        with translating():
            async with asyncio.timeout(self._timeout_s):
                return await (within or self._pool).fetchrow(SQL[name], *values)

    async def _value(self, name: str, within: Connection | None, *values: Any) -> Any:
        """The one value of a statement, in a transaction of its own or ``within`` one."""
        return (await self._row(name, *values, within=within))[0]
