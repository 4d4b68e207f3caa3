"""What the registry does by itself: heads renewed, keys guarded, dead letters told again, waits held, readiness said."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request

from heliograph.core import dsse
from heliograph.core.errors import Corrupt, Forbidden, HeliographError, NotFound, NotReady, Unavailable
from heliograph.core.events import HeadEvent, RevokedEvent, VersionEvent
from heliograph.core.times import to_us
from heliograph.core.token import parse
from heliograph.core.trust import Trust
from heliograph.runtime.http import Json, make_app, serve_http
from heliograph.services.registry.app import serve
from heliograph.services.registry.propagations import CUT_S
from heliograph.services.registry.settings import RegistrySettings
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

from .conftest import DEADLINE_S, Author, Running, good, problem, running


async def eventually(check: Any) -> Any:
    """What ``check`` returns, once that is something."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := await check()):
            await asyncio.sleep(0.02)
    return found


async def head_events(sql: Any) -> list[HeadEvent]:
    rows = await sql.fetch("select body from eventlog.event order by position")
    events = [msgspec.json.decode(row["body"], type=VersionEvent | HeadEvent | RevokedEvent) for row in rows]
    return [each for each in events if isinstance(each, HeadEvent)]


async def test_heads_are_renewed_by_one_and_commits_go_on(settings: Any, sql: Any, free_port: Any) -> None:
    """Two registries; one holds the lock. A renewed head is the same version, signed later."""
    quick = settings.model_copy(update={"head_renew_s": 0.2, "head_life_s": 5.0})
    async with (
        running(quick) as one,
        running(quick.model_copy(update={"registry_port": free_port()})),
        httpx.AsyncClient(base_url=one.url) as http,
    ):
        author = Author(http, one.token())
        await author.settle()
        said = good(await author.put("a", 1), 201)
        events = await eventually(lambda: _at_least(sql, 3))
        anchor = parse(
            good(await author.ask("POST", "/v1/tokens", json={"kind": "client", "name": "c", "scopes": [{}]}))["token"]
        ).anchor
        trust = Trust.from_root(dsse.from_envelope(good(await author.get("/v1/trust")))[1], str(anchor))
        heads = [trust.verify_head(each.head) for each in events]
        of_version = [head for head in heads if head.number == 2]
        assert {head.version for head in of_version} == {said["version"]}
        issued = [to_us(head.issued_at) for head in heads]
        assert issued == sorted(set(issued))
        for i in range(20):
            good(await author.put("a", {"i": i}), 201)
        assert (await author.head())["number"] == 22


async def _at_least(sql: Any, count: int) -> list[HeadEvent]:
    found = [each for each in await head_events(sql) if msgspec.json.decode(each.head.payload)["number"] == 2]
    return found if len(found) >= count else []


async def test_history_without_its_keys_stops_the_start(settings: Any) -> None:
    async with running(settings) as one, httpx.AsyncClient(base_url=one.url) as http:
        await Author(http, one.token()).settle()
    await asyncio.to_thread(shutil.rmtree, settings.data_dir / "keys")
    with pytest.raises(Corrupt, match="keys"):
        await serve(settings, ready=asyncio.Event(), stop=asyncio.Event())


async def test_second_start_finds_everything(settings: Any) -> None:
    said = []
    for number in range(2):
        async with running(settings) as one, httpx.AsyncClient(base_url=one.url) as http:
            author = Author(http, one.token())
            if number == 0:
                await author.settle()
            said.append(good(await author.put("a", number), 201))
            assert (await author.get("/configs/a")).json() == number
    assert said[1]["parent"] == said[0]["version"]


async def test_database_that_was_never_migrated(settings: Any, postgres_server: Any) -> None:
    with pytest.raises(Unavailable, match="migrate"):
        await serve(
            settings.model_copy(update={"database_url": type(settings.database_url)(postgres_server.url())}),
            ready=asyncio.Event(),
            stop=asyncio.Event(),
        )


async def test_health(author: Author) -> None:
    assert (await author.http.get("/healthz")).status_code == 200
    assert (await author.http.get("/readyz")).json() == {"status": "ready"}
    text = (await author.http.get("/metrics")).text
    assert 'heliograph_commits_total{outcome="committed"} 1.0' in text
    endpoints = good(await author.http.get("/v1/endpoints"))
    assert endpoints["stream"].endswith("/v1/stream")
    assert endpoints["api"] == str(author.http.base_url).rstrip("/")


