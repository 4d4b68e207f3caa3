"""Who asks: what a valid token stands for."""

from __future__ import annotations

from typing import Protocol

import msgspec

from heliograph.core.token import TokenKind

ANY = "*"


class Scope(msgspec.Struct, frozen=True):
    """A namespace and environment, or ``*`` for any."""

    namespace: str = ANY
    environment: str = ANY

    def covers(self, namespace: str | None, environment: str | None) -> bool:
        """None asks for all of them: only ``*`` covers that."""
        return self.namespace in (ANY, namespace) and self.environment in (ANY, environment)


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """``id`` is the token's public id, safe to log and to write into versions as their author."""

    id: str
    kind: TokenKind
    name: str
    scopes: tuple[Scope, ...]
    expires_at_us: int | None = None


class Authenticator(Protocol):
    async def principal(self, token: str) -> Principal:
        """Raises Unauthenticated (unknown, expired, revoked), Unavailable (cannot be checked now)."""
        ...
