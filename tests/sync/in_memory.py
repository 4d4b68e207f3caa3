"""A region without sockets, clocks and databases: real hubs, followers and outboxes, real client sessions, and between them queues that a test moves
frame by frame.

Everything runs on one loop whose time stands still until it is told to pass, so a run is a function of what the test did.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from itertools import count
from random import Random
from typing import Any, Final, TypeVar

import msgspec
from contracts.authority import START_US, Authority, Commit

from heliograph.access.principal import Principal, Scope
from heliograph.client._clock import Moment
from heliograph.client._identity import Identity
from heliograph.client._live import Live, Proposal
from heliograph.client._session import Applied, Channel, Raised
from heliograph.client._session import Session as ClientSession
from heliograph.client._state import Update
from heliograph.core import delta, frames
from heliograph.core.errors import Invalid, NotFound, Unavailable
from heliograph.core.events import (
    SHARDS,
    ChangedConfig,
    DeletedEvent,
    FromRegistry,
    HeadEvent,
    PurgeEvent,
    VersionEvent,
    shard_of,
)
from heliograph.core.proof import covering
from heliograph.core.records import Cursor, Signed
from heliograph.core.replica import Candidate, Replica
from heliograph.eventlog.ports import Gap, Marks, NewRecord, Record, Stream
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.services.ledger.batch import Batch
from heliograph.services.sync.connections import Connection
from heliograph.services.sync.follow import Follower
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.registry import CurrentHead, State
from heliograph.services.sync.session import Session
from heliograph.services.sync.settings import SyncSettings
from heliograph.telemetry.metrics import Metrics

NAMESPACE, ENVIRONMENT = "shop", "production"
HEARTBEAT_S: Final = 25.0
TURNS: Final = 40  # of the loop: more than anything here takes that does not wait for time
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(frames.FromServer).decode
T = TypeVar("T")


class StillLoop(asyncio.SelectorEventLoop):
    """Its time passes by `pass_time` alone; it never waits, because whoever runs it always has something to do."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.faults: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self.now_s

    def play(self, work: Coroutine[Any, Any, T]) -> T:
        return self.run_until_complete(work)

    def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """As a callback of the loop would be."""

        async def called() -> T:
            return work(*arguments)

        return self.play(called())

    def turn(self, times: int = TURNS) -> None:
        self.play(_turns(times))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.turn()


