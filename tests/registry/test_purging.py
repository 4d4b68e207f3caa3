"""Texts that must not stay: their bytes go, and everything that was ever signed or proved still holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import msgspec
import pytest

from heliograph.core import dsse, trie
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.errors import BadSignature
from heliograph.core.events import FromRegistry, PurgeEvent
from heliograph.core.records import PURGE_TYPE, Signed, Version
from heliograph.core.token import parse
from heliograph.core.trust import Trust
from heliograph.services.registry.purge import Purges

from .conftest import DEADLINE_S, Author, good, problem, running
from .test_upkeep import eventually, set_aside

PURGES = "/v1/namespaces/shop/purges"
WHY = {"reason": "a password in clear", "order": "DPO-17"}
SECRET = {"password": "hunter2"}


def digest_of(document: Any, kind: Any = "document") -> str:
    return str(digest(kind, json.dumps(document, separators=(",", ":")).encode() if kind == "document" else document.encode()))


async def leak(author: Author) -> str:
    """Version 2 has the secret, version 3 has not. The document's digest."""
    good(await author.publish({"name": "a", "document": SECRET}, {"name": "b", "document": 1}), 201)
    good(await author.put("a", {"password": None}), 201)
    return digest_of(SECRET)


async def trust_of(author: Author) -> Trust:
    asked = {"kind": "client", "name": "c", "scopes": [{}]}
    anchor = parse(good(await author.ask("POST", "/v1/tokens", json=asked))["token"]).anchor
    return Trust.from_root(dsse.from_envelope(good(await author.get("/v1/trust")))[1], str(anchor))


async def test_purged_text_is_gone_and_everything_verifies(author: Author, sql: Any) -> None:
    gone = await leak(author)
    old = good(await author.get("/versions/2"))
    told = good(await author.ask("POST", PURGES, json={"environment": "production", "config": "a", "versions": [2]} | WHY), 201)
    assert (told["digests"], told["order"], told["already"]) == ([gone], "DPO-17", [])
    body, kind, purged = await sql.fetchrow(
        "select body, kind::text, purged from registry.object where digest = $1", unspell(gone)
    )
    tomb = json.loads(body)["purged"]
    assert (kind, purged, tomb["reason"], tomb["order"], set(tomb)) == (
        "document",
        True,
        WHY["reason"],
        "DPO-17",
        {"at", "by", "reason", "order"},
    )
    assert not await sql.fetchval(
        "select exists (select from registry.object where position('hunter2' in convert_from(body, 'UTF8')) > 0 and kind = 'document')"
    )

    trust = await trust_of(author)
    signed = dsse.from_envelope(told["envelope"])
    statement = trust.verify_purge(signed[1])
    assert (signed[0], statement.namespace, statement.digests, statement.order) == (PURGE_TYPE, "shop", (gone,), "DPO-17")
    with pytest.raises(BadSignature):
        trust.verify_purge(Signed(signed[1].payload.replace("DPO-17", "DPO-18"), signed[1].signatures))
    for line in (await author.get("/history")).text.splitlines():
        assert trust.verify_version(msgspec.json.decode(line, type=Signed))
    assert good(await author.get("/versions/2")) == old
    leaves = {each["name"]: each["document"] for each in good(await author.get("/configs", params={"at": 2}))["items"]}
    rebuilt = {name: unspell(digest("leaf", msgspec.json.encode({"document": each}))) for name, each in leaves.items()}
    root = Version.read(dsse.from_envelope(old["envelope"])[1].payload).root
    assert trie.update(trie.EMPTY, rebuilt).digest == unspell(root)

    assert "purged" in problem(await author.get("/configs/a", params={"at": 2}), 404, "not-found")["detail"]
    assert (await author.get("/configs/b", params={"at": 2})).json() == 1
    assert [each["purged"] for each in good(await author.get("/history/a"))["items"]] == [False, True]
    (line,) = good(await author.get("/blame/a"))["items"]
    assert (line["pointer"], line["number"], line["certain"]) == ("/password", 3, False)
    assert good(await author.get("/diff", params={"from": 2, "to": 3}))["items"][0]["name"] == "a"
    problem(await author.ask("POST", "/rollback", json={"to": 2}), 409, "conflict")
    for again in (await author.put("a", SECRET), await author.put("new", SECRET)):
        assert "purged" in problem(again, 409, "conflict")["detail"]
    good(await author.put("a", {"password": "other"}), 201)


