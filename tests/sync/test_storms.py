"""Thousands at once, on a hub without sockets: what is done before a publish goes out, and what everybody has in the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from tests.client.conftest import Authority, leaf_of
from tests.sync.conftest import DEADLINE_S

from heliograph.access.principal import Principal, Scope
from heliograph.core import frames
from heliograph.core.delta import Entry
from heliograph.core.names import View
from heliograph.core.records import Cursor
from heliograph.core.replica import Assembler, Replica
from heliograph.core.trust import Trust
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.services.sync import environment as environments
from heliograph.services.sync import fan_out, turns
from heliograph.services.sync import hub as hubs
from heliograph.services.sync.connections import Connection
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.kept import Kept
from heliograph.services.sync.session import Session
from heliograph.services.sync.settings import SyncSettings
from heliograph.services.sync.transfers import PACED_BYTES
from heliograph.telemetry.metrics import Metrics

ALL = View(("",))


class NoLog:
    """Takes what the ledger would be told."""

    def put(self, *_: Any) -> bool:
        return True


@dataclass
class Pipe:
    sent: list[bytes] = field(default_factory=list)
    closed: int | None = None

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def cork(self) -> None: ...

    def uncork(self) -> None: ...

    def ping(self) -> None: ...

    def queued(self) -> int:
        return 0

    def charge(self, size: int) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed = code

    def abort(self) -> None: ...

    def states(self) -> list[frames.StateFrame]:
        told = [msgspec.json.decode(each, type=frames.FromServer) for each in self.sent]
        return [each for each in told if isinstance(each, frames.StateFrame)]


class Node:
    """A hub that follows one environment of an authority."""

    def __init__(self, authority: Authority, **settings: Any) -> None:
        self.authority = authority
        self.hub = Hub("node", SyncSettings(**settings), NoLog(), Metrics())  # type: ignore[arg-type]
        self.hub.warm = True
        self.environment = Environment("shop", "production", past_versions=256, frame_cache_bytes=1 << 26)
        latest = authority.latest
        ids = [each.id for each in authority.versions]
        entries = {name: Entry(leaf_of(text).text().decode(), text) for name, text in latest.documents.items()}
        self.environment.replace(authority.head(latest), latest.signed, entries, ids)
        self.hub.add_environment(self.environment)
        self._count = 0

    def publish(self, **changes: Any) -> None:
        """Here, and out to everybody whom a first slice reaches."""
        done = self.authority.publish(**changes)
        told = {name: done.documents[name] for name in changes}
        entries = {name: Entry(leaf_of(text).text().decode(), text) for name, text in told.items()}
        self.environment.commit(self.authority.head(done), done.signed, entries, answer="soon", trace=None)
        self.hub.moved(self.environment, 0)

    def connect(self) -> tuple[Connection, Pipe]:
        self._count += 1
        whoever = Principal(id="tok", kind="client", name="test", scopes=(Scope(),))
        session = Session(f"c{self._count}", "node", whoever, self.hub, opened_us=0, heartbeat_us=25_000_000)
        pipe = Pipe()
        return self.hub.connect(session, pipe), pipe

    def hello(self, connection: Connection, have: Cursor | None = None, subscription: int = 1) -> None:
        wanted = frames.Subscription(id=subscription, namespace="shop", environment="production", have=have)
        said = frames.Hello(
            instance=connection.session.connection,
            incarnation=1,
            fingerprint=frames.Fingerprint(sdk="test", sdk_version="1"),
            subscriptions=(wanted,),
        )
        self.hub.take(connection, msgspec.json.encode(said))

    def replica(self) -> Replica:
        _, root = self.authority.anchor, self.authority.root()
        return Replica(Trust.from_root(root, self.authority.anchor), "shop", "production", ("",))

    def believed(self, pipe: Pipe, replica: Replica | None = None) -> Replica:
        """What a client runs on after all that it was sent."""
        replica, assembler = replica or self.replica(), Assembler()
        for frame in pipe.states():
            whole = assembler.add(frame)
            if whole is not None and (candidate := replica.consider(whole, self.authority.clock_us)):
                replica.adopt(candidate)
        return replica

    async def rest(self, pipes: list[Pipe], number: int) -> None:
        """Until each was told of that version."""
        async with asyncio.timeout(DEADLINE_S):
            for pipe in pipes:
                while not pipe.sent or f'\\"number\\":{number},'.encode() not in pipe.sent[-1]:
                    await asyncio.sleep(0)


@pytest.fixture
def authority() -> Authority:
    made = Authority()
    made.publish(limits={"max": 1})
    return made


async def test_a_publish_in_the_middle_of_a_storm_does_not_wait_for_its_end(authority):
    node = Node(authority)
    ready = [node.connect() for _ in range(20)]
    for connection, _ in ready:
        node.hello(connection)
    await node.rest([pipe for _, pipe in ready], 2)
    storm = [node.connect() for _ in range(3000)]
    for connection, _ in storm:
        node.hello(connection)
    unheard = sum(not pipe.sent for _, pipe in storm)
    assert unheard > 1000  # the turn of the loop ends long before all are heard
    node.publish(limits={"max": 2})
    assert sum(not pipe.sent for _, pipe in storm) == unheard
    assert all(pipe.states()[-1].__class__ is frames.DeltaFrame for _, pipe in ready)
    await node.rest([pipe for _, pipe in ready + storm], 3)
    for _, pipe in ready[:3] + storm[:3] + storm[-3:]:
        assert node.believed(pipe).configs == {"limits": {"max": 2}}


@pytest.fixture
async def walking(authority, monkeypatch) -> tuple[Node, list[tuple[Connection, Pipe]]]:
    """A hub in the middle of a fan-out to five hundred."""
    node = Node(authority)
    crowd = [node.connect() for _ in range(500)]
    for connection, _ in crowd:
        node.hello(connection)
    await node.rest([pipe for _, pipe in crowd], 2)
    monkeypatch.setattr(fan_out, "SLICE_US", 0)
    monkeypatch.setattr(turns, "SLICE_BEHIND_US", 0)
    node.publish(limits={"max": 2})
    await asyncio.sleep(0)
    assert node.hub.fan_out.goes_on()
    return node, crowd


def acknowledged(pipe: Pipe) -> list[frames.HeartbeatAck]:
    told = [msgspec.json.decode(each, type=frames.FromServer) for each in pipe.sent]
    return [each for each in told if isinstance(each, frames.HeartbeatAck)]


def said(number: int) -> bytes:
    return msgspec.json.encode(frames.Heartbeat(sent_at_us=number))


async def test_what_clients_say_during_a_fan_out_waits_until_all_have_the_version(walking):
    node, crowd = walking
    for connection, _ in crowd:
        for number in range(2):
            node.hub.take(connection, said(number))
    came_us = now_us()
    assert not any(acknowledged(pipe) for _, pipe in crowd)
    async with asyncio.timeout(DEADLINE_S):
        while node.hub.fan_out.goes_on():
            assert not any(acknowledged(pipe) for _, pipe in crowd)
            await asyncio.sleep(0)
    node.hub.take(crowd[-1][0], said(2))  # behind what it said before
    async with asyncio.timeout(DEADLINE_S):
        while not all(len(acknowledged(pipe)) >= 2 for _, pipe in crowd) or len(acknowledged(crowd[-1][1])) < 3:
            await asyncio.sleep(0)
    assert [each.echo_us for each in acknowledged(crowd[-1][1])] == [0, 1, 2]
    assert all(each.received_at_us <= came_us for _, pipe in crowd[:-1] for each in acknowledged(pipe))


async def test_what_a_client_said_before_it_left_is_heard(walking):
    node, crowd = walking
    connection, pipe = crowd[0]
    node.hub.take(connection, said(1))
    node.hub.gone(connection)
    assert len(acknowledged(pipe)) == 1
    assert connection not in node.hub


async def test_what_is_put_off_is_bounded(walking, monkeypatch):
    node, crowd = walking
    monkeypatch.setattr(hubs, "MAX_EARLY_BYTES", 100)
    connection, pipe = crowd[0]
    for number in range(10):
        node.hub.take(connection, said(number))
    assert [each.echo_us for each in acknowledged(pipe)] == list(range(len(acknowledged(pipe))))
    assert len(acknowledged(pipe)) > 5


async def test_what_is_said_behind_an_unheard_hello_is_bounded(authority, monkeypatch):
    node = Node(authority)
    crowd = [node.connect() for _ in range(2000)]
    for connection, _ in crowd:
        node.hello(connection)
    (patient, its_pipe), (impatient, other_pipe) = crowd[-2:]
    for number, connection in enumerate((patient, impatient, impatient)):
        node.hub.take(connection, msgspec.json.encode(frames.Heartbeat(sent_at_us=number)))
    assert (its_pipe.closed, other_pipe.closed) == (None, problems.PROTOCOL)
    monkeypatch.setattr(hubs, "MAX_EARLY_BYTES", 1)
    late, late_pipe = node.connect()
    node.hello(late)
    assert late_pipe.closed == problems.OVERLOADED
    async with asyncio.timeout(DEADLINE_S):
        while len(its_pipe.sent) < 3:
            await asyncio.sleep(0)
    told = [type(msgspec.json.decode(each, type=frames.FromServer)).__name__ for each in its_pipe.sent]
    assert told == ["Welcome", "SnapshotFrame", "HeartbeatAck"]
    assert other_pipe.sent == []


async def test_two_hundred_old_versions_at_once_get_a_delta_each_made_once(authority):
    node = Node(authority)
    olds = [node.environment.cursor]
    for number in range(200):
        node.publish(limits={"max": number})
        olds.append(node.environment.cursor)
    head = olds.pop()
    crowd = [(node.connect(), have, subscription) for have in olds for subscription in (1, 2)]
    for (connection, _), have, subscription in crowd:
        node.hello(connection, have, subscription)
    await node.rest([pipe for (_, pipe), _, _ in crowd], head.number)
    for (_, pipe), have, subscription in crowd:
        [frame] = pipe.states()
        assert (frame.from_, frame.subscription) == (have, subscription)
    first, second = crowd[0][0][1].sent[-1], crowd[1][0][1].sent[-1]
    assert first.replace(b'"subscription":1', b'"subscription":2') == second


async def test_a_large_view_is_gathered_in_steps_once_and_a_version_meanwhile_is_not_lost():
    large = Authority()
    large.publish(**{f"c{number:04d}": {"n": number} for number in range(3 * environments.STEP)})
    node = Node(large)
    crowd = [node.connect() for _ in range(30)]
    for connection, _ in crowd:
        node.hello(connection, subscription=1)
    await asyncio.sleep(0)
    assert not any(pipe.states() for _, pipe in crowd)
    node.publish(c0007={"n": "changed"})
    await node.rest([pipe for _, pipe in crowd], 3)
    for _, pipe in crowd:
        kinds = [type(frame).__name__ for frame in pipe.states()]
        assert kinds == ["SnapshotFrame", "DeltaFrame"]
    assert crowd[0][1].states() == crowd[-1][1].states()
    replica = node.believed(crowd[0][1])
    assert (len(replica.configs), replica.configs["c0007"]) == (3 * environments.STEP, {"n": "changed"})


async def test_frames_are_kept_within_their_bound_and_the_newest_stay():
    kept: Kept[int, str] = Kept(100)
    for number in range(20):
        kept.put(number, "x", 30)
        assert (kept.get(number), kept.size <= 100) == ("x", True)
    assert [number for number in range(20) if number in kept] == [17, 18, 19]
    kept.put(18, "y", 40)
    kept.put(99, "z", 101)
    assert (kept.get(18), kept.get(99), kept.size) == ("y", None, 100)


async def test_frames_are_made_once_while_the_head_stays(authority):
    environment = Node(authority).environment
    for subscription in (0, 1, 7):
        assert environment.frames(subscription, ALL, None) is environment.frames(subscription, ALL, None)


class Full(Pipe):
    """Takes one frame of more than a socket's buffer, then is full until it has read."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node
        self.connection: Connection | None = None

    def send(self, data: bytes) -> None:
        super().send(data)
        if len(data) > PACED_BYTES and self.connection:
            self.node.hub.paused(self.connection)

    async def reads(self) -> None:
        """All that comes."""
        assert self.connection
        while self.connection.held:
            if self.connection.paused_us:
                self.node.hub.resumed(self.connection)
            await asyncio.sleep(0)


