"""Work in slices and large frames in parts: how much of each between two turns of the loop, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from heliograph.services.sync import turns
from heliograph.services.sync.transfers import PACED_BYTES, Transfer, Transfers, is_large
from heliograph.services.sync.turns import Turns
from heliograph.telemetry.metrics import Metrics


class Day:
    """A clock that stands still but for work, and what was done in each turn of the loop."""

    def __init__(self, cost_us: int = 1000, *, fanning: bool = False) -> None:
        self.at_us = 0
        self.cost_us = cost_us
        self.fanning = fanning
        self.turns = Turns(lambda: self.fanning, lambda: self.at_us)
        self.done: list[int] = []

    def work(self, number: int) -> None:
        self.at_us += self.cost_us
        self.done.append(number)

    async def until_done(self) -> list[int]:
        """How much was done in each turn."""
        seen = [len(self.done)]
        while len(self.turns):
            await asyncio.sleep(0)
            seen.append(len(self.done) - sum(seen))
        return [each for each in seen if each]


async def test_one_alone_is_served_at_once():
    day = Day()
    day.turns.do(lambda: day.work(1))
    assert day.done == [1]


@pytest.mark.parametrize(("fanning", "most"), [(False, turns.SLICE_US // 1000), (True, turns.SLICE_BEHIND_US // 1000)])
async def test_a_crowd_is_served_in_order_and_in_slices(fanning, most):
    day = Day(fanning=fanning)
    for number in range(40):
        day.turns.do(lambda number=number: day.work(number))
    seen = await day.until_done()
    assert max(seen) == most
    assert day.done == list(range(40))


async def test_each_turn_of_the_loop_begins_a_slice_anew():
    day = Day(cost_us=turns.SLICE_US)
    for number in range(3):
        day.turns.do(lambda number=number: day.work(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert day.done[-1] == number


async def test_what_fails_keeps_nobody_from_their_turn():
    day = Day()
    for number in range(10):
        day.turns.do(lambda: {}["nobody"])
        day.turns.do(lambda number=number: day.work(number))
    await day.until_done()
    assert day.done == list(range(10))


# --- parts --------------------------------------------------------------------------------------------------------------------------

PART = b"x" * (PACED_BYTES + 1)


@dataclass(eq=False)
class Client:
    """Its socket takes ``takes`` parts, then is full until it has read."""

    node: Node
    takes: int
    transfer: Transfer | None = None
    paused_us: int = 0
    got: list[bytes] = field(default_factory=list)
    through: bool = False

    @property
    def pipe(self) -> Client:
        return self

    def send(self, data: bytes) -> None:
        self.got.append(data)
        if len(self.got) > self.takes:
            self.paused_us = 1

    def reads(self) -> None:
        self.paused_us, self.takes = 0, len(self.got)
        self.node.transfers.resumed(self)


class Node:
    def __init__(self, limit: int) -> None:
        self.day = Day()
        self.transfers: Transfers[Client] = Transfers(self.day.turns, limit, Metrics(), self.through)

    def through(self, client: Client) -> None:
        client.through = True

    def client(self, parts: int = 4, takes: int = 0) -> Client:
        client = Client(self, takes)
        self.transfers.begin(client, [PART] * parts)
        return client

    async def rest(self) -> None:
        """Until nobody can go on by themselves."""
        while len(self.day.turns):
            await asyncio.sleep(0)


async def test_a_part_goes_when_the_one_before_was_taken():
    node = Node(limit=100 * len(PART))
    client = node.client()
    for number in range(1, 5):
        await node.rest()
        assert (len(client.got), client.through) == (number, False)
        client.reads()
    assert client.through
    assert node.transfers.unread == 0


async def test_a_fast_one_is_through_while_a_slow_one_has_not_begun_to_read():
    node = Node(limit=100 * len(PART))
    slow, fast = node.client(), node.client(takes=4)
    await node.rest()
    assert fast.through
    assert len(slow.got) == 1


async def test_what_is_unread_is_bounded_and_everybody_is_through_in_the_end():
    node = Node(limit=3 * len(PART))
    clients = [node.client() for _ in range(20)]
    for _ in range(200):
        await node.rest()
        assert node.transfers.unread <= 3 * len(PART)
        for client in clients:
            if client.paused_us:
                client.reads()
                break
    assert all(client.through for client in clients)
    assert {len(client.got) for client in clients} == {4}


async def test_who_waits_in_line_takes_turns_with_who_goes_on():
    node = Node(limit=len(PART))
    first, second = node.client(), node.client()
    await node.rest()
    assert (len(first.got), len(second.got)) == (1, 0)
    first.reads()
    await node.rest()
    assert (len(first.got), len(second.got)) == (1, 1)


async def test_room_that_a_lost_one_held_is_given_to_the_next():
    node = Node(limit=len(PART))
    lost, gone, last = node.client(), node.client(), node.client()
    await node.rest()
    node.transfers.ended(gone)
    node.transfers.ended(lost)
    await node.rest()
    assert (len(gone.got), len(last.got)) == (0, 1)


async def test_a_part_above_the_limit_goes_when_nothing_else_does():
    node = Node(limit=1)
    client = node.client(parts=1)
    await node.rest()
    client.reads()
    assert client.through


def test_what_is_large():
    assert is_large([b"", b""])
    assert is_large([PART])
    assert not is_large([b"x" * PACED_BYTES])
