"""What the ledger sets aside can be taken in again; what instances refuse is grouped into letters that a person can work through."""

from __future__ import annotations

import msgspec
import pytest

from heliograph.core.errors import InvalidRequest, Unavailable
from heliograph.core.records import Version
from heliograph.eventlog import dead_letters
from heliograph.services.ledger.again import AT_ONCE
from heliograph.services.ledger.keep import DAY_US
from heliograph.services.ledger.postgres import MAX_GROUPS, MAX_SAMPLE

from .test_closing import closed_one, closed_without_the_last


async def letters(stage):
    return await stage.rows("select * from eventlog.dead_letter order by id")


async def operator_replays(stage, number: int, *, state: str = "replaying", trace: str | None = "trace-of-replay") -> None:
    """As the registry does it."""
    async with stage.pool.acquire() as connection:
        assert await dead_letters.replay(connection, [number], state=state, by="tok_1", trace=trace) == [number]


# --- records --------------------------------------------------------------------------------------------------------------------------


async def mend(stage, number: int, body: bytes) -> None:
    await stage.pool.execute("update eventlog.dead_letter set body = $2 where id = $1", number, body)


async def test_a_receipt_that_was_set_aside_is_taken_in_once_it_can_be(stage, story, counts):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.raw_receipt(b"from another release")
        await stage.caught_up(term)
        (letter,) = await letters(stage)
        assert await term.again.take_in() == 0  # nobody asked

        await operator_replays(stage, letter["id"])
        assert await term.again.take_in() == 1
        (letter,) = await letters(stage)
        assert (letter["state"], letter["attempts"], letter["replays"]) == ("waiting", 2, 1)
        assert letter["reason"].startswith("not a known event")
        assert stage.metric("dead_letters_failed_again", "_total", stream="receipts") == 1

        await mend(stage, letter["id"], msgspec.json.encode(story.answer("a", v, "applied", 5)))
        await operator_replays(stage, letter["id"])
        assert await term.again.take_in() == 1
        (letter,) = await letters(stage)
        assert (letter["state"], letter["attempts"], letter["replays"]) == ("replayed", 2, 2)
        assert counts(await stage.report(1)) == {"applied": 1}
        await stage.caught_up(term)  # the log's marks are where they were


async def test_a_version_that_was_set_aside_gets_its_story(stage, story, counts):
    await stage.receipts(story.subscribed("a", -1))
    v = story.version(received=0)
    async with stage.leading() as term:
        await stage.event(b'{"type":"version"}', at=2)
        await stage.receipts(story.answer("a", v, "applied", 5))
        await stage.caught_up(term)
        (letter,) = await letters(stage)
        assert letter["logged_at_us"] == story.at(2)
        await mend(stage, letter["id"], msgspec.json.encode(v))
        await operator_replays(stage, letter["id"])
        await term.again.take_in()
        report = await stage.report(1)
        assert (counts(report), report.committed_at_us) == ({"applied": 1}, story.at(2))


async def test_taking_in_twice_does_nothing_the_second_time(stage, story, counts):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        v = await stage.commit(story.version(received=0), at=2)
        answer = story.answer("a", v, "applied", 5)
        await stage.receipts(answer)
        await stage.raw_receipt(b"{}")
        await stage.caught_up(term)
        (letter,) = await letters(stage)
        await mend(stage, letter["id"], msgspec.json.encode(answer))
        await operator_replays(stage, letter["id"])
        await term.again.take_in()
        assert counts(await stage.report(1)) == {"applied": 1}
        assert len(await stage.rows("select from ledger.receipt")) == 1


async def test_deep_nesting_is_poison_and_nothing_worse(stage, story, counts):
    deep = b'{"type":"received","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        await stage.raw_receipt(deep)
        await stage.event(deep.replace(b"received", b"version"), at=1)
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("a", v, "applied", 5))
        await stage.caught_up(term)
        assert counts(await stage.report(1)) == {"applied": 1}
    assert len(await letters(stage)) == 2


# --- reports for the audit trail ------------------------------------------------------------------------------------------------------


