"""The relay as operators see it: what it answers, how it ends, and how it rides out what is away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.conftest import free_port
from tests.end_to_end.processes import keeping_alive
from tests.end_to_end.stack import PG_SCRIPT, Server
from tests.fixtures.kafka import make_broker
from tests.fixtures.postgres import require

from heliograph.core.events import SHARDS
from heliograph.eventlog.kafka import KafkaProducer
from heliograph.runtime.migrate import migrate
from heliograph.runtime.process import Exit
from heliograph.services.relay.copy import Copier
from heliograph.services.relay.lead import versions_topic
from heliograph.telemetry.metrics import Metrics

pytestmark = pytest.mark.kafka


async def missing(relay) -> dict[str, str]:
    answer = await relay.get("/readyz")
    return {} if answer.status_code == 200 else answer.json()["missing"]


async def ready(relay) -> bool:
    return not await missing(relay)


async def lag(relay, shard: int, what: str = "events") -> float:
    return await relay.metric(f"relay_lag_{what}", shard=str(shard)) or 0


# --- everything is there ---------------------------------------------------------------------------------------------------------


async def test_a_leader_says_that_it_is_alive_ready_and_how_far_it_is(relayed):
    async with relayed.relaying() as relay:
        await relay.until(type(relay).leads)
        await relayed.commit(3, b"one", b"two")
        await relayed.arrived()
        assert (await relay.get("/healthz")).json() == {"status": "alive"}
        assert (await relay.get("/readyz")).status_code == 200
        await relay.until(lambda relay: counts(relay, 2))
        assert await lag(relay, 3) == 0


async def counts(relay, published: int) -> bool:
    return await relay.metric("relay_published_total", shard="3") == published and await lag(relay, 3) == 0


async def test_sigterm_in_a_burst_drains_and_ends_well(relayed, processes):
    """What was handed to Kafka is waited for: the next relay goes on exactly there, and nothing is copied twice."""
    process, _ = await processes("relay")
    for shard in range(4):
        await relayed.rows("select eventlog.append_event($1, 'k', n::text::bytea, null) from generate_series(1, 2000) n", shard)
    await relayed.appended_at_least(1)
    await process.stop()
    assert process.child.returncode == Exit.OK
    assert await relayed.relayed() == await relayed.committed()
    assert await relayed.appended() == 8000


async def test_a_standby_goes_on_where_the_leader_ended_and_copies_nothing_twice(relayed, processes):
    leader, leading = await processes("leader")
    await leading.until(type(leading).leads)
    _, standby = await processes("standby")
    await standby.until(ready)
    for shard in range(4):
        await relayed.rows("select eventlog.append_event($1, 'k', n::text::bytea, null) from generate_series(1, 2000) n", shard)
    await relayed.appended_at_least(1)
    await leader.stop()
    await standby.until(type(standby).leads)
    await relayed.appended_at_least(8000)
    assert await relayed.relayed() == await relayed.committed()
    assert await relayed.appended() == 8000


async def test_a_standby_ends_well_on_sigterm(relayed, processes):
    async with relayed.relaying() as leader:
        await leader.until(type(leader).leads)
        process, standby = await processes("standby")
        await standby.until(ready)
        await process.stop()
        assert process.child.returncode == Exit.OK


async def test_without_an_address_of_kafka_it_says_what_is_missing(processes):
    process, _ = await processes("relay", HELIOGRAPH_KAFKA_BOOTSTRAP="")
    assert await asyncio.wait_for(process.child.wait(), 60) == Exit.BAD_SETTINGS
    assert "HELIOGRAPH_KAFKA_BOOTSTRAP" in process.tail()


async def test_a_database_address_that_cannot_work_is_said_without_its_password(processes):
    process, _ = await processes("relay", HELIOGRAPH_DATABASE_URL="postgresql://relay:geheim@[/heliograph")
    assert await asyncio.wait_for(process.child.wait(), 60) == Exit.BAD_SETTINGS
    assert "HELIOGRAPH_DATABASE_URL" in process.tail()
    assert "geheim" not in process.tail()


# --- Kafka is away ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def own_kafka(relayed, tmp_path):
    """A broker of this test, not yet started. `run(verb)`."""
    broker = make_broker(tmp_path / "kafka")
    relayed.bootstrap = broker.bootstrap

    async def run(verb: str) -> None:
        await asyncio.to_thread(broker.run, verb)

    yield run
    await run("kill")


async def test_nothing_is_lost_while_kafka_is_away_at_the_start_and_later(relayed, processes, own_kafka):
    _, relay = await processes("relay", HELIOGRAPH_STUCK_S="1")
    await relayed.commit(3, b"before Kafka was there")
    await relay.until(lambda relay: says(relay, "kafka"))
    assert (await relay.get("/healthz")).status_code == 200
    await own_kafka("start")
    assert await relayed.arrived() == await relayed.committed()

    await own_kafka("kill")
    await relayed.commit(3, *(str(number).encode() for number in range(100)))
    await relayed.commit(4, b"elsewhere")
    await relay.until(lambda relay: is_behind(relay, {3: 100, 4: 1}))
    await relay.until(lambda relay: says(relay, "progress"))

    await own_kafka("start")
    assert await relayed.arrived() == await relayed.committed()
    await relay.until(ready)
    await relay.until(lambda relay: is_behind(relay, {3: 0, 4: 0}))


async def says(relay, condition: str) -> bool:
    return condition in await missing(relay)


async def is_behind(relay, events: dict[int, int]) -> bool:
    waited = [await lag(relay, shard, "seconds") > 0 for shard in events]
    return [await lag(relay, shard) for shard in events] == list(events.values()) and waited == [n > 0 for n in events.values()]


# --- PostgreSQL is away ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def own_postgres(relayed, public_folder):
    """A server of this test, with every migration."""
    require(Path("/usr/lib/postgresql").exists(), "Debian's PostgreSQL is not installed (make setup)")
    port = free_port()
    server = Server("postgres", PG_SCRIPT, {"POSTGRES_DIR": str(public_folder / f"relay-{port}"), "POSTGRES_PORT": str(port)})
    relayed.url = lambda role="postgres": f"postgresql://{role}@127.0.0.1:{port}/heliograph"
    await server.start()
    await migrate(relayed.url())
    yield server
    await server.kill()


@pytest.mark.postgres
async def test_nothing_is_lost_while_postgresql_is_away_at_the_start_and_later(relayed, processes, own_postgres):
    await relayed.commit(3, b"before")
    await own_postgres.kill()
    process, relay = await processes("relay")
    async with keeping_alive([process]):
        await relay.until(lambda relay: says(relay, "database"))
        await own_postgres.start()
        assert await relayed.arrived() == await relayed.committed()
        first = process.child
        await own_postgres.kill()
        assert await asyncio.wait_for(first.wait(), 30) == Exit.UNAVAILABLE
        await own_postgres.start()
        await relayed.commit(3, b"after")
        assert await relayed.arrived() == await relayed.committed()


# --- the copier by itself ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def copier(relayed, database):
    """Copies one event of each of the shards 3 and 4 to a broker that is not there."""
    quiet = {"log_level": 0, "reconnect.backoff.ms": 60_000, "reconnect.backoff.max.ms": 60_000}
    producer = KafkaProducer(f"127.0.0.1:{free_port()}", quiet)
    async with relayed.connected("heliograph_relay") as connection:
        copier = Copier(
            connection,
            producer,
            versions_topic("nowhere"),
            dict.fromkeys(range(SHARDS), (0, 0)),
            relayed.settings(stuck_s=60, poll_s=60),
            Metrics(),
        )
        copier._moved_at = dict.fromkeys(copier._moved_at, time.monotonic() - 3600)  # an hour of silence
        for shard in (3, 4):
            await relayed.commit(shard, b"event")
        await copier._copy_some()
        yield copier
    await producer.close(0)


async def test_the_first_event_after_a_silence_is_not_stuck(copier):
    assert copier.lag() == 2
    assert copier.stuck() == []


async def test_a_stuck_shard_is_named_even_if_others_move(copier):
    copier._moved_at = dict.fromkeys(copier._moved_at, time.monotonic() - 61)
    copier._on_delivery(4, (1, 1))(None)
    assert copier.stuck() == [3]


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_copier_that_is_woken_in_the_moment_it_is_cancelled_ends(copier, turns):
    task = asyncio.create_task(copier.run())
    async with asyncio.timeout(60):
        while not copier.wake._waiters:
            await asyncio.sleep(0.01)
    copier.wake.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=10)
    task.cancel()
    assert done
