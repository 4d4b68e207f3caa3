"""What a follower makes of single records, in memory: the log and the registry say what a test has them say, in the turn of the loop that it chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.sync.in_memory import ENVIRONMENT, NAMESPACE, Node, Region, StillLoop

from heliograph.core.errors import NotFound
from heliograph.core.events import DeletedEvent, HeadEvent, VersionEvent
from heliograph.core.records import Cursor, Signed
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.registry import State

UNREADABLE = Signed(payload="no record", signatures=())


@pytest.fixture
def loop() -> Iterator[StillLoop]:
    loop = StillLoop()
    yield loop
    assert not loop.faults
    loop.close()


@pytest.fixture
def region() -> Region:
    region = Region()
    region.publish({"search": 0}, "soon")
    return region


@pytest.fixture
def node(region: Region, loop: StillLoop) -> Iterator[Node]:
    node = Node("node", region, loop)
    loop.play(node.start())
    yield node
    assert not node.failures()
    loop.play(node.die())


def follow(node: Node) -> None:
    """All that is in the log, as one batch."""
    node.tail.step(1000)
    node.loop.turn()


def environment(node: Node, name: str = ENVIRONMENT) -> Environment:
    room = node.hub.room(NAMESPACE, name)
    assert room
    return room.environment


def cursor(node: Node) -> Cursor:
    return environment(node).cursor


# --- records that cannot be applied ---


def version_ahead(region: Region) -> Any:
    """Not the next one, so that it is looked at for a recovery first."""
    return VersionEvent(
        namespace=NAMESPACE, environment=ENVIRONMENT, epoch=1, number=7, version=UNREADABLE, head=region.head(), changes=(),
        received_at_us=0,
    )  # fmt: skip


def head(_: Region) -> Any:
    return HeadEvent(namespace=NAMESPACE, environment=ENVIRONMENT, head=UNREADABLE)


def deletion_beyond_all_time(_: Region) -> Any:
    return DeletedEvent(namespace=NAMESPACE, environment=ENVIRONMENT, at_us=0, erase_at_us=2**62)


@pytest.mark.parametrize("make", [version_ahead, head, deletion_beyond_all_time], ids=lambda make: make.__name__)
def test_a_record_that_cannot_be_applied_costs_its_environment_and_never_the_node(
    make: Callable[[Region], Any], region: Region, node: Node
) -> None:
    """Every node reads the same log: what ends one ends all."""
    region.tell(make(region))
    follow(node)
    assert not node.failures()
    assert cursor(node) == region.authority.latest.cursor  # read again
    region.publish({"search": 1}, "soon")
    follow(node)
    node.loop.pass_time(10)
    assert cursor(node) == region.authority.latest.cursor


# --- histories that began anew ---


@pytest.fixture
def lost(region: Region, node: Node) -> State:
    """The node is at 4 of epoch 1; a fail-over keeps two versions, and the one that says so is not heard of yet. What was the state before."""
    for number in (1, 2):
        region.publish({"search": number}, "soon")
    follow(node)
    before = node.loop.play(region.state(NAMESPACE, ENVIRONMENT))
    region.recover(3)
    return before


def test_an_answer_from_before_a_fail_over_is_not_taken_for_the_newest(
    lost: State, region: Region, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recovery's number is below that of what was lost."""
    now, answers = region.state, iter([lost])

    async def state(*where: str) -> State:
        return next(answers, None) or await now(*where)

    monkeypatch.setattr(region, "state", state)
    follow(node)
    node.loop.pass_time(10)
    assert cursor(node) == region.authority.latest.cursor


@pytest.mark.usefixtures("lost")
def test_a_head_of_a_later_epoch_brings_a_node_that_missed_the_recovery(region: Region, node: Node) -> None:
    node.tail.at += 1  # without a gap that would tell
    region.renew()
    follow(node)
    assert cursor(node) == region.authority.latest.cursor


# --- environments that are asked for ---


def test_who_asks_in_the_turn_in_which_the_answer_comes_is_answered_too(
    region: Region, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry has answered the first one, and what asked it has not been cleared away yet."""
    told, asking = node.hub.no_environment, []

    def no_environment(*arguments: str) -> None:
        told(*arguments)
        if len(asking) == 1:  # this is its next step, in the same turn as the end of the mend
            asking.append(node.loop.create_task(node.hub.find(NAMESPACE, "nowhere")))

    monkeypatch.setattr(node.hub, "no_environment", no_environment)
    region.there = False
    asking.append(node.loop.create_task(node.hub.find(NAMESPACE, "nowhere")))
    node.loop.turn()
    assert [type(each.exception()) for each in asking if each.done()] == [NotFound, NotFound]
