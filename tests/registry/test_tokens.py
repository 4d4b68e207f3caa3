"""Tokens: who may give, see and revoke what, and who is told."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from heliograph.core.events import SHARDS, RevokedEvent, shard_of
from heliograph.core.token import parse

from .conftest import DEADLINE_S, Author, good, problem

OWN = [{"namespace": "shop", "environment": "production"}]


async def make(author: Author, kind: str, scopes: list[dict[str, str]] = OWN, **more: Any) -> tuple[Author, str]:
    made = good(await author.ask("POST", "/v1/tokens", json={"kind": kind, "name": f"a {kind}", "scopes": scopes, **more}), 201)
    return Author(author.http, made["token"]), made["id"]


async def test_text_is_told_once_and_stored_nowhere(author: Author, sql: Any) -> None:
    made = good(await author.ask("POST", "/v1/tokens", json={"kind": "client", "name": "web", "scopes": OWN}), 201)
    assert parse(made["token"]).anchor
    listed = (await author.get("/v1/tokens")).text
    audited = str(await sql.fetch("select detail from registry.audit where action = 'token.create'"))
    stored = str(await sql.fetch("select t::text from access.token t"))
    for place in (listed, audited, stored):
        assert made["id"] in place
        assert made["token"] not in place


async def test_what_each_kind_may_do(author: Author) -> None:
    good(await author.put("a", 1), 201)
    writer, _ = await make(author, "author")
    client, _ = await make(author, "client")
    machine, _ = await make(author, "service")
    good(await writer.put("a", 2), 201)
    good(await writer.get("/configs/a"))
    good(await client.get("/v1/heads/shop/production"))
    good(await machine.get("/configs/a"))
    assert (await machine.get("/v1/internal/shop/production/versions/1")).status_code == 200
    for answer in (
        await client.put("a", 3),
        await client.get("/configs/a"),
        await client.get("/history"),
        await machine.put("a", 3),
        await machine.ask("POST", "/rollback", json={"to": 1}),
        await writer.ask("POST", "/v1/tokens", json={"kind": "author", "name": "x", "scopes": OWN}),
        await writer.get("/v1/tokens"),
        await writer.get("/v1/dead-letters"),
        await writer.get("/v1/audit/shop/production"),
        await machine.ask("POST", "/v1/internal/introspect", json={"sha256": "00" * 32}),
    ):
        problem(answer, 403, "forbidden")


async def test_scopes_end_where_they_say(author: Author) -> None:
    good(await author.ask("POST", "/v1/namespaces", json={"name": "bank"}), 201)
    good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "dev"}), 201)
    writer, _ = await make(author, "author")
    for path in ("/v1/namespaces/shop/environments/dev", "/v1/namespaces/bank/environments/production"):
        foreign = Author(writer.http, writer.headers["Authorization"].split()[1], path)
        for answer in (
            await foreign.put("a", 1),
            await foreign.get("/configs"),
            await foreign.get("/diff"),
            await foreign.publish({"name": "a"}),
        ):
            problem(answer, 403, "forbidden")
    assert [each["name"] for each in good(await writer.get("/v1/namespaces"))["items"]] == ["shop"]
    assert [each["name"] for each in good(await writer.get("/v1/namespaces/shop/environments"))["items"]] == ["production"]
    problem(await writer.get("/v1/namespaces/bank/environments"), 403, "forbidden")
    problem(await writer.ask("POST", "/v1/namespaces", json={"name": "mine"}), 403, "forbidden")


async def test_nobody_gives_more_than_they_have(author: Author) -> None:
    local, _ = await make(author, "admin")
    good(await local.ask("POST", "/v1/tokens", json={"kind": "author", "name": "x", "scopes": OWN}), 201)
    for scopes in ([{"namespace": "shop"}], [{}], [*OWN, {"namespace": "bank", "environment": "production"}]):
        problem(await local.ask("POST", "/v1/tokens", json={"kind": "author", "name": "x", "scopes": scopes}), 403, "forbidden")
    seen = good(await local.get("/v1/tokens"))["items"]
    assert {each["name"] for each in seen} == {"a admin", "x"}
    first = next(each for each in good(await author.get("/v1/tokens"))["items"] if each["name"] == "first admin")
    problem(await local.ask("DELETE", f"/v1/tokens/{first['id']}"), 403, "forbidden")
    good(await author.get("/v1/tokens"))


async def test_revoked_token_is_refused_at_once_and_told_to_its_shards(author: Author, sql: Any) -> None:
    writer, number = await make(author, "author")
    good(await writer.put("a", 1), 201)
    revoked = good(await author.ask("DELETE", f"/v1/tokens/{number}"), 200)
    assert revoked["revoked_at"]
    problem(await writer.put("a", 2), 401, "unauthenticated")
    assert await _told(sql) == [(shard_of("shop", "production"), number)]
    good(await author.ask("DELETE", f"/v1/tokens/{number}"), 200)
    problem(await author.ask("DELETE", "/v1/tokens/tok_nobody"), 404, "not-found")
    problem(await author.ask("DELETE", "/v1/tokens/%00"), 400, "invalid-request")


async def test_revocation_of_a_token_for_everything_is_told_everywhere(author: Author, sql: Any) -> None:
    _, number = await make(author, "client", [{"namespace": "shop"}])
    good(await author.ask("DELETE", f"/v1/tokens/{number}"), 200)
    assert await _told(sql) == [(shard, number) for shard in range(SHARDS)]


async def test_revocations_at_once_do_not_wait_for_each_other_in_a_circle(author: Author) -> None:
    made = [await make(author, "client", [{}]) for _ in range(10)]
    answers = await asyncio.gather(
        *(author.ask("DELETE", f"/v1/tokens/{number}") for _, number in made), *(author.put("a", i) for i in range(10))
    )
    assert {each.status_code for each in answers} == {200, 201}


async def test_expiry(author: Author, sql: Any) -> None:
    writer, number = await make(author, "author", expires_in_s=3600)
    good(await writer.put("a", 1), 201)
    await sql.execute("update access.token set expires_at = now() - interval '1 second' where id = $1", number)
    problem(await writer.put("a", 2), 401, "unauthenticated")


async def test_tokens_that_are_not_understood(author: Author) -> None:
    good_one = {"kind": "author", "name": "x", "scopes": OWN}
    for change in (
        {"kind": "root"},
        {"name": ""},
        {"name": "x" * 101},
        {"scopes": []},
        {"expires_in_s": 0},
        {"expires_in_s": 1e12},
        {"extra": 1},
    ):
        problem(await author.ask("POST", "/v1/tokens", json=good_one | change), 400, "invalid-request")
    problem(await author.ask("POST", "/v1/tokens", json=good_one | {"scopes": [{"namespace": "Shop"}]}), 400, "invalid-name")


async def _told(sql: Any) -> list[tuple[int, str]]:
    async with asyncio.timeout(DEADLINE_S):
        rows = await sql.fetch("select shard, body from eventlog.event where key = 'tokens' order by shard")
    return [(row["shard"], msgspec.json.decode(row["body"], type=RevokedEvent).tokens[0]) for row in rows]