async def dead_report(stage, story, term):
    """A closed propagation that the registry would not take; its letter."""
    stage.trail.failures = [InvalidRequest("the registry refused with 422")]
    v = await closed_one(stage, story)
    await stage.caught_up(term)
    await term.keeper.tick()
    await term.auditor.post_due()
    (letter,) = await letters(stage)
    assert (letter["state"], letter["version"]) == ("waiting", Version.id_of(v.version.payload))
    assert (letter["namespace"], letter["environment"], letter["number"]) == ("shop", "production", 1)
    return letter["id"]


async def test_a_report_that_was_set_aside_is_posted_after_all(stage, story):
    async with stage.leading() as term:
        number = await dead_report(stage, story, term)
        await operator_replays(stage, number)
        for _ in range(3):  # looked at again while it is being posted
            assert await term.again.take_in() == 0
        assert await term.auditor.post_due() == 1
        assert len(stage.trail.closed) == 1
        (letter,) = await letters(stage)
        assert (letter["id"], letter["state"]) == (number, "replayed")


@pytest.mark.parametrize("failures", [[InvalidRequest("again")], [Unavailable("away")] * 2])
async def test_a_report_that_fails_again_is_the_same_letter(stage, story, failures):
    stage.settings = stage.settings.model_copy(update={"audit_attempts": len(failures)})
    async with stage.leading() as term:
        number = await dead_report(stage, story, term)
        await operator_replays(stage, number)
        await term.again.take_in()
        stage.trail.failures = list(failures)
        for hour in range(3):
            stage.clock.set(3_600_000 * hour + 10)
            await term.again.take_in()
            await term.auditor.post_due()
        (letter,) = await letters(stage)
        assert (letter["id"], letter["state"], letter["attempts"]) == (number, "waiting", 1 + len(failures))
        assert letter["reason"] == f"{failures[-1].code}: {failures[-1].detail}"
        assert stage.metric("dead_letters_failed_again", "_total", stream="deliveries") == 1
        assert stage.trail.closed == []


async def test_reports_that_are_being_told_hold_up_no_other_letter(stage, story):
    """As many as are looked at in one go, for an audit trail that stays away."""
    async with stage.leading() as term:
        await dead_report(stage, story, term)
        await stage.pool.execute(
            """insert into ledger.version (namespace, environment, epoch, number, version, received_at_us, committed_at_us, closed_at_us, audit)
               select namespace, environment, epoch, number + n, version || n, 0, 0, 0, 'dead' from ledger.version, generate_series(1, $1) n""",
            AT_ONCE,
        )
        await stage.pool.execute(
            """insert into eventlog.dead_letter (stream, consumer, key, body, reason, attempts)
               select 'deliveries', 'ledger', version, '', 'away', 1 from ledger.version where audit = 'dead' and number > 1"""
        )
        await stage.raw_receipt(msgspec.json.encode(story.subscribed("a", 100)) + b"...")
        await stage.caught_up(term)
        *_, last = await letters(stage)
        await mend(stage, last["id"], msgspec.json.encode(story.subscribed("a", 100)))
        for each in await letters(stage):
            await operator_replays(stage, each["id"])
        assert [await term.again.take_in() for _ in range(3)] == [0, 1, 0]
        assert [each["state"] for each in await letters(stage)] == ["replaying"] * (AT_ONCE + 1) + ["replayed"]


async def test_a_report_that_is_gone_says_so(stage, story):
    async with stage.leading() as term:
        number = await dead_report(stage, story, term)
        await operator_replays(stage, number)
        await stage.pool.execute("update ledger.version set audit = null")
        assert await term.again.take_in() == 1
        (letter,) = await letters(stage)
        assert (letter["state"], letter["attempts"]) == ("waiting", 2)
        assert "not kept" in letter["reason"]


# --- versions that instances reject -----------------------------------------------------------------------------------------------------


async def refused(stage, story, term, version, *names: str, reason: str | None = "no", at: float = 5, trace: str | None = None):
    events = [story.answer(name, version, "rejected", at, reason=reason) for name in names]
    await stage.receipts(*(msgspec.structs.replace(each, trace=trace) for each in events))
    await stage.caught_up(term)


