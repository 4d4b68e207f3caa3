"""Branches and promotions over REST: what comes where, what conflicts, and that the last common point is the right one."""

from __future__ import annotations

from typing import Any

import asyncpg
import httpx
import pytest

from .conftest import Author, good, problem


class Team:
    """A namespace's environments, each with its own author."""

    def __init__(self, author: Author) -> None:
        self.author = author

    def at(self, environment: str) -> Author:
        made = Author(self.author.http, "", f"/v1/namespaces/shop/environments/{environment}")
        made.headers = self.author.headers
        return made

    async def create(self, name: str, origin: Any = None) -> httpx.Response:
        body = {"name": name} | ({"from": origin} if origin else {})
        return await self.author.ask("POST", "/v1/namespaces/shop/environments", json=body)

    async def put(self, environment: str, **documents: Any) -> dict[str, Any]:
        """Publishes documents; None deletes."""
        changes = [
            {"name": name, "delete": True} if document is None else {"name": name, "document": document}
            for name, document in documents.items()
        ]
        return good(await self.at(environment).publish(*changes), 201)

    async def promote(self, source: str, target: str, *, preview: bool = False, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        path = "/promote?preview=true" if preview else "/promote"
        return await self.at(target).ask("POST", path, json={"from": source} | more, headers=headers)

    async def state(self, environment: str) -> dict[str, Any]:
        listed = good(await self.at(environment).get("/configs"))["items"]
        top = [each["name"] for each in listed if each["kind"] == "config"]
        return {name: good(await self.at(environment).get(f"/configs/{name}")) for name in top}


@pytest.fixture
async def team(admin: Author) -> Team:
    """dev -> staging -> production, as branches of each other with a config in common."""
    made = Team(admin)
    good(await admin.ask("POST", "/v1/namespaces", json={"name": "shop"}), 201)
    good(await made.create("dev"), 201)
    await made.put("dev", limits={"max": 1, "min": 0}, other=1)
    good(await made.create("staging", {"environment": "dev"}), 201)
    good(await made.create("production", {"environment": "staging"}), 201)
    return made


def conflicts(answer: httpx.Response) -> list[tuple[str, str, Any, Any, Any]]:
    told = problem(answer, 409, "merge-conflict")
    return [
        (each["config"], each["pointer"], each.get("base"), each.get("ours"), each.get("theirs")) for each in told["conflicts"]
    ]


# --- branch -----------------------------------------------------------------------------------------------------------------------


async def test_a_branch_has_the_same_root_and_says_where_it_is_from(team: Team) -> None:
    made = good(await team.create("feature", {"environment": "dev"}), 201)
    head = await team.at("dev").head()
    assert (made["number"], made["kind"], made["root"], made["configs"]) == (1, "branch", head["root"], 2)
    assert made["source"] == {"environment": "dev", "number": 2, "version": head["version"]}
    assert await team.state("feature") == await team.state("dev")
    await team.put("feature", limits={"max": 9, "min": 0})
    assert (await team.state("dev"))["limits"] == {"max": 1, "min": 0}


async def test_a_branch_of_an_older_version_by_number_and_id(team: Team) -> None:
    await team.put("dev", limits={"max": 5})
    second = good(await team.at("dev").get("/versions/2"))
    for name, version in (("by-number", 2), ("by-id", second["version"]), ("by-text", "2")):
        made = good(await team.create(name, {"environment": "dev", "version": version}), 201)
        assert (made["root"], made["source"]["number"]) == (second["root"], 2)


async def test_branching_from_what_is_not_there(team: Team) -> None:
    problem(await team.create("f", {"environment": "nowhere"}), 404, "not-found")
    problem(await team.create("f", {"environment": "dev", "version": 99}), 404, "not-found")
    problem(await team.create("f", {"environment": "dev", "version": "x"}), 400, "invalid-request")
    problem(await team.create("f", {"environment": "dev", "more": 1}), 400, "invalid-request")
    problem(await team.create("staging", {"environment": "dev"}), 409, "already-exists")


async def test_what_was_purged_cannot_be_branched(team: Team, sql: asyncpg.Connection) -> None:
    digest = good(await team.at("dev").get("/configs"))["items"][0]["document"]
    await team.put("dev", limits={"max": 2})
    await sql.execute("alter table registry.object disable trigger written_once")
    await sql.execute("update registry.object set purged = true, body = '' where digest = $1", bytes.fromhex(digest[7:]))
    told = problem(await team.create("f", {"environment": "dev", "version": 2}), 409, "conflict")
    assert "purged" in told["detail"]
    good(await team.create("f", {"environment": "dev"}), 201)


async def test_a_branch_is_audited_and_its_key_replays(team: Team) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"name": "feature", "from": {"environment": "dev"}}
    first, again = [
        await team.author.ask("POST", "/v1/namespaces/shop/environments", json=body, headers=headers) for _ in range(2)
    ]
    assert good(first, 201) == good(again, 201)
    row = good(await team.author.get("/v1/audit/shop/feature"))["items"]
    assert [each["action"] for each in row] == ["environment.branch"]
    assert row[0]["detail"]["source"]["environment"] == "dev"


