"""Who is connected, and how a version reaches them.

Subscriptions with equal view and id form a group and share frames. The fan-out walks groups in slices of some milliseconds, the first of them at
once, before anything else that waits for the loop; in between, receipts and new connections are served. When the head moves on during a walk, those
not yet reached are brought straight to the newest.

A connection whose socket is full leaves the walk. When it drains, it gets one frame from where it was to the head. If it does not drain in time,
it is closed: slow clients cost themselves, not others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from random import random
from typing import Final, Protocol, get_args

import msgspec
import structlog

from heliograph.core import frames
from heliograph.core.errors import NotFound, NotReady, Overloaded
from heliograph.core.events import FannedOut, FromSync, NodeAlive, Received, Subscribed, Unsubscribed
from heliograph.core.feed import Purged, Revoked, ToEdge
from heliograph.core.names import View
from heliograph.core.records import Cursor
from heliograph.core.times import to_us
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.session import (
    Answered,
    Close,
    Declared,
    Effect,
    Followed,
    Opened,
    Relayed,
    Renewed,
    Reset,
    Send,
    Session,
    Subscriber,
    Unfollowed,
)
from heliograph.services.sync.settings import HubSettings
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

SLICE_US: Final = 15_000
"""Of sending at a stretch: some two thousand clients at 5 to 7 µs each. What else waits for the loop is late by that at most."""
SLICE: Final = 50
"""Connections between two looks at the clock."""
PUSH_SLICE: Final = 50
"""Snapshots sent again between two turns of the loop: they are larger than deltas."""
ALIVE_S: Final = 2.0
TICK_S: Final = 0.5
FIND_S: Final = 5.0
MAX_OWNERS: Final = 200_000
_encode = msgspec.json.Encoder().encode
Group = tuple[View, int]


class Pipe(Protocol):
    """A connection's way out. `send` never waits; a full one says so through `Hub.paused`."""

    def send(self, data: bytes) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


