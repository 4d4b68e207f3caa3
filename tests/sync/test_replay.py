"""Replays reach those that were left behind: an instance that refused is sent the state anew, a quarantined environment is read once more."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH, head_of
from tests.sync.test_node import metric, poison

from heliograph.core import frames
from heliograph.core.events import shard_of


@pytest.fixture
def sync_settings() -> dict[str, Any]:
    return {"reload_backoff_s": 0.01, "receipt_jitter_ms": 0}


@pytest.fixture
async def sql(database):
    connection = await asyncpg.connect(database.url())
    yield connection
    await connection.close()


async def letters(sql) -> list[Any]:
    return await sql.fetch("select * from eventlog.dead_letter order by id")


async def until(check) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while not (found := await check()):
            await asyncio.sleep(0.02)
    return found


async def rejected_letter(sql, number: int) -> int:
    """As the ledger would make it of the receipts."""
    return await sql.fetchval(
        """insert into eventlog.dead_letter (stream, consumer, key, body, reason, attempts, namespace, environment, number, version)
           values ('deliveries', 'instances', $1 || '/' || $2, '{}', 'no', 1, $1, $2, $3, 'sha256:x') returning id""",
        NAMESPACE,
        ENVIRONMENT,
        number,
    )


async def acknowledged(client, receipt: frames.Receipt) -> None:
    await client.send(receipt)
    await client.until_kind(frames.ReceiptAck)


async def test_a_push_again_reaches_those_who_do_not_run_the_head_and_nobody_else(world, sql):
    async with world.client() as healthy, world.client() as refusing:
        for client in (healthy, refusing):
            await client.until(1)
            await acknowledged(client, client.receipt(seq=1))
        held = refusing.replica.cursor
        made = await world.publish(banner={"text": "too new"})
        await healthy.until(2)
        await acknowledged(healthy, healthy.receipt(seq=2))
        await refusing.until_kind(frames.DeltaFrame)
        await acknowledged(refusing, refusing.receipt(seq=2, number=2, version=made["version"], state="rejected"))

        number = await rejected_letter(sql, 2)
        asked = await world.api.post(
            f"/v1/dead-letters/{number}/replay", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        )
        asked.raise_for_status()
        again = await refusing.until_kind(frames.SnapshotFrame)
        assert (again.answer, again.trace.split("-")[1]) == ("now", "ab" * 16)
        assert again.ancestry is not None or held.number == 1
        assert await metric(world, "heliograph_resyncs_total") == 1
        await acknowledged(refusing, refusing.receipt(seq=3, number=2, version=made["version"]))

        number = await rejected_letter(sql, 2)
        (await world.api.post(f"/v1/dead-letters/{number}/replay")).raise_for_status()
        await world.publish(banner={"text": "next"})  # the log is in order: when this came, the replay had come
        for client in (healthy, refusing):
            await client.until(3)
        assert await metric(world, "heliograph_resyncs_total") == 1
        assert "SnapshotFrame" not in healthy.kinds[healthy.kinds.index("DeltaFrame") :]


@asynccontextmanager
async def broken(sql, *, environment: str = ENVIRONMENT):
    """While inside, the registry's state of one environment contradicts its signed root."""
    record = await sql.fetchval(
        "select record from registry.version where environment = $1 order by number desc limit 1", environment
    )

    async def store(text: str) -> None:
        async with sql.transaction():
            await sql.execute("alter table registry.version disable trigger all")
            await sql.execute(
                "update registry.version set record = $2 where number = (select number from registry.head where environment = $1)"
                " and environment = $1",
                environment,
                text,
            )
            await sql.execute("alter table registry.version enable trigger all")

    await store(record.replace('"number":', '"number": '))
    yield
    await store(record)


async def test_a_replay_of_a_quarantined_environment_that_fails_again_says_so(world, sql):
    await world.publish(banner={"text": "a"})
    await world.sync.end()
    async with broken(sql):
        await world.sync.start()  # cannot read it, and serves the others
        await poison_version(sql, 3)
        (letter,) = await until(lambda: letters(sql))
        assert (letter["state"], letter["environment"], letter["consumer"]) == ("waiting", ENVIRONMENT, "sync")
        assert letter["attempts"] >= 3
        assert await metric(world, "heliograph_quarantined_environments") == 1

        (await world.api.post(f"/v1/dead-letters/{letter['id']}/replay")).raise_for_status()

        async def failed_again():
            (found,) = await letters(sql)
            return found if found["attempts"] > letter["attempts"] else None

        found = await until(failed_again)
        assert (found["id"], found["state"], found["replays"]) == (letter["id"], "waiting", 1)
        assert found["attempts"] == letter["attempts"] + 1
        assert "cannot be brought forward" in found["reason"]
        assert await metric(world, "heliograph_dead_letters_failed_again_total") == 1
    await world.publish(banner={"text": "b"})
    await world.synced(3)
    (await world.api.post(f"/v1/dead-letters/{letter['id']}/replay")).raise_for_status()
    async with world.client() as client:
        await client.until(3)
        assert client.configs == {"banner": {"text": "b"}}

    async def mended():
        return await metric(world, "heliograph_quarantined_environments") == 0

    await until(mended)
    assert [each["state"] for each in await letters(sql)] == ["replayed"]


async def poison_version(sql, number: int) -> None:
    """An event of a version that is not there."""
    body = msgspec.json.decode(await sql.fetchval("select body from eventlog.event order by position desc limit 1"))
    body = msgspec.json.encode(body | {"number": number})
    shard = shard_of(NAMESPACE, ENVIRONMENT)
    await sql.execute("select eventlog.append_event($1, $2, $3, null)", shard, f"{NAMESPACE}/{ENVIRONMENT}", body)


async def test_a_head_that_cannot_be_read_costs_nobody_anything(world, database):
    await poison(
        database,
        msgspec.json.encode(
            {"type": "head", "namespace": NAMESPACE, "environment": ENVIRONMENT, "head": {"payload": "x", "signatures": []}}
        ),
    )
    await poison(database, b'{"type":"head","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    await world.publish(banner={"text": "a"})
    async with world.client() as client:
        await client.until(2)


async def test_a_node_starts_beside_an_environment_that_is_broken(world, sql):
    (await world.api.post(PATH.rsplit("/", 1)[0], json={"name": "staging"})).raise_for_status()
    await world.sync.end()
    async with broken(sql, environment="staging"):
        await world.sync.start()
        async with world.client() as client:
            await client.until(1)
    admin = {"Authorization": f"Bearer {world.tokens['admin']}"}

    async def healed() -> bool:
        answer = await world.bundles.get(f"/v1/heads/{NAMESPACE}/staging", headers=admin)
        return answer.status_code == 200 and head_of(answer.json()).number == 1

    await until(healed)


async def test_a_node_that_is_told_to_stop_while_it_mends_stops(world, sql):
    await world.sync.end()
    async with broken(sql):
        await world.sync.start()
        await poison_version(sql, 2)
        await until(lambda: letters(sql))
        await world.sync.end()