async def test_a_branch_is_replayed_when_its_source_is_gone(team: Team) -> None:
    """Whether it was committed is the question of a retry, and not whether it could be made once more."""
    headers = {"Idempotency-Key": "once"}

    async def branch(name: str) -> httpx.Response:
        origin = {"environment": "dev", "version": "label:rc"}
        asked = {"name": name, "from": origin}
        return await team.author.ask("POST", "/v1/namespaces/shop/environments", json=asked, headers=headers)

    good(await team.at("dev").ask("PUT", "/labels/rc", json={"version": 2}), 201)
    first = await branch("feature")
    good(first, 201)
    good(await team.at("dev").ask("DELETE", "/labels/rc"), 204)
    for _ in range(2):
        again = await branch("feature")
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotency-replayed"] == "true"
        await team.author.ask("DELETE", "/v1/namespaces/shop/environments/dev")
    problem(await branch("other"), 422, "idempotency-key-reused")
    headers.clear()
    problem(await branch("other"), 404, "not-found")


# --- promote ----------------------------------------------------------------------------------------------------------------------


async def test_a_promotion_brings_what_changed_and_keeps_what_is_the_targets_own(team: Team) -> None:
    await team.put("production", limits={"max": 1, "min": 0, "own": True}, only=1)
    made = await team.put("dev", limits={"max": 2, "min": 0}, other=None, new={"a": 1})
    done = good(await team.promote("dev", "production", message="go"), 201)
    assert (done["kind"], done["message"], done["changes"]) == ("promote", "go", ["limits", "new", "other"])
    assert done["source"] == {"environment": "dev", "number": made["number"], "version": made["version"]}
    assert await team.state("production") == {"limits": {"max": 2, "min": 0, "own": True}, "new": {"a": 1}, "only": 1}
    assert done["configs"] == 3
    row = good(await team.author.get("/v1/audit/shop/production"))["items"][0]
    assert (row["action"], row["detail"]["source"]["number"]) == ("environment.promote", made["number"])


async def test_a_conflict_lists_every_place_and_changes_nothing(team: Team) -> None:
    await team.put("production", limits={"max": 5, "min": 0}, other=None)
    await team.put("dev", limits={"max": 6, "min": 0}, other=2)
    answer = await team.promote("dev", "production")
    assert conflicts(answer) == [("limits", "/max", 1, 5, 6), ("other", "", 1, None, 2)]
    told = answer.json()
    assert (told["conflict_count"], told["number"], told["source"]["number"]) == (2, 2, 3)
    assert [each["absent"] for each in told["conflicts"]] == [[], ["ours"]]
    assert told["conflicts"][0]["common"] == {"environment": "dev", "number": 2}
    assert (await team.at("production").head())["number"] == 2


