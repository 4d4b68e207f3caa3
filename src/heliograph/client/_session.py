"""The protocol without I/O: frames in, frames and effects out. Every rule of what a client believes, applies and answers is here or in
`heliograph.core.replica`; transports carry bytes and nothing else, so an application sees the same whichever of them is in use.

Promises, whatever a server or a network does (duplicates, reordering, loss, lies, reconnects):

- `Applied` effects of a subscription come in strictly growing (epoch, number) order, each version at most once;
- nothing is adopted that did not verify, or that the application refused; the last good state stays;
- every version that came is answered by a receipt, and every receipt stays pending until the server says it is durable.

Not thread-safe, no clock of its own: each call is told the `Moment`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

import msgspec

from heliograph.client._clock import ClockOffset, Moment
from heliograph.client._codes import error_of
from heliograph.client._hello import declared_bytes, room_for_schemas
from heliograph.client._identity import Identity
from heliograph.client._live import Proposal, reason_of
from heliograph.client._receipts import Answered, Receipts
from heliograph.client._status import Alarm, Rejection, Source
from heliograph.core import frames
from heliograph.core.errors import BadSignature, Forked, HeliographError, Invalid, Refused
from heliograph.core.records import Cursor, Head, Signed
from heliograph.core.replica import Assembler, Candidate, Replica, StateFrame

SECOND: Final = 1_000_000
RESYNC_FIRST_S: Final = 1.0
RESYNC_CAP_S: Final = 60.0
SILENCE_HEARTBEATS: Final = 3.0  # this many heartbeats without a word from the server: the connection is dead
DAMAGE_RESYNCS: Final = 1
GAP_RESYNCS: Final = 3
RAN: Final = 256
FIRST_HEARTBEAT_S: Final = 1.0
BEAT_US: Final = 250_000
"""Heartbeats are sent at multiples of it of the server's clock, as far as it is known. A node with ten thousand clients hears a hundred at a time
then, instead of being woken by each: a wake-up costs it more than a heartbeat. (The kernel's round_jiffies is for the same.)"""
PATIENT_BEATS: Final = 8
"""Shorter pauses are kept as they are."""
WELCOME_S: Final = 10.0
RETRUST_S: Final = 5.0
RETRY_REFUSED_S: Final = 30.0  # a subscription that the server would not serve: asked for again on a new connection
POLLING_JITTER_MS: Final = 1_000
LEAVE_CAP_S: Final = 600.0  # no server asks us to leave later than this

Accept = Callable[["Channel", Candidate], Proposal]


@dataclass(slots=True)
class Resync:
    """Asking for a snapshot, at a bounded rate until one verifies."""

    wanted: bool = False
    asked: int = 0
    not_before_us: int = 0

    def ask(self, now_us: int, random: Random) -> None:
        pause = min(RESYNC_CAP_S, RESYNC_FIRST_S * 2 ** min(self.asked, 16))
        self.asked += 1
        self.not_before_us = now_us + int(random.uniform(pause / 2, pause) * SECOND)

    def answered(self) -> None:
        self.wanted, self.asked = False, 0


@dataclass(slots=True, eq=False)
class Channel:
    """One subscription: what is held, what was last refused, and what is being asked for again."""

    id: int
    replica: Replica
    source: Source = "none"
    applied_at_us: int = 0
    rejection: Rejection | None = None
    alarm: Alarm | None = None
    unsure: bool = False  # whether the server at the other end may think that something else is held here
    refused: Cursor | None = None  # what the last receipt for a refusal was about
    ran: deque[str] = field(default_factory=lambda: deque(maxlen=RAN))  # ids of the versions that ran here, the latest
    error: HeliographError | None = None
    assembler: Assembler = field(default_factory=Assembler)
    resync: Resync = field(default_factory=Resync)
    declares: Callable[[], frames.Declares] = dict  # what the application can read now
    declared: frames.Declares = field(default_factory=dict)  # what this connection was told of it

    def __post_init__(self) -> None:
        if self.replica.cursor is not None:  # from the disk or the parent process: it runs already
            self.ran.append(self.replica.cursor.version)


@dataclass(frozen=True, slots=True)
class Applied:
    """The application runs on a new version."""

    channel: Channel
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The server's word about this subscription verified; the state is fresh."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Rejected:
    channel: Channel
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Raised:
    channel: Channel
    alarm: Alarm


@dataclass(frozen=True, slots=True)
class Unserved:
    """The server will not serve this subscription, or the whole connection when there is no channel."""

    channel: Channel | None
    error: HeliographError


Effect = Applied | Confirmed | Rejected | Raised | Unserved


class Session:
    """``accept`` shows a verified candidate to the application and raises Invalid when it is rejected."""

    def __init__(
        self,
        identity: Identity,
        fingerprint: frames.Fingerprint,
        channels: Iterable[Channel],
        accept: Accept,
        *,
        random: Random,
    ) -> None:
        self.channels = {channel.id: channel for channel in channels}
        self.offset = ClockOffset()
        self.receipts = Receipts(random)
        self.welcome: frames.Welcome | None = None
        self.leave_at_us: int | None = None
        self.complaint: HeliographError | None = None  # what the server said of the whole connection before it closes it
        self._identity = identity
        self._fingerprint = fingerprint
        self._accept = accept
        self._random = random
        self._room = room_for_schemas(fingerprint, (channel.replica for channel in self.channels.values()))
        self._link: Literal["websocket", "polling", "none"] = "none"
        self._hello_us = 0
        self._heard_us = 0
        self._heartbeat_at_us: int | None = None

    # --- connections -----------------------------------------------------------------------------------------------------------

    def greet(self, now: Moment) -> frames.Hello:
        """A WebSocket is open: the first frame to send on it."""
        self._begin("websocket", now)
        self._hello_us = now.wall_us
        return frames.Hello(
            instance=self._identity.instance,
            incarnation=self._identity.incarnation,
            fingerprint=self._fingerprint,
            subscriptions=self._introduced(),
            sent_at_us=now.wall_us,
        )

    def poll(self, now: Moment) -> None:
        """Polling begins: there is no hello and no heartbeat."""
        self._begin("polling", now)
        self.receipts.again(now_us=now.steady_us, jitter_us=POLLING_JITTER_MS * 1000)

    def lost(self) -> None:
        """The connection is gone. Half a state that came in parts goes with it; nothing else does."""
        self._link = "none"
        self.welcome = None
        self.leave_at_us = None
        self._heartbeat_at_us = None
        self.complaint = None
        for channel in self.channels.values():
            channel.assembler = Assembler()
            channel.unsure = False

    def subscription(self, channel: Channel) -> frames.Subscription:
        """What is wanted, and what is held of it now."""
        replica = channel.replica
        return frames.Subscription(
            id=channel.id,
            namespace=replica.namespace,
            environment=replica.environment,
            view=tuple(replica.view),
            have=replica.cursor,
        )

    def _introduced(self) -> tuple[frames.Subscription, ...]:
        """All of them, with what each declares."""
        self._note_declared()
        return tuple(
            msgspec.structs.replace(self.subscription(each), declares=each.declared or msgspec.UNSET)
            for each in self.channels.values()
        )

    def _note_declared(self) -> bool:
        """Chooses what fits one frame, in the order of binding; whether that is something new to this connection."""
        count, room, frame_room, news = frames.MAX_DECLARED, frames.MAX_DECLARED_BYTES, self._room, False
        for channel in self.channels.values():
            chosen: frames.Declares = {}
            for name, schema in channel.declares().items():
                size, said = len(schema.encode()), declared_bytes(name, schema)
                if count and size <= room and said <= frame_room:
                    count, room, frame_room, chosen[name] = count - 1, room - size, frame_room - said, schema
            news |= chosen != channel.declared
            channel.declared = chosen
        return news

    def _declared_anew(self) -> dict[str, frames.Declares] | frames.Maybe:
        if not self._note_declared():
            return msgspec.UNSET
        return {str(channel.id): channel.declared for channel in self.channels.values()}

    def _begin(self, link: Literal["websocket", "polling"], now: Moment) -> None:
        self.lost()
        self._link = link
        self._heard_us = now.steady_us
        self.receipts.connected({channel.id: channel.replica.cursor for channel in self.channels.values()})

    # --- frames in -------------------------------------------------------------------------------------------------------------

    def take(self, frame: frames.FromServer, now: Moment) -> list[Effect]:
        """Everything that one frame means. Never raises for what a server sends."""
        self._heard_us = now.steady_us
        match frame:
            case frames.SnapshotFrame() | frames.DeltaFrame() | frames.AdvanceFrame():
                return self._state(frame, now)
            case frames.Current() | frames.HeadFrame():
                return self._head(frame, now)
            case frames.ErrorFrame():
                return self._error(frame, now)
            case frames.Welcome():
                self._welcomed(frame, now)
            case frames.ReceiptAck():
                self.receipts.acknowledged(frame.seq)
            case frames.HeartbeatAck():
                self.offset.exchanged(frame.echo_us, frame.received_at_us, frame.received_at_us, now)
            case frames.Ping():
                self._heartbeat_at_us = now.steady_us
            case frames.Drain():
                self.receipts.hurry(now.steady_us)  # while this server can still take them
                self._leave_within(frame.within_s, now)
        return []

    def _welcomed(self, welcome: frames.Welcome, now: Moment) -> None:
        self.welcome = welcome
        self.offset.exchanged(self._hello_us, welcome.received_at_us, welcome.sent_at_us, now)
        self.receipts.again(now_us=now.steady_us, jitter_us=welcome.receipt_jitter_ms * 1000)
        # the first one soon: hello waited for the token's check, which makes it a poor measure of the clock
        self._heartbeat_at_us = now.steady_us + int(
            self._random.uniform(0, min(FIRST_HEARTBEAT_S, welcome.heartbeat_s)) * SECOND
        )

    def _state(self, frame: StateFrame, now: Moment) -> list[Effect]:
        channel = self.channels.get(frame.subscription)
        if channel is None:
            return []
        try:
            whole = channel.assembler.add(frame)
            if whole is None or self._starts_elsewhere(channel, whole):
                return []
            candidate = channel.replica.consider(whole, now.wall_us)
        except Refused as refusal:
            return self._refuse(channel, frame, refusal, now)
        if candidate is None:
            channel.resync.answered()
            return self._confirm(channel, now)
        self.receipts.shown(channel.id, candidate.cursor)
        return self._propose(channel, candidate, whole, now)

    def _starts_elsewhere(self, channel: Channel, frame: StateFrame) -> bool:
        """A delta from a version that is not held: after a rejection the server is ahead of us. A snapshot is asked for instead."""
        if isinstance(frame, frames.SnapshotFrame) or frame.from_ == channel.replica.cursor:
            return False
        target, held = _claimed(frame.head), channel.replica.cursor
        if held is not None and (target is None or (target.epoch, target.number) <= (held.epoch, held.number)):
            return False  # a copy, or a lie: the replica tells them apart
        channel.resync.wanted = channel.unsure = True
        return True

    def _propose(self, channel: Channel, candidate: Candidate, frame: StateFrame, now: Moment) -> list[Effect]:
        try:
            proposal = self._accept(channel, candidate)
        except Invalid as fault:
            return self._reject(channel, candidate.cursor, reason_of(fault), frame, now)
        channel.replica.adopt(candidate)
        channel.applied_at_us = now.wall_us
        channel.ran.append(candidate.cursor.version)
        channel.source = "network"
        channel.rejection = channel.alarm = channel.refused = channel.error = None
        channel.resync.answered()
        if not isinstance(frame, frames.SnapshotFrame):
            channel.unsure = False
        if candidate.restarted:
            self.receipts.drop_lost(channel.id, candidate.cursor.epoch, candidate.lost_from)
        affected = bool(candidate.changed) or proposal.update.previous is None
        reason = "history restarted" if candidate.restarted else None
        self._answer(channel, candidate.cursor, "applied" if affected else "unaffected", reason, frame, now)
        return [Applied(channel, proposal)]

    def _head(self, frame: frames.Current | frames.HeadFrame, now: Moment) -> list[Effect]:
        channel = self.channels.get(frame.subscription)
        if channel is None or (channel.replica.cursor is None and isinstance(frame, frames.HeadFrame)):
            return []
        try:
            candidate = channel.replica.consider(frame, now.wall_us)
        except Refused as refusal:
            return self._refuse(channel, frame, refusal, now)
        if candidate is not None:
            channel.replica.adopt(candidate)
            channel.alarm = None
        elif _claimed(frame.head) != channel.replica.cursor:
            return []  # the head of a version that is on its way
        return self._confirm(channel, now)

    def _confirm(self, channel: Channel, now: Moment) -> list[Effect]:
        """The server's head is what is held here."""
        cursor = channel.replica.cursor
        assert cursor is not None
        self.receipts.shown(channel.id, cursor)
        if channel.source != "network":
            self._answer_again(channel, cursor, now)
        channel.source = "network"
        channel.error = None
        return [Confirmed(channel)]

    def _error(self, frame: frames.ErrorFrame, now: Moment) -> list[Effect]:
        error = error_of(frame.code, frame.detail)
        channel = None if frame.subscription is None else self.channels.get(frame.subscription)
        if channel is None:
            self.complaint = error
        else:
            channel.error = error
            if self.leave_at_us is None:
                self._leave_within(RETRY_REFUSED_S, now)
        return [Unserved(channel, error)]

    # --- answers ---------------------------------------------------------------------------------------------------------------

    def _refuse(
        self, channel: Channel, frame: StateFrame | frames.Current | frames.HeadFrame, refusal: Refused, now: Moment
    ) -> list[Effect]:
        """What a snapshot may heal is healed in silence; what it does not heal, and what contradicts us openly, is an alarm."""
        claimed = _claimed(frame.head)
        tries = self._tries_to_heal(channel, refusal, claimed)
        channel.unsure = True
        channel.resync.wanted |= tries > 0
        if channel.resync.asked < tries:
            return []
        if (
            isinstance(refusal, BadSignature) and self.leave_at_us is None
        ):  # keys may have changed: come back with a newer trust root
            self._leave_within(RETRUST_S, now)
        alarm = Alarm(
            code=refusal.code,
            detail=str(refusal),
            namespace=channel.replica.namespace,
            environment=channel.replica.environment,
            claimed=claimed,
            at_us=now.wall_us,
        )
        if not isinstance(frame, frames.HeadFrame | frames.Current):
            self._answer_refused(channel, alarm, frame, now)
        if channel.alarm is not None and (channel.alarm.code, channel.alarm.claimed) == (alarm.code, alarm.claimed):
            return []
        channel.alarm = alarm
        return [Raised(channel, alarm)]

    @staticmethod
    def _tries_to_heal(channel: Channel, refusal: Refused, claimed: Cursor | None) -> int:
        """How often a snapshot is asked for before this refusal is an alarm.

        Bytes may have been damaged. A path may start elsewhere because the server thinks that we hold what we rejected; the next number
        of the same epoch with another parent is no such gap.
        """
        if not refusal.alarm:
            return DAMAGE_RESYNCS
        held = channel.replica.cursor
        if not (isinstance(refusal, Forked) and channel.unsure and held is not None and claimed is not None):
            return 0
        return GAP_RESYNCS if claimed.number > held.number + 1 or claimed.epoch > held.epoch else 0

    def _answer_refused(self, channel: Channel, alarm: Alarm, frame: StateFrame, now: Moment) -> None:
        """Once for a version in a row, or when somebody waits for the answer; never of one that ran here: a replayed version was not rejected when
        it came."""
        claimed = alarm.claimed
        repeated = claimed == channel.refused and frame.answer != "now"
        if claimed is not None and not repeated and claimed.version not in channel.ran:
            channel.refused = claimed
            self.receipts.shown(channel.id, claimed)
            self._answer(channel, claimed, "rejected", f"{alarm.code}: {alarm.detail}", frame, now, verified=False)

    def _reject(self, channel: Channel, cursor: Cursor, reason: str, frame: StateFrame, now: Moment) -> list[Effect]:
        rejection = Rejection(cursor=cursor, reason=reason)
        channel.resync.answered()
        channel.unsure = True
        repeated = channel.rejection == rejection
        if repeated and frame.answer != "now":
            return []
        channel.rejection = rejection
        self._answer(channel, cursor, "rejected", reason, frame, now)
        return [] if repeated else [Rejected(channel, rejection)]

    def _answer(
        self,
        channel: Channel,
        cursor: Cursor,
        state: frames.State,
        reason: str | None,
        frame: StateFrame,
        now: Moment,
        *,
        verified: bool = True,
    ) -> None:
        at_once = frame.answer == "now" or (self.welcome is not None and self.welcome.sample)
        answered = Answered(channel.id, cursor, state, reason, now.wall_us, frame.trace, verified)
        self.receipts.add(answered, now_us=now.steady_us, jitter_us=0 if at_once else self._jitter_us())

    def _jitter_us(self) -> int:
        return (self.welcome.receipt_jitter_ms if self.welcome else POLLING_JITTER_MS) * 1000

    def _answer_again(self, channel: Channel, cursor: Cursor, now: Moment) -> None:
        """The state came from the disk and is the head's: whether its receipt ever became durable is not known. Or it came from the process
        that we were forked from, and is not answered for by this one."""
        answered = Answered(channel.id, cursor, "applied", None, channel.applied_at_us)
        self.receipts.add(answered, now_us=now.steady_us, jitter_us=self._jitter_us())

    # --- frames out ------------------------------------------------------------------------------------------------------------

    def due(self, now: Moment) -> list[frames.FromClient]:
        """The frames to send at this moment. Nothing before the server's welcome."""
        if not self._may_speak:
            return []
        out: list[frames.FromClient] = [*self._due_resyncs(now)]
        out += self.receipts.due(now.steady_us, self.offset.us)
        if self._heartbeat_at_us is not None and self._heartbeat_at_us <= now.steady_us:
            self._heartbeat_at_us = self._next_heartbeat(now)
            out.append(frames.Heartbeat(views=self._view_digests(), sent_at_us=now.wall_us, declares=self._declared_anew()))
        return out

    def wake_us(self) -> int | None:
        """The steady moment at which `due`, `silent` or `leaving` will next have something to say."""
        moments = [self.leave_at_us, self._silent_at_us()]
        if self._may_speak:  # else what is overdue would wake again and again and not be said
            moments += [self.receipts.wake_us, self._heartbeat_at_us]
            moments += [channel.resync.not_before_us for channel in self.channels.values() if channel.resync.wanted]
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def _may_speak(self) -> bool:
        return self._link == "polling" or self.welcome is not None

    def silent(self, now: Moment) -> bool:
        """Nothing was heard for so long that the connection must be dead."""
        at = self._silent_at_us()
        return at is not None and now.steady_us >= at

    def leaving(self, now: Moment) -> bool:
        """The moment has come to open another connection, as the server asked."""
        return self.leave_at_us is not None and now.steady_us >= self.leave_at_us

    def _due_resyncs(self, now: Moment) -> Iterable[frames.Resync]:
        for channel in self.channels.values():
            if channel.resync.wanted and channel.resync.not_before_us <= now.steady_us:
                channel.resync.ask(now.steady_us, self._random)
                yield frames.Resync(subscription=channel.id, have=channel.replica.cursor)

    def _view_digests(self) -> dict[str, str]:
        """Not of a subscription that rejected a version: a wrong digest would bring the same snapshot again and again."""
        return {
            str(channel.id): channel.replica.view_digest
            for channel in self.channels.values()
            if channel.replica.cursor is not None and channel.rejection is None
        }

    def _next_heartbeat(self, now: Moment) -> int | None:
        """Somewhat early and spread, then back to the server's last `BEAT_US`: hundreds are one wake-up of a node then, and no burst is large."""
        if self.welcome is None:
            return None
        pause_us = int(self.welcome.heartbeat_s * self._random.uniform(0.7, 0.95) * SECOND)
        early_us = (now.wall_us + self.offset.us + pause_us) % BEAT_US
        return now.steady_us + (pause_us - early_us if pause_us > PATIENT_BEATS * BEAT_US else pause_us)

    def _silent_at_us(self) -> int | None:
        if self._link != "websocket":
            return None
        patience_s = self.welcome.heartbeat_s * SILENCE_HEARTBEATS if self.welcome else WELCOME_S
        return self._heard_us + int(patience_s * SECOND)

    def _leave_within(self, within_s: float, now: Moment) -> None:
        self.leave_at_us = now.steady_us + int(self._random.uniform(0, min(max(0.0, within_s), LEAVE_CAP_S)) * SECOND)


def _claimed(head: Signed) -> Cursor | None:
    """What an unverified head speaks of; None when it cannot be read."""
    try:
        return Head.read(head.payload).cursor
    except msgspec.DecodeError:
        return None
