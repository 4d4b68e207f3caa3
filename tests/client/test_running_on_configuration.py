"""What an application does every day, against an honest server on real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from tests.client.conftest import eventually

from heliograph.client import ABSENT, Change, Heliograph, Invalid, Subscription, TimedOut, Update, _client
from heliograph.core.errors import InvalidName, InvalidRequest, NotFound, NotReady, SchemaViolation, Unauthenticated

DEADLINE_S = 20.0


@dataclass
class Limits:
    max_items: int


class Frozen(msgspec.Struct, frozen=True):
    max_items: int


class Model(pydantic.BaseModel):
    max_items: int


@pytest.fixture
def connect(server: Any, tmp_path: Path) -> Callable[..., Heliograph]:
    def make(**more: Any) -> Heliograph:
        told = {"namespace": "shop", "environment": "production", "cache_dir": tmp_path, **more}
        if "subscriptions" in more:
            del told["namespace"], told["environment"]
        return Heliograph(server.url, token=server.authority.token(), **told)

    return make


async def test_reading(server: Any, connect: Any) -> None:
    async with connect() as client:
        limits = client.config("checkout/limits")
        assert limits["max_items"] == 1
        assert limits.value == {"max_items": 1}
        assert limits.get("/max_items") == 1
        assert limits.get("/missing/0", "none") == "none"
        assert limits.text == '{"max_items":1}'
        assert limits.copy() == {"max_items": 1}
        assert limits.version.number == 2
        assert client.names() == {"checkout/limits", "checkout/cart", "search"}
        assert client.cursor == server.authority.latest.cursor
        with pytest.raises(TypeError):
            limits.value["max_items"] = 2


async def test_a_config_that_does_not_exist_yet_has_a_handle(server: Any, connect: Any) -> None:
    async with connect() as client:
        later = client.config("later")
        assert not later.exists
        assert later.get("/a", 7) == 7
        with pytest.raises(NotFound, match="later does not exist"):
            _ = later.value
        done = await server.publish(later={"a": 1})
        await client.wait_for_version(done.record.number, timeout=DEADLINE_S)
        assert later.exists
        assert later["a"] == 1


async def test_a_view_limits_what_is_seen(server: Any, connect: Any) -> None:
    async with connect(view=["checkout/"]) as client:
        assert client.names() == {"checkout/limits", "checkout/cart"}
        with pytest.raises(InvalidRequest, match="outside the view"):
            client.config("search")
        done = await server.publish(search={"pages": 11})
        await client.wait_for_version(done.record.number, timeout=DEADLINE_S)
        assert (await server.receipt(done.record.number)).state == "unaffected"


async def test_every_version_is_answered_and_acknowledged(server: Any, connect: Any) -> None:
    async with connect() as client:
        first = await server.receipt(2)
        assert (first.state, first.version) == ("applied", server.authority.latest.id)
        done = await server.publish(search={"pages": 11})
        answer = await server.receipt(done.record.number)
        assert (answer.state, answer.version, answer.epoch) == ("applied", done.id, 1)
        assert answer.applied_at_us > 0
        await eventually(lambda: client.status.receipts_pending == 0)


async def test_trace_context_travels_from_the_frame_into_the_receipt(server: Any, connect: Any) -> None:
    async with connect():
        connection, before = await server.connection(), server.authority.latest
        server.authority.publish(search={"pages": 12})
        await connection.send(server.authority.delta(before, trace="00-abc", answer="now"))
        assert (await server.receipt(3)).trace == "00-abc"


@pytest.mark.parametrize("kind", [Limits, Frozen, Model])
async def test_binding(server: Any, connect: Any, kind: type) -> None:
    async with connect() as client:
        limits = client.bind("checkout/limits", kind)
        first = limits.value
        assert first == kind(max_items=1)
        await client.wait_for_version((await server.publish(search={"pages": 9})).record.number, timeout=DEADLINE_S)
        assert limits.value is first, "an unchanged config keeps its object"
        await client.wait_for_version(
            (await server.publish(checkout__limits={"max_items": 5})).record.number, timeout=DEADLINE_S
        )
        assert limits.value == kind(max_items=5)


async def test_a_version_that_does_not_fit_is_rejected_whole_and_the_next_one_is_taken(server: Any, connect: Any) -> None:
    async with connect() as client:
        limits, search = client.bind("checkout/limits", Limits), client.config("search")
        await server.publish(checkout__limits={"max_items": "many, secretly"}, search={"pages": 99})
        answer = await server.receipt(3)
        assert answer.state == "rejected"
        assert answer.reason is not None
        assert "checkout/limits" in answer.reason
        assert "/max_items" in answer.reason
        assert "secretly" not in answer.reason
        assert (limits.value, search["pages"]) == (Limits(1), 10), "the last good version stays, all of it"
        rejected = client.status.only.rejected
        assert rejected is not None
        assert rejected.cursor.number == 3
        assert rejected.reason == answer.reason
        await server.publish(checkout__limits={"max_items": 7})
        await client.wait_for_version(4, timeout=DEADLINE_S)
        assert limits.value == Limits(7)
        assert search["pages"] == 99
        assert (await server.receipt(4)).state == "applied"
        assert client.status.only.rejected is None


async def test_a_bound_config_must_stay_unless_it_has_a_default(server: Any, connect: Any) -> None:
    async with connect() as client:
        client.bind("checkout/limits", Limits)
        cart = client.bind("checkout/cart", dict[str, str], default={})
        await server.publish(checkout__cart=None)
        await client.wait_for_version(3, timeout=DEADLINE_S)
        assert cart.value == {}
        await server.publish(checkout__limits=None)
        assert (await server.receipt(4)).state == "rejected"
        assert client.cursor.number == 3


async def test_what_is_there_must_fit_when_it_is_bound(connect: Any) -> None:
    async with connect() as client:
        with pytest.raises(SchemaViolation, match="checkout/cart"):
            client.bind("checkout/cart", Limits)
        with pytest.raises(SchemaViolation, match="not there"):
            client.bind("absent", Limits)


async def test_a_validator_decides_about_the_whole_version(server: Any, connect: Any) -> None:
    async with connect() as client:

        @client.validator
        def affordable(update: Update) -> None:
            if update.value("checkout/limits")["max_items"] > 100:
                raise Invalid("max_items is above what this host can hold")
            if update.value("checkout/limits")["max_items"] == 13:
                raise RuntimeError("13 is a secret")

        await server.publish(checkout__limits={"max_items": 1000})
        assert (await server.receipt(3, "rejected")).reason == "max_items is above what this host can hold"
        await server.publish(checkout__limits={"max_items": 13})
        reason = (await server.receipt(4, "rejected")).reason
        assert reason is not None
        assert "RuntimeError" in reason
        assert "13" not in reason
        await server.publish(checkout__limits={"max_items": 50})
        await client.wait_for_version(5, timeout=DEADLINE_S)


async def test_texts_that_no_frame_can_carry_are_carried_without_what_is_none(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File names, host names and environment variables may hold bytes that are no UTF-8; Python reads them as lone surrogates."""
    monkeypatch.setattr(socket, "gethostname", lambda: "caf\udce9-1")
    async with connect(app="caf\udce9", labels={"\udce9": "1", "pod": "caf\udce9"}) as client:

        @client.validator
        def check(_: Update) -> None:
            raise Invalid("there is no /caf\udce9")

        await server.publish(search={"pages": 11})
        answer = await server.receipt(3, "rejected")
        about = server.hellos[0].fingerprint
    assert answer.reason == "there is no /caf?"
    assert (about.host, about.app, about.labels) == ("caf?-1", "caf?", {"?": "1", "pod": "caf?"})
    assert len(server.connections) == 1


