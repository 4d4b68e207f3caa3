"""Slow and dead clients on real sockets: out of the fan-out while full, one frame when they read again, closed in time, and never a growing buffer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import tracemalloc

import msgspec
import pytest
from tests.sync.bare import DEADLINE_S, Node, Raw, frame, running

from heliograph.core import frames
from heliograph.core.replica import Replica
from heliograph.services.sync.wheel import Wheel


async def stalled(node: Node) -> Raw:
    """A client with a small socket that says hello and then never reads."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", node.port))
    reader, writer = await asyncio.open_connection(sock=sock)
    raw = Raw(node, reader, writer)
    raw.write(node.request())
    await raw.head()
    writer.transport.pause_reading()
    raw.text(raw.hello())
    return raw


async def test_many_who_never_read_cost_no_memory_and_no_version_of_the_others():
    """Fifty clients are offered a hundred megabytes."""
    async with running(stall_s=600) as node, node.open() as good:
        held = node.replica()
        idle = [await stalled(node) for _ in range(50)]
        await node.until(lambda: len(node.hub) == 51)
        number = 0
        while node.value("slow_consumers") < 50:
            number = node.publish(big={"text": "y" * 20_000, "n": number})
            await good.follow(held, number)
        queued = [connection.pipe.queued() for connection in node.hub._connections.values()]
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(100):
            number = node.publish(big={"text": "y" * 20_000, "n": number})
            assert await good.follow(held, number) == [frames.DeltaFrame]
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [connection.pipe.queued() for connection in node.hub._connections.values()] == queued
        assert sum(queued) < 50 * 64 * 1024
        assert not any(connection.pipe._held for connection in node.hub._connections.values())
        assert after - before < 8 * 1024 * 1024  # the history and the past that the node keeps anyway
        for raw in idle:
            raw.writer.transport.abort()


@pytest.mark.parametrize(("encrypted", "size"), [(False, 100_000), (False, 50_000), (True, 50_000)])
async def test_who_reads_again_gets_exactly_one_frame_to_the_head(encrypted, size, authority):
    """Small enough that a frame is sent at once, its last one is taken in part; or so large that it goes by itself."""
    async with running(authority if encrypted else None, stall_s=600) as node, node.open() as slow, node.open() as good:
        held, mine = node.replica(), node.replica()
        slow.writer.transport.pause_reading()
        number = 0
        while node.value("slow_consumers") < 1:
            number = node.publish(big={"text": "y" * size, "n": number})
            await good.follow(held, number)
        reached = min(each.cursor.number for session in node.hub._connections for each in session.subscribers.values())
        for index in range(50):
            number = node.publish(big={"text": "small", "n": index})
            await good.follow(held, number)
        slow.writer.transport.resume_reading()
        await slow.follow(mine, reached)
        assert len(await slow.follow(mine, number)) == 1
        assert mine.configs == {"big": {"text": "small", "n": 49}}
        await slow.alive()
        assert node.value("slow_consumers") == 0
        number = node.publish(big={"n": 0})
        assert await slow.follow(mine, number) == [frames.DeltaFrame]


async def test_the_parts_of_a_large_snapshot_wait_as_they_are_and_one_by_one():
    """Ten megabytes for a client that never reads: one part is in the socket's buffer, the others are the node's own."""
    async with running(stall_s=600) as node:
        number = node.publish(**{f"c{index}": {"text": "z" * 100_000} for index in range(100)})
        shared = node.environment.frames(1, ("",), None)
        idle = [await stalled(node) for _ in range(5)]
        await node.until(lambda: node.value("slow_consumers") == 5)
        for connection in node.hub._connections.values():
            assert connection.pipe.queued() <= max(map(len, shared)) + 14
            assert not connection.pipe._held
            assert all(any(part is one for one in shared) for part in connection.transfer.parts)
            assert len(connection.transfer.parts) >= len(shared) - 2
        idle[0].writer.transport.resume_reading()
        mine = node.replica()
        await idle[0].follow(mine, number)
        assert len(mine.configs) == 100
        await idle[0].alive()
        for raw in idle:
            raw.writer.transport.abort()


