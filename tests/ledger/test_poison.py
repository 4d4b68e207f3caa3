"""Records that cannot be taken in are set aside with a reason; the others do not notice."""

from __future__ import annotations

import asyncpg
import msgspec
import pytest

from heliograph.core.errors import Invalid
from heliograph.core.events import Receipts
from heliograph.services.ledger import intake


async def dead_letters(stage):
    return await stage.rows("select stream, consumer, shard, position, reason, body from eventlog.dead_letter order by id")


async def test_records_that_do_not_parse_are_set_aside_and_the_rest_goes_on(stage, story, counts):
    async with stage.leading() as term:
        await stage.raw_receipt(b"\xff not json")
        await stage.receipts(story.subscribed("a", -1))
        await stage.raw_receipt(b'{"type":"from_the_future"}')
        v = await stage.commit(story.version(received=0), at=2)
        await stage.event(b'{"type":"version"}')
        await stage.receipts(story.answer("a", v, "applied", 5))
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 1}
    found = await dead_letters(stage)
    assert sorted((row["stream"], row["consumer"]) for row in found) == [
        ("receipts", "ledger"),
        ("receipts", "ledger"),
        ("versions", "ledger"),
    ]
    assert all(row["reason"].startswith("not a known event") for row in found)
    assert stage.metric("dead_letters", "_total", stream="receipts") == 2


async def test_a_record_that_postgresql_refuses_is_found_among_the_others(stage, story, counts):
    """Another version with the same number: the log would have to be forged, and the table says no."""
    first, forged, second = story.version(received=0), story.version(received=1, number=1), story.version(received=20, number=2)
    await stage.receipts(story.subscribed("a", -1), *(story.answer("a", each, "applied", 30) for each in (first, second)))
    for at, each in enumerate((first, forged, second)):
        await stage.commit(each, at=at * 10 + 2)
    async with stage.leading() as term:
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 1}
        assert counts(await stage.report(2)) == {"applied": 1}
    [letter] = await dead_letters(stage)
    assert letter["stream"] == "versions"
    assert letter["reason"] == "PostgreSQL refuses it: UniqueViolationError"
    assert letter["body"] == msgspec.json.encode(forged)


async def test_of_many_receipts_in_one_record_only_the_bad_ones_are_set_aside(stage, story, counts):
    v = story.version(received=0)
    said = [story.answer(name, v, "rejected", 5, reason=reason) for name, reason in (("a", "no"), ("b", "x\0y"), ("c", "no"))]
    await stage.receipts(*(story.subscribed(each.instance, -1) for each in said))
    await stage.commit(v, at=2)
    async with stage.leading() as term:
        await stage.raw_receipt(msgspec.json.encode(Receipts.of(said)))
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"rejected": 2, "missing": 1}
    letter = next(each for each in await dead_letters(stage) if each["stream"] == "receipts")
    assert [row.instance for row in msgspec.json.decode(letter["body"], type=Receipts).rows] == ["b"]
    assert letter["reason"] == "holds U+0000"


async def run_as_owner(database, sql):
    connection = await asyncpg.connect(database.url())
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def test_of_many_receipts_in_one_record_only_those_that_postgresql_refuses_are_set_aside(stage, story, counts, database):
    await run_as_owner(database, "alter table ledger.receipt add constraint no_b check (instance not in ('b', 'd'))")
    v = story.version(received=0)
    said = [story.answer(name, v, "applied", 5) for name in "abcd"]
    await stage.receipts(*(story.subscribed(each.instance, -1) for each in said))
    await stage.commit(v, at=2)
    async with stage.leading() as term:
        await stage.raw_receipt(msgspec.json.encode(Receipts.of(said)))
        await stage.receipts(story.answer("e", v, "applied", 6))
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 2, "missing": 2}
    [letter] = await dead_letters(stage)
    assert [row.instance for row in msgspec.json.decode(letter["body"], type=Receipts).rows] == ["b", "d"]
    assert letter["reason"] == "PostgreSQL refuses it: CheckViolationError"


async def test_what_is_refused_at_the_door_and_by_postgresql_in_one_record_is_all_set_aside(stage, story, database):
    await run_as_owner(database, "alter table ledger.receipt add constraint no_b check (instance not in ('b', 'd'))")
    v = story.version(received=0)
    said = [story.answer(name, v, "rejected", 5, reason="x\0y" if name == "c" else "no") for name in "abcd"]
    await stage.commit(v, at=2)
    async with stage.leading() as term:
        await stage.raw_receipt(msgspec.json.encode(Receipts.of(said)))
        await stage.caught_up(term)
    [letter] = [each for each in await dead_letters(stage) if each["stream"] == "receipts"]
    assert [row.instance for row in msgspec.json.decode(letter["body"], type=Receipts).rows] == ["b", "c", "d"]
    assert [row["instance"] for row in await stage.rows("select instance from ledger.receipt")] == ["a"]
    assert stage.metric("dead_letters", "_total", stream="receipts") == 1