async def test_purge_is_told_and_audited_and_listed(author: Author, sql: Any) -> None:
    gone = await leak(author)
    told = good(await author.ask("POST", PURGES, json={"digests": [gone]} | WHY), 201)
    rows = await sql.fetch("select body, shard from eventlog.event where key = 'shop'")
    events = [msgspec.json.decode(row["body"], type=FromRegistry) for row in rows]
    assert [(each.namespace, each.digests) for each in events if isinstance(each, PurgeEvent)] == [("shop", (gone,))]
    audited, _ = good(await author.get("/v1/audit/shop"))["items"]
    assert audited["action"] == "object.purge"
    detail = audited["detail"]
    assert (detail["order"], json.loads(detail["statement"])["digests"]) == ("DPO-17", [gone])
    (listed,) = good(await author.get(PURGES))["items"]
    assert listed["envelope"] == told["envelope"]
    again = good(await author.ask("POST", PURGES, json={"digests": [gone]} | WHY), 200)
    assert (again["digests"], again["already"]) == ([], [gone])
    assert len(good(await author.get(PURGES))["items"]) == 1


async def test_answer_says_where_the_text_can_still_be(author: Author, sql: Any) -> None:
    gone = await leak(author)
    await set_aside(sql, body=json.dumps({"document_digest": gone}).encode())
    good(await author.put("b", 2, headers={"Heliograph-Message": "his name was Tom"}), 201)
    message = digest_of("his name was Tom", "message")
    told = good(await author.ask("POST", PURGES, json={"digests": [gone, message]} | WHY), 201)
    remains = {each["where"]: each for each in told["remains"]}
    assert {
        "event log in PostgreSQL",
        "backups",
        "sync nodes",
        "clients",
        "dead letters",
        "remembered answers",
    } <= remains.keys()
    assert "Kafka" not in remains
    assert remains["event log in PostgreSQL"]["until"] > told["at"]
    assert remains["dead letters"]["what"].startswith("1 ")
    assert good(await author.get("/versions"))["items"][0]["message"] is None


async def test_what_a_head_names_is_not_purged(author: Author, sql: Any) -> None:
    """In whatever environment: here in one that is deleted and can be restored. Afterwards everything is as before."""
    for name in ("dev", "old"):
        good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": name}), 201)
        there = Author(author.http, author.headers["Authorization"].split()[1], f"/v1/namespaces/shop/environments/{name}")
        good(await there.put("folder/x", SECRET), 201)
    good(await author.ask("DELETE", "/v1/namespaces/shop/environments/old"))
    gone = await leak(author)
    said = problem(await author.ask("POST", PURGES, json={"digests": [gone]} | WHY), 409, "still-named")
    assert said["held_by"] == {"dev": ["folder/x"], "old": ["folder/x"]}
    assert await sql.fetchval("select count(*) from registry.purged") == 0
    assert (await author.get("/configs/a", params={"at": 2})).json() == SECRET
    good(await author.put("again", SECRET), 201)
    schema = {"type": "object", "description": "a secret"}
    good(await author.put_schema("again", schema), 201)
    named = good(await author.get("/history/again"))["items"][0]["schema"]
    assert problem(await author.ask("POST", PURGES, json={"digests": [named]} | WHY), 409, "still-named")["held_by"] == {
        "production": ["again"]
    }


