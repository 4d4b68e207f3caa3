"""Tokens as the other services see them: asked of the registry, remembered for half a minute."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable

import httpx
import msgspec

from heliograph.access.principal import Principal
from heliograph.core import token
from heliograph.core.errors import Unauthenticated, Unavailable

FRESH_S = 30.0
REFUSED_S = 5.0  # an unknown token may be a new one
MAX_REMEMBERED = 50_000
TIMEOUT_S = 5.0


class Introspector:
    """Implements `Authenticator`. A token's checksum is tested before anybody is asked, many who ask about one token ask once, and what is
    remembered is bounded: made-up tokens cost neither memory nor the registry's time. The registry answers 404 for an unknown one."""

    def __init__(self, registry_url: str, service_token: str, *, client: httpx.AsyncClient | None = None) -> None:
        self._http = client or httpx.AsyncClient(base_url=registry_url, timeout=TIMEOUT_S)
        self._headers = {"Authorization": f"Bearer {service_token}"}
        self._known: OrderedDict[bytes, tuple[float, Principal | None]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Principal | None]] = {}

    async def principal(self, text: str) -> Principal:
        token.parse(text)
        found = await self._find(token.sha256(text))
        if found is None or (found.expires_at_us is not None and found.expires_at_us <= time.time() * 1e6):
            raise Unauthenticated("the token is unknown, expired or revoked")
        return found

    def forget(self, ids: Iterable[str]) -> None:
        """Revoked: ask again next time."""
        gone = set(ids)
        for key in [key for key, (_, principal) in self._known.items() if principal and principal.id in gone]:
            del self._known[key]

    async def close(self) -> None:
        await self._http.aclose()

    async def _find(self, sha256: bytes) -> Principal | None:
        known = self._known.get(sha256)
        if known and known[0] > time.monotonic():
            return known[1]
        asking = self._asking.get(sha256)
        if asking is None:
            asking = self._asking[sha256] = asyncio.create_task(self._ask(sha256))
            asking.add_done_callback(lambda _: self._asking.pop(sha256, None))
        return await asyncio.shield(asking)

    async def _ask(self, sha256: bytes) -> Principal | None:
        try:
            answer = await self._http.post("/v1/internal/introspect", json={"sha256": sha256.hex()}, headers=self._headers)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"tokens cannot be checked now: the registry is not reachable ({type(error).__name__})", retry_after=1
            ) from None
        if answer.status_code not in (200, 404):
            raise Unavailable(f"tokens cannot be checked now: the registry answered {answer.status_code}", retry_after=1)
        found = msgspec.json.decode(answer.content, type=Principal) if answer.status_code == 200 else None
        self._remember(sha256, found)
        return found

    def _remember(self, sha256: bytes, found: Principal | None) -> None:
        self._known[sha256] = (time.monotonic() + (FRESH_S if found else REFUSED_S), found)
        self._known.move_to_end(sha256)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
