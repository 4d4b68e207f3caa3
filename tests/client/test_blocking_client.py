"""What only the blocking client has: threads on one side, one shared loop on the other. What it has in common stands in ``contract``."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from heliograph import blocking, client
from heliograph.client import Heliograph, HeliographError, Subscription, TimedOut, Update, _background
from heliograph.client._live import Inherited, Live
from heliograph.client.testing import InMemoryServer
from heliograph.core.errors import InvalidRequest, NotReady

DEADLINE_S = 20.0
VERSIONS = 40


@pytest.fixture
def server() -> InMemoryServer:
    return InMemoryServer({"limits": {"max": 1, "twice": 2}, "search": {"pages": 10}})


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = ours()
    yield
    assert ours() == before


def ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("heliograph")}


def reached(event: threading.Event) -> None:
    assert event.wait(DEADLINE_S)


def test_threads_read_whole_versions_in_order_while_they_come(server: InMemoryServer) -> None:
    ended = threading.Event()

    def read(client: blocking.Heliograph) -> list[int]:
        limits, seen = client.config("limits"), [1]
        while not ended.is_set():
            value = limits.value
            assert value["twice"] == 2 * value["max"], "of one version"
            if value["max"] != seen[-1]:
                seen.append(value["max"])
            assert client.config("search").get("/pages") == 10
            assert client.status.stale is False
        return seen

    with server.blocking_client() as client, ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read, client) for _ in range(4)]
        try:
            for number in range(2, VERSIONS):
                server.publish({"limits": {"max": number, "twice": 2 * number}}).wait()
        finally:
            ended.set()
        for reader in readers:
            seen = reader.result(DEADLINE_S)
            assert seen == sorted(set(seen)), "never back"


def test_all_clients_of_a_process_share_one_loop_which_ends_with_the_last(server: InMemoryServer) -> None:
    with server.blocking_client():
        mine = {thread.name for thread in ours()}
        with server.blocking_client():
            assert {thread.name for thread in ours()} == mine
        assert {thread.name for thread in ours()} == mine
    assert "heliograph" not in {thread.name for thread in ours()}
    with server.blocking_client() as again:
        assert again.config("limits")["max"] == 1


async def test_inside_a_running_loop_it_points_to_the_async_client(server: InMemoryServer) -> None:
    client = server.blocking_client()
    with pytest.raises(InvalidRequest, match="async client"):
        client.start()
    await asyncio.to_thread(client.start)
    try:
        for call in (
            lambda: client.wait_for_version(2),
            lambda: client.bind("limits", dict[str, int]),
            lambda: client.on_change(print),
            lambda: client.config("limits").changes(),
            client.close,
        ):
            with pytest.raises(InvalidRequest, match="async client"):
                call()
        assert client.config("limits")["max"] == 1, "what does not wait is allowed"
        assert client.status.phase == "running"
    finally:
        await asyncio.to_thread(client.close)


def test_a_validator_may_not_wait_for_the_thread_that_it_runs_on(server: InMemoryServer) -> None:
    with server.blocking_client() as client:
        client.validator(lambda _: client.wait_for_version(99))
        [answer] = server.publish({"search": {"pages": 1}}).wait()
        assert (answer.state, answer.reason) == ("rejected", answer.reason)
        assert "async client" in str(answer.reason)


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, CancelledError, StopIteration])
def test_no_validator_can_end_the_thread_of_all_clients(server: InMemoryServer, error: type[BaseException]) -> None:
    def check(_: Update) -> None:
        raise error

    with server.blocking_client() as client, server.blocking_client():
        assert client.validator(check) is check
        answers = server.publish({"search": {"pages": 11}}).wait(DEADLINE_S)
        assert {(one.state, one.reason) for one in answers} == {
            ("applied", None),
            ("rejected", f"the application's validator failed with {error.__name__}"),
        }
        assert client.config("search")["pages"] == 10


def test_what_ends_one_client_ends_no_other(server: InMemoryServer) -> None:
    @dataclass
    class Pages:
        pages: int

        def __post_init__(self) -> None:
            if self.pages == 11:
                raise SystemExit(3)

    with server.blocking_client() as client, server.blocking_client() as other:
        client.bind("search", Pages)
        number = server.publish({"search": {"pages": 11}}).number
        assert other.wait_for_version(number, timeout=DEADLINE_S).number == number
        with pytest.raises(HeliographError, match="unexpectedly"):
            client.wait_for_version(number, timeout=DEADLINE_S)
        assert client.status.phase == "stopped"
        with pytest.raises(SystemExit):
            client.close()
        with server.blocking_client() as third:
            assert third.config("search")["pages"] == 11


def test_a_loop_that_died_is_said_and_another_takes_its_place(server: InMemoryServer) -> None:
    with server.blocking_client() as before:
        [thread] = [thread for thread in ours() if thread.name == "heliograph"]
        loop = _background._portal._thread._loop
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        assert before.status.phase == "stopped"
        assert before.config("search")["pages"] == 10
        with server.blocking_client() as after:
            assert after.config("search")["pages"] == 10
            with pytest.raises(HeliographError, match="event loop"):
                before.wait_for_version(99, timeout=DEADLINE_S)


# --- callbacks -----------------------------------------------------------------------------------------------------------------


def test_callbacks_run_on_one_thread_of_the_client_and_may_block(server: InMemoryServer) -> None:
    entered, release, done = threading.Event(), threading.Event(), threading.Event()
    names: list[str] = []

    def slow(_: Update) -> None:
        names.append(threading.current_thread().name)
        entered.set()
        reached(release)

    def other(_: Update) -> None:
        names.append(threading.current_thread().name)
        done.set()

    with server.blocking_client() as client:
        client.on_change(slow)
        client.on_change(other)
        number = server.publish({"search": {"pages": 1}}).number
        reached(entered)
        assert client.wait_for_version(number, timeout=DEADLINE_S).number == number
        assert client.config("search")["pages"] == 1, "a callback that blocks holds up no reader"
        assert not done.is_set(), "two callbacks of a client never run at once"
        release.set()
        reached(done)
    assert set(names) == {"heliograph-callbacks-0"}


def test_a_callback_may_wait_and_close(server: InMemoryServer) -> None:
    closed = threading.Event()
    client = server.blocking_client()

    @client.on_change
    def finish(update: Update) -> None:
        client.wait_for_version(update.cursor.number, timeout=DEADLINE_S)
        client.close()
        closed.set()

    client.start()
    closing = {thread for thread in ours() if thread.name == "heliograph"}
    server.publish({"search": {"pages": 1}})
    reached(closed)
    for thread in closing:
        thread.join(DEADLINE_S)
    for thread in ours():
        thread.join(DEADLINE_S)
    assert client.status.phase == "closed"


def test_no_callback_can_end_the_thread_of_all_clients(server: InMemoryServer, caplog: pytest.LogCaptureFixture) -> None:
    seen = threading.Event()

    def leaves(_: Update) -> None:
        raise SystemExit(3)

    async def later() -> None: ...

    with server.blocking_client() as client:
        client.on_change(leaves)
        client.on_change(lambda _: later())
        client.on_change(lambda _: seen.set())
        server.publish({"search": {"pages": 1}}).wait()
        reached(seen)
        assert server.publish({"search": {"pages": 2}}).wait()
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert any("SystemExit" in one for one in told)
    assert any("plain functions" in one for one in told)


@pytest.mark.parametrize("error", [StopIteration, CancelledError, asyncio.CancelledError])
def test_what_a_future_takes_for_its_own_ends_no_subscription(
    server: InMemoryServer, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    seen: list[int] = []
    twice = threading.Event()

    def callback(update: Update) -> None:
        seen.append(update.cursor.number)
        if len(seen) == 2:
            twice.set()
        raise error

    with server.blocking_client() as client:
        client.on_change(callback)
        for pages in (1, 2):
            server.publish({"search": {"pages": pages}}).wait()
        reached(twice)
    assert seen == [3, 4]
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert [error.__name__ in one for one in told] == [True, True]


def test_async_callbacks_are_refused(server: InMemoryServer) -> None:
    async def callback(_: Update) -> None: ...

    with pytest.raises(InvalidRequest, match="plain functions"):
        server.blocking_client().on_change(callback)


def test_callbacks_that_hang_do_not_hold_up_closing_for_ever(server: InMemoryServer) -> None:
    entered, release = threading.Event(), threading.Event()

    def hangs(_: Update) -> None:
        entered.set()
        release.wait(DEADLINE_S)

    client = server.blocking_client()
    client.start()
    client.on_change(hangs)
    server.publish({"search": {"pages": 1}})
    reached(entered)
    hanging = ours()
    with pytest.raises(TimedOut, match="a callback may be running"):
        client.close(timeout=0.05)
    assert client.status.phase == "closed"
    release.set()
    for thread in hanging:
        thread.join(DEADLINE_S)


# --- iterating -----------------------------------------------------------------------------------------------------------------


def test_a_step_that_times_out_loses_nothing(server: InMemoryServer) -> None:
    with server.blocking_client() as client:
        changes = client.config("search").changes("/pages", timeout=0.01)
        with pytest.raises(TimedOut, match=r"within 0\.01 s"):
            next(changes)
        server.publish({"search": {"pages": 1}}).wait()
        server.publish({"search": {"pages": 2}}).wait()
        assert [next(changes).value, next(changes).value] == [1, 2]
        with pytest.raises(TimedOut):
            next(changes)


def test_cancel_ends_an_iterator_that_waits_in_another_thread(server: InMemoryServer) -> None:
    with server.blocking_client() as client, ThreadPoolExecutor(1) as threads:
        changes = client.config("search").changes()
        waiting = threads.submit(list, changes)
        server.publish({"search": {"pages": 1}}).wait()
        changes.cancel()
        assert len(waiting.result(DEADLINE_S)) <= 1


def test_closing_ends_what_waits_in_other_threads(server: InMemoryServer) -> None:
    with ThreadPoolExecutor(2) as threads:
        with server.blocking_client() as client:
            iterating = threads.submit(list, client.config("search").changes())
            waiting = threads.submit(client.wait_for_version, 99)
        assert iterating.result(DEADLINE_S) == []
        with pytest.raises(NotReady):
            waiting.result(DEADLINE_S)


def test_before_the_start_there_is_nothing_to_wait_for(server: InMemoryServer) -> None:
    client = server.blocking_client()
    with pytest.raises(NotReady, match="inside `with`"):
        client.wait_for_version(1)
    with pytest.raises(NotReady):
        next(client.config("search").changes())


# --- the rest of its surface ---------------------------------------------------------------------------------------------------


def test_several_environments(server: InMemoryServer) -> None:
    server.create("shop", "staging", {"search": {"pages": 3}})
    wanted = [Subscription("test", "test"), Subscription("shop", "staging", ["search"])]
    with server.blocking_client(subscriptions=wanted) as client:
        assert client.environment("test", "test").config("search")["pages"] == 10
        staging = client.environment("shop", "staging")
        assert staging.config("search")["pages"] == 3
        server.publish({"search": {"pages": 4}}, namespace="shop", environment="staging").wait()
        assert staging.wait_for_version(3, timeout=DEADLINE_S).number == 3
        with pytest.raises(InvalidRequest, match="several"):
            client.config("search")
        with pytest.raises(InvalidRequest, match="no subscription"):
            client.environment("shop", "dev")


def test_the_server_goes_and_comes(server: InMemoryServer) -> None:
    with server.blocking_client() as client:
        server.stop()
        number = server.publish({"search": {"pages": 11}}).number
        with pytest.raises(TimedOut):
            client.wait_for_version(number, timeout=0.01)
        assert client.config("search")["pages"] == 10
        server.start()
        assert client.wait_for_version(number, timeout=DEADLINE_S).number == number
        assert client.config("search")["pages"] == 11


def test_it_takes_what_the_async_client_takes() -> None:
    assert inspect.signature(blocking.Heliograph.__init__) == inspect.signature(Heliograph.__init__)


@pytest.mark.parametrize("kind", ["Heliograph", "Environment", "Config", "Bound"])
def test_it_offers_what_the_async_client_offers(kind: str) -> None:
    def public(module: Any) -> dict[str, Callable[..., Any]]:
        return {name: value for name, value in inspect.getmembers(getattr(module, kind)) if not name.startswith("_")}

    mine, theirs = public(blocking), public(client)
    assert mine.keys() == theirs.keys()
    for name in mine:
        if inspect.isfunction(mine[name]):
            extra = {"timeout"} if name in {"changes", "close"} else set()
            assert [p for p in inspect.signature(mine[name]).parameters if p not in extra] == list(
                inspect.signature(theirs[name]).parameters
            ), name


def test_nothing_of_a_value_or_a_token_is_shown_or_logged(server: InMemoryServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with server.blocking_client() as client:
        server.publish({"limits": {"max": 424242}}).wait()
        shown = f"{client!r} {client.config('limits')!r} {client.status!r}"
    logged = "".join(record.getMessage() for record in caplog.records)
    assert "424242" not in shown + logged
    assert server.token not in shown + logged


# --- forks, where processes cannot show it -------------------------------------------------------------------------------------


async def test_a_fork_between_holding_a_version_and_showing_it(server: InMemoryServer) -> None:
    """The child runs on what its parent held, and never on less than what its parent showed."""
    async with server.client() as parent:
        [live] = parent._lives
        shown = live.state
        await server.publish({"search": {"pages": 11}}).answered()
        held = parent._engine.held(live)
        live.state, now = shown, live.state
        child = Live("test", "test", ("",), lambda _: None)
        child.inherit(live, held)
        live.state = now
        assert child.current.cursor.number == 3
        assert child.inherited == held
        refusing = Live("test", "test", ("",), lambda _: None)
        live.state = shown
        live.validators.append(lambda _: 1 / 0)
        refusing.inherit(live, Inherited(held.replica, 0))
        assert (refusing.state, refusing.inherited) == (None, None), "as a process that starts anew"
