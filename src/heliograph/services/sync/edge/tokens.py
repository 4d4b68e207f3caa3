"""Whose a client's token is: asked of the parent, and remembered for the time when it is away.

Kept are digests and what they stand for, never a token's text. While the parent answers, its word counts; while it is away, a token that was checked
within the stated time goes on. What is revoked meanwhile is known when the parent is back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import structlog

from heliograph.access.introspect import Introspector
from heliograph.access.principal import Principal
from heliograph.core import token
from heliograph.core.errors import Unauthenticated, Unavailable
from heliograph.runtime.clock import now_us
from heliograph.services.sync.edge.copies import Copies

log = structlog.get_logger()

NAME: Final = "tokens"
MAX_KEPT: Final = 50_000
RENEWED_US: Final = 60_000_000
"""How exactly the time of the last check is kept: each check would be a write."""


class Checked(msgspec.Struct, frozen=True):
    sha256: str
    principal: Principal
    at_us: int


class EdgeTokens:
    """Implements `DigestAuthenticator`."""

    def __init__(self, introspector: Introspector, copies: Copies, connected: Callable[[], bool], kept_s: float) -> None:
        self._introspector = introspector
        self._copies = copies
        self._connected = connected
        self._kept_us = int(kept_s * 1e6)
        self._kept: OrderedDict[bytes, Checked] = OrderedDict()

    def recall(self) -> None:
        """What the disk knows; blocks."""
        body = self._copies.read(NAME)
        if body is None:
            return
        try:
            found = msgspec.json.decode(body, type=list[Checked])
        except msgspec.DecodeError:
            log.warning("edge_copy_unusable", file=NAME, reason="of another release")
            return
        self._kept.update((bytes.fromhex(each.sha256), each) for each in found)

    async def principal(self, text: str) -> Principal:
        token.parse(text)
        return await self.by_digest(token.sha256(text))

    async def by_digest(self, sha256: bytes) -> Principal:
        if not self._connected() and (known := self._known(sha256)):
            return known
        try:
            found = await self._introspector.by_digest(sha256)
        except Unauthenticated:
            self._forget([sha256])
            raise
        except Unavailable:
            if known := self._known(sha256):
                return known
            raise
        self._remember(sha256, found)
        return found

    def known(self, text: str) -> Principal | None:
        """Without asking anybody; None: it has to be asked for."""
        return self._introspector.known(text) if self._connected() else self._known(token.sha256(text))

    def forget(self, ids: Iterable[str]) -> None:
        """Revoked."""
        gone = set(ids)
        self._introspector.forget(gone)
        self._forget([sha256 for sha256, each in self._kept.items() if each.principal.id in gone])

    async def close(self) -> None:
        await self._introspector.close()

    def _known(self, sha256: bytes) -> Principal | None:
        found, now = self._kept.get(sha256), now_us()
        if found is None or not 0 <= now - found.at_us <= self._kept_us:
            return None
        expires = found.principal.expires_at_us
        return found.principal if expires is None or expires > now else None

    def _remember(self, sha256: bytes, principal: Principal) -> None:
        known, now = self._kept.get(sha256), now_us()
        if known and known.principal == principal and 0 <= now - known.at_us < RENEWED_US:
            return
        self._kept[sha256] = Checked(sha256.hex(), principal, now)
        self._kept.move_to_end(sha256)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        self._changed()

    def _forget(self, digests: Iterable[bytes]) -> None:
        known = [each for each in digests if each in self._kept]
        for each in known:
            del self._kept[each]
        if known:
            self._changed()

    def _changed(self) -> None:
        kept = tuple(self._kept.values())
        self._copies.mark(NAME, lambda: msgspec.json.encode(kept))
