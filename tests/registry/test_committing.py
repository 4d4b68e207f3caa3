"""Many authors at once, retries, crashes in between: one linear history without gaps, and nothing published twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
import msgspec
import pytest
from pydantic import SecretStr

from heliograph.access.store import TokenStore
from heliograph.core import history, names, trie
from heliograph.core.digest import spell, unspell
from heliograph.core.records import Signed, Version
from heliograph.eventlog.wake import Bell
from heliograph.keys.live import LiveKeys
from heliograph.keys.local import LocalKeys
from heliograph.runtime.clock import now_us
from heliograph.services.registry import commit
from heliograph.services.registry.app import wire
from heliograph.services.registry.changes import read_many, set_document
from heliograph.services.registry.commit import Committed, Order
from heliograph.services.registry.heads import Place
from heliograph.services.registry.propagations import Propagations
from heliograph.services.registry.store import Store
from heliograph.services.registry.validation import Validation
from heliograph.telemetry.metrics import Metrics

from .conftest import DEADLINE_S, Author, Running, good, problem, running


async def assert_sound(author: Author, sql: Any) -> int:
    """The invariants that production checks too. Returns the head's number."""
    rows = await sql.fetch(
        "select number, id, record, root from registry.version where environment = 'production' order by number"
    )
    ids: list[bytes] = []
    for row in rows:
        version = Version.read(row["record"])
        assert (version.number, version.parent) == (len(ids) + 1, spell(ids[-1]) if ids else None)
        assert version.history == spell(history.History(ids).root())
        assert row["id"] == unspell(Version.id_of(row["record"]))
        ids.append(row["id"])
    head = await author.head()
    assert (head["number"], head["version"]) == (len(ids), spell(ids[-1]))
    positions = [
        row["position"]
        for row in await sql.fetch("select position from eventlog.event where key = 'shop/production' order by position")
    ]
    assert positions == list(range(1, len(positions) + 1))
    return len(ids)


async def test_many_authors_lose_nothing(author: Author, sql: Any) -> None:
    """Each writes configs of its own without looking: every write is in the end."""
    writers, writes = 12, 8

    async def write(who: int) -> None:
        for i in range(writes):
            good(await author.put(f"w{who}/c{i % 3}", {"who": who, "i": i}), 201)

    await asyncio.gather(*(write(who) for who in range(writers)))
    assert await assert_sound(author, sql) == 1 + writers * writes
    for who in range(writers):
        for c in range(3):
            last = max(i for i in range(writes) if i % 3 == c)
            assert good(await author.get(f"/configs/w{who}/c{c}")) == {"who": who, "i": last}


async def test_conditional_writers_never_overwrite_each_other(author: Author, sql: Any) -> None:
    """A counter that everybody increments with If-Match: no increment is lost."""
    good(await author.put("counter", 0), 201)

    async def increment() -> None:
        while True:
            seen = await author.get("/configs/counter")
            answer = await author.put("counter", good(seen) + 1, headers={"If-Match": seen.headers["etag"]})
            if answer.status_code == 201:
                return
            problem(answer, 412, "stale-base")
            await asyncio.sleep(random.uniform(0, 0.02))

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(increment() for _ in range(15)))
    assert good(await author.get("/configs/counter")) == 15
    assert await assert_sound(author, sql) == 17


async def test_two_registries_share_one_history(
    author: Author, registry: Running, settings: Any, free_port: Any, sql: Any
) -> None:
    """Neither knows of the other but through the database; what each remembers of the head is often old."""
    async with running(settings.model_copy(update={"registry_port": free_port()})) as second:
        other = Author(author.http, registry.token())
        other.place = second.url + author.place

        async def write(who: int) -> None:
            through = other if who % 2 else author
            for i in range(10):
                good(await through.http.put(f"{through.place}/configs/w{who}", content=str(i), headers=through.headers), 201)

        await asyncio.gather(*(write(who) for who in range(4)))
        stale = await author.get("/configs/w1")
        good(await other.http.put(f"{other.place}/configs/w1", content=b"99", headers=other.headers), 201)
        problem(await author.put("w1", 100, headers={"If-Match": stale.headers["etag"]}), 412, "stale-base")
        assert good(await author.put("w1", 99), 200)["unchanged"] is True
        problem(await author.ask("DELETE", "/configs/nowhere"), 404, "not-found")
        assert await assert_sound(author, sql) == 42


