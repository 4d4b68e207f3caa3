"""Deleting environments and namespaces, with a way back; and what is left once their time is over: nothing that others do not need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from heliograph.core.errors import Unavailable
from heliograph.core.events import FromRegistry, HeadEvent
from heliograph.core.records import Head
from heliograph.runtime.postgres import open_pool
from heliograph.services.registry.erasing import Eraser
from heliograph.services.registry.erasure import Erasure
from heliograph.services.registry.renew import Renewal
from heliograph.services.registry.settings import RegistrySettings
from heliograph.telemetry.metrics import Metrics

from .conftest import Author, good, problem, running
from .test_upkeep import eventually

SHOP = "/v1/namespaces/shop"
PRODUCTION = f"{SHOP}/environments/production"


@pytest.fixture
async def eraser(settings: RegistrySettings) -> AsyncIterator[Eraser]:
    url = settings.database_url.get_secret_value()
    pool = await open_pool(url, "test", size=2)
    yield Eraser(Erasure(pool), url, Metrics())
    await pool.close()


async def events(sql: Any) -> list[FromRegistry]:
    rows = await sql.fetch("select body from eventlog.event where key like 'shop/%' order by committed_at, position")
    return [msgspec.json.decode(row["body"], type=FromRegistry) for row in rows]


async def of_kind(author: Author, kind: str, *scopes: dict[str, str]) -> Author:
    asked = {"kind": kind, "name": kind, "scopes": list(scopes) or [{"namespace": "shop"}]}
    return Author(author.http, good(await author.ask("POST", "/v1/tokens", json=asked))["token"])


async def test_deleted_environment_is_gone_and_comes_back(author: Author, service: Author, sql: Any) -> None:
    good(await author.put("a", 1), 201)
    good(await author.ask("PUT", "/labels/l", json={"version": 2}), 201)
    before = await author.head()
    gone = good(await author.ask("DELETE", PRODUCTION))
    assert (gone["name"], gone["number"], gone["version"]) == ("production", 2, before["version"])
    left = datetime.fromisoformat(gone["deleted"]["erase_at"]) - datetime.fromisoformat(gone["deleted"]["at"])
    assert left.days == 30
    for path in ("/configs/a", "/configs/a?at=2", "/versions", "/versions/2", "/diff?from=1&to=2", "/history", "/history/a", "/blame/a?at=2",
                 "/labels", "/labels/l", "/v1/heads/shop/production", f"/configs/a?at={before['issued_at']}", "/configs/a?at=label:l"):  # fmt: skip
        assert "restored" in problem(await author.get(path), 404, "not-found")["detail"], path
    for answer in (
        await author.put("a", 2),
        await author.publish({"name": "a", "document": 2}),
        await author.ask("POST", "/rollback", json={"to": 1}),
        await author.ask("PUT", "/labels/l", json={"version": 1}),
        await author.ask("DELETE", "/labels/l"),
    ):
        problem(answer, 404, "not-found")
    taken = await author.ask("POST", f"{SHOP}/environments", json={"name": "production"})
    assert "free after that" in problem(taken, 409, "already-exists")["detail"]
    assert good(await service.get("/v1/internal/heads"))["items"] == []
    problem(await service.get("/v1/internal/shop/production/state"), 404, "not-found")
    problem(await service.get("/v1/internal/shop/production/versions/2"), 404, "not-found")
    assert good(await author.get(f"{SHOP}/environments"))["items"] == []
    (listed,) = good(await author.get(f"{SHOP}/environments", params={"deleted": True}))["items"]
    assert listed == gone
    assert good(await author.ask("DELETE", PRODUCTION)) == gone

    back = good(await author.ask("POST", f"{PRODUCTION}/restore"))
    assert (back["number"], back["version"], "deleted" in back) == (2, before["version"], False)
    assert good(await author.ask("POST", f"{PRODUCTION}/restore")) == back
    assert (await author.get("/configs/a")).json() == 1
    assert good(await author.get("/labels"))["items"][0]["name"] == "l"
    assert good(await author.put("a", 2), 201)["parent"] == before["version"]
    kinds = [type(each).__name__ for each in await events(sql)]
    assert kinds == ["VersionEvent", "VersionEvent", "DeletedEvent", "HeadEvent", "VersionEvent"]
    fresh = next(each for each in await events(sql) if isinstance(each, HeadEvent))
    assert Head.read(fresh.head.payload).issued_at > before["issued_at"]
    actions = [each["action"] for each in good(await author.get("/v1/audit/shop/production"))["items"]]
    assert actions[1:3] == ["environment.restore", "environment.delete"]


async def test_who_may_delete_and_for_how_long(author: Author) -> None:
    writer, client = await of_kind(author, "author"), await of_kind(author, "client")
    one = await of_kind(author, "author", {"namespace": "shop", "environment": "other"})
    problem(await client.ask("DELETE", PRODUCTION), 403, "forbidden")
    problem(await one.ask("DELETE", PRODUCTION), 403, "forbidden")
    problem(await writer.ask("DELETE", PRODUCTION, params={"retain_s": 3600}), 403, "forbidden")
    problem(await writer.ask("DELETE", SHOP), 403, "forbidden")
    problem(await writer.ask("POST", f"{SHOP}/restore"), 403, "forbidden")
    for seconds in (0, 3599, 31 * 86400, "x"):
        problem(await author.ask("DELETE", PRODUCTION, params={"retain_s": seconds}), 400, "invalid-request")
    good(await writer.ask("DELETE", PRODUCTION))
    problem(await writer.get(f"{SHOP}/environments", params={"deleted": True}), 403, "forbidden")
    good(await writer.ask("POST", f"{PRODUCTION}/restore"))
    gone = good(await author.ask("DELETE", PRODUCTION, params={"retain_s": 3600}))["deleted"]
    assert (datetime.fromisoformat(gone["erase_at"]) - datetime.fromisoformat(gone["at"])).total_seconds() == 3600
    problem(await author.ask("DELETE", f"{SHOP}/environments/nowhere"), 404, "not-found")
    problem(await author.ask("POST", f"{SHOP}/environments/nowhere/restore"), 404, "not-found")


async def test_deleted_namespace_goes_and_comes_back_as_a_whole(author: Author, sql: Any) -> None:
    for name in ("dev", "old"):
        good(await author.ask("POST", f"{SHOP}/environments", json={"name": name}), 201)
    good(await author.ask("DELETE", f"{SHOP}/environments/old"))
    gone = good(await author.ask("DELETE", SHOP))
    assert gone["name"] == "shop"
    assert good(await author.ask("DELETE", SHOP)) == gone
    problem(await author.get("/configs"), 404, "not-found")
    problem(await author.get(f"{SHOP}/environments"), 404, "not-found")
    assert good(await author.get("/v1/namespaces"))["items"] == []
    assert good(await author.get("/v1/namespaces", params={"deleted": True}))["items"] == [gone]
    assert (
        "erased" in problem(await author.ask("POST", "/v1/namespaces", json={"name": "shop"}), 409, "already-exists")["detail"]
    )
    problem(await author.ask("POST", f"{SHOP}/environments", json={"name": "new"}), 404, "not-found")
    problem(await author.ask("POST", f"{PRODUCTION}/restore"), 409, "conflict")
    good(await author.ask("POST", f"{SHOP}/restore"))
    assert [each["name"] for each in good(await author.get(f"{SHOP}/environments"))["items"]] == ["dev", "production"]
    assert [each["name"] for each in good(await author.get(f"{SHOP}/environments", params={"deleted": True}))["items"]] == [
        "old"
    ]
    good(await author.ask("POST", f"{SHOP}/environments/old/restore"))
    problem(await author.ask("DELETE", "/v1/namespaces/nowhere"), 404, "not-found")
    problem(await author.ask("POST", "/v1/namespaces/nowhere/restore"), 404, "not-found")


@pytest.mark.parametrize("retain_s", [3600, None])
async def test_namespace_that_comes_back_leaves_the_time_of_what_was_deleted_before(
    author: Author, retain_s: int | None
) -> None:
    """Together with its namespace it goes when that does; whether that is sooner or later, in the end what was promised first holds."""
    asked = {"retain_s": retain_s} if retain_s else {}
    for name, own in (("old", {}), ("short", {"retain_s": 7200})):
        good(await author.ask("POST", f"{SHOP}/environments", json={"name": name}), 201)
        good(await author.ask("DELETE", f"{SHOP}/environments/{name}", params=own))
    promised = good(await author.get(f"{SHOP}/environments", params={"deleted": True}))["items"]
    for _ in range(2):
        good(await author.ask("DELETE", SHOP, params=asked))
        good(await author.ask("POST", f"{SHOP}/restore"))
    assert good(await author.get(f"{SHOP}/environments", params={"deleted": True}))["items"] == promised


async def test_what_was_deleted_before_its_namespace_is_erased_with_it(author: Author, eraser: Eraser, sql: Any) -> None:
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "old"}), 201)
    good(await author.ask("DELETE", f"{SHOP}/environments/old"))
    gone = good(await author.ask("DELETE", SHOP, params={"retain_s": 3600}))
    times = await sql.fetch("select erase_at from registry.deleted_environment")
    assert {row["erase_at"] for row in times} == {datetime.fromisoformat(gone["deleted"]["erase_at"])}
    await overdue(sql)
    await eraser.work()
    assert await sql.fetchval("select count(*) from registry.namespace") == 0


@pytest.mark.parametrize("restore", [f"{PRODUCTION}/restore", f"{SHOP}/restore"])
async def test_restore_that_failed_half_way_is_told_when_it_is_asked_for_again(
    author: Author, sql: Any, monkeypatch: pytest.MonkeyPatch, restore: str
) -> None:
    """And what was told is not told again."""
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "dev"}), 201)
    good(await author.ask("DELETE", restore.removesuffix("/restore")))
    with monkeypatch.context() as failing:
        failing.setattr(Renewal, "__call__", _unreachable)
        problem(await author.ask("POST", restore), 503, "unavailable")
    said = len(await events(sql))
    good(await author.ask("POST", restore))
    told = (await events(sql))[said:]
    back = ["dev", "production"] if restore == f"{SHOP}/restore" else ["production"]
    assert sorted(Head.read(each.head.payload).environment for each in told if isinstance(each, HeadEvent)) == back
    assert len(told) == len(back)
    good(await author.ask("POST", restore))
    assert len(await events(sql)) == said + len(told)


async def _unreachable(*_: Any, **__: Any) -> bool:
    raise Unavailable("the database is not reachable", retry_after=1)


async def test_heads_of_what_is_deleted_are_not_renewed(settings: RegistrySettings, sql: Any) -> None:
    quick = settings.model_copy(update={"head_renew_s": 0.2, "head_life_s": 5.0})
    async with running(quick) as one, httpx.AsyncClient(base_url=one.url) as http:
        author = Author(http, one.token())
        await author.settle()
        good(await author.ask("POST", f"{SHOP}/environments", json={"name": "dev"}), 201)
        good(await author.ask("DELETE", PRODUCTION))
        mark = await sql.fetchval("select max(committed_at) from eventlog.event where key = 'shop/production'")
        said = "select count(*) from eventlog.event where key = 'shop/dev'"
        seen = await sql.fetchval(said)

        async def dev_was_renewed() -> bool:
            return int(await sql.fetchval(said)) >= seen + 3

        await eventually(dev_was_renewed)
        assert await sql.fetchval("select max(committed_at) from eventlog.event where key = 'shop/production'") == mark


async def test_previous_release_cannot_take_the_name_of_what_is_deleted(author: Author, sql: Any) -> None:
    """Its commit function is the same: the row is left out, and it says that the environment exists."""
    row = await sql.fetchrow("select * from registry.head")
    good(await author.ask("DELETE", PRODUCTION))
    columns = ", ".join(row.keys())
    places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
    assert (
        await sql.execute(f"insert into registry.head ({columns}) values ({places}) on conflict do nothing", *row.values())
        == "INSERT 0 0"
    )


# --- erasing for good -------------------------------------------------------------------------------------------------------------


async def overdue(sql: Any) -> None:
    await sql.execute("update registry.deleted_environment set erase_at = now() - interval '1 second'")
    await sql.execute("update registry.deleted_namespace set erase_at = now() - interval '1 second'")


async def objects(sql: Any) -> set[bytes]:
    return {row["digest"] for row in await sql.fetch("select digest from registry.object where namespace = 'shop'")}


async def test_what_nobody_refers_to_is_erased_and_the_rest_stays(author: Author, eraser: Eraser, sql: Any) -> None:
    """Two environments with shared and own content: after the one is erased, the other is whole, and every object of it is needed."""
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "dev"}), 201)
    dev = Author(author.http, author.headers["Authorization"].split()[1], f"{SHOP}/environments/dev")
    shared = [{"name": f"f{i % 3}/c{i}", "document": {"shared": i}, "schema": {"type": "object"}} for i in range(80)]
    good(await author.publish(*shared, message="both"), 201)
    needed = await objects(sql)
    good(await dev.publish(*shared, message="both"), 201)
    good(await dev.put("own", {"secret": "of dev"}, headers={"Heliograph-Message": "own"}), 201)
    good(await dev.put("f0/c0", {"shared": "no more"}), 201)
    good(await dev.ask("PUT", "/labels/l", json={"version": 2}), 201)
    good(await dev.ask("PUT", "/policy", json={"compatibility": "refuse"}))
    good(await author.ask("POST", "/promote", json={"from": "dev", "configs": ["f1/"]}), 200)
    good(await dev.ask("DELETE", f"{SHOP}/environments/dev"))
    every = await objects(sql)
    await eraser.work()
    assert await objects(sql) == every, "its time is not over"

    await overdue(sql)
    problem(await author.ask("POST", f"{SHOP}/environments/dev/restore"), 404, "not-found")
    await eraser.work()
    assert await objects(sql) == needed
    assert await sql.fetchval("select count(*) from registry.lineage where source_environment = 'dev'") == 0
    for table in ("version", "change", "label", "policy", "lineage", "deleted_environment", "marked_version"):
        assert await sql.fetchval(f"select count(*) from registry.{table} where environment = 'dev'") == 0, table
    for table in ("mark", "collection"):
        assert await sql.fetchval(f"select count(*) from registry.{table}") == 0, table
    for i in range(80):
        assert (await author.get(f"/configs/f{i % 3}/c{i}")).json() == {"shared": i}
    assert good(await author.get("/versions/2"))["message"] == "both"
    assert good(await author.put("own", {"secret": "of dev"}), 201)["number"] == 3, "what was erased can be stored again"
    assert (await author.get("/configs/own")).json() == {"secret": "of dev"}
    said = await sql.fetch("select action, detail from registry.audit where actor = 'registry' order by id")
    assert [row["action"] for row in said] == ["environment.erase", "namespace.collect"]
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "dev"}), 201)
    (again,) = good(await dev.get("/versions"))["items"]
    assert (again["number"], again["kind"], again["parent"]) == (1, "create", None)
    assert again["epoch"] > 1_700_000_000, "another life of that name: what still knows the old one can tell them apart"
    assert good(await author.get("/versions"))["items"][0]["epoch"] == 1


async def test_what_is_deleted_and_can_be_restored_keeps_its_objects(author: Author, eraser: Eraser, sql: Any) -> None:
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "dev"}), 201)
    good(await author.put("a", {"kept": True}), 201)
    good(await author.ask("DELETE", f"{SHOP}/environments/dev"))
    await overdue(sql)
    good(await author.ask("DELETE", PRODUCTION))
    await eraser.work()
    good(await author.ask("POST", f"{PRODUCTION}/restore"))
    assert (await author.get("/configs/a")).json() == {"kept": True}


async def test_namespace_is_erased_with_everything(author: Author, eraser: Eraser, sql: Any) -> None:
    good(await author.put("a", {"secret": 1}), 201)
    good(await author.ask("DELETE", SHOP))
    await overdue(sql)
    await eraser.work()
    assert await objects(sql) == set()
    for table in ("namespace", "deleted_namespace", "collection", "mark", "version", "change"):
        assert await sql.fetchval(f"select count(*) from registry.{table}") == 0
    last = await sql.fetchval("select action from registry.audit order by id desc limit 1")
    assert last == "namespace.erase"
    await author.settle()
    good(await author.put("a", {"secret": 1}), 201)


async def test_commits_while_objects_are_collected_lose_nothing(author: Author, eraser: Eraser, sql: Any) -> None:
    """A text of what was erased is published again between any two steps of the collection."""
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "dev"}), 201)
    dev = Author(author.http, author.headers["Authorization"].split()[1], f"{SHOP}/environments/dev")
    documents = [{"of": "dev", "i": i} for i in range(30)]
    good(await dev.publish(*({"name": f"c{i}", "document": each} for i, each in enumerate(documents))), 201)
    good(await dev.ask("DELETE", f"{SHOP}/environments/dev"))
    await overdue(sql)
    erasure = eraser._erasure
    while await erasure.erase_some(3):
        pass
    published = 0
    while found := await erasure.collection(()):
        await eraser._collect(*found)
        if published < len(documents):
            good(await author.put(f"c{published}", documents[published]), 201)
            published += 1
    assert published > 5
    for i, each in enumerate(documents[:published]):
        assert (await author.get(f"/configs/c{i}")).json() == each
    roots = await sql.fetch("select number from registry.version where environment = 'production'")
    for row in roots:
        assert good(await author.get("/configs", params={"at": row["number"]}))["number"] == row["number"]


async def test_nothing_is_removed_when_the_picture_is_incomplete(author: Author, eraser: Eraser, sql: Any) -> None:
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "dev"}), 201)
    good(await author.put("a", {"kept": True}), 201)
    good(await author.ask("DELETE", f"{SHOP}/environments/dev"))
    await overdue(sql)
    async with sql.transaction():
        await sql.execute("alter table registry.object disable trigger all")
        await sql.execute(
            "delete from registry.object where digest = (select root from registry.head where environment = 'production')"
        )
        await sql.execute("alter table registry.object enable trigger all")
    before = await objects(sql)
    await eraser.work()
    assert await objects(sql) == before


async def test_service_itself_can_delete_nothing(author: Author, settings: RegistrySettings) -> None:
    good(await author.put("a", 1), 201)
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        for table in (
            "object",
            "version",
            "head",
            "label",
            "change",
            "deleted_environment",
            "purge",
            "purged",
            "audit",
            "namespace",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"delete from registry.{table}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("update registry.object set body = ''")
        async with connection.transaction():
            await connection.execute("set local heliograph.erasing = 'yes'")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("delete from registry.version")
    finally:
        await connection.close()


async def test_owner_deletes_nothing_by_accident(author: Author, sql: Any) -> None:
    for statement in ("delete from registry.version", "update registry.object set body = ''", "truncate registry.audit"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await sql.execute(statement)
