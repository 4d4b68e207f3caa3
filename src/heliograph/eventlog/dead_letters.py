"""Records and deliveries set aside after bounded retries, with their reason, so that one of them never stops the others.

A letter is one failure of one consumer. Setting aside is idempotent: by log, stream, consumer, shard and position for a record, by (version, reason)
for rejections of instances, which the ledger groups. Telling one again that fails again is the same letter, waiting once more, with one attempt more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
import structlog

from heliograph.core import names
from heliograph.core.errors import InvalidName, NotFound
from heliograph.eventlog.ports import Record
from heliograph.runtime.postgres import Connection, Pool, translating

log = structlog.get_logger()

STREAMS: Final = ("versions", "receipts", "deliveries")
MAX_REASON: Final = 1000


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """``reason`` says what failed and never holds a value of a document. ``attempts``: how often it was tried in all.

    ``state``: waiting, replaying (its consumer has it in hand), replayed (told again, not refused since), discarded (``note`` says why).
    ``instances``: of a rejected version, how many refuse it for this reason; ``sample`` names some.
    """

    id: int
    stream: str
    consumer: str
    shard: int | None
    position: int | None
    key: str
    namespace: str | None
    environment: str | None
    number: int | None
    version: str | None
    reason: str
    attempts: int
    replays: int
    instances: int
    sample: list[str]
    trace: str | None
    created_at: datetime
    failed_at: datetime
    logged_at_us: int | None
    state: str
    settled_at: datetime | None
    settled_by: str | None
    note: str | None
    body: bytes | None = None


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters. ``reason``: a part of it, in any case. ``older_than_s``: of the latest failure."""

    stream: str | None = None
    state: str | None = None
    consumer: str | None = None
    namespace: str | None = None
    environment: str | None = None
    key: str | None = None
    reason: str | None = None
    older_than_s: float | None = None


_COLUMNS: Final = """id, stream, consumer, shard, position, key, namespace, environment, number, version, reason, attempts, replays, instances,
    sample, trace, created_at, coalesce(failed_at, created_at) as failed_at, logged_at_us, state, settled_at, settled_by, note"""
_MATCHES: Final = """($1::text is null or stream = $1) and ($2::text is null or state = $2) and ($3::text is null or consumer = $3)
    and ($4::text is null or namespace = $4) and ($5::text is null or environment = $5) and ($6::text is null or key = $6)
    and ($7::text is null or position(lower($7) in lower(reason)) > 0)
    and ($8::float8 is null or coalesce(failed_at, created_at) < now() - make_interval(secs => $8))"""


# --- consumers set aside ------------------------------------------------------------------------------------------------------------


async def set_aside(
    to: Pool | Connection, record: Record, *, consumer: str, reason: str, attempts: int, log_id: str = ""
) -> None:
    """Idempotent by (stream, consumer, shard, position, log_id). Its body is kept as it is; U+0000 in a text is kept as U+FFFD.

    ``to``: with a connection, in the transaction it is in. ``log_id``: names the log, and its timeline, where its consumer may come to read another.
    """
    namespace, environment = _place(record)
    with translating():
        await to.execute(
            """insert into eventlog.dead_letter (stream, consumer, shard, position, key, body, reason, attempts, trace, namespace, environment,
                                                 logged_at_us, log)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) on conflict do nothing""",
            str(record.stream),
            consumer,
            record.shard,
            record.position,
            _storable(record.key),
            record.body,
            _storable(reason[:MAX_REASON]),
            attempts,
            _storable(record.trace) if record.trace else None,
            namespace,
            environment,
            record.committed_at_us,
            log_id,
        )
    log.error(
        "dead_letter",
        stream=str(record.stream),
        consumer=consumer,
        shard=record.shard,
        position=record.position,
        reason=reason[:200],
    )


async def failed_again(pool: Pool, numbers: Sequence[int], *, reason: str) -> list[str]:
    """Letters that were told again wait once more. Returns the streams of those that did; one that several nodes report fails once."""
    with translating():
        rows = await pool.fetch(
            """update eventlog.dead_letter
                  set state = 'waiting', reason = $2, attempts = attempts + 1, failed_at = now(), settled_at = null, settled_by = null
                where id = any($1::bigint[]) and state in ('replaying', 'replayed') returning id, stream""",
            list(numbers),
            _storable(reason[:MAX_REASON]),
        )
    for row in rows:
        log.error("dead_letter_failed_again", letter=row["id"], stream=row["stream"], reason=reason[:200])
    return [row["stream"] for row in rows]


async def taken_in_again(pool: Pool, number: int) -> None:
    """Its consumer has done at last what the letter is about."""
    with translating():
        await pool.execute(
            "update eventlog.dead_letter set state = 'replayed', settled_at = now() where id = $1 and state = 'replaying'",
            number,
        )


