"""Requests held until a share of a version's instances has it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from heliograph.core.errors import NotReady, Overloaded
from heliograph.services.ledger.answers import Address
from heliograph.services.ledger.report import Report

MAX_WAITERS = 10_000  # each is a held request of the registry


class Wanted(NamedTuple):
    """A version's number, and its id where that is known: an environment that is erased and made again counts from one again."""

    address: Address
    number: int
    version: str = ""  # whichever has the number; of the latest epoch when several have


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    share: float
    answer: asyncio.Future[Report]


class WaitingRoom:
    """By what is wanted: the version may not be known yet."""

    def __init__(self) -> None:
        self._waiters: defaultdict[Wanted, set[Waiter]] = defaultdict(set)
        self._count = 0
        self._closed = False
        self.entered = asyncio.Event()
        """Set while anybody is in it."""

    def __len__(self) -> int:
        return self._count

    def awaits(self, wanted: Wanted) -> bool:
        return wanted in self._waiters

    def wanted(self) -> list[Wanted]:
        return list(self._waiters)

    @contextmanager
    def enter(self, wanted: Wanted, share: float) -> Iterator[Waiter]:
        """Raises Overloaded when there is no room, NotReady when this ledger goes away; so does the answer."""
        if self._closed:
            raise _going_away()
        if self._count >= MAX_WAITERS:
            raise Overloaded("too many requests wait for a propagation", retry_after=1)
        waiter = Waiter(share, asyncio.get_running_loop().create_future())
        self._waiters[wanted].add(waiter)
        self._count += 1
        self.entered.set()
        try:
            yield waiter
        finally:
            self._count -= 1
            self._waiters[wanted].discard(waiter)
            if not self._waiters[wanted]:
                del self._waiters[wanted]
            if not self._count:
                self.entered.clear()

    def tell(self, wanted: Wanted, settled: Callable[[float], bool], report: Callable[[], Report]) -> None:
        """Answers those whose share is settled, all with one report, made only when somebody gets it."""
        ready = [each for each in self._waiters.get(wanted, ()) if not each.answer.done() and settled(each.share)]
        if ready:
            story = report()
            for waiter in ready:
                waiter.answer.set_result(story)

    def close(self) -> None:
        """Sends everybody to another ledger, which follows the same versions."""
        self._closed = True
        for waiters in self._waiters.values():
            for each in waiters:
                if not each.answer.done():
                    each.answer.set_exception(_going_away())


def _going_away() -> NotReady:
    return NotReady("this ledger is going away; ask again", retry_after=1)
