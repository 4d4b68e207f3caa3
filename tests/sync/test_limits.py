"""Who is let in, and how much one client may ask for: each limit met on real sockets, with the others served as ever."""

from __future__ import annotations

import asyncio
import resource
import socket
import time

import msgspec
import pytest
from tests.sync.bare import DEADLINE_S, Node, Raw, frame, running

from heliograph.core import frames
from heliograph.services.sync.admission import Buckets, place_of

HERE, THERE = "127.0.0.1", "127.0.0.2"
BEAT = frame(0x1, msgspec.json.encode(frames.Heartbeat(sent_at_us=7)))


async def refused(node: Node, address: str = HERE) -> tuple[int, int, str]:
    """Status, `Retry-After` and the problem's detail."""
    raw = await node.dial(address)
    raw.write(node.request())
    head = (await raw.head()).split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    told = msgspec.json.decode(await raw.reader.read())
    await raw.leave()
    assert told["status"] == int(head[0].split(" ")[1])
    return told["status"], int(headers["retry-after"]), told["detail"]


async def cut_off(raw: Raw) -> bool:
    """Whether the connection is closed without a word."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await raw.reader.read() == b""
    except ConnectionError:
        return True


# --- the door ----------------------------------------------------------------------------------------------------------------------


async def test_connections_of_one_address_are_limited_and_another_s_are_not():
    async with running(max_connections_per_address=2) as node:
        async with node.open(), node.open():
            status, after, detail = await refused(node)
            assert (status, after) == (429, 10)
            assert "one address" in detail
            async with node.open(address=THERE) as other:
                await other.alive()
        await node.empty()
        await node.serves()
        assert node.value("connections_refused_total", reason="address") == 1


async def test_attempts_of_one_address_are_limited_and_those_that_are_in_stay():
    async with running(connects_per_address_s=1) as node, node.open() as inside:
        answers = []
        for _ in range(12):
            raw = await node.dial()
            raw.write(node.request())
            answers.append((await raw.head()).split(" ")[1])
            await raw.leave()
        assert answers.count("429") >= 5
        assert answers[0] == "101"
        status, after, detail = await refused(node)
        assert (status, detail) == (429, "too many attempts to connect from one address")
        assert after >= 1
        async with node.open(address=THERE) as other:
            await other.alive()
        await inside.alive()


async def test_a_proxy_s_address_is_everybody_s():
    async with (
        running(connects_per_address_s=0.001, max_connections_per_address=1, proxy_addresses="10.0.0.1, 127.0.0.1") as node,
        node.open() as one,
        node.open() as two,
        node.open() as three,
    ):
        for raw in (one, two, three):
            await raw.alive()


async def test_more_attempts_than_can_be_answered_are_cut_off_without_a_word():
    async with running(connects_per_address_s=1) as node:
        node.admission._told = Buckets(0.001, 0)  # one word
        answers = []
        for _ in range(12):
            raw = await node.dial()
            raw.write(node.request())
            try:
                answers.append((await raw.head()).split(" ")[1])
            except (asyncio.IncompleteReadError, ConnectionError):
                answers.append("silence")
            await raw.leave()
        assert answers[0] == "101"
        assert answers.count("429") == 1
        assert answers[-1] == "silence"
        async with node.open(address=THERE) as other:
            await other.alive()


async def test_a_full_node_says_when_to_come_back():
    async with running(max_connections=1) as node, node.open() as inside:
        assert (await refused(node))[:2] == (503, 5)
        await inside.alive()
        assert node.value("connections_refused_total", reason="node") == 1


async def test_a_node_whose_loop_is_late_takes_nobody_new_and_keeps_all():
    async with running(busy_lag_s=0.2) as node, node.open() as inside:
        for _ in range(30):
            node.admission.lagged(1.0)
        status, after, detail = await refused(node)
        assert (status, detail) == (503, "this node is busy")
        assert 1 <= after <= 7
        await inside.alive()
        for _ in range(60):
            node.admission.lagged(0.0)
        await node.serves()
        assert node.value("connections_refused_total", reason="lag") == 1


async def test_one_late_turn_of_the_loop_refuses_nobody():
    async with running(busy_lag_s=0.2) as node:
        node.admission.lagged(1.0)
        await node.serves()


async def test_a_node_that_cannot_make_receipts_durable_takes_nobody_new():
    async with running(busy_backlog=10) as node, node.open() as inside:
        waiting = node.outbox._waiting
        node.outbox._waiting = [*waiting, *([(None, None)] * 20)]  # type: ignore[list-item]
        assert (await refused(node))[0] == 503
        node.outbox._waiting = waiting
        await inside.alive()
        await node.serves()


async def test_those_who_come_and_ask_for_nothing_must_go_when_there_are_too_many():
    async with running(max_opening=3) as node:
        idle = [await node.dial() for _ in range(5)]
        assert await cut_off(idle[0])
        assert await cut_off(idle[1])
        await node.serves()
        assert node.value("connections_refused_total", reason="opening") >= 2
        for raw in idle:
            await raw.leave()


async def test_without_free_descriptors_callers_are_let_out_and_the_node_lives_on():
    async with running() as node, node.open() as inside:
        callers = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(30)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as probe:
            lowest = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 5, hard))
        try:
            await node.until(lambda: node.value("connections_refused_total", reason="descriptors") >= 20)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for caller in callers:
            caller.close()
        await inside.alive()
        await node.serves()


# --- a token's share ---------------------------------------------------------------------------------------------------------------


async def test_connections_of_one_token_are_limited_and_told_when_to_come_back():
    async with running(max_connections_per_token=1) as node:
        async with node.open() as inside:
            async with node.open(hello=False) as second:
                code, reason = await second.closed()
            assert (code, frames.retry_after(reason)) == (4002, 10)
            async with node.open(token=node.known.add("other")) as other:
                await other.alive()
            await inside.alive()
        await node.empty()
        await node.serves()


async def test_a_renewed_token_takes_its_place_and_leaves_the_old_one_s():
    async with running(max_connections_per_token=1) as node, node.open() as first:
        new = node.known.add("new")
        first.text(msgspec.json.encode(frames.Renew(token=new)))
        await node.until(lambda: node.admission._tokens == {"new": 1})
        async with node.open() as second, node.open(hello=False, token=new) as third:
            assert (await third.closed())[0] == 4002
            second.text(msgspec.json.encode(frames.Renew(token=new)))
            assert (await second.until(frames.ErrorFrame)).code == "throttled"
            assert node.admission._tokens == {"new": 1, "test": 1}
    assert node.admission._tokens == {}


async def test_many_renewals_at_once_are_one():
    async with running() as node, node.open() as raw:
        raw.write(frame(0x1, msgspec.json.encode(frames.Renew(token=node.token))) * 200)
        await raw.alive()
        assert len(node.stream._renewing) <= 1
        assert len(node.stream._tasks) <= 1


# --- what one connection may send --------------------------------------------------------------------------------------------------


async def test_who_sends_too_fast_is_read_later_and_loses_nothing():
    async with running(frames_per_s=50) as node, node.open() as raw, node.open() as other:
        for number in range(540):
            raw.text(msgspec.json.encode(frames.Heartbeat(sent_at_us=number)))
        told = [(await raw.until(frames.HeartbeatAck)).echo_us for _ in range(540)]
        assert told == list(range(540))
        assert node.value("clients_throttled_total") >= 1
        await other.alive()


async def test_bytes_count_as_frames_do():
    async with running(bytes_per_s=20_000) as node, node.open() as raw:
        note = "x" * 1000
        for _ in range(210):
            raw.text(f'{{"type":"heartbeat","sent_at_us":7,"note":"{note}"}}'.encode())
        for _ in range(210):
            await raw.until(frames.HeartbeatAck)
        assert node.value("clients_throttled_total") >= 1


@pytest.mark.parametrize(
    "flood",
    [frame(0x9, b"x") * 60_000, frame(0xA) * 60_000, BEAT * 20_000],
    ids=["pings", "pongs", "messages"],
)
async def test_a_flood_ends_its_connection_with_a_limit_s_code(flood):
    async with running(frames_per_s=2) as node, node.open() as other:
        async with node.open() as raw:
            raw.write(flood)
            code, _ = await raw.closed()
            assert code in (4104, 1006)  # reset on what was sent after, the code may not arrive
        assert node.value("connections_closed_total", code="4104") == 1
        await other.alive()


async def test_a_flood_of_pings_that_reads_no_pong_costs_no_memory():
    async with running() as node, node.open() as raw:
        raw.writer.transport.pause_reading()
        [connection] = node.hub._connections.values()
        raw.write(frame(0x9, b"x" * 125) * 100_000)
        await node.until(lambda: connection.paused_us or not connection.pipe.open)
        await node.serves()
        assert connection.pipe.queued() < 256 * 1024
        raw.writer.transport.abort()


async def test_a_flood_of_resyncs_is_answered_once_in_a_while():
    """A frame of forty bytes asks for a megabyte: those that come while one is on its way are one."""
    async with running(frames_per_s=10_000) as node:
        node.publish(**{f"c{number}": {"text": "x" * 1000} for number in range(500)})
        async with node.open() as raw:
            await raw.until(frames.SnapshotFrame)
            raw.write(frame(0x1, msgspec.json.encode(frames.Resync(subscription=1))) * 500)
            await node.until(lambda: node.value("frames_received_total", type="text") >= 501)
            await node.serves()
            assert node.value("resyncs_total", cause="asked") <= 10


async def test_what_a_flood_of_resyncs_is_answered_counts_as_its_own():
    """A view that goes in one piece would be sent each time: its bytes spend the allowance of who asks, and then he is not read."""
    async with running(bytes_per_s=4_000, frames_per_s=10_000) as node:
        node.publish(**{f"c{number}": {"text": "x" * 1000} for number in range(40)})
        async with node.open() as raw:
            await raw.until(frames.SnapshotFrame)
            raw.write(frame(0x1, msgspec.json.encode(frames.Resync(subscription=1))) * 500)
            await node.until(lambda: node.value("clients_throttled_total") >= 1)
            await node.serves()
            assert 1 <= node.value("resyncs_total", cause="asked") <= 5
            assert node.value("slow_consumers") == 0


async def test_a_resync_asked_for_again_and_again_behind_a_full_socket_is_owed_once():
    async with running() as node:
        node.publish(**{f"c{number}": {"text": "x" * 1000} for number in range(2000)})
        async with node.open(hello=False) as raw:
            raw.text(raw.hello())
            raw.writer.transport.pause_reading()
            raw.write(frame(0x1, msgspec.json.encode(frames.Resync(subscription=1))) * 100)
            await node.until(lambda: node.value("slow_consumers") == 1)
            [connection] = node.hub._connections.values()
            assert connection.pipe.queued() < 300 * 1024
            raw.writer.transport.resume_reading()
            await raw.alive()
            assert node.value("resyncs_total", cause="owed") + node.value("resyncs_total", cause="asked") <= 10


# --- parts -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::1", True),
        ("not:an:address", "not:an:address", True),
    ],
)
def test_an_address_is_all_of_ipv4_and_64_bits_of_ipv6(one, other, same):
    assert (place_of(one) == place_of(other)) is same


def test_a_bucket_gives_its_burst_then_its_rate_and_says_how_long_to_wait():
    buckets = Buckets(10, 20)
    assert [buckets.take("a", 0.0) for _ in range(20)] == [0.0] * 20
    waits = [buckets.take("a", 0.0) for _ in range(3)]
    assert waits[-1] > 0
    assert buckets.take("b", 0.0) == 0
    assert buckets.take("a", 0.0 + waits[-1]) == 0
    assert buckets.take("a", 0.0 + waits[-1]) > 0


def test_the_table_of_buckets_has_a_bound_and_forgets_who_was_not_seen_for_longest():
    buckets = Buckets(1, 1, most=100)
    for number in range(1000):
        buckets.take(str(number), 0.0)
        buckets.take("always", 0.0)
    assert len(buckets) == 100
    assert buckets.take("always", 0.0) > 0


def test_no_limit_is_no_limit_and_keeps_no_table():
    buckets = Buckets(0, 0)
    assert all(buckets.take("a", time.monotonic()) == 0 for _ in range(1000))
    assert len(buckets) == 0
