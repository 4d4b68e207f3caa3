"""The whole way of a receipt, on a real PostgreSQL with the real log: append, take in, ask."""

from __future__ import annotations

import random

import pytest

from heliograph.core.errors import NotFound
from heliograph.core.records import Version


async def test_a_publish_is_followed_from_the_first_byte_to_every_receipt(stage, story, counts):
    async with stage.leading() as term:
        await stage.receipts(*(story.subscribed(f"i{n:02}", -10 - n, region="eu" if n < 15 else "us") for n in range(20)))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(
            story.fanned_out(v, logged=4, started=5, done=9, recipients=20),
            *(story.answer(f"i{n:02}", v, "applied", 10 + n) for n in range(19)),
            story.answer("i19", v, "rejected", 30, reason="max_items: must be 20 at most"),
        )
        await stage.caught_up(term)
        report = await stage.report(1)
    assert report.state == "open"
    assert counts(report) == {"applied": 19, "rejected": 1}
    assert (report.instances, report.share) == (20, 0.95)
    assert (report.times_ms.commit, report.times_ms.log, report.times_ms.fan_out) == (2.0, 4.0, 9.0)
    assert (report.times_ms.applied.p50, report.times_ms.applied.p95, report.times_ms.applied.max) == (19.0, 28.0, 28.0)
    assert report.by.region["us"].rejected == 1
    assert [(each.instance, each.reason) for each in report.rejections] == [("i19", "max_items: must be 20 at most")]


async def test_the_propagation_histogram_holds_one_value_per_instance_and_version(stage, story):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1), story.subscribed("b", -1))
        v = await stage.commit(story.version(received=0), at=2)
        answers = [story.answer("a", v, "applied", 12), story.answer("b", v, "unaffected", 12)]
        await stage.receipts(*answers)
        await stage.receipts(*answers)
        await stage.caught_up(term)
    assert stage.metric("propagation_seconds", "_count", region="eu") == 1
    assert stage.metric("propagation_seconds", "_sum", region="eu") == 0.012
    assert stage.metric("hop_seconds", "_sum", hop="commit") == 0.002


async def test_a_version_nobody_heard_of_is_not_found(stage):
    async with stage.leading():
        with pytest.raises(NotFound):
            await stage.report(7)


async def test_receipts_that_come_before_their_version_count(stage, story, counts):
    v = story.version(received=0)
    async with stage.leading() as term:
        await stage.receipts(
            story.subscribed("a", -1),
            story.fanned_out(v, logged=4, started=5, done=9),
            story.answer("a", v, "applied", 10),
        )
        await stage.caught_up(term)
        await stage.commit(v, at=2)
        await stage.caught_up(term)
        report = await stage.report(1)
    assert counts(report) == {"applied": 1}
    assert report.times_ms.fan_out == 9.0


async def test_a_silent_node_is_lost_and_its_instances_missing_until_they_subscribe_elsewhere(stage, story, counts):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1), story.subscribed("b", -1, node="node-2"))
        await stage.receipts(story.alive(0), story.alive(0, node="node-2"))
        v = await stage.commit(story.version(received=100), at=102)
        await stage.receipts(story.answer("b", v, "applied", 120, node="node-2"), story.alive(15_000, node="node-2"))
        await stage.caught_up(term)
        stage.clock.set(9_000)
        await term.keeper.tick()
        assert stage.ledger.board.lost_nodes() == frozenset()
        stage.clock.set(16_000)
        await term.keeper.tick()
        assert stage.ledger.board.lost_nodes() == {"node-1"}
        assert counts(await stage.report(1)) == {"applied": 1, "missing": 1}
        await term.keeper.measure()
        assert stage.metric("connected_instances", region="eu") == 1
        await stage.receipts(
            story.subscribed("a", 17_000, node="node-2"), story.answer("a", v, "applied", 17_010, node="node-2")
        )
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 2}


