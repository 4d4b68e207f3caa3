"""When what sync tells the ledger is appended: gathered while nobody waits for it, at once when somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from tests.sync.conftest import DEADLINE_S

from heliograph.core.events import NodeAlive
from heliograph.eventlog.ports import NewRecord
from heliograph.services.sync import receipts
from heliograph.services.sync.receipts import BATCH, Outbox
from heliograph.telemetry.metrics import Metrics


class Batches:
    """An appender that tells of each append."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[int] = asyncio.Queue()

    async def append(self, records: Sequence[NewRecord]) -> None:
        self.told.put_nowait(len(records))

    async def close(self) -> None:
        """Nothing is open."""

    async def next(self) -> int:
        return await asyncio.wait_for(self.told.get(), DEADLINE_S)


@pytest.fixture
def log() -> Batches:
    return Batches()


@pytest.fixture
async def outbox(log: Batches) -> AsyncIterator[Outbox]:
    made = Outbox(log, Metrics())
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def put(outbox: Outbox, count: int) -> None:
    for _ in range(count):
        outbox.put(NodeAlive(node="n", region="r", connections=0, at_us=1), "n")


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is appended because time has passed."""
    monkeypatch.setattr(receipts, "GATHER_S", 2 * DEADLINE_S)


@pytest.mark.usefixtures("endless")
async def test_what_nobody_waits_for_is_gathered_until_somebody_does(outbox: Outbox, log: Batches) -> None:
    for _ in range(3):
        put(outbox, 1)
        await asyncio.sleep(0.01)
    assert log.told.empty()
    outbox.hurry()
    assert await log.next() == 3
    put(outbox, 1)
    await asyncio.sleep(0.01)
    assert log.told.empty()  # one hurry is for one batch


@pytest.mark.usefixtures("endless")
async def test_a_full_batch_waits_for_nobody(outbox: Outbox, log: Batches) -> None:
    put(outbox, BATCH)
    assert await log.next() == BATCH


async def test_a_single_one_is_appended_after_a_while(outbox: Outbox, log: Batches) -> None:
    put(outbox, 1)
    assert await log.next() == 1