async def test_conflicts_are_resolved_place_by_place(team: Team) -> None:
    await team.put("production", limits={"max": 5, "min": 5}, other=None)
    await team.put("dev", limits={"max": 6, "min": 6}, other=2)
    resolve: dict[str, Any] = {"limits": {"/max": "theirs"}, "other": {"": "ours"}}
    assert conflicts(await team.promote("dev", "production", resolve=resolve)) == [("limits", "/min", 0, 5, 6)]
    resolve["limits"]["/min"] = {"value": None}
    good(await team.promote("dev", "production", resolve=resolve), 201)
    assert await team.state("production") == {"limits": {"max": 6, "min": None}}
    assert good(await team.promote("dev", "production"), 200)["unchanged"] is True


async def test_a_choice_that_settles_nothing_is_refused(team: Team) -> None:
    await team.put("dev", limits={"max": 6, "min": 0})
    for resolve in ({"limits": {"/max": "ours"}}, {"nothing": {"": "ours"}}):
        told = problem(await team.promote("dev", "production", resolve=resolve), 400, "invalid-request")
        assert told["faults"][0]["pointer"].startswith("/resolve/")
    for bad in ({"limits": {"max": "ours"}}, {"limits": {"/max": "mine"}}, {"limits": {"/max": {"value": 1, "x": 1}}}):
        assert (await team.promote("dev", "production", resolve=bad)).status_code == 400


async def test_schemas_come_along_and_conflict_as_a_whole(team: Team) -> None:
    good(await team.at("dev").put_schema("limits", {"properties": {"max": {"maximum": 9}}}), 201)
    good(await team.promote("dev", "production"), 201)
    assert (await team.at("production").put("limits", {"max": 10})).status_code == 422
    good(await team.at("dev").put_schema("limits", {"properties": {"max": {"maximum": 8}}}), 201)
    good(await team.at("production").put_schema("limits", {"properties": {"max": {"maximum": 7}}}), 201)
    await team.put("production", limits={"max": 5, "min": 0})
    answer = await team.promote("dev", "production")
    assert [(each[0], each[1]) for each in conflicts(answer)] == [("limits", "schema")]
    value = {"properties": {"max": {"maximum": 3}}}
    told = problem(
        await team.promote("dev", "production", resolve={"limits": {"schema": {"value": value}}}), 422, "schema-violation"
    )
    assert told["faults"][0]["pointer"] == "/max"
    problem(
        await team.promote("dev", "production", resolve={"limits": {"schema": {"value": {"type": "no"}}}}),
        422,
        "invalid-schema",
    )
    good(await team.promote("dev", "production", resolve={"limits": {"schema": "theirs"}}), 201)
    assert good(await team.at("production").get("/schemas/limits")) == {"properties": {"max": {"maximum": 8}}}


async def test_what_is_merged_must_satisfy_its_schema(team: Team) -> None:
    good(await team.at("dev").put_schema("limits", {"maxProperties": 3}), 201)
    good(await team.promote("dev", "production"), 201)
    await team.put("dev", limits={"max": 1, "min": 0, "a": 1})
    await team.put("production", limits={"max": 1, "min": 0, "b": 1})
    problem(await team.promote("dev", "production"), 422, "schema-violation")


async def test_some_configs_and_folders(team: Team) -> None:
    await team.put("dev", limits={"max": 2, "min": 0}, other=2)
    good(await team.at("dev").publish({"name": "checkout/a", "document": 1}, {"name": "checkout/b", "document": 1}), 201)
    done = good(await team.promote("dev", "production", configs=["other", "checkout/"]), 201)
    assert done["changes"] == ["checkout/a", "checkout/b", "other"]
    assert (await team.state("production"))["limits"] == {"max": 1, "min": 0}
    problem(await team.promote("dev", "production", configs=["nothing"]), 404, "not-found")
    problem(await team.promote("dev", "production", configs=[]), 400, "invalid-name")
    good(await team.promote("dev", "production", configs=[""]), 201)


async def test_an_older_version_of_the_source(team: Team) -> None:
    await team.put("dev", other=2)
    await team.put("dev", other=3)
    done = good(await team.promote("dev", "production", version=3), 201)
    assert (done["source"]["number"], (await team.state("production"))["other"]) == (3, 2)
    good(await team.promote("dev", "production"), 201)
    assert good(await team.promote("dev", "production", version=3), 200)["unchanged"] is True
    assert (await team.state("production"))["other"] == 3