@dataclass(slots=True, eq=False)
class Connection:
    session: Session
    pipe: Pipe
    paused_us: int = 0
    unacknowledged: int = -1
    acknowledged: int = -1
    ack_due: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A subscription as it was asked for."""

    connection: Connection
    subscriber: Subscriber


@dataclass(slots=True)
class Room:
    """An environment with those who follow it."""

    environment: Environment
    groups: dict[Group, dict[Subscriber, Connection]] = field(default_factory=dict)
    moved: bool = False
    logged_us: int = 0
    asked_us: int = 0  # when it was last asked for over HTTP
    fanning: Iterator[None] | None = None


class Hub:
    """Belongs to one event loop. Implements `History` for its sessions."""

    def __init__(self, node: str, settings: HubSettings, outbox: Outbox, metrics: Metrics) -> None:
        self.node = node
        self._settings = settings
        self._outbox = outbox
        self._metrics = metrics
        self._frames_received = metrics.frames_received.labels("text")
        self._frames_sent = metrics.frames_sent.labels("state")
        self._receipts_taken = {state: metrics.receipts_taken.labels(state) for state in get_args(frames.State)}
        self._rooms: dict[tuple[str, str], Room] = {}
        self._connections: dict[Session, Connection] = {}
        self._instances: dict[str, Connection] = {}
        self._owners: OrderedDict[str, tuple[str, int]] = OrderedDict()  # instance -> token, newest incarnation
        self._awaited: dict[tuple[str, str], list[Arrival]] = {}
        self._sought: dict[tuple[str, str], list[asyncio.Future[Environment | NotFound]]] = {}
        self.warm = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self.look_for: Callable[[str, str], None] = self.no_environment
        """Asked for an environment that is not known here; answers with `add_environment` or `no_environment`."""
        self.check_renewal: Callable[[Connection, str], None] = lambda *_: None
        """Told that a client has a new token."""

    # --- environments ---

    def room(self, namespace: str, environment: str) -> Room | None:
        return self._rooms.get((namespace, environment))

    async def find(self, namespace: str, environment: str) -> Environment:
        """Asks the registry about one that is not known here. Raises NotFound; NotReady while this node is not warm, or nobody answers."""
        if not self.warm:
            raise NotReady("this node is loading", retry_after=1)
        key = (namespace, environment)
        if (room := self._rooms.get(key)) is not None:
            room.asked_us = now_us()
            return room.environment
        found: asyncio.Future[Environment | NotFound] = asyncio.get_running_loop().create_future()
        self._sought.setdefault(key, []).append(found)
        self.look_for(*key)
        try:
            async with asyncio.timeout(FIND_S):
                answer = await found
        except TimeoutError:
            raise NotReady(
                f"whether there is an environment {namespace}/{environment} is not known now", retry_after=1
            ) from None
        if isinstance(answer, NotFound):
            raise answer
        return answer

    def environments(self) -> Iterable[Environment]:
        return (room.environment for room in self._rooms.values())

    def add_environment(self, environment: Environment) -> None:
        """Those who asked for it before it was known are served now."""
        key = (environment.namespace, environment.environment)
        room = self._rooms[key] = Room(environment)
        for arrival in self._awaited.pop(key, ()):
            if arrival.connection.session in self._connections:
                self._join(room, arrival)
        self._tell_seekers(key, environment)
        self._count()

    def _tell_seekers(self, key: tuple[str, str], found: Environment | NotFound) -> None:
        for each in self._sought.pop(key, ()):
            if not each.done():
                each.set_result(found)

    def no_environment(self, namespace: str, environment: str, detail: str = "") -> None:
        """The registry does not know it either, any more perhaps."""
        missing = NotFound(detail or f"there is no environment {namespace}/{environment}")
        self.remove_environment(namespace, environment, missing.detail)
        for arrival in self._awaited.pop((namespace, environment), ()):
            told = frames.ErrorFrame(code=missing.code, detail=missing.detail, subscription=arrival.subscriber.id)
            arrival.connection.pipe.send(_encode(told))
        self._tell_seekers((namespace, environment), missing)

    def remove_environment(self, namespace: str, environment: str, detail: str) -> None:
        """It is gone: its subscribers are told, and keep what they run on. They ask again when they come back; should it be restored by then, they
        are served."""
        room = self._rooms.pop((namespace, environment), None)
        if room is None:
            return
        for members in room.groups.values():
            for subscriber, connection in members.items():
                told = frames.ErrorFrame(code=NotFound.code, detail=detail, subscription=subscriber.id)
                connection.pipe.send(_encode(told))
                self._report_left(subscriber, "environment deleted")
        room.environment.close()
        self._count()

    def moved(self, environment: Environment, logged_us: int) -> None:
        """The head is another one: send it to everybody; at once, and what a first slice does not reach in the background."""
        room = self._rooms[environment.namespace, environment.environment]
        room.logged_us = logged_us
        room.moved = True
        if room.fanning is not None:
            return
        room.fanning = self._fan_out(room)
        if self._has_more(room, room.fanning):
            self._spawn(self._go_on(room, room.fanning))

    def renewed(self, environment: Environment) -> None:
        """The head was signed again: spread it over a minute."""
        self._spawn(self._spread_head(self._rooms[environment.namespace, environment.environment]))

    def push_again(self, environment: Environment, trace: str | None) -> None:
        """An operator has the head told again to those who are not known to run it: in the background, each answers at once."""
        self._spawn(self._push_again(self._rooms[environment.namespace, environment.environment], trace))

    def forget_past(self, namespace: str) -> None:
        """Texts of it were purged: what no head has is dropped, here and at the edges below."""
        for environment in self.environments():
            if environment.namespace == namespace:
                environment.forget_past()
        self.tell_edges(Purged(namespace=namespace))

    def knows(self, namespace: str, environment: str, cursor: Cursor) -> bool:
        room = self.room(namespace, environment)
        return room is not None and room.environment.knows(cursor)

    def behind(self, namespace: str, environment: str, cursor: Cursor) -> bool:
        room = self.room(namespace, environment)
        return room is None or cursor.number > room.environment.cursor.number

    def view_digest(self, subscriber: Subscriber) -> str:
        """Empty while the subscriber is not at the head: nothing can be compared then."""
        room = self.room(subscriber.namespace, subscriber.environment)
        if room is None or subscriber.cursor != room.environment.cursor:
            return ""
        return room.environment.view_digest(subscriber.view)

    # --- connections ---

    def connect(self, session: Session, pipe: Pipe) -> Connection:
        connection = Connection(session, pipe)
        self._connections[session] = connection
        self._metrics.connections.set(len(self._connections))
        return connection

    def disconnect(self, connection: Connection, reason: str) -> None:
        session = connection.session
        if self._connections.pop(session, None) is None:
            return
        self._metrics.connections.set(len(self._connections))
        if self._instances.get(session.instance) is connection:
            del self._instances[session.instance]
        for subscriber in session.subscribers.values():
            self._leave(subscriber)
            self._report_left(subscriber, reason)

    def close(self, connection: Connection, code: int, reason: str) -> None:
        self._metrics.connections_closed.labels(str(code)).inc()
        connection.pipe.close(code, reason)
        self.disconnect(connection, reason)

    def take(self, connection: Connection, text: bytes) -> None:
        """A text message has come."""
        self._frames_received.inc()
        for effect in connection.session.take(text, now_us()):
            if connection.session not in self._connections:
                return
            self._do(connection, effect)

    def paused(self, connection: Connection) -> None:
        connection.paused_us = now_us()
        self._metrics.slow_consumers_entered.inc()

    def resumed(self, connection: Connection) -> None:
        connection.paused_us = 0
        for subscriber in connection.session.subscribers.values():
            self._catch_up(connection, subscriber)

    def revoked(self, tokens: Iterable[str]) -> None:
        gone = set(tokens)
        for connection in list(self._connections.values()):
            if connection.session.principal.id in gone:
                self.close(connection, problems.REVOKED, "the token was revoked")
        self.tell_edges(Revoked(tokens=tuple(sorted(gone))))

    def tell_edges(self, frame: ToEdge) -> None:
        told = _encode(frame)
        for connection in list(self._connections.values()):
            if connection.session.relays:
                connection.pipe.send(told)

    def __len__(self) -> int:
        return len(self._connections)

    # --- effects ---

    def _do(self, connection: Connection, effect: Effect) -> None:
        match effect:
            case Send(frame):
                connection.pipe.send(_encode(frame))
            case Close(code, reason):
                self.close(connection, code, reason)
            case Answered(receipt, seq):
                self._store(connection, receipt, seq)
            case Reset(subscriber, have, cause):
                self._reset(connection, subscriber, have, cause)
            case Declared(subscribers):
                self._declared(subscribers)
            case Opened(subscribers=subscribers):
                self._open(connection, subscribers)
            case Renewed(token):
                self.check_renewal(connection, token)
            case _:
                self._do_for_edge(connection, effect)

    def _do_for_edge(self, connection: Connection, effect: Followed | Unfollowed | Relayed) -> None:
        match effect:
            case Followed(subscriber):
                self._arrive(connection, subscriber)
            case Unfollowed(subscriber):
                self._leave(subscriber)
            case Relayed(events, seq):
                self._relay(connection, events, seq)

    def _declared(self, subscribers: tuple[Subscriber, ...]) -> None:
        for subscriber in subscribers:
            if self.room(subscriber.namespace, subscriber.environment):  # otherwise it is told when it joins
                self._report_joined(subscriber)

    def _open(self, connection: Connection, subscribers: tuple[Subscriber, ...]) -> None:
        if not self._owns(connection):
            return
        connection.pipe.send(_encode(self._welcome(connection.session)))
        for subscriber in subscribers:
            self._arrive(connection, subscriber)
        self._count()

    def _arrive(self, connection: Connection, subscriber: Subscriber) -> None:
        key = (subscriber.namespace, subscriber.environment)
        if room := self._rooms.get(key):
            self._join(room, Arrival(connection, subscriber))
        else:
            self._awaited.setdefault(key, []).append(Arrival(connection, subscriber))
            self.look_for(*key)

    def _join(self, room: Room, arrival: Arrival) -> None:
        room.groups.setdefault((arrival.subscriber.view, arrival.subscriber.id), {})[arrival.subscriber] = arrival.connection
        self._report_joined(arrival.subscriber)
        self._catch_up(arrival.connection, arrival.subscriber, first=True)

    def may_speak_for(self, instance: str, token: str, incarnation: int) -> bool:
        """An instance id belongs to the first token that used it here, and to the newest incarnation of it."""
        owner, newest = self._owners.get(instance, (token, -1))
        if owner != token or incarnation < newest:
            return False
        self._owners[instance] = (owner, incarnation)
        self._owners.move_to_end(instance)
        while len(self._owners) > MAX_OWNERS:
            self._owners.popitem(last=False)
        return True

    def _owns(self, connection: Connection) -> bool:
        instance, incarnation = connection.session.instance, connection.session.incarnation
        _, newest = self._owners.get(instance, ("", -1))
        if not self.may_speak_for(instance, connection.session.principal.id, incarnation):
            self.close(connection, problems.SUPERSEDED, "the instance id is in use")
            return False
        if older := self._instances.get(instance):
            self.close(older, problems.SUPERSEDED if incarnation > newest else problems.UNAVAILABLE, "connected again")
        self._instances[instance] = connection
        return True

    def _welcome(self, session: Session) -> frames.Welcome:
        at = now_us()
        return frames.Welcome(
            connection=session.connection,
            node=self.node,
            region=self._settings.region,
            received_at_us=session.heard_us,
            sent_at_us=at,
            heartbeat_s=self._settings.heartbeat_s,
            receipt_jitter_ms=self._settings.receipt_jitter_ms,
            sample=random() < self._settings.sample_share,  # noqa: S311  # chooses a sample, keeps no secret
            limits=frames.Limits(max_frame_bytes=frames.MAX_CLIENT_FRAME, max_subscriptions=frames.MAX_SUBSCRIPTIONS),
        )

    def _store(self, connection: Connection, receipt: Received, seq: int) -> None:
        self._receipts_taken[receipt.state].inc()
        connection.unacknowledged = max(connection.unacknowledged, seq)
        self._outbox.put(receipt, receipt.instance, lambda: self._durable(connection, seq))

    def _relay(self, connection: Connection, events: tuple[FromSync, ...], seq: int) -> None:
        """The outbox keeps order, so when the last one is durable all are."""
        for each in events:
            if isinstance(each, Received):
                self._receipts_taken[each.state].inc()
            durable = (lambda: self._durable(connection, seq)) if each is events[-1] else None
            if not self._outbox.put(each, each.node if isinstance(each, (FannedOut, NodeAlive)) else each.instance, durable):
                self.close(connection, problems.OVERLOADED, "more than the log takes now; send it again later")

    def _durable(self, connection: Connection, seq: int) -> None:
        """Acknowledges once per turn of the loop, whatever became durable in it."""
        connection.acknowledged = max(connection.acknowledged, seq)
        if not connection.ack_due and connection.session in self._connections:
            connection.ack_due = True
            asyncio.get_running_loop().call_soon(self._acknowledge, connection)

    def _acknowledge(self, connection: Connection) -> None:
        connection.ack_due = False
        if connection.session in self._connections:
            connection.pipe.send(_encode(frames.ReceiptAck(seq=connection.acknowledged)))

    # --- bringing a subscriber up to date ---

    def _catch_up(self, connection: Connection, subscriber: Subscriber, *, first: bool = False) -> None:
        room = self.room(subscriber.namespace, subscriber.environment)
        if room is None or connection.paused_us:
            return
        environment, have = room.environment, subscriber.cursor
        if have == environment.cursor:
            if first:
                connection.pipe.send(environment.current(subscriber.id))
        elif not _is_ahead(have, environment.cursor):
            self._send_state(connection, subscriber, environment)

    def _send_state(self, connection: Connection, subscriber: Subscriber, environment: Environment) -> None:
        parts = environment.frames(subscriber.id, subscriber.view, subscriber.cursor)
        subscriber.cursor = environment.cursor
        for part in parts:
            connection.pipe.send(part)

    def _reset(self, connection: Connection, subscriber: Subscriber, have: Cursor | None, cause: str) -> None:
        self._metrics.resyncs.labels(cause).inc()
        room = self.room(subscriber.namespace, subscriber.environment)
        if room is None:
            return
        subscriber.cursor = room.environment.cursor
        for part in room.environment.snapshot(subscriber.id, subscriber.view, have):
            connection.pipe.send(part)

    # --- fan-out ---

    async def _go_on(self, room: Room, walk: Iterator[None]) -> None:
        await asyncio.sleep(0)
        while self._has_more(room, walk):  # noqa: ASYNC110  # lets others have the loop, waits for nothing
            await asyncio.sleep(0)

    def _has_more(self, room: Room, walk: Iterator[None]) -> bool:
        """Sends one slice. A walk that fails is over; the next version begins another."""
        try:
            next(walk)
        except StopIteration:
            room.fanning = None
        except Exception:
            room.fanning = None
            log.exception("fan_out_failed", namespace=room.environment.namespace, environment=room.environment.environment)
        return room.fanning is not None

    def _fan_out(self, room: Room) -> Iterator[None]:
        """Until everybody is at the head, also one that comes meanwhile. Yields where others may have the loop."""
        while room.moved:
            room.moved = False
            environment, logged_us, started_us = room.environment, room.logged_us, now_us()
            target = environment.head
            recipients = yield from self._walk(room, started_us + SLICE_US)
            if recipients:
                self._report_fan_out(environment, target.cursor, recipients, logged_us, started_us)

    def _walk(self, room: Room, until_us: int) -> Generator[None, None, int]:
        """Sends the head to all who are not at it; how many. The frame of those who were at the same version is looked up once."""
        environment = room.environment
        sent = 0
        for (view, number), members in list(room.groups.items()):
            have, target = object(), None
            parts: list[bytes] = []
            for subscriber, connection in list(members.items()):
                if connection.paused_us or subscriber.cursor is environment.cursor:
                    continue
                if subscriber.cursor is not have or target is not environment.cursor:
                    have, target = subscriber.cursor, environment.cursor
                    if subscriber.cursor == target or _is_ahead(subscriber.cursor, target):
                        have = object()
                        continue
                    parts = environment.frames(number, view, subscriber.cursor)
                subscriber.cursor = target
                for part in parts:
                    connection.pipe.send(part)
                sent += 1
                if sent % SLICE == 0 and now_us() >= until_us:
                    yield
                    until_us = now_us() + SLICE_US
            self._frames_sent.inc(len(members))
        return sent

    async def _push_again(self, room: Room, trace: str | None) -> None:
        everybody = [(each, connection) for members in room.groups.values() for each, connection in members.items()]
        made: dict[tuple[Group, Cursor | None, Cursor], list[bytes]] = {}
        for index, (subscriber, connection) in enumerate(everybody):
            if index % PUSH_SLICE == PUSH_SLICE - 1:
                await asyncio.sleep(0)
            head = room.environment.cursor
            if subscriber.runs == head or connection.paused_us or connection.session not in self._connections:
                continue
            key = ((subscriber.view, subscriber.id), subscriber.runs, head)
            if key not in made:
                made[key] = room.environment.pushed_again(subscriber.id, subscriber.view, subscriber.runs, trace)
            subscriber.cursor = head
            for part in made[key]:
                connection.pipe.send(part)
            self._metrics.resyncs.labels("replay").inc()

    async def _spread_head(self, room: Room) -> None:
        everybody = [(each, connection) for members in room.groups.values() for each, connection in members.items()]
        pause = self._settings.head_spread_s * SLICE / max(len(everybody), 1)
        for index, (subscriber, connection) in enumerate(everybody):
            if room.environment.closed:
                return
            if (
                subscriber.cursor == room.environment.cursor
                and not connection.paused_us
                and connection.session in self._connections
            ):
                connection.pipe.send(room.environment.head_frame(subscriber.id))
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(min(pause, 1.0))

    # --- reports ---

    def report_everybody(self) -> None:
        """Once more, as who is there now: for a ledger that was out of reach. In the background."""
        self._spawn(self._report_everybody())

    async def _report_everybody(self) -> None:
        everybody = [
            (each, connection)
            for room in self._rooms.values()
            for members in room.groups.values()
            for each, connection in members.items()
        ]
        for index, (subscriber, connection) in enumerate(everybody):
            if connection.session in self._connections:
                self._report_joined(subscriber)
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)

    def _report_joined(self, subscriber: Subscriber) -> None:
        """Also once more, when what it declares has changed."""
        session = subscriber.session
        if session.relays:
            return
        declares, subscriber.declares = subscriber.declares, None
        assert session.fingerprint, "nothing is known of a session before its hello"
        self._outbox.put(
            Subscribed(
                namespace=subscriber.namespace,
                environment=subscriber.environment,
                instance=session.instance,
                incarnation=session.incarnation,
                connection=session.connection,
                subscription=subscriber.id,
                view=subscriber.view,
                node=self.node,
                region=self._settings.region,
                token=session.principal.id,
                fingerprint=session.fingerprint,
                have=subscriber.cursor,
                at_us=now_us(),
                declares=declares,
            ),
            session.instance,
        )

    def _report_left(self, subscriber: Subscriber, reason: str) -> None:
        session = subscriber.session
        if session.relays:
            return
        self._outbox.put(
            Unsubscribed(
                namespace=subscriber.namespace,
                environment=subscriber.environment,
                instance=session.instance,
                connection=session.connection,
                subscription=subscriber.id,
                node=self.node,
                reason=reason,
                at_us=now_us(),
            ),
            session.instance,
        )

    def _report_fan_out(
        self, environment: Environment, cursor: Cursor, recipients: int, logged_us: int, started_us: int
    ) -> None:
        done_us = now_us()
        self._metrics.fan_out_seconds.observe((done_us - started_us) / 1e6)
        self._metrics.fan_out_recipients.observe(recipients)
        self._outbox.put(
            FannedOut(
                namespace=environment.namespace,
                environment=environment.environment,
                epoch=cursor.epoch,
                number=cursor.number,
                node=self.node,
                recipients=recipients,
                logged_at_us=logged_us,
                started_at_us=started_us,
                done_at_us=done_us,
            ),
            self.node,
        )

    def _alive(self, *, leaving: bool = False) -> None:
        event = NodeAlive(
            node=self.node, region=self._settings.region, connections=len(self._connections), at_us=now_us(), leaving=leaving
        )
        self._outbox.put(event, self.node)

    def _leave(self, subscriber: Subscriber) -> None:
        room = self.room(subscriber.namespace, subscriber.environment)
        key = (subscriber.view, subscriber.id)
        if room and (members := room.groups.get(key)):
            members.pop(subscriber, None)
            if not members:
                del room.groups[key]
        self._count()

    def _count(self) -> None:
        self._metrics.views.set(sum(len(room.groups) for room in self._rooms.values()))
        self._metrics.subscriptions.set(sum(len(members) for room in self._rooms.values() for members in room.groups.values()))

    # --- the clock, and the end ---

    async def run(self) -> None:
        """Signs of life, silent and stalled connections. Until cancelled."""
        next_sign = 0.0
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() >= next_sign:
                self._alive()
                next_sign = loop.time() + ALIVE_S
            self._look_after(now_us())
            await asyncio.sleep(TICK_S)

    def _look_after(self, at_us: int) -> None:
        slow = 0
        for connection in list(self._connections.values()):
            session = connection.session
            if connection.paused_us:
                slow += 1
                if at_us - connection.paused_us > self._settings.stall_s * 1e6:
                    self.close(connection, problems.SLOW_CONSUMER, "did not read")
                    connection.pipe.abort()
            elif session.instance and session.silent(at_us):
                self.close(connection, problems.UNAVAILABLE, "silent")
            elif not session.instance and at_us - session.opened_us > self._settings.hello_s * 1e6:
                self.close(connection, problems.PROTOCOL, "hello did not come")
        self._metrics.slow_consumers.set(slow)
        issued = min((to_us(room.environment.head.issued_at) for room in self._rooms.values()), default=at_us)
        self._metrics.synced_head_age_seconds.set((at_us - issued) / 1e6)

    async def drain(self, within_s: float) -> None:
        """Asks everybody to connect elsewhere, spread over `within_s` seconds, then closes who is left."""
        self.draining = True
        told = _encode(frames.Drain(within_s=within_s))
        for connection in list(self._connections.values()):
            if not connection.paused_us:
                connection.pipe.send(told)
        deadline = asyncio.get_running_loop().time() + within_s
        while self._connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for index, connection in enumerate(list(self._connections.values())):
            self.close(connection, problems.DRAIN, "the node is going away")
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._alive(leaving=True)

    def admit(self) -> None:
        """Raises Overloaded when no more connections are taken."""
        if self.draining or len(self._connections) >= self._settings.max_connections:
            raise Overloaded("this node takes no more connections now", retry_after=5)

    def _spawn(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("fan_out_failed", exc_info=error)


def _is_ahead(have: Cursor | None, head: Cursor) -> bool:
    """The client was served by a node that has seen more: wait until this one has caught up, rather than show it an older head."""
    return have is not None and have.epoch == head.epoch and have.number >= head.number and have.version != head.version
