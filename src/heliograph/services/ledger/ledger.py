"""The ledger's live state: the board, who waits for it, and up to when the board is known to be complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from heliograph.core.errors import NotFound
from heliograph.core.events import FannedOut, NodeAlive, Subscribed, Unsubscribed
from heliograph.services.ledger.answers import Address
from heliograph.services.ledger.batch import Answers, Batch
from heliograph.services.ledger.board import Board
from heliograph.services.ledger.postgres import Tables, Written
from heliograph.services.ledger.propagation import Propagation
from heliograph.services.ledger.report import Report
from heliograph.services.ledger.waiting import WaitingRoom, Wanted
from heliograph.telemetry.metrics import Metrics

LOOK_S: Final = 0.25
"""Between two looks at the tables for a version that this ledger does not follow."""
ON_THEIR_WAY_US: Final = 250_000
"""A client that a node serves is in the log this much later at most: 50 ms for which a node gathers what it tells, and its append."""


class Ledger:
    """``horizon_us``: everything that was in the receipts' log at that moment is on the board. ``hurry``: somebody waits for it.
    ``follows``: the board has been at the log's end and goes on from there; not so at the start of a term, nor after a look that failed.

    The board changes only through `rebuilt`, `took_in`, `nodes_lost`, `ended` and `closed`, each after the tables have.
    """

    def __init__(self, tables: Tables, metrics: Metrics, now_us: Callable[[], int]) -> None:
        self.board = Board()
        self.horizon_us = 0
        self.follows = False
        self.hurry = asyncio.Event()
        self._tables = tables
        self._metrics = metrics
        self._now_us = now_us
        self._room = WaitingRoom()

    @property
    def awaited(self) -> asyncio.Event:
        """Set while somebody waits for a propagation."""
        return self._room.entered

    # --- questions ---

    async def propagation(self, address: Address, number: int) -> Report:
        """Raises NotFound for a version that is unknown or whose story was not followed."""
        return await self._story(Wanted(address, number))

    async def _story(self, wanted: Wanted) -> Report:
        if report := await self._known(wanted):
            return report
        address, number, _ = wanted
        raise NotFound(f"the ledger knows no propagation of version {number} of {address.namespace}/{address.environment}")

    async def wait(self, address: Address, number: int, share: float, timeout_s: float, version: str = "") -> Report:
        """The story once ``share`` of the instances has the version or cannot any more, else what there is after ``timeout_s``.

        ``version``: its id; a story of another version with the same number is not told. Without one, the latest that has the number.
        Waits for a version that is not known yet; raises NotFound when it does not come, NotReady when this ledger goes away meanwhile.
        """
        wanted = Wanted(address, number, version)
        with self._room.enter(wanted, share) as waiter:
            self._metrics.propagation_waiters.set(len(self._room))
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._answer(wanted, waiter.answer)
            except TimeoutError:
                return await self._story(wanted)
            finally:
                self._metrics.propagation_waiters.set(len(self._room) - 1)

    async def _answer(self, wanted: Wanted, answer: asyncio.Future[Report]) -> Report:
        """The board's, or, where another ledger leads, the tables' once it has closed it: also where this one has led until a moment ago."""
        if propagation := self.board.open_propagation(*wanted):
            self._tell(propagation)  # every change from now on is told as it comes
        while not answer.done():
            if not self.board.open_propagation(*wanted):
                stored = await self._tables.version(*wanted)
                if stored and stored.report:
                    return stored.report
            await asyncio.wait({answer}, timeout=LOOK_S)
        return answer.result()

    async def _known(self, wanted: Wanted) -> Report | None:
        if propagation := self.board.open_propagation(*wanted):
            return self._story_of(propagation)
        stored = await self._tables.version(*wanted)
        if stored is None or stored.closed:
            return stored.report if stored else None
        return msgspec.structs.replace(
            await self._tables.story_so_far(stored.version), behind=True
        )  # how far its leader has read is not known

    def _story_of(self, propagation: Propagation) -> Report:
        report = propagation.report()
        return report if self._has_read(propagation) else msgspec.structs.replace(report, behind=True)

    async def release(self) -> None:
        """This ledger goes away: those who wait are sent to the next one."""
        self._room.close()

    # --- news ---

    def rebuilt(self, board: Board) -> None:
        """What was read before says nothing of this board: the tables may have lost what had not been flushed."""
        self.board, self.horizon_us, self.follows = board, 0, False
        self._tell_all()

    def took_in(self, batch: Batch, written: Written) -> None:
        """The batch is committed."""
        for stay, gone_us in written.back:
            self.board.revived(stay, gone_us)
        for event in batch.events:
            self._place(event)
        for commit, _ in batch.commits.values():
            if before := written.earlier.get(commit.version):
                self.board.opened(commit, before.answers, before.hops)
        self._spread()

    def nodes_lost(self, nodes: set[str]) -> None:
        self.board.lose(nodes)
        self._spread()

    def ended(self, events: list[Unsubscribed]) -> None:
        for event in events:
            self.board.unsubscribed(event)
        self._spread()

    def closed(self, propagation: Propagation, report: Report) -> None:
        self.board.closed(propagation)
        for wanted in _wanted(propagation):
            self._room.tell(wanted, lambda _: True, lambda: report)

    def reached(self, horizon_us: int) -> None:
        """Everything in the log up to then is on the board: what nobody took part in can be said so."""
        self.horizon_us, self.follows = max(self.horizon_us, horizon_us), True
        self._tell_all()

    def fell_behind(self) -> None:
        """The log's end was not reached in time, or is not known: of what is committed from now on, too, records may be missing."""
        self.follows = False

    def _place(self, event: Subscribed | Unsubscribed | Answers | FannedOut | NodeAlive) -> None:
        match event:
            case Subscribed():
                self.board.subscribed(event)
            case Unsubscribed():
                self.board.unsubscribed(event)
            case Answers():
                self.board.received(event.event, event.answers)
            case FannedOut():
                self.board.fanned_out(event)
            case NodeAlive():
                self.board.node_alive(event)

    def _spread(self) -> None:
        news = self.board.take_news()
        now_us = self._now_us()
        for propagation in news.touched:
            propagation.changed_at_us = now_us
            self._tell(propagation)
        observe = {
            region: self._metrics.propagation_seconds.labels(region).observe for region in {each for each, _ in news.applied}
        }
        for region, seconds in news.applied:
            observe[region](seconds)
        for hop, seconds in news.hops:
            self._metrics.hop_seconds.labels(hop).observe(seconds)

    def _tell_all(self) -> None:
        for wanted in self._room.wanted():
            if propagation := self.board.open_propagation(*wanted):
                self._tell(propagation)

    def _tell(self, propagation: Propagation) -> None:
        """Says nothing as certain while whole instances may be missing: those that the log had at the commit, and, where nobody is known to
        have taken part, those that a node had yet to tell."""
        committed_at_us = propagation.commit.committed_at_us
        somebody = propagation.instances > 0
        certain = self._has_read(propagation) if somebody else self.horizon_us >= committed_at_us + ON_THEIR_WAY_US
        awaited = [each for each in _wanted(propagation) if self._room.awaits(each)]
        if awaited and not certain:
            self.hurry.set()  # it can be said once the horizon has passed the commit
        for each in awaited if certain else []:
            self._room.tell(each, lambda share: propagation.settled(share) or propagation.complete, propagation.report)

    def _has_read(self, propagation: Propagation) -> bool:
        """What the log had when the version was committed. Nothing is asked of the log for this while the board follows it."""
        return self.follows or self.horizon_us >= propagation.commit.committed_at_us


def _wanted(propagation: Propagation) -> tuple[Wanted, Wanted]:
    """By its id, and by its number alone."""
    commit = propagation.commit
    by_number = Wanted(commit.address, commit.point.number)
    return by_number._replace(version=commit.version), by_number