ANOTHER_LOG = """
set session_replication_role = replica;
truncate eventlog.log_receipt;
update eventlog.log_receipt_shard set next_position = 1;
update ledger.mark set identity = 'the log before';
update eventlog.dead_letter set log = 'the log before/1';
"""


async def test_a_bad_record_of_another_log_at_the_same_place_is_a_letter_of_its_own(stage, story, database):
    await stage.raw_receipt(b"{}")
    async with stage.leading() as term:
        await stage.caught_up(term)
    await run_as_owner(database, ANOTHER_LOG)
    await stage.raw_receipt(b'{"other":1}')
    stage.new_ledger()
    async with stage.leading() as term:
        await stage.caught_up(term)
    assert [letter["body"] for letter in await dead_letters(stage)] == [b"{}", b'{"other":1}']


async def test_setting_aside_again_makes_no_second_letter(stage, story, database):
    await stage.raw_receipt(b"{}")
    for _ in range(2):
        stage.new_ledger()
        async with stage.leading() as term:
            await stage.caught_up(term)
            async with term.writer.transaction():
                await stage.pool.execute("update ledger.mark set marks = '{}'")
    assert len(await dead_letters(stage)) == 1


def broken(story):
    good = story.answer("a", story.version(received=0), "rejected", 5, reason="no")
    replace = msgspec.structs.replace
    yield "nul", replace(good, reason="a\0b")
    yield "long id", replace(good, instance="x" * 201)
    yield "no id", replace(good, node="")
    yield "bad name", replace(good, namespace="Shop")
    yield "bad version", replace(good, version="sha256:00")
    yield "negative", replace(good, number=-1)
    yield "trace", replace(good, trace="x" * 201)
    yield "huge", replace(good, subscription=2**63)
    yield "future", replace(good, received_at_us=story.at(2 * 86_400_000))
    yield "large view", replace(story.subscribed("a", 0), view=("x",) * 300)
    yield "large fingerprint", story.subscribed("a", 0, labels={"x": "y" * 10_000})
    yield (
        "have",
        replace(story.subscribed("a", 0), have=msgspec.convert({"epoch": 1, "number": 1, "version": "v"}, intake_cursor())),
    )


def intake_cursor():
    from heliograph.core.records import Cursor

    return Cursor


def test_what_does_not_fit_the_tables_is_refused_at_the_door_and_never_repeated(story):
    for name, event in broken(story):
        with pytest.raises(Invalid) as refused:
            intake.from_sync(msgspec.json.encode(event), story.at(10))
        assert "xxx" not in refused.value.detail, name
        assert "Shop" not in refused.value.detail or name == "bad name"


def test_a_reason_that_only_mentions_u0000_is_fine(story):
    good = story.answer("a", story.version(received=0), "rejected", 5, reason="the text \\u0000 is not allowed")
    assert intake.from_sync(msgspec.json.encode(good), story.at(10)) == Receipts.of([good])


def kept(event):
    [row] = Receipts.of([event]).rows
    return intake.answer_in(event.state, row)


def test_a_clock_ahead_is_corrected_and_a_long_reason_is_cut(story):
    v = story.version(received=0)
    assert kept(story.answer("a", v, "applied", 99_000, taken=10)).applied_at_us == story.at(10)
    assert len(kept(story.answer("a", v, "rejected", 5, reason="x" * 5000)).reason) == intake.MAX_REASON
    assert kept(story.answer("a", v, "rejected", 5, reason="")).reason is None


def test_an_event_whose_parts_do_not_belong_together_is_refused(story):
    one, other = story.version(received=0), story.version(received=1)
    for event in (
        msgspec.structs.replace(one, head=other.head),
        msgspec.structs.replace(one, number=9),
        msgspec.structs.replace(one, environment="staging"),
        msgspec.structs.replace(one, version=msgspec.structs.replace(one.version, payload="{}")),
    ):
        with pytest.raises(Invalid):
            intake.commit_in(event, 0)


async def test_a_value_that_the_driver_refuses_is_poison_not_an_outage(stage, story):
    from heliograph.services.ledger.batch import Batch
    from heliograph.services.ledger.postgres import UNREADABLE

    async with stage.leader().term() as term:
        event = msgspec.structs.replace(story.subscribed("a", 0), incarnation=2**70)
        with pytest.raises(UNREADABLE):
            async with term.writer.transaction():
                await term.writer.write(Batch(subscribed={("c", 1): event}))
