"""Versions: publishing several changes at once, history, differences, rolling back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from heliograph.access.permissions import Action, allow
from heliograph.core import names
from heliograph.core.digest import spell
from heliograph.core.errors import InvalidRequest
from heliograph.core.which import MAX_LENGTH
from heliograph.runtime.http import Json
from heliograph.services.registry import answers
from heliograph.services.registry.answers import DiffAnswer, DiffEnd, VersionAnswer, VersionList
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import CONFIG_NAME, NDJSON, VERSION, WRITE_HEADERS, gives, takes
from heliograph.services.registry.api.writing import answer, order
from heliograph.services.registry.changes import MAX_CHANGES, message, read_many
from heliograph.services.registry.heads import Place

HISTORY_PAGE: Final = 500
CHANGES: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["changes"],
    "additionalProperties": False,
    "properties": {
        "message": {"type": ["string", "null"], "maxLength": 1000},
        "changes": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_CHANGES,
            "items": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", **CONFIG_NAME},
                    "document": {"description": "any JSON"},
                    "schema": {
                        "description": "a JSON Schema (draft-07), or null to take it away",
                        "type": ["object", "boolean", "null"],
                    },
                    "delete": {"type": "boolean"},
                },
                "anyOf": [{"required": ["document"]}, {"required": ["schema"]}, {"required": ["delete"]}],
            },
        },
    },
}
_ROLLBACK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["to"],
    "additionalProperties": False,
    "properties": {
        "to": VERSION,
        "message": {"type": ["string", "null"], "maxLength": 1000},
    },
}


class _Rollback(msgspec.Struct, forbid_unknown_fields=True):
    to: int | str
    message: str | None = None


class Versions:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}/environments/{environment}", tags=["versions"])
        written = gives(201, VersionAnswer) | gives(200, VersionAnswer, "nothing to change: the current version")
        router.post("/versions", status_code=201, responses=written, openapi_extra=takes(CHANGES, WRITE_HEADERS))(self.publish)
        router.get("/versions", responses=gives(200, VersionList))(self.list_versions)
        router.get("/versions/{which}", responses=gives(200, VersionAnswer))(self.one)
        router.get("/diff", responses=gives(200, DiffAnswer))(self.diff)
        router.get("/history", responses=gives(200, NDJSON))(self.history)
        router.post("/rollback", status_code=201, responses=written, openapi_extra=takes(_ROLLBACK, WRITE_HEADERS))(
            self.roll_back
        )
        return router

    async def publish(self, request: Request, namespace: str, environment: str) -> Response:
        """Publishes several changes as one version: all of them, or none. At most 5,000 changes and 16 MiB of text.

        A `schema` of null takes a config's schema away; without `document` a config keeps its document. Changes that change nothing are left out;
        when none is left, nothing is committed: 200 with the current version and `unchanged: true`.
        """
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        body = await request.body()
        changes, said = await inputs.read(body, read_many)
        asked = order(request, principal, place, body, action="version.publish", message=said)
        return await answer(self._context, request, place, await self._context.publish(asked, changes))

    async def roll_back(self, request: Request, namespace: str, environment: str) -> Response:
        """Makes a new version with the content of an old one; its root is the old one's, which proves it."""
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        body = await request.body()
        try:
            wanted = msgspec.json.decode(body, type=_Rollback)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f'expected {{"to": which version, "message"?}}: {error}') from None
        asked = order(request, principal, place, body, action="version.rollback", message=message(wanted.message))
        to = inputs.which_version(str(wanted.to))
        return await answer(self._context, request, place, await self._context.rollback(asked, to))

    async def list_versions(
        self, request: Request, namespace: str, environment: str, cursor: inputs.Cursor = "", limit: inputs.Limit = 50
    ) -> Response:
        """The history, newest first. Each lists up to 20 of its changed configs."""
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        head = await self._context.store.head(place)
        rows = await self._context.store.versions_before(place, inputs.number_of(cursor, inputs.MAX_NUMBER), limit)
        labels = await self._context.lookback.labels_of(place, [row.number for row in rows])
        items = [answers.of_row(row, head, with_envelope=False, labels=labels.get(row.number)) for row in rows]
        after = inputs.cursor_of(str(rows[-1].number)) if rows and rows[-1].number > 1 else None
        return Json(VersionList(items, after))

    async def one(self, request: Request, namespace: str, environment: str, which: str) -> Response:
        """One version, by number, id, label or time, with its signed record; the head's version also with the signed head."""
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        row = await self._context.store.version(place, inputs.which_version(which))
        head = await self._context.store.head(place)
        labels = await self._context.lookback.labels_of(place, [row.number])
        return Json(answers.of_row(row, head, labels=labels.get(row.number)), headers={"ETag": f'"{spell(row.id)}"'})

    async def diff(
        self,
        request: Request,
        namespace: str,
        environment: str,
        from_: Annotated[
            str,
            Query(
                alias="from",
                max_length=MAX_LENGTH,
                description=f"which version: {inputs.NAMED}; by default the one before `to`",
            ),
        ] = "",
        to: inputs.At = "",
        from_environment: Annotated[
            str,
            Query(max_length=63, description="compare with this environment: `from` is a version of it, by default its head"),
        ] = "",
        cursor: inputs.Cursor = "",
        limit: inputs.Limit = 100,
    ) -> Response:
        """What differs between two versions, of one environment or of two, config by config, as RFC 6902 operations. A later page needs the same
        `from` and `to`."""
        principal, place = await self._context.permitted(request, Action.READ, namespace, environment)
        new = await self._context.version(place, to)
        if from_environment:
            other = Place(place.namespace, names.environment(from_environment))
            allow(principal, Action.READ, other.namespace, other.environment)
            old = await self._context.version(other, from_)
        else:
            old = await self._context.version(place, from_ or str(max(1, new.number - 1)))
        items = await self._context.reading.differences(place, old, new, inputs.keys_of(cursor)[0], limit)
        after = inputs.cursor_of(items[-1].name) if len(items) == limit else None
        ends = (DiffEnd(each.number, spell(each.id)) for each in (old, new))
        return Json(DiffAnswer(from_=next(ends), to=next(ends), items=items, next=after))

    async def history(
        self, request: Request, namespace: str, environment: str, after: Annotated[int, Query(ge=0, le=inputs.MAX_NUMBER)] = 0
    ) -> Response:
        """All version records as they were signed, oldest first, one JSON object a line: {"payload", "signatures"}.

        For auditors: from number 1 on, every record can be checked against the one before.
        """
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        await self._context.store.head(place)
        return StreamingResponse(self._records(place, after), media_type="application/x-ndjson")

    async def _records(self, place: Place, after: int) -> AsyncIterator[bytes]:
        while page := await self._context.store.records_after(place, after, HISTORY_PAGE):
            yield b"".join(msgspec.json.encode(record) + b"\n" for _, record in page)
            after = page[-1][0]