async def test_ten_thousand_rejections_for_one_reason_are_one_letter(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await refused(stage, story, term, v, *(f"i{n:05}" for n in range(10_000)))
        await refused(stage, story, term, v, "other", reason="something else")
        await refused(stage, story, term, v, "silent", reason=None)
        await refused(stage, story, term, v, "i00001")  # resent
        first, second, third = await letters(stage)
    assert (first["stream"], first["consumer"], first["key"]) == ("deliveries", "instances", "shop/production")
    assert (first["reason"], first["instances"], first["number"]) == ("no", 10_000, 1)
    assert (len(first["sample"]), first["attempts"], first["version"]) == (MAX_SAMPLE, 1, Version.id_of(v.version.payload))
    assert (second["reason"], second["instances"], second["sample"]) == ("something else", 1, ["other"])
    assert (third["reason"], third["instances"]) == ("rejected without a reason", 1)
    assert stage.metric("dead_letters", "_total", stream="deliveries") == 3


async def test_reasons_without_end_are_bounded(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        for n in range(0, 60, 6):
            for each in range(n, n + 6):
                await stage.receipts(story.answer(f"i{each}", v, "rejected", 5, reason=f"reason {each}"))
            await stage.caught_up(term)
        found = await letters(stage)
    assert len(found) == MAX_GROUPS + 1
    assert (found[-1]["reason"], found[-1]["instances"]) == ("other reasons", 60 - MAX_GROUPS)
    assert {each["instances"] for each in found[:-1]} == {1}


async def taken_in_s(stage, story, term, reason) -> float:
    """How long the ledger works on the rejections of 3,000 instances of one more version."""
    v = await stage.commit(story.version(received=0), at=2)
    await stage.caught_up(term)
    before = stage.metric("ledger_batch_seconds", "_sum")
    await stage.receipts(*(story.answer(f"i{n:04}", v, "rejected", 5, reason=reason(n)) for n in range(3_000)))
    await stage.caught_up(term)
    return stage.metric("ledger_batch_seconds", "_sum") - before


async def test_a_reason_of_its_own_from_each_instance_costs_little_more_than_one_for_all(stage, story):
    async with stage.leading() as term:
        same = await taken_in_s(stage, story, term, lambda _: "no")
        own = await taken_in_s(stage, story, term, lambda n: f"host {n}: the port is taken")
        found = await letters(stage)
    assert [each["instances"] for each in found] == [3_000] + [1] * MAX_GROUPS + [3_000 - MAX_GROUPS]
    assert own < 5 * same + 1  # a scan of all the version's answers for each reason: some thirty times as long


async def test_a_reason_with_a_letter_is_counted_there_among_reasons_without_end(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await refused(stage, story, term, v, "first")
        events = [story.answer(f"i{n:03}", v, "rejected", 5, reason=f"reason {n}") for n in range(100)]
        await stage.receipts(*events, story.answer("last", v, "rejected", 5, reason="no"))
        await stage.caught_up(term)
        first, *_, others = await letters(stage)
    assert (first["reason"], first["sample"]) == ("no", ["first", "last"])
    assert (others["reason"], others["instances"]) == ("other reasons", 100 - (MAX_GROUPS - 1))


async def test_a_push_that_is_refused_again_is_found_among_reasons_without_end(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await refused(stage, story, term, v, *(f"i{n:03}" for n in range(30)))
        events = [story.answer(f"j{n:03}", v, "rejected", 5, reason=f"reason {n}") for n in range(30)]
        await stage.receipts(*events)
        await stage.caught_up(term)
        first, *_, others = await letters(stage)
        await operator_replays(stage, first["id"], state="replayed", trace="00-push")
        await operator_replays(stage, others["id"], state="replayed", trace="00-other-push")
        more = [story.answer(f"k{n:03}", v, "rejected", 6, reason=f"more {n}") for n in range(30)]
        again = [msgspec.structs.replace(story.answer("i001", v, "rejected", 7, reason="still no"), trace="00-push")]
        again += [msgspec.structs.replace(story.answer("k030", v, "rejected", 7, reason="more 30"), trace="00-other-push")]
        await stage.receipts(*more, *again)
        await stage.caught_up(term)
        first, *_, others = await letters(stage)
    assert (first["state"], first["reason"], first["instances"], first["attempts"]) == ("waiting", "still no", 30, 2)
    assert (others["state"], others["instances"], others["attempts"]) == ("waiting", 30 - (MAX_GROUPS - 1) + 31, 2)


async def test_an_instance_that_has_applied_it_by_then_makes_no_letter(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("a", v, "applied", 9))
        await refused(stage, story, term, v, "a")
        assert await letters(stage) == []


async def test_a_push_that_is_refused_again_is_the_same_letter(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await refused(stage, story, term, v, "a", "b")
        (letter,) = await letters(stage)
        await operator_replays(stage, letter["id"], state="replayed", trace="00-push-1")
        await refused(stage, story, term, v, "a", trace="00-an-old-one")  # the log, read again
        assert [each["state"] for each in await letters(stage)] == ["replayed"]
        await refused(stage, story, term, v, "a", "b", trace="00-push-1")
        (letter,) = await letters(stage)
        assert (letter["state"], letter["attempts"], letter["replays"], letter["settled_by"]) == ("waiting", 2, 1, None)

        await operator_replays(stage, letter["id"], state="replayed", trace="00-push-2")
        await refused(stage, story, term, v, "a", reason="another reason", trace="00-push-2")
        (letter,) = await letters(stage)
        assert (letter["state"], letter["attempts"], letter["reason"]) == ("waiting", 3, "another reason")
        assert (letter["first_reason"], letter["instances"]) == ("no", 2)
        assert stage.metric("dead_letters_failed_again", "_total", stream="deliveries") == 2


async def test_one_that_comes_later_and_refuses_is_a_failure_too(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await refused(stage, story, term, v, "a")
        (letter,) = await letters(stage)
        await operator_replays(stage, letter["id"], state="replayed")
        await stage.pool.execute("update eventlog.dead_letter set settled_at = to_timestamp($1::bigint / 1e6)", story.at(100))
        await refused(stage, story, term, v, "late", at=200)
        (letter,) = await letters(stage)
        assert (letter["state"], letter["instances"]) == ("waiting", 2)


async def test_a_letter_does_not_count_who_has_applied_it_after_the_close(stage, story):
    async with stage.leading() as term:
        v = await closed_without_the_last(stage, story, term)
        (letter,) = await letters(stage)
        assert letter["instances"] == 2
        await operator_replays(stage, letter["id"], state="replayed", trace="00-push")
        await stage.receipts(story.answer("a", v, "applied", 61_000))
        await refused(stage, story, term, v, "b", at=61_000, trace="00-push")
        (letter,) = await letters(stage)
    assert (letter["state"], letter["instances"], letter["sample"]) == ("waiting", 1, ["b"])


async def test_a_letter_does_not_count_who_has_applied_it_on_another_day(stage, story):
    midnight = story.start_us // DAY_US * DAY_US
    story.start_us = stage.clock.us = midnight - 1_000_000
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await refused(stage, story, term, v, "a", "b", at=500)
        stage.clock.set(2_000)
        await stage.receipts(story.answer("a", v, "applied", 1_500))
        await refused(stage, story, term, v, "b", at=1_600)
        (letter,) = await letters(stage)
    assert (letter["instances"], letter["sample"]) == (1, ["b"])


async def test_an_instance_counts_while_one_of_its_subscriptions_refuses(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("a", v, "applied", 5, subscription=2))
        await refused(stage, story, term, v, "a")
        (letter,) = await letters(stage)
    assert (letter["instances"], letter["sample"]) == (1, ["a"])


async def test_what_an_operator_discarded_stays_discarded(stage, story):
    async with stage.leading() as term:
        v = await stage.commit(story.version(received=0), at=2)
        await refused(stage, story, term, v, "a")
        (letter,) = await letters(stage)
        async with stage.pool.acquire() as connection:
            await dead_letters.discard(connection, [letter["id"]], by="tok_1", note="known")
        await refused(stage, story, term, v, "b", at=10_000)
        (letter,) = await letters(stage)
        assert (letter["state"], letter["instances"], letter["note"]) == ("discarded", 2, "known")
