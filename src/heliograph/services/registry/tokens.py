"""Makes and revokes tokens, each in one transaction with its audit row; a revocation also with events to every shard that may care."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from heliograph.access.principal import ANY, Scope
from heliograph.access.store import TokenRecord, TokenStore
from heliograph.core.events import RevokedEvent, shard_of
from heliograph.core.token import TokenKind
from heliograph.eventlog.wake import Bell
from heliograph.services.registry.store import Store

KEY: Final = "tokens"


class TokenDesk:
    def __init__(self, store: Store, tokens: TokenStore, bell: Bell) -> None:
        self._store = store
        self._tokens = tokens
        self._bell = bell

    async def issue(
        self, kind: TokenKind, name: str, scopes: tuple[Scope, ...], *, by: str, expires_at: datetime | None
    ) -> tuple[TokenRecord, str]:
        """Makes a token: its record, and the text that exists nowhere else."""
        async with self._store.transaction() as connection:
            record, text = await self._tokens.create(kind, name, scopes, by=by, expires_at=expires_at, within=connection)
            await self._store.note(None, None, by, "token.create", _detail(record), within=connection)
        return record, text

    async def revoke(self, token: str, *, by: str, trace: str | None, permitted: Callable[[TokenRecord], None]) -> TokenRecord:
        """Revokes a token. Idempotent: once more tells everybody once more. ``permitted`` raises when the caller may not. Raises NotFound."""
        body = msgspec.json.encode(RevokedEvent(tokens=(token,)))
        async with self._store.transaction() as connection:
            record = await self._tokens.revoke(connection, token, by=by)
            permitted(record)
            await self._store.note(None, None, by, "token.revoke", _detail(record), within=connection)
            for shard in shards_of(record.scopes, self._store.shards):  # ascending, as everybody does who takes more than one
                await self._store.append_event(connection, shard, KEY, body, trace)
        self._bell.ring()
        return record


def shards_of(scopes: tuple[Scope, ...], shards: int) -> list[int]:
    """Where events of a token's environments go; all of them when it reaches any environment."""
    if any(ANY in (scope.namespace, scope.environment) for scope in scopes):
        return list(range(shards))
    return sorted({shard_of(scope.namespace, scope.environment, shards=shards) for scope in scopes})


def _detail(record: TokenRecord) -> dict[str, object]:
    return {"token": record.id, "kind": record.kind, "name": record.name, "scopes": msgspec.to_builtins(record.scopes)}
