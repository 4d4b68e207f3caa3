"""Relays as processes: one leads at a time, whatever ends it, and a reader never notices who it was."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

from heliograph.eventlog.kafka import KafkaProducer
from heliograph.runtime.process import Exit
from heliograph.services.relay.lead import versions_topic

pytestmark = pytest.mark.kafka

SESSIONS = """
select a.pid from pg_stat_activity a left join pg_locks l on l.pid = a.pid and l.locktype = 'advisory'
where a.datname = current_database() and a.application_name = 'heliograph relay leader' and (l.pid is not null) = $1
"""


async def until_leading(relay) -> None:
    await relay.until(lambda relay: relay.leads())


async def until_one_stands_by(relayed) -> None:
    async with asyncio.timeout(60):
        while not await relayed.rows(SESSIONS, False):
            await asyncio.sleep(0.02)


async def cut(relayed, *, leader: bool) -> None:
    """As an administrator, a failover or a firewall does."""
    await relayed.rows(f"select pg_terminate_backend(pid) from ({SESSIONS}) s", leader)


async def ended(process) -> int:
    return await asyncio.wait_for(process.child.wait(), 60)


async def burst(relayed, shard: int, over: asyncio.Event) -> None:
    number = 0
    async with relayed.connected("heliograph_registry") as connection:
        while not over.is_set():
            number += 1
            await connection.execute("select eventlog.append_event($1, 'key', $2, null)", shard, str(number).encode())
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bursting(relayed):
    """Four shards get events until the block is left."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for shard in range(4):
            tasks.create_task(burst(relayed, shard, over))
        try:
            yield
        finally:
            over.set()


@pytest.fixture
async def pair(relayed, processes):
    """(leader, standby), each a process and its answers."""
    leader = await processes("first")
    await until_leading(leader[1])
    standby = await processes("second")
    await until_one_stands_by(relayed)
    return leader, standby


async def test_a_relay_killed_again_and_again_in_a_burst_leaves_every_event_once_and_in_order(relayed, processes):
    async with bursting(relayed):
        for life in range(3):
            process, _ = await processes(f"life-{life}")
            await relayed.appended_at_least(await relayed.appended() + 50)
            await process.kill()
    await relayed.commit(0, b"after the last death")
    await processes("last")
    assert await relayed.arrived() == await relayed.committed()


async def test_of_two_relays_one_leads_and_the_other_is_ready_to(pair, relayed):
    (_, first), (_, second) = pair
    await second.until(is_ready)
    assert await first.leads()
    assert not await second.leads()
    await relayed.commit(1, b"one", b"two")
    assert await relayed.arrived() == await relayed.committed()
    assert await relayed.appended() == 2


async def is_ready(relay) -> bool:
    return (await relay.get("/readyz")).status_code == 200


async def test_the_other_takes_over_when_the_leader_is_killed(pair, relayed):
    (leader, _), (_, second) = pair
    async with bursting(relayed):
        await relayed.appended_at_least(50)
        await leader.kill()
        await until_leading(second)
        await relayed.appended_at_least(await relayed.appended() + 50)
    assert await relayed.arrived() == await relayed.committed()


async def test_a_leader_that_loses_its_session_ends_and_the_other_takes_over(pair, relayed):
    (leader, _), (_, second) = pair
    await cut(relayed, leader=True)
    assert await ended(leader) == Exit.UNAVAILABLE
    await until_leading(second)
    await relayed.commit(1, b"under the second")
    assert await relayed.arrived() == await relayed.committed()


async def test_a_standby_that_loses_its_session_says_so_without_a_traceback(pair, relayed):
    (_, first), (standby, _) = pair
    await cut(relayed, leader=False)
    assert await ended(standby) == Exit.UNAVAILABLE
    assert "Traceback" not in standby.tail()
    assert await first.leads()


async def test_a_relay_that_wakes_up_after_it_was_replaced_does_no_harm(pair, relayed):
    """Stopped in the middle of a burst, its session ended by the server: what it still holds it appends beside the new leader."""
    (zombie, _), (_, second) = pair
    async with bursting(relayed):
        await relayed.appended_at_least(50)
        zombie.child.send_signal(signal.SIGSTOP)
        await cut(relayed, leader=True)
        await until_leading(second)
        await relayed.appended_at_least(await relayed.appended() + 50)
        zombie.child.send_signal(signal.SIGCONT)
        assert await ended(zombie) == Exit.UNAVAILABLE
    assert await relayed.arrived() == await relayed.committed()


@pytest.mark.parametrize("checkpoint_s", [0.05, 3600], ids=["checkpointed", "without-a-checkpoint"])
async def test_old_events_that_a_zombie_appended_last_are_not_taken_for_the_end(relayed, checkpoint_s):
    await relayed.commit(5, *(str(number).encode() for number in range(40)))
    await relayed.relayed(checkpoint_s=checkpoint_s)
    await append_copies(relayed, 5, (await relayed.committed())[5][10:30])
    await relayed.commit(5, b"after")
    assert await relayed.relayed(checkpoint_s=checkpoint_s) == await relayed.committed()


async def append_copies(relayed, shard: int, rows) -> None:
    producer = KafkaProducer(relayed.bootstrap, {})
    for timeline, position, key, body, _, committed_at_us in rows:
        headers = {"position": position, "timeline": timeline, "committed_at_us": committed_at_us}
        encoded = [(name, str(value).encode()) for name, value in headers.items()]
        producer.produce(versions_topic(relayed.prefix), shard, key, body, encoded, lambda _: None)
    await producer.close(30)


# --- a PostgreSQL that falls silent ----------------------------------------------------------------------------------------------


class Line:
    """A line to PostgreSQL that can fall silent without being cut."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    def fall_silent(self) -> None:
        self._open.clear()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    async def _connected(self, reader, writer) -> None:
        far_reader, far_writer = await self._dial()
        self._writers += [writer, far_writer]
        self._tasks |= {asyncio.create_task(self._copy(*ends)) for ends in ((reader, far_writer), (far_reader, writer))}

    async def _copy(self, reader, writer) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
        writer.close()

    async def _dial(self):
        parts = urlsplit(self.url)
        if folder := parse_qs(parts.query).get("host"):
            return await asyncio.open_unix_connection(f"{folder[0]}/.s.PGSQL.5432")
        return await asyncio.open_connection(parts.hostname, parts.port)


@pytest.fixture
async def line(relayed):
    line = Line(relayed.url("heliograph_relay"))
    port = await line.start()
    line.through = f"postgresql://heliograph_relay@127.0.0.1:{port}{urlsplit(line.url).path}"
    yield line
    await line.close()


async def test_a_leader_whose_postgresql_falls_silent_gives_up(relayed, processes, line):
    process, relay = await processes("relay", HELIOGRAPH_DATABASE_URL=line.through, HELIOGRAPH_DATABASE_TIMEOUT_S="1")
    await until_leading(relay)
    line.fall_silent()
    assert await ended(process) == Exit.UNAVAILABLE
