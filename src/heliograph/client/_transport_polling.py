"""Polling over HTTP, for networks that do not let a WebSocket through: the same frames, asked for one by one.

Each subscription has its own loop: `GET /v1/bundles/{namespace}/{environment}?view=…&have=…&wait=25` is held by the server until there is
something new. Receipts go by `POST /v1/receipts`; a success stands for the server's acknowledgement, which is for all up to its number: what was
posted before and failed goes with what comes later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from random import Random
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

import httpx
import msgspec

from heliograph.client._answers import Answer, ask, is_final, problem_of
from heliograph.client._link import Take
from heliograph.core.errors import Forbidden, HeliographError, Invalid, NotFound, Unavailable
from heliograph.core.frames import (
    AdvanceFrame,
    Current,
    DeltaFrame,
    ErrorFrame,
    Fingerprint,
    FromClient,
    FromServer,
    Receipt,
    ReceiptAck,
    SnapshotFrame,
    Subscription,
)

HOLD_S: Final = 25
READ_TIMEOUT_S: Final = HOLD_S + 10.0
POLL_S: Final = 300.0  # with the whole of a large view, over a slow line
MAX_POLL_BYTES: Final = 256 * 1024 * 1024
POST_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 256 * 1024
PAUSE_S: Final = 5.0
POST_LIMIT: Final = 500
"""Receipts in one post; the server takes 1,000."""
REFUSED_PAUSE_S: Final = 60.0  # after the server would not serve a subscription

_log = logging.getLogger("heliograph")
Bundled: TypeAlias = SnapshotFrame | DeltaFrame | AdvanceFrame | Current


class Reporter(msgspec.Struct, frozen=True, kw_only=True):
    """Who speaks in a receipt that has no connection to tell it."""

    instance: str
    incarnation: int
    fingerprint: Fingerprint


class PolledReceipt(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    environment: str
    view: tuple[str, ...]
    receipt: Receipt


class PolledReceipts(Reporter, frozen=True, kw_only=True):
    receipts: tuple[PolledReceipt, ...]


class PollingLink:
    """``wanted``: the subscriptions with what is held of each at the moment of the call."""

    transport: Literal["websocket", "polling"] = "polling"

    def __init__(
        self,
        http: httpx.AsyncClient,
        base: str,
        token: str,
        reporter: Reporter,
        wanted: Callable[[], Iterable[Subscription]],
        *,
        random: Random,
    ) -> None:
        self._http = http
        self._base = base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._reporter = reporter
        self._wanted = wanted
        self._random = random
        self._take: Take | None = None
        self._owed: dict[int, Receipt] = {}  # by seq: given to us, and not settled

    async def run(self, take: Take) -> None:
        self._take = take
        try:
            async with asyncio.TaskGroup() as group:
                for subscription in self._wanted():
                    group.create_task(self._follow(subscription.id, take))
        except* HeliographError as failed:
            first = failed.exceptions[0]
        raise first

    async def send(self, frames: Sequence[FromClient]) -> None:
        receipts = {frame.seq: frame for frame in frames if isinstance(frame, Receipt)}
        self._owed |= receipts
        owed = [self._owed[seq] for seq in sorted(self._owed)] if receipts else []
        for first in range(0, len(owed), POST_LIMIT):
            if not await self._report(owed[first : first + POST_LIMIT]):
                return

    async def close(self) -> None:
        """Nothing is open between two requests."""

    async def _follow(self, subscription: int, take: Take) -> None:
        while True:
            before, since = self._now(subscription), time.monotonic()
            answers = await self._ask(before)
            for frame in answers:
                take(frame)
            if any(isinstance(answer, ErrorFrame) for answer in answers):
                await self._pause(REFUSED_PAUSE_S)
            elif self._now(subscription).have == before.have and time.monotonic() - since < HOLD_S / 2:
                await self._pause(PAUSE_S)  # it brought nothing and was not held: asking at once would bring the same

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(self._random.uniform(0.5, 1.0) * seconds)

    async def _ask(self, subscription: Subscription) -> list[FromServer]:
        query: list[tuple[str, str | int | float | bool | None]] = [("view", selector) for selector in subscription.view]
        if subscription.have is not None:
            query += [("have", str(subscription.have)), ("wait", HOLD_S)]
        path = f"/v1/bundles/{quote(subscription.namespace)}/{quote(subscription.environment)}"
        answer = await self._get(self._base + path, query)
        if answer.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return []
        if answer.status != HTTPStatus.OK:
            return [self._not_served(problem_of(answer), subscription.id)]
        return [msgspec.structs.replace(frame, subscription=subscription.id) for frame in _frames_in(answer.body)]

    async def _get(self, url: str, query: list[tuple[str, str | int | float | bool | None]]) -> Answer:
        told = {"params": query, "headers": self._headers, "timeout": READ_TIMEOUT_S}
        try:
            return await ask(self._http, "GET", url, within_s=POLL_S, at_most=MAX_POLL_BYTES, **told)
        except Unavailable as error:
            raise Unavailable(f"polling failed: {error}") from None

    @staticmethod
    def _not_served(error: HeliographError, subscription: int) -> ErrorFrame:
        """One missing environment does not concern the others; a server that is away or a token that is not known does."""
        if isinstance(error, NotFound | Invalid | Forbidden):
            return ErrorFrame(code=error.code, detail=error.detail, subscription=subscription)
        raise error

    def _now(self, subscription: int) -> Subscription:
        return next(one for one in self._wanted() if one.id == subscription)

    async def _report(self, receipts: Sequence[Receipt]) -> bool:
        """Whether these are settled: taken by the server, or given up; the rest is sent again by the session.

        Raises when the server will not listen to us at all.
        """
        answer = await self._post(receipts)
        if answer is None or self._take is None:
            return False
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            self._settle(receipts)
            return True
        if not is_final(answer):
            return False
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise problem_of(answer)
        return await self._report_singly(receipts)

    def _settle(self, receipts: Sequence[Receipt]) -> None:
        """These are the oldest that are owed."""
        for one in receipts:
            del self._owed[one.seq]
        assert self._take
        self._take(ReceiptAck(seq=receipts[-1].seq))

    async def _report_singly(self, receipts: Sequence[Receipt]) -> bool:
        """One receipt that the server will not take must not hold up the others; that one is given up."""
        if len(receipts) == 1:
            _log.warning("the server does not take a receipt for version %d", receipts[0].number)
            self._settle(receipts)
            return True
        for one in receipts:
            if not await self._report([one]):
                return False
        return True

    async def _post(self, receipts: Sequence[Receipt]) -> Answer | None:
        where = {one.id: one for one in self._wanted()}
        told = PolledReceipts(
            instance=self._reporter.instance,
            incarnation=self._reporter.incarnation,
            fingerprint=self._reporter.fingerprint,
            receipts=tuple(_polled(where[one.subscription], one) for one in receipts),
        )
        try:
            return await ask(
                self._http,
                "POST",
                self._base + "/v1/receipts",
                within_s=POST_S,
                at_most=MAX_ANSWER_BYTES,
                content=msgspec.json.encode(told),
                headers={**self._headers, "Content-Type": "application/json"},
            )
        except Unavailable:
            return None


def _polled(subscription: Subscription, receipt: Receipt) -> PolledReceipt:
    return PolledReceipt(
        namespace=subscription.namespace, environment=subscription.environment, view=subscription.view, receipt=receipt
    )


def _frames_in(data: bytes) -> list[Bundled]:
    """One frame, or the parts of a large one. An answer is shared by all who ask the same, so it does not know our subscription's number."""
    try:
        return (
            msgspec.json.decode(data, type=list[Bundled])
            if data.startswith(b"[")
            else [msgspec.json.decode(data, type=Bundled)]
        )
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unavailable("the server's answer to a poll is not a frame of heliograph.v1") from None
