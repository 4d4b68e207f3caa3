from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import msgspec
import pytest

from heliograph.core.events import (
    FannedOut,
    NodeAlive,
    Received,
    Subscribed,
    Unsubscribed,
    VersionEvent,
    shard_of,
)
from heliograph.core.frames import Fingerprint, State
from heliograph.core.records import Cursor, Head, Signed, Version
from heliograph.core.times import to_text
from heliograph.eventlog.ports import NewRecord, Stream
from heliograph.eventlog.postgres import PostgresLog
from heliograph.runtime.clock import now_us
from heliograph.runtime.postgres import open_pool
from heliograph.services.ledger.answers import Address
from heliograph.services.ledger.lead import Leader
from heliograph.services.ledger.ledger import Ledger
from heliograph.services.ledger.postgres import Tables
from heliograph.services.ledger.settings import LedgerSettings
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

ZERO = "sha256:" + "0" * 64


@dataclass
class Story:
    """Makes the events that a registry and some sync nodes would write. Times are milliseconds after the start of the story."""

    address: Address = field(default_factory=lambda: Address("shop", "production"))
    incarnation: int = 1
    start_us: int = field(default_factory=lambda: now_us() // 1000 * 1000)
    versions: list[VersionEvent] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)

    def at(self, ms: float) -> int:
        return self.start_us + int(ms * 1000)

    def version(self, *, received: float, number: int | None = None, epoch: int = 1) -> VersionEvent:
        number = number or len(self.versions) + 1
        record = Version(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=epoch,
            number=number,
            parent=None,
            root=ZERO,
            history=ZERO,
            kind="publish",
            author="author",
            at=to_text(self.at(received)),
        )
        text = record.text()
        event = VersionEvent(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=epoch,
            number=number,
            version=Signed(text.decode(), ()),
            head=Signed(self.head(epoch, number, Version.id_of(text), issued=received), ()),
            changes=(),
            received_at_us=self.at(received),
        )
        self.versions.append(event)
        return event

    def head(self, epoch: int, number: int, version: str, *, issued: float) -> str:
        head = Head(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=epoch,
            number=number,
            version=version,
            root=ZERO,
            safe=number,
            issued_at=to_text(self.at(issued)),
            expires_at=to_text(self.at(issued + 3_600_000)),
        )
        return head.text().decode()

    def subscribed(
        self,
        instance: str,
        at: float,
        *,
        node: str = "node-1",
        region: str = "eu",
        sdk_version: str = "1.0",
        labels: dict[str, str] | None = None,
        subscription: int = 1,
        connection: str = "",
        incarnation: int = 1,
        have: Cursor | None = None,
    ) -> Subscribed:
        return Subscribed(
            namespace=self.address.namespace,
            environment=self.address.environment,
            instance=instance,
            incarnation=incarnation,
            connection=connection or f"{node}/{instance}",
            subscription=subscription,
            view=("",),
            node=node,
            region=region,
            token="token-1",
            fingerprint=Fingerprint(sdk="heliograph-python", sdk_version=sdk_version, labels=labels or {}),
            have=have,
            at_us=self.at(at),
        )

    def unsubscribed(
        self, instance: str, at: float, *, node: str = "node-1", subscription: int = 1, connection: str = ""
    ) -> Unsubscribed:
        return Unsubscribed(
            namespace=self.address.namespace,
            environment=self.address.environment,
            instance=instance,
            connection=connection or f"{node}/{instance}",
            subscription=subscription,
            node=node,
            reason="closed",
            at_us=self.at(at),
        )

    def answer(
        self,
        instance: str,
        version: VersionEvent,
        state: State,
        at: float,
        *,
        node: str = "node-1",
        subscription: int = 1,
        connection: str = "",
        reason: str | None = None,
        taken: float | None = None,
    ) -> Received:
        return Received(
            namespace=self.address.namespace,
            environment=self.address.environment,
            instance=instance,
            connection=connection or f"{node}/{instance}",
            subscription=subscription,
            node=node,
            epoch=version.epoch,
            number=version.number,
            version=Version.id_of(version.version.payload),
            state=state,
            reason=reason,
            applied_at_us=self.at(at),
            received_at_us=self.at(at + 1 if taken is None else taken),
        )

    def fanned_out(
        self, version: VersionEvent, *, logged: float, started: float, done: float, recipients: int = 1, node: str = "node-1"
    ) -> FannedOut:
        return FannedOut(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=version.epoch,
            number=version.number,
            node=node,
            recipients=recipients,
            logged_at_us=self.at(logged),
            started_at_us=self.at(started),
            done_at_us=self.at(done),
        )

    def alive(self, at: float, *, node: str = "node-1", leaving: bool = False) -> NodeAlive:
        return NodeAlive(node=node, region="eu", connections=1, at_us=self.at(at), leaving=leaving)


