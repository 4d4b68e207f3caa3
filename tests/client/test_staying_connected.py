"""Connections that break, end, drain, are refused, and are replaced by polling; and starts from the disk when nobody answers."""

from __future__ import annotations

import asyncio
import errno
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.client.conftest import eventually

from heliograph.client import HeliographError, TimedOut
from heliograph.client._backoff import Backoff
from heliograph.client._discovery import Discovery
from heliograph.client._disk import DiskWriter
from heliograph.core import delta, frames
from heliograph.core.errors import Conflict, Forbidden, InvalidRequest, MalformedFrame, NotFound, Unauthenticated, UntrustedRoot
from heliograph.runtime.children import PIPE, start

DEADLINE_S = 20.0
replace = msgspec.structs.replace


# --- coming back --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000, 4001, 4002, 4003, 4004])
async def test_a_lost_connection_is_opened_again_and_resumes_from_the_cursor(server: Any, connect: Any, code: int) -> None:
    versions: list[int] = []
    async with connect() as client:
        client.on_version(lambda update: versions.append(update.cursor.number))
        first = await server.connection(1)
        held = server.authority.latest.cursor
        server.authority.publish(checkout__limits={"max_items": 2})
        server.authority.publish(checkout__limits={"max_items": 3})
        await first.close(code)
        second = await server.connection(2)
        assert second.hello.subscriptions[0].have == held
        assert second.hello.instance == first.hello.instance
        assert second.hello.incarnation == first.hello.incarnation
        await client.wait_for_version(4, timeout=DEADLINE_S)
        assert (await server.receipt(4)).state == "applied"
    assert versions == [4], "a jump is one update"


async def test_a_client_that_is_sent_away_for_a_second_stays_away_for_one(server: Any, connect: Any) -> None:
    async with connect():
        first = await server.connection(1)
        await first.close(4002, frames.closing("throttled", 1))
        since = asyncio.get_running_loop().time()
        await server.connection(2)
        assert asyncio.get_running_loop().time() - since > 0.9


async def test_a_connection_that_breaks_without_a_word(server: Any, connect: Any) -> None:
    async with connect() as client:
        first = await server.connection(1)
        first.socket.transport.abort()
        await server.connection(2)
        assert client.config("search")["pages"] == 10


async def test_a_server_that_falls_silent_is_left(server: Any, connect: Any) -> None:
    server.welcome = {"heartbeat_s": 0.05}

    honest = server.hear

    async def deaf(connection: Any, frame: frames.FromClient) -> None:
        if len(server.hellos) > 1:
            await honest(connection, frame)

    server.hear = deaf
    async with connect():
        await server.connection(2)


async def test_heartbeats_carry_the_view_digest_and_keep_the_clock(server: Any, connect: Any) -> None:
    server.welcome = {"heartbeat_s": 0.1}
    async with connect(view=["checkout/"]) as client:
        beats = await server.until(lambda: [one for one in server.heard if isinstance(one, frames.Heartbeat)])
        assert beats[0].views["1"].startswith("sha256:")
        assert client.status.clock_offset_ms == pytest.approx(0, abs=1000)


async def test_a_ping_is_answered_with_a_heartbeat(server: Any, connect: Any) -> None:
    async with connect():
        connection = await server.connection()
        await connection.send(frames.Ping(sent_at_us=1))
        await server.until(lambda: [one for one in server.heard if isinstance(one, frames.Heartbeat)])


async def test_drain_moves_to_a_new_connection_and_receives_until_then(server: Any, connect: Any) -> None:
    async with connect() as client:
        first = await server.connection(1)
        await first.send(frames.Drain(within_s=1.0))
        done = await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(done.record.number, timeout=DEADLINE_S)
        await server.connection(2)
        assert client.status.last_error is None


async def test_what_waits_to_be_said_is_said_before_leaving(server: Any, connect: Any) -> None:
    server.welcome = {"receipt_jitter_ms": 3_600_000}
    async with connect() as client:
        first = await server.connection(1)
        assert server.receipts == []
        await first.send(frames.Drain(within_s=3_600.0))
        assert (await server.receipt(2)).state == "applied"
        await eventually(lambda: client.status.receipts_pending == 0)


