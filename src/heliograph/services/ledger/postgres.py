"""The ledger's tables in PostgreSQL. `Writer` takes in the log and is the only one that changes them; `Tables` answers questions."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast

import asyncpg
import msgspec

from heliograph.core.digest import digest
from heliograph.core.events import Receipts, Received, Row, Unsubscribed
from heliograph.core.frames import Fingerprint
from heliograph.core.records import Head
from heliograph.eventlog.dead_letters import set_aside
from heliograph.runtime.postgres import Connection, Pool, translating
from heliograph.services.ledger.answers import Address, Answer, Line, Point, digest_of
from heliograph.services.ledger.batch import Batch, Poison
from heliograph.services.ledger.board import NODE_LOST, Board, Interval, Stay, profile_from
from heliograph.services.ledger.intake import bounded
from heliograph.services.ledger.propagation import Commit, Hop
from heliograph.services.ledger.report import Report
from heliograph.services.ledger.statements import SQL

UNREADABLE: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""What PostgreSQL raises because of what a row says, not because of how the server is."""

VERSIONS_BACK: Final = 200
"""How many versions before a time are looked through for what an instance ran then."""
Aside = Literal["new", "again"]
MAX_GROUPS: Final = 20  # letters of one version: clients that put something of their own into each reason do not make thousands
MAX_SAMPLE: Final = 20  # instances named in one letter
MAX_SCHEMAS: Final = 200  # declared ones in one answer
NO_REASON: Final = "rejected without a reason"

_CHUNK: Final = 1000  # rows fetched at once where there may be very many