async def test_a_preview_says_what_would_happen_and_changes_nothing(team: Team) -> None:
    await team.put("production", limits={"max": 5, "min": 0})
    await team.put("dev", limits={"max": 6, "min": 1}, other=None, fresh=[1])
    told = good(await team.promote("dev", "production", preview=True), 200)
    assert (told["change_count"], told["conflict_count"]) == (3, 1)
    assert told["from"] == {"environment": "dev", "number": 3, "version": (await team.at("dev").head())["version"]}
    assert told["to"]["number"] == 2
    items = {each["name"]: each for each in told["items"]}
    assert [items[name]["change"] for name in ("fresh", "limits", "other")] == ["added", "changed", "removed"]
    assert items["limits"]["operations"] == [{"op": "replace", "path": "/min", "value": 1}]
    assert items["limits"]["conflicts"][0]["pointer"] == "/max"
    assert items["limits"]["common"] == {"environment": "dev", "number": 2}
    assert (await team.at("production").head())["number"] == 2
    resolve = {"limits": {"/max": "theirs"}}
    settled = good(await team.promote("dev", "production", preview=True, resolve=resolve))
    assert (settled["change_count"], settled["conflict_count"]) == (3, 0)
    mine = {"limits": {"/max": "ours"}}
    await team.put("dev", limits={"max": 6, "min": 0})
    settled = good(await team.promote("dev", "production", preview=True, resolve=mine))
    assert [each["name"] for each in settled["items"]] == ["fresh", "other"]
    assert good(await team.promote("dev", "staging", preview=True, configs=["other"]))["change_count"] == 1


async def test_a_condition_that_is_stale(team: Team) -> None:
    head = (await team.at("production").head())["version"]
    await team.put("dev", other=2)
    await team.put("production", only=1)
    problem(await team.promote("dev", "production", headers={"If-Match": f'"{head}"'}), 412, "stale-base")
    head = (await team.at("production").head())["version"]
    good(await team.promote("dev", "production", headers={"If-Match": f'"{head}"'}), 201)


async def test_a_promotion_is_replayed_when_its_source_is_gone(team: Team) -> None:
    """Whether it was committed is the question of a retry, and not whether it could be made once more."""
    once = {"version": "label:rc", "headers": {"Idempotency-Key": "once"}}
    await team.put("dev", other=2)
    good(await team.at("dev").ask("PUT", "/labels/rc", json={"version": 3}), 201)
    first = await team.promote("dev", "production", **once)
    good(first, 201)
    good(await team.at("dev").ask("DELETE", "/labels/rc"), 204)
    for _ in range(2):
        again = await team.promote("dev", "production", **once)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotency-replayed"] == "true"
        await team.author.ask("DELETE", "/v1/namespaces/shop/environments/dev")
    problem(await team.promote("dev", "production", version="label:rc"), 404, "not-found")


async def test_bad_requests(team: Team) -> None:
    problem(await team.promote("production", "production"), 400, "invalid-request")
    problem(await team.promote("nowhere", "production"), 404, "not-found")
    problem(await team.promote("dev", "nowhere"), 404, "not-found")
    problem(await team.promote("dev", "production", version=99), 404, "not-found")
    problem(await team.promote("dev", "production", change=1), 400, "invalid-request")
    problem(await team.promote("dev", "production", change=2, version=2), 400, "invalid-request")
    problem(await team.promote("dev", "production", unknown=2), 400, "invalid-request")


async def test_who_may(team: Team, http: httpx.AsyncClient) -> None:
    """WRITE on the target, READ on the source; CREATE on the new environment, READ on the one it is from."""
    scopes = [{"namespace": "shop", "environment": "production"}]
    made = good(await team.author.ask("POST", "/v1/tokens", json={"kind": "author", "name": "a", "scopes": scopes}), 201)
    limited = Team(Author(http, made["token"]))
    problem(await limited.promote("dev", "production"), 403, "forbidden")
    problem(await limited.promote("production", "dev"), 403, "forbidden")
    problem(await limited.create("production", {"environment": "dev"}), 403, "forbidden")
    problem(await limited.create("feature", {"environment": "production"}), 403, "forbidden")


