"""The running half of a client: slot, identity, trust, session and connection, wired in one place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from heliograph.client import _copies
from heliograph.client._clock import Moment
from heliograph.client._connection import Connection
from heliograph.client._disk import DiskWriter
from heliograph.client._identity import Identity, Slot, ephemeral, next_identity, take_slot
from heliograph.client._link import Link
from heliograph.client._live import Inherited, Live, Proposal
from heliograph.client._network import Network, Reach
from heliograph.client._options import Options
from heliograph.client._session import Applied, Channel, Confirmed, Effect, Raised, Rejected, Session
from heliograph.client._status import Alarm, DiskState, SubscriptionStatus
from heliograph.client._transport_polling import Reporter
from heliograph.core.errors import BadSignature, HeliographError, Invalid
from heliograph.core.replica import Candidate, Replica
from heliograph.core.times import to_us
from heliograph.core.trust import Trust

_log = logging.getLogger("heliograph")


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told: ``alarm`` for what does not verify, ``progress`` after whatever somebody may be waiting for."""

    alarm: Callable[[Alarm], None]
    progress: Callable[[], None]


@asynccontextmanager
async def open_engine(options: Options, network: Network, lives: Sequence[Live], listeners: Listeners) -> AsyncIterator[Engine]:
    """Inside: what the disk had is shown already. At the end, whatever ends it, what was marked is written and the slot is free again."""
    slot = await asyncio.to_thread(_take_slot, options.folder)
    try:
        folder = slot.folder if slot else None
        identity = await asyncio.to_thread(next_identity, folder, options.token) if folder else ephemeral(options.token)
        disk = DiskWriter(folder)
        try:
            async with network.open(options, folder, disk) as reach:
                engine = Engine(options, identity, lives, listeners, reach=reach, disk=disk, folder=folder)
                await engine.recall()
                yield engine
        finally:
            await disk.flush()
    finally:
        if slot:
            slot.release()


def _take_slot(folder: Path | None) -> Slot | None:
    if folder is None:
        return None
    try:
        return take_slot(folder)
    except OSError as error:
        _log.warning("no disk copy: %s cannot be used: %s", folder, error)
        return None


