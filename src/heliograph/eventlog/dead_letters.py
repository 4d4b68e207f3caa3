"""Records set aside after bounded retries, with their reason, so that one of them never stops the others."""

from __future__ import annotations

from datetime import datetime

import msgspec
import structlog

from heliograph.core.errors import NotFound
from heliograph.eventlog.ports import Record
from heliograph.runtime.postgres import Pool, translating

log = structlog.get_logger()


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """``reason`` says what failed and never holds a value of a document. ``state``: waiting, replayed, discarded."""

    id: int
    stream: str
    consumer: str
    shard: int | None
    position: int | None
    key: str
    reason: str
    attempts: int
    trace: str | None
    created_at: datetime
    state: str
    body: bytes | None = None


_COLUMNS = "id, stream, consumer, shard, position, key, reason, attempts, trace, created_at, state"


async def set_aside(pool: Pool, record: Record, *, consumer: str, reason: str, attempts: int) -> None:
    """Idempotent by (stream, consumer, shard, position)."""
    with translating():
        await pool.execute(
            """insert into eventlog.dead_letter (stream, consumer, shard, position, key, body, reason, attempts, trace)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing""",
            str(record.stream),
            consumer,
            record.shard,
            record.position,
            record.key,
            record.body,
            reason[:1000],
            attempts,
            record.trace,
        )
    log.error(
        "dead_letter",
        stream=str(record.stream),
        consumer=consumer,
        shard=record.shard,
        position=record.position,
        reason=reason[:200],
    )


async def page(
    pool: Pool, *, stream: str | None = None, state: str | None = None, after: int = 0, limit: int = 100
) -> list[DeadLetter]:
    """Oldest first, without their bodies."""
    sql = f"""select {_COLUMNS} from eventlog.dead_letter
              where id > $1 and ($2::text is null or stream = $2) and ($3::text is null or state = $3) order by id limit $4"""
    with translating():
        return [DeadLetter(**dict(row)) for row in await pool.fetch(sql, after, stream, state, limit)]


async def one(pool: Pool, number: int) -> DeadLetter:
    """With its body. Raises NotFound."""
    with translating():
        row = await pool.fetchrow(f"select {_COLUMNS}, body from eventlog.dead_letter where id = $1", number)
    if row is None:
        raise NotFound(f"no dead letter {number}")
    return DeadLetter(**dict(row))


async def settle(pool: Pool, number: int, *, state: str, by: str) -> None:
    """Marks it replayed or discarded; the row stays."""
    with translating():
        await pool.execute(
            "update eventlog.dead_letter set state = $2, settled_at = now(), settled_by = $3 where id = $1", number, state, by
        )
