"""Dead letters are found, told again and discarded: one, some, or all that fit; audited, safe to repeat, and each failure finds its letter."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from heliograph.core.events import HeadEvent, Replay
from heliograph.eventlog import dead_letters
from heliograph.eventlog.dead_letters import Filter
from heliograph.runtime.postgres import open_pool

from .conftest import Author, good, problem, running
from .test_upkeep import eventually, head_events

PATH = "/v1/dead-letters"


async def letter(sql: Any, *, stream: str = "versions", consumer: str = "sync", **more: Any) -> int:
    told = {
        "key": "shop/production",
        "body": b"{}",
        "reason": "broken",
        "attempts": 3,
        "namespace": "shop",
        "environment": "production",
        **more,
    }
    names = ", ".join(told)
    values = ", ".join(f"${n}" for n in range(3, 3 + len(told)))
    statement = f"""insert into eventlog.dead_letter (stream, consumer, shard, position, {names})
                    values ($1, $2, 3, (select coalesce(max(position), 0) + 1 from eventlog.dead_letter), {values}) returning id"""
    return int(await sql.fetchval(statement, stream, consumer, *told.values()))


async def states(author: Author) -> dict[int, str]:
    return {each["id"]: each["state"] for each in good(await author.get(PATH))["items"]}


async def audit(sql: Any) -> list[dict[str, Any]]:
    rows = await sql.fetch("select action, detail from registry.audit where action like 'dead_letter.%' order by id")
    return [{"action": row["action"]} | msgspec.json.decode(row["detail"]) for row in rows]


async def test_letters_are_found_by_what_they_say(author: Author, sql: Any) -> None:
    one = await letter(sql, reason="The document is 100% BROKEN")
    two = await letter(sql, stream="receipts", consumer="ledger", key="instance-7", environment="staging")
    old = await letter(sql, namespace="bank", failed_at=None)
    await sql.execute("update eventlog.dead_letter set created_at = now() - interval '2 days' where id = $1", old)

    async def found(**asked: Any) -> list[int]:
        return [each["id"] for each in good(await author.get(PATH, params=asked))["items"]]

    assert await found() == [one, two, old]
    assert await found(stream="receipts") == await found(consumer="ledger") == await found(key="instance-7") == [two]
    assert await found(namespace="shop") == [one, two]
    assert await found(namespace="shop", environment="staging") == [two]
    assert await found(reason="100% broken") == [one]  # no wild cards
    assert await found(reason="_") == []
    assert await found(older_than_s=86_400) == [old]
    assert await found(state="discarded") == []
    problem(await author.get(PATH, params={"state": "lost"}), 400, "invalid-request")


async def test_many_are_told_again_by_one_head_for_each_environment(author: Author, sql: Any) -> None:
    good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "staging"}), 201)
    here = [await letter(sql) for _ in range(3)]
    there = [await letter(sql, key="shop/staging", environment="staging")]
    other = await letter(sql, namespace="bank", key="bank/dev", environment="dev")
    asked = {"filter": {"namespace": "shop", "stream": "versions"}}
    counted = good(await author.ask("POST", f"{PATH}/replay", json=asked | {"dry_run": True}))
    assert (counted["matched"], counted["done"], counted["dry_run"]) == (4, [], True)
    assert set((await states(author)).values()) == {"waiting"}

    done = good(await author.ask("POST", f"{PATH}/replay", json=asked))
    assert (done["done"], done["failed"], done["next"]) == (here + there, [], None)
    told = {event.environment: event for event in await head_events(sql)}
    assert told["production"].replay == Replay(letters=tuple(here))
    assert told["staging"].replay == Replay(letters=tuple(there))
    assert await states(author) == dict.fromkeys(here + there, "replayed") | {other: "waiting"}
    assert sorted(each["letters"] for each in await audit(sql)) == [here, there]

    again = good(await author.ask("POST", f"{PATH}/replay", json={"ids": [*here, 999]}))
    assert (again["done"], again["skipped"]) == ([], [*here, 999])
    assert len(await head_events(sql)) == 2
    text = (await author.http.get("/metrics")).text
    assert 'heliograph_dead_letters_replayed_total{stream="versions"} 4.0' in text


async def test_one_that_cannot_be_told_again_holds_up_no_other(author: Author, sql: Any) -> None:
    gone = await letter(sql, key="shop/gone", environment="gone")
    nameless = await letter(sql, key="???", namespace=None, environment=None)
    fine = await letter(sql)
    done = good(await author.ask("POST", f"{PATH}/replay", json={"ids": [gone, nameless, fine]}))
    assert done["done"] == [fine]
    assert {each["id"]: each["code"] for each in done["failed"]} == {gone: "not-found", nameless: "conflict"}
    assert await states(author) == {gone: "waiting", nameless: "waiting", fine: "replayed"}


async def test_what_the_ledger_set_aside_it_takes_in_again_itself(author: Author, sql: Any) -> None:
    numbers = [await letter(sql, stream=stream, consumer="ledger") for stream in ("versions", "receipts", "deliveries")]
    for number in numbers:
        assert good(await author.ask("POST", f"{PATH}/{number}/replay"))["state"] == "replaying"
    assert await head_events(sql) == []
    problem(await author.ask("POST", f"{PATH}/{numbers[0]}/replay"), 409, "conflict")
    problem(await author.ask("POST", f"{PATH}/{numbers[0]}/discard", json={"reason": "x"}), 409, "conflict")


async def test_a_rejected_version_is_pushed_again_under_the_trace_of_the_replay(author: Author, sql: Any) -> None:
    number = await letter(
        sql, stream="deliveries", consumer="instances", number=2, version="sha256:x", instances=10_000, sample=["a", "b"]
    )
    listed = good(await author.get(f"{PATH}/{number}"))
    assert (listed["instances"], listed["sample"], listed["number"]) == (10_000, ["a", "b"], 2)
    answer = await author.ask("POST", f"{PATH}/{number}/replay", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    assert (good(answer)["state"], answer.json()["replays"]) == ("replayed", 1)
    (told,) = await head_events(sql)
    assert told.replay == Replay(letters=(number,), push=True)
    assert told.trace
    assert told.trace.split("-")[1] == "ab" * 16
    assert await sql.fetchval("select replay_trace from eventlog.dead_letter where id = $1", number) == told.trace


async def test_a_letter_that_fails_again_is_the_same_letter_with_one_attempt_more(
    author: Author, database: Any, sql: Any
) -> None:
    number = await letter(sql)
    good(await author.ask("POST", f"{PATH}/{number}/replay"))
    pool = await open_pool(database.url("heliograph_sync"), "test")
    for _ in range(3):  # every node says so; it failed once
        await dead_letters.failed_again(pool, [number], reason="still broken")
    (told,) = await dead_letters.page(pool, Filter(state="waiting"))
    await pool.close()
    assert (told.id, told.attempts, told.replays, told.reason, told.settled_by) == (number, 4, 1, "still broken", None)
    assert good(await author.ask("POST", f"{PATH}/{number}/replay"))["replays"] == 2


async def test_discarding_needs_a_reason_and_keeps_it(author: Author, sql: Any) -> None:
    numbers = [await letter(sql) for _ in range(3)]
    for nothing in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 501}, {"reason": "a\0b"}):
        problem(await author.ask("POST", f"{PATH}/{numbers[0]}/discard", json=nothing), 400, "invalid-request")
    told = good(await author.ask("POST", f"{PATH}/{numbers[0]}/discard", json={"reason": "rolled back"}))
    assert (told["state"], told["note"], bool(told["settled_at"])) == ("discarded", "rolled back", True)
    problem(await author.ask("POST", f"{PATH}/discard", json={"ids": numbers}), 400, "invalid-request")
    done = good(await author.ask("POST", f"{PATH}/discard", json={"ids": numbers, "reason": "test"}))
    assert (done["done"], done["skipped"]) == (numbers[1:], numbers[:1])
    assert [(each["action"], each["letters"], each["reason"]) for each in await audit(sql)] == [
        ("dead_letter.discard", numbers[:1], "rolled back"),
        ("dead_letter.discard", numbers[1:], "test"),
    ]
    problem(await author.ask("POST", f"{PATH}/{numbers[0]}/replay"), 409, "conflict")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filter": {}},
        {"ids": []},
        {"ids": [1], "filter": {"stream": "versions"}},
        {"ids": [0]},
        {"ids": list(range(1, 502))},
        {"filter": {"state": "replayed"}},
        {"filter": {"stream": "letters"}},
        {"filter": {"older_than_s": -1}},
        {"ids": ["1"]},
        [],
    ],
)
async def test_which_letters_must_be_said_clearly(author: Author, sql: Any, body: Any) -> None:
    number = await letter(sql)
    problem(await author.ask("POST", f"{PATH}/replay", json=body), 400, "invalid-request")
    assert await states(author) == {number: "waiting"}


async def test_many_go_page_by_page(author: Author, sql: Any) -> None:
    await sql.execute(
        """insert into eventlog.dead_letter (stream, consumer, shard, position, key, body, reason, attempts)
           select 'receipts', 'ledger', 1, n, 'i', '', 'broken', 1 from generate_series(1, 700) n"""
    )
    asked = {"filter": {"stream": "receipts"}}
    first = good(await author.ask("POST", f"{PATH}/replay", json=asked))
    assert (len(first["done"]), bool(first["next"])) == (500, True)
    second = good(await author.ask("POST", f"{PATH}/replay", json=asked | {"after": first["next"]}))
    assert (len(second["done"]), second["next"]) == (200, None)


async def test_documents_are_shown_only_when_asked_for_and_that_is_audited(author: Author, sql: Any) -> None:
    good(await author.put("a", "a secret value"), 201)
    body = await sql.fetchval("select body from eventlog.event order by position desc limit 1")
    number = await letter(sql, body=body)
    garbled = await letter(sql, body=b"\xff a secret value")
    assert "a secret value" not in (await author.get(f"{PATH}/{number}")).text
    assert good(await author.get(f"{PATH}/{garbled}"))["event"] == {"unreadable_bytes": 16}
    assert await audit(sql) == []
    shown = good(await author.get(f"{PATH}/{number}", params={"documents": "true"}))
    assert shown["event"]["changes"][0]["document"] == '"a secret value"'
    assert "base64" in good(await author.get(f"{PATH}/{garbled}", params={"documents": "true"}))["event"]
    assert [(each["action"], each["letter"]) for each in await audit(sql)] == [
        ("dead_letter.documents_read", number),
        ("dead_letter.documents_read", garbled),
    ]


async def test_only_an_administrator_of_everything_sees_them(author: Author, http: httpx.AsyncClient, sql: Any) -> None:
    number = await letter(sql)
    for kind, scope in (("author", {}), ("admin", {"namespace": "shop"})):
        made = good(await author.ask("POST", "/v1/tokens", json={"kind": kind, "name": "x", "scopes": [scope]}), 201)
        other = Author(http, made["token"])
        problem(await other.get(PATH), 403, "forbidden")
        problem(await other.ask("POST", f"{PATH}/{number}/replay"), 403, "forbidden")
        problem(await other.ask("POST", f"{PATH}/discard", json={"ids": [number], "reason": "x"}), 403, "forbidden")


async def test_settled_letters_are_forgotten_and_waiting_ones_are_counted(settings: Any, sql: Any) -> None:
    old, new = await letter(sql), await letter(sql)
    waiting = await letter(sql, stream="receipts")
    await sql.execute(
        "update eventlog.dead_letter set state = 'replayed', settled_at = now() where id = any($1::bigint[])", [old, new]
    )
    await sql.execute("update eventlog.dead_letter set settled_at = now() - interval '31 days' where id = $1", old)
    await sql.execute("update eventlog.dead_letter set created_at = now() - interval '90 days' where id = $1", waiting)
    async with running(settings) as one, httpx.AsyncClient(base_url=one.url) as http:

        async def kept() -> bool:
            return [row["id"] for row in await sql.fetch("select id from eventlog.dead_letter order by id")] == [new, waiting]

        assert await eventually(kept)
        text = (await http.get("/metrics")).text
    assert 'heliograph_dead_letters_waiting{stream="receipts"} 1.0' in text
    assert 'heliograph_dead_letters_waiting{stream="versions"} 0.0' in text
    (oldest,) = (
        line for line in text.splitlines() if line.startswith('heliograph_dead_letter_oldest_seconds{stream="receipts"}')
    )
    assert float(oldest.split()[1]) > 89 * 86_400


async def test_a_head_that_cannot_be_read_does_not_keep_others_from_being_renewed(settings: Any, sql: Any) -> None:
    quick = settings.model_copy(update={"head_renew_s": 0.2, "head_life_s": 5.0})
    async with running(quick) as one, httpx.AsyncClient(base_url=one.url) as http:
        author = Author(http, one.token())
        await author.settle()
        good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "poisoned"}), 201)
        async with sql.transaction():
            await sql.execute("alter table registry.head disable trigger all")
            await sql.execute("update registry.head set payload = 'garbage', issued_at_us = 1 where environment = 'poisoned'")
            await sql.execute("alter table registry.head enable trigger all")
        before = (await author.head())["issued_at"]

        async def renewed() -> bool:
            return (await author.head())["issued_at"] > before

        for _ in range(2):
            assert await eventually(renewed)
            before = (await author.head())["issued_at"]


def test_older_readers_ignore_what_a_replay_adds() -> None:
    class Old(msgspec.Struct, tag_field="type", tag="head"):
        namespace: str

    event = HeadEvent(namespace="shop", environment="production", head=None, replay=Replay(letters=(1,)))  # type: ignore[arg-type]
    assert msgspec.json.decode(msgspec.json.encode(event), type=Old).namespace == "shop"