class Engine:
    """Makes links for its `Connection`, shows versions to its lives, and marks what the disk should keep."""

    def __init__(
        self,
        options: Options,
        identity: Identity,
        lives: Sequence[Live],
        listeners: Listeners,
        *,
        reach: Reach,
        disk: DiskWriter,
        folder: Path | None,
    ) -> None:
        self.identity = identity
        self.disk = disk
        self._options = options
        self._lives = dict(
            enumerate(lives, start=1)
        )  # subscription ids count from 1, so that clients with equal views share frames
        self._listeners = listeners
        self._reach = reach
        self._folder = folder
        self._random = Random()  # noqa: S311  spreads load, decides nothing secret
        self._session: Session | None = None
        self._making = asyncio.Lock()
        self._damaged = False
        self.connection = Connection(self, self._apply, listeners.progress, random=self._random, retry=options.retry)

    # --- from the disk ---------------------------------------------------------------------------------------------------------

    async def recall(self) -> None:
        trust = await self._reach.recall()
        if trust is not None:
            self._session = await self._make_session(trust)

    async def _make_session(self, trust: Trust) -> Session:
        channels = [await self._channel(number, live, trust) for number, live in self._lives.items()]
        return Session(self.identity, self._options.fingerprint(), channels, self._propose, random=self._random)

    async def _channel(self, number: int, live: Live, trust: Trust) -> Channel:
        channel = await self._recalled(number, live, trust)
        channel.declares = lambda: live.declares
        return channel

    async def _recalled(self, number: int, live: Live, trust: Trust) -> Channel:
        """With what the parent process held, or the disk copy if there is one that verifies and that the application accepts."""
        if live.inherited is not None:
            return Channel(number, live.inherited.replica, source="parent", applied_at_us=live.inherited.applied_at_us)
        if self._folder is not None:
            copy = await asyncio.to_thread(_copies.load, self._folder, live, trust)
            self._damaged |= copy.damaged
            if copy.replica is not None and self._shown(live, copy.replica):
                return Channel(number, copy.replica, source="disk", applied_at_us=copy.applied_at_us)
        return Channel(number, Replica(trust, live.namespace, live.environment, live.view))

    @staticmethod
    def _shown(live: Live, replica: Replica) -> bool:
        cursor = replica.cursor
        assert cursor is not None
        try:
            live.swap(live.propose(cursor, replica.texts, frozenset(replica.texts)))
        except Invalid as fault:
            _log.warning("the disk copy of %s does not fit this application and is not used: %s", live, fault)
            return False
        return True

    # --- links -----------------------------------------------------------------------------------------------------------------

    async def session(self) -> Session:
        """The one of this client, whoever asks first. Raises Unavailable, or UntrustedRoot."""
        trust = await self._reach.trust()
        async with self._making:  # the disk is read meanwhile, and polling asks beside the WebSocket's tries
            if self._session is None:
                self._session = await self._make_session(trust)
                self._listeners.progress()
        for channel in self._session.channels.values():
            channel.replica.trust = trust
        return self._session

    async def websocket(self) -> Link:
        return await self._reach.websocket()

    def polling(self) -> Link:
        session = self._session
        assert session is not None
        return self._reach.polling(
            Reporter(
                instance=self.identity.instance, incarnation=self.identity.incarnation, fingerprint=self._options.fingerprint()
            ),
            lambda: [session.subscription(channel) for channel in session.channels.values()],
            random=self._random,
        )

    # --- what frames meant -----------------------------------------------------------------------------------------------------

    def _propose(self, channel: Channel, candidate: Candidate) -> Proposal:
        return self._lives[channel.id].propose(
            candidate.cursor, candidate.texts, candidate.changed, restarted=candidate.restarted
        )

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Applied(channel, proposal):
                self._lives[channel.id].swap(proposal)
                self._keep(channel)
            case Confirmed(channel):
                self._keep(channel)
            case Rejected(channel, rejection):
                live = self._lives[channel.id]
                live.rejected(rejection)
                _log.warning(
                    "%s: version %d is rejected, the last good one stays: %s", live, rejection.cursor.number, rejection.reason
                )
            case Raised(channel, alarm):
                _log.error(
                    "%s: the server's statement is refused, the last good version stays: %s",
                    self._lives[channel.id],
                    alarm.detail,
                )
                if alarm.code == BadSignature.code:
                    self._reach.doubt()
                self._listeners.alarm(alarm)
            case _:
                _log.warning("the server will not serve a subscription: %s", effect.error)
        self._listeners.progress()

    def _keep(self, channel: Channel) -> None:
        self.disk.mark(_copies.name_of(self._lives[channel.id]), lambda: _copies.encode(channel))

    # --- what the client says of itself ----------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Every subscription's state comes from the network, or was confirmed by it."""
        return self._session is not None and all(channel.source == "network" for channel in self._session.channels.values())

    @property
    def unserved(self) -> HeliographError | None:
        """Why a subscription that has nothing gets nothing."""
        channels = self._session.channels.values() if self._session else ()
        return next((channel.error for channel in channels if channel.error and self._lives[channel.id].state is None), None)

    @property
    def pending(self) -> int:
        return len(self._session.receipts) if self._session else 0

    def hurry(self) -> None:
        """Receipts that wait for their random moment leave now."""
        if self._session is not None:
            self._session.receipts.hurry(Moment.now().steady_us)
            self.connection.hurry()

    @property
    def disk_state(self) -> DiskState:
        if self._options.folder is None:
            return "off"
        if self._folder is None or self.disk.failure:
            return "unwritable"
        return "damaged" if self._damaged else "ok"

    @property
    def clock_offset_ms(self) -> float | None:
        known = self._session is not None and self._session.offset.known
        return self._session.offset.us / 1000 if known and self._session else None

    @property
    def server(self) -> tuple[str | None, str | None]:
        """(region, node) of the connection."""
        welcome = self._session.welcome if self._session else None
        return (welcome.region, welcome.node) if welcome else (None, None)

    def held(self, live: Live) -> Inherited | None:
        """What a child process may go on from. Read after a fork, wherever the fork caught us: each reference is good by itself."""
        channels = self._session.channels.values() if self._session else ()
        for channel in channels:
            if self._lives[channel.id] is live and channel.replica.cursor is not None:
                return Inherited(channel.replica, channel.applied_at_us)
        return None

    def subscriptions(self) -> tuple[SubscriptionStatus, ...]:
        if self._session is None:
            return tuple(unknown(live) for live in self._lives.values())
        there_us = Moment.now().wall_us + self._session.offset.us
        return tuple(_status(channel, there_us) for channel in self._session.channels.values())


def unknown(live: Live) -> SubscriptionStatus:
    """Of a subscription that nothing is known of yet."""
    return SubscriptionStatus(
        namespace=live.namespace,
        environment=live.environment,
        cursor=live.state.cursor if live.state else None,
        source="none",
        head_age_s=None,
        stale=True,
        rejected=None,
        alarm=None,
        error=None,
    )


def _status(channel: Channel, there_us: int) -> SubscriptionStatus:
    replica, head = channel.replica, channel.replica.head  # once: another thread may look while a version comes
    return SubscriptionStatus(
        namespace=replica.namespace,
        environment=replica.environment,
        cursor=head.cursor if head else None,
        source=channel.source,
        head_age_s=None if head is None else max(0.0, (there_us - to_us(head.issued_at)) / 1e6),
        stale=replica.stale(there_us),
        rejected=channel.rejection,
        alarm=channel.alarm,
        error=channel.error,
    )
