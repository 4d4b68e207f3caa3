"""The SDK at the end of a long and lossy line: nothing lost, everything in order, every receipt; and polling where WebSockets are not let through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.fixtures.link import Link
from tests.sync.conftest import ENVIRONMENT, NAMESPACE

from heliograph.client import Heliograph, Retry
from heliograph.core.events import FromSync, Received

DEADLINE_S = 60.0
QUICK = Retry(first_s=0.05, cap_s=0.5)


@dataclass
class Lines:
    """One line to each of the two ports that a client uses."""

    stream: Link
    bundles: Link

    def all(self) -> tuple[Link, Link]:
        return self.stream, self.bundles

    def set(self, **values: Any) -> None:
        for each in self.all():
            for name, value in values.items():
                setattr(each, name, value)


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    async with AsyncExitStack() as stack:
        yield Lines(
            await stack.enter_async_context(Link(seed=1).listening()), await stack.enter_async_context(Link(seed=2).listening())
        )


@pytest.fixture
def registry_settings(lines: Lines) -> dict[str, Any]:
    return {
        "public_stream_url": f"ws://127.0.0.1:{lines.stream.port}/v1/stream",
        "public_bundles_url": f"http://127.0.0.1:{lines.bundles.port}",
    }


@pytest.fixture
def connect(world: Any, lines: Lines, tmp_path: Path) -> Callable[..., Heliograph]:
    lines.stream.target = world.sync.settings.sync_port
    lines.bundles.target = world.sync.settings.sync_http_port

    def make(**more: Any) -> Heliograph:
        told = {"namespace": NAMESPACE, "environment": ENVIRONMENT, "cache_dir": tmp_path / "cache", "retry": QUICK, **more}
        return Heliograph(str(world.api.base_url).rstrip("/"), token=world.tokens["client"], **told)

    return make


async def eventually(reached: Callable[[], Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while not (found := reached()):
            await asyncio.sleep(0.01)
    return found


async def answered(database: Any, numbers: set[int]) -> list[Received]:
    """All receipts in the log, once there is one for each of these versions."""
    connection = await asyncpg.connect(database.url())
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                rows = await connection.fetch("select body from eventlog.log_receipt")
                events = [msgspec.json.decode(row["body"], type=FromSync) for row in rows]
                found = [event for event in events if isinstance(event, Received)]
                if numbers <= {each.number for each in found}:
                    return found
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


def in_order(numbers: list[int]) -> bool:
    return numbers == sorted(set(numbers))


@pytest.mark.parametrize("delay_ms", [35, 80, 120])
async def test_every_version_over_a_long_and_lossy_line(
    world: Any, lines: Lines, connect: Any, database: Any, delay_ms: int
) -> None:
    """5 % loss, so that a short run meets some of it."""
    lines.set(delay_s=delay_ms / 1000, jitter_s=0.01, loss=0.05)
    seen: list[int] = []
    async with connect() as client:
        client.on_version(lambda update: seen.append(update.cursor.number))
        for revision in range(20):
            last = (await world.publish(checkout__limits={"revision": revision}))["number"]
        await client.wait_for_version(last, timeout=DEADLINE_S)
        await eventually(lambda: seen[-1:] == [last])
        assert client.config("checkout/limits")["revision"] == 19
        assert client.status.alarm is None
        # before it leaves: a client that goes waits for its last receipts, but not for ever
        received = await answered(database, set(seen))
    assert in_order(seen)
    assert {each.state for each in received} == {"applied"}


async def test_every_version_over_a_line_that_is_reset_and_goes_dead(
    world: Any, lines: Lines, connect: Any, database: Any
) -> None:
    lines.set(delay_s=0.03, loss=0.05)
    seen: list[int] = []
    async with connect() as client:
        client.on_version(lambda update: seen.append(update.cursor.number))
        for revision in range(12):
            last = (await world.publish(checkout__limits={"revision": revision}))["number"]
            if revision % 3 == 2:
                lines.stream.dead = True  # half open: what is on its way is gone, and nobody knows
                await world.publish(search={"revision": revision})
                lines.stream.reset()
                lines.stream.dead = False
                await client.wait_for_version(last + 1, timeout=DEADLINE_S)
        await eventually(lambda: seen[-1:] == [last + 1])
        await answered(database, set(seen))
    assert in_order(seen)


async def test_a_large_snapshot_over_a_narrow_line(world: Any, lines: Lines, connect: Any) -> None:
    lines.set(delay_s=0.05, bytes_per_s=400_000, loss=0.01)
    await world.publish(**{f"large__{number}": {"text": f"{number}" * 60_000} for number in range(10)})
    async with connect() as client:
        assert client.config("large/7")["text"] == "7" * 60_000


@pytest.mark.parametrize("how", ["refuse", "kill"])
async def test_polling_takes_over_where_websockets_are_blocked_and_leaves_when_they_are_not(
    world: Any, lines: Lines, connect: Any, database: Any, how: Any
) -> None:
    seen: list[int] = []
    async with connect() as client:
        client.on_version(lambda update: seen.append(update.cursor.number))
        assert client.status.transport == "websocket"
        lines.stream.upgrades = how
        lines.stream.reset()
        await eventually(lambda: client.status.transport == "polling")
        for revision in range(3):
            last = (await world.publish(checkout__limits={"revision": revision}))["number"]
        await client.wait_for_version(last, timeout=DEADLINE_S)
        await answered(database, {last})
        lines.stream.upgrades = "pass"
        await eventually(lambda: client.status.transport == "websocket" and client.status.last_error is None)
        last = (await world.publish(checkout__limits={"revision": 9}))["number"]
        await client.wait_for_version(last, timeout=DEADLINE_S)
        assert client.status.transport == "websocket"
        await eventually(lambda: seen[-1:] == [last])
    assert in_order(seen)
    await answered(database, set(seen))
