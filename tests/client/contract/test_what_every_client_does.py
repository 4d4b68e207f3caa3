"""The contract of a client, whichever it is: what an application may rely on in production is what it sees in its tests."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from heliograph.client import ABSENT, Change, Invalid, TimedOut, Update
from heliograph.core import token
from heliograph.core.errors import InvalidRequest, NotFound, NotReady, SchemaViolation, Unauthenticated

DEADLINE_S = 30.0


@dataclass
class Limits:
    max_items: int
    currencies: list[str]


async def eventually(reached: Callable[[], Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while not (found := reached()):
            await asyncio.sleep(0.005)
    return found


# --- reading -------------------------------------------------------------------------------------------------------------------


async def test_reading(connect: Any) -> None:
    async with connect() as subject:
        client = subject.client
        limits = client.config("checkout/limits")
        assert limits["max_items"] == 20
        assert limits.value == {"max_items": 20, "currencies": ("EUR",)}
        assert limits.get("/currencies/0") == "EUR"
        assert limits.get("/missing", "none") == "none"
        assert limits.text == '{"currencies":["EUR"],"max_items":20}'
        assert limits.copy() == {"max_items": 20, "currencies": ["EUR"]}
        assert limits.version == client.cursor
        assert client.cursor.number == 2
        assert client.names() == {"checkout/limits", "checkout/cart", "search"}
        with pytest.raises(TypeError):
            limits.value["max_items"] = 2


async def test_a_version_comes_and_is_answered(world: Any, connect: Any) -> None:
    async with connect() as subject:
        number = await world.publish({"search": {"pages": 11}})
        assert (await subject.wait(number)).number == number
        assert subject.client.config("search")["pages"] == 11
        assert await world.answer(number, subject.client.status.instance) == ("applied", None)
        await eventually(lambda: subject.client.status.receipts_pending == 0)


async def test_a_config_comes_and_goes(world: Any, connect: Any) -> None:
    async with connect() as subject:
        later = subject.client.config("later")
        assert not later.exists
        with pytest.raises(NotFound, match="later does not exist"):
            _ = later.value
        await subject.wait(await world.publish({"later": None, "search": {"pages": 1}}))
        assert later.exists
        assert later.value is None
        await subject.wait(await world.publish({"later": ABSENT}))
        assert not later.exists


async def test_a_view_limits_what_is_seen(world: Any, connect: Any) -> None:
    async with connect(view=["checkout/"]) as subject:
        assert subject.client.names() == {"checkout/limits", "checkout/cart"}
        with pytest.raises(InvalidRequest, match="outside the view"):
            subject.client.config("search")
        number = await world.publish({"search": {"pages": 11}})
        await subject.wait(number)
        assert (await world.answer(number, subject.client.status.instance))[0] == "unaffected"


async def test_what_changes_nothing_makes_no_version(world: Any, connect: Any) -> None:
    async with connect() as subject:
        assert await world.publish({"search": {"pages": 11}}) == 3
        assert await world.publish({"search": {"pages": 11}}) == 3
        assert await world.answer(3, subject.client.status.instance) == ("applied", None)


async def test_a_large_config_changes_a_little(world: Any, connect: Any) -> None:
    """It travels as edits, and is proved all the same."""
    many = {f"key-{number}": number for number in range(500)}
    async with connect() as subject:
        await subject.wait(await world.publish({"many": many}))
        await subject.wait(await world.publish({"many": many | {"key-250": "other"}}))
        assert subject.client.config("many").copy() == many | {"key-250": "other"}
        assert subject.client.status.only.alarm is None


# --- refusing ------------------------------------------------------------------------------------------------------------------


async def test_a_version_that_does_not_fit_its_type_is_rejected_with_the_reason(world: Any, connect: Any) -> None:
    async with connect() as subject:
        limits = await subject.do(lambda: subject.client.bind("checkout/limits", Limits))
        first = limits.value
        assert first == Limits(20, ["EUR"])
        number = await world.publish({"checkout/limits": {"max_items": "s3cret", "currencies": []}})
        state, reason = await world.answer(number, subject.client.status.instance)
        assert state == "rejected"
        assert "/max_items" in reason
        assert "s3cret" not in reason
        assert limits.value is first
        await eventually(lambda: subject.client.status.only.rejected)
        assert subject.client.cursor.number == 2
        await subject.wait(await world.publish({"checkout/limits": {"max_items": 3, "currencies": []}}))
        assert limits.value == Limits(3, [])
        assert subject.client.status.only.rejected is None


async def test_a_validator_rejects(world: Any, connect: Any) -> None:
    def odd(update: Update) -> None:
        if update.value("search")["pages"] % 2 == 0:
            raise Invalid("an even number of pages")

    async with connect() as subject:
        await subject.do(lambda: subject.client.validator(odd))
        number = await world.publish({"search": {"pages": 12}})
        assert await world.answer(number, subject.client.status.instance) == ("rejected", "an even number of pages")
        await subject.wait(await world.publish({"search": {"pages": 13}}))


async def test_what_is_there_must_fit_what_is_bound(connect: Any) -> None:
    async with connect() as subject:
        with pytest.raises(SchemaViolation, match="checkout/cart"):
            await subject.do(lambda: subject.client.bind("checkout/cart", Limits))
        bound = await subject.do(lambda: subject.client.bind("no/such", Limits, default=Limits(1, [])))
        assert bound.value == Limits(1, [])


async def test_a_first_state_that_does_not_fit_fails_the_start(make: Any) -> None:
    subject = make()
    await subject.do(lambda: subject.client.bind("checkout/cart", Limits))
    with pytest.raises(Invalid, match="checkout/cart"):
        await subject.start()
    assert subject.client.status.phase == "closed"


# --- following -----------------------------------------------------------------------------------------------------------------


async def test_callbacks_see_versions_once_and_in_order(world: Any, connect: Any) -> None:
    changes: list[Update] = []
    versions: list[int] = []
    async with connect(view=["checkout/"]) as subject:
        await subject.do(lambda: subject.client.on_change(changes.append))
        await subject.do(lambda: subject.client.on_version(lambda update: versions.append(update.cursor.number)))
        for number in range(3, 13):
            name = "search" if number % 2 else "checkout/cart"
            assert await world.publish({name: {"currency": str(number)}}) == number
            await subject.wait(number)
        await eventually(lambda: versions and versions[-1] == 12)
    assert versions == list(range(3, 13))
    assert [one.cursor.number for one in changes] == list(range(4, 13, 2))
    assert all(one.changed == ("checkout/cart",) for one in changes)
    assert [one.value("checkout/cart")["currency"] for one in changes] == [str(number) for number in range(4, 13, 2)]


async def test_a_callback_that_fails_ends_nothing(world: Any, connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def fails_once(update: Update) -> None:
        seen.append(update.cursor.number)
        if len(seen) == 1:
            raise ValueError("as applications do")

    async with connect() as subject:
        await subject.do(lambda: subject.client.on_change(fails_once))
        for pages in (1, 2):
            await subject.wait(await world.publish({"search": {"pages": pages}}))
        await eventually(lambda: len(seen) == 2)
        assert subject.client.status.phase == "running"
    assert [record for record in caplog.records if "fails_once" in record.getMessage()]


async def test_one_place_in_one_config(world: Any, connect: Any) -> None:
    seen: list[Change] = []
    async with connect() as subject:
        watch = await subject.do(
            lambda: subject.client.subscribe("checkout/limits", seen.append, pointer="/max_items", initial=True)
        )
        await eventually(lambda: len(seen) == 1)
        await subject.wait(await world.publish({"checkout/limits": {"max_items": 20, "other": 1}}))
        await subject.wait(await world.publish({"checkout/limits": {"max_items": 21}}))
        await eventually(lambda: len(seen) == 2)
        await subject.do(watch.cancel)
        await subject.wait(await world.publish({"checkout/limits": {"max_items": 22}}))
    assert [(one.before, one.value) for one in seen] == [(ABSENT, 20), (20, 21)]


async def test_iteration_starts_where_it_was_asked_for_and_ends_with_the_client(world: Any, connect: Any) -> None:
    async with connect() as subject:
        changes = await subject.do(lambda: subject.client.config("search").changes("/pages"))
        limits = await subject.do(lambda: subject.client.bind("checkout/limits", Limits))
        bound = await subject.do(lambda: limits.changes(initial=True))
        await subject.wait(await world.publish({"search": {"pages": 1}}))
        assert (await subject.next(changes)).value == 1
        await subject.wait(await world.publish({"search": {"pages": 2}, "checkout/limits": {"max_items": 1, "currencies": []}}))
    assert [change.value for change in await subject.rest(changes)] == [2]
    assert [change.value for change in await subject.rest(bound)] == [Limits(20, ["EUR"]), Limits(1, [])]


async def test_callbacks_and_bindings_may_be_named_before_the_start(world: Any, make: Any) -> None:
    subject, seen = make(), []
    limits = await subject.do(lambda: subject.client.bind("checkout/limits", Limits))
    await subject.do(lambda: subject.client.on_change(lambda update: seen.append(update.cursor.number)))
    with pytest.raises(NotReady):
        _ = limits.value
    await subject.start()
    try:
        assert limits.value == Limits(20, ["EUR"])
        await subject.wait(await world.publish({"search": {"pages": 1}}))
        await eventually(lambda: seen == [3])
    finally:
        await subject.close()


# --- its life ------------------------------------------------------------------------------------------------------------------


async def test_waiting_for_a_version_that_does_not_come(connect: Any) -> None:
    async with connect() as subject:
        with pytest.raises(TimedOut, match="version 99"):
            await subject.wait(99, timeout=0.01)


async def test_status_says_how_it_is(connect: Any, make: Any) -> None:
    new = make().client
    assert (new.status.phase, new.status.connected, new.cursor) == ("new", False, None)
    async with connect(app="till") as subject:
        status = subject.client.status
        assert (status.phase, status.connected, status.transport, status.source) == ("running", True, "websocket", "network")
        assert status.cursor == subject.client.cursor
        assert status.stale is False
        assert status.alarm is None
        assert status.last_error is None
        assert status.disk == "ok"
        assert status.instance
        assert status.region
    closed = subject.client
    assert (closed.status.phase, closed.status.connected) == ("closed", False)
    assert closed.config("search")["pages"] == 10, "what was there stays readable"


async def test_it_starts_once_and_closes_twice(connect: Any) -> None:
    async with connect() as subject:
        with pytest.raises(InvalidRequest, match="once"):
            await subject.start()
    await subject.close()
    with pytest.raises(NotReady):
        await subject.wait(99, timeout=DEADLINE_S)


async def test_the_next_start_is_the_same_instance_and_reads_its_disk_copy(world: Any, connect: Any) -> None:
    async with connect() as first:
        before = first.client.status
    await world.publish({"search": {"pages": 11}})
    async with connect() as second:
        after = second.client.status
        assert after.instance == before.instance
        assert after.incarnation > before.incarnation
        await second.wait(3)


async def test_several_at_once_are_several_instances(world: Any, connect: Any) -> None:
    async with connect() as one, connect() as other:
        assert one.client.status.instance != other.client.status.instance
        number = await world.publish({"search": {"pages": 11}})
        for subject in (one, other):
            await subject.wait(number)
            assert (await world.answer(number, subject.client.status.instance))[0] == "applied"


async def test_a_token_that_the_server_does_not_know(world: Any, make: Any) -> None:
    anchor = token.parse(world.arguments()["token"]).anchor
    subject = make(token=token.mint("client", "0" * token.SECRET_LENGTH, anchor), start_timeout=DEADLINE_S)
    with pytest.raises(Unauthenticated):
        await subject.start()


async def test_nothing_of_a_client_can_be_pickled(connect: Any) -> None:
    async with connect() as subject:
        client = subject.client
        bound = await subject.do(lambda: client.bind("checkout/limits", Limits))
        changes = await subject.do(lambda: client.config("search").changes())
        for one in (client, client.config("search"), bound, changes):
            with pytest.raises(TypeError, match="cannot pickle or copy"):
                pickle.dumps(one)
        assert pickle.loads(pickle.dumps(client.config("search").copy())) == {"pages": 10}
