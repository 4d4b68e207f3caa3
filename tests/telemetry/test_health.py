from __future__ import annotations

import asyncio

from heliograph.telemetry.health import Readiness


def test_nothing_to_wait_for_is_ready():
    assert Readiness().ready


def test_every_condition_must_hold_and_the_missing_ones_are_named():
    readiness = Readiness("database", "log")
    readiness.met("database")
    assert not readiness.ready
    assert readiness.missing() == {"log": "starting"}
    readiness.met("log")
    assert readiness.ready


def test_a_condition_can_be_lost_again():
    readiness = Readiness()
    readiness.unmet("drain", "stopping")
    assert not readiness.ready
    assert readiness.missing() == {"drain": "stopping"}


async def test_waiting_ends_with_the_last_condition():
    readiness = Readiness("a", "b")
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(readiness.wait())
        readiness.met("a")
        await asyncio.sleep(0)
        assert not waiting.done()
        readiness.met("b")