async def test_a_node_that_is_gone_is_no_reason_for_everybody_to_ask_the_registry(server: Any, connect: Any) -> None:
    """Only links that fail again and again may mean that the services have moved."""
    async with connect():
        first = await server.connection(1)
        server.requests.clear()
        server.refuse_upgrade = HTTPStatus.SERVICE_UNAVAILABLE
        first.socket.transport.abort()
        await eventually(lambda: [path for _, path, _ in server.requests if path == "/v1/endpoints"])
        assert server.upgrades >= 4


async def test_garbage_from_the_server_is_a_lost_connection(server: Any, connect: Any) -> None:
    async with connect() as client:
        first = await server.connection(1)
        await first.socket.send('{"type":"from the future"}')
        await server.connection(2)
        assert client.config("search")["pages"] == 10


async def test_receipts_are_sent_again_until_they_are_acknowledged(server: Any, connect: Any) -> None:
    server.acknowledge = False
    async with connect() as client:
        first = await server.receipt(2)
        done = await server.publish(checkout__limits={"max_items": 2})
        await server.receipt(done.record.number)
        assert client.status.receipts_pending == 2
        await (await server.connection(1)).close(1012)
        server.acknowledge = True
        await server.connection(2)
        await eventually(lambda: client.status.receipts_pending == 0)
        again = [one for one in server.receipts if one.number == 2]
        assert [(one.seq, one.applied_at_us) for one in again] == [(1, first.applied_at_us)] * 2


async def test_closing_sends_the_receipts_that_wait(server: Any, connect: Any) -> None:
    server.welcome = {"receipt_jitter_ms": 3_600_000}
    async with connect():
        assert server.receipts == []
    assert [one.number for one in server.receipts] == [2]


async def test_an_author_who_waits_gets_the_receipt_at_once_and_a_sample_always_answers_at_once(
    server: Any, connect: Any
) -> None:
    server.welcome = {"receipt_jitter_ms": 3_600_000}
    async with connect() as client:
        await server.publish(checkout__limits={"max_items": 2})  # answer="now"
        await server.receipt(3)
        server.welcome = {"receipt_jitter_ms": 3_600_000, "sample": True}
        await (await server.connection(1)).close(1012)
        second, before = await server.connection(2), server.authority.latest
        server.authority.publish(search={"pages": 1})
        await second.send(server.authority.delta(before))
        await server.receipt(4)
        assert client.cursor.number == 4


async def test_a_state_in_parts_is_applied_after_the_last(server: Any, connect: Any) -> None:
    def parts(frame: Any) -> list[Any]:
        last = len(frame.changes)
        return [
            replace(frame, changes=(one,), part=number, parts=last, proof=frame.proof if number == last else None)
            for number, one in enumerate(frame.changes, start=1)
        ]

    async def in_parts(connection: Any) -> None:
        *first, last = parts(server.authority.snapshot())
        await connection.send(*first)
        if len(server.hellos) == 1:
            await connection.close(1011)  # in the middle: nothing of it may count
        else:
            await connection.send(last)

    server.script = in_parts
    async with connect() as client:
        assert len(server.hellos) == 2
        assert client.names() == {"checkout/limits", "checkout/cart", "search"}
        assert (await server.receipt(2)).state == "applied"


async def test_a_large_document_travels_as_edits_of_its_text(server: Any, connect: Any) -> None:
    words = [f"word {number}" for number in range(500)]
    async with connect() as client:
        before = await server.publish(words=words)
        after = server.authority.publish(words=[*words[:250], "äöü 🛰", *words[250:]])
        held, new = (delta.entry_of(one.documents["words"]) for one in (before, after))
        changed = delta.to_wire("words", held, new)
        assert isinstance(changed.edits, tuple)
        await (await server.connection()).send(replace(server.authority.delta(before), changes=(changed,)))
        await client.wait_for_version(4, timeout=DEADLINE_S)
        assert client.config("words").value == (*words[:250], "äöü 🛰", *words[250:])


async def test_new_keys_are_learnt_from_the_next_trust_root(server: Any, connect: Any, new_key: Any) -> None:
    """Until then the new signature is an alarm; the successor of the root is taken because the old root's keys signed it."""
    async with connect() as client:
        server.authority.head_key = new_key(b"\x77")
        server.root = server.authority.root(number=2)
        await server.publish(checkout__limits={"max_items": 2})
        await eventually(lambda: client.status.alarm is not None)
        await client.wait_for_version(3, timeout=DEADLINE_S)
        assert client.status.alarm is None
    async with connect() as client:
        assert client.config("checkout/limits")["max_items"] == 2
    server.root = server.authority.root(number=1)
    with pytest.raises(UntrustedRoot, match="given 1"):
        async with connect():
            pytest.fail("an older root was taken")


