"""Polling over HTTP, for networks that do not let a WebSocket through: the same frames, asked for one by one.

Each subscription has its own loop: `GET /v1/bundles/{namespace}/{environment}?view=…&have=…&wait=25` is held by the server until there is
something new. Receipts go by `POST /v1/receipts`; a success stands for the server's acknowledgement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from random import Random
from typing import Final, Literal
from urllib.parse import quote

import httpx
import msgspec

from heliograph.client._discovery import problem_of
from heliograph.client._link import Take
from heliograph.client._transport_websocket import decode
from heliograph.core.errors import Forbidden, HeliographError, Invalid, MalformedFrame, NotFound, Unavailable
from heliograph.core.frames import (
    Current,
    ErrorFrame,
    Fingerprint,
    FromClient,
    FromServer,
    Receipt,
    ReceiptAck,
    Subscription,
)

HOLD_S: Final = 25
READ_TIMEOUT_S: Final = HOLD_S + 10.0
PAUSE_S: Final = 5.0  # between two polls when the last one brought nothing that was applied
REFUSED_PAUSE_S: Final = 60.0  # after the server would not serve a subscription


class Reporter(msgspec.Struct, frozen=True, kw_only=True):
    """Who speaks in a receipt that has no connection to tell it."""

    instance: str
    incarnation: int
    fingerprint: Fingerprint


class PolledReceipt(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    environment: str
    receipt: Receipt


class ReceiptReport(Reporter, frozen=True, kw_only=True):
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
        receipts = [frame for frame in frames if isinstance(frame, Receipt)]
        if receipts:
            await self._report(receipts)

    async def close(self) -> None:
        """Nothing is open between two requests."""

    async def _follow(self, subscription: int, take: Take) -> None:
        while True:
            before = self._now(subscription)
            answers = await self._ask(before)
            for frame in answers:
                take(frame)
            await asyncio.sleep(self._pause_s(before, answers))

    def _pause_s(self, before: Subscription, answers: Sequence[FromServer]) -> float:
        """None after news and after a poll that was held; long where asking again would only bring the same."""
        if any(isinstance(answer, ErrorFrame) for answer in answers):
            return self._random.uniform(0.5, 1.0) * REFUSED_PAUSE_S
        if not answers or any(isinstance(answer, Current) for answer in answers) or self._now(before.id).have != before.have:
            return 0.0
        return self._random.uniform(0.5, 1.0) * PAUSE_S

    async def _ask(self, subscription: Subscription) -> list[FromServer]:
        query: list[tuple[str, str | int | float | bool | None]] = [("view", selector) for selector in subscription.view]
        if subscription.have is not None:
            query += [("have", str(subscription.have)), ("wait", HOLD_S)]
        path = f"/v1/bundles/{quote(subscription.namespace)}/{quote(subscription.environment)}"
        try:
            answer = await self._http.get(self._base + path, params=query, headers=self._headers, timeout=READ_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise Unavailable(f"polling failed: {type(error).__name__}") from None
        if answer.status_code in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return []
        if answer.status_code != HTTPStatus.OK:
            return [self._not_served(problem_of(answer), subscription.id)]
        return [self._mine(line, subscription.id) for line in answer.content.splitlines()]

    @staticmethod
    def _not_served(error: HeliographError, subscription: int) -> ErrorFrame:
        """One missing environment does not concern the others; a server that is away or a token that is not known does."""
        if isinstance(error, NotFound | Invalid | Forbidden):
            return ErrorFrame(code=error.code, detail=error.detail, subscription=subscription)
        raise error

    @staticmethod
    def _mine(data: bytes, subscription: int) -> FromServer:
        """An answer is shared by everybody who asks the same, so it cannot know our number of the subscription."""
        try:
            frame = decode(data)
        except MalformedFrame as error:
            raise Unavailable(str(error)) from None
        return msgspec.structs.replace(frame, subscription=subscription) if hasattr(frame, "subscription") else frame

    def _now(self, subscription: int) -> Subscription:
        return next(one for one in self._wanted() if one.id == subscription)

    async def _report(self, receipts: Sequence[Receipt]) -> None:
        """Acknowledges what the server took; what it did not is sent again by the session."""
        where = {one.id: one for one in self._wanted()}
        body = ReceiptReport(
            instance=self._reporter.instance,
            incarnation=self._reporter.incarnation,
            fingerprint=self._reporter.fingerprint,
            receipts=tuple(
                PolledReceipt(
                    namespace=where[one.subscription].namespace, environment=where[one.subscription].environment, receipt=one
                )
                for one in receipts
            ),
        )
        try:
            answer = await self._http.post(
                self._base + "/v1/receipts",
                content=msgspec.json.encode(body),
                headers={**self._headers, "Content-Type": "application/json"},
            )
        except httpx.HTTPError:
            return
        if answer.is_success and self._take is not None:
            self._take(ReceiptAck(seq=max(one.seq for one in receipts)))
