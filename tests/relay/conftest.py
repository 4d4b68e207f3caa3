from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import free_port
from tests.end_to_end.processes import Managed

from heliograph.eventlog.kafka import KafkaReader
from heliograph.eventlog.ports import Gap, Marks, Record, Stream
from heliograph.runtime.retry import until_available
from heliograph.services.relay.app import serve
from heliograph.services.relay.settings import RelaySettings

PATIENCE_S = 60


class Answers:
    """What a relay says about itself over HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url) as http:
            return await http.get(path)

    async def metric(self, name: str, **labels: str) -> float | None:
        text = (await self.get("/metrics")).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return next((each.value for each in samples if each.name == f"heliograph_{name}" and each.labels == labels), None)

    async def leads(self) -> bool:
        return await self.metric("relay_leading") == 1

    async def until(self, condition) -> None:
        """Until the awaited `condition(self)` is true; an answer that does not come counts as not yet."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._holds(condition):
                await asyncio.sleep(0.02)

    async def _holds(self, condition) -> bool:
        try:
            return await condition(self)
        except httpx.HTTPError:
            return False


class Relayed:
    """The event table of one database, the topics it is copied to, and relays between them."""

    def __init__(self, url, bootstrap: str, prefix: str, folder: Path) -> None:
        self.url = url
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.folder = folder

    # --- the registry's side ---

    async def commit(self, shard: int, *bodies: bytes, trace: str | None = None) -> None:
        """One transaction each, as the registry's commit function ends."""
        async with self.connected("heliograph_registry") as connection:
            for body in bodies:
                await connection.execute("select eventlog.append_event($1, $2, $3, $4)", shard, f"key-{shard}", body, trace)

    async def committed(self) -> dict[int, list[tuple]]:
        rows = await self.rows(
            """select shard, timeline, position, key, body, trace, (extract(epoch from committed_at) * 1000000)::bigint
               from eventlog.event order by shard, position"""
        )
        return _by_shard(rows)

    async def rows(self, sql: str, *values):
        async with self.connected("postgres") as connection:
            return await connection.fetch(sql, *values)

    @asynccontextmanager
    async def connected(self, role: str):
        connection = await asyncpg.connect(self.url(role))
        try:
            yield connection
        finally:
            await connection.close()

    # --- the reader's side ---

    async def arrived(self, after: Mapping[int, int] | None = None) -> dict[int, list[tuple]]:
        """What a reader sees from the beginning or after these marks, read until it has the last event that is committed now in every shard."""
        records = await self.read(await self.last(), after)
        assert not [each for each in records if isinstance(each, Gap)]
        return _by_shard(
            (each.shard, each.timeline, each.position, each.key, each.body, each.trace, each.committed_at_us)
            for each in records
        )

    async def last(self) -> dict[int, tuple[int, int]]:
        return {shard: rows[-1][:2] for shard, rows in (await self.committed()).items()}

    async def earliest(self) -> Marks:
        async with self.reader() as reader:
            return await until_available(reader.earliest)

    async def read(self, until: Mapping[int, tuple[int, int]], after: Mapping[int, int] | None = None) -> list[Record | Gap]:
        """Until each of these shards' (timeline, position) has been seen."""
        missing, seen = set(until.items()), []
        async with asyncio.timeout(PATIENCE_S), self.reader() as reader:
            async for batch in reader.read(after or {}):
                seen += batch
                missing -= {(each.shard, (each.timeline, each.position)) for each in batch if isinstance(each, Record)}
                if not missing:
                    return seen
        raise AssertionError("a reader does not end by itself")

    async def appended(self) -> int:
        """Records in Kafka, copies counted."""
        async with self.reader() as reader:
            return sum((await until_available(reader.end)).values())

    async def appended_at_least(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.appended() < count:
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def reader(self):
        reader = KafkaReader(self.bootstrap, self.prefix, Stream.VERSIONS, {})
        try:
            yield reader
        finally:
            await reader.close()

    # --- relays ---

    def settings(self, **more) -> RelaySettings:
        return RelaySettings(
            **{
                "database_url": self.url("heliograph_relay"),
                "kafka_bootstrap": self.bootstrap,
                "kafka_prefix": self.prefix,
                "relay_port": free_port(),
                "checkpoint_s": 0.05,
                "drain_s": 1,
                **more,
            }
        )

    @asynccontextmanager
    async def relaying(self, **more) -> AsyncIterator[Answers]:
        """A relay in this process, ready; drained at the end."""
        settings, ready, stop = self.settings(**more), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(settings, ready=ready, stop=stop))
            async with asyncio.timeout(PATIENCE_S):
                await ready.wait()
            try:
                yield Answers(settings.relay_port)
            finally:
                stop.set()

    async def relayed(self, **more) -> dict[int, list[tuple]]:
        """What a reader sees once a relay has copied what is committed."""
        async with self.relaying(**more):
            return await self.arrived()

    def process(self, name: str, **env: str) -> Managed:
        port = env.get("HELIOGRAPH_RELAY_PORT") or str(free_port())
        settings = {
            "HELIOGRAPH_DATABASE_URL": self.url("heliograph_relay"),
            "HELIOGRAPH_KAFKA_BOOTSTRAP": self.bootstrap,
            "HELIOGRAPH_KAFKA_PREFIX": self.prefix,
            "HELIOGRAPH_RELAY_PORT": port,
            "HELIOGRAPH_DRAIN_S": "1",
        }
        command = [sys.executable, "-m", "heliograph.services.relay"]
        return Managed(name, command, settings | env, self.folder / f"{name}.log", f"http://127.0.0.1:{port}/readyz")


def _by_shard(rows) -> dict[int, list[tuple]]:
    out = defaultdict(list)
    for shard, *rest in rows:
        out[shard].append(tuple(rest))
    return dict(out)


@pytest.fixture
def relayed(database, kafka, kafka_prefix, tmp_path) -> Relayed:
    return Relayed(database.url, kafka.bootstrap, kafka_prefix, tmp_path)


@pytest.fixture
async def processes(relayed) -> AsyncIterator:
    """Starts relays as processes of their own; those that are left at the end are killed, each by its pid."""
    started: list[Managed] = []

    async def start(name: str, **env: str) -> tuple[Managed, Answers]:
        process = relayed.process(name, **env)
        started.append(process)
        await process.start()
        return process, Answers(int(process.env["HELIOGRAPH_RELAY_PORT"]))

    yield start
    for each in started:
        await each.kill()
