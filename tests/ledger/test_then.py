"""What ran at a time in the past, as far as connections and receipts are kept; and honesty about what is not."""

from __future__ import annotations

from heliograph.core.records import Cursor
from heliograph.core.times import to_text

from .test_api import PLACE, ask, items  # noqa: F401  # the first is a fixture

HOUR_MS = 3_600_000


async def test_what_was_applied_after_the_close_ran_then(stage, story, ask):  # noqa: F811
    async with stage.leading() as term:
        one = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.subscribed("a", -1), story.answer("a", one, "applied", 10))
        two = await stage.commit(story.version(received=1000), at=1002)
        await stage.receipts(story.answer("a", two, "rejected", 1010, reason="no"))
        await stage.caught_up(term)
        stage.clock.set(3000)
        await term.keeper.tick()
        await stage.receipts(story.answer("a", two, "applied", 4000))  # it was told again, and now it fits
        await stage.caught_up(term)
        three = await stage.commit(story.version(received=9000), at=9002)
        await stage.receipts(story.answer("a", three, "applied", 9010))
        await stage.caught_up(term)
        stage.clock.set(20_000)
        told = [await items(ask, f"instances/{PLACE}", at=to_text(story.at(ms))) for ms in (3500, 6000, 10_000)]
    assert [each[0]["ran"]["number"] for each in told] == [1, 2, 3]


async def test_what_ran_then(stage, story, ask):  # noqa: F811
    have = Cursor(1, 1, "sha256:" + "1" * 64)
    async with stage.leading() as term:
        one = await stage.commit(story.version(received=0), at=2)
        two = await stage.commit(story.version(received=1000), at=1002)
        three = await stage.commit(story.version(received=2000), at=2002)
        await stage.receipts(
            story.subscribed("steady", 10),
            story.subscribed("moved", 10, connection="c1"),
            story.unsubscribed("moved", 1500, connection="c1"),
            story.subscribed("moved", 1600, connection="c2", incarnation=2),
            story.subscribed("stubborn", 10),
            story.subscribed("late", 1800, have=have),
            story.subscribed("mute", 10),
        )
        await stage.receipts(
            *(story.answer("steady", v, "applied", at) for v, at in ((one, 20), (two, 1020), (three, 2020))),
            story.answer("moved", one, "applied", 20, connection="c1"),
            story.answer("moved", three, "unaffected", 2020, connection="c2"),
            story.answer("stubborn", one, "applied", 20),
            story.answer("stubborn", two, "rejected", 1020, reason="no"),
        )
        await stage.caught_up(term)
        stage.clock.set(5000)

        async def ran(ms: float, **params):
            found = await items(ask, f"instances/{PLACE}", at=to_text(story.at(ms)), **params)
            return {each["instance"]: each["ran"] and each["ran"]["number"] for each in found}

        assert await ran(15) == {"moved": None, "mute": None, "steady": None, "stubborn": None}
        assert await ran(500) == {"moved": 1, "mute": None, "steady": 1, "stubborn": 1}
        assert await ran(1550) == {"mute": None, "steady": 2, "stubborn": 1}
        assert await ran(1900) == {"late": 1, "moved": 1, "mute": None, "steady": 2, "stubborn": 1}
        assert await ran(4000) == {"late": 1, "moved": 3, "mute": None, "steady": 3, "stubborn": 1}
        assert await ran(1900, instance="moved") == {"moved": 1}
        page = (await ask(f"instances/{PLACE}", at=to_text(story.at(1900)), limit=2)).json()
        assert ([each["instance"] for each in page["items"]], page["next"]) == (["late", "moved"], "moved")
        assert page["at"] == to_text(story.at(1900))
        rest = (await ask(f"instances/{PLACE}", at=to_text(story.at(1900)), limit=5, cursor="moved")).json()
        assert ([each["instance"] for each in rest["items"]], rest["next"]) == (["mute", "steady", "stubborn"], None)
        (steady,) = await items(ask, f"instances/{PLACE}", at=to_text(story.at(1900)), instance="steady")
        assert steady["ran"]["since_us"] == story.at(1020)
        assert steady["subscriptions"][0]["id"] == 1


async def test_times_that_nothing_is_known_of(stage, story, ask):  # noqa: F811
    async def refused(ms: float, status: int) -> str:
        answer = await ask(f"instances/{PLACE}", at=to_text(story.at(ms)))
        assert answer.status_code == status, answer.text
        return answer.json()["detail"]

    assert "the past" in await refused(HOUR_MS, 400)
    assert "not known before" in await refused(-30 * 24 * HOUR_MS, 404)
    stage.clock.set(8 * 24 * HOUR_MS)
    kept = (await ask(f"instances/{PLACE}", at=to_text(story.at(2 * 24 * HOUR_MS)))).json()
    assert kept["not_before"] == to_text(story.at(24 * HOUR_MS))
    assert to_text(story.at(24 * HOUR_MS)) in await refused(23 * HOUR_MS, 404)
    for at in ("yesterday", "2026-11-01T12:00:00", "x" * 90):
        assert (await ask(f"instances/{PLACE}", at=at)).status_code == 400
    assert (await ask(f"instances/{PLACE}", instance="a")).status_code == 400