async def test_a_ledger_that_was_away_calls_nobody_silent_before_it_has_caught_up(stage, story):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1), story.alive(0))
        await stage.caught_up(term)
    await stage.receipts(*(story.alive(second * 2_000) for second in range(1, 31)))
    stage.clock.set(61_000)
    stage.new_ledger()
    async with stage.leading() as term:
        await term.keeper.tick()
        assert stage.ledger.board.lost_nodes() == frozenset()


async def test_instances_of_a_node_lost_for_long_have_gone(stage, story):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1), story.alive(0))
        await stage.caught_up(term)
        stage.clock.set(11_000)
        await term.keeper.tick()
        await term.keeper.sweep()
        v = await stage.commit(story.version(received=20_000), at=20_002)
        stage.clock.set(320_000)
        await stage.caught_up(term)
        assert (await stage.report(v.number)).instances == 1
        await term.keeper.tick()
        await term.keeper.sweep()
        w = await stage.commit(story.version(received=330_000), at=330_002)
        await stage.caught_up(term)
        assert (await stage.report(w.number)).instances == 0


async def test_ten_thousand_receipts_at_once(stage, story, counts):
    names = [f"i{n:05}" for n in range(10_000)]
    v = story.version(received=0)
    async with stage.leading() as term:
        await stage.receipts(*(story.subscribed(name, -1, node=f"n{hash(name) % 4}") for name in names))
        await stage.commit(v, at=2)
        shuffled = random.Random(3).sample(range(10_000), 10_000)
        await stage.receipts(
            *(story.answer(names[n], v, "applied", 10 + n / 100, node=f"n{hash(names[n]) % 4}") for n in shuffled)
        )
        await stage.caught_up(term)
        report = await stage.report(1)
        assert counts(report) == {"applied": 10_000}
        times = report.times_ms.applied
        assert (times.p50, times.p95, times.p99, times.max) == (59.99, 104.99, 108.99, 109.99)
        stage.clock.set(1_000)
        await term.keeper.tick()
        assert (await stage.report(1)).state == "closed"
    [row] = await stage.rows("select count(*), count(distinct instance) as instances from ledger.receipt")
    assert (row["count"], row["instances"]) == (10_000, 10_000)
    [row] = await stage.rows(
        "select count(*) from ledger.subscription where runs_version = $1", Version.id_of(v.version.payload)
    )
    assert row["count"] == 10_000


@pytest.mark.parametrize("seed", range(5))
async def test_the_board_made_from_the_tables_is_the_board_that_was_told(stage, story, seed):
    """After a random story, a new ledger says the same of every open version as the one that saw it happen."""
    choose = random.Random(seed)
    names, nodes = [f"i{n}" for n in range(12)], ["n1", "n2", "n3"]
    live, now, versions, connections = {}, 0, [], 0
    async with stage.leading() as term:
        for _ in range(120):
            now += choose.randrange(1, 20)
            name = choose.choice(names)
            act = choose.random()
            if act < 0.05:
                versions.append(await stage.commit(story.version(received=now), at=now + 1))
            elif name not in live or act < 0.12:
                connections += 1
                live[name] = (f"c{connections}", choose.choice(nodes))
                connection, node = live[name]
                have = stage_cursor(choose.choice(versions)) if versions and choose.random() < 0.7 else None
                await stage.receipts(story.subscribed(name, now, node=node, connection=connection, have=have))
            elif act < 0.25:
                connection, node = live.pop(name)
                await stage.receipts(story.unsubscribed(name, now, node=node, connection=connection))
            elif act < 0.28:
                await stage.receipts(story.alive(now, node=choose.choice(nodes), leaving=choose.random() < 0.5))
            elif versions:
                connection, node = live[name]
                state = choose.choice(["applied", "applied", "rejected", "unaffected", "superseded"])
                version = choose.choice(versions[-3:])
                await stage.receipts(story.answer(name, version, state, now, node=node, connection=connection))
        await stage.caught_up(term)
        told = [await stage.report(v.number) for v in versions]
    assert versions
    stage.new_ledger()
    async with stage.leading():
        for before in told:
            assert await stage.report(before.number) == before


def stage_cursor(version):
    from heliograph.core.records import Cursor

    return Cursor(version.epoch, version.number, Version.id_of(version.version.payload))
