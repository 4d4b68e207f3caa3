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

    def within(self, other: Scope) -> Scope | None:
        """What both cover."""
        namespace, environment = _both(self.namespace, other.namespace), _both(self.environment, other.environment)
        return Scope(namespace, environment) if namespace and environment else None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """``id`` is the token's public id, safe to log and to write into versions as their author."""

    id: str
    kind: TokenKind
    name: str
    scopes: tuple[Scope, ...]
    expires_at_us: int | None = None


def _both(one: str, other: str) -> str | None:
    if one == ANY:
        return other
    return one if other in (ANY, one) else None


def narrowed(principal: Principal, reach: tuple[Scope, ...]) -> Principal | None:
    """The principal as far as `reach` goes; None when that is nowhere."""
    both = (one.within(other) for one in principal.scopes for other in reach)
    scopes = tuple(dict.fromkeys(each for each in both if each))
    return msgspec.structs.replace(principal, scopes=scopes) if scopes else None


class Authenticator(Protocol):
    async def principal(self, token: str) -> Principal:
        """Raises Unauthenticated (unknown, expired, revoked), Unavailable (cannot be checked now)."""
        ...


class Knows(Authenticator, Protocol):
    """One that remembers."""

    def known(self, token: str) -> Principal | None:
        """Whose it is, without asking; None: ask."""
        ...


class DigestAuthenticator(Authenticator, Protocol):
    """One that can also be asked for others, who know a token and do not pass it on."""

    async def by_digest(self, sha256: bytes) -> Principal:
        """By the SHA-256 of the token's text. Raises as `principal`."""
        ...
