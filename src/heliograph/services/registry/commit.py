"""Commits a version on top of the head, whoever else does so at the same time.

A use case says what the next version holds, given a head; here it is signed, and swapped in with one round trip. Writers of one environment in
this process take turns, so that they do not race for a swap that only one can win; writers in other processes are met by the swap itself:
when the head has moved, the use case is asked again on top of the new one. The head that is remembered from the last commit is a guess that saves
a read; a refusal is never based on a guess. A writer that has lost some swaps in a row holds the head while it prepares: then others wait, and
nobody starves, however many processes write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

import structlog

from heliograph.core import dsse
from heliograph.core.errors import (
    AlreadyExists,
    HeliographError,
    IdempotencyKeyReused,
    NotFound,
    Overloaded,
    StaleBase,
)
from heliograph.core.frames import Answer
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Signed
from heliograph.eventlog.wake import Bell
from heliograph.keys.ports import Signer
from heliograph.runtime import retry
from heliograph.runtime.clock import now_us
from heliograph.runtime.postgres import Connection
from heliograph.services.registry import answers
from heliograph.services.registry.cache import ByteCache
from heliograph.services.registry.draft import EMPTY, MANY, Content, Draft, draft, event_body, objects_of
from heliograph.services.registry.heads import HeadRow, Place
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.store import Answered, Commit, Keyed, Store, head_after
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

ATTEMPTS: Final = 4
"""Swaps that may be lost to other processes before the head is held."""
INSISTING: Final = 2
"""Heads held at a time, so that there are connections left to read what is needed meanwhile."""
TURN_S: Final = 10.0
"""Seconds a writer may stand in line for its environment: a line that long is an overload."""
CREATED: Final = 201


@dataclass(frozen=True, slots=True)
class Order:
    """A request to change an environment: by whom, on what condition, and how it is to be told.

    ``if_match``: the version id that the head must have; with ``rebase``: or that nothing may overlap with since. ``key``, ``request``: the
    idempotency key, and the digest of the request it stands for.
    """

    place: Place
    author: str
    action: str
    received_at_us: int
    message: str | None = None
    trace: str | None = None
    answer: Answer = "soon"
    if_match: bytes | None = None
    rebase: bool = False
    key: str | None = None
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class Committed:
    """``body``: the answer, byte for byte what a replay will get. ``replayed``: it was committed by an earlier request with this key.

    ``compatibility``: what it breaks, told beside the body.
    """

    status: int
    body: bytes
    replayed: bool = False
    compatibility: answers.Compatibility | None = None


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The head is what was asked for already."""

    head: HeadRow


Make = Callable[[HeadRow], Awaitable[Content | None]]
"""What the next version holds on top of a head; None: just what the head holds."""


@dataclass(frozen=True, slots=True)
class Signers:
    commit: Signer
    head: Signer


@dataclass(frozen=True, slots=True)
class _Swapped:
    """What a swap led to; ``made`` and ``head`` when it committed something new."""

    answer: Committed
    made: Draft | None = None
    head: Signed | None = None