async def test_a_base_in_an_environment_that_may_not_be_read_is_not_shown(team: Team, http: httpx.AsyncClient) -> None:
    await team.put("staging", limits={"max": 5, "min": 0})
    await team.put("production", limits={"max": 6, "min": 0})
    scopes = [{"namespace": "shop", "environment": each} for each in ("production", "staging")]
    made = good(await team.author.ask("POST", "/v1/tokens", json={"kind": "author", "name": "a", "scopes": scopes}), 201)
    told = problem(await Team(Author(http, made["token"])).promote("staging", "production"), 409, "merge-conflict")[
        "conflicts"
    ][0]
    assert told["common"]["environment"] == "staging"
    assert told["base"] == 1
    await team.put("dev", limits={"max": 7, "min": 0})
    good(await team.promote("dev", "staging", resolve={"limits": {"/max": "theirs"}}), 201)
    good(await team.promote("dev", "production", resolve={"limits": {"/max": "theirs"}}), 201)
    await team.put("staging", limits={"max": 8, "min": 0})
    await team.put("production", limits={"max": 9, "min": 0})
    told = problem(await Team(Author(http, made["token"])).promote("staging", "production"), 409, "merge-conflict")[
        "conflicts"
    ][0]
    assert told["common"]["environment"] == "dev"
    assert "base" not in told
    assert told["absent"] == []


# --- the last common point --------------------------------------------------------------------------------------------------------


async def test_through_staging_and_then_straight(team: Team) -> None:
    await team.put("dev", limits={"max": 2, "min": 0})
    good(await team.promote("dev", "staging"), 201)
    good(await team.promote("staging", "production"), 201)
    await team.put("production", limits={"max": 20, "min": 0})
    assert good(await team.promote("dev", "production"), 200)["unchanged"] is True
    await team.put("dev", limits={"max": 2, "min": 1})
    good(await team.promote("dev", "production"), 201)
    assert (await team.state("production"))["limits"] == {"max": 20, "min": 1}


async def test_there_and_back_again(team: Team) -> None:
    for number in range(2, 6):
        await team.put("dev", limits={"max": number, "min": number})
        good(await team.promote("dev", "production"), 201)
        await team.put("production", limits={"max": number, "min": -number})
        good(await team.promote("production", "dev"), 201)
        assert (await team.state("dev"))["limits"] == {"max": number, "min": -number}
        assert good(await team.promote("dev", "production"), 200)["unchanged"] is True


async def test_agreement_without_a_change_is_a_common_point(team: Team) -> None:
    await team.put("dev", limits={"max": 2, "min": 0})
    await team.put("production", limits={"max": 2, "min": 0})
    assert good(await team.promote("dev", "production"), 200)["unchanged"] is True
    actions = [each["action"] for each in good(await team.author.get("/v1/audit/shop/production"))["items"]]
    assert actions[0] == "environment.promote"
    assert good(await team.promote("dev", "production"), 200)["unchanged"] is True
    assert len(good(await team.author.get("/v1/audit/shop/production"))["items"]) == len(actions)
    await team.put("production", limits={"max": 3, "min": 0})
    assert good(await team.promote("dev", "production"), 200)["unchanged"] is True
    await team.put("dev", limits={"max": 2, "min": 7})
    good(await team.promote("dev", "production"), 201)
    assert (await team.state("production"))["limits"] == {"max": 3, "min": 7}


async def test_some_configs_first_and_the_rest_later(team: Team) -> None:
    await team.put("dev", limits={"max": 2, "min": 0}, other=2)
    good(await team.promote("dev", "production", configs=["other"]), 201)
    await team.put("production", other=3, limits={"max": 1, "min": 9})
    good(await team.promote("dev", "production"), 201)
    assert await team.state("production") == {"limits": {"max": 2, "min": 9}, "other": 3}