async def test_changes_of_one_place_in_one_config(server: Any, connect: Any) -> None:
    seen: list[Change] = []
    async with connect() as client:
        watch = client.subscribe("checkout/limits", seen.append, pointer="/max_items")
        await server.publish(checkout__limits={"max_items": 1, "note": "other member"})
        await server.publish(checkout__limits={"max_items": 2, "note": "x"})
        await server.publish(search={"pages": 1})
        await server.publish(checkout__limits=None)
        await client.wait_for_version(6, timeout=DEADLINE_S)
        await eventually(lambda: len(seen) == 2)
        assert [(one.before, one.value, one.cursor.number) for one in seen] == [(1, 2, 4), (2, ABSENT, 6)]
        assert "2" not in repr(seen[0]).replace(repr(seen[0].cursor), "").replace(repr(seen[0].previous), "")
        watch.cancel()
        await server.publish(checkout__limits={"max_items": 9})
        await client.wait_for_version(7, timeout=DEADLINE_S)
    assert len(seen) == 2


async def test_callbacks_see_versions_once_and_in_order(server: Any, connect: Any) -> None:
    changes: list[Update] = []
    versions: list[int] = []
    later: list[int] = []
    async with connect(view=["checkout/"]) as client:

        @client.on_change
        async def slowly(update: Update) -> None:
            await asyncio.sleep(0)
            changes.append(update)

        client.on_version(lambda update: versions.append(update.cursor.number))
        for number in range(3, 23):
            await server.publish(
                **({"search": {"pages": number}} if number % 2 else {"checkout__limits": {"max_items": number}})
            )
        await client.wait_for_version(22, timeout=DEADLINE_S)
        client.on_version(lambda update: later.append(update.cursor.number))
    assert versions == list(range(3, 23))
    assert [one.cursor.number for one in changes] == list(range(4, 23, 2))
    assert all(one.changed == ("checkout/limits",) for one in changes)
    assert [one.value("checkout/limits")["max_items"] for one in changes] == list(range(4, 23, 2))
    assert later == []


