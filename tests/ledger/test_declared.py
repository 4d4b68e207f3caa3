"""The ledger knows what live instances declare that they can read: each text once, as long as somebody declares it."""

from __future__ import annotations

import msgspec
import pytest

from heliograph.core.errors import Invalid
from heliograph.core.frames import MAX_DECLARED, MAX_DECLARED_SCHEMA
from heliograph.services.ledger import intake

LIMITS, OLDER = '{"type":"object"}', '{"type":"integer"}'


def declaring(story, instance: str, at: float, declares: dict[str, str] | None, **more):
    return msgspec.structs.replace(story.subscribed(instance, at, **more), declares=declares)


async def declared(stage, *configs: str):
    rows = await stage.tables.declared(stage.story.address, list(configs))
    return [(row["config"], row["schema"], row["instances"], row["sample"]) for row in rows]


async def test_each_schema_once_with_those_who_declare_it(stage, story):
    async with stage.leading() as term:
        await stage.receipts(
            *(declaring(story, f"i{n:02}", n, {"limits": LIMITS, "search": LIMITS}) for n in range(30)),
            declaring(story, "old", 50, {"limits": OLDER}),
            story.subscribed("silent", 60),
        )
        await stage.caught_up(term)
        found = await declared(stage, "limits", "missing")
        assert [(config, schema, count) for config, schema, count, _ in found] == [("limits", LIMITS, 30), ("limits", OLDER, 1)]
        assert (len(found[0][3]), found[1][3]) == (20, ["old"])
        assert len(await stage.rows("select from ledger.declared_schema")) == 2


async def test_which_configs_are_declared_by_somebody_who_lives(stage, story):
    async with stage.leading() as term:
        await stage.receipts(
            declaring(story, "a", 0, {"limits": LIMITS, "search": LIMITS}),
            declaring(story, "b", 1, {"limits": OLDER}),
            declaring(story, "gone", 2, {"other": OLDER}),
            story.unsubscribed("gone", 3),
        )
        await stage.caught_up(term)
        assert await stage.tables.declared_names(stage.story.address, 10) == ["limits", "search"]
        assert await stage.tables.declared_names(stage.story.address, 1) == ["limits"]


async def test_what_is_declared_later_replaces_what_was(stage, story):
    async with stage.leading() as term:
        await stage.receipts(declaring(story, "a", 0, {"limits": OLDER}), declaring(story, "a", 1, {"limits": LIMITS}))
        await stage.caught_up(term)
        assert await declared(stage, "limits") == [("limits", LIMITS, 1, ["a"])]
        await stage.receipts(declaring(story, "a", 2, {}))
        await stage.caught_up(term)
        assert await declared(stage, "limits") == []
        (row,) = await stage.rows("select since_us from ledger.subscription")
        assert row["since_us"] == story.at(0)


async def test_only_live_instances_count(stage, story):
    async with stage.leading() as term:
        await stage.receipts(
            declaring(story, "gone", 0, {"limits": OLDER}),
            story.unsubscribed("gone", 1),
            declaring(story, "lost", 2, {"limits": OLDER}, node="node-2"),
            story.alive(3, node="node-2", leaving=True),
            declaring(story, "again", 4, {"limits": OLDER}),
            declaring(story, "again", 5, {"limits": LIMITS}, node="node-3"),
        )
        await stage.caught_up(term)
        assert await declared(stage, "limits") == [("limits", LIMITS, 1, ["again"])]


async def test_texts_that_nobody_names_are_forgotten(stage, story):
    async with stage.leading() as term:
        await stage.receipts(declaring(story, "a", 0, {"limits": OLDER}), declaring(story, "b", 0, {"limits": LIMITS}))
        await stage.receipts(declaring(story, "a", 1, {}))
        await stage.caught_up(term)
        await stage.pool.execute("update ledger.declared_schema set seen_at = '2000-01-01'")
        await term.keeper.retain()
        assert [row["body"] for row in await stage.rows("select body from ledger.declared_schema")] == [LIMITS]


@pytest.mark.parametrize(
    "declares",
    [{"Bad Name": "{}"}, {"a": "x" * (MAX_DECLARED_SCHEMA + 1)}, {f"c{n}": "{}" for n in range(MAX_DECLARED + 1)}, {"a": "\0"}],
)
def test_too_much_is_refused_at_the_door(story, declares):
    with pytest.raises(Invalid):
        intake.from_sync(msgspec.json.encode(declaring(story, "a", 0, declares)), story.at(10))


def test_an_older_node_declares_nothing(story):
    body = msgspec.json.encode(story.subscribed("a", 0))
    assert b"declares" not in body
    assert intake.from_sync(body, story.at(10)).declares is None