async def test_database_that_goes_away_is_said_and_found_again(author: Author, sql: Any) -> None:
    good(await author.put("a", 1), 201)
    await sql.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'heliograph_registry'")
    answers = [await author.put("a", 2, headers={"Idempotency-Key": "k"}) for _ in range(12)]
    assert {each.status_code for each in answers} <= {201, 503}
    assert answers[-1].status_code == 201
    assert (await author.head())["number"] == 3


async def test_house_is_kept(settings: Any, sql: Any) -> None:
    """Old answers and old days of the log go, by themselves, once a registry runs."""
    await sql.execute(
        "insert into registry.idempotency select 'p', n::text, decode(repeat('00', 32), 'hex'), 201, '', now() - interval '8 days' from generate_series(1, 2500) n"
    )
    await sql.execute("insert into registry.idempotency values ('p', 'new', decode(repeat('00', 32), 'hex'), 201, '', now())")
    day = "(now() at time zone 'UTC')::date"
    name = await sql.fetchval(f"select 'event_' || to_char({day} - 30, 'YYYYMMDD')")
    first, last = await sql.fetchrow(f"select ({day} - 30)::text, ({day} - 29)::text")
    await sql.execute(f"create table eventlog.{name} partition of eventlog.event for values from ('{first}') to ('{last}')")
    await sql.execute(f"alter table eventlog.{name} owner to heliograph_owner")
    async with running(settings):
        assert await eventually(lambda: _kept(sql)) == ["new"]
        assert await sql.fetchval("select to_regclass($1)", f"eventlog.{name}") is None


async def _kept(sql: Any) -> list[str]:
    keys = [row["key"] for row in await sql.fetch("select key from registry.idempotency")]
    return keys if len(keys) == 1 else []


async def test_purged_document_cannot_come_back(author: Author, sql: Any) -> None:
    good(await author.put("a", {"secret": 1}), 201)
    good(await author.put("a", {"secret": None}), 201)
    async with sql.transaction():
        await sql.execute("alter table registry.object disable trigger all")
        await sql.execute(
            "update registry.object set purged = true, body = '{}' where kind = 'document' and convert_from(body, 'UTF8') = '{\"secret\":1}'"
        )
        await sql.execute("alter table registry.object enable trigger all")
    problem(await author.ask("POST", "/rollback", json={"to": 2}), 409, "conflict")
    problem(await author.get("/configs/a", params={"at": 2}), 404, "not-found")
    assert good(await author.get("/diff", params={"from": 2, "to": 3}))["items"][0]["name"] == "a"


def test_heads_that_would_expire_before_they_are_renewed() -> None:
    with pytest.raises(ValueError, match="HEAD_RENEW_S"):
        RegistrySettings(head_life_s=10, head_renew_s=10)


# --- dead letters -----------------------------------------------------------------------------------------------------------------


async def set_aside(sql: Any, *, stream: str = "versions", key: str = "shop/production", body: bytes = b"{}") -> int:
    statement = """insert into eventlog.dead_letter (stream, consumer, shard, position, key, body, reason, attempts)
                   values ($1, 'sync', 3, (select coalesce(max(position), 0) + 1 from eventlog.dead_letter), $2, $3, 'broken', 3) returning id"""
    return int(await sql.fetchval(statement, stream, key, body))


async def test_dead_letter_of_a_version_is_replayed_as_a_fresh_head(author: Author, sql: Any) -> None:
    said = good(await author.put("a", "a secret value"), 201)
    body = await sql.fetchval("select body from eventlog.event order by position desc limit 1")
    number = await set_aside(sql, body=body)
    (listed,) = good(await author.get("/v1/dead-letters", params={"state": "waiting"}))["items"]
    assert (listed["id"], listed["reason"], "event" in listed) == (number, "broken", False)
    shown = await author.get(f"/v1/dead-letters/{number}")
    assert shown.json()["event"]["number"] == 2
    assert "a secret value" not in shown.json()["event"]["changes"][0].values()
    assert good(await author.ask("POST", f"/v1/dead-letters/{number}/replay"), 200)["state"] == "replayed"
    (told,) = await head_events(sql)
    head = msgspec.json.decode(told.head.payload)
    assert (head["number"], head["version"]) == (2, said["version"])
    assert head["issued_at"] == (await author.head())["issued_at"]
    problem(await author.ask("POST", f"/v1/dead-letters/{number}/replay"), 409, "conflict")
    assert good(await author.get("/v1/dead-letters", params={"state": "waiting"}))["items"] == []
    assert (await author.get("/v1/audit/shop/production")).json()["items"][0]["action"] == "dead_letter.replay"


