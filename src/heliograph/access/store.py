"""Tokens in PostgreSQL, for the service that owns them (the registry)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from heliograph.access.principal import Principal, Scope
from heliograph.core import token
from heliograph.core.digest import Digest
from heliograph.core.errors import InvalidRequest, NotFound, Unauthenticated, Unavailable
from heliograph.core.token import TokenKind
from heliograph.keys.local import write_private
from heliograph.runtime.postgres import Connection, Pool, translating

MAX_NAME: Final = 100
MAX_SCOPES: Final = 100
NOTED: Final = timedelta(hours=1)
"""How exactly a token's last use is kept."""
FIRST: Final[tuple[TokenKind, ...]] = ("admin", "service")
EDGE: Final = "edge_"
"""How the id of an edge token begins. The table knows its row as a client's, as far as it may read: a release from before edges sees it so too."""


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a token; never its text."""

    id: str
    kind: str
    name: str
    scopes: tuple[Scope, ...]
    created_by: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


_COLUMNS: Final = "id, kind, name, scopes, created_by, created_at, expires_at, revoked_at, last_used_at"


def draw(kind: TokenKind, anchor: Digest | None) -> str:
    """A fresh token's text."""
    secret = "".join(secrets.choice(token.ALPHABET) for _ in range(token.SECRET_LENGTH))
    return token.mint(kind, secret, anchor if kind in token.ANCHORED else None)


class TokenStore:
    """Implements `Authenticator`. Every read goes to the table: here a revocation counts at once."""

    def __init__(self, pool: Pool, anchor: Digest) -> None:
        self._pool = pool
        self._anchor = anchor

    async def principal(self, text: str) -> Principal:
        token.parse(text)
        return await self.by_digest(token.sha256(text))

    async def by_digest(self, sha256: bytes) -> Principal:
        """Raises Unauthenticated when it is unknown, expired or revoked, without saying which."""
        with translating():
            row = await self._pool.fetchrow(f"select {_COLUMNS} from access.token where sha256 = $1", sha256)
        record = _record(row) if row else None
        now = datetime.now(UTC)
        if record is None or record.revoked_at is not None or (record.expires_at is not None and record.expires_at <= now):
            raise Unauthenticated("the token is unknown, expired or revoked")
        if record.last_used_at is None or record.last_used_at < now - NOTED:
            await self._note_use(record.id)
        return Principal(
            id=record.id,
            kind=record.kind,  # type: ignore[arg-type]  # the table's check lists the kinds
            name=record.name,
            scopes=record.scopes,
            expires_at_us=int(record.expires_at.timestamp() * 1e6) if record.expires_at else None,
        )

    async def _note_use(self, identity: str) -> None:
        """Of many at once, one writes. A database that only reads must not keep anybody out."""
        with contextlib.suppress(Unavailable), translating():
            await self._pool.execute(
                "update access.token set last_used_at = now() where id = $1 and coalesce(last_used_at < now() - $2::interval, true)",
                identity,
                NOTED,
            )

    async def create(
        self,
        kind: TokenKind,
        name: str,
        scopes: tuple[Scope, ...],
        *,
        by: str | None,
        expires_at: datetime | None = None,
        within: Connection | None = None,
    ) -> tuple[TokenRecord, str]:
        """The record and the token's text, which exists nowhere else from now on. ``within``: in the caller's transaction."""
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise InvalidRequest(f"a token needs a name of 1 to {MAX_NAME} printable characters")
        if not scopes or len(scopes) > MAX_SCOPES:
            raise InvalidRequest(f"a token needs 1 to {MAX_SCOPES} scopes")
        text = draw(kind, self._anchor)
        with translating():
            row = await (within or self._pool).fetchrow(
                f"""insert into access.token (id, sha256, kind, name, scopes, created_by, expires_at) values ($1, $2, $3, $4, $5, $6, $7)
                    returning {_COLUMNS}""",
                f"{EDGE if kind == 'edge' else 'tok_'}{secrets.token_hex(8)}",
                token.sha256(text),
                "client" if kind == "edge" else kind,
                name,
                json.dumps(msgspec.to_builtins(scopes)),
                by,
                expires_at,
            )
        assert row
        return _record(row), text

    async def page(self, *, after: str = "", limit: int = 100) -> list[TokenRecord]:
        with translating():
            rows = await self._pool.fetch(
                f"select {_COLUMNS} from access.token where id > $1 order by id limit $2", after, limit
            )
        return [_record(row) for row in rows]

    async def revoke(self, connection: Connection, identity: str, *, by: str) -> TokenRecord:
        """In the caller's transaction, which also tells the others. Idempotent. Raises NotFound."""
        row = await connection.fetchrow(
            f"""update access.token set revoked_at = coalesce(revoked_at, now()), revoked_by = coalesce(revoked_by, $2) where id = $1
                returning {_COLUMNS}""",
            identity,
            by,
        )
        if row is None:
            raise NotFound(f"no token {identity}")
        return _record(row)

    async def bootstrap(self, folder: Path) -> bool:
        """At the very first start: an admin and a service token into files of mode 0600. Whether this was the first start.

        The files are on disk before the rows are committed, so no crash leaves a token that nobody has; of two that start at once, one makes them.
        Raises InvalidRequest when the files cannot be written.
        """
        with translating():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("select pg_advisory_xact_lock(hashtext('heliograph first tokens'))")
                if await connection.fetchval("select exists (select from access.token)"):
                    return False
                texts = {}
                for kind in FIRST:
                    _, texts[kind] = await self.create(kind, f"first {kind}", (Scope(),), by=None, within=connection)  # type: ignore[arg-type]  # a proxy
                await asyncio.to_thread(_write_first, folder, texts)
        return True


def _write_first(folder: Path, texts: Mapping[TokenKind, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for kind, text in texts.items():
            write_private(folder / f"{kind}.token", text.encode() + b"\n")
    except OSError as error:
        raise InvalidRequest(f"the first tokens cannot be written to {folder}: {error.strerror}") from None


def _record(row: Any) -> TokenRecord:
    kind = "edge" if row["id"].startswith(EDGE) else row["kind"]
    return TokenRecord(**{**dict(row), "kind": kind, "scopes": tuple(Scope(**each) for each in json.loads(row["scopes"]))})