async def test_async_iteration_starts_where_it_was_asked_for_and_ends_with_the_client(server: Any, connect: Any) -> None:
    async with connect() as client:
        changes = client.config("checkout/limits").changes()
        bound = client.bind("checkout/limits", Limits).changes(initial=True)
        await server.publish(checkout__limits={"max_items": 2})
        await server.publish(checkout__limits={"max_items": 3})
        await client.wait_for_version(4, timeout=DEADLINE_S)
    assert [change.value["max_items"] async for change in changes] == [2, 3]
    assert [(change.before or None, change.value) async for change in bound] == [
        (None, Limits(1)),
        (Limits(1), Limits(2)),
        (Limits(2), Limits(3)),
    ]


async def test_initial_brings_what_is_there(connect: Any) -> None:
    seen: list[Change] = []
    async with connect() as client:
        client.subscribe("search", seen.append, initial=True)
        await eventually(lambda: seen)
    assert [(one.before, one.value["pages"]) for one in seen] == [(ABSENT, 10)]


async def test_a_slow_callback_does_not_hold_up_what_others_read(server: Any, connect: Any) -> None:
    release, seen = asyncio.Event(), []
    async with connect() as client:

        @client.on_change
        async def slow(update: Update) -> None:
            seen.append(update)
            await release.wait()

        for number in range(3, 203):
            await server.publish(search={"pages": number})
        await client.wait_for_version(202, timeout=DEADLINE_S)
        assert client.config("search")["pages"] == 202
        release.set()
        await eventually(lambda: seen[-1].cursor.number == 202)
    numbers = [update.cursor.number for update in seen]
    assert numbers == sorted(set(numbers))
    assert sum(update.conflated + 1 for update in seen) == 200
    assert seen[-1].value("search")["pages"] == 202


async def test_callbacks_may_be_named_before_the_start(server: Any, connect: Any) -> None:
    client, seen = connect(), []
    limits = client.bind("checkout/limits", Limits)
    client.on_change(lambda update: seen.append(update.cursor.number))
    with pytest.raises(NotReady):
        _ = limits.value
    async with client:
        assert limits.value == Limits(1)
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
    assert seen == [3], "the first state is no change"


async def test_a_first_state_that_does_not_fit_fails_the_start_and_says_why(server: Any, connect: Any) -> None:
    client = connect()
    client.bind("checkout/cart", Limits)
    with pytest.raises(Invalid, match="checkout/cart"):
        async with client:
            pytest.fail("started")
    assert (await server.receipt(2)).state == "rejected"


async def test_waiting_for_a_version_that_does_not_come(connect: Any) -> None:
    async with connect() as client:
        assert (await client.wait_for_version(1)).number == 2
        with pytest.raises(TimedOut, match="version 99"):
            await client.wait_for_version(99, timeout=0.01)


