"""The history of one config, and who last changed each of its values."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from heliograph.core.canonical import Json
from heliograph.core.jsondiff import same
from heliograph.services.registry.blame import Trail, unchanged, values

from .conftest import Author, good, problem


async def test_history_of_a_config(author: Author) -> None:
    good(await author.put("a", 1), 201)
    good(await author.put("b", 1), 201)
    good(await author.put("a", 2, headers={"Heliograph-Message": "why"}), 201)
    good(await author.put_schema("a", {"type": "integer"}), 201)
    good(await author.ask("DELETE", "/configs/a"), 201)
    good(await author.ask("POST", "/rollback", json={"to": 4}), 201)
    told = good(await author.get("/history/a"))
    assert [(each["number"], each["change"], each["kind"]) for each in told["items"]] == [
        (7, "added", "rollback"),
        (6, "removed", "publish"),
        (5, "changed", "publish"),
        (4, "changed", "publish"),
        (2, "added", "publish"),
    ]
    assert [each["schema_changed"] for each in told["items"]] == [False, True, True, False, False]
    assert (told["items"][3]["message"], told["items"][0]["source"]["number"], told["next"]) == ("why", 4, None)
    assert told["items"][0]["document"] == told["items"][3]["document"] != told["items"][4]["document"]
    pages, cursor = [], ""
    while cursor is not None:
        page = good(await author.get("/history/a", params={"limit": 2} | ({"cursor": cursor} if cursor else {})))
        pages.append(page["items"])
        cursor = page["next"]
    assert [each for page in pages for each in page] == told["items"]
    assert list(map(len, pages)) == [2, 2, 1]
    assert good(await author.get("/history/never"))["items"] == []
    problem(await author.get("/v1/namespaces/shop/environments/nowhere/history/a"), 404, "not-found")
    problem(await author.get("/history/A"), 400, "invalid-name")


async def test_history_of_a_config_costs_a_page(author: Author, sql: Any) -> None:
    """Whatever the length of the history, a page is read from the end of an index."""
    await sql.execute(
        "insert into registry.change select 'shop', 'production', 'hot', n from generate_series(1, 20000) n; analyze registry.change"
    )
    plan = await sql.fetchval(
        "explain (format json) select number from registry.change where namespace = 'shop' and environment = 'production' "
        "and name = 'hot' and number < 15000 order by number desc limit 51"
    )
    assert "Index Only Scan" in plan
    assert "Sort" not in plan


async def test_versions_of_a_release_before_are_indexed_too(author: Author, sql: Any) -> None:
    """What a commit changed is noted by the database, whoever commits."""
    await author.publish(*({"name": f"f/c{i}", "document": i} for i in range(50)))
    assert await sql.fetchval("select count(*) from registry.change where number = 2") == 50


async def test_blame(author: Author) -> None:
    good(await author.put("a", {"x": 1, "y": {"z": [1, 2]}, "gone": 0}), 201)
    good(await author.put("a", {"x": 2, "y": {"z": [1, 2]}}), 201)
    good(await author.put("b", 1), 201)
    good(await author.put("a", {"x": 2, "y": {"z": [0, 1, 2]}, "n": None}, headers={"Heliograph-Message": "more"}), 201)
    good(await author.put_schema("a", {"type": "object"}), 201)
    told = good(await author.get("/blame/a"))
    assert {each["pointer"]: each["number"] for each in told["items"]} == {
        "/n": 5,
        "/x": 3,
        "/y/z/0": 5,
        "/y/z/1": 2,
        "/y/z/2": 2,
    }
    assert (told["number"], told["open"], told["next"], all(each["certain"] for each in told["items"])) == (6, 0, None, True)
    assert [(each["number"], each["message"]) for each in told["versions"]] == [(5, "more"), (3, None), (2, None)]
    older = good(await author.get("/blame/a", params={"at": 3}))
    assert {each["pointer"]: each["number"] for each in older["items"]} == {"/x": 3, "/y/z/0": 2, "/y/z/1": 2}


async def test_blame_goes_on_where_it_stopped(author: Author) -> None:
    good(await author.put("a", {"old": 1, "n": -1}), 201)
    for n in range(7):
        good(await author.put("a", {"old": 1, "n": n}), 201)
    told, seen = {"next": "", "open": 1}, []
    while told["next"] is not None:
        more = {"cursor": told["next"]} if told["next"] else {}
        told = good(await author.get("/blame/a", params={"limit": 3, "at": 9} | more))
        seen.append(({each["pointer"]: each["number"] for each in told["items"]}, told["open"]))
    assert seen[0] == ({"/n": 9}, 1)
    assert (seen[-1][0]["/old"], seen[-1][1]) == (2, 0)
    assert len(seen) == 3


async def test_blame_ends_where_the_config_was_not_there(author: Author) -> None:
    good(await author.put("a", [1, {}]), 201)
    good(await author.ask("DELETE", "/configs/a"), 201)
    good(await author.put("a", [1, {}]), 201)
    assert [(each["pointer"], each["number"]) for each in good(await author.get("/blame/a"))["items"]] == [("/0", 4), ("/1", 4)]
    problem(await author.get("/blame/a", params={"at": 3}), 404, "not-found")
    problem(await author.get("/blame/b"), 404, "not-found")


async def test_blame_is_bounded(author: Author) -> None:
    good(await author.put("a", list(range(10_001))), 201)
    problem(await author.get("/blame/a"), 413, "too-large")
    problem(await author.get("/blame/a", params={"cursor": "!"}), 400, "invalid-request")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "b"]),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.sampled_from("xyz"), below, max_size=3),
    max_leaves=12,
)


def at(document: Any, path: Any) -> Any:
    for step in path:
        document = document[step]
    return document


@given(JSON, JSON)
def test_what_is_called_unchanged_is_the_same(new: Json, old: Json) -> None:
    pairs = list(unchanged(new, old))
    assert all(same(at(new, here), at(old, there)) for here, there in pairs)
    assert {here for here, _ in pairs} <= set(values(new))
    assert {there for _, there in pairs} <= set(values(old))
    assert len({there for _, there in pairs}) == len(pairs)


@given(JSON)
def test_nothing_changed_in_the_same_document(document: Json) -> None:
    assert {here for here, _ in unchanged(document, document)} == set(values(document))


@given(st.lists(JSON, min_size=1, max_size=6))
def test_every_value_is_told_once(documents: list[Json]) -> None:
    """Newest first: what is changed at each step, and what is left at the end, are all values of the first document."""
    trail = Trail(documents[0])
    told = [path for older in documents[1:] for path in trail.step(older)] + trail.end()
    assert sorted(map(repr, told)) == sorted(map(repr, values(documents[0])))
