"""What a follower makes of single records, in memory: the log and the registry say what a test has them say, in the turn of the loop that it chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from contracts.authority import Commit
from tests.sync.in_memory import ENVIRONMENT, NAMESPACE, Node, Process, Region, StillLoop

from heliograph.core import frames
from heliograph.core.errors import NotFound, Unavailable
from heliograph.core.events import DeletedEvent, HeadEvent, RevokedEvent, VersionEvent
from heliograph.core.records import Cursor, Head, Signed
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
    region.publish({"search": 0} | {f"more/c{number}": number for number in range(10)}, "soon")
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


# --- versions that are told without their documents ---


@pytest.fixture
def late(region: Region, node: Node) -> Commit:
    """A version whose documents the registry is slow to give, as the node has heard of it."""
    region.prompt.clear()
    made = region.publish({"search": "late", "a/b/c": True}, "now", large=True)
    follow(node)
    assert node.tail.at == len(region.log)
    return made


@pytest.fixture
def client(region: Region, node: Node) -> Process:
    made = Process(region, "client", [("",)], set())
    made.connect(node, 100)
    told(made, node)
    return made


def told(client: Process, node: Node) -> list[type]:
    """The kinds of the states that it has been sent since, each verified."""
    wire, kinds = client.wire, []
    assert wire
    while wire.node_reads():
        node.loop.turn()
    kinds = [type(msgspec.json.decode(each, type=frames.FromServer)) for each in wire.down if isinstance(each, bytes)]
    while client.read():
        pass
    return [each for each in kinds if each in (frames.SnapshotFrame, frames.DeltaFrame, frames.AdvanceFrame)]


def test_others_and_revocations_do_not_wait_for_a_slow_document(region: Region, node: Node, client: Process) -> None:
    staging = region.another("staging")
    staging.renew()
    follow(node)
    region.prompt.clear()
    staging.publish({"search": 1}, "soon")
    region.publish({"search": 1}, "soon", large=True)
    staging.publish({"search": 2}, "soon")
    region.tell(RevokedEvent(tokens=("t1",)))
    follow(node)
    assert environment(node, "staging").cursor == staging.authority.latest.cursor
    assert cursor(node).number == 2
    assert client.wire
    assert not client.wire.open


def test_a_version_whose_documents_are_late_comes_as_what_it_is(
    late: Commit, region: Region, node: Node, client: Process
) -> None:
    """A delta, told with the urgency that its author asked for."""
    region.prompt.set()
    node.loop.turn()
    assert told(client, node) == [frames.DeltaFrame]
    assert client.shown[1][-1] == late.cursor
    assert environment(node).answer == "now"


def test_what_follows_a_late_version_waits_and_comes_in_order(
    late: Commit, region: Region, node: Node, client: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region, "state", None)  # nothing is read whole
    moves: list[Cursor] = []
    move = environment(node)._move
    monkeypatch.setattr(Environment, "_move", lambda self, *each: (move(*each), moves.append(self.cursor)))
    after = [region.publish({"search": 2}, "soon"), region.publish({"search": 3}, "soon", large=True)]
    region.renew()
    follow(node)
    assert moves == []
    region.prompt.set()
    node.loop.turn()
    assert moves == [late.cursor, *(each.cursor for each in after)]
    assert told(client, node) == [frames.DeltaFrame, frames.DeltaFrame]
    assert client.shown[1][-1] == after[-1].cursor
    assert environment(node).head == Head.read(region.head().payload)


@pytest.mark.parametrize("fault", [NotFound("purged"), Unavailable("away"), OSError("whatever")], ids=repr)
@pytest.mark.usefixtures("late")
def test_when_a_document_cannot_be_had_the_environment_is_read(
    fault: Exception, region: Region, node: Node, client: Process
) -> None:
    region.publish({"search": 2}, "soon")
    follow(node)
    region.fault = fault
    region.prompt.set()
    node.loop.turn()
    assert cursor(node) == region.authority.latest.cursor
    assert told(client, node) == [frames.DeltaFrame]


@pytest.mark.usefixtures("late")
def test_a_gap_does_not_wait_for_a_document(region: Region, node: Node) -> None:
    node.tail.miss(0)
    node.loop.turn()
    assert cursor(node) == region.authority.latest.cursor


@pytest.mark.usefixtures("late")
def test_more_than_may_wait_has_the_environment_read(region: Region, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliograph.services.sync.follow.MAX_WAITING", 10_000)
    for number in range(20):
        region.publish({"search": number}, "soon")
        follow(node)
        assert node.follower._waiting <= 10_000
    assert cursor(node).number > 3
    assert region.prompt.is_set() is False
    region.prompt.set()
    node.loop.turn()
    assert cursor(node) == region.authority.latest.cursor
    assert node.follower._waiting == 0


@pytest.mark.usefixtures("late")
def test_a_deletion_does_not_wait_for_a_document(region: Region, node: Node) -> None:
    region.delete()
    follow(node)
    assert node.hub.room(NAMESPACE, ENVIRONMENT) is None
    region.prompt.set()
    node.loop.turn()
    assert node.hub.room(NAMESPACE, ENVIRONMENT) is None
    region.restore()
    follow(node)
    assert cursor(node) == region.authority.latest.cursor


def test_a_text_that_was_purged_while_it_was_fetched_is_not_kept(late: Commit, region: Region, node: Node) -> None:
    region.publish({"search": 2}, "soon")
    region.purge()
    follow(node)
    region.prompt.set()
    node.loop.turn()
    assert cursor(node) == region.authority.latest.cursor
    with pytest.raises(NotFound):
        environment(node).entry(late.content["search"].digest)


@pytest.mark.usefixtures("late")
def test_who_stops_leaves_no_fetch_behind(node: Node) -> None:
    node.loop.play(node.die())
    assert not asyncio.all_tasks(node.loop)