async def _turns(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


class Region:
    """One environment: its registry, its log, its ledger. ``truth``: every version that ever was, also of a lost tail. ``prompt``: whether the
    registry answers who asks for a document; ``fault``: what it answers then, instead of the text."""

    def __init__(self, environment: str = ENVIRONMENT) -> None:
        self.environment = environment
        self.authority = Authority(namespace=NAMESPACE, environment=environment)
        self.truth: dict[str, Commit] = {self.authority.latest.id: self.authority.latest}
        self.log: list[Record] = []
        self.ledger = Batch()
        self.beside: dict[str, Region] = {}
        self.there = True
        self.prompt = asyncio.Event()
        self.prompt.set()
        self.fault: Exception | None = None
        self.safe = 1
        self._signed_us = 0

    # --- what the registry does ---

    def another(self, environment: str) -> Region:
        """Of the same registry, in the same log."""
        made = self.beside[environment] = Region(environment)
        made.log = self.log
        return made

    def publish(self, documents: Mapping[str, Any], answer: frames.Answer, *, large: bool = False) -> Commit:
        """``large``: too much for an event, so that readers of the log ask for the documents."""
        return self._committed(self.authority.publish(documents), answer, large=large)

    def roll_back(self, number: int) -> Commit:
        return self._committed(self.authority.roll_back(number), "soon")

    def recover(self, number: int) -> Commit:
        """A fail-over that kept the versions before ``number``."""
        return self._committed(self.authority.recover(number), "soon")

    def renew(self) -> None:
        self._signed_us += 1000
        self.tell(HeadEvent(namespace=NAMESPACE, environment=self.environment, head=self.head()))

    def delete(self) -> None:
        self.there = False
        self.tell(
            DeletedEvent(namespace=NAMESPACE, environment=self.environment, at_us=START_US, erase_at_us=START_US + 10**12)
        )

    def restore(self) -> None:
        self.there = True
        self.renew()

    def purge(self) -> None:
        self.tell(PurgeEvent(namespace=NAMESPACE, digests=(), at_us=START_US))

    def head(self) -> Signed:
        return self.authority.head(safe=min(self.safe, self.authority.latest.version.number), later_us=self._signed_us)

    def _committed(self, commit: Commit, answer: frames.Answer, *, large: bool = False) -> Commit:
        self.truth[commit.id] = commit
        version = commit.version
        before = self.authority.at(version.number - 1).content
        changes = tuple(
            ChangedConfig(name=name, leaf=entry.leaf, document=None if large else entry.document.decode())
            if entry
            else ChangedConfig(name=name, leaf=None)
            for name, entry in sorted(delta.diff(before, commit.content).items())
        )
        self.tell(
            VersionEvent(
                namespace=NAMESPACE, environment=self.environment, epoch=version.epoch, number=version.number, version=commit.signed,
                head=self.head(), changes=changes, received_at_us=START_US, answer=answer,
            )
        )  # fmt: skip
        return commit

    def tell(self, event: FromRegistry) -> None:
        """Into the log."""
        position = len(self.log) + 1
        self.log.append(
            Record(
                stream=Stream.VERSIONS, shard=shard_of(NAMESPACE, self.environment), timeline=1, position=position,
                key=f"{NAMESPACE}/{self.environment}", body=_encode(event), committed_at_us=START_US, mark=position,
            )
        )  # fmt: skip

    # --- what it answers; as `services.sync.registry.Registry` ---

    async def state(self, namespace: str, environment: str) -> State:
        if environment in self.beside:
            return await self.beside[environment].state(namespace, environment)
        if not self.there:
            raise NotFound(f"there is no environment {namespace}/{environment}")
        latest = self.authority.latest
        earlier = self.authority.commits[:-1]
        recoveries = tuple(each.signed for each in earlier if each.version.kind == "recover")
        answer = State(self.head(), latest.signed, dict(latest.content), [each.id for each in earlier], recoveries)
        await asyncio.sleep(0)  # what is told meanwhile is newer than this
        return answer

    async def document(self, namespace: str, wanted: str) -> bytes:
        await self.prompt.wait()
        await asyncio.sleep(0)
        if self.fault:
            raise self.fault
        for commit in self.truth.values():
            for entry in commit.content.values():
                if self.there and delta.read_leaf(entry.leaf).document == wanted:
                    return entry.document
        raise NotFound(f"there is no document {wanted} in {namespace}")

    async def heads(self) -> AsyncIterator[CurrentHead]:
        if self.there:
            yield CurrentHead(NAMESPACE, self.environment, self.head(), self.authority.latest.signed)
        for each in self.beside.values():
            async for head in each.heads():
                yield head

    # --- the ledger ---

    def store(self, record: NewRecord) -> None:
        """As the ledger takes it in: an upsert."""
        kept = Record(
            stream=Stream.RECEIPTS, shard=record.shard, timeline=1, position=1, key=record.key, body=record.body,
            committed_at_us=now_us(), mark=1,
        )  # fmt: skip
        self.ledger.add(kept, now_us())

    def answer(self, version: str, instance: str, subscription: int) -> frames.State | None:
        found = self.ledger.answers.get((version, instance, subscription))
        return found[2].state if found else None


class Tail:
    """The log as one node reads it: a batch when the test says so. A reader of `eventlog.ports`."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._batches: asyncio.Queue[list[Record | Gap]] = asyncio.Queue()
        self.at = 0

    def step(self, records: int) -> None:
        batch = self._region.log[self.at : self.at + records]
        self.at += len(batch)
        if batch:
            self._batches.put_nowait(list(batch))

    def miss(self, records: int) -> None:
        """They left the log before this node has read them."""
        self.at = min(len(self._region.log), self.at + records)
        self._batches.put_nowait([Gap(shard_of(NAMESPACE, ENVIRONMENT))])

    async def identity(self) -> str:
        return "log"

    async def end(self) -> Marks:
        self.at = len(self._region.log)
        return dict.fromkeys(range(SHARDS), self.at)

    earliest = end

    async def read(self, after: Mapping[int, int]) -> AsyncIterator[list[Record | Gap]]:
        del after
        while True:
            yield await self._batches.get()

    async def close(self) -> None:
        """Nothing is open."""


class Journal:
    """Where a node appends receipts: each append waits until the test lets it be, fail, or fail after all. An appender of `eventlog.ports`."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._waiting: deque[tuple[Sequence[NewRecord], asyncio.Future[None]]] = deque()

    async def append(self, records: Sequence[NewRecord]) -> None:
        decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, decided))
        await decided

    def decide(self, *, stored: bool = True, said: bool = True) -> None:
        """Of the append in hand: whether it is stored, and whether the node hears so."""
        if not self._waiting:
            return
        records, decided = self._waiting.popleft()
        if decided.done():
            return
        if stored:
            for each in records:
                self._region.store(each)
        if stored and said:
            decided.set_result(None)
        else:
            decided.set_exception(Unavailable("the log is away"))

    async def close(self) -> None:
        """Nothing is open."""