async def test_who_never_reads_is_closed_in_time_and_leaves_nothing():
    async with running(stall_s=0.2, slow_bytes_per_s=10_000_000) as node:
        node.publish(big={"text": "y" * 1_000_000})
        raw = await stalled(node)
        await node.until(lambda: node.value("connections_closed_total", code="4001") == 1)
        await node.empty()
        assert node.value("slow_consumers") == 0
        await node.serves()
        raw.writer.transport.abort()


async def test_who_reads_a_byte_at_a_time_is_closed_too():
    async with running(stall_s=0.2, slow_bytes_per_s=10_000_000) as node:
        node.publish(big={"text": "y" * 1_000_000})
        raw = await stalled(node)
        reading = socket.socket(fileno=os.dup(raw.writer.transport.get_extra_info("socket").fileno()))
        await node.until(lambda: node.value("slow_consumers") == 1)
        async with asyncio.timeout(DEADLINE_S):
            while len(node.hub):
                with contextlib.suppress(BlockingIOError):
                    assert reading.recv(1)
                await asyncio.sleep(0.01)
        assert node.value("connections_closed_total", code="4001") == 1
        reading.close()
        raw.writer.transport.abort()


async def test_a_slow_line_that_moves_is_given_its_time():
    """Each part has time for its size; a bound on the whole would cut off a slow line again and again."""
    async with running(stall_s=0.3, slow_bytes_per_s=8 * 1024) as node:
        number = node.publish(**{f"c{index}": {"text": "z" * 100_000} for index in range(20)})
        raw = await stalled(node)
        await node.until(lambda: node.value("slow_consumers") == 1)
        began = asyncio.get_running_loop().time()
        await node.until(lambda: asyncio.get_running_loop().time() > began + 1.5)
        assert len(node.hub) == 1
        raw.writer.transport.resume_reading()
        await raw.follow(mine := node.replica(), number)
        assert len(mine.configs) == 20
        await raw.leave()


async def test_nothing_is_answered_behind_a_full_socket_and_the_last_of_it_afterwards():
    """Receipts are taken and become durable, pings are heard; one acknowledgement and one pong tell it all."""
    async with running(stall_s=600) as node, node.open() as raw:
        held = node.replica()
        await raw.follow(held, 1)
        raw.writer.transport.pause_reading()
        [connection] = node.hub._connections.values()
        for seq in range(50):  # in one piece with what fills the socket, so that they are in the buffer by then
            raw.text(msgspec.json.encode(receipt(held, seq)))
        raw.write(frame(0x9, b"first") + frame(0x9, b"last"))
        while not connection.paused_us:
            node.publish(big={"text": "y" * 50_000, "n": node.history.latest.cursor.number})
        await node.until(lambda: connection.durable == 49 or connection.taken < 49)
        queued = connection.pipe.queued()
        await asyncio.sleep(0)
        assert connection.pipe.queued() == queued
        raw.writer.transport.resume_reading()
        async with asyncio.timeout(DEADLINE_S):
            while (await raw.until(frames.ReceiptAck)).seq < 49:
                pass
        await raw.alive()


def receipt(held: Replica, seq: int) -> frames.Receipt:
    assert held.cursor
    cursor = held.cursor
    return frames.Receipt(
        seq=seq, subscription=1, epoch=cursor.epoch, number=cursor.number, version=cursor.version, state="applied"
    )


# --- the dead ----------------------------------------------------------------------------------------------------------------------


async def test_who_is_not_heard_of_is_pinged_and_closed_when_it_stays_silent():
    async with running(heartbeat_s=0.5) as node, node.open() as raw:
        pings = 0
        while (told := await raw.next())[0] != 0x8:
            pings += told[0] == 0x9
        assert pings == 1
        assert int.from_bytes(told[1][:2], "big") == 4004
        await node.empty()