async def test_status_says_how_it_is(server: Any, connect: Any) -> None:
    client = connect(app="till", labels={"zone": "a"})
    assert client.status.phase == "new"
    assert not client.status.connected
    async with client:
        status = client.status
        assert (status.phase, status.connected, status.transport, status.source) == ("running", True, "websocket", "network")
        assert status.cursor == server.authority.latest.cursor
        assert status.stale is False
        assert status.head_age_s is not None
        assert status.alarm is None
        assert status.last_error is None
        assert status.disk == "ok"
        assert (status.region, status.node) == ("here", "n1")
        assert status.clock_offset_ms is not None
        [hello] = server.hellos
        assert hello.instance == status.instance
        assert hello.incarnation == status.incarnation
        assert (hello.fingerprint.app, hello.fingerprint.labels, hello.fingerprint.sdk) == (
            "till",
            {"zone": "a"},
            "heliograph-python",
        )
    assert client.status.phase == "closed"
    assert not client.status.connected
    assert client.config("search")["pages"] == 10, "what was there stays readable"


async def test_a_head_that_expired_is_stale_and_no_error(server: Any, connect: Any) -> None:
    server.authority.bring = lambda have, view=("",): server.authority.snapshot(
        view, head=server.authority.head(expires_us=server.authority.clock_us + 1)
    )
    async with connect() as client:
        assert client.status.stale
        assert client.config("search")["pages"] == 10


async def test_several_environments(server: Any, connect: Any, new_authority: Any) -> None:
    staging = new_authority(environment="staging")
    staging.publish(search={"pages": 3})
    server.authorities["shop", "staging"] = staging
    async with connect(
        subscriptions=[Subscription("shop", "production"), Subscription("shop", "staging", ["search"])]
    ) as client:
        assert client.environment("shop", "production").config("search")["pages"] == 10
        assert client.environment("shop", "staging").config("search")["pages"] == 3
        with pytest.raises(InvalidRequest, match="several"):
            client.config("search")
        with pytest.raises(InvalidRequest, match="no subscription"):
            client.environment("shop", "dev")
        assert [one.environment for one in client.status.subscriptions] == ["production", "staging"]