async def test_the_kept_endpoints_serve_while_the_api_is_away(server: Any, connect: Any) -> None:
    async with connect():
        pass
    server.answers_http = False
    async with connect() as client:
        await eventually(lambda: client.status.transport == "websocket")
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)


async def test_a_server_that_asks_for_patience_gets_it(server: Any, connect: Any) -> None:
    server.refuse_upgrade = HTTPStatus.SERVICE_UNAVAILABLE
    server.retry_after = 3600
    with pytest.raises(TimedOut, match="503"):
        async with connect(start_timeout=0.5):
            pytest.fail("started")
    assert server.upgrades == 1


async def test_a_server_that_is_none_is_said_to_be_none(server: Any, connect: Any) -> None:
    server.endpoints = {"hello": "world"}
    with pytest.raises(TimedOut, match="is the address right"):
        async with connect(start_timeout=0.3):
            pytest.fail("started")


async def test_an_https_server_must_not_send_a_token_over_plain_sockets(tmp_path: Path, authority: Any) -> None:
    async with httpx.AsyncClient() as http:
        discovery = Discovery(http, "https://config.example", authority.anchor, folder=None, disk=DiskWriter(None))
        with pytest.raises(InvalidRequest, match="TLS"):
            discovery.use_endpoints(b'{"api":"https://x","stream":"ws://x/v1/stream","bundles":"https://x"}')


# --- being told to stop -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (4100, Unauthenticated),
        (4101, Forbidden),
        (4102, MalformedFrame),
        (4103, Conflict),
        (4104, InvalidRequest),
        (4105, Unauthenticated),
        (4106, MalformedFrame),
        (4199, HeliographError),
    ],
)
async def test_a_terminal_code_stops_the_client_with_a_clear_error(
    server: Any, connect: Any, code: int, error: type[Exception]
) -> None:
    async with connect() as client:
        await (await server.connection(1)).close(code, "said the server")
        with pytest.raises(error, match=str(code)):
            await client.wait_for_version(99, timeout=DEADLINE_S)
        assert client.status.phase == "stopped"
        assert not client.status.connected
        assert isinstance(client.status.last_error, error)
        assert client.config("search")["pages"] == 10
    assert len(server.hellos) == 1


async def test_a_terminal_code_at_the_first_hello_fails_the_start(server: Any, connect: Any) -> None:
    server.close_with = 4101
    with pytest.raises(Forbidden, match="scope"):
        async with connect():
            pytest.fail("started")


@pytest.mark.parametrize(("status", "error"), [(HTTPStatus.UNAUTHORIZED, Unauthenticated), (HTTPStatus.FORBIDDEN, Forbidden)])
async def test_a_refused_upgrade_fails_the_start(server: Any, connect: Any, status: HTTPStatus, error: type[Exception]) -> None:
    server.refuse_upgrade = status
    with pytest.raises(error):
        async with connect():
            pytest.fail("started")


async def test_an_environment_that_does_not_exist_fails_the_start(server: Any, connect: Any) -> None:
    async def unknown(connection: Any) -> None:
        await connection.send(frames.ErrorFrame(code="not-found", detail="shop has no environment production", subscription=1))

    server.script = unknown
    with pytest.raises(NotFound, match="no environment"):
        async with connect():
            pytest.fail("started")


async def test_an_environment_that_is_deleted_is_said_and_what_was_applied_stays(server: Any, connect: Any) -> None:
    """A code that is known to every release, so that those before this one only say it, too. When it is served again it is as before."""
    async with connect() as client:
        assert not client.status.only.gone
        before = client.status.cursor
        deleted = frames.ErrorFrame(code="not-found", detail="shop/production was deleted", subscription=1)
        await (await server.connection()).send(deleted)
        await eventually(lambda: client.status.only.gone)
        assert "was deleted" in str(client.status.only.error)
        assert (client.status.cursor, client.status.phase) == (before, "running")
        assert client.config("checkout/limits")["max_items"] == 1
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
        assert not client.status.only.gone


# --- polling ------------------------------------------------------------------------------------------------------------------------------