@dataclass(slots=True)
class Earlier:
    """What had been stored of a version before the ledger knew it."""

    answers: list[tuple[str, int, Answer]] = field(default_factory=list)
    hops: dict[str, Hop] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """What the board has to know of what was stored. ``earlier``: by id, of each version that is new, what had been stored of it before.
    ``back``: subscriptions that are live again, and since when they had passed for gone."""

    earlier: dict[str, Earlier]
    back: list[tuple[Stay, int]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream was taken in, in the log that had this identity."""

    identity: str
    marks: dict[int, int]


@dataclass(frozen=True, slots=True)
class Audit:
    """A closed propagation that the audit trail does not have yet."""

    version: str
    address: Address
    report: Report
    attempts: int
    trace: str | None


class Writer:
    """All writing, on one connection that holds the leader's lock: when the connection goes, the lock and any open transaction go.

    Transactions wait for each other. What a caller does after one without awaiting happens before the next begins: that is how
    the board stays in step with the tables. Methods are called inside `transaction` unless they say otherwise.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()

    async def try_lead(self) -> bool:
        """True once no other ledger takes in the log, for as long as this connection lives."""
        async with self.transaction():
            return cast("bool", await self._connection.fetchval(SQL["try_lead"]))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self._turn:
            with translating():
                async with self._connection.transaction():
                    yield

    async def progress(self, stream: str) -> Progress | None:
        row = await self._connection.fetchrow(SQL["marks"], stream)
        return Progress(row["identity"], msgspec.json.decode(row["marks"], type=dict[int, int])) if row else None

    async def set_progress(self, stream: str, progress: Progress) -> None:
        marks = msgspec.json.encode({str(shard): mark for shard, mark in progress.marks.items()}).decode()
        await self._run("set_mark", stream, progress.identity, marks)

    async def not_flushed(self) -> None:
        """The transaction need not be on disk when it is over: should the server crash, its effects and its marks are gone together, and the log
        tells them again. What is committed later, and flushed, is never there without it."""
        await self._connection.fetchval(SQL["not_flushed"])

    async def write(self, batch: Batch) -> Written:
        """Stores all effects."""
        back = await self._revive(batch)
        await self._write_subscriptions(batch)
        await self._write_answers(batch)
        await self._write_nodes(batch)
        return Written(await self._write_versions(batch), back)

    async def _revive(self, batch: Batch) -> list[tuple[Stay, int]]:
        alive = ((event.node, event.at_us) for event in batch.nodes.values() if not event.leaving)
        return [(_stay(row), row["gone_us"]) for row in await self._columns("revive_subscriptions", alive)]

    async def lose_nodes(self, nodes: Iterable[str], at_us: int) -> None:
        await self._run("lose_nodes", list(nodes), at_us)

    async def forget_nodes(self, alive_before_us: int, now_us: int) -> list[Unsubscribed]:
        """Ends the subscriptions on nodes lost for that long; returns what a goodbye would have said."""
        rows = await self._connection.fetch(SQL["forget_nodes"], alive_before_us, now_us)
        return [Unsubscribed(**row, reason=NODE_LOST, at_us=now_us) for row in rows]

    async def close(self, version: str, report: Report) -> Report:
        """Closes the propagation with the digest over the receipts there are now; returns the report with it."""
        closed = msgspec.structs.replace(report, state="closed", digest=digest_of(version, await self._lines(version)))
        text = msgspec.json.encode(closed).decode()
        await self._run("close", version, closed.closed_at_us, closed.outcome, text, closed.digest)
        return closed

    async def set_aside(self, poison: Poison, identity: str) -> None:
        """Makes a letter of it, unless there is one. ``identity``: of the log it stood in."""
        record = poison.record
        log_id = f"{identity}/{record.timeline}"
        await set_aside(self._connection, record, consumer="ledger", reason=poison.reason, attempts=1, log_id=log_id)

    async def audits_due(self, now_us: int, limit: int) -> list[Audit]:
        rows = await self._connection.fetch(SQL["audits_due"], now_us, limit)
        return [
            Audit(
                row["version"],
                Address(row["namespace"], row["environment"]),
                msgspec.json.decode(row["report"], type=Report),
                row["audit_attempts"],
                row["trace"],
            )
            for row in rows
        ]

    async def audit_posted(self, version: str) -> None:
        await self._run("audit_posted", version)

    async def audit_failed(self, version: str, due_us: int) -> None:
        await self._run("audit_failed", version, due_us)

    async def audit_dead(self, audit: Audit, reason: str) -> bool:
        """Sets the delivery aside for an operator. Whether that had been done before, and its replay is what failed."""
        values = (audit.version, msgspec.json.encode(audit.report), reason, audit.trace)
        return bool(await self._connection.fetchval(SQL["audit_dead"], *values))

    async def audit_again(self, version: str, due_us: int) -> str | None:
        """The report is to be posted after all. What it was until now: dead, pending, posted; None: it is not kept any more."""
        return cast("str | None", await self._connection.fetchval(SQL["audit_again"], version, due_us))

    async def set_rejections_aside(self, batch: Batch) -> list[Aside]:
        """Groups what instances refuse into dead letters: one for each (version, reason), at most `MAX_GROUPS` of a version.

        One statement for each version, however many reasons there are.
        """
        found: defaultdict[str, dict[str, Received]] = defaultdict(dict)
        for event, row, answer in batch.answers.values():
            if answer.state == "rejected":
                found[event.version][answer.reason or NO_REASON] = event.received(row)
        return [aside for said in found.values() for aside in await self._set_rejected_version_aside(said)]

    async def _set_rejected_version_aside(self, said: dict[str, Received]) -> list[Aside]:
        """``said``: by reason, one who gives it."""
        event = next(iter(said.values()))
        rows = [(reason, each.received_at_us, each.trace, msgspec.json.encode(each)) for reason, each in said.items()]
        columns = [list(column) for column in zip(*rows, strict=True)]
        version = event.namespace, event.environment, event.number, event.version
        outcome = await self._connection.fetchval(SQL["set_rejections_aside"], *version, *columns, MAX_GROUPS, MAX_SAMPLE)
        return cast("list[Aside]", outcome)

    async def prepare_days(self, days: int) -> None:
        await self._run("prepare_days", days)

    async def forget_schemas(self, before_us: int) -> int:
        return cast("int", await self._connection.fetchval(SQL["forget_schemas"], before_us))

    async def retain(self, now_us: int, *, receipts_days: int, versions_days: int, subscriptions_days: int) -> int:
        """Drops what is older; returns the number of days of receipts dropped."""
        now = datetime.fromtimestamp(now_us / 1e6, UTC)
        versions, subscriptions = (
            int((now - timedelta(days=d)).timestamp() * 1e6) for d in (versions_days, subscriptions_days)
        )
        first_day = (now - timedelta(days=receipts_days)).date()
        return cast("int", await self._connection.fetchval(SQL["retain"], first_day, versions, subscriptions))

    async def load(self) -> Board:
        """The board as the tables know it."""
        commits = [_commit(row) for row in await self._connection.fetch(SQL["open_versions"])]
        oldest_us = min((commit.committed_at_us for commit in commits), default=2**62)
        return await _board(self._connection, commits, "subscriptions", oldest_us)

    async def _write_subscriptions(self, batch: Batch) -> None:
        rows = batch.subscribed.values()
        if rows:
            await self._columns(
                "add_subscriptions",
                (
                    (
                        e.connection, e.subscription, e.namespace, e.environment, e.instance, e.incarnation, e.node, e.region,
                        msgspec.json.encode(e.fingerprint).decode(), msgspec.json.encode(e.view).decode(), e.at_us,
                        e.have and e.have.epoch, e.have and e.have.number, e.have and e.have.version,
                    )
                    for e in rows
                ),
            )  # fmt: skip
            await self._write_declared(batch)
            await self._columns("end_replaced", ((e.namespace, e.environment, e.instance) for e in rows))
        ended = batch.unsubscribed.values()
        await self._columns("end_subscriptions", ((e.connection, e.subscription, e.at_us, bounded(e.reason)) for e in ended))

    async def _write_declared(self, batch: Batch) -> None:
        told = [event for event in batch.subscribed.values() if event.declares is not None]
        texts = {digest("schema", text.encode()): text for event in told for text in (event.declares or {}).values()}
        await self._columns("keep_schemas", sorted(texts.items()))
        await self._columns("note_declared", ((e.connection, e.subscription, _digests(e.declares or {})) for e in told))

    async def _write_answers(self, batch: Batch) -> None:
        await self._columns(
            "store_answers",
            (
                (e.version, r.instance, r.subscription, *answer, r.connection, e.node, r.trace)
                for e, r, answer in batch.answers.values()
            ),
        )
        await self._columns("note_answers", (_noted(*latest, batch.runs.get(slot)) for slot, latest in batch.latest.items()))

    async def _write_nodes(self, batch: Batch) -> None:
        nodes, fan_outs = batch.nodes.values(), batch.fan_outs.items()
        await self._columns("note_nodes", ((e.node, e.region, e.connections, e.at_us, e.leaving) for e in nodes))
        await self._columns(
            "store_fan_outs",
            (
                (*address, *point, node, e.recipients, e.logged_at_us, e.started_at_us, e.done_at_us)
                for (address, point, node), e in fan_outs
            ),
        )

    async def _write_versions(self, batch: Batch) -> dict[str, Earlier]:
        rows = [
            (*c.address, *c.point, c.version, c.received_at_us, c.committed_at_us, trace) for c, trace in batch.commits.values()
        ]
        told = await self._columns("add_versions", rows)
        new = [row["version"] for row in told]
        if known := [row["version"] for row in told if row["known"]]:
            await self._run("not_late", known)
        await self._columns("add_unseen", ((*c.address, *c.point, c.version, c.committed_at_us) for c in batch.unseen))
        heads = [(*address, h.epoch, h.number, h.version, h.issued_at, text) for address, (h, text) in batch.heads.items()]
        await self._columns("set_heads", heads)
        return await _earlier(self._connection, new) if new else {}

    async def _lines(self, version: str) -> list[Line]:
        return [Line(*row) for row in await self._connection.fetch(SQL["lines_of"], version)]

    async def _columns(self, name: str, rows: Iterable[tuple[Any, ...]]) -> list[asyncpg.Record]:
        """Runs a statement that takes its rows as one array per column; none, no round trip."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        try:
            return await self._connection.fetch(SQL[name], *columns) if columns else []
        except ValueError as error:  # the driver's own refusal; left alone it would pass for a lost connection
            raise asyncpg.DataError("a value does not fit its column") from error

    async def _run(self, name: str, *values: object) -> None:
        await self._connection.execute(SQL[name], *values)


@dataclass(frozen=True, slots=True)
class Stored:
    """A version as stored; ``report`` once it is closed."""

    version: str
    closed: bool
    report: Report | None


class Tables:
    """Answers for the API, from any connection of the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def version(self, address: Address, number: int, version: str = "") -> Stored | None:
        rows = await self._fetch("version_at", *address, number, version)
        if not rows:
            return None
        text = rows[0]["report"]
        report = msgspec.json.decode(text, type=Report) if text else None
        return Stored(rows[0]["version"], rows[0]["closed_at_us"] is not None, report)

    async def story_so_far(self, version: str) -> Report:
        """Of a version that is there and open, as of one moment of the tables. Work grows with the environment's instances."""
        with translating():
            async with self._pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
                commit = _commit((await connection.fetch(SQL["version_of"], version))[0])
                board = await _board(
                    cast("Connection", connection), [commit], "subscriptions_of", *commit.address, commit.committed_at_us
                )
        return next(board.all_open()).report()

    async def head(self, address: Address) -> Head | None:
        rows = await self._fetch("head_of", *address)
        return Head.read(rows[0]["payload"]) if rows else None

    async def receipts(self, version: str, after: tuple[str, int], state: str | None, limit: int) -> list[asyncpg.Record]:
        """In the order of (instance, subscription), from after ``after`` on."""
        return await self._fetch("receipts_page", version, *after, state, limit)

    async def instances(self, address: Address, after: str, gone_after_us: int, limit: int) -> list[asyncpg.Record]:
        """Subscriptions of ``limit`` instances after ``after``; without those that ended before ``gone_after_us``."""
        return await self._fetch("instances_page", *address, after, gone_after_us, limit)

    async def instances_then(self, address: Address, at_us: int, after: str, instance: str, limit: int) -> list[asyncpg.Record]:
        """Subscriptions of ``limit`` instances after ``after`` that were there at a time (``instance``: of that one only), with what each ran."""
        return await self._fetch("instances_then", *address, at_us, after, instance, limit, VERSIONS_BACK)

    async def beginning_us(self) -> int:
        """Since when the ledger can know anything."""
        return cast("int", (await self._fetch("beginning"))[0]["at_us"])

    async def behind(
        self, address: Address, head: Head, after: tuple[str, int], *, gone_after_us: int, patience_us: int, limit: int
    ) -> list[asyncpg.Record]:
        """Subscriptions that do not run the head although they could have since ``patience_us``; all of them during a rollout."""
        desired = head.epoch, head.number, head.version
        everyone = head.rollout is not None
        return await self._fetch("drift_page", *address, *after, gone_after_us, limit, *desired, patience_us, everyone)

    async def declared(self, address: Address, configs: list[str]) -> list[asyncpg.Record]:
        """Schemas that live instances declare for these configs, those of most instances first."""
        return await self._fetch("declared", *address, configs, MAX_SCHEMAS, MAX_SAMPLE)

    async def declared_names(self, address: Address, limit: int) -> list[str]:
        """Configs for which live instances declare a schema."""
        return [row["config"] for row in await self._fetch("declared_names", *address, limit)]

    async def to_take_in_again(self, limit: int) -> list[int]:
        """Letters that an operator has asked for and that nobody has in hand."""
        return [row["id"] for row in await self._fetch("to_take_in_again", limit)]

    async def count_behind(self, patience_us: int) -> int:
        return cast("int", (await self._fetch("drift_count", patience_us))[0]["count"])

    async def _fetch(self, name: str, *values: object) -> list[asyncpg.Record]:
        with translating():
            return await self._pool.fetch(SQL[name], *values)


async def _board(connection: Connection, commits: list[Commit], subscriptions: str, *which: object) -> Board:
    """With these versions open. ``subscriptions``: the query for those that matter to them, and its values."""
    board = Board()
    for row in await connection.fetch(SQL["nodes"]):
        board.restore_node(row["node"], row["alive_at_us"], lost=row["lost"])
    async for row in connection.cursor(SQL[subscriptions], *which, prefetch=_CHUNK):
        board.restore(_stay(row))
    earlier = await _earlier(connection, [commit.version for commit in commits])
    for commit in commits:
        board.opened(commit, earlier[commit.version].answers, earlier[commit.version].hops)
    board.take_news()
    return board


async def _earlier(connection: Connection, versions: list[str]) -> dict[str, Earlier]:
    found: dict[str, Earlier] = {version: Earlier() for version in versions}
    async for row in connection.cursor(SQL["answers_of"], versions, prefetch=_CHUNK):
        answer = Answer(row["state"], row["reason"], row["applied_at_us"], row["received_at_us"])
        found[row["version"]].answers.append((row["instance"], row["subscription"], answer))
    for row in await connection.fetch(SQL["hops_of"], versions):
        hop = Hop(row["logged_at_us"], row["started_at_us"], row["done_at_us"], row["recipients"])
        found[row["version"]].hops[row["node"]] = hop
    return found


def _digests(declares: dict[str, str]) -> str:
    return msgspec.json.encode({name: digest("schema", text.encode()) for name, text in declares.items()}).decode()


def _noted(event: Receipts, row: Row, runs: tuple[Receipts, Row] | None) -> tuple[Any, ...]:
    answered = event.number, event.state, bounded(row.reason) if row.reason else None, row.received_at_us
    reached = (runs[0].epoch, runs[0].number, runs[0].version, runs[1].received_at_us) if runs else (None, None, None, None)
    return row.connection, row.subscription, *answered, *reached


def _commit(row: asyncpg.Record) -> Commit:
    return Commit(
        address=Address(row["namespace"], row["environment"]),
        point=Point(row["epoch"], row["number"]),
        version=row["version"],
        received_at_us=row["received_at_us"],
        committed_at_us=row["committed_at_us"],
    )


def _stay(row: asyncpg.Record) -> Stay:
    fingerprint = msgspec.json.decode(row["fingerprint"], type=Fingerprint)
    return Stay(
        address=Address(row["namespace"], row["environment"]),
        instance=row["instance"],
        slot=(row["connection"], row["subscription"]),
        interval=Interval(row["node"], row["since_us"], row["until_us"], assumed=row["ended"] == NODE_LOST),
        order=(row["incarnation"], row["since_us"]),
        profile=profile_from(row["region"], fingerprint),
        runs=Point(row["runs_epoch"], row["runs_number"]) if row["runs_number"] is not None else None,
    )
