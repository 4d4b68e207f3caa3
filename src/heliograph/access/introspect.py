"""Tokens as the other services see them: asked of the registry, remembered for half a minute."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import httpx
import msgspec

from heliograph.access.principal import Principal
from heliograph.core import token
from heliograph.core.errors import Overloaded, Unauthenticated, Unavailable
from heliograph.runtime.unanswered import UNANSWERED

T = TypeVar("T")
FRESH_S: Final = 30.0
REFUSED_S: Final = 5.0  # an unknown token may be a new one
MAX_KNOWN: Final = 50_000
MAX_REFUSED: Final = 10_000
MAX_ASKED_AT_ONCE: Final = 32
MAX_WAITING: Final = 2_000
"""Questions that may wait for their turn: more new tokens than this at once are an attack, or a fleet that had better come back spread out."""
TIMEOUT_S: Final = 5.0


class Introspector:
    """Implements `Authenticator`. Made-up tokens cost neither memory nor the registry's time: a checksum is tested before anybody is asked, many who
    ask about one token ask once, only so many questions are open at a time, and what is refused is remembered apart, so that it cannot push out what
    is good."""

    def __init__(
        self, registry_url: str, service_token: str | Callable[[], str], *, client: httpx.AsyncClient | None = None
    ) -> None:
        self._http = client or httpx.AsyncClient(base_url=registry_url, timeout=TIMEOUT_S)
        self._token = service_token if callable(service_token) else lambda: service_token
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Principal | None]] = {}
        self._turns = asyncio.Semaphore(MAX_ASKED_AT_ONCE)
        self._revocations = 0

    async def principal(self, text: str) -> Principal:
        """Raises Unauthenticated, Unavailable, Overloaded."""
        token.parse(text)
        return await self.by_digest(token.sha256(text))

    async def by_digest(self, sha256: bytes) -> Principal:
        """As `principal`, for somebody who has no more than the SHA-256 of the text."""
        found = await self._find(sha256)
        if found is None or (found.expires_at_us is not None and found.expires_at_us <= time.time() * 1e6):
            raise Unauthenticated("the token is unknown, expired or revoked")
        return found

    def known(self, text: str) -> Principal | None:
        """What was answered within the last half minute, if the token is still valid; None: ask with `principal`."""
        fresh_until, found = self._known.get(token.sha256(text), (0.0, None))
        if found is None or fresh_until <= time.monotonic():
            return None
        return found if found.expires_at_us is None or found.expires_at_us > time.time() * 1e6 else None

    def forget(self, ids: Iterable[str]) -> None:
        """Revoked: ask again next time. An answer that is on its way now is not remembered."""
        self._revocations += 1
        gone = set(ids)
        for key in [key for key, (_, principal) in self._known.items() if principal.id in gone]:
            del self._known[key]

    async def close(self) -> None:
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self._http.aclose()

    async def _find(self, sha256: bytes) -> Principal | None:
        now = time.monotonic()
        known = self._known.get(sha256)
        if known and known[0] > now:
            return known[1]
        if self._refused.get(sha256, 0) > now:
            return None
        asking = self._asking.get(sha256)
        if asking is None:
            asking = self._begin(sha256)
        return await asyncio.shield(asking)  # whoever goes away takes no answer from the others

    def _begin(self, sha256: bytes) -> asyncio.Task[Principal | None]:
        if len(self._asking) >= MAX_WAITING:
            raise Overloaded("too many new tokens at once; come back in a moment", retry_after=2)
        asking = self._asking[sha256] = asyncio.create_task(self._ask(sha256), name="introspection")
        asking.add_done_callback(lambda done: self._ended(sha256, done))
        return asking

    def _ended(self, sha256: bytes, done: asyncio.Task[Principal | None]) -> None:
        self._asking.pop(sha256, None)
        if not done.cancelled():
            done.exception()  # told to those who wait; when all have gone, nobody misses it

    async def _ask(self, sha256: bytes) -> Principal | None:
        async with self._turns:
            revocations = self._revocations
            found = await self._answer(sha256)
        if found is None:
            _remember(self._refused, sha256, time.monotonic() + REFUSED_S, MAX_REFUSED)
        elif revocations == self._revocations:
            _remember(self._known, sha256, (time.monotonic() + FRESH_S, found), MAX_KNOWN)
        return found

    async def _answer(self, sha256: bytes) -> Principal | None:
        """404 is the registry's word for unknown, expired or revoked."""
        headers = {"Authorization": f"Bearer {self._token()}"}
        try:
            answer = await self._http.post("/v1/internal/introspect", json={"sha256": sha256.hex()}, headers=headers)
        except UNANSWERED as error:
            raise Unavailable(
                f"tokens cannot be checked now: the registry is not reachable ({type(error).__name__})", retry_after=1
            ) from None
        if answer.status_code not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
            raise Unavailable(f"tokens cannot be checked now: the registry answered {answer.status_code}", retry_after=1)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        try:
            return msgspec.json.decode(answer.content, type=Principal)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a proxy's page, or a registry that is newer than this
            raise Unavailable("tokens cannot be checked now: the registry's answer is none", retry_after=1) from None


def _remember(cache: OrderedDict[bytes, T], key: bytes, value: T, most: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