async def test_only_texts_are_purged_and_only_by_an_administrator(author: Author) -> None:
    await leak(author)
    entry = good(await author.get("/configs", params={"at": 2}))["items"][0]
    root = good(await author.get("/versions/2"))["root"]
    for each in (entry["digest"], root):
        assert (
            "digests only"
            in problem(await author.ask("POST", PURGES, json={"digests": [each]} | WHY), 400, "invalid-request")["detail"]
        )
    problem(await author.ask("POST", PURGES, json={"digests": [digest_of("nowhere")]} | WHY), 404, "not-found")
    named = {"environment": "production", "config": "nowhere", "versions": [2]}
    problem(await author.ask("POST", PURGES, json=named | WHY), 404, "not-found")
    asked = {"kind": "author", "name": "w", "scopes": [{"namespace": "shop"}]}
    writer = Author(author.http, good(await author.ask("POST", "/v1/tokens", json=asked))["token"])
    problem(await writer.ask("POST", PURGES, json={"digests": [entry["document"]]} | WHY), 403, "forbidden")
    for scope, status in (({"namespace": "shop", "environment": "production"}, 200), ({"namespace": "bank"}, 403)):
        token = good(await author.ask("POST", "/v1/tokens", json=asked | {"scopes": [scope]}))["token"]
        assert (await Author(author.http, token).get(PURGES)).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        {"digests": []},
        {"digests": ["x"]},
        {"digests": [digest_of(1)] * 2, "environment": "production"},
        {"environment": "production", "config": "a"},
        {"environment": "production", "config": "a", "versions": []},
        {"environment": "production", "config": "a", "versions": ["?"]},
        {},
        {"digests": [digest_of(1)], "reason": ""},
        {"digests": [digest_of(1)], "order": "x" * 201},
        {"digests": [digest_of(1)], "order": "\0"},
    ],
)
async def test_bad_purges(author: Author, body: dict[str, Any]) -> None:
    problem(await author.ask("POST", PURGES, json=WHY | body), 400, "invalid-request")


async def test_writers_beside_a_purge_never_bring_the_text_back(author: Author, sql: Any) -> None:
    """Somebody publishes it again and rolls back to it all the time. In the end it is purged and no head names it, or it stays whole."""
    gone = await leak(author)
    stop = asyncio.Event()

    async def write(n: int) -> None:
        while not stop.is_set():
            await author.put(f"w{n}", SECRET)
            await author.ask("POST", "/rollback", json={"to": 2})
            await author.put(f"w{n}", 0)
            await author.put("a", n)

    writers = [asyncio.create_task(write(n)) for n in range(3)]
    statuses = []
    for _ in range(8):
        statuses.append((await author.ask("POST", PURGES, json={"digests": [gone]} | WHY)).status_code)
        purged = await sql.fetchval("select purged from registry.object where digest = $1", unspell(gone))
        for entry in good(await author.get("/configs"))["items"]:
            assert not (purged and entry["document"] == gone)
        if 201 in statuses:
            break
    stop.set()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*writers)
    assert set(statuses) <= {201, 409}
    for entry in good(await author.get("/configs"))["items"]:
        assert (await author.get(f"/configs/{entry['name']}")).status_code == 200


Beside = Callable[[], Awaitable[None]]


def before_it_purges(monkeypatch: pytest.MonkeyPatch, beside: Beside) -> None:
    """What happens once in the middle of a purge, when it has seen that no head names the texts."""
    refuse, waiting = Purges._refuse_held, [beside]

    async def refuse_held(self: Purges, *asked: Any) -> None:
        await refuse(self, *asked)
        if waiting:
            await waiting.pop()()

    monkeypatch.setattr(Purges, "_refuse_held", refuse_held)


