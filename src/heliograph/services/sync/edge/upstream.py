"""The environments that an edge follows. Each frame of the parent's is verified as any client does it, and then in force in the hub.

An environment is followed when the first client asks for it, or always if it is to be held; when nobody has asked for long, it is dropped with its
copy. A parent that sends what does not verify changes nothing here: a snapshot is asked for, with backoff, and what was verified is served on.
What an edge adds to a reader of everything is the history's leaves, for the paths that its own clients need: one version's come with it, those
of a jump are asked for, and their root is in the signed version. With them it asks for the recover versions, which its clients need that run on
what a fail-over lost: each is signed, and in that history.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from heliograph.core import feed, frames
from heliograph.core.delta import Entry
from heliograph.core.digest import spell
from heliograph.core.errors import BadProof, BadSignature, HeliographError, NotFound, Overloaded, Refused, Unavailable
from heliograph.core.history import History
from heliograph.core.records import Cursor, Head, Signed, Version
from heliograph.core.replica import Assembler, Candidate, Held, Replica, StateFrame
from heliograph.core.times import to_us
from heliograph.core.trust import Trust
from heliograph.runtime.clock import now_us
from heliograph.runtime.retry import delay
from heliograph.services.sync.edge.copies import Copies
from heliograph.services.sync.edge.parent import Parent
from heliograph.services.sync.edge.settings import EdgeSettings
from heliograph.services.sync.edge.uplink import Uplink
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.feed import EVERYTHING
from heliograph.services.sync.hub import Hub
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

STATE: Final = "state-"
RECOVERIES: Final = "recoveries-"
"""Beside the state: a release that does not know them reads it all the same."""
WAITING: Final = 256
"""Frames of one environment between the socket and its verification; the socket waits when there are more."""
INLINE: Final = 64
"""Changes up to which a frame is verified on the loop, at some ten microseconds each; more go to a thread."""
RESYNC_BASE_S: Final = 1.0
RESYNC_CAP_S: Final = 60.0
TICK_S: Final = 1.0
REPORT_WITHIN_S: Final = 5.0
FORGET_S: Final = 60.0
"""After a reconnect what was purged meanwhile is not known: so long clients that lag may still get deltas from older versions, then snapshots."""

Frame = frames.SnapshotFrame | frames.DeltaFrame | frames.AdvanceFrame | frames.Current | frames.HeadFrame | feed.Purged
Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class Channel:
    """One environment. ``id``: of its subscription on the present connection; ``confirmed``: the parent's word of it came on that one."""

    key: Key
    id: int = 0
    replica: Replica | None = None
    environment: Environment | None = None
    assembler: Assembler = field(default_factory=Assembler)
    frames: asyncio.Queue[tuple[int, Frame]] = field(default_factory=lambda: asyncio.Queue(WAITING))
    task: asyncio.Task[None] | None = None
    asked_us: int = 0
    confirmed: bool = False
    refusals: int = 0
    healing: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentStatus:
    namespace: str
    environment: str
    number: int | None
    issued_at: str | None
    expired: bool
    confirmed: bool
    """Whether the parent has said since it is connected that this is its head."""


