"""What the server in memory offers to the tests of applications, beside what every client does with it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from heliograph.client import ABSENT, TimedOut, Update
from heliograph.client.testing import InMemoryServer
from heliograph.core.errors import InvalidDocument, InvalidName, InvalidRequest, NotFound, Unauthenticated

DEADLINE_S = 20.0


@pytest.fixture
def server() -> InMemoryServer:
    return InMemoryServer({"limits": {"max": 1}, "search": {"pages": 10}})


async def test_a_publication_knows_who_answered_what(server: InMemoryServer) -> None:
    async with server.client(app="till") as till, server.client(app="web", view=["search"]) as web:
        till.validator(lambda update: 1 / 0 if update.value("limits")["max"] > 1 else None)
        published = server.publish({"limits": {"max": 2}})
        answers = {answer.app: answer for answer in await published.answered()}
        assert {app: answer.state for app, answer in answers.items()} == {"till": "rejected", "web": "unaffected"}
        assert answers["till"].instance == till.status.instance
        assert "ZeroDivisionError" in str(answers["till"].reason)
        assert answers["web"].reason is None
        assert set(published.answers) == set(answers.values())
        assert web.cursor == published.cursor == server.head()
        assert "2 answers" in repr(published)


async def test_nobody_is_waited_for_who_is_not_there(server: InMemoryServer) -> None:
    assert await server.publish({"limits": {"max": 2}}).answered() == ()
    client, release = server.client(), asyncio.Event()
    async with client:
        client.on_change(lambda _: release.wait())
        release.set()
        leaving = server.publish({"limits": {"max": 3}})
    assert len(await leaving.answered()) <= 1
    assert await server.publish({"limits": {"max": 4}}).answered() == ()


async def test_an_answer_that_does_not_come(server: InMemoryServer) -> None:
    async with server.client():
        server.stop()
        assert await server.publish({"limits": {"max": 2}}).answered() == ()
        server.start()
    stuck = InMemoryServer({"limits": {"max": 1}})
    async with stuck.client() as client:
        stuck._hub.hear = lambda *_: None
        with pytest.raises(TimedOut, match="1 clients did not answer"):
            await stuck.publish({"limits": {"max": 2}}).answered(timeout=0.01)
        assert client.status.receipts_pending >= 0


async def test_going_back(server: InMemoryServer) -> None:
    seen: list[Update] = []
    async with server.client() as client:
        client.on_change(seen.append)
        await server.publish({"limits": {"max": 2}, "more": [1]}).answered()
        back = server.rollback(2)
        await back.answered()
        assert (back.number, client.config("limits")["max"], client.config("more").exists) == (4, 1, False)
        assert server.rollback(2).answers == back.answers, "nothing to go back to"
        with pytest.raises(NotFound, match="versions 1 to 4"):
            server.rollback(9)


async def test_cut_off_and_back_across_versions(server: InMemoryServer) -> None:
    """What came meanwhile is proved to descend from what the client held."""
    numbers: list[int] = []
    async with server.client() as client:
        client.on_version(lambda update: numbers.append(update.cursor.number))
        server.stop()
        for number in range(2, 12):
            server.publish({"limits": {"max": number}})
        assert client.config("limits")["max"] == 1
        server.start()
        await client.wait_for_version(12, timeout=DEADLINE_S)
        assert client.config("limits")["max"] == 11
        assert client.status.alarm is None
    assert numbers == [12]


async def test_a_start_from_the_disk_copy_while_the_server_is_away(server: InMemoryServer, tmp_path: Any) -> None:
    async with server.client(cache_dir=tmp_path):
        pass
    server.stop()
    async with server.client(cache_dir=tmp_path) as client:
        assert (client.status.source, client.config("limits")["max"]) == ("disk", 1)
    with pytest.raises(TimedOut):
        await server.client(start_timeout=0.05).start()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, InvalidRequest),
        ({"Upper": 1}, InvalidName),
        ({"limits": {"max": float("nan")}}, InvalidDocument),
        ({"limits": 2**60}, InvalidDocument),
        ({"missing": ABSENT}, NotFound),
        ({"limits": {"max": 5}, "missing": ABSENT}, NotFound),
    ],
)
def test_what_cannot_be_published_changes_nothing(server: InMemoryServer, changes: dict[str, Any], error: type) -> None:
    before = server.head()
    with pytest.raises(error):
        server.publish(changes)
    assert server.head() == before


async def test_environments_that_are_not_there(server: InMemoryServer) -> None:
    with pytest.raises(NotFound, match="create"):
        server.publish({"a": 1}, environment="other")
    with pytest.raises(NotFound):
        await server.client(namespace="test", environment="other").start()


async def test_each_server_has_keys_of_its_own(server: InMemoryServer) -> None:
    stranger = InMemoryServer({"limits": {"max": 1}})
    with pytest.raises(Unauthenticated):
        await server.client(token=stranger.token).start()
    assert server.token not in repr(server)


async def test_many_authors_and_clients_in_many_threads(server: InMemoryServer) -> None:
    """Every version is seen by everybody in order, wherever it was published from."""

    def author(name: str) -> list[int]:
        return [server.publish({name: number}).number for number in range(25)]

    seen: list[int] = []
    blocking = server.blocking_client()
    await asyncio.to_thread(blocking.start)
    async with server.client() as client:
        client.on_version(lambda update: seen.append(update.cursor.number))
        with ThreadPoolExecutor(4) as threads:
            loop = asyncio.get_running_loop()
            numbers = await asyncio.gather(*(loop.run_in_executor(threads, author, f"by-{n}") for n in range(4)))
        last = server.head().number
        assert sorted(number for one in numbers for number in one) == list(range(3, last + 1))
        await client.wait_for_version(last, timeout=DEADLINE_S)
        await asyncio.to_thread(blocking.wait_for_version, last, DEADLINE_S)
        assert [client.config(f"by-{n}").value for n in range(4)] == [24] * 4
        assert [blocking.config(f"by-{n}").value for n in range(4)] == [24] * 4
    assert seen == sorted(set(seen))
    await asyncio.to_thread(blocking.close)