async def test_nothing_of_a_value_or_a_token_is_shown_or_logged(
    server: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with connect() as client:
        limits = client.config("checkout/limits")
        bound = client.bind("checkout/limits", Limits)
        await server.publish(checkout__limits={"max_items": 424242})
        await client.wait_for_version(3, timeout=DEADLINE_S)
        shown = f"{client!r} {limits!r} {bound!r} {client.status!r}"
    secret = server.authority.token()
    logged = "".join(record.getMessage() for record in caplog.records if record.name != "websockets.server")
    assert "424242" not in shown + logged
    assert secret not in shown + logged


async def test_no_task_is_left_behind(server: Any, connect: Any) -> None:
    before = asyncio.all_tasks()
    async with connect() as client:
        client.on_change(lambda _: None)
        client.subscribe("search", lambda _: None)
        assert len(asyncio.all_tasks()) > len(before)
        ours = asyncio.all_tasks() - before
    await server.stop()
    assert not [task for task in ours if not task.done() and "heliograph" in repr(task)]


async def test_a_start_that_is_cancelled_leaves_no_task_behind(server: Any, connect: Any) -> None:
    async def silent(_: Any) -> None: ...

    server.script = silent
    before = asyncio.all_tasks()
    starting = asyncio.create_task(connect().start())
    await server.connection()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await server.stop()
    assert not [task for task in asyncio.all_tasks() - before if "heliograph" in repr(task)]


async def test_a_callback_may_close_its_client(server: Any, connect: Any) -> None:
    """It only begins: closing waits for callbacks, and so for this one."""
    closed = asyncio.Event()
    client = connect()
    await client.start()

    @client.on_change
    async def leave(_: Update) -> None:
        await client.close()
        closed.set()

    await server.publish(search={"pages": 11})
    async with asyncio.timeout(DEADLINE_S):
        await closed.wait()
    await eventually(lambda: client.status.phase == "closed")
    await client.close()
    assert client.config("search")["pages"] == 11


async def test_a_callback_that_waits_for_a_task_that_closes_does_not_hold_up_closing_for_ever(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "CALLBACK_GRACE_S", 0.05)
    client = connect()
    await client.start()

    @client.on_change
    async def leave(_: Update) -> None:
        await asyncio.create_task(client.close())

    await server.publish(search={"pages": 11})
    await eventually(client._owner.done)
    await client.close()


async def test_a_close_that_is_cut_short_disturbs_no_other_and_the_disk_copy_is_written(server: Any, connect: Any) -> None:
    entered, release = asyncio.Event(), asyncio.Event()
    async with connect() as client:

        @client.on_change
        async def slow(_: Update) -> None:
            entered.set()
            await release.wait()

        await server.publish(search={"pages": 11})
        await entered.wait()
        cut_short, other = asyncio.create_task(client.close()), asyncio.create_task(client.close())
        await asyncio.sleep(0)
        cut_short.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cut_short
        await other
        client.on_change(lambda _: None)
    await server.stop()
    async with connect() as client:
        assert client.config("search")["pages"] == 11


@pytest.mark.parametrize("kind", ["alarm", "change"])
async def test_a_callback_that_is_added_while_the_client_closes_does_not_hold_it_up(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(_client, "CALLBACK_GRACE_S", 0.5)
    entered, added = asyncio.Event(), asyncio.Event()
    client = connect()
    await client.start()

    async def hangs(_: object) -> None:
        await asyncio.Event().wait()

    @client.on_change
    async def late(_: Update) -> None:
        changes = client.config("search").changes()
        entered.set()
        assert [change async for change in changes] == []
        if kind == "alarm":
            client.on_alarm(hangs)
        else:
            client.subscribe("search", hangs, initial=True)
        added.set()

    await server.publish(search={"pages": 11})
    await entered.wait()
    async with asyncio.timeout(DEADLINE_S):
        await client.close()
    assert added.is_set()


async def test_a_client_starts_once(connect: Any) -> None:
    async with connect() as client:
        with pytest.raises(InvalidRequest, match="once"):
            await client.start()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"namespace": "Shop"}, InvalidName),
        ({"namespace": None}, InvalidRequest),
        ({"view": "checkout/"}, InvalidRequest),
        ({"view": []}, InvalidName),
        ({"view": ["a"] * 257}, InvalidRequest),
        ({"trust": "sha256:short"}, InvalidRequest),
        ({"labels": {str(number): "" for number in range(33)}}, InvalidRequest),
        ({"app": "a" * 201}, InvalidRequest),
        ({"subscriptions": [Subscription("a", "b"), Subscription("a", "b")]}, InvalidRequest),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(connect: Any, more: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        connect(**more)


def test_a_token_is_checked_before_anything_is_sent(authority: Any) -> None:
    with pytest.raises(Unauthenticated):
        Heliograph("http://localhost:1", token="hel_client_cut", namespace="a", environment="b")
    with pytest.raises(InvalidRequest, match="trust"):
        Heliograph("http://localhost:1", token=authority.token("admin"), namespace="a", environment="b")
    with pytest.raises(InvalidRequest, match="http"):
        Heliograph("localhost:1", token=authority.token(), namespace="a", environment="b")


async def test_a_rejected_version_that_is_pushed_again_is_answered_again(server: Any, connect: Any) -> None:
    """An operator had it told again and waits: the same refusal is said once more, under the trace of what was sent; unasked it is said once."""
    async with connect() as client:
        client.bind("checkout/limits", Limits)
        await server.publish(checkout__limits={"max_items": "many"})
        first = await server.receipt(3, "rejected")
        connection = await server.connection()
        held = server.authority.at(2).cursor
        await connection.send(server.authority.snapshot(have=held))
        await connection.send(server.authority.snapshot(have=held, answer="now", trace="00-again"))
        again = (await server.until(lambda: [one for one in server.receipts if one.trace == "00-again"]))[0]
        assert (again.state, again.reason, again.number) == ("rejected", first.reason, 3)
        told = {(one.number, one.trace) for one in server.receipts if one.state == "rejected"}
        assert told == {(3, first.trace), (3, "00-again")}