async def test_who_answers_pings_is_alive():
    async with running(heartbeat_s=1.5) as node, node.open() as raw:
        pings = 0
        while pings < 2:
            opcode, payload = await raw.next()
            assert opcode != 0x8
            if opcode == 0x9:
                pings += 1
                raw.write(frame(0xA, payload))
        await raw.alive()
        assert node.value("pings_sent_total") >= 2


async def test_a_node_that_was_not_there_itself_asks_before_it_closes_anybody():
    """Stopped for an hour, as a virtual machine may be: its clients' words are in its sockets."""
    async with running() as node, node.open() as raw:
        [connection] = node.hub._connections.values()
        connection.heard_us -= 3600 * 1_000_000
        connection.pinged_us = connection.heard_us  # its clock may have begun later than that
        node.hub._look_again(connection)
        while (told := await raw.next())[0] != 0x9:
            assert told[0] != 0x8
        raw.write(frame(0xA, told[1]))
        await raw.alive()


async def test_who_says_no_hello_is_closed():
    async with running(hello_s=0.2) as node, node.open(hello=False) as raw:
        assert (await raw.closed())[0] == 4106


# --- the wheel ---------------------------------------------------------------------------------------------------------------------


class Item:
    def __init__(self) -> None:
        self.slot = -1


@pytest.fixture
def wheel() -> Wheel[Item]:
    return Wheel(0, tick_us=10, slots=8)


def test_each_is_due_once_at_its_tick(wheel):
    items = [Item() for _ in range(5)]
    for number, item in enumerate(items):
        wheel.put(item, number * 10)
    assert list(wheel.due(5)) == []
    assert set(wheel.due(19)) == {items[0]}
    assert set(wheel.due(59)) == set(items[1:])
    assert list(wheel.due(10_000)) == []


def test_looking_costs_what_is_due_and_not_what_is_there():
    wheel: Wheel[Item] = Wheel(0, tick_us=10, slots=1000)
    for number in range(10_000):
        wheel.put(Item(), number % 5000)
    seen = [sum(1 for _ in wheel.due(tick * 10)) for tick in range(1, 11)]
    assert sum(seen) == 200


def test_put_again_moves_and_dropped_is_never_due(wheel):
    moved, dropped = Item(), Item()
    for item in (moved, dropped):
        wheel.put(item, 10)
    wheel.put(moved, 40)
    wheel.drop(dropped)
    wheel.drop(dropped)
    assert list(wheel.due(30)) == []
    assert list(wheel.due(60)) == [moved]


def test_beyond_a_turn_it_comes_at_the_farthest_slot_to_be_put_again(wheel):
    item = Item()
    wheel.put(item, 1_000_000)
    assert list(wheel.due(80)) == [item]


def test_a_long_pause_finds_all_and_others_may_come_and_go_meanwhile(wheel):
    items = [Item() for _ in range(20)]
    for number, item in enumerate(items):
        wheel.put(item, number)
    late = Item()
    found = []
    for item in wheel.due(1_000_000):
        found.append(item)
        if len(found) == 1:
            wheel.drop(next(each for each in items if each.slot >= 0))
            wheel.put(late, 1_000_000)
    assert len([item for item in found if item is not late]) == 19
    assert found.count(late) + list(wheel.due(2_000_000)).count(late) == 1


def segments_received(sock: socket.socket) -> int:
    """With data; `tcpi_data_segs_in` of linux/tcp.h."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 152)[0])


async def test_the_welcome_and_the_first_state_are_one_write():
    async with running() as node:
        node.publish(limits={"most": 3})
        raw = await node.dial()
        raw.write(node.request())
        await raw.head()
        before = segments_received(raw.writer.get_extra_info("socket"))
        raw.text(Raw.hello())
        assert isinstance(await raw.frame(), frames.Welcome)
        assert isinstance(await raw.frame(), frames.SnapshotFrame)
        assert segments_received(raw.writer.get_extra_info("socket")) == before + 1
        await raw.leave()
