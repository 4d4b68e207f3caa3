"""Asks the ledger how far a version has come."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec

from heliograph.runtime.retry import delay
from heliograph.runtime.unanswered import UNANSWERED
from heliograph.services.registry.answers import Waited
from heliograph.services.registry.heads import Place

MARGIN_S: Final = 2.0
"""What a held request may take beyond its own timeout."""
ATTEMPTS: Final = 5
"""Of one question: a ledger that goes away sends those who wait to the next one, which may need a moment to lead."""
CUT_S: Final = 1.0
"""What a wait that is cut short may still take."""


@dataclass(frozen=True, slots=True)
class _Question:
    """``version``: its id. A number alone may be another version's, of an environment that was erased and made again."""

    place: Place
    number: int
    version: str
    share: float

    @property
    def path(self) -> str:
        return f"/v1/internal/propagations/{self.place.namespace}/{self.place.environment}/{self.number}"


class Propagations:
    """``client``: with the ledger's base URL and a service token in its headers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self._leaving = asyncio.Event()

    @classmethod
    def at(cls, url: str, token: str) -> Propagations:
        return cls(httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}))

    async def release(self) -> None:
        """This registry goes away: whoever waits is told how far it has come, now."""
        self._leaving.set()

    async def close(self) -> None:
        await self.client.aclose()

    async def wait(
        self, place: Place, number: int, version: str, *, share: float, seconds: float
    ) -> tuple[Waited, dict[str, Any] | None]:
        """Held until the share has applied the version, or cannot any more, or the seconds are over, or this registry goes away. Never raises: a
        ledger that fails is told in the answer, for the version is committed whatever happens here."""
        try:
            story = await self._asked_again(_Question(place, number, version, share), seconds)
            if story.get("version", version) != version:  # of a ledger that goes by the number alone
                return _unknown(share, seconds, "the ledger told of another version"), None
            reached = float(story["share"]) >= share or not story["instances"]
            if story.get("behind"):
                return _unknown(share, seconds, "the ledger has not read the whole log yet"), story
        except UNANSWERED as error:
            return _unknown(share, seconds, _problem(error)), None
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            return _unknown(share, seconds, "the ledger's answer is not understood"), None
        return Waited(share=share, seconds=seconds, reached=reached), story

    async def _asked_again(self, question: _Question, seconds: float) -> dict[str, Any]:
        """By another ledger, where one does not answer at all or goes away meanwhile. Raises what the last one met."""
        loop = asyncio.get_running_loop()
        until, left = loop.time() + seconds, seconds
        for attempt in range(ATTEMPTS - 1):
            try:
                return await self._until_leaving(question, left)
            except httpx.TimeoutException:
                raise
            except UNANSWERED as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    raise
                await asyncio.sleep(delay(attempt, base_s=0.1))
                left = max(0.0, until - loop.time())
        return await self._until_leaving(question, left)

    async def _until_leaving(self, question: _Question, seconds: float) -> dict[str, Any]:
        if self._leaving.is_set():
            return await self._ask(question, min(seconds, CUT_S))
        asking = asyncio.create_task(self._ask(question, seconds))
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else await self._ask(question, min(seconds, CUT_S))
        finally:
            for task in (asking, leaving):
                task.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)

    async def _ask(self, question: _Question, seconds: float) -> dict[str, Any]:
        asked: dict[str, str | float] = {"version": question.version, "share": question.share, "timeout": seconds}
        answer = await self.client.get(question.path, params=asked, timeout=httpx.Timeout(seconds + MARGIN_S, connect=MARGIN_S))
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=dict[str, Any])


def _problem(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "the ledger did not answer in time"
    if not isinstance(error, httpx.HTTPStatusError):
        return f"the ledger is not reachable ({type(error).__name__})"
    status = error.response.status_code
    if status == httpx.codes.NOT_FOUND:
        return "the ledger does not know the version yet"
    says = "refuses to answer" if status < httpx.codes.INTERNAL_SERVER_ERROR else "cannot answer now"
    return f"the ledger {says} ({status})"


def _unknown(share: float, seconds: float, problem: str) -> Waited:
    return Waited(share=share, seconds=seconds, reached=False, problem=problem)