async def test_without_a_websocket_the_client_polls_and_applications_see_no_difference(server: Any, connect: Any) -> None:
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    versions: list[int] = []
    async with connect(view=["checkout/"]) as client:
        client.on_version(lambda update: versions.append(update.cursor.number))
        assert client.status.transport == "polling"
        assert client.status.source == "network"
        assert client.config("checkout/limits")["max_items"] == 1
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
        await server.publish(search={"pages": 1})
        await client.wait_for_version(4, timeout=DEADLINE_S)
        assert [(await server.receipt(n)).state for n in (2, 3, 4)] == ["applied", "applied", "unaffected"]
        await eventually(lambda: client.status.receipts_pending == 0)
        assert server.posted[0]["instance"] == client.status.instance
    assert versions == [3, 4]
    held = [query for _, path, query in server.requests if path.startswith("/v1/bundles") and "have" in query]
    assert held
    assert all(query["wait"] == ["25"] for query in held)


async def test_the_socket_comes_back_while_polling(server: Any, connect: Any) -> None:
    versions: list[int] = []
    async with connect() as client:
        client.on_version(lambda update: versions.append(update.cursor.number))
        await server.stop_stream()
        await eventually(lambda: client.status.transport == "polling")
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
        await server.start_stream()
        second = await server.connection(2)
        assert second.hello.subscriptions[0].have == server.authority.latest.cursor
        await eventually(lambda: client.status.transport == "websocket")
        await server.publish(checkout__limits={"max_items": 3})
        await client.wait_for_version(4, timeout=DEADLINE_S)
    assert versions == [3, 4]


async def test_polling_and_the_socket_go_on_from_one_state_when_both_find_the_server_first(server: Any, connect: Any) -> None:
    """Both tries of a first start learn the trust root in one moment."""
    up, answer, waiting, away = asyncio.Event(), server._answer, 0, 3

    async def starts_slowly(method: str, target: str, body: bytes) -> Any:
        nonlocal waiting, away
        if not up.is_set() and away > 0:
            away -= 1
            return HTTPStatus.SERVICE_UNAVAILABLE, {"code": "unavailable", "detail": "away"}
        waiting += 1
        await up.wait()
        return await answer(method, target, body)

    server._answer = starts_slowly
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    client, seen = connect(start_timeout=DEADLINE_S), []
    client.on_version(lambda update: seen.append((update.previous.number, update.cursor.number)))
    starting = asyncio.create_task(client.start())
    await eventually(lambda: waiting >= 2)
    up.set()
    await starting
    try:
        await eventually(lambda: client.status.transport == "polling")
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
        server.refuse_upgrade = None
        assert (await server.connection(1)).hello.subscriptions[0].have == server.authority.latest.cursor
        await eventually(lambda: client.status.transport == "websocket")
        await server.publish(checkout__limits={"max_items": 3})
        await client.wait_for_version(4, timeout=DEADLINE_S)
    finally:
        await client.close()
    assert seen == [(2, 3), (3, 4)]


async def test_a_polled_version_that_does_not_fit_is_rejected_and_not_asked_for_in_a_circle(server: Any, connect: Any) -> None:
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    async with connect() as client:
        client.bind("checkout/limits", dict[str, int])
        await server.publish(checkout__limits={"max_items": "x"})
        assert (await server.receipt(3)).state == "rejected"
        asked = len(
            [
                1
                for _, path, query in server.requests
                if path.startswith("/v1/bundles") and query.get("have") == [str(client.cursor)]
            ]
        )
        assert asked <= 3
        assert client.config("checkout/limits")["max_items"] == 1


async def test_a_polled_environment_that_does_not_exist_fails_the_start(server: Any, connect: Any) -> None:
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    with pytest.raises(NotFound):
        async with connect(environment="other"):
            pytest.fail("started")


async def test_a_token_that_polling_is_refused_with_stops_the_client(server: Any, connect: Any) -> None:
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    server.bundle_status = (HTTPStatus.UNAUTHORIZED, {"code": "unauthenticated", "detail": "the token was revoked"})
    with pytest.raises(Unauthenticated, match="revoked"):
        async with connect():
            pytest.fail("started")


async def test_a_receipt_that_the_server_will_not_take_holds_up_no_other(server: Any, connect: Any) -> None:
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    server.poison = {2}
    async with connect() as client:
        await server.publish(checkout__limits={"max_items": 2})
        assert (await server.receipt(3)).state == "applied"
        await eventually(lambda: client.status.receipts_pending == 0)
    assert {one.number for one in server.receipts} == {3}