async def test_what_a_client_says_of_its_state_while_a_snapshot_is_on_its_way_is_no_reason_for_another():
    large = Authority()
    large.publish(**{f"c{number}": {"text": "x" * 100_000} for number in range(8)})
    node = Node(large)
    connection, _ = node.connect()
    pipe = connection.pipe = Full(node)
    pipe.connection = connection
    node.hello(connection)
    async with asyncio.timeout(DEADLINE_S):
        while not connection.paused_us:
            await asyncio.sleep(0)
        old = frames.Heartbeat(views={"1": "sha256:" + "0" * 64}, sent_at_us=1)
        node.hub.take(connection, msgspec.json.encode(old))
        await pipe.reads()
    parts = pipe.states()
    assert [frame.part for frame in parts] == list(range(1, parts[0].parts + 1))
    node.hub.take(connection, msgspec.json.encode(old))
    async with asyncio.timeout(DEADLINE_S):
        await pipe.reads()
    assert len(pipe.states()) == 2 * len(parts)  # then it is


async def test_who_leaves_while_a_view_is_gathered_is_not_waited_for_and_requests_share_the_work():
    large = Authority()
    large.publish(**{f"c{number:04d}": {"n": number} for number in range(3 * environments.STEP)})
    node = Node(large)
    (leaver, unsent), (stayer, sent) = node.connect(), node.connect()
    node.hello(leaver)
    node.hello(stayer)
    asking = [asyncio.create_task(node.hub.gathered(node.environment, ALL, None)) for _ in range(3)]
    node.hub.disconnect(leaver, "gone")  # the view's first step is due in the next turn of the loop
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*asking)
    assert node.environment.at_hand(ALL, None)
    await node.rest([sent], 2)
    assert unsent.states() == []
