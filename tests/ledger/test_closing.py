"""A propagation is closed once, with a digest that anyone can compute again, and the audit trail learns of it."""

from __future__ import annotations

import hashlib

import pytest

from heliograph.core.canonical import canonical
from heliograph.core.errors import InvalidRequest, Unavailable
from heliograph.core.records import Version


async def receipts(stage, version):
    rows = await stage.tables.receipts(Version.id_of(version.version.payload), ("", -1), None, 500)
    return [dict(row) for row in rows]


def digest_by_hand(version, rows):
    """Only what the documentation says, from what the API shows."""
    text = b"heliograph/v1/receipts\n" + Version.id_of(version.version.payload).encode() + b"\n"
    for row in sorted(
        (row for row in rows if not row["late"]), key=lambda row: (row["instance"].encode(), row["subscription"])
    ):
        names = ("instance", "subscription", "state", "reason", "applied_at_us", "received_at_us")
        text += canonical([row[name] for name in names]) + b"\n"
    return "sha256:" + hashlib.sha256(text).hexdigest()


async def test_all_have_answered(stage, story, counts):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1), story.subscribed("B", -1), story.subscribed("é", -1))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(
            story.answer("B", v, "applied", 11),
            story.answer("é", v, "rejected", 12, reason='not "now" — später'),
            story.answer("late-joiner", v, "applied", 13),
        )
        await stage.caught_up(term)
        stage.clock.set(20)
        await term.keeper.tick()
        assert (await stage.report(1)).state == "open"
        await stage.receipts(story.answer("a", v, "applied", 21))
        await stage.caught_up(term)
        await term.keeper.tick()
        report = await stage.report(1)
    assert (report.state, report.outcome, report.closed_at_us) == ("closed", "complete", story.at(20))
    assert counts(report) == {"applied": 2, "rejected": 1}
    assert report.digest == digest_by_hand(v, await receipts(stage, v))
    assert stage.metric("propagations_closed", "_total", outcome="complete") == 1
    assert stage.metric("propagations_open") == 0


async def test_what_comes_late_is_kept_and_changes_nothing_that_was_published(stage, story, counts):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1), story.subscribed("b", -1))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("b", v, "rejected", 10, reason="no"))
        await stage.caught_up(term)
        stage.clock.set(60_001)
        await term.keeper.tick()
        assert (await stage.report(1)).state == "open"
        stage.clock.set(60_002)
        await term.keeper.tick()
        before = await stage.report(1)
        assert (before.outcome, counts(before)) == ("deadline", {"rejected": 1, "missing": 1})
        await stage.receipts(story.answer("a", v, "applied", 61_000), story.answer("b", v, "applied", 61_000))
        await stage.caught_up(term)
        assert await stage.report(1) == before
    rows = await receipts(stage, v)
    assert [(row["instance"], row["state"], row["late"]) for row in rows] == [("a", "applied", True), ("b", "rejected", False)]
    assert before.digest == digest_by_hand(v, rows)


async def closed_without_the_last(stage, story, term):
    """Two refuse it; then it is closed."""
    await stage.receipts(story.subscribed("a", -1), story.subscribed("b", -1))
    v = await stage.commit(story.version(received=0), at=2)
    await stage.receipts(*(story.answer(name, v, "rejected", 500, reason="no") for name in "ab"))
    await stage.caught_up(term)
    stage.clock.set(60_002)
    await term.keeper.tick()
    assert (await stage.report(1)).state == "closed"
    return v


async def test_of_what_comes_late_the_better_answer_is_kept(stage, story):
    """Beside the one that was published, on the same day and on another; what is not better than that one is nothing new."""
    async with stage.leading() as term:
        v = await closed_without_the_last(stage, story, term)
        rows = await receipts(stage, v)
        for at, state in ((61_000, "superseded"), (62_000, "applied"), (63_000, "unaffected")):
            await stage.receipts(story.answer("a", v, state, at), story.answer("late-joiner", v, state, at))
        await stage.receipts(story.answer("b", v, "rejected", 500, reason="no"), story.answer("b", v, "rejected", 64_000))
        await stage.caught_up(term)
    kept = await stage.rows("select instance, state::text, received_at_us from ledger.late_receipt order by 1")
    assert [tuple(row) for row in kept] == [
        ("a", "applied", story.at(62_001)),
        ("late-joiner", "applied", story.at(62_001)),
    ]
    shown = await receipts(stage, v)
    assert [row for row in shown if not row["late"]] == rows
    assert (await stage.report(1)).digest == digest_by_hand(v, shown)