async def test_a_post_that_failed_is_not_settled_by_the_next_one(server: Any, connect: Any) -> None:
    """An acknowledgement is for all receipts up to its number, and a post's success is one."""
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    server.deaf_to = {2}
    async with connect() as client:
        await eventually(lambda: server.refused > 0)
        server.deaf_to = set()
        await server.publish(checkout__limits={"max_items": 2})
        assert (await server.receipt(3)).state == "applied"
        assert (await server.receipt(2)).state == "applied"
        await eventually(lambda: client.status.receipts_pending == 0)


async def test_a_poll_that_is_not_held_is_not_repeated_in_a_circle(server: Any, connect: Any) -> None:
    server.refuse_upgrade = HTTPStatus.BAD_GATEWAY
    server.holds = False
    async with connect() as client:
        await eventually(lambda: client.status.receipts_pending == 0)
        assert len([1 for _, path, _ in server.requests if path.startswith("/v1/bundles")]) <= 3


@pytest.mark.parametrize("settled_us", [0, 10**15])
async def test_polling_that_was_good_is_resumed_soon_and_polling_that_fails_at_once_ever_later(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, settled_us: int
) -> None:
    monkeypatch.setattr("heliograph.client._connection.SETTLED_US", settled_us)
    monkeypatch.setattr("heliograph.client._transport_polling.PAUSE_S", 0.01)
    server.refuse_upgrade, server.holds = HTTPStatus.BAD_GATEWAY, False
    async with connect() as client:
        failures = record_failures(client._engine.connection._polling_backoff, monkeypatch)
        first: list[int] = []
        for number in (3, 4, 5):
            since = len(failures)
            server.bundle_status = (HTTPStatus.SERVICE_UNAVAILABLE, {"code": "unavailable", "detail": "away"})
            first.append((await eventually(lambda since=since: failures[since:]))[0])
            server.bundle_status = None
            server.authority.publish(checkout__limits={"max_items": number})
            await client.wait_for_version(number, timeout=DEADLINE_S)
    assert first == [0, 0, 0] if settled_us == 0 else 0 == first[0] < first[1] < first[2]