# --- operators look -----------------------------------------------------------------------------------------------------------------


async def page(pool: Pool, which: Filter, *, after: int = 0, limit: int = 100) -> list[DeadLetter]:
    """Oldest first, without their bodies."""
    sql = f"select {_COLUMNS} from eventlog.dead_letter where {_MATCHES} and id > $9 order by id limit $10"
    with translating():
        return [DeadLetter(**dict(row)) for row in await pool.fetch(sql, *msgspec.structs.astuple(which), after, limit)]


async def count(pool: Pool, which: Filter, *, after: int = 0) -> int:
    sql = f"select count(*) from eventlog.dead_letter where {_MATCHES} and id > $9"
    with translating():
        return int(await pool.fetchval(sql, *msgspec.structs.astuple(which), after))


async def one(pool: Pool, number: int) -> DeadLetter:
    """With its body. Raises NotFound."""
    with translating():
        row = await pool.fetchrow(f"select {_COLUMNS}, body from eventlog.dead_letter where id = $1", number)
    if row is None:
        raise NotFound(f"no dead letter {number}")
    return DeadLetter(**dict(row))


async def some(pool: Pool, numbers: Sequence[int]) -> list[DeadLetter]:
    """Those that are there, by id. With bodies only where they are no environment's: revocations, which are small."""
    body = "case when stream = 'versions' and namespace is null and length(body) <= 65536 then body end as body"
    sql = f"select {_COLUMNS}, {body} from eventlog.dead_letter where id = any($1::bigint[]) order by id"
    with translating():
        return [DeadLetter(**dict(row)) for row in await pool.fetch(sql, list(numbers))]


async def waiting(pool: Pool) -> dict[str, tuple[int, float]]:
    """How many wait in each stream, and for how many seconds the oldest has."""
    with translating():
        rows = await pool.fetch(
            """select stream, count(*) as waiting, extract(epoch from now() - min(created_at))::float8 as oldest_s
                 from eventlog.dead_letter where state = 'waiting' group by stream"""
        )
    found = {row["stream"]: (row["waiting"], row["oldest_s"]) for row in rows}
    return {stream: found.get(stream, (0, 0.0)) for stream in STREAMS}


# --- operators settle; in their own transaction, with its audit row -------------------------------------------------------------------


async def replay(connection: Connection, numbers: Sequence[int], *, state: str, by: str, trace: str | None) -> list[int]:
    """Marks those that wait as told again (``state``: replayed, or replaying when their consumer will say so). Returns which they were.

    Locks them in the order of their ids until the transaction ends, so that two operators cannot tell one twice.
    """
    rows = await connection.fetch(
        """with mine as (select id from eventlog.dead_letter where id = any($1::bigint[]) and state = 'waiting' order by id for update)
           update eventlog.dead_letter d
              set state = $2, settled_by = $3, replays = replays + 1, replay_trace = $4, settled_at = now()
             from mine where d.id = mine.id returning d.id""",
        list(numbers),
        state,
        by,
        trace,
    )
    return sorted(row["id"] for row in rows)


async def discard(connection: Connection, numbers: Sequence[int], *, by: str, note: str) -> list[int]:
    """Those that wait need nobody's attention any more. Returns which they were."""
    rows = await connection.fetch(
        """with mine as (select id from eventlog.dead_letter where id = any($1::bigint[]) and state = 'waiting' order by id for update)
           update eventlog.dead_letter d set state = 'discarded', settled_by = $2, note = $3, settled_at = now()
             from mine where d.id = mine.id returning d.id""",
        list(numbers),
        by,
        note,
    )
    return sorted(row["id"] for row in rows)


async def forget_settled(pool: Pool, older_than_s: float, limit: int) -> int:
    """Deletes some that were settled so long ago; how many."""
    with translating():
        rows = await pool.fetch(
            """delete from eventlog.dead_letter where id in
                 (select id from eventlog.dead_letter where state in ('replayed', 'discarded')
                    and settled_at < now() - make_interval(secs => $1) order by settled_at limit $2) returning 1""",
            older_than_s,
            limit,
        )
    return len(rows)


def _storable(text: str) -> str:
    """PostgreSQL's text holds no U+0000, and Kafka's does."""
    return text.replace("\0", "\ufffd")


class _Named(msgspec.Struct):
    namespace: str
    environment: str


_named: Final = msgspec.json.Decoder(_Named)


def _place(record: Record) -> tuple[str | None, str | None]:
    """The environment that the record is about, when it says so in a form that can be read."""
    namespace, _, environment = record.key.partition("/")
    try:
        if not environment:
            told = _named.decode(record.body)
            namespace, environment = told.namespace, told.environment
        return names.namespace(namespace), names.environment(environment)
    except (ValueError, RecursionError, InvalidName):  # also what is no UTF-8, and what does not decode
        return None, None
