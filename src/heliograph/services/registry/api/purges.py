"""Purging texts that must not stay."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from heliograph.access.permissions import Action, allow, permits
from heliograph.core import names
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Forbidden, InvalidRequest
from heliograph.core.names import Namespace
from heliograph.core.records import PURGE_TYPE
from heliograph.runtime.http import Json
from heliograph.services.registry import answers
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import CONFIG_NAME, VERSION, gives, takes
from heliograph.services.registry.erasing_answers import PurgeAnswer, PurgeList
from heliograph.services.registry.erasure import PurgeRow
from heliograph.services.registry.heads import Place
from heliograph.services.registry.purge import MAX_DIGESTS, Purging
from heliograph.services.registry.remains import remains

MAX_VERSIONS: Final = 100
MAX_REASON: Final = 1_000
MAX_ORDER: Final = 200
_DIGEST: Final = r"^sha256:[0-9a-f]{64}$"
_PURGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["reason", "order"],
    "additionalProperties": False,
    "properties": {
        "digests": {"type": "array", "minItems": 1, "maxItems": MAX_DIGESTS, "items": {"type": "string", "pattern": _DIGEST}},
        "environment": {"type": "string", "pattern": f"^{names.SEGMENT}$"},
        "config": {"type": "string", **CONFIG_NAME},
        "versions": {"type": "array", "minItems": 1, "maxItems": MAX_VERSIONS, "items": VERSION},
        "reason": {"type": "string", "minLength": 1, "maxLength": MAX_REASON, "description": "why; kept with the tombstone"},
        "order": {"type": "string", "minLength": 1, "maxLength": MAX_ORDER, "description": "whose order: a ticket, a ruling"},
    },
    "oneOf": [{"required": ["digests"]}, {"required": ["environment", "config", "versions"]}],
}


class _Purge(msgspec.Struct, forbid_unknown_fields=True):
    reason: str
    order: str
    digests: list[str] | None = None
    environment: str | None = None
    config: str | None = None
    versions: list[int | str] | None = None


class Purges:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}/purges", tags=["purges"])
        purged = gives(201, PurgeAnswer, "purged") | gives(200, PurgeAnswer, "all of it was purged before")
        router.post("", status_code=201, responses=purged, openapi_extra=takes(_PURGE))(self.purge)
        router.get("", responses=gives(200, PurgeList))(self.purges)
        return router

    async def purge(self, request: Request, namespace: str) -> Response:
        """Removes the bytes of documents, schemas or messages for good, by digest, or the documents that a config had in some versions.

        Every root, id, signature and proof verifies as before. Refused (409, `held_by`) while a head of any environment of the namespace names one,
        those of deleted environments included. The answer says where the text can still be, and until when.
        """
        principal = await self._context.principal(request)
        owner = names.namespace(namespace)
        allow(principal, Action.PURGE, owner, None)
        wanted = _read(await request.body())
        asked = Purging(principal.id, wanted.reason, wanted.order, str(request.state.trace))
        done = await self._context.purge(owner, await self._digests(owner, wanted), asked)
        already: list[str] = [spell(each) for each in done.already]
        if done.row is None:
            return Json(PurgeAnswer(namespace=owner, digests=[], already=already))
        letters = await self._context.erasure.letters_with([spell(each) for each in done.row.digests])
        return Json(
            msgspec.structs.replace(
                _answer(owner, done.row),
                already=already,
                remains=remains(done.row.at, self._context.keeping, letters=letters, messages=done.messages),
            ),
            status_code=201,
        )

    async def purges(self, request: Request, namespace: str, cursor: inputs.Cursor = "", limit: inputs.Limit = 100) -> Response:
        """A namespace's purges, newest first, with the signed statements that a verifier of any of its environments needs."""
        principal = await self._context.principal(request)
        owner = names.namespace(namespace)
        if not any(permits(principal, Action.READ, owner, scope.environment) for scope in principal.scopes):
            raise Forbidden(f"this {principal.kind} token does not permit read on {owner}")
        rows = await self._context.erasure.purges_before(owner, inputs.number_of(cursor, inputs.MAX_NUMBER), limit)
        after = inputs.cursor_of(str(rows[-1].id)) if len(rows) == limit else None
        return Json(PurgeList([_answer(owner, row) for row in rows], after))

    async def _digests(self, namespace: Namespace, wanted: _Purge) -> list[bytes]:
        if wanted.digests is not None:
            try:
                return [unspell(each) for each in wanted.digests]
            except ValueError as error:
                raise InvalidRequest(f"digests: {error}") from None
        assert wanted.environment is not None
        assert wanted.config is not None
        place = Place(namespace, names.environment(wanted.environment))
        versions = [inputs.which_version(str(each)) for each in wanted.versions or ()]
        return await self._context.purge.documents_of(place, names.config(wanted.config), versions)


def _read(body: bytes) -> _Purge:
    try:
        wanted = msgspec.json.decode(body, type=_Purge)
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f'expected {{"digests" or "environment", "config", "versions"; "reason", "order"}}: {error}'
        ) from None
    given = [each is not None for each in (wanted.environment, wanted.config, wanted.versions)]
    if not (all(given) if wanted.digests is None else not any(given)):
        raise InvalidRequest("say either digests, or environment, config and versions")
    if not 0 < len(wanted.versions or [1]) <= MAX_VERSIONS:
        raise InvalidRequest(f"1 to {MAX_VERSIONS} versions at a time")
    for text, most, what in ((wanted.reason, MAX_REASON, "reason"), (wanted.order, MAX_ORDER, "order")):
        if not 0 < len(text) <= most or "\0" in text:
            raise InvalidRequest(f"{what} has 1 to {most:,} characters, none of them NUL")
    return wanted


def _answer(namespace: Namespace, row: PurgeRow) -> PurgeAnswer:
    return PurgeAnswer(
        namespace=namespace,
        digests=[spell(each) for each in row.digests],
        by=row.by,
        at=row.at,
        reason=row.reason,
        order=row.order,
        envelope=answers.envelope(row.statement, PURGE_TYPE),
    )