async def test_a_ledger_that_was_away_counts_the_answers_it_finds_before_it_closes(stage, story, counts):
    v = story.version(received=0)
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        await stage.commit(v, at=2)
        await stage.caught_up(term)
    await stage.receipts(story.answer("a", v, "applied", 10))
    stage.clock.set(600_000)
    stage.new_ledger()
    async with stage.leading() as term:
        await term.keeper.tick()
        report = await stage.report(1)
    assert (report.state, counts(report)) == ("closed", {"applied": 1})


async def test_one_environment_has_so_many_open_at_most(stage, story):
    settings = stage.settings.model_copy(update={"propagation_max_open": 3})
    stage.settings = settings
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("a", -1))
        for n in range(5):
            await stage.commit(story.version(received=n), at=n + 1)
        await stage.caught_up(term)
        await term.keeper.tick()
        outcomes = [(await stage.report(n)).outcome for n in range(1, 6)]
    assert outcomes == ["overtaken", "overtaken", None, None, None]


async def closed_one(stage, story):
    v = await stage.commit(story.version(received=0), at=2)
    stage.clock.set(10)
    return v


async def test_the_audit_trail_is_told_once(stage, story):
    async with stage.leading() as term:
        await closed_one(stage, story)
        await stage.caught_up(term)
        await term.keeper.tick()
        assert await term.auditor.post_due() == 1
        assert await term.auditor.post_due() == 0
        assert stage.trail.closed == [await stage.report(1)]


async def test_a_registry_that_is_away_is_asked_again_later(stage, story):
    stage.trail.failures = [Unavailable("away"), Unavailable("away")]
    async with stage.leading() as term:
        await closed_one(stage, story)
        await stage.caught_up(term)
        await term.keeper.tick()
        posted = []
        for minute in range(4):
            stage.clock.set(60_000 * minute + 10)
            posted.append(await term.auditor.post_due())
    assert posted == [1, 1, 1, 0]
    assert len(stage.trail.closed) == 1
    assert stage.metric("retries", "_total", operation="audit") == 2


@pytest.mark.parametrize("failures", [[InvalidRequest("the registry refused with 422")], [Unavailable("away")] * 3])
async def test_what_cannot_be_told_is_set_aside_and_holds_up_nothing(stage, story, failures):
    stage.settings = stage.settings.model_copy(update={"audit_attempts": len(failures)})
    stage.trail.failures = list(failures)
    async with stage.leading() as term:
        v = await closed_one(stage, story)
        await stage.caught_up(term)
        await term.keeper.tick()
        for hour in range(5):
            stage.clock.set(3_600_000 * hour + 10)
            await term.auditor.post_due()
        assert stage.trail.closed == []
        [letter] = await stage.rows("select stream, consumer, key, reason, attempts from eventlog.dead_letter")
        assert (letter["stream"], letter["consumer"], letter["attempts"]) == ("deliveries", "ledger", len(failures))
        assert letter["key"] == Version.id_of(v.version.payload)
        assert letter["reason"] == f"{failures[-1].code}: {failures[-1].detail}"
        w = await stage.commit(story.version(received=3_600_000 * 5), at=3_600_000 * 5)
        stage.clock.set(3_600_000 * 6)
        await stage.caught_up(term)
        await term.keeper.tick()
        await term.auditor.post_due()
    assert [each.number for each in stage.trail.closed] == [w.number]


async def test_old_days_are_dropped_and_the_rest_stays(stage, story, database):
    async with stage.leading() as term:
        v = await closed_one(stage, story)
        await stage.receipts(story.subscribed("a", -1), story.answer("a", v, "applied", 5), story.unsubscribed("a", 6))
        await stage.caught_up(term)
        await term.keeper.tick()
        await term.auditor.post_due()
        await stage.receipts(story.answer("a", v, "rejected", 12, reason="no"), story.answer("b", v, "applied", 12))
        await stage.caught_up(term)
        await term.keeper.retain()
        assert [row["late"] for row in await receipts(stage, v)] == [False, True]
        stage.clock.set(40 * 86_400_000)
        await term.keeper.retain()
        assert await receipts(stage, v) == []
        assert await stage.rows("select from ledger.late_receipt") == []
        assert (await stage.report(1)).state == "closed"
        assert await stage.rows("select from ledger.subscription") == []