async def test_a_cherry_pick_brings_one_change(team: Team) -> None:
    await team.put("dev", limits={"max": 2, "min": 0})
    await team.put("dev", limits={"max": 2, "min": 5}, other=5)
    await team.put("dev", limits={"max": 2, "min": 5, "more": 1})
    done = good(await team.promote("dev", "production", change=4), 201)
    assert (done["kind"], done["source"]["number"]) == ("promote", 4)
    assert await team.state("production") == {"limits": {"max": 1, "min": 5}, "other": 5}
    await team.put("production", limits={"max": 1, "min": 6}, other=6)
    answer = await team.promote("dev", "production")
    assert conflicts(answer) == [("limits", "/min", 0, 6, 5)], "the pick of limits left out version 3, so it is no common point"
    good(await team.promote("dev", "production", resolve={"limits": {"/min": "ours"}}), 201)
    assert await team.state("production") == {"limits": {"max": 2, "min": 6, "more": 1}, "other": 6}


async def test_a_rollback_of_the_target_can_be_promoted_over_again(team: Team) -> None:
    await team.put("dev", limits={"max": 2, "min": 0})
    good(await team.promote("dev", "production"), 201)
    good(await team.at("production").ask("POST", "/rollback", json={"to": 1}), 201)
    assert (await team.state("production"))["limits"] == {"max": 1, "min": 0}
    await team.put("dev", limits={"max": 2, "min": 3})
    good(await team.promote("dev", "production"), 201)
    assert (await team.state("production"))["limits"] == {"max": 2, "min": 3}


async def test_a_rollback_of_the_source_is_promoted_like_any_change(team: Team) -> None:
    await team.put("dev", limits={"max": 2, "min": 0})
    good(await team.promote("dev", "production"), 201)
    await team.put("production", other=9)
    good(await team.at("dev").ask("POST", "/rollback", json={"to": 2}), 201)
    good(await team.promote("dev", "production"), 201)
    assert await team.state("production") == {"limits": {"max": 1, "min": 0}, "other": 9}


async def test_two_branches_of_one_version(team: Team) -> None:
    good(await team.create("one", {"environment": "dev"}), 201)
    good(await team.create("two", {"environment": "dev"}), 201)
    await team.put("one", limits={"max": 3, "min": 0})
    await team.put("two", limits={"max": 1, "min": 3})
    good(await team.promote("one", "two"), 201)
    assert (await team.state("two"))["limits"] == {"max": 3, "min": 3}


async def test_environments_with_nothing_in_common(team: Team) -> None:
    good(await team.create("alone"), 201)
    await team.put("alone", limits={"own": 1}, other=1)
    answer = good(await team.promote("dev", "alone"), 201)
    assert (answer["changes"], (await team.state("alone"))["limits"]) == (["limits"], {"max": 1, "min": 0, "own": 1})
    await team.put("alone", limits={"max": 2})
    good(await team.create("apart"), 201)
    await team.put("apart", limits={"max": 5})
    assert conflicts(await team.promote("apart", "alone")) == [("limits", "/max", None, 2, 5)]


async def test_a_base_that_was_purged_hides_no_change(team: Team, sql: asyncpg.Connection) -> None:
    """Nobody knows any more what it said, so what differs is a conflict; the promotion goes on with choices."""
    listed = good(await team.at("dev").get("/configs"))["items"]
    await team.put("dev", limits={"max": 2, "min": 0}, other=None)
    await team.put("production", limits={"max": 1, "min": 3}, other=9)
    await sql.execute("alter table registry.object disable trigger written_once")
    digests = [bytes.fromhex(each["document"][7:]) for each in listed]
    await sql.execute("update registry.object set purged = true, body = '' where digest = any($1::bytea[])", digests)
    answer = await team.promote("dev", "production")
    assert conflicts(answer) == [
        ("limits", "/max", None, 1, 2),
        ("limits", "/min", None, 3, 0),
        ("other", "", None, 9, None),
    ]
    resolve = {"limits": {"/max": "theirs", "/min": "ours"}, "other": {"": "theirs"}}
    good(await team.promote("dev", "production", resolve=resolve), 201)
    assert await team.state("production") == {"limits": {"max": 2, "min": 3}}
