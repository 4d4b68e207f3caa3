"""One relay leads: whoever holds a session lock in PostgreSQL. Losing the session is losing the lead, and ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from heliograph.eventlog.kafka import topic_name
from heliograph.eventlog.ports import Stream
from heliograph.runtime.postgres import Connection, connect, translating
from heliograph.runtime.retry import until_available

LOCK: Final = 0x72656C61  # "rela"
TRY_S: Final = 0.1


@asynccontextmanager
async def leading(url: str, *, timeout_s: float, on_standby: Callable[[], None]) -> AsyncIterator[Connection]:
    """Waits for PostgreSQL, says so, and waits for the lead; the connection's session is the lead. Raises Unavailable when the session is lost
    before; inside, its loss ends everything."""
    connection = await until_available(lambda: connect(url, "heliograph relay leader", timeout_s=timeout_s), cap_s=1.0)
    try:
        on_standby()
        await _take_lock(connection)
        yield connection
    finally:
        connection.terminate()


async def _take_lock(connection: Connection) -> None:
    with translating():
        while not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(TRY_S)


class Checkpoints:
    """What Kafka is known to have, per shard, for partitions that retention or a new topic has emptied."""

    def __init__(self, connection: Connection, topic_id: str) -> None:
        self._connection = connection
        self._topic_id = topic_id

    def use(self, connection: Connection) -> None:
        """From now on; the leader's own connection is busy with reading."""
        self._connection = connection

    async def load(self) -> dict[int, tuple[int, int]]:
        """Only of this very topic: another one is another log, which is owed everything that is kept."""
        with translating():
            rows = await self._connection.fetch(
                "select shard, timeline, position from eventlog.checkpoint where topic = $1", self._topic_id
            )
        return {row["shard"]: (row["timeline"], row["position"]) for row in rows}

    async def store(self, places: dict[int, tuple[int, int]]) -> None:
        await self._connection.executemany(
            """insert into eventlog.checkpoint (shard, topic, timeline, position) values ($1, $2, $3, $4)
               on conflict (shard) do update set topic = excluded.topic, timeline = excluded.timeline, position = excluded.position, at = now()""",
            [(shard, self._topic_id, *place) for shard, place in places.items()],
        )


def versions_topic(prefix: str) -> str:
    return topic_name(prefix, Stream.VERSIONS)