class Commits:
    """``head_life_us``: how long a signed head is good for."""

    def __init__(
        self, store: Store, objects: Objects, signers: Signers, bell: Bell, metrics: Metrics, *, head_life_us: int
    ) -> None:
        self._store = store
        self._objects = objects
        self._signers = signers
        self._bell = bell
        self._metrics = metrics
        self._head_life_us = head_life_us
        self._heads: ByteCache[Place, HeadRow] = ByteCache(16 << 20)
        self._turns: WeakValueDictionary[Place, asyncio.Lock] = WeakValueDictionary()
        self._insisting = asyncio.Semaphore(INSISTING)

    async def create(self, order: Order, content: Content = EMPTY) -> Committed:
        """Version 1 of a new environment. Raises AlreadyExists, NotFound (no such namespace)."""
        done = await self._swap(order, None, content)
        assert done is not None, "there is no head that could move"
        return await self._settled(done)

    async def commit(self, order: Order, make: Make) -> Committed | Unchanged:
        """Exactly one new version on top of the head it is given, or none.

        Raises what ``make`` raises, StaleBase, IdempotencyKeyReused, NotFound, Unavailable (then nobody knows: ask again by key).
        """
        async with self._turn(order.place):
            return await self._attempts(order, make)

    async def answered(self, order: Order) -> Committed | None:
        """What an earlier request with this key committed. Raises IdempotencyKeyReused."""
        before = await self._store.answered(order.author, order.key) if order.key else None
        return self._replayed(order, before) if before else None

    async def signed_head(self, text: bytes) -> Signed:
        return await _sign(self._signers.head, HEAD_TYPE, text)

    def remember(self, place: Place, head: HeadRow) -> None:
        self._heads.put(place, head, 1024)

    # --- attempts -----------------------------------------------------------------------------------------------------------------

    async def _attempts(self, order: Order, make: Make) -> Committed | Unchanged:
        base, certain = await self._guess(order.place)
        for attempt in range(ATTEMPTS):
            made = await self._made(order, make, base)
            if isinstance(made, Content):
                if done := await self._swap(order, base, made):
                    return await self._settled(done)
                self._metrics.retries.labels("commit").inc()
                await asyncio.sleep(retry.delay(attempt, base_s=0.002, cap_s=0.1))
            elif certain:
                return await self._concluded(order, base, made)
            base, certain = await self._store.head(order.place), True
        return await self._insist(order, make)

    async def _insist(self, order: Order, make: Make) -> Committed | Unchanged:
        """On top of a head that nobody else moves meanwhile."""
        async with self._insisting, self._store.holding(order.place) as (connection, base):
            made = await self._made(order, make, base)
            done = await self._swap(order, base, made, within=connection) if isinstance(made, Content) else None
        if done:
            return await self._settled(done)
        assert not isinstance(made, Content), "a head that is held does not move"
        return await self._concluded(order, base, made)

    async def _guess(self, place: Place) -> tuple[HeadRow, bool]:
        """A head to try on, and whether it was read just now."""
        remembered = self._heads.get(place)
        return (remembered, False) if remembered else (await self._store.head(place), True)

    async def _made(self, order: Order, make: Make, base: HeadRow) -> Content | HeliographError | None:
        if order.if_match is not None and order.if_match != base.version:
            return StaleBase(
                f"{order.place} is at version {base.number} now, not at the one in If-Match", head=base.id, number=base.number
            )
        try:
            with self._metrics.publish_seconds.labels("prepare").time():
                return await make(base)
        except HeliographError as error:
            return error

    async def _concluded(self, order: Order, base: HeadRow, made: HeliographError | None) -> Committed | Unchanged:
        """Nothing to commit. Before saying so: this very request may be the retry of one that moved the head to where it is."""
        if before := await self.answered(order):
            return before
        if made is None:
            self.remember(order.place, base)
            return Unchanged(base)
        raise made

    # --- the swap -----------------------------------------------------------------------------------------------------------------

    async def _swap(
        self, order: Order, base: HeadRow | None, content: Content, *, within: Connection | None = None
    ) -> _Swapped | None:
        """None: the head has moved. ``within`` a transaction nothing is certain before its end."""
        at_us = now_us()
        made = draft(
            order.place,
            base,
            content,
            author=order.author,
            message=order.message,
            now_us=at_us,
            life_us=self._head_life_us,
            first_epoch=1 if base else await self._first_epoch(order.place, at_us),
        )
        with self._metrics.publish_seconds.labels("sign").time():
            record = await _sign(self._signers.commit, VERSION_TYPE, made.text)
            head = await self.signed_head(made.head_text)
        body = answers.of_draft(made, record, head)
        told = partial(
            event_body, made, record, head, received_at_us=order.received_at_us, trace=order.trace, answer=order.answer
        )
        event = await asyncio.to_thread(told) if len(content.leaves) >= MANY else told()
        keyed = Keyed(order.author, order.key, Answered(order.request, CREATED, body)) if order.key else None
        commit = Commit(
            made, record, head, event, order.received_at_us, order.trace, actor=order.author, action=order.action, keyed=keyed
        )
        with self._metrics.commit_seconds.time(), self._metrics.publish_seconds.labels("commit").time():
            outcome, before = await self._store.commit(commit, within=within)
        self._metrics.commits.labels(outcome).inc()
        match outcome:
            case "committed":
                return _Swapped(Committed(CREATED, body), made, head)
            case "moved":
                return None
            case "missing":
                if base:
                    raise await self._store.missing(order.place)
                raise NotFound(f"no namespace {order.place.namespace}")
            case "exists":
                raise AlreadyExists(f"environment {order.place} exists already")
            case "reused":
                raise _reused()
        assert before is not None, "a replay has an answer"
        return _Swapped(Committed(before.status, before.body, replayed=True))

    async def _settled(self, done: _Swapped) -> Committed:
        """It is durable: tell those who wait for it, and remember. They do not wait until its author's answer is made: in one turn of the loop the
        bell, or a reader that shares it, asks the database, and in the next that is sent."""
        if done.made and done.head:
            self._settle(done.made, done.head)
            for _ in range(2):
                await asyncio.sleep(0)
        return done.answer

    async def _first_epoch(self, place: Place, at_us: int) -> int:
        """A name that was erased begins another life: its old numbers are in clients and in the ledger, and must not mean something else there."""
        return at_us // 1_000_000 if await self._store.was_erased(place) else 1

    def _settle(self, made: Draft, head: Signed) -> None:
        self._bell.ring()
        self.remember(made.place, head_after(made, head))
        self._objects.learn(objects_of(made))
        log.info(
            "version_committed",
            namespace=made.place.namespace,
            environment=made.place.environment,
            number=made.version.number,
            version=made.id,
            kind=made.version.kind,
            changed=len(made.content.leaves),
        )

    def _replayed(self, order: Order, before: Answered) -> Committed:
        if before.request != order.request:
            raise _reused()
        self._metrics.commits.labels("replayed").inc()
        return Committed(before.status, before.body, replayed=True)

    @asynccontextmanager
    async def _turn(self, place: Place) -> AsyncIterator[None]:
        lock = self._turns.setdefault(place, asyncio.Lock())
        try:
            async with asyncio.timeout(TURN_S):
                await lock.acquire()
        except TimeoutError:
            raise Overloaded(f"more is being written to {place} than it takes", retry_after=1) from None
        try:
            yield
        finally:
            lock.release()


async def _sign(signer: Signer, payload_type: str, text: bytes) -> Signed:
    return dsse.attach(text, [(signer.keyid, await signer.sign(dsse.pae(payload_type, text)))])


def _reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused("this Idempotency-Key was used for another request; use a new key for a new request")