class Upstream:
    """Implements `uplink.Listener`, and what a hub asks when it does not know an environment."""

    def __init__(
        self,
        settings: EdgeSettings,
        hub: Hub,
        uplink: Uplink,
        parent: Parent,
        copies: Copies,
        metrics: Metrics,
        *,
        revoked: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._uplink = uplink
        self._parent = parent
        self._copies = copies
        self._metrics = metrics
        self._revoked = revoked
        self._channels: dict[Key, Channel] = {}
        self._by_id: dict[int, Channel] = {}
        self._next_id = 0
        self._ending: set[asyncio.Task[None]] = set()
        uplink.listener = self
        hub.look_for = self._seek

    async def load(self) -> int:
        """What the disk has, verified; how many environments. Nothing, as long as no trust root is known."""
        if (trust := self._parent.trust) is None:
            return 0
        for name in await asyncio.to_thread(self._copies.names, STATE):
            namespace, _, environment = name.removeprefix(STATE).partition("~")
            if (found := await asyncio.to_thread(self._recalled, name, trust, (namespace, environment))) is not None:
                channel = self._channel((namespace, environment))
                channel.replica, channel.environment = found
                self._hub.add_environment(found[1])
        return len(self._channels)

    async def run(self) -> None:
        """Follows what is to be held, and drops what nobody asks for. Until cancelled."""
        for key in self._settings.held:
            self._channel(key)
        while True:
            await asyncio.sleep(TICK_S)
            self._metrics.edge_staleness_seconds.set(self._uplink.away_s())
            for channel in list(self._channels.values()):
                if self._is_idle(channel):
                    self._drop_idle(channel)

    async def close(self) -> None:
        for channel in list(self._channels.values()):
            self._end(channel)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def status(self) -> list[EnvironmentStatus]:
        return [_status(channel) for _, channel in sorted(self._channels.items())]

    # --- what is followed ---

    def _seek(self, namespace: str, environment: str) -> None:
        if (namespace, environment) not in self._channels and len(self._channels) >= feed.MAX_FOLLOWED:
            full = Overloaded(f"this edge follows {feed.MAX_FOLLOWED:,} environments, and no more now")
            self._hub.refuse_environment(namespace, environment, full)
            return
        self._channel((namespace, environment)).asked_us = now_us()

    def _channel(self, key: Key) -> Channel:
        if (known := self._channels.get(key)) is not None:
            return known
        channel = self._channels[key] = Channel(key, asked_us=now_us())
        channel.task = asyncio.create_task(self._work(channel), name="edge environment")
        self._metrics.edge_environments.set(len(self._channels))
        self._subscribe(channel)
        return channel

    def _subscribe(self, channel: Channel) -> None:
        if not self._uplink.connected:
            return
        self._by_id.pop(channel.id, None)
        self._next_id += 1
        channel.id, channel.confirmed = self._next_id, False
        self._by_id[channel.id] = channel
        namespace, environment = channel.key
        have = channel.replica.cursor if channel.replica else None
        self._uplink.send(feed.Follow(id=channel.id, namespace=namespace, environment=environment, have=have))

    def _is_idle(self, channel: Channel) -> bool:
        if channel.key in self._settings.held:
            return False
        room = self._hub.room(*channel.key)
        if room is not None:
            channel.asked_us = max(channel.asked_us, now_us() if room.groups else room.asked_us)
        return now_us() - channel.asked_us > self._settings.edge_idle_s * 1e6

    def _drop_idle(self, channel: Channel) -> None:
        log.info("edge_environment_dropped", namespace=channel.key[0], environment=channel.key[1])
        self._forget(channel, "this edge follows it no longer; ask again")

    def _forget(self, channel: Channel, detail: str) -> None:
        self._unfollow(channel)
        self._copies.drop(_name(channel.key))
        self._copies.drop(_name(channel.key, RECOVERIES))
        self._hub.no_environment(*channel.key, detail)

    def _unfollow(self, channel: Channel) -> None:
        """The parent is told also when it was the one who ended it: one of an older release keeps its place taken until then."""
        self._uplink.send(feed.Unfollow(id=channel.id))
        self._end(channel)

    def _end(self, channel: Channel) -> None:
        self._channels.pop(channel.key, None)
        self._by_id.pop(channel.id, None)
        self._metrics.edge_environments.set(len(self._channels))
        if channel.healing:
            channel.healing.cancel()
        while not channel.frames.empty():  # the connection may be waiting for room among them
            channel.frames.get_nowait()
        if channel.task:
            channel.task.cancel()
            self._ending.add(channel.task)
            channel.task.add_done_callback(self._ending.discard)

    # --- Listener ---

    def connected(self, away_s: float | None) -> None:
        for channel in self._channels.values():
            if channel.replica and self._parent.trust:
                channel.replica.trust = self._parent.trust
            self._subscribe(channel)
        self._hub.report_everybody()  # the ledger may have given up on them meanwhile, or not all reports were kept
        if away_s is not None:
            self._hub.tell_edges(frames.Drain(within_s=REPORT_WITHIN_S))  # they come back, and report theirs

    def lost(self) -> None:
        self._by_id.clear()
        for channel in self._channels.values():
            channel.confirmed = False

    async def take(self, frame: feed.ToEdge) -> None:
        match frame:
            case feed.Revoked(tokens=tokens):
                self._revoked(tokens)
            case feed.Purged(namespace=namespace):
                for channel in [each for each in self._channels.values() if each.key[0] == namespace]:
                    await channel.frames.put((channel.id, frame))  # after what came before it
            case frames.ErrorFrame():
                self._told_no(frame)
            case frames.SnapshotFrame() | frames.DeltaFrame() | frames.AdvanceFrame() | frames.Current() | frames.HeadFrame():
                if found := self._by_id.get(frame.subscription):
                    await found.frames.put((found.id, frame))

    def _told_no(self, frame: frames.ErrorFrame) -> None:
        channel = self._by_id.get(frame.subscription or 0)
        if channel is None:
            return
        if frame.code == NotFound.code:
            self._forget(channel, frame.detail)
        elif channel.environment is None:  # it may exist: whoever asks again has it asked for again
            self._unfollow(channel)
            self._hub.refuse_environment(*channel.key, Unavailable(f"the parent says {frame.code}: {frame.detail}"))
        else:
            log.error("edge_environment_refused", namespace=channel.key[0], environment=channel.key[1], code=frame.code)

    # --- one environment's frames, in order ---

    async def _work(self, channel: Channel) -> None:
        while True:
            subscription, frame = await channel.frames.get()
            if subscription != channel.id:
                continue  # of a connection that is gone
            try:
                await self._step(channel, frame)
            except Refused as refusal:
                self._refused(channel, refusal)
            except Unavailable as error:
                log.warning("edge_history_not_told", namespace=channel.key[0], environment=channel.key[1], error=error.detail)
                self._heal(channel)
            except Exception:  # what a parent can make our own code raise costs its environment some time, never the edge
                log.exception("edge_environment_failed", namespace=channel.key[0], environment=channel.key[1])
                self._heal(channel)

    async def _step(self, channel: Channel, frame: Frame) -> None:
        if isinstance(frame, feed.Purged):
            self._purged(channel, frame)
            return
        replica = self._replica(channel)
        if isinstance(frame, frames.Current | frames.HeadFrame):
            self._renew(channel, replica, frame)
            return
        whole = channel.assembler.add(frame)
        if whole is None:
            return
        candidate = await self._considered(replica, whole)
        if candidate is None:
            self._confirm(channel, frame)
            self._push_again(channel, whole)
            return
        await self._adopt(channel, replica, candidate, whole)
        self._confirm(channel, frame)

    def _replica(self, channel: Channel) -> Replica:
        if channel.replica is None:
            assert self._parent.trust, "no frame comes before the trust root"
            channel.replica = Replica(self._parent.trust, *channel.key, EVERYTHING)
        return channel.replica

    def _renew(self, channel: Channel, replica: Replica, frame: frames.Current | frames.HeadFrame) -> None:
        candidate = replica.consider(frame, now_us())
        if candidate is not None:
            replica.adopt(candidate)
            self._keep(channel)
        environment = channel.environment
        if environment is None or Head.read(frame.head.payload).cursor != environment.cursor:
            return  # of a version that is on its way
        if environment.renew(frame.head):
            self._hub.renewed(environment)
        self._confirm(channel, frame)

    @staticmethod
    async def _considered(replica: Replica, frame: StateFrame) -> Candidate | None:
        held = replica.cursor
        if not isinstance(frame, frames.SnapshotFrame) and frame.from_ != held:
            target = Head.read(frame.head.payload).cursor
            if held is not None and target == held:
                return None
            raise BadProof("a delta from a version that is not held here")
        if len(frame.changes) <= INLINE:
            return replica.consider(frame, now_us())
        return await asyncio.to_thread(replica.consider, frame, now_us())  # nobody else touches this replica meanwhile

    async def _adopt(self, channel: Channel, replica: Replica, candidate: Candidate, frame: StateFrame) -> None:
        held, received_us = candidate.held, now_us()
        past = await self._past(channel, candidate)
        told = [] if past is None else await self._recoveries(channel, candidate, frame)
        environment = channel.environment or self._new_environment(channel.key)
        changed = (held.entries[name] for name in candidate.changed if name in held.entries)
        entries = changed if channel.environment else held.entries.values()
        if len(candidate.changed) <= INLINE or channel.environment:
            _put(environment, held, entries, past, frame)
        else:
            await asyncio.to_thread(_put, environment, held, entries, past, frame)  # nobody knows it yet
        replica.adopt(candidate)
        _note(environment, replica.trust, told)
        self._keep_after(channel, environment)
        if channel.environment is None:
            channel.environment = environment
            self._hub.add_environment(environment)
        else:
            self._hub.moved(environment, received_us)

    def _new_environment(self, key: Key) -> Environment:
        return Environment(*key, past_versions=self._settings.past_versions, frame_cache_bytes=self._settings.frame_cache_bytes)

    async def _past(self, channel: Channel, candidate: Candidate) -> History | None:
        """All versions before the candidate's; None when it follows the one that is here. Raises Unavailable, BadProof."""
        number = candidate.held.head.number
        environment = channel.environment
        if environment is not None and number == environment.cursor.number + 1 and not candidate.restarted:
            return None
        known = environment.history if environment is not None and not candidate.restarted else History()
        keep = min(len(known), number - 1)
        leaves = await self._parent.leaves(*channel.key, keep, number - 1) if keep < number - 1 else []
        return _checked(known.grown(leaves, keep), candidate.held)

    async def _recoveries(self, channel: Channel, candidate: Candidate, frame: StateFrame) -> list[Signed]:
        """The recover versions that may have come by while nobody here saw it. Raises Unavailable."""
        if candidate.held.head.epoch == 1:
            return []
        told = await self._parent.recoveries(*channel.key)
        return [*told, frame.recovery.version] if frame.recovery else told

    def _confirm(self, channel: Channel, frame: StateFrame | frames.Current | frames.HeadFrame) -> None:
        """What began on a connection that is gone by now says nothing of this one."""
        if self._by_id.get(frame.subscription) is not channel:
            return
        channel.refusals = 0
        if not channel.confirmed:
            channel.confirmed = True
            if channel.environment:
                self._forget_later(channel.environment)

    def _push_again(self, channel: Channel, frame: StateFrame) -> None:
        """An operator has what is here told again."""
        if channel.environment and isinstance(frame, frames.SnapshotFrame) and frame.answer == "now":
            self._hub.push_again(channel.environment, frame.trace)

    def _purged(self, channel: Channel, frame: feed.Purged) -> None:
        if channel.environment:
            channel.environment.forget_past()
            self._forget_later(channel.environment)  # the version that took the text away may come after this
            self._keep(channel)
        self._hub.tell_edges(frame)

    @staticmethod
    def _forget_later(environment: Environment) -> None:
        asyncio.get_running_loop().call_later(FORGET_S, _forget_past, environment)

    # --- what does not verify ---

    def _refused(self, channel: Channel, refusal: Refused) -> None:
        self._metrics.edge_refused.labels(refusal.code).inc()
        log.error(
            "edge_refused_its_parent",
            namespace=channel.key[0],
            environment=channel.key[1],
            code=refusal.code,
            error=refusal.detail,
            held=channel.replica.cursor.number if channel.replica and channel.replica.cursor else None,
        )
        if isinstance(refusal, BadSignature):
            self._uplink.reconnect_soon()  # keys may have changed
        self._heal(channel)

    def _heal(self, channel: Channel) -> None:
        """Asks for a snapshot, after a pause that grows as long as none verifies. Until then nobody knows that what is here is the parent's head."""
        channel.confirmed = False
        if channel.healing is not None:
            return
        pause_s = delay(channel.refusals, base_s=RESYNC_BASE_S, cap_s=RESYNC_CAP_S)
        channel.refusals += 1
        channel.healing = asyncio.get_running_loop().call_later(pause_s, self._ask_again, channel)

    def _ask_again(self, channel: Channel) -> None:
        channel.healing = None
        have = channel.replica.cursor if channel.replica else None
        if self._by_id.get(channel.id) is channel:
            self._uplink.send(frames.Resync(subscription=channel.id, have=have))

    # --- the copy ---

    def _keep(self, channel: Channel) -> None:
        if channel.environment:
            self._keep_after(channel, channel.environment)

    def _keep_after(self, channel: Channel, environment: Environment) -> None:
        """The leaves only grow, so those that count now stay what they are."""
        still, leaves = copy.copy(channel.replica), environment.history.levels[0]
        assert still
        count = environment.cursor.number - 1
        self._copies.mark(_name(channel.key), lambda: b"%d\n" % count + feed.join_leaves(leaves[:count]) + still.stored())
        if recoveries := environment.recoveries:
            self._copies.mark(_name(channel.key, RECOVERIES), lambda: msgspec.json.encode(recoveries))

    def _recalled(self, name: str, trust: Trust, key: Key) -> tuple[Replica, Environment] | None:
        """Verified as if the parent had sent it; None for what does not verify, or is damaged."""
        body = self._copies.read(name)
        if body is None:
            return None
        try:
            count, _, rest = body.partition(b"\n")
            size = int(count) * feed.LEAF_BYTES
            replica = Replica.load(rest[size:], trust, *key, EVERYTHING)
            held = replica.held
            assert held
            past = _checked(History().grown(feed.split_leaves(rest[:size]), 0), held)
            environment = self._new_environment(key)
            environment.adopt(
                held.signed_head, held.signed_version, held.trie, held.entries.values(), past, answer="soon", trace=None
            )
        except (HeliographError, msgspec.DecodeError, ValueError) as error:
            log.error("edge_copy_refused", file=name, error=type(error).__name__)
            return None
        _note(environment, trust, self._recalled_recoveries(_name(key, RECOVERIES)))
        return replica, environment

    def _recalled_recoveries(self, name: str) -> list[Signed]:
        try:
            return msgspec.json.decode(self._copies.read(name) or b"[]", type=list[Signed])
        except msgspec.DecodeError as error:
            log.error("edge_copy_refused", file=name, error=type(error).__name__)
            return []


def _put(environment: Environment, held: Held, entries: Iterable[Entry], past: History | None, frame: StateFrame) -> None:
    environment.adopt(held.signed_head, held.signed_version, held.trie, entries, past, answer=frame.answer, trace=frame.trace)


def _note(environment: Environment, trust: Trust, told: Iterable[Signed]) -> None:
    """Of the recover versions that are told, those that are signed, and in the environment's history."""
    for each in told:
        try:
            version = trust.verify_version(each)
        except BadSignature:
            log.error("edge_recovery_refused", namespace=environment.namespace, environment=environment.environment)
            continue
        of_it = (version.namespace, version.environment) == (environment.namespace, environment.environment)
        if of_it and environment.knows(Cursor(version.epoch, version.number, Version.id_of(each.payload))):
            environment.note_recovery(each)


def _checked(past: History, held: Held) -> History:
    """Raises BadProof when these are not the versions that the signed one says came before it."""
    version = Version.read(held.signed_version.payload)
    if len(past) != version.number - 1 or spell(past.root()) != version.history:
        raise BadProof(f"the leaves are not those of the history before version {version.number}")
    return past


def _forget_past(environment: Environment) -> None:
    if not environment.closed:
        environment.forget_past()


def _name(key: Key, kind: str = STATE) -> str:
    return f"{kind}{key[0]}~{key[1]}"


def _status(channel: Channel) -> EnvironmentStatus:
    head = channel.environment.head if channel.environment else None
    return EnvironmentStatus(
        namespace=channel.key[0],
        environment=channel.key[1],
        number=head.number if head else None,
        issued_at=head.issued_at if head else None,
        expired=head is None or to_us(head.expires_at) <= now_us(),
        confirmed=channel.confirmed,
    )
