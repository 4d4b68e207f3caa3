"""Whatever dies, and whenever: effects and marks are one, and nothing that is repeated counts twice."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from heliograph.core.errors import Unavailable

KILL_AT_THE_MARK = """
create function public.die() returns trigger language plpgsql as $$
begin
  perform pg_terminate_backend(pg_backend_pid());
  return new;
end $$;
create trigger die before insert or update on ledger.mark for each row when (new.stream = 'receipts') execute function public.die();
"""


async def told(stage, story):
    """Two versions, three instances, one of which refuses the second."""
    v, w = story.version(received=0), story.version(received=50)
    await stage.receipts(*(story.subscribed(name, -1) for name in "abc"))
    await stage.commit(v, at=2)
    await stage.commit(w, at=52)
    await stage.receipts(*(story.answer(name, v, "applied", 10) for name in "abc"))
    await stage.receipts(
        story.answer("a", w, "applied", 60), story.answer("b", w, "rejected", 61, reason="no"), story.unsubscribed("c", 62)
    )


async def everything(stage):
    tables = {
        "receipt": "select version, instance, subscription, state::text, reason, received_at_us, late from ledger.receipt order by 1, 2",
        "late": "select version, instance, subscription, state::text from ledger.late_receipt order by 1, 2",
        "subscription": "select connection, instance, until_us, runs_number, answered_number from ledger.subscription order by 1",
        "version": "select number, closed_at_us, digest from ledger.version order by 1",
        "mark": "select stream, marks from ledger.mark order by 1",
    }
    return {name: [tuple(row) for row in await stage.rows(sql)] for name, sql in tables.items()}


async def test_a_connection_that_dies_before_the_commit_leaves_nothing_and_loses_nothing(stage, story, counts, database):
    admin = await asyncpg.connect(database.url())
    await admin.execute(KILL_AT_THE_MARK)
    await told(stage, story)
    async with asyncio.timeout(30):
        with pytest.raises(ExceptionGroup) as failed:
            async with stage.leader().term() as term:
                await term.consumer.run()
    assert failed.group_contains(Unavailable)
    left = await everything(stage)
    assert (left["receipt"], left["subscription"]) == ([], [])

    await admin.execute("drop trigger die on ledger.mark")
    await admin.close()
    stage.new_ledger()
    async with stage.leading() as term:
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 3}
        assert counts(await stage.report(2)) == {"applied": 1, "rejected": 1, "left": 1}
    assert len((await everything(stage))["receipt"]) == 5


async def test_a_new_term_goes_on_exactly_where_the_last_one_ended(stage, story, counts):
    v = story.version(received=0)
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1), story.subscribed("b", -1))
        await stage.commit(v, at=2)
        await stage.receipts(story.answer("a", v, "applied", 10))
        await stage.caught_up(term)
    await stage.receipts(story.answer("b", v, "applied", 20))
    stage.new_ledger()
    async with stage.leading() as term:
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 2}
    assert stage.metric("log_records_read", "_total", stream="receipts") == 4


@pytest.mark.parametrize("change", ["update ledger.mark set identity = 'another log'", "delete from ledger.mark"])
async def test_reading_everything_again_changes_nothing(stage, story, database, change):
    await told(stage, story)
    stage.clock.set(1_000)
    async with stage.leading() as term:
        await stage.caught_up(term)
        await term.keeper.tick()
        reports = [await stage.report(1), await stage.report(2)]
    before = await everything(stage)
    assert reports[0].state == "closed"
    admin = await asyncpg.connect(database.url())
    await admin.execute(change)
    await admin.close()
    stage.new_ledger()
    async with stage.leading() as term:
        await stage.caught_up(term)
        await term.keeper.tick()
        assert [await stage.report(1), await stage.report(2)] == reports
    assert await everything(stage) == before


async def test_one_ledger_at_a_time_takes_in_the_log(stage):
    async with stage.leading():
        other = stage.leader()

        async def second() -> None:
            async with other.term():
                began.set()

        began = asyncio.Event()
        stage.readiness.unmet("records", "of the second one")
        task = asyncio.create_task(second())
        async with asyncio.timeout(30):
            await stage.readiness.wait()  # while it stands by
        assert not began.is_set()
    async with asyncio.timeout(30):
        await task
    assert began.is_set()


async def test_the_leader_begins_a_new_term_when_its_connection_is_cut(stage, story, counts, database):
    admin = await asyncpg.connect(database.url())
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        leading = tasks.create_task(stage.leader().run())
        await stage.readiness.wait()
        await stage.receipts(story.subscribed("a", -1))
        cut = await admin.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'heliograph ledger writer' "
            "and datname = current_database()"
        )
        assert cut == 1
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("a", v, "applied", 5))
        report = await stage.ledger.wait(story.address, 1, 1.0, 30)
        leading.cancel()
    await admin.close()
    assert counts(report) == {"applied": 1}


# --- a node that was cut from the log for long, and speaks again ---------------------------------------------------------------------------


FORGOTTEN = "select instance, until_us, ended from ledger.subscription where node = 'node-1' order by instance"


async def forgotten(stage, story, term, *names: str):
    """``names`` are on node-1, of which nothing is heard for more than five minutes; ``steady`` is on node-2."""
    await stage.receipts(story.alive(-1), *(story.subscribed(name, -1) for name in names))
    await stage.receipts(story.alive(-1, node="node-2"), story.subscribed("steady", -1, node="node-2"))
    await stage.caught_up(term)
    for ms in (11_000, 400_000):
        await stage.receipts(story.alive(ms, node="node-2"))
        stage.clock.set(ms)
        await stage.caught_up(term)
        await term.keeper.tick()
        await term.keeper.sweep()
    assert {row["ended"] for row in await stage.rows(FORGOTTEN)} == {"node lost"}


async def speaks_again(stage, story, term):
    await stage.receipts(story.alive(400_100))
    stage.clock.set(400_200)
    await stage.caught_up(term)


async def test_clients_of_a_node_that_speaks_again_after_it_was_forgotten_count(stage, story, counts):
    async with stage.leading() as term:
        await forgotten(stage, story, term, "a")
        during = await stage.commit(story.version(received=400_050), at=400_052)
        await speaks_again(stage, story, term)
        v = await stage.commit(story.version(received=401_000), at=401_002)
        await stage.receipts(
            story.answer("steady", v, "applied", 401_010, node="node-2"), story.answer("a", v, "rejected", 401_010, reason="no")
        )
        await stage.caught_up(term)
        assert counts(await stage.report(during.number)) == {"superseded": 1, "missing": 1}
        assert counts(await stage.report(v.number)) == {"applied": 1, "rejected": 1}
    assert [tuple(row) for row in await stage.rows(FORGOTTEN)] == [("a", None, None)]
    stage.new_ledger()
    async with stage.leading() as term:
        assert counts(await stage.report(v.number)) == {"applied": 1, "rejected": 1}


async def test_one_that_came_back_elsewhere_stays_there(stage, story, counts):
    async with stage.leading() as term:
        await forgotten(stage, story, term, "a", "b", "c")
        await stage.receipts(story.subscribed("b", 400_050, node="node-2"))
        await stage.receipts(story.subscribed("c", 400_050, node="node-2"), story.unsubscribed("c", 400_060, node="node-2"))
        await speaks_again(stage, story, term)
        v = await stage.commit(story.version(received=401_000), at=401_002)
        await stage.receipts(*(story.answer(name, v, "applied", 401_010, node="node-2") for name in ("b", "steady")))
        await stage.caught_up(term)
        assert counts(await stage.report(v.number)) == {"applied": 2, "missing": 1}
    assert [row["until_us"] is None for row in await stage.rows(FORGOTTEN)] == [True, False, False]


@pytest.mark.parametrize("first", ["the node", "the goodbye", "both at once"])
async def test_one_that_left_while_its_node_was_cut_off_has_left(stage, story, counts, first):
    """The node kept what it had to tell; in the log, an instance's records and its node's have no order between them."""
    goodbye = story.unsubscribed("a", 400_060)
    async with stage.leading() as term:
        await forgotten(stage, story, term, "a")
        while_there = await stage.commit(story.version(received=400_050), at=400_052)
        await stage.caught_up(term)
        if first == "the goodbye":
            await stage.receipts(goodbye)
            await stage.caught_up(term)
        if first == "both at once":
            await stage.receipts(goodbye, story.alive(400_100))
        await speaks_again(stage, story, term)
        if first == "the node":
            await stage.receipts(goodbye)
            await stage.caught_up(term)
        v = await stage.commit(story.version(received=401_000), at=401_002)
        await stage.caught_up(term)
        found = [counts(await stage.report(each.number)) for each in (while_there, v)]
    assert found == [{"left": 1, "missing": 1}, {"missing": 1}]
    assert [tuple(row) for row in await stage.rows(FORGOTTEN)] == [("a", story.at(400_060), "closed")]
    stage.new_ledger()
    async with stage.leading() as term:
        assert [counts(await stage.report(each.number)) for each in (while_there, v)] == found