async def test_dead_letters_that_cannot_be_replayed_here(author: Author, sql: Any) -> None:
    receipt = await set_aside(sql, stream="receipts", key="instance")
    lost = await set_aside(sql, key="???")
    gone = await set_aside(sql, key="shop/nowhere")
    problem(await author.ask("POST", f"/v1/dead-letters/{receipt}/replay"), 409, "conflict")
    problem(await author.ask("POST", f"/v1/dead-letters/{lost}/replay"), 409, "conflict")
    problem(await author.ask("POST", f"/v1/dead-letters/{gone}/replay"), 404, "not-found")
    problem(await author.ask("POST", "/v1/dead-letters/99/replay"), 404, "not-found")
    assert [each["state"] for each in good(await author.get("/v1/dead-letters"))["items"]] == ["waiting"] * 3


async def test_dead_letter_of_a_revocation_is_told_again(author: Author, sql: Any) -> None:
    body = msgspec.json.encode(RevokedEvent(tokens=("tok_1",)))
    number = await set_aside(sql, key="tokens", body=body)
    good(await author.ask("POST", f"/v1/dead-letters/{number}/replay"), 200)
    assert await sql.fetchval("select body from eventlog.event where shard = 3 order by position desc limit 1") == body


# --- waiting for the propagation --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def ledger_that_says(
    port: int, answer: Any, *, away: int = 0, holds: bool = False, refuses: HeliographError | None = None
) -> AsyncIterator[list[tuple[str, Request]]]:
    """The ledger's side of the contract, as far as the registry knows it. ``away``: questions that it sends elsewhere first; ``holds``: all that
    may take longer than a moment, for ever."""
    asked: list[tuple[str, Request]] = []
    app: FastAPI = make_app("ledger", metrics=Metrics(), readiness=Readiness())

    @app.get("/v1/internal/propagations/{which:path}")
    async def propagation(request: Request, which: str) -> Json:
        asked.append((which, request))
        if len(asked) <= away:
            raise NotReady("this ledger is going away", retry_after=1)
        if holds and float(request.query_params["timeout"]) > CUT_S:
            await asyncio.Event().wait()
        if refuses:
            raise refuses
        return Json(answer)

    stop, started = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve_http(app, "127.0.0.1", port, stop=stop, on_started=started.set))
    await asyncio.wait_for(started.wait(), DEADLINE_S)
    try:
        yield asked
    finally:
        stop.set()
        await serving


async def test_publish_waits_at_the_ledger(author: Author, registry: Running, sql: Any) -> None:
    story = {"state": "open", "instances": 8, "applied": 8, "share": 1.0}
    async with ledger_that_says(registry.settings.ledger_port, story) as asked:
        said = good(await author.put("a", 1, headers={"Prefer": "wait=2, share=0.95", "Idempotency-Key": "k"}), 201)
        assert said["propagation"] == story
        assert said["wait"] == {"share": 0.95, "seconds": 2.0, "reached": True, "problem": None}
        again = await author.put("a", 1, headers={"Prefer": "wait=5", "Idempotency-Key": "k"}, params={"share": "0.5"})
        assert (again.json()["wait"]["share"], again.headers["idempotency-replayed"]) == (0.5, "true")
    which, request = asked[0]
    assert (which, request.query_params["version"]) == ("shop/production/2", said["version"])
    assert (float(request.query_params["share"]), float(request.query_params["timeout"])) == (0.95, 2.0)
    assert request.headers["authorization"] == f"Bearer {registry.token('service')}"
    body = await sql.fetchval("select body from eventlog.event order by position desc limit 1")
    assert msgspec.json.decode(body, type=VersionEvent).answer == "now"


async def test_story_of_another_life_is_not_taken_for_the_version(author: Author, registry: Running) -> None:
    """A ledger of the previous release knows the number only, and may still have it of an environment that was erased since."""
    story = {"version": "sha256:" + "0" * 64, "state": "closed", "instances": 3, "share": 1.0}
    async with ledger_that_says(registry.settings.ledger_port, story):
        said = good(await author.put("a", 1, headers={"Prefer": "wait=0.1"}), 201)
    assert (said["wait"]["reached"], "propagation" in said) == (False, False)
    assert said["wait"]["problem"] == "the ledger told of another version"


