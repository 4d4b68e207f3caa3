"""Held requests: they end the moment they can, say what is, and never hang."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import msgspec
import pytest

from heliograph.core.errors import NotFound, NotReady, Overloaded
from heliograph.core.records import Version
from heliograph.eventlog.ports import NewRecord, Stream
from heliograph.services.ledger.answers import Address
from heliograph.services.ledger.board import Board
from heliograph.services.ledger.ledger import LOOK_S, ON_THEIR_WAY_US, Ledger
from heliograph.services.ledger.waiting import MAX_WAITERS, WaitingRoom, Wanted

LONG = 30.0


@asynccontextmanager
async def ticking(stage):
    """As in production: the keeper looks at once when somebody waits."""
    async with stage.leading() as term, asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(term.keeper.run())
        yield term
        keeping.cancel()


async def waiting(stage, tasks, number, share):
    """A request that is certainly being held."""
    before = stage.metric("propagation_waiters")
    task = tasks.create_task(stage.ledger.wait(stage.story.address, number, share, LONG))
    while stage.metric("propagation_waiters") == before:
        await asyncio.sleep(0)
    return task


async def test_it_ends_with_the_receipt_that_reaches_the_share(stage, story, counts):
    async with ticking(stage) as term, asyncio.TaskGroup() as tasks:
        await stage.receipts(*(story.subscribed(f"i{n}", -1) for n in range(4)))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.caught_up(term)
        half, most = await waiting(stage, tasks, 1, 0.5), await waiting(stage, tasks, 1, 0.75)
        await stage.receipts(story.answer("i0", v, "applied", 10), story.answer("i1", v, "unaffected", 11))
        assert counts(await half) == {"applied": 1, "unaffected": 1, "missing": 2}
        assert not most.done()
        await stage.receipts(story.answer("i2", v, "applied", 20))
        assert (await most).share == 0.75


async def test_rejections_that_make_the_share_impossible_end_it_early(stage, story, counts):
    async with ticking(stage), asyncio.TaskGroup() as tasks:
        await stage.receipts(*(story.subscribed(f"i{n}", -1) for n in range(4)))
        v = await stage.commit(story.version(received=0), at=2)
        task = await waiting(stage, tasks, 1, 0.75)
        await stage.receipts(
            story.answer("i0", v, "rejected", 10, reason="a"), story.answer("i1", v, "rejected", 10, reason="b")
        )
        report = await task
    assert counts(report) == {"rejected": 2, "missing": 2}
    assert [each.reason for each in report.rejections] == ["a", "b"]


async def test_nobody_there_is_said_as_soon_as_nobody_can_be_on_the_way(stage, story):
    async with ticking(stage):
        await stage.commit(story.version(received=0), at=2)
        stage.clock.set(2 + ON_THEIR_WAY_US // 1000)
        report = await stage.ledger.wait(story.address, 1, 1.0, LONG)
    assert (report.instances, report.share, report.state) == (0, 1.0, "open")


async def test_nobody_there_is_not_said_before_the_log_was_read_up_to_the_commit(stage, story):
    async with stage.leading() as term, asyncio.TaskGroup() as tasks:
        v = await stage.commit(story.version(received=0), at=2)
        await stage.caught_up(term)
        task = await waiting(stage, tasks, 1, 1.0)
        assert stage.ledger.hurry.is_set()
        await term.keeper.tick()  # the clock says 0 ms: the log may still get what happened before 2 ms
        stage.ledger.reached(story.at(1) + ON_THEIR_WAY_US)  # a node may still have to tell of somebody who was there at 2 ms
        await asyncio.sleep(0)
        assert not task.done()
        await stage.receipts(story.subscribed("a", 1))
        stage.clock.set(3)
        await term.keeper.tick()
        stage.ledger.reached(story.at(3) + ON_THEIR_WAY_US)
        await asyncio.sleep(0)
        assert not task.done()
        await stage.receipts(story.answer("a", v, "applied", 10))
        assert (await task).applied == 1


async def test_a_version_that_is_not_known_yet_is_waited_for(stage, story):
    async with ticking(stage) as term, asyncio.TaskGroup() as tasks:
        await stage.receipts(story.subscribed("a", -1))
        v = story.version(received=0)
        task = await waiting(stage, tasks, 1, 1.0)
        await stage.receipts(story.answer("a", v, "applied", 10))
        await stage.caught_up(term)
        assert not task.done()
        await stage.commit(v, at=2)
        assert (await task).applied == 1


async def test_when_the_time_is_over_the_story_so_far_is_told(stage, story):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        await stage.commit(story.version(received=0), at=2)
        await stage.caught_up(term)
        report = await stage.ledger.wait(story.address, 1, 1.0, 0.01)
        assert (report.state, report.missing, report.share) == ("open", 1, 0.0)
        with pytest.raises(NotFound):
            await stage.ledger.wait(story.address, 2, 1.0, 0.01)
    assert stage.metric("propagation_waiters") == 0


async def test_a_closed_propagation_answers_from_the_tables(stage, story):
    async with stage.leading() as term:
        await stage.commit(story.version(received=0), at=2)
        stage.clock.set(5)
        await stage.caught_up(term)
        await term.keeper.tick()
        report = await stage.ledger.wait(story.address, 1, 1.0, LONG)
    assert (report.state, report.outcome) == ("closed", "complete")


async def test_closing_ends_every_wait(stage, story):
    async with stage.leading() as term, asyncio.TaskGroup() as tasks:
        await stage.receipts(story.subscribed("a", -1))
        await stage.commit(story.version(received=0), at=2)
        task = await waiting(stage, tasks, 1, 1.0)
        await stage.caught_up(term)
        stage.clock.set(70_000)
        await term.keeper.tick()
        report = await task
    assert (report.outcome, report.missing) == ("deadline", 1)


async def test_a_wait_survives_the_change_of_terms(stage, story):
    async with asyncio.TaskGroup() as tasks:
        v = story.version(received=0)
        async with stage.leading() as term:
            await stage.receipts(story.subscribed("a", -1))
            await stage.commit(v, at=2)
            await stage.caught_up(term)
            task = await waiting(stage, tasks, 1, 1.0)
        await stage.receipts(story.answer("a", v, "applied", 10))
        async with ticking(stage):
            assert (await task).applied == 1


async def test_those_who_wait_at_one_that_lost_its_lead_are_told_what_the_next_one_closes(stage, story, counts):
    v, first = story.version(received=0), stage.ledger
    async with asyncio.TaskGroup() as tasks:
        async with stage.leading() as term:
            await stage.receipts(story.subscribed("a", -1))
            await stage.commit(v, at=2)
            await stage.caught_up(term)
            held = await waiting(stage, tasks, 1, 1.0)
            await asyncio.sleep(0.01)
        first.rebuilt(Board())  # as when a term ends; another process leads from now on
        stage.new_ledger()
        await stage.receipts(story.answer("a", v, "applied", 10))
        async with stage.leading() as term:
            await stage.caught_up(term)
            stage.clock.set(1_000)
            await term.keeper.tick()
            async with asyncio.timeout(10 * LOOK_S):
                report = await held
    assert (report.state, counts(report)) == ("closed", {"applied": 1})


async def test_one_that_stands_by_tells_an_open_story_from_the_tables(stage, story, counts):
    standby = Ledger(stage.tables, stage.metrics, stage.clock)
    async with stage.leading() as term:
        await stage.receipts(*(story.subscribed(name, -1) for name in "abc"), story.subscribed("joined", 3), story.alive(-1))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("a", v, "applied", 5), story.answer("b", v, "rejected", 5, reason="no"))
        await stage.receipts(story.fanned_out(v, logged=3, started=4, done=5), story.unsubscribed("c", 6))
        await stage.caught_up(term)
        await term.keeper.tick()
        told = await standby.propagation(story.address, 1)
        assert counts(told) == {"applied": 1, "rejected": 1, "left": 1}
        assert told == msgspec.structs.replace(
            await stage.report(1), behind=True
        )  # how far the leader has read is not known here
        assert (await standby.wait(story.address, 1, 0.3, 0.01)).applied == 1
        assert stage.metric("hop_seconds", "_count", hop="commit") == 1
        with pytest.raises(NotFound):
            await standby.propagation(story.address, 2)


def test_the_room_is_bounded():
    async def fill() -> None:
        room = WaitingRoom()
        held = [room.enter(Wanted(Address("shop", "production"), n), 1.0) for n in range(MAX_WAITERS)]
        for each in held:
            each.__enter__()
        with pytest.raises(Overloaded), room.enter(Wanted(Address("shop", "production"), 1), 1.0):
            pass
        for each in held:
            each.__exit__(None, None, None)
        assert len(room) == 0
        assert room.wanted() == []

    asyncio.run(fill())


async def test_a_ledger_that_goes_away_sends_those_who_wait_to_the_next_one(stage):
    held = asyncio.create_task(stage.ledger.wait(stage.story.address, 1, 1.0, LONG))
    while not stage.metric("propagation_waiters"):
        await asyncio.sleep(0)
    await stage.ledger.release()
    with pytest.raises(NotReady, match="ask again"):
        await held
    with pytest.raises(NotReady):
        await stage.ledger.wait(stage.story.address, 1, 1.0, LONG)


async def test_one_that_stands_by_answers_when_the_leader_has_closed_the_story(stage, story, counts):
    standby = Ledger(stage.tables, stage.metrics, stage.clock)
    async with stage.leading() as term, asyncio.TaskGroup() as tasks:
        await stage.receipts(story.subscribed("a", -1))
        v = await stage.commit(story.version(received=0), at=2)
        held = tasks.create_task(standby.wait(story.address, 1, 1.0, LONG))
        await stage.receipts(story.answer("a", v, "applied", 5))
        await stage.caught_up(term)
        stage.clock.set(1_000)
        await term.keeper.tick()
        assert counts(await held) == {"applied": 1}


# --- while the ledger is behind ------------------------------------------------------------------------------------------------------------


async def backlog(stage, story):
    """What a ledger that was away finds: a busy shard, on which it has to read long for half a hundred, and a quiet one with one instance."""
    v = story.version(received=0)
    events = [(1, story.alive(-10 - n / 1000)) for n in range(6_000)] + [(1, story.subscribed(f"b{n}", -1)) for n in range(50)]
    appender = stage.log.appender(Stream.RECEIPTS)
    await appender.append(
        [NewRecord(shard, "key", msgspec.json.encode(e)) for shard, e in [*events, (2, story.subscribed("a", -1))]]
    )
    await stage.commit(v, at=2)
    await appender.append([NewRecord(2, "key", msgspec.json.encode(story.answer("a", v, "applied", 10)))])
    await appender.close()
    stage.clock.set(20)


async def test_that_everybody_has_it_is_not_said_before_the_log_was_read(stage, story, counts):
    await backlog(stage, story)
    async with ticking(stage) as term, asyncio.TaskGroup() as tasks:
        held = await waiting(stage, tasks, 1, 0.01)
        report = await held
        await stage.caught_up(term)
        assert counts(report) == counts(await stage.report(1)) == {"applied": 1, "missing": 50}
        assert report.behind is msgspec.UNSET


async def test_a_story_that_may_lack_instances_says_so(stage, story):
    await backlog(stage, story)
    async with stage.leading() as term:
        await stage.caught_up(term)
        assert (await stage.ledger.wait(story.address, 1, 0.01, 0.01)).behind is True  # nobody has looked where the log ends
        await term.keeper.tick()
        assert (await stage.ledger.wait(story.address, 1, 0.01, LONG)).behind is msgspec.UNSET
        assert (await stage.report(1)).behind is msgspec.UNSET


async def test_one_that_follows_the_log_asks_nothing_of_it_for_a_wait(stage, story):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        await term.keeper.tick()
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("a", v, "applied", 10))
        assert (await stage.ledger.wait(story.address, 1, 1.0, LONG)).applied == 1
        assert stage.ledger.horizon_us < story.at(2)
        assert not stage.ledger.hurry.is_set()


async def test_where_the_log_ends_must_be_known_again_after_it_was_not(stage, story):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        await term.keeper.tick()
        stage.ledger.fell_behind()
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("a", v, "applied", 10))
        await stage.caught_up(term)
        assert (await stage.report(1)).behind is True
        stage.clock.set(2)
        await term.keeper.tick()
        assert (await stage.ledger.wait(story.address, 1, 1.0, LONG)).applied == 1


# --- a name that was erased and made again: its numbers begin again, in another epoch ----------------------------------------------------

LATER = 1_790_000_000


def id_of(event):
    return Version.id_of(event.version.payload)


@asynccontextmanager
async def erased(stage, story):
    """Version 1 of the old life is closed; in the new one, ``a`` is subscribed."""
    async with stage.leading() as term:
        await stage.commit(story.version(received=0, number=1), at=2)
        stage.clock.set(500)
        await stage.caught_up(term)
        await term.keeper.tick()
        assert (await stage.report(1)).state == "closed"
        await stage.receipts(story.subscribed("a", 600))
        await stage.caught_up(term)
        yield term


async def test_the_number_of_a_new_life_is_not_answered_with_the_old_one(stage, story, counts):
    """The registry asks as soon as its commit is durable; the ledger needs a moment to read it."""
    new = story.version(received=1000, number=1, epoch=LATER)
    async with erased(stage, story) as term:
        held = asyncio.create_task(stage.ledger.wait(story.address, 1, 1.0, LONG, id_of(new)))
        await asyncio.sleep(0.02)
        await stage.commit(new, at=1002)
        await stage.receipts(story.answer("a", new, "applied", 1010))
        await stage.caught_up(term)
        report = await held
    assert (report.version, counts(report)) == (id_of(new), {"applied": 1})


async def test_a_new_life_that_is_not_known_in_time_is_unknown_rather_than_the_old_one(stage, story):
    new = story.version(received=1000, number=1, epoch=LATER)
    async with erased(stage, story):
        with pytest.raises(NotFound):
            await stage.ledger.wait(story.address, 1, 1.0, 0.01, id_of(new))
        assert (await stage.ledger.wait(story.address, 1, 1.0, 0.01, id_of(story.versions[1]))).state == "closed"


async def test_who_asks_by_number_alone_is_answered_by_the_latest_life(stage, story):
    """As a registry of the previous release asks."""
    new = story.version(received=1000, number=1, epoch=LATER)
    async with erased(stage, story) as term:
        await stage.commit(new, at=1002)
        await stage.receipts(story.answer("a", new, "applied", 1010))
        await stage.caught_up(term)
        assert (await stage.ledger.wait(story.address, 1, 1.0, LONG)).version == id_of(new)
