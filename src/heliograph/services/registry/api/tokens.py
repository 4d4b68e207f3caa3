"""Tokens: made, listed, revoked. A token's text is told once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Path, Request, Response

from heliograph.access.permissions import Action, allow, permits
from heliograph.access.principal import ANY, Principal, Scope
from heliograph.access.store import TokenRecord
from heliograph.core import names
from heliograph.core.errors import InvalidRequest
from heliograph.runtime.http import Json
from heliograph.services.registry.answers import TokenAnswer, TokenList, TokenScope
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import gives, takes

MAX_LIFE_S: Final = 10 * 365 * 86400.0
TokenId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_SCOPE: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "namespace": {"type": "string", "description": "a name, or * for all", "default": ANY},
        "environment": {"type": "string", "description": "a name, or * for all", "default": ANY},
    },
}
_TOKEN: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["kind", "name", "scopes"],
    "additionalProperties": False,
    "properties": {
        "kind": {"enum": ["admin", "author", "client", "service", "edge"]},
        "name": {"type": "string", "minLength": 1, "maxLength": 100},
        "scopes": {"type": "array", "minItems": 1, "maxItems": 100, "items": _SCOPE},
        "expires_in_s": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": MAX_LIFE_S},
    },
}


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["admin", "author", "client", "service", "edge"]
    name: str
    scopes: tuple[TokenScope, ...]
    expires_in_s: float | None = None


class Tokens:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/tokens", tags=["tokens"])
        router.post("", status_code=201, responses=gives(201, TokenAnswer), openapi_extra=takes(_TOKEN))(self.create)
        router.get("", responses=gives(200, TokenList))(self.list_tokens)
        router.delete("/{token}", responses=gives(200, TokenAnswer))(self.revoke)
        return router

    async def create(self, request: Request) -> Response:
        """Makes a token. Its text is in this answer and nowhere else, so an Idempotency-Key has no meaning here.

        Nobody gives what is beyond the scopes of their own token.
        """
        principal = await self._context.principal(request)
        allow(principal, Action.ADMIN, *_own_reach(principal))
        asked = _read(await request.body())
        scopes = tuple(_scope(each) for each in asked.scopes)
        for scope in scopes:
            allow(principal, Action.ADMIN, *_reach(scope))
        until = _expiry(asked.expires_in_s)
        record, text = await self._context.token_desk.issue(asked.kind, asked.name, scopes, by=principal.id, expires_at=until)
        return Json(_answer(record, text), status_code=201)

    async def list_tokens(self, request: Request, cursor: inputs.Cursor = "", limit: inputs.Limit = 100) -> Response:
        """Tokens whose scopes lie within those of yours; never their texts. A page may be shorter than asked for."""
        principal = await self._context.principal(request)
        allow(principal, Action.ADMIN, *_own_reach(principal))
        rows = await self._context.tokens.page(after=inputs.keys_of(cursor)[0], limit=limit)
        mine = [_answer(row) for row in rows if _within(principal, row)]
        return Json(TokenList(mine, inputs.cursor_of(rows[-1].id) if len(rows) == limit else None))

    async def revoke(self, request: Request, token: TokenId) -> Response:
        """Revokes a token by its id, for good. Live connections that were opened with it close within a second."""
        principal = await self._context.principal(request)
        allow(principal, Action.ADMIN, *_own_reach(principal))

        def permitted(record: TokenRecord) -> None:
            for scope in record.scopes:
                allow(principal, Action.ADMIN, *_reach(scope))

        desk = self._context.token_desk
        return Json(_answer(await desk.revoke(token, by=principal.id, trace=str(request.state.trace), permitted=permitted)))


def _read(body: bytes) -> _Asked:
    try:
        return msgspec.json.decode(body, type=_Asked)
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f'expected {{"kind", "name", "scopes": [{{"namespace", "environment"}}], "expires_in_s"?}}: {error}'
        ) from None


def _scope(asked: TokenScope) -> Scope:
    return Scope(
        ANY if asked.namespace == ANY else names.namespace(asked.namespace),
        ANY if asked.environment == ANY else names.environment(asked.environment),
    )


def _reach(scope: Scope) -> tuple[str | None, str | None]:
    """As permissions ask: None for all."""
    return None if scope.namespace == ANY else scope.namespace, None if scope.environment == ANY else scope.environment


def _own_reach(principal: Principal) -> tuple[str | None, str | None]:
    return _reach(principal.scopes[0]) if principal.scopes else (None, None)


def _within(principal: Principal, record: TokenRecord) -> bool:
    return all(permits(principal, Action.ADMIN, *_reach(scope)) for scope in record.scopes)


def _expiry(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    if not 0 < seconds <= MAX_LIFE_S:
        raise InvalidRequest(f"expires_in_s takes seconds above 0 and up to {MAX_LIFE_S:,.0f}")
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _answer(record: TokenRecord, text: str | None = None) -> TokenAnswer:
    return TokenAnswer(
        id=record.id,
        kind=record.kind,  # type: ignore[arg-type]  # the table's check lists the kinds
        name=record.name,
        scopes=tuple(TokenScope(each.namespace, each.environment) for each in record.scopes),
        created_by=record.created_by,
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        last_used_at=record.last_used_at,
        token=text if text is not None else msgspec.UNSET,
    )
