"""Records that retention took before they were read: the registry says what each environment is at."""

from __future__ import annotations

import asyncpg
import pytest

from heliograph.core.errors import NotFound, Unavailable
from heliograph.eventlog.ports import Stream
from heliograph.services.ledger.answers import Line, digest_of
from heliograph.services.ledger.ports import CurrentHead


async def skip_a_position(stage):
    """As when retention dropped what had not been read."""
    connection = await asyncpg.connect(stage.database.url())
    await connection.execute("update eventlog.event_shard set next_position = next_position + 1")
    await connection.close()


def current(version):
    return CurrentHead(version.namespace, version.environment, version.head, version.version)


@pytest.fixture
async def missed(stage, story):
    """Version 1 was seen, 2 and 3 were not."""
    versions = [story.version(received=n * 1000) for n in range(3)]
    async with stage.leading() as term:
        await stage.commit(versions[0], at=2)
        await stage.receipts(story.subscribed("a", 100), story.answer("a", versions[0], "applied", 110))
        await stage.caught_up(term)
    await skip_a_position(stage)
    await skip_a_position(stage)
    stage.trail.current = [current(versions[2])]
    return versions


async def test_the_head_is_known_after_a_gap_and_the_story_goes_on(stage, story, missed):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=3000), at=3002)
        await stage.caught_up(term)
        assert (await stage.report(v.number)).instances == 1
        with pytest.raises(NotFound):
            await stage.report(2)
        with pytest.raises(NotFound):
            await stage.report(3)
    assert stage.metric("log_gaps", "_total", stream="versions") == 1
    head = await stage.tables.head(story.address)
    assert head.number == 4


async def test_a_version_known_by_name_only_gets_its_story_when_its_record_comes_after_all(stage, story, missed):
    async with stage.leading() as term:
        await stage.commit(missed[2], at=2002)
        await stage.caught_up(term)
        assert (await stage.report(3)).instances == 1


async def digest_is_over_all_receipts(stage, report):
    """Whether each stands in it, as the API shows them."""
    rows = await stage.tables.receipts(report.version, ("", -1), None, 500)
    columns = ("instance", "subscription", "state", "reason", "applied_at_us", "received_at_us")
    assert not any(row["late"] for row in rows)
    return report.digest == digest_of(report.version, [Line(*(row[name] for name in columns)) for row in rows])


async def test_receipts_between_the_name_and_the_story_are_in_the_digest(stage, story, missed, counts):
    async with stage.leading() as term:
        await term.consumer._missed(Stream.VERSIONS)  # as a record of another environment, behind the gap, has it done
        await stage.receipts(story.answer("a", missed[2], "rejected", 2010, reason="no"))
        await term.consumer.caught_up(Stream.RECEIPTS, 10)
        await stage.commit(missed[2], at=2002)
        await stage.receipts(story.answer("a", missed[2], "applied", 2030))
        await stage.caught_up(term)
        stage.clock.set(4000)
        await term.keeper.tick()
        report = await stage.report(3)
    assert (report.state, counts(report)) == ("closed", {"applied": 1})
    assert await digest_is_over_all_receipts(stage, report)


async def test_receipts_that_the_previous_release_called_late_are_in_the_digest_of_the_story_that_came(stage, story, missed):
    async with stage.leading() as term:
        await term.consumer._missed(Stream.VERSIONS)
        await stage.receipts(story.answer("a", missed[2], "applied", 2010))
        await term.consumer.caught_up(Stream.RECEIPTS, 10)
        await stage.pool.execute("update ledger.receipt set late = true where received_at_us > $1", story.at(2000))
        await stage.commit(missed[2], at=2002)
        await stage.caught_up(term)
        stage.clock.set(4000)
        await term.keeper.tick()
        report = await stage.report(3)
    assert await digest_is_over_all_receipts(stage, report)


async def test_a_registry_that_is_away_stops_nothing(stage, story, missed):
    async def heads():
        raise Unavailable("away")
        yield

    stage.trail.heads = heads
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=3000), at=3002)
        await stage.caught_up(term)
        assert (await stage.report(v.number)).instances == 1


async def test_nonsense_from_the_registry_stops_nothing(stage, story, missed):
    stage.trail.current = [CurrentHead("shop", "production", missed[2].version, missed[2].head)]
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=3000), at=3002)
        await stage.caught_up(term)
        assert (await stage.report(v.number)).instances == 1
