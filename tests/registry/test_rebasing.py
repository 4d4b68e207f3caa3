"""A head that has moved since the author looked: what 412 tells, and what Prefer: rebase publishes all the same."""

from __future__ import annotations

import json
from typing import Any

from .conftest import Author, good, problem

REBASE = {"Prefer": "rebase"}


async def looked(author: Author, *changes: dict[str, Any]) -> dict[str, str]:
    """The condition of an author who looked right after these changes."""
    return {"If-Match": f'"{good(await author.publish(*changes), 201)["version"]}"'}


async def document(author: Author, name: str) -> Any:
    return good(await author.get(f"/configs/{name}"))


async def test_stale_tells_what_each_side_did(author: Author) -> None:
    base = await looked(author, {"name": "a", "document": {"x": 1, "y": 1}}, {"name": "b", "document": 1})
    good(await author.publish({"name": "a", "document": {"x": 2, "y": 1}}, {"name": "c", "document": 1}), 201)
    told = problem(await author.put("a", {"x": 3, "y": 2}, headers=base), 412, "stale-base")
    assert (told["number"], told["base_number"], told["changed"], told["overlap"]) == (3, 2, ["a", "c"], ["a"])
    assert told["differences"] == [
        {
            "name": "a",
            "since": [{"op": "replace", "path": "/x", "value": 2}],
            "yours": [{"op": "replace", "path": "/x", "value": 3}, {"op": "replace", "path": "/y", "value": 2}],
            "conflicts": ["/x"],
        }
    ]
    assert told["head"] == (await author.head())["version"]


async def test_stale_tells_no_more_than_fits(author: Author) -> None:
    names = [f"c{number}" for number in range(6)]
    base = await looked(author, *({"name": name, "document": "a" * 60_000} for name in names))
    good(await author.publish(*({"name": name, "document": "b" * 60_000} for name in names)), 201)
    answer = await author.publish(*({"name": name, "document": "c" * 60_000} for name in names), headers=base)
    told = problem(answer, 412, "stale-base")
    assert [each["name"] for each in told["differences"]] == names
    assert [each.get("truncated", False) for each in told["differences"]] == [False, False, True, True, True, True]
    assert all(each["conflicts"] == [""] for each in told["differences"])
    assert len(answer.content) < 300_000


async def test_a_put_that_overlaps_with_nothing_is_rebased(author: Author) -> None:
    base = await looked(author, {"name": "a", "document": {"x": 1, "y": 1}})
    good(await author.put("a", {"x": 2, "y": 1, "new": True}), 201)
    answer = await author.put("a", {"x": 1, "y": 5}, headers=base | REBASE)
    made = good(answer, 201)
    assert answer.headers["preference-applied"] == "rebase"
    assert made["rebased"] == {"number": 2, "version": base["If-Match"].strip('"')}
    assert (made["number"], await document(author, "a")) == (4, {"x": 2, "y": 5, "new": True})


async def test_on_the_head_it_is_nothing_special(author: Author) -> None:
    base = await looked(author, {"name": "a", "document": 1})
    answer = await author.put("a", 2, headers=base | REBASE)
    assert "rebased" not in good(answer, 201)
    assert "preference-applied" not in answer.headers
    gone = {"If-Match": '"sha256:' + "0" * 64 + '"'} | REBASE
    told = problem(await author.put("a", 3, headers=gone), 412, "stale-base")
    assert "names no version" in told["detail"]


async def test_what_overlaps_is_not_rebased(author: Author) -> None:
    base = await looked(author, {"name": "a", "document": {"x": 1}}, {"name": "s", "document": 1, "schema": {"maximum": 9}})
    good(await author.publish({"name": "a", "document": {"x": 2}}, {"name": "s", "schema": {"maximum": 8}}), 201)
    told = problem(await author.put("a", {"x": 3}, headers=base | REBASE), 412, "stale-base")
    assert told["differences"][0]["conflicts"] == ["/x"]
    told = problem(await author.ask("DELETE", "/configs/a", headers=base | REBASE), 412, "stale-base")
    assert told["differences"][0]["conflicts"] == [""]
    assert told["differences"][0]["yours"] == [{"op": "remove", "path": ""}]
    told = problem(await author.put_schema("s", {"maximum": 7}, headers=base | REBASE), 412, "stale-base")
    assert told["differences"][0]["conflicts"] == ["schema"]
    assert (await author.head())["number"] == 3


async def test_the_same_change_twice_is_no_conflict(author: Author) -> None:
    base = await looked(author, {"name": "a", "document": {"x": 1}}, {"name": "b", "document": 1})
    good(await author.publish({"name": "a", "document": {"x": 2}}, {"name": "b", "delete": True}), 201)
    assert good(await author.put("a", {"x": 2}, headers=base | REBASE), 200)["unchanged"] is True
    assert good(await author.ask("DELETE", "/configs/b", headers=base | REBASE), 200)["unchanged"] is True


async def test_what_is_put_together_must_satisfy_the_schema(author: Author) -> None:
    schema = {"properties": {"a": True, "b": True}, "maxProperties": 2}
    base = await looked(author, {"name": "s", "document": {"a": 1}, "schema": schema})
    good(await author.put("s", {"a": 1, "b": 1}), 201)
    told = problem(await author.put("s", {"a": 1, "c": 1}, headers=base | REBASE), 412, "stale-base")
    assert told["differences"][0]["conflicts"] == []
    good(await author.put("s", {"a": 2}, headers=base | REBASE), 201)
    assert await document(author, "s") == {"a": 2, "b": 1}


async def test_several_changes_and_patches_and_deletions(author: Author) -> None:
    base = await looked(author, *({"name": name, "document": {"n": 1, "list": []}} for name in "abcd"))
    good(await author.publish({"name": "a", "document": {"n": 1, "list": [1]}}, {"name": "d", "delete": True}), 201)
    changes = ({"name": "a", "document": {"n": 2, "list": []}}, {"name": "b", "delete": True}, {"name": "e", "document": 1})
    made = good(await author.publish(*changes, headers=base | REBASE), 201)
    assert (made["changes"], await document(author, "a")) == (["a", "b", "e"], {"n": 2, "list": [1]})
    operations = [{"op": "test", "path": "/n", "value": 1}, {"op": "add", "path": "/more", "value": 1}]
    headers = base | REBASE | {"Content-Type": "application/json-patch+json"}
    answer = await author.ask("PATCH", "/configs/a", content=json.dumps(operations), headers=headers)
    assert good(answer, 201)["rebased"]["number"] == 2
    assert await document(author, "a") == {"n": 2, "list": [1], "more": 1}
    good(await author.ask("DELETE", "/configs/c", headers=base | REBASE), 201)
    problem(await author.ask("DELETE", "/configs/a", headers=base | REBASE), 412, "stale-base")


async def test_a_replay_says_again_that_it_was_rebased(author: Author) -> None:
    base = await looked(author, {"name": "a", "document": {"x": 1}})
    good(await author.put("b", 1), 201)
    headers = base | REBASE | {"Idempotency-Key": "k"}
    first, again = [await author.put("a", {"x": 2}, headers=headers) for _ in range(2)]
    assert (first.content, first.headers["preference-applied"]) == (again.content, again.headers["preference-applied"])
    assert again.headers["idempotency-replayed"] == "true"