async def test_a_writer_that_holds_the_head_is_through_and_says_the_same_as_any_other(
    author: Author, registry: Running, settings: Any, free_port: Any, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after lost swaps, here from the first attempt on: two registries, more environments than heads may be held at a time."""
    monkeypatch.setattr(commit, "ATTEMPTS", 0)
    async with running(settings.model_copy(update={"registry_port": free_port()})) as second:
        for name in ("a", "b", "c", "d"):
            good(await author.ask("POST", author.place.rsplit("/", 1)[0], json={"name": name}), 201)

        async def write(who: int, environment: str) -> None:
            base = (second if who % 2 else registry).url + author.place.rsplit("/", 1)[0]
            for i in range(5):
                answer = await author.http.put(
                    f"{base}/{environment}/configs/w{who}",
                    content=str(i),
                    headers=author.headers | {"Idempotency-Key": f"{environment}{who}{i}"},
                )
                good(answer, 201)

        await asyncio.gather(*(write(who, name) for who in range(4) for name in ("a", "b", "c", "d")))
        good(await author.put("w", 1), 201)
        assert good(await author.put("w", 1), 200)["unchanged"] is True
        problem(await author.ask("DELETE", "/configs/nowhere"), 404, "not-found")
        again = {"Idempotency-Key": "again"}
        assert (await author.put("w", 2, headers=again)).content == (await author.put("w", 2, headers=again)).content
        problem(await author.put("w", 3, headers={"If-Match": f'"{"sha256:" + "0" * 64}"'}), 412, "stale-base")
        assert await assert_sound(author, sql) == 3


# --- idempotency ------------------------------------------------------------------------------------------------------------------


async def test_replay_is_byte_for_byte(author: Author) -> None:
    headers = {"Idempotency-Key": "one"}
    first = await author.put("a", 1, headers=headers)
    good(await author.put("a", 2), 201)
    again = await author.put("a", 1, headers=headers)
    assert (again.status_code, again.content, again.headers["etag"]) == (201, first.content, first.headers["etag"])
    assert (again.headers.get("idempotency-replayed"), first.headers.get("idempotency-replayed")) == ("true", None)
    assert (await author.head())["number"] == 3


async def test_replay_comes_before_every_refusal(author: Author) -> None:
    """The first attempt changed what a later one sees: the condition is stale now, the config is gone, the document is there already."""
    base = (await author.head())["version"]
    asks = [
        lambda: author.put("a", 1, headers={"Idempotency-Key": "put", "If-Match": f'"{base}"'}),
        lambda: author.put("b", 1, headers={"Idempotency-Key": "same"}),
        lambda: author.ask("DELETE", "/configs/a", headers={"Idempotency-Key": "gone"}),
        lambda: author.ask("POST", "/rollback", json={"to": 1}, headers={"Idempotency-Key": "back"}),
        lambda: author.ask(
            "POST", "/v1/namespaces/shop/environments", json={"name": "dev"}, headers={"Idempotency-Key": "made"}
        ),
    ]
    for ask in asks:
        first, again = await ask(), await ask()
        assert (first.status_code, again.content) == (201, first.content), first.text
        assert again.headers["idempotency-replayed"] == "true"


async def test_key_stands_for_one_request_of_one_principal(author: Author, registry: Running) -> None:
    headers = {"Idempotency-Key": "k"}
    good(await author.put("a", 1, headers=headers), 201)
    for answer in (
        await author.put("a", 2, headers=headers),
        await author.put("b", 1, headers=headers),
        await author.put("a", 1, headers=headers | {"If-Match": f'"{(await author.head())["version"]}"'}),
        await author.publish({"name": "a", "document": 1}, headers=headers),
        await author.ask("DELETE", "/configs/a", headers=headers),
        await author.put("a", b"1", headers=headers | {"Heliograph-Message": "other"}),
    ):
        problem(answer, 422, "idempotency-key-reused")
    asked = {"kind": "author", "name": "other", "scopes": [{"namespace": "shop"}]}
    other = Author(author.http, good(await author.ask("POST", "/v1/tokens", json=asked))["token"])
    assert good(await other.put("a", 3, headers=headers), 201)["number"] == 3


async def test_refused_request_may_be_mended_under_its_key(author: Author) -> None:
    headers = {"Idempotency-Key": "k"}
    problem(await author.put("a", b"{", headers=headers), 400, "invalid-document")
    good(await author.put("a", 1, headers=headers), 201)


async def test_duplicates_at_once_commit_once(author: Author, sql: Any) -> None:
    for number in range(5):
        sent = [author.put("a", number, headers={"Idempotency-Key": f"k{number}"}) for _ in range(8)]
        answers = await asyncio.gather(*sent)
        assert len({each.content for each in answers}) == 1
        assert sorted(each.headers.get("idempotency-replayed", "") for each in answers) == [""] + ["true"] * 7
    assert await assert_sound(author, sql) == 6


async def test_duplicates_at_once_over_two_registries(
    author: Author, registry: Running, settings: Any, free_port: Any, sql: Any
) -> None:
    async with running(settings.model_copy(update={"registry_port": free_port()})) as second:
        for number in range(5):
            headers = author.headers | {"Idempotency-Key": f"k{number}"}
            urls = [base + author.place + "/configs/a" for base in (registry.url, second.url) for _ in range(3)]
            answers = await asyncio.gather(*(author.http.put(url, content=str(number), headers=headers) for url in urls))
            assert len({each.content for each in answers}) == 1
    assert await assert_sound(author, sql) == 6


async def test_one_environment_is_made_once(author: Author) -> None:
    path = "/v1/namespaces/shop/environments"
    answers = await asyncio.gather(*(author.ask("POST", path, json={"name": "dev"}) for _ in range(6)))
    assert sorted(each.status_code for each in answers) == [201] + [409] * 5
    keyed = [author.ask("POST", path, json={"name": "test"}, headers={"Idempotency-Key": "k"}) for _ in range(6)]
    assert {each.status_code for each in await asyncio.gather(*keyed)} == {201}


# --- the connection breaks in the middle ------------------------------------------------------------------------------------------


async def test_commit_that_was_cut_off_is_found_by_its_key(author: Author, sql: Any, database: Any) -> None:
    """The database's answer never arrives: whether it had committed or not, the retry says one and the same version."""
    blocker = await asyncpg.connect(database.url())
    for number, committed_first in ((0, False), (1, True)):
        headers = {"Idempotency-Key": f"cut{number}"}
        async with blocker.transaction():
            await blocker.execute("lock table eventlog.event_shard in access exclusive mode")
            sending = asyncio.create_task(author.put("a", number, headers=headers))
            pid = await _waiting_backend(sql)
            if not committed_first:
                await sql.execute("select pg_terminate_backend($1)", pid)
                problem(await sending, 503, "unavailable")
        if committed_first:
            await sending
        before = await author.head()
        retried = good(await author.put("a", number, headers=headers), 201)
        assert retried["number"] == (before["number"] if committed_first else before["number"] + 1)
    await blocker.close()
    assert await assert_sound(author, sql) == 3


async def test_answer_that_was_lost_after_the_commit(
    author: Author, settings: Any, tmp_path: Any, free_port: Any, sql: Any
) -> None:
    """The network breaks between the commit and its acknowledgement: the retry is answered with the version that is there."""
    async with LossyNetwork(settings.database_url.get_secret_value(), tmp_path) as network:
        through = settings.model_copy(update={"database_url": SecretStr(network.url), "registry_port": free_port()})
        async with running(through) as second:
            headers = author.headers | {"Idempotency-Key": "lost-in-between"}
            url = f"{second.url}{author.place}/configs/a"
            network.lose_next = b"lost-in-between"  # stands in the message that executes the commit
            problem(await author.http.put(url, content=b"1", headers=headers), 503, "unavailable")
            assert (await author.head())["number"] == 2
            retried = await author.http.put(url, content=b"1", headers=headers)
            assert (good(retried, 201)["number"], retried.headers["idempotency-replayed"]) == (2, "true")
    assert await assert_sound(author, sql) == 2


class LossyNetwork:
    """A relay in front of PostgreSQL. Once a message holds ``lose_next`` it is passed on, and nothing of that connection comes back any more."""

    def __init__(self, url: str, folder: Any) -> None:
        self.lose_next = b""
        self._parts = urlsplit(url)
        self._target = parse_qs(self._parts.query)["host"][0] if "host" in parse_qs(self._parts.query) else ""
        self._folder = folder
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user, database = self._parts.username or "heliograph_registry", self._parts.path.lstrip("/")
        self.url = f"postgresql://{user}@127.0.0.1:{port}/{database}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._target:
            near, far = await asyncio.open_unix_connection(f"{self._target}/.s.PGSQL.{self._parts.port or 5432}")
        else:
            near, far = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        losing = asyncio.Event()
        up, down = self._up(reader, far, losing), self._down(near, writer, losing)
        self._tasks |= {asyncio.create_task(up), asyncio.create_task(down)}

    async def _up(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while data := await source.read(65536):
            if self.lose_next and self.lose_next in data:
                self.lose_next = b""
                losing.set()
            target.write(data)
        target.close()

    async def _down(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while (data := await source.read(65536)) and not losing.is_set():
            target.write(data)
        target.close()


async def _waiting_backend(sql: Any) -> int:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await sql.fetchval(
                "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like '%commit_version%' and pid <> pg_backend_pid()"
            )
            if found:
                return int(found)
            await asyncio.sleep(0.01)


# --- what the database itself refuses ----------------------------------------------------------------------------------------------


@pytest.fixture
async def role(database: Any) -> Any:
    connection = await asyncpg.connect(database.url("heliograph_registry"))
    yield connection
    await connection.close()


async def test_service_role_cannot_change_what_was_written(author: Author, role: Any) -> None:
    good(await author.put("a", 1), 201)
    for table, column in (
        ("registry.object", "body"),
        ("registry.version", "record"),
        ("registry.audit", "action"),
        ("eventlog.event", "body"),
    ):
        for statement in (f"update {table} set {column} = {column}", f"delete from {table}", f"truncate {table}"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await role.execute(statement)
    for statement in (
        "delete from registry.head",
        "drop table registry.object",
        "alter table registry.object disable trigger all",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await role.execute(statement)


async def test_owner_cannot_change_it_by_accident(author: Author, sql: Any) -> None:
    good(await author.put("a", 1), 201)
    for table in ("registry.object", "registry.version", "registry.audit"):
        for statement in (f"delete from {table}", f"truncate {table}"):
            with pytest.raises(asyncpg.RestrictViolationError):
                await sql.execute(statement)


async def test_heads_only_move_forward(author: Author, role: Any) -> None:
    good(await author.put("a", 1), 201)
    for change in (
        "number = number - 1",
        "number = number + 2",
        "issued_at_us = issued_at_us - 1",
        "epoch = epoch - 1",
        "payload = payload",
    ):
        with pytest.raises(asyncpg.RestrictViolationError):
            await role.execute(f"update registry.head set {change}")
    with pytest.raises(asyncpg.RestrictViolationError):
        await role.execute(
            "update registry.head set version = decode(repeat('00', 32), 'hex'), issued_at_us = issued_at_us + 1"
        )


# --- what a commit costs ----------------------------------------------------------------------------------------------------------


async def test_commit_writes_a_path_not_the_environment(author: Author, sql: Any) -> None:
    good(await author.publish(*({"name": f"c{i}", "document": {"i": i}} for i in range(3000))), 201)
    rows, size = (
        "select count(*) from registry.object",
        "select sum(length(body)) from registry.object where kind in ('node', 'leaf')",
    )
    before = await sql.fetchval(rows), await sql.fetchval(size)
    good(await author.put("c7", {"i": "new"}), 201)
    after = await sql.fetchval(rows), await sql.fetchval(size)
    assert after[0] - before[0] <= 6
    assert after[1] - before[1] < 4096


async def test_warm_commit_is_one_round_trip(settings: Any) -> None:
    """With a key, a schema and thousands of neighbours: the statement that commits is the only one."""
    statements: list[str] = []

    async def watch(connection: Any) -> None:
        connection.add_query_logger(lambda seen: statements.append(seen.query))

    async with AsyncExitStack() as opened:
        pool = await opened.enter_async_context(
            asyncpg.create_pool(settings.database_url.get_secret_value(), min_size=1, max_size=1, init=watch, reset=_nothing)
        )
        store = Store(pool)
        folder = settings.data_dir / "keys"
        keys = LiveKeys(
            folder, await asyncio.to_thread(LocalKeys.open_or_create, folder, history_exists=False, now_us=now_us())
        )
        validation = Validation()
        opened.push_async_callback(validation.close)
        parts = (
            TokenStore(pool, keys.now.anchor),
            validation,
            Propagations.at("http://127.0.0.1:9", ""),
            Bell(pool),
            Metrics(),
        )
        _, registry = wire(settings, pool, store, keys, *parts)
        place = Place(names.namespace("shop"), names.environment("production"))
        order = Order(place, "tok_1", "test", now_us())
        await store.create_namespace(place.namespace, "tok_1")
        await registry.commits.create(order)
        body = {"changes": [{"name": f"c{i}", "document": {"i": i}, "schema": {"type": "object"}} for i in range(3000)]}
        await registry.publish(order, read_many(json.dumps(body).encode())[0])
        for i in range(4):
            statements.clear()
            keyed = replace(order, key=f"k{i}", request=bytes(32))
            assert isinstance(await registry.publish(keyed, (set_document(names.config("c7"), b'{"i": "%d"}' % i),)), Committed)
            assert len(statements) == 1 or i == 0  # the first one is cold


async def _nothing(_: Any) -> None:
    pass


async def test_same_content_has_the_same_root_whatever_the_way(author: Author) -> None:
    """Random publishes, one by one and in batches, against the trie built at once."""
    contents: dict[str, int] = {}
    dice = random.Random(5)
    for step in range(25):
        names = {
            f"f{dice.randrange(4)}/c{dice.randrange(60)}" if dice.random() < 0.7 else f"c{dice.randrange(60)}"
            for _ in range(dice.choice([1, 2, 40]))
        }
        changes: list[dict[str, Any]] = []
        for name in names:
            if name in contents and dice.random() < 0.6:
                del contents[name]
                changes.append({"name": name, "delete": True})
            else:
                contents[name] = step
                changes.append({"name": name, "document": step})
        said = good(await author.publish(*changes), 201)
        leaves = {name: _leaf(value) for name, value in contents.items()}
        assert (said["root"], said["configs"]) == (spell(trie.update(trie.EMPTY, leaves).digest), len(contents))


def _leaf(value: int) -> bytes:
    document = hashlib.sha256(b"heliograph/v1/document\n" + json.dumps(value).encode()).hexdigest()
    return hashlib.sha256(b"heliograph/v1/leaf\n" + f'{{"document":"sha256:{document}"}}'.encode()).digest()


def test_signed_statement_is_what_frames_carry() -> None:
    assert msgspec.json.encode(Signed("{}", ())) == b'{"payload":"{}","signatures":[]}'