def record_failures(backoff: Backoff, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many it counted at each of its pauses."""
    counted: list[int] = []
    delay = backoff.delay

    def recorded(at_least_s: float = 0.0) -> float:
        counted.append(backoff.failures)
        return delay(at_least_s)

    monkeypatch.setattr(backoff, "delay", recorded)
    return counted


# --- the disk -----------------------------------------------------------------------------------------------------------------------------


async def test_a_start_with_everything_down_runs_on_the_disk_copy_and_says_so(server: Any, connect: Any) -> None:
    async with connect() as client:
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
        first = client.status
    await server.stop()
    async with connect() as client:
        status = client.status
        assert client.config("checkout/limits")["max_items"] == 2
        assert (status.source, status.transport, status.connected) == ("disk", "disk", False)
        assert status.cursor == first.cursor
        assert status.last_error is not None
        assert status.instance == first.instance
        assert status.incarnation > first.incarnation


async def test_a_restart_replays_nothing_and_goes_on_where_it_was(server: Any, connect: Any) -> None:
    async with connect() as client:
        await server.publish(checkout__limits={"max_items": 2})
        await client.wait_for_version(3, timeout=DEADLINE_S)
    seen: list[tuple[int | None, int]] = []
    client = connect()
    client.on_version(lambda update: seen.append((update.previous and update.previous.number, update.cursor.number)))
    async with client:
        await server.publish(checkout__limits={"max_items": 3})
        await client.wait_for_version(4, timeout=DEADLINE_S)
        assert client.status.source == "network"
    assert seen == [(3, 4)]
    assert server.hellos[-1].subscriptions[0].have.number == 3


async def test_a_receipt_that_may_have_been_lost_in_a_crash_is_given_again(server: Any, connect: Any) -> None:
    async with connect():
        first = await server.receipt(2)
    server.receipts.clear()
    async with connect():
        again = await server.receipt(2)
    assert (again.state, again.version, again.applied_at_us) == ("applied", first.version, first.applied_at_us)


async def test_a_start_without_network_and_without_a_copy_says_what_to_do(server: Any, connect: Any) -> None:
    await server.stop()
    with pytest.raises(TimedOut, match="cache_dir"):
        async with connect(start_timeout=0.2):
            pytest.fail("started")


async def test_require_network_does_not_start_from_the_disk(server: Any, connect: Any) -> None:
    async with connect():
        pass
    await server.stop()
    with pytest.raises(TimedOut):
        async with connect(require_network=True, start_timeout=0.2):
            pytest.fail("started")


async def test_a_silent_server_does_not_hold_up_a_start_from_the_disk(server: Any, connect: Any) -> None:
    async with connect():
        pass

    async def silent(_: Any) -> None: ...

    server.script = silent
    async with connect() as client:
        assert client.status.source == "disk"


async def test_a_damaged_copy_is_passed_over_and_said(server: Any, connect: Any, tmp_path: Path) -> None:
    async with connect():
        pass
    [copy] = tmp_path.glob("*/slot-0/state-*")
    copy.write_bytes(copy.read_bytes()[:-10])
    async with connect() as client:
        assert client.status.disk == "damaged"
        assert client.config("search")["pages"] == 10
        assert server.hellos[-1].subscriptions[0].have is None


async def test_a_copy_that_somebody_changed_with_its_digest_does_not_verify(server: Any, connect: Any, tmp_path: Path) -> None:
    from heliograph.client._disk import read_copy, write_copy

    async with connect():
        pass
    [copy] = tmp_path.glob("*/slot-0/state-*")
    body = await asyncio.to_thread(read_copy, copy)
    assert body is not None
    assert b"max_items" in body
    await asyncio.to_thread(write_copy, copy, body.replace(b"EUR", b"USD"))
    await server.stop()
    with pytest.raises(TimedOut):
        async with connect(start_timeout=0.2):
            pytest.fail("started on a changed copy")


async def test_a_copy_that_no_longer_fits_the_application_is_not_used(server: Any, connect: Any) -> None:
    async with connect():
        pass
    await server.stop()
    client = connect(start_timeout=0.2)
    client.bind("checkout/limits", dict[str, str])
    with pytest.raises(TimedOut):
        async with client:
            pytest.fail("started")


async def test_without_a_cache_dir_nothing_is_written(server: Any, connect: Any, tmp_path: Path) -> None:
    async with connect(cache_dir=None) as client:
        assert client.status.disk == "off"
    assert list(tmp_path.iterdir()) == []


async def test_a_cache_dir_that_cannot_be_used_is_no_reason_to_stay_away(server: Any, connect: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    async with connect(cache_dir=tmp_path / "file") as client:
        assert client.status.disk == "unwritable"
        assert client.config("search")["pages"] == 10


@pytest.mark.skipif(sys.platform == "win32", reason="msvcrt locks there")
async def test_a_file_system_without_locks_is_no_reason_to_stay_away(
    server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    async with connect() as client:
        assert client.status.disk == "unwritable"
        assert client.config("search")["pages"] == 10


async def test_two_clients_on_one_cache_dir_are_two_instances_and_the_second_reads_the_firsts_copy(
    server: Any, connect: Any
) -> None:
    async with connect():
        pass
    await server.stop()
    async with connect() as first, connect() as second:
        assert first.status.instance != second.status.instance
        assert second.config("search")["pages"] == 10
        assert second.status.source == "disk"


PROCESS = """
import asyncio, sys
from heliograph import Heliograph
async def main():
    async with Heliograph(sys.argv[1], token=sys.stdin.readline().strip(), namespace="shop", environment="production", cache_dir=sys.argv[2]) as client:
        print(client.status.instance, client.config("search")["pages"], flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


async def test_two_processes_on_one_cache_dir(server: Any, tmp_path: Path) -> None:
    children = [
        await start(sys.executable, "-c", PROCESS, server.url, str(tmp_path), stdin=PIPE, stdout=PIPE) for _ in range(2)
    ]
    try:
        said = []
        for child in children:
            child.stdin.write(server.authority.token().encode() + b"\n")
            said.append((await asyncio.wait_for(child.stdout.readline(), DEADLINE_S)).decode().split())
        assert said[0][0] != said[1][0]
        assert [one[1] for one in said] == ["10", "10"]
        assert {hello.instance for hello in server.hellos} == {one[0] for one in said}
    finally:
        for child in children:
            child.stdin.write(b"\n")
            await asyncio.wait_for(child.wait(), DEADLINE_S)
