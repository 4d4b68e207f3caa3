"""What the other services ask, with a service token. Everything that sync and ledger know of versions beyond the log comes from here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import asyncpg
import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Principal
from heliograph.core import names
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import InvalidRequest, NotFound, Unauthenticated
from heliograph.core.records import Signed
from heliograph.runtime.http import Json, RawJson
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.audit import note_once
from heliograph.services.registry.heads import Place

Number = Annotated[int, Path(ge=1, le=inputs.MAX_NUMBER)]
MAX_IDS: Final = 10_000


class HeadItem(msgspec.Struct, frozen=True):
    namespace: str
    environment: str
    head: Signed
    version: Signed


class _Digested(msgspec.Struct):
    sha256: str


class _Noted(msgspec.Struct):
    action: str
    namespace: str
    environment: str
    detail: dict[str, Any]


class Internal:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/internal", include_in_schema=False)
        router.get("/heads")(self.heads)
        router.get("/{namespace}/{environment}/state")(self.state)
        router.get("/{namespace}/{environment}/version-ids")(self.version_ids)
        router.get("/{namespace}/{environment}/versions/{number}")(self.version)
        router.get("/objects/{namespace}/{digest}")(self.object)
        router.post("/introspect")(self.introspect)
        router.post("/audit")(self.audit)
        return router

    async def heads(self, request: Request, cursor: inputs.Cursor = "", limit: inputs.Limit = 100) -> Response:
        """Every environment's head and version, as far as the token reaches."""
        principal = await self._service(request)
        after = inputs.keys_of(cursor, 2)
        rows = await self._context.store.heads((after[0], after[1]), limit)
        items = [
            HeadItem(place.namespace, place.environment, head, record)
            for place, head, record in rows
            if _covers(principal, place)
        ]
        last = rows[-1][0] if len(rows) == limit else None
        return Json({"items": items, "next": inputs.cursor_of(last.namespace, last.environment) if last else None})

    async def state(
        self,
        request: Request,
        namespace: str,
        environment: str,
        at: Annotated[int | None, Query(ge=1, le=inputs.MAX_NUMBER)] = None,
    ) -> Response:
        """Everything of one version, the head's by default, as lines of JSON: {"head", "version"}, then {"name", "leaf", "document"} for each config.

        An older version comes with the head it was committed with.
        """
        _, place = await self._context.permitted(request, Action.INTERNAL, namespace, environment)
        head = await self._context.store.head(place)
        row = await self._context.store.version(place, head.version if at is None else at)
        first = {"head": head.signed if row.id == head.version else row.head, "version": row.record}
        return StreamingResponse(self._lines(place, first, row.root), media_type="application/x-ndjson")

    async def _lines(self, place: Place, first: object, root: bytes) -> AsyncIterator[bytes]:
        yield msgspec.json.encode(first) + b"\n"
        async for lines in self._context.reading.state(place, root):
            yield lines

    async def version_ids(
        self,
        request: Request,
        namespace: str,
        environment: str,
        after: Annotated[int, Query(ge=0, le=inputs.MAX_NUMBER)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_IDS)] = MAX_IDS,
    ) -> Response:
        """Ids of the versions after a number, in order: the first is that of number ``after`` + 1. ``next`` is what to give as ``after`` then."""
        _, place = await self._context.permitted(request, Action.INTERNAL, namespace, environment)
        rows = await self._context.store.ids_after(place, after, limit)
        if not rows:
            await self._context.store.head(place)
        return Json(
            {"items": [spell(version) for _, version in rows], "next": str(rows[-1][0]) if len(rows) == limit else None}
        )

    async def version(self, request: Request, namespace: str, environment: str, number: Number) -> Response:
        """One version as an event, with its documents (up to 16 MiB of them; above, digests)."""
        _, place = await self._context.permitted(request, Action.INTERNAL, namespace, environment)
        row = await self._context.store.version(place, number)
        return Json(await self._context.reading.event(place, row))

    async def object(self, request: Request, namespace: str, digest: str) -> Response:
        """The exact bytes of an object of a namespace."""
        principal = await self._context.principal(request)
        owner = names.namespace(namespace)
        allow(principal, Action.INTERNAL, owner, None)
        try:
            raw = unspell(digest)
        except ValueError:
            raise InvalidRequest("an object is named by its digest: sha256:…") from None
        found = await self._context.store.objects(owner, [raw])
        if raw not in found:
            raise NotFound(f"{owner} has no object {digest}")
        return Response(found[raw], media_type="application/octet-stream", headers={"ETag": f'"{digest}"'})

    async def introspect(self, request: Request) -> Response:
        """The principal that a token stands for, by the SHA-256 of its text. 404: unknown, expired or revoked."""
        await self._service(request, everywhere=True)
        try:
            digest = bytes.fromhex(msgspec.json.decode(await request.body(), type=_Digested).sha256)
        except (msgspec.DecodeError, ValueError):
            raise InvalidRequest('expected {"sha256": 64 hex digits}') from None
        try:
            return Json(await self._context.tokens.by_digest(digest))
        except Unauthenticated as error:
            raise NotFound(error.detail) from None

    async def audit(self, request: Request) -> Response:
        """Writes a row into the audit trail, once for each idempotency key."""
        principal = await self._service(request)
        body = await request.body()
        try:
            noted = msgspec.json.decode(body, type=_Noted)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f'expected {{"action", "namespace", "environment", "detail"}}: {error}') from None
        place = Place(names.namespace(noted.namespace), names.environment(noted.environment))
        allow(principal, Action.INTERNAL, place.namespace, place.environment)
        key = inputs.idempotency_key(request)
        try:
            asked = inputs.fingerprint(request, body)
            written = await note_once(
                self._context.store, place, principal.id, noted.action, noted.detail, key=key, request=asked
            )
        except asyncpg.UntranslatableCharacterError:
            raise InvalidRequest("the detail holds a character that cannot be stored") from None
        return RawJson(written, 201)

    async def _service(self, request: Request, *, everywhere: bool = False) -> Principal:
        principal = await self._context.principal(request)
        scope = principal.scopes[0]
        allow(principal, Action.INTERNAL, *((None, None) if everywhere else (scope.namespace, scope.environment)))
        return principal


def _covers(principal: Principal, place: Place) -> bool:
    return any(scope.covers(place.namespace, place.environment) for scope in principal.scopes)
