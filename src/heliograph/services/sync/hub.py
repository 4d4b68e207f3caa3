"""Who is connected, what they say, and what each is sent.

Subscriptions with equal view and id form a group and share frames; most of a group stand together (`members`), and a version reaches them by
`fan_out`.

A connection whose socket is full leaves the walk, and so does one that is being sent a large frame in parts. When it is through, it gets one frame
from where it was to the head. If it does not drain in time, it is closed: slow clients cost themselves, not others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from random import random
from typing import Final

import msgspec
import structlog

from heliograph.core import frames
from heliograph.core.errors import HeliographError, NotFound, NotReady, Overloaded
from heliograph.core.events import FannedOut, FromSync, NodeAlive, Received
from heliograph.core.feed import Purged, Revoked, ToEdge
from heliograph.core.names import View
from heliograph.core.records import Cursor
from heliograph.core.times import to_us
from heliograph.runtime import problems
from heliograph.runtime.clock import moment_us, now_us
from heliograph.services.sync.connections import Connection, Pipe, Text
from heliograph.services.sync.environment import Content, Environment, is_ahead, is_beyond
from heliograph.services.sync.fan_out import SLICE, FanOut, Room, Take
from heliograph.services.sync.members import Members
from heliograph.services.sync.polls import Gone, Polls
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.reports import Reports
from heliograph.services.sync.session import (
    MISSED_HEARTBEATS,
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
from heliograph.services.sync.transfers import Transfers, is_large
from heliograph.services.sync.turns import Turns
from heliograph.services.sync.wheel import Wheel
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

PUSH_SLICE: Final = 50
"""Snapshots sent again between two turns of the loop: they are larger than deltas."""
ALIVE_S: Final = 2.0
TICK_S: Final = 0.5
WHEEL_SLOTS: Final = 128
"""Of a tick each: a minute, in which most of what a connection waits for is due."""
PATIENCE_HEARTBEATS: Final = MISSED_HEARTBEATS / 2
"""A client not heard of for so long is pinged, and has as long again to answer."""
NEVER_US: Final = 1 << 62
"""Of a session without a heartbeat: who holds it knows by other means that its client is there."""
FIND_S: Final = 5.0
MAX_OWNERS: Final = 200_000
MAX_EARLY: Final = 2
MAX_EARLY_BYTES: Final = 64 * 1024 * 1024
"""Messages of one connection, and bytes of all, that wait until somebody hears the hello in them."""
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Arrival:
    """A subscription as it was asked for."""

    connection: Connection
    subscriber: Subscriber


class Hub:
    """Belongs to one event loop. Implements `History` for its sessions."""

    def __init__(self, node: str, settings: HubSettings, outbox: Outbox, metrics: Metrics) -> None:
        self.node = node
        self._settings = settings
        self._outbox = outbox
        self._reports = Reports(node, settings.region, outbox, metrics)
        self._metrics = metrics
        self._frames_received = metrics.frames_received.labels("text")
        self._rooms: dict[tuple[str, str], Room] = {}
        self._connections: dict[Session, Connection] = {}
        self._instances: dict[str, Connection] = {}
        self._owners: OrderedDict[str, tuple[str, int]] = OrderedDict()  # instance -> token, newest incarnation
        self._awaited: dict[tuple[str, str], dict[Subscriber, Arrival]] = {}
        self._sought: dict[tuple[str, str], set[asyncio.Future[Environment | HeliographError]]] = {}
        self.fan_out = FanOut(self._send, self._spawn, self._reports, metrics)
        self._polls = Polls(metrics, self.fan_out.goes_on)
        self._turns = Turns(self.fan_out.goes_on)
        self._said = Turns(self.fan_out.goes_on)
        """What clients say during a fan-out: by the thousand, and no version is to wait for it."""
        self._acknowledgements = Turns(lambda: self.fan_out.goes_on() or len(self._said) > 0)
        """Clients need them to forget, and have time; what is still to be said to the log has not."""
        self._heard = 0
        self._transfers = Transfers(self._turns, settings.transfer_bytes, metrics, self._free)
        self._early_bytes = 0
        self.warm = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self._ended = False
        self.look_for: Callable[[str, str], None] = self.no_environment
        """Asked for an environment that is not known here; answers with `add_environment`, `no_environment` or `refuse_environment`."""
        self._wheel: Wheel[Connection] = Wheel(moment_us(), tick_us=int(TICK_S * 1e6), slots=WHEEL_SLOTS)
        self._slow = 0
        metrics.connections.set_function(lambda: len(self._connections))
        metrics.views.set_function(lambda: sum(len(room.groups) for room in self._rooms.values()))
        metrics.subscriptions.set_function(
            lambda: sum(len(members) for room in self._rooms.values() for members in room.groups.values())
        )
        self.check_renewal: Callable[[Connection, str], None] = lambda *_: None
        """Told that a client has a new token."""

    # --- environments ---

    def room(self, namespace: str, environment: str) -> Room | None:
        return self._rooms.get((namespace, environment))

    async def find(self, namespace: str, environment: str) -> Environment:
        """Asks the registry about one that is not known here. Raises NotFound; Unavailable while this node is not warm, cannot have it now, or nobody
        answers."""
        if not self.warm:
            raise NotReady("this node is loading", retry_after=1)
        key = (namespace, environment)
        if (room := self._rooms.get(key)) is not None:
            room.asked_us = now_us()
            return room.environment
        found: asyncio.Future[Environment | HeliographError] = asyncio.get_running_loop().create_future()
        self._sought.setdefault(key, set()).add(found)
        self.look_for(*key)
        try:
            async with asyncio.timeout(FIND_S):
                answer = await found
        except TimeoutError:
            raise NotReady(
                f"whether there is an environment {namespace}/{environment} is not known now", retry_after=1
            ) from None
        finally:
            self._seeks_no_more(key, found)
        if isinstance(answer, HeliographError):
            raise answer
        return answer

    def _seeks_no_more(self, key: tuple[str, str], found: asyncio.Future[Environment | HeliographError]) -> None:
        if seekers := self._sought.get(key):
            seekers.discard(found)
            if not seekers:
                del self._sought[key]

    def environments(self) -> Iterable[Environment]:
        return (room.environment for room in self._rooms.values())

    def add_environment(self, environment: Environment) -> None:
        """Those who asked for it before it was known are served now."""
        key = (environment.namespace, environment.environment)
        self._rooms[key] = Room(environment)
        for arrival in self._awaited.pop(key, {}).values():
            self._turns.later(partial(self._place, arrival))
        self._tell_seekers(key, environment)

    def _tell_seekers(self, key: tuple[str, str], found: Environment | HeliographError) -> None:
        for each in self._sought.pop(key, ()):
            if not each.done():
                each.set_result(found)

    def no_environment(self, namespace: str, environment: str, detail: str = "") -> None:
        """The registry does not know it either, any more perhaps."""
        missing = NotFound(detail or f"there is no environment {namespace}/{environment}")
        self.remove_environment(namespace, environment, missing.detail)
        self.refuse_environment(namespace, environment, missing)

    def refuse_environment(self, namespace: str, environment: str, why: HeliographError) -> None:
        """Those who wait for it are told."""
        for arrival in self._awaited.pop((namespace, environment), {}).values():
            self._end_subscription(arrival.connection, arrival.subscriber, why)
        self._tell_seekers((namespace, environment), why)

    def _end_subscription(self, connection: Connection, subscriber: Subscriber, why: HeliographError) -> None:
        """A client keeps its subscriptions for as long as it is connected; an edge has others in place of one that ends."""
        connection.pipe.send(_encode(frames.ErrorFrame(code=why.code, detail=why.detail, subscription=subscriber.id)))
        if connection.session.relays:
            connection.session.subscribers.pop(subscriber.id, None)
            self._leave(subscriber)

    def remove_environment(self, namespace: str, environment: str, detail: str) -> None:
        """It is gone: its subscribers are told, and keep what they run on. They ask again when they come back; should it be restored by then, they
        are served."""
        room = self._rooms.pop((namespace, environment), None)
        if room is None:
            return
        for members in room.groups.values():
            for subscriber, connection in members.items():
                self._end_subscription(connection, subscriber, NotFound(detail))
                self._reports.left(subscriber, "environment deleted")
        room.environment.close()
        self._wake(room.environment)

    def moved(self, environment: Environment, logged_us: int) -> None:
        """The head is another one: send it to everybody; at once, and what a first slice does not reach in the background."""
        room = self._rooms[environment.namespace, environment.environment]
        room.logged_us = logged_us
        room.moved = True
        self._wake(environment)
        self.fan_out.begin(room)

    def _wake(self, environment: Environment) -> None:
        if self._polls.awaits(environment):
            self._spawn(self._polls.wake(environment))

    async def hold(self, environment: Environment, have: Cursor, wait_s: float, gone: Gone) -> None:
        """A request's wait for the version after `have`; it counts as a connection. Raises Overloaded; NotFound when the environment is deleted
        meanwhile."""
        if self.draining:
            return
        if is_beyond(have, environment.cursor):
            have = environment.cursor  # served by a node that has seen more: what comes next here may be it
        if environment.cursor == have:
            self.admit()
        await self._polls.hold(environment, have, wait_s, gone)

    async def gathered(self, environment: Environment, view: View, have: Cursor | None) -> None:
        """Until the frame for a reader at `have` is at hand, or was. Should that fail, whoever makes the frame is told why."""
        room = self.room(environment.namespace, environment.environment)
        if room is None or environment.at_hand(view, have):
            return
        done = asyncio.Event()
        self._gather(room, view, lambda _: done.set())
        await done.wait()

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
        if room is None:
            return True
        head = room.environment.cursor
        return (cursor.epoch, cursor.number) > (head.epoch, head.number)

    def lost(self, namespace: str, environment: str, cursor: Cursor) -> bool:
        room = self.room(namespace, environment)
        return room is not None and cursor.epoch < room.environment.cursor.epoch and not room.environment.knows(cursor)

    def view_digest(self, subscriber: Subscriber) -> str:
        """Empty while the subscriber is not at the head, or what brings it there is on its way: nothing can be compared then."""
        room = self.room(subscriber.namespace, subscriber.environment)
        connection = self._connections.get(subscriber.session)
        if room is None or connection is None or connection.held or subscriber.cursor != room.environment.cursor:
            return ""
        return room.environment.view_digest(subscriber.view)

    # --- connections ---

    def connect(self, session: Session, pipe: Pipe) -> Connection:
        connection = Connection(session, pipe, moment_us(), moment_us())
        self._connections[session] = connection
        self._look_again(connection)
        return connection

    def begin(self, connection: Connection, opened: Opened) -> None:
        """A session that is open already has its place: as after a hello that came as a frame."""
        self._turns.do(lambda: self._do(connection, opened) if connection.session in self._connections else None)

    def disconnect(self, connection: Connection, reason: str) -> None:
        session = connection.session
        if self._connections.pop(session, None) is None:
            return
        self._wheel.drop(connection)
        if connection.paused_us:
            self._count_slow(-1)
        self._transfers.ended(connection)
        self._unheard(connection)
        if self._instances.get(session.instance) is connection:
            del self._instances[session.instance]
        for subscriber in session.subscribers.values():
            self._leave(subscriber)
            self._reports.left(subscriber, reason)

    def close(self, connection: Connection, code: int, reason: str) -> None:
        self._metrics.connections_closed.labels(str(code)).inc()
        connection.pipe.close(code, reason)
        self.disconnect(connection, reason)

    def take(self, connection: Connection, text: bytes) -> None:
        """A text message has come. The first, which costs most to answer and comes from thousands at once, is heard in its turn."""
        self._heard += 1
        if not connection.session.instance:
            self._take_early(connection, text)
        elif self.fan_out.walks or self._said:
            self._put_off(connection, text)
        else:
            self._hear(connection, text, now_us())

    def _take_early(self, connection: Connection, text: bytes) -> None:
        if self._early_bytes + len(text) > MAX_EARLY_BYTES:
            self.close(connection, problems.OVERLOADED, "too many begin at once")
        elif connection.early is None:
            self._keep_early(connection, text)
            self._turns.do(partial(self._begin_to_hear, connection))
        elif len(connection.early) < MAX_EARLY:
            self._keep_early(connection, text)
        else:
            self.close(connection, problems.PROTOCOL, "too much before the welcome")

    def _put_off(self, connection: Connection, text: bytes) -> None:
        """How much one may say is its allowance's matter; how much all say at once, that nothing is put off any more."""
        if connection.early is None:
            self._said.later(partial(self._begin_to_hear, connection))
        self._keep_early(connection, text)
        if self._early_bytes > MAX_EARLY_BYTES:
            self._begin_to_hear(connection)

    def _keep_early(self, connection: Connection, text: bytes) -> None:
        self._early_bytes += len(text)
        if connection.early is None:
            connection.early = []
        connection.early.append((text, now_us()))

    def _begin_to_hear(self, connection: Connection) -> None:
        for text, at_us in self._unheard(connection):
            if connection.session in self._connections:
                self._hear(connection, text, at_us)

    def _unheard(self, connection: Connection) -> list[Text]:
        early, connection.early = connection.early or [], None
        for text, _ in early:
            self._early_bytes -= len(text)
        return early

    def _hear(self, connection: Connection, text: bytes, at_us: int) -> None:
        for effect in connection.session.take(text, at_us):
            if connection.session not in self._connections:
                return
            self._do(connection, effect)

    def gone(self, connection: Connection) -> None:
        """Its client has left. What it said by then is heard, its receipts above all."""
        if connection.session.instance:
            self._begin_to_hear(connection)
        self.disconnect(connection, "connection lost")

    def paused(self, connection: Connection) -> None:
        """Its socket is full: it leaves the fan-out, and must drain at a pace that even a slow line has. Said again when it has drained and is full
        again of what was waiting."""
        if not connection.paused_us:
            self._metrics.slow_consumers_entered.inc()
            self._count_slow(1)
        connection.paused_us = moment_us()
        connection.hold()
        patience_s = self._settings.stall_s + connection.pipe.queued() / self._settings.slow_bytes_per_s
        connection.stall_us = connection.paused_us + int(patience_s * 1e6)
        self._look_again(connection)

    def resumed(self, connection: Connection) -> None:
        """It takes again: one frame from where it was to the head, and what it had asked for. Full again, it is out again."""
        connection.paused_us = 0
        self._count_slow(-1)
        self._look_again(connection)
        if connection.transfer is not None:
            self._transfers.resumed(connection)
        else:
            self._free(connection)
        self._acknowledge(connection)

    def _free(self, connection: Connection) -> None:
        """All that was sent has been taken: what was left out meanwhile."""
        connection.held = False
        for subscriber in connection.session.subscribers.values():
            if (doubted := subscriber.doubted) is not None:
                self._reset(connection, doubted)
            else:
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

    def connections(self) -> list[Connection]:
        """In the order in which they came."""
        return list(self._connections.values())

    def __contains__(self, connection: Connection) -> bool:
        return connection.session in self._connections

    def __len__(self) -> int:
        return len(self._connections)

    # --- effects ---

    def _do(self, connection: Connection, effect: Effect) -> None:
        match effect:
            case Answered(receipt, seq):
                self._store(connection, receipt, seq)
            case Send(frame):
                connection.pipe.send(_encode(frame))
            case Close(code, reason):
                self.close(connection, code, reason)
            case Reset():
                self._reset(connection, effect)
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
                self._place(Arrival(connection, subscriber))
            case Unfollowed(subscriber):
                self._leave(subscriber)
            case Relayed(events, seq):
                self._relay(connection, events, seq)

    def _declared(self, subscribers: tuple[Subscriber, ...]) -> None:
        for subscriber in subscribers:
            if self.room(subscriber.namespace, subscriber.environment):  # otherwise it is told when it joins
                self._reports.joined(subscriber)

    def _open(self, connection: Connection, subscribers: tuple[Subscriber, ...]) -> None:
        if not self._owns(connection):
            return
        connection.pipe.cork()
        try:
            connection.pipe.send(_encode(self._welcome(connection.session)))
            for subscriber in subscribers:
                self._place(Arrival(connection, subscriber))
        finally:
            connection.pipe.uncork()
        self._look_again(connection)

    def _place(self, arrival: Arrival) -> None:
        """Into its room, or among those who wait for one, unless it has left meanwhile."""
        session, subscriber = arrival.connection.session, arrival.subscriber
        if session not in self._connections or session.subscribers.get(subscriber.id) is not subscriber:
            return
        key = (subscriber.namespace, subscriber.environment)
        if room := self._rooms.get(key):
            self._join(room, arrival)
        else:
            self._awaited.setdefault(key, {})[subscriber] = arrival
            self.look_for(*key)

    def _join(self, room: Room, arrival: Arrival) -> None:
        key = arrival.subscriber.view, arrival.subscriber.id
        room.groups.setdefault(key, Members()).join(arrival.subscriber, arrival.connection)
        self._reports.joined(arrival.subscriber)
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
        if connection.session.anonymous:
            return True
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
        """Once, however often it comes: while the log is away, clients say it again and again. One that the outbox has no room for holds the
        acknowledgement of later ones back, so that it comes again, and so do they."""
        if connection.is_taken(seq):
            if seq <= connection.durable:
                self._acknowledge_soon(connection)
            return
        if not self._outbox.put(receipt, receipt.instance, partial(self._durable, connection, seq)):
            if not connection.refuse(seq, moment_us()):
                self._overloaded(connection)
            return
        connection.taken = max(connection.taken, seq)
        if self._is_awaited(receipt):
            self._outbox.hurry()

    def _is_awaited(self, receipt: Received) -> bool:
        """Whether the author of its version waits for it."""
        room = self.room(receipt.namespace, receipt.environment)
        return room is not None and room.environment.answer == "now" and room.environment.cursor.number == receipt.number

    def _relay(self, connection: Connection, events: tuple[FromSync, ...], seq: int) -> None:
        """All of them or, when there is no room, none."""
        if not self._outbox.has_room:
            self._overloaded(connection)
            return
        for each in events:
            if isinstance(each, Received) and self._is_awaited(each):
                self._outbox.hurry()
            self._outbox.put(each, each.node if isinstance(each, (FannedOut, NodeAlive)) else each.instance)
        connection.taken = max(connection.taken, seq)
        self._outbox.after(partial(self._durable, connection, seq))

    def _overloaded(self, connection: Connection) -> None:
        self.close(connection, problems.OVERLOADED, "more than the log takes now; send it again later")

    def _durable(self, connection: Connection, seq: int) -> None:
        """Acknowledges once, whatever became durable until its turn."""
        connection.settle(seq)
        self._acknowledge_soon(connection)

    def _acknowledge_soon(self, connection: Connection) -> None:
        if not connection.ack_due and connection.session in self._connections:
            connection.ack_due = True
            self._acknowledgements.later(partial(self._acknowledge, connection))

    def _acknowledge(self, connection: Connection) -> None:
        if connection.paused_us or not connection.ack_due:  # when it takes again, all that was missed is one
            return
        connection.ack_due = False
        if connection.session in self._connections:
            connection.pipe.send(_ack(connection.acknowledged(moment_us())))

    # --- bringing a subscriber up to date ---

    def _catch_up(self, connection: Connection, subscriber: Subscriber, *, first: bool = False) -> None:
        room = self.room(subscriber.namespace, subscriber.environment)
        subscriber.owed |= first
        if room is None or connection.held:
            return
        environment, have = room.environment, subscriber.cursor
        if have == environment.cursor:
            if subscriber.owed:
                connection.pipe.send(environment.current(subscriber.id))
        elif not is_ahead(have, environment.cursor):
            self._send_state(connection, subscriber, room)
        subscriber.owed = False
        self._take_in(connection, subscriber, room)

    def _take_in(self, connection: Connection, subscriber: Subscriber, room: Room) -> None:
        """Who is up to date stands with the others for the next version."""
        head, members = room.environment.cursor, room.groups.get((subscriber.view, subscriber.id))
        if members is None or subscriber not in members.alone or connection.held:
            return  # of a room that is no more; or out of the walk
        if subscriber.own == head:
            subscriber.own = head
            members.take_in(subscriber, connection.way)

    def _send_state(self, connection: Connection, subscriber: Subscriber, room: Room) -> None:
        environment = room.environment
        if not environment.at_hand(subscriber.view, subscriber.cursor):
            self._await_content(connection, subscriber, room)
            return
        parts = environment.frames(subscriber.id, subscriber.view, subscriber.cursor)
        subscriber.cursor = environment.cursor
        self._send(connection, parts)

    def _await_content(self, connection: Connection, subscriber: Subscriber, room: Room) -> None:
        connection.hold()
        self._gather(room, subscriber.view, partial(self._hand_out, room, subscriber, connection))

    def _gather(self, room: Room, view: View, take: Take) -> None:
        """A large view takes many steps: once for all who want it, in the turns of such work. `take` gets its turn when that is done."""
        if view not in room.gathering:
            room.gathering[view] = []
            self._turns.later(partial(self._gather_on, room, view, room.environment.gather(view)))
        room.gathering[view].append(take)

    def _gather_on(self, room: Room, view: View, steps: Generator[None, None, Content]) -> None:
        content = None
        try:
            next(steps)
        except StopIteration as done:
            content = done.value
        except Exception:
            log.exception("view_not_gathered", namespace=room.environment.namespace, environment=room.environment.environment)
        else:
            self._turns.later(partial(self._gather_on, room, view, steps))
            return
        for take in room.gathering.pop(view):
            self._turns.later(partial(take, content))

    def _hand_out(self, room: Room, subscriber: Subscriber, connection: Connection, content: Content | None) -> None:
        """What was gathered, though the head may have moved on; from there it goes on as ever."""
        if connection.session not in self._connections or not connection.held or connection.paused_us or connection.transfer:
            return  # gone; or brought up to date otherwise, when it is free
        if content is None:
            self.close(connection, problems.UNAVAILABLE, "its view could not be read; connect again")
            return
        connection.held = False
        if not is_ahead(subscriber.cursor, content.cursor):
            parts = room.environment.parts_of(content, subscriber.id, subscriber.cursor)
            subscriber.cursor = content.cursor
            self._send(connection, parts)
        if not connection.held:
            self._free(connection)

    def _send(self, connection: Connection, parts: list[bytes]) -> None:
        if is_large(parts):
            self._transfer(connection, parts)
        else:
            connection.pipe.send(parts[0])

    def _transfer(self, connection: Connection, parts: list[bytes]) -> None:
        connection.pipe.uncork()  # a part at a time, as the socket takes them
        connection.hold()
        self._transfers.begin(connection, parts)

    def _reset(self, connection: Connection, asked: Reset) -> None:
        """Once, however often it is asked for while nothing can be sent."""
        subscriber = asked.subscriber
        room = self.room(subscriber.namespace, subscriber.environment)
        subscriber.doubted = asked if connection.held else None
        if room is None or connection.held:
            return
        self._metrics.resyncs.labels(asked.cause).inc()
        parts = room.environment.snapshot(subscriber.id, subscriber.view, asked.have)
        subscriber.cursor = room.environment.cursor
        connection.pipe.charge(sum(map(len, parts)))
        self._send(connection, parts)

    # --- to everybody, without haste ---

    async def _push_again(self, room: Room, trace: str | None) -> None:
        everybody = [(each, connection) for members in room.groups.values() for each, connection in members.items()]
        made: dict[tuple[View, int, Cursor | None, Cursor], list[bytes]] = {}
        for index, (subscriber, connection) in enumerate(everybody):
            if index % PUSH_SLICE == PUSH_SLICE - 1:
                await asyncio.sleep(0)
            head = room.environment.cursor
            if subscriber.runs == head or connection.held or connection.session not in self._connections:
                continue
            key = (subscriber.view, subscriber.id, subscriber.runs, head)
            if key not in made:
                made[key] = room.environment.pushed_again(subscriber.id, subscriber.view, subscriber.runs, trace)
            subscriber.cursor = head
            self._send(connection, made[key])
            self._metrics.resyncs.labels("replay").inc()

    async def _spread_head(self, room: Room) -> None:
        everybody = [(each, connection) for members in room.groups.values() for each, connection in members.items()]
        pause = self._settings.head_spread_s * SLICE / max(len(everybody), 1)
        for index, (subscriber, connection) in enumerate(everybody):
            if room.environment.closed:
                return
            if subscriber.cursor == room.environment.cursor and not connection.held and connection.session in self._connections:
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
                self._reports.joined(subscriber)
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)

    def _leave(self, subscriber: Subscriber) -> None:
        """Wherever it stands: nothing may be written to its socket's number any more, which is somebody else's soon."""
        if subscriber.company is not None:
            subscriber.company.part(subscriber)
        place, key = (subscriber.namespace, subscriber.environment), (subscriber.view, subscriber.id)
        if (room := self._rooms.get(place)) and (members := room.groups.get(key)):
            members.leave(subscriber)
            if not members:
                del room.groups[key]
        if waiting := self._awaited.get(place):
            waiting.pop(subscriber, None)
            if not waiting:
                del self._awaited[place]

    # --- the clock, and the end ---

    async def run(self) -> None:
        """Signs of life, silent and stalled connections. Until cancelled, or this node has ended: there is no sign of life after its last."""
        next_sign = 0.0
        loop = asyncio.get_running_loop()
        while not self._ended:
            if loop.time() >= next_sign:
                self._reports.alive(len(self._connections))
                next_sign = loop.time() + ALIVE_S
                self._tell_age()
            self._count_heard()
            for index, connection in enumerate(self._wheel.due(moment_us())):
                self._look_after(connection, moment_us())
                if index % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
            await asyncio.sleep(TICK_S)

    def _look_after(self, connection: Connection, at_us: int) -> None:
        """Something of this one is due: the end of a stall, its hello, a ping, or the answer to one. Nobody is closed for a silence in which it was
        not asked: it may be this node that was not there."""
        if connection.paused_us:
            if at_us >= connection.stall_us:
                self.close(connection, problems.SLOW_CONSUMER, "did not read")
                connection.pipe.abort()
                return
        elif not connection.session.instance:
            if not connection.early and at_us >= self._due_us(connection):
                self.close(connection, problems.PROTOCOL, "hello did not come")
                return
        elif at_us >= self._due_us(connection):
            if connection.pinged_us - connection.heard_us > connection.session.heartbeat_us:  # the ping is the last that was
                self.close(connection, problems.UNAVAILABLE, "silent")
                return
            self._metrics.pings_sent.inc()
            connection.pinged_us = at_us
            connection.pipe.ping()
        self._look_again(connection)

    def _look_again(self, connection: Connection) -> None:
        self._wheel.put(connection, self._due_us(connection))

    def _due_us(self, connection: Connection) -> int:
        """When something is to be done about it, should it stay as it is."""
        if connection.paused_us:
            return connection.stall_us
        if not connection.session.instance:
            return connection.opened_us + int(self._settings.hello_s * 1e6)
        if not connection.session.heartbeat_us:
            return NEVER_US
        return max(connection.heard_us, connection.pinged_us) + int(PATIENCE_HEARTBEATS * connection.session.heartbeat_us)

    def _count_heard(self) -> None:
        self._frames_received.inc(self._heard)
        self._heard = 0

    def _count_slow(self, more: int) -> None:
        self._slow += more
        self._metrics.slow_consumers.set(self._slow)

    def _tell_age(self) -> None:
        at_us = now_us()
        issued = min((to_us(room.environment.head.issued_at) for room in self._rooms.values()), default=at_us)
        self._metrics.synced_head_age_seconds.set((at_us - issued) / 1e6)

    def leave(self) -> None:
        """This node goes away: nobody is let in any more, and nobody who polls is held. See `drain`."""
        self.draining = True
        self._spawn(self._polls.drain(self._settings.drain_s / 2))

    async def end(self) -> None:
        """After everybody has gone."""
        self._ended = True
        await self._polls.drain(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reports.alive(len(self._connections), leaving=True)
        self._count_heard()

    def admit(self) -> None:
        """Raises NotReady, or Overloaded, when no more connections are taken."""
        if self.draining:
            raise NotReady("this node is going away", retry_after=1)
        if len(self._connections) + len(self._polls) >= self._settings.max_connections:
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


@lru_cache(maxsize=1024)
def _ack(seq: int) -> bytes:
    """Most clients are at the same one."""
    return _encode(frames.ReceiptAck(seq=seq))
