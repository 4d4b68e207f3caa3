"""PATCH: both media types, on the head and on a version that was looked at, beside other writers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from .conftest import Author, good, problem

MERGE = "application/merge-patch+json"
PATCH = "application/json-patch+json"
LIMITS = {"max_items": 20, "currency": "EUR", "regions": ["de", "fr"]}


async def patch(author: Author, body: Any, media: str = MERGE, name: str = "limits", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await author.ask("PATCH", f"/configs/{name}", content=content, headers={"Content-Type": media} | headers)


async def document(author: Author, name: str = "limits") -> Any:
    return good(await author.get(f"/configs/{name}"))


async def test_a_merge_patch_is_a_version(author: Author) -> None:
    good(await author.put("limits", LIMITS), 201)
    made = good(await patch(author, {"max_items": 30, "currency": None}, "Application/Merge-Patch+JSON; charset=utf-8"), 201)
    assert (made["number"], made["kind"], made["changes"]) == (3, "publish", ["limits"])
    assert await document(author) == {"max_items": 30, "regions": ["de", "fr"]}
    assert good(await patch(author, {"max_items": 30}), 200)["unchanged"] is True


async def test_a_json_patch_is_a_version(author: Author) -> None:
    good(await author.put("limits", LIMITS), 201)
    operations = [
        {"op": "test", "path": "/currency", "value": "EUR"},
        {"op": "add", "path": "/regions/-", "value": "it"},
        {"op": "move", "from": "/currency", "path": "/money"},
    ]
    good(await patch(author, operations, PATCH), 201)
    assert await document(author) == {"max_items": 20, "money": "EUR", "regions": ["de", "fr", "it"]}


async def test_a_test_that_fails_says_which_and_where_and_not_what(author: Author) -> None:
    good(await author.put("limits", LIMITS), 201)
    operations = [{"op": "remove", "path": "/regions"}, {"op": "test", "path": "/currency", "value": "USD"}]
    answer = await patch(author, operations, PATCH)
    told = problem(answer, 409, "patch-failed")
    assert (told["operation"], told["pointer"]) == (1, "/currency")
    assert "EUR" not in answer.text
    assert "USD" not in answer.text
    assert (await author.head())["number"] == 2


async def test_other_bodies_are_refused_with_what_would_do(author: Author) -> None:
    good(await author.put("limits", LIMITS), 201)
    for media in ("application/json", "text/plain"):
        answer = await patch(author, {"max_items": 1}, media)
        told = problem(answer, 415, "unsupported-media-type")
        assert MERGE in told["detail"]
        assert PATCH in told["detail"]
        assert answer.headers["accept-patch"] == f"{MERGE}, {PATCH}"
    problem(await patch(author, b'{"a": 1, "a": 2}'), 400, "invalid-document")
    told = problem(await patch(author, [{"op": "add", "path": "/a"}], PATCH), 400, "invalid-patch")
    assert told["faults"][0]["pointer"] == "/0"
    problem(await patch(author, {"a": 1}, name="nothing"), 404, "not-found")
    problem(await patch(author, [{"op": "test", "path": "", "value": 1}] * 1001, PATCH), 413, "too-large")


async def test_what_comes_out_must_satisfy_the_schema_and_be_a_document(author: Author) -> None:
    schema = {"properties": {"max_items": {"maximum": 100}}}
    good(await author.publish({"name": "limits", "document": LIMITS, "schema": schema}), 201)
    told = problem(await patch(author, {"max_items": 1000}), 422, "schema-violation")
    assert told["faults"][0]["pointer"] == "/max_items"
    half = "x" * 400_000
    good(await patch(author, {"large": half}), 201)
    copies = [{"op": "copy", "from": "/large", "path": f"/large{number}"} for number in range(2)]
    problem(await patch(author, copies, PATCH), 413, "too-large")
    nested = json.loads("[" * 40 + "]" * 40)
    deep = [{"op": "add", "path": "/a", "value": nested}, {"op": "add", "path": "/a" + "/0" * 39 + "/0", "value": nested}]
    problem(await patch(author, deep, PATCH), 400, "invalid-document")


async def test_patches_of_many_authors_are_all_there(author: Author) -> None:
    """Each is applied again on what the others made of the head meanwhile."""
    good(await author.put("limits", {"count": []}), 201)
    append = [[{"op": "add", "path": "/count/-", "value": number}] for number in range(30)]
    answers = await asyncio.gather(*(patch(author, each, PATCH) for each in append))
    assert {answer.status_code for answer in answers} == {201}
    assert sorted((await document(author))["count"]) == list(range(30))
    assert (await author.head())["number"] == 32


async def test_a_key_replays_the_first_answer(author: Author) -> None:
    good(await author.put("limits", {"count": []}), 201)
    operations = [{"op": "add", "path": "/count/-", "value": 1}]
    first = await patch(author, operations, PATCH, **{"Idempotency-Key": "k"})
    again = await patch(author, operations, PATCH, **{"Idempotency-Key": "k"})
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert await document(author) == {"count": [1]}
    problem(await patch(author, b"[]", MERGE, **{"Idempotency-Key": "k"}), 422, "idempotency-key-reused")


async def test_a_patch_needs_a_token_that_may_write(author: Author, http: httpx.AsyncClient) -> None:
    good(await author.put("limits", LIMITS), 201)
    made = good(
        await author.ask("POST", "/v1/tokens", json={"kind": "author", "name": "a", "scopes": [{"namespace": "other"}]}), 201
    )
    problem(await patch(Author(http, made["token"]), {"max_items": 1}), 403, "forbidden")