async def test_somebody_else_who_asks_for_the_same_waits_and_undoes_nothing(
    author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = await leak(author)
    asked = {"digests": [gone]} | WHY

    async def beside() -> None:
        problem(await author.ask("POST", PURGES, json=asked), 409, "contended")
        problem(await author.put("again", SECRET), 409, "conflict")

    before_it_purges(monkeypatch, beside)
    good(await author.ask("POST", PURGES, json=asked), 201)
    assert good(await author.ask("POST", PURGES, json=asked), 200)["already"] == [gone]


async def test_no_head_names_a_purged_text_when_others_ask_for_it_and_give_up(
    author: Author, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes very long. Another takes its place and gives up, somebody publishes the text, and one more asks."""
    gone = unspell(await leak(author))

    async def beside() -> None:
        await sql.execute("update registry.purged set at = at - interval '2 minutes'")
        for ask in (uuid4(), uuid4()):
            assert await sql.fetchval("select registry.ask_purge('shop', array[$1::bytea], $2)", gone, ask)
            await sql.execute("select registry.cancel_purge('shop', array[$1::bytea], $2)", gone, uuid4())
            problem(await author.put("again", SECRET), 409, "conflict")
            await sql.execute("select registry.cancel_purge('shop', array[$1::bytea], $2)", gone, ask)
        good(await author.put("again", SECRET), 201)
        assert await sql.fetchval("select registry.ask_purge('shop', array[$1::bytea], $2)", gone, uuid4())

    before_it_purges(monkeypatch, beside)
    problem(await author.ask("POST", PURGES, json={"digests": [spell(gone)]} | WHY), 409, "contended")
    assert (await author.get("/configs/again")).json() == SECRET


async def test_purges_of_the_previous_release_and_of_this_one_leave_each_other_alone(
    author: Author, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marks are nobody's. It may give up, and ask, whenever it likes."""
    gone = unspell(await leak(author))

    async def beside() -> None:
        await sql.execute("select registry.cancel_purge('shop', array[$1::bytea])", gone)
        problem(await author.put("again", SECRET), 409, "conflict")
        await sql.execute("select registry.ask_purge('shop', array[$1::bytea])", gone)

    await sql.execute("select registry.ask_purge('shop', array[$1::bytea])", gone)
    problem(await author.ask("POST", PURGES, json={"digests": [spell(gone)]} | WHY), 409, "contended")
    assert await sql.fetchval("select count(*) from registry.purged") == 1
    await sql.execute("select registry.cancel_purge('shop', array[$1::bytea])", gone)
    before_it_purges(monkeypatch, beside)
    good(await author.ask("POST", PURGES, json={"digests": [spell(gone)]} | WHY), 201)


async def test_purge_is_undone_when_it_was_given_up_half_way(author: Author, sql: Any) -> None:
    """What somebody asked to purge, and whose registry died then, is refused for ten minutes; after that it is as it was."""
    gone = await leak(author)
    await sql.execute("select registry.ask_purge('shop', array[$1::bytea])", unspell(gone))
    problem(await author.put("a", SECRET), 409, "conflict")
    problem(await author.ask("POST", "/rollback", json={"to": 2}), 409, "conflict")
    await sql.execute("update registry.purged set at = now() - interval '11 minutes'")
    good(await author.put("a", SECRET), 201)


async def test_branch_that_was_made_beside_a_purge_has_to_be_made_again(author: Author, sql: Any) -> None:
    """It has no head before it whose move would tell. An empty environment, and one that is restored, may begin at any time."""
    gone = await leak(author)
    row = await sql.fetchrow("select * from registry.head")
    good(await author.ask("POST", PURGES, json={"digests": [gone]} | WHY), 201)
    columns, places = ", ".join(row.keys()), ", ".join(f"${n}" for n in range(1, len(row) + 1))
    branch = dict(row) | {"environment": "branch", "number": 1, "safe": 1}
    insert = f"insert into registry.head ({columns}) values ({places})"
    with pytest.raises(asyncpg.RestrictViolationError, match="purged"):
        await sql.execute(insert, *branch.values())
    await sql.execute("update registry.purged set at = now() - interval '2 minutes'")
    await sql.execute(insert, *branch.values())
    await sql.execute("update registry.purged set at = now()")
    good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "empty"}), 201)
    good(await author.ask("DELETE", "/v1/namespaces/shop/environments/branch"))
    assert await sql.fetchval("select registry.restore_environments('shop', 'branch', 'x')") == ["branch"]


async def test_other_registries_forget_it_too(author: Author, registry: Any, settings: Any, free_port: Any) -> None:
    """A text that another registry has in its cache is dropped there within seconds."""
    good(await author.put("s", 1), 201)
    schema = {"type": "integer", "description": "his name was Tom"}
    good(await author.put_schema("s", schema), 201)
    named = good(await author.get("/history/s"))["items"][0]["schema"]
    async with (
        running(settings.model_copy(update={"registry_port": free_port()})) as second,
        httpx.AsyncClient(base_url=second.url, timeout=DEADLINE_S) as http,
    ):
        other = Author(http, registry.token())
        good(await other.put("s", 2), 201)  # reads the schema
        assert (await other.get("/schemas/s", params={"at": 3})).status_code == 200
        good(await author.ask("DELETE", "/schemas/s"), 201)
        good(await author.ask("POST", PURGES, json={"digests": [named]} | WHY), 201)
        assert (await author.get("/schemas/s", params={"at": 3})).status_code == 404

        async def forgotten() -> bool:
            return (await other.get("/schemas/s", params={"at": 3})).status_code == 404

        await eventually(forgotten)