@pytest.fixture
def story() -> Story:
    return Story()


class AuditTrail:
    """The registry as the ledger sees it: keeps what it is told, and fails when told to."""

    def __init__(self) -> None:
        self.closed = []
        self.current = []
        self.failures = []

    async def heads(self):
        for each in self.current:
            yield each

    async def record_closed(self, report, trace):
        if self.failures:
            raise self.failures.pop(0)
        self.closed.append(report)


class Clock:
    def __init__(self, story: Story) -> None:
        self._story = story
        self.us = story.start_us

    def __call__(self) -> int:
        return self.us

    def set(self, ms: float) -> None:
        """To so many milliseconds after the start of the story."""
        self.us = self._story.at(ms)


class Stage:
    """A ledger on a real PostgreSQL, with the log's writers beside it. The clock stands still unless it is set."""

    def __init__(self, story: Story, database, pool, log: PostgresLog, settings: LedgerSettings) -> None:
        self.story = story
        self.database = database
        self.pool = pool
        self.log = log
        self.settings = settings
        self.clock = Clock(story)
        self.trail = AuditTrail()
        self.metrics = Metrics()
        self.tables = Tables(pool)
        self.readiness = Readiness("records")
        self.ledger = self.new_ledger()

    def new_ledger(self) -> Ledger:
        self.ledger = Ledger(self.tables, self.metrics, self.clock)
        return self.ledger

    def leader(self) -> Leader:
        return Leader(
            self.settings,
            source=self.log,
            pool=self.pool,
            ledger=self.ledger,
            registry=self.trail,
            metrics=self.metrics,
            readiness=self.readiness,
            now_us=self.clock,
        )

    @asynccontextmanager
    async def leading(self):
        """A term whose log is taken in; its ticks are the test's."""
        async with asyncio.timeout(60), self.leader().term() as term, asyncio.TaskGroup() as tasks:
            consuming = tasks.create_task(term.consumer.run())
            yield term
            consuming.cancel()

    async def receipts(self, *events) -> None:
        records = [NewRecord(shard_of(getattr(e, "instance", "") or e.node), "key", msgspec.json.encode(e)) for e in events]
        appender = self.log.appender(Stream.RECEIPTS)
        await appender.append(records)
        await appender.close()

    async def raw_receipt(self, body: bytes, shard: int = 3) -> None:
        appender = self.log.appender(Stream.RECEIPTS)
        await appender.append([NewRecord(shard, "key", body)])
        await appender.close()

    async def commit(self, event: VersionEvent, *, at: float) -> VersionEvent:
        """As the registry's commit does, but at a moment of the story."""
        await self._event(event, shard_of(*self.story.address), at)
        return event

    async def event(self, event, *, at: float = 0) -> None:
        await self._event(event, shard_of(*self.story.address), at)

    async def _event(self, event, shard: int, at: float) -> None:
        connection = await asyncpg.connect(self.database.url())
        await connection.execute(
            """with p as (update eventlog.event_shard set next_position = next_position + 1 where shard = $1
                          returning next_position - 1 as position)
               insert into eventlog.event (shard, position, timeline, key, body, committed_at)
               select $1, position, 1, 'key', $2, to_timestamp($3::bigint / 1e6) from p""",
            shard,
            event if isinstance(event, bytes) else msgspec.json.encode(event),
            self.story.at(at),
        )
        await connection.close()

    async def caught_up(self, term) -> None:
        for stream in (Stream.VERSIONS, Stream.RECEIPTS):
            assert await term.consumer.caught_up(stream, 30)

    async def report(self, number: int):
        return await self.ledger.propagation(self.story.address, number)

    def metric(self, name: str, suffix: str = "", **labels: str) -> float:
        """A sample's value; 0 when there is none."""
        samples = (sample for family in getattr(self.metrics, name).collect() for sample in family.samples)
        return next((each.value for each in samples if each.name.endswith(suffix) and each.labels == labels), 0)

    async def rows(self, sql: str, *values):
        return await self.pool.fetch(sql, *values)


@pytest.fixture
async def stage(story, database) -> AsyncIterator[Stage]:
    pool = await open_pool(database.url("heliograph_ledger"), "ledger under test")
    log = await PostgresLog.open(database.url(), "test")
    settings = LedgerSettings(
        database_url=database.url("heliograph_ledger"), service_token="unused", propagation_settle_s=0, tick_s=0.05
    )
    yield Stage(story, database, pool, log, settings)
    await log.close()
    await pool.close()


@pytest.fixture(name="counts")
def _counts():
    def counts(report):
        """Those that are not zero."""
        names = ("applied", "rejected", "unaffected", "superseded", "left", "missing")
        return {name: getattr(report, name) for name in names if getattr(report, name)}

    return counts