async def test_story_that_may_lack_instances_does_not_count_as_reached(author: Author, registry: Running) -> None:
    story = {"instances": 1, "applied": 1, "share": 1.0, "behind": True}
    async with ledger_that_says(registry.settings.ledger_port, story):
        said = good(await author.put("a", 1, headers={"Prefer": "wait=0.1"}), 201)
    assert (said["wait"]["reached"], said["propagation"]) == (False, story)
    assert said["wait"]["problem"] == "the ledger has not read the whole log yet"


@pytest.mark.parametrize(
    ("refuses", "problem"),
    [
        (NotFound("no such propagation"), "the ledger does not know the version yet"),
        (Forbidden("not a service"), "the ledger refuses to answer (403)"),
        (NotReady("no board"), "the ledger cannot answer now (503)"),
    ],
)
async def test_ledger_that_answers_with_an_error_is_not_called_unreachable(
    author: Author, registry: Running, refuses: HeliographError, problem: str
) -> None:
    async with ledger_that_says(registry.settings.ledger_port, {}, refuses=refuses):
        said = good(await author.put("a", 1, headers={"Prefer": "wait=0.1"}), 201)
    assert (said["wait"]["reached"], said["wait"]["problem"]) == (False, problem)


async def test_share_that_is_not_reached_is_said(author: Author, registry: Running) -> None:
    async with ledger_that_says(registry.settings.ledger_port, {"instances": 8, "applied": 5, "rejected": 3, "share": 0.625}):
        said = good(await author.put("a", 1, headers={"Prefer": "wait=0.1"}), 201)
        assert (said["wait"]["reached"], said["propagation"]["rejected"]) == (False, 3)
    async with ledger_that_says(registry.settings.ledger_port, {"instances": 0, "share": 0.0}):
        assert good(await author.put("a", 2, headers={"Prefer": "wait=0.1"}), 201)["wait"]["reached"] is True


async def test_another_ledger_is_asked_where_one_goes_away(author: Author, registry: Running) -> None:
    story = {"instances": 2, "applied": 2, "share": 1.0}
    async with ledger_that_says(registry.settings.ledger_port, story, away=2) as asked:
        said = good(await author.put("a", 1, headers={"Prefer": "wait=20"}), 201)
        assert (said["wait"]["reached"], len(asked)) == (True, 3)


async def test_a_registry_that_goes_away_answers_those_who_wait_with_what_there_is(settings: RegistrySettings) -> None:
    async with ledger_that_says(settings.ledger_port, {"instances": 2, "applied": 1, "share": 0.5}, holds=True) as asked:
        async with running(settings) as registry, httpx.AsyncClient(base_url=registry.url, timeout=DEADLINE_S) as http:
            author = Author(http, registry.token())
            await author.settle()
            waiting = asyncio.create_task(author.put("a", 1, headers={"Prefer": "wait=25, share=1"}))
            async with asyncio.timeout(DEADLINE_S):
                while not asked:
                    await asyncio.sleep(0.01)
            registry.stop.set()
            answer = await waiting
        said = good(answer, 201)
        assert (said["wait"]["reached"], said["propagation"]["applied"]) == (False, 1)
        assert answer.headers["connection"] == "close"


async def test_ledger_that_fails_is_said_and_the_version_stays(author: Author, registry: Running) -> None:
    said = good(await author.put("a", 1, headers={"Prefer": "wait=1"}), 201)
    assert (said["wait"]["reached"], "not reachable" in said["wait"]["problem"], "propagation" in said) == (False, True, False)
    async with ledger_that_says(registry.settings.ledger_port, ["what?"]):
        said = good(await author.put("a", 2, headers={"Prefer": "wait=1"}), 201)
        assert "not understood" in said["wait"]["problem"]
    assert (await author.head())["number"] == 3


async def test_trace_goes_on(author: Author) -> None:
    answer = await author.put("a", 1, headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    assert answer.headers["traceresponse"].split("-")[1] == "ab" * 16


async def test_role_of_the_service_is_enough(database: Any, author: Author) -> None:
    """Everything above ran as the service's own role, which owns nothing."""
    connection = await asyncpg.connect(database.url())
    owned = await connection.fetchval(
        "select count(*) from pg_class c join pg_roles r on r.oid = c.relowner where r.rolname = 'heliograph_registry'"
    )
    await connection.close()
    assert owned == 0