class _NoLetters:
    async def set_aside(self, record: Record, reason: str, attempts: int) -> None:
        raise AssertionError(f"an honest registry's event was set aside: {reason} after {attempts} of {record.body!r}")

    async def failed_again(self, letters: tuple[int, ...], reason: str) -> None:
        raise AssertionError(f"nothing was replayed: {letters}, {reason}")


class Node:
    """One sync process, from its start to its end."""

    def __init__(self, name: str, region: Region, loop: StillLoop, *, sample: bool = False) -> None:
        self.loop = loop
        settings = SyncSettings(head_spread_s=0, sample_share=float(sample), node=name)
        metrics = Metrics()
        self.tail, self.journal = Tail(region), Journal(region)
        self.outbox = Outbox(self.journal, metrics)
        self.wires: dict[int, Wire] = {}
        self.hub = Hub(name, settings, self.outbox, metrics)
        self.hub.fan_out.write = lambda socket, frame: self.wires[socket].write(frame)
        self.follower = Follower(
            self.tail, region, self.hub, settings, metrics, letters=_NoLetters(), revoked=self.hub.revoked  # type: ignore[arg-type]
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        marks = await self.follower.load()
        self.hub.warm = True
        self._tasks = [asyncio.create_task(self.follower.run(marks)), asyncio.create_task(self.outbox.run())]

    async def die(self) -> None:
        """As by SIGKILL: what was not appended is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in list(self.hub._tasks):
            task.cancel()
        await asyncio.gather(*self.hub._tasks, return_exceptions=True)

    def failures(self) -> list[BaseException]:
        """What ended a task that should run for ever."""
        return [task.exception() or AssertionError("it ended") for task in self._tasks if task.done() and not task.cancelled()]


class Wire:
    """A connection in memory: what each side has written and the other has not read. ``capacity``: frames that fit until the node's side is full.

    Like a WebSocket's, its socket is one that the hub may write to itself, while it takes whole frames.

    The two sides learn of its end each at its own time: a client that has gone may still be there for the node, with words on their way.
    """

    _numbers = count(1)

    def __init__(self, node: Node, capacity: int) -> None:
        self.node = node
        self.down: deque[bytes | int] = deque()  # frames, and the close code at the end
        self.up: deque[bytes] = deque()
        self.sent: dict[int, frames.Receipt] = {}
        self.open = True  # as the node sees it
        self._capacity = capacity
        principal = Principal(id="t1", kind="client", name="test", scopes=(Scope(NAMESPACE, ENVIRONMENT),))
        self._socket = next(self._numbers)
        session = Session(f"c{self._socket}", node.hub.node, principal, node.hub, now_us(), int(HEARTBEAT_S * 1e6))
        self.connection: Connection = node.hub.connect(session, self)
        self._begun = b""  # of a frame that it has not taken whole
        node.wires[self._socket] = self
        self.connection.aim(self._socket)

    # --- as the hub's pipe ---

    def send(self, data: bytes) -> None:
        if not self.open:
            return
        assert not self._begun
        self.down.append(data)
        if len(self.down) > self._capacity and not self.connection.paused_us:
            self.connection.aim(None)
            self.node.hub.paused(self.connection)

    def write(self, frame: bytes) -> int:
        """A part of one that is too many, or nothing at all."""
        assert self.open
        assert not self.connection.held
        if len(self.down) < self._capacity:
            self.down.append(_payload(frame))
            return len(frame)
        if self._capacity % 2:
            raise BlockingIOError
        self._begun = frame[: len(frame) // 2]
        return len(self._begun)

    def rest(self, data: bytes) -> None:
        frame, self._begun = self._begun + data, b""
        self.send(_payload(frame))

    def cork(self) -> None:
        """Frames are as they are sent, however they travel."""

    def uncork(self) -> None:
        """See `cork`."""

    def ping(self) -> None:
        """Nothing that a client's session is shown."""

    def queued(self) -> int:
        return sum(len(each) for each in self.down if isinstance(each, bytes))

    def charge(self, size: int) -> None:
        """Allowances are the socket's affair."""

    def close(self, code: int, reason: str) -> None:
        del reason
        if self.open:
            self.open = False
            self.connection.aim(None)
            self.down.append(code)

    def abort(self) -> None:
        """Nothing more to do here than at `close`."""

    # --- as the network ---

    def node_reads(self) -> bool:
        """One frame. Whether there was one."""
        if not self.up or not self.open:
            return False
        self.node.loop.call(self.node.hub.take, self.connection, self.up.popleft())
        return True

    def client_reads(self) -> bytes | int | None:
        if not self.down:
            return None
        frame = self.down.popleft()
        if not self.down and self.open and self.connection.paused_us:
            self.connection.aim(self._socket)
            self.node.loop.call(self.node.hub.resumed, self.connection)
        return frame

    def node_sees_the_end(self) -> None:
        self.open = False
        self.connection.aim(None)
        self.node.loop.call(self.node.hub.disconnect, self.connection, "closed")


def _payload(frame: bytes) -> bytes:
    """Of a whole text message on the wire."""
    kind, size = frame[0], frame[1]
    assert (kind, size & 0x80) == (0x81, 0)
    begin = {126: 4, 127: 10}.get(size, 2)
    data = frame[begin:]
    assert len(data) == (size if begin == 2 else int.from_bytes(frame[2:begin], "big"))
    return data


class Process:
    """A client process: a session, its subscriptions, and an application that reads at its own pace.

    ``shown``: the versions that were shown, per subscription, as (epoch, number) they must grow; ``called``: those that the application's own
    callback saw; ``rejects``: the versions that it will not take.
    """

    def __init__(self, region: Region, name: str, views: Sequence[tuple[str, ...]], rejects: set[str]) -> None:
        self.region, self.rejects = region, rejects
        self.identity = Identity(instance=name, incarnation=1)
        self.lives = {number: Live(NAMESPACE, ENVIRONMENT, view, lambda _: None) for number, view in enumerate(views, start=1)}
        self.feeds = {number: live.feed(lambda update: update) for number, live in self.lives.items()}
        self.shown: dict[int, list[Cursor]] = {number: [] for number in self.lives}
        self.called: dict[int, list[Cursor]] = {number: [] for number in self.lives}
        for live in self.lives.values():
            live.validators.append(self._check)
        trust = region.authority.trust
        channels = [Channel(number, Replica(trust, NAMESPACE, ENVIRONMENT, live.view)) for number, live in self.lives.items()]
        mark = frames.Fingerprint(sdk="test", sdk_version="0")
        self.session = ClientSession(self.identity, mark, channels, self._propose, random=Random(name))
        self.now = Moment(START_US, 1_000_000)
        self.wire: Wire | None = None
        self.left: list[Wire] = []  # wires that it has gone from, and whose nodes do not know yet

    def _check(self, update: Update) -> None:
        if update.cursor.version in self.rejects:
            raise Invalid("not this one")

    def _propose(self, channel: Channel, candidate: Candidate) -> Proposal:
        return self.lives[channel.id].propose(
            candidate.cursor, candidate.texts, candidate.changed, restarted=candidate.restarted
        )

    # --- connections ---

    def connect(self, node: Node, capacity: int) -> None:
        self.leave()
        self.wire = Wire(node, capacity)
        self.wire.up.append(_encode(self.session.greet(self.now)))

    def leave(self) -> None:
        """Its side of the connection is gone."""
        if self.wire is not None:
            self.left.append(self.wire)
            self.wire = None
            self.session.lost()

    def wires(self) -> list[Wire]:
        return [*self.left, *([self.wire] if self.wire else [])]

    # --- frames ---

    def read(self) -> bool:
        """One frame. Whether there was one."""
        frame = self.wire.client_reads() if self.wire else None
        if isinstance(frame, int):
            assert frame < problems.UNAUTHENTICATED, (
                f"an honest client was told to stop for good: {problems.CLOSE_CODES[frame]}"
            )
            self.leave()
        elif frame is not None:
            self.take(_decode(frame))
        return frame is not None

    def take(self, frame: frames.FromServer) -> None:
        if isinstance(frame, frames.ReceiptAck):
            self._check_stored(frame.seq)
        for effect in self.session.take(frame, self.now):
            assert not isinstance(effect, Raised), f"an honest server was refused: {effect}"
            if isinstance(effect, Applied):
                self.lives[effect.channel.id].swap(effect.proposal)
                self.shown[effect.channel.id].append(effect.proposal.update.cursor)

    def _check_stored(self, seq: int) -> None:
        """Nothing is acknowledged that the ledger would not have after a crash of everything else. What a fail-over has lost need not be stored."""
        assert self.wire
        there = {commit.id for commit in self.region.authority.commits}
        for each in [one for number, one in self.wire.sent.items() if number <= seq and one.version in there]:
            kept = self.region.answer(each.version, self.identity.instance, each.subscription)
            assert kept is not None, f"version {each.number} was acknowledged and is not stored"

    def tick(self) -> None:
        """What is due at this moment, onto the wire."""
        if self.wire is None:
            return
        for frame in self.session.due(self.now):
            if isinstance(frame, frames.Receipt):
                self.wire.sent[frame.seq] = frame
            self.wire.up.append(_encode(frame))
        if self.session.leaving(self.now) or self.session.silent(self.now):
            self.leave()

    def pass_time(self, seconds: float) -> None:
        us = int(seconds * 1e6)
        self.now = Moment(self.now.wall_us + us, self.now.steady_us + us)
        self.tick()

    # --- the application ---

    def callback(self, subscription: int) -> bool:
        """It takes one notice. Whether there was one."""
        update = self.feeds[subscription].take()
        if update is not None:
            self.called[subscription].append(update.cursor)
        return update is not None

    def seen(self, subscription: int, commit: Commit) -> dict[str, bytes]:
        """What a version says within the view."""
        covers: Callable[[str], bool] = covering(self.lives[subscription].view)
        return {name: entry.document for name, entry in commit.content.items() if covers(name)}
