"""Labels, and naming a version by one or by a time wherever a version is asked for."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.core.errors import Invalid
from heliograph.core.times import to_text
from heliograph.core.which import AsOf, Label, which

from .conftest import Author, good, problem


async def test_label_names_a_version_everywhere(author: Author) -> None:
    said = [good(await author.put("a", {"n": n}), 201) for n in range(3)]
    made = good(await author.ask("PUT", "/labels/release-7", json={"version": 2}), 201)
    assert (made["name"], made["number"], made["version"]) == ("release-7", 2, said[0]["version"])
    named = {"at": "label:release-7"}
    answer = await author.get("/configs/a", params=named)
    assert (answer.json(), answer.headers["heliograph-version"]) == ({"n": 0}, "2")
    assert good(await author.get("/configs", params=named))["number"] == 2
    assert good(await author.get("/versions/label:release-7"))["labels"] == ["release-7"]
    assert good(await author.get("/diff", params={"from": "label:release-7", "to": 4}))["from"]["number"] == 2
    assert [each.get("labels") for each in good(await author.get("/versions"))["items"]] == [None, None, ["release-7"], None]
    back = good(await author.ask("POST", "/rollback", json={"to": "label:release-7"}), 201)
    assert (back["root"], back["source"]["number"]) == (said[0]["root"], 2)
    problem(await author.get("/configs/a", params={"at": "label:nothing"}), 404, "not-found")
    problem(await author.get("/configs/a", params={"at": "release-7"}), 400, "invalid-request")
    problem(await author.get("/configs/a", params={"at": "label:No"}), 400, "invalid-name")


async def test_label_is_moved_only_when_that_is_said(author: Author) -> None:
    ids = {n + 2: good(await author.put("a", n), 201)["version"] for n in range(3)}
    assert good(await author.ask("PUT", "/labels/stable", json={"version": ids[2]}), 201)["number"] == 2
    assert good(await author.ask("PUT", "/labels/stable", json={"version": 2}), 200)["number"] == 2
    said = problem(await author.ask("PUT", "/labels/stable", json={"version": 3}), 409, "conflict")
    assert "names version 2" in said["detail"]
    assert good(await author.ask("PUT", "/labels/stable", json={"version": 3, "move": True}), 200)["number"] == 3
    stale = problem(
        await author.ask("PUT", "/labels/stable", json={"version": 4}, headers={"If-Match": f'"{ids[2]}"'}), 412, "stale-base"
    )
    assert (stale["head"], stale["number"]) == (ids[3], 3)
    etag = (await author.get("/labels/stable")).headers["etag"]
    assert good(await author.ask("PUT", "/labels/stable", json={"version": 4}, headers={"If-Match": etag}), 200)["number"] == 4
    new = await author.ask("PUT", "/labels/other", json={"version": 4}, headers={"If-Match": etag})
    assert "no label other" in problem(new, 412, "stale-base")["detail"]
    problem(await author.ask("DELETE", "/labels/stable", headers={"If-Match": etag}), 412, "stale-base")
    assert (await author.ask("DELETE", "/labels/stable")).status_code == 204
    problem(await author.ask("DELETE", "/labels/stable"), 404, "not-found")
    actions = [each["action"] for each in good(await author.get("/v1/audit/shop/production"))["items"]]
    assert actions[:4] == ["label.remove", "label.set", "label.set", "label.set"]


async def test_labels_by_name_in_pages(author: Author) -> None:
    for name in ("c", "a", "b"):
        good(await author.ask("PUT", f"/labels/{name}", json={"version": 1}), 201)
    first = good(await author.get("/labels", params={"limit": 2}))
    rest = good(await author.get("/labels", params={"limit": 2, "cursor": first["next"]}))
    assert [each["name"] for each in first["items"] + rest["items"]] == ["a", "b", "c"]
    assert rest["next"] is None


async def test_two_who_set_one_label_agree_on_who_was_first(author: Author) -> None:
    for n in range(6):
        good(await author.put("a", n), 201)
    answers = await asyncio.gather(*(author.ask("PUT", "/labels/one", json={"version": n}) for n in range(2, 8)))
    assert sorted(each.status_code for each in answers) == [201] + [409] * 5


@pytest.mark.parametrize("body", [{}, {"version": 0}, {"version": "x"}, {"version": 1, "mov": True}, [], {"version": None}])
async def test_bad_labels(author: Author, body: Any) -> None:
    problem(await author.ask("PUT", "/labels/a", json=body), 400, "invalid-request")


async def test_label_of_what_is_not_there(author: Author, registry: Any) -> None:
    problem(await author.ask("PUT", "/labels/a", json={"version": 9}), 404, "not-found")
    problem(await author.ask("PUT", "/labels/A", json={"version": 1}), 400, "invalid-name")
    problem(await author.get("/v1/namespaces/shop/environments/nowhere/labels"), 404, "not-found")
    asked = {"kind": "client", "name": "c", "scopes": [{"namespace": "shop"}]}
    client = Author(author.http, good(await author.ask("POST", "/v1/tokens", json=asked))["token"])
    problem(await client.ask("PUT", "/labels/a", json={"version": 1}), 403, "forbidden")


async def test_replay_of_a_rollback_whose_label_is_gone(author: Author) -> None:
    good(await author.put("a", 1), 201)
    good(await author.put("a", 2), 201)
    good(await author.ask("PUT", "/labels/old", json={"version": 2}), 201)
    headers = {"Idempotency-Key": "k"}
    first = await author.ask("POST", "/rollback", json={"to": "label:old"}, headers=headers)
    assert (await author.ask("DELETE", "/labels/old")).status_code == 204
    again = await author.ask("POST", "/rollback", json={"to": "label:old"}, headers=headers)
    assert (first.status_code, again.content) == (201, first.content)


# --- times ------------------------------------------------------------------------------------------------------------------------


async def test_version_that_was_the_head_then(author: Author) -> None:
    for n in range(12):
        good(await author.put("a", n), 201)
    every = good(await author.get("/versions", params={"limit": 100}))["items"][::-1]
    for told in every:
        latest = max(each["number"] for each in every if each["at"] <= told["at"])
        assert good(await author.get(f"/versions/{told['at']}"))["number"] == latest
        instant = datetime.fromisoformat(told["at"])
        elsewhere = (instant + timedelta(hours=2)).replace(tzinfo=None).isoformat(timespec="milliseconds") + "+02:00"
        assert (await author.get("/configs/a", params={"at": elsewhere})).headers.get("heliograph-version", "1") == str(latest)
    first = datetime.fromisoformat(every[0]["at"])
    before = await author.get("/configs", params={"at": (first - timedelta(seconds=1)).isoformat()})
    assert "began later" in problem(before, 404, "not-found")["detail"]
    assert good(await author.get("/versions/2999-01-01T00:00:00Z"))["number"] == 13
    back = good(await author.ask("POST", "/rollback", json={"to": every[4]["at"]}), 201)
    assert back["kind"] == "rollback"


@pytest.mark.parametrize(
    "text",
    ["2026-11-01T12:00:00", "2026-11-01", "2026-13-01T12:00:00Z", "2026-11-01T25:00:00Z", "0000-01-01T00:00:00Z", "label:", ""],
)
def test_what_names_no_version(text: str) -> None:
    with pytest.raises(Invalid):
        which(text)


@given(st.integers(0, 2**51))
def test_times_are_read_as_they_are_written(us: int) -> None:
    assert which(to_text(us)) == AsOf(us // 1000 * 1000)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True))
def test_a_label_is_nothing_else(name: str) -> None:
    assert which(f"label:{name}") == Label(name)
