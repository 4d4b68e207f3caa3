"""Labels: names for versions."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from heliograph.access.permissions import Action
from heliograph.core import names
from heliograph.core.digest import spell
from heliograph.core.errors import InvalidRequest
from heliograph.runtime.http import Json
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import LABEL_MATCH, VERSION, gives, takes
from heliograph.services.registry.history_answers import LabelAnswer, LabelList
from heliograph.services.registry.lookback import LabelRow

_LABEL: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["version"],
    "additionalProperties": False,
    "properties": {
        "version": VERSION,
        "move": {"type": "boolean", "description": "also when it names another version; false by default"},
    },
}


class _Label(msgspec.Struct, forbid_unknown_fields=True):
    version: int | str
    move: bool = False


class Labels:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}/environments/{environment}/labels", tags=["labels"])
        router.get("", responses=gives(200, LabelList))(self.list_labels)
        router.get("/{label}", responses=gives(200, LabelAnswer))(self.one)
        router.put(
            "/{label}",
            responses=gives(201, LabelAnswer, "Made") | gives(200, LabelAnswer, "moved, or it named that version already"),
            openapi_extra=takes(_LABEL, [LABEL_MATCH]),
            status_code=201,
        )(self.put)
        router.delete("/{label}", responses=gives(204, None), status_code=204, openapi_extra=takes(None, [LABEL_MATCH]))(
            self.remove
        )
        return router

    async def list_labels(
        self, request: Request, namespace: str, environment: str, cursor: inputs.Cursor = "", limit: inputs.Limit = 100
    ) -> Response:
        """An environment's labels, by name."""
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        await self._context.store.head(place)
        rows = await self._context.lookback.labels(place, inputs.keys_of(cursor)[0], limit)
        after = inputs.cursor_of(rows[-1].name) if len(rows) == limit else None
        return Json(LabelList([_answer(row) for row in rows], after))

    async def one(self, request: Request, namespace: str, environment: str, label: str) -> Response:
        """What a label names. ETag: that version's id, which is what If-Match takes here."""
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        await self._context.store.head(place)
        row = await self._context.lookback.label(place, names.label(label))
        return Json(_answer(row), headers={"ETag": f'"{spell(row.version)}"'})

    async def put(self, request: Request, namespace: str, environment: str, label: str) -> Response:
        """Names a version. A label that names another one is moved only when that is said: `"move": true`, or If-Match with the id it names now."""
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        try:
            wanted = msgspec.json.decode(await request.body(), type=_Label)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f'expected {{"version": which version, "move"?: true}}: {error}') from None
        to, expected = inputs.which_version(str(wanted.version)), inputs.if_match(request)
        row, new = await self._context.labels.set(
            place, names.label(label), to, expected=expected, move=wanted.move, by=principal.id
        )
        return Json(_answer(row), status_code=201 if new else 200, headers={"ETag": f'"{spell(row.version)}"'})

    async def remove(self, request: Request, namespace: str, environment: str, label: str) -> Response:
        """Takes a label away; the version stays."""
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        expected = inputs.if_match(request)
        await self._context.labels.remove(place, names.label(label), expected=expected, by=principal.id)
        return Response(status_code=204)


def _answer(row: LabelRow) -> LabelAnswer:
    return LabelAnswer(name=row.name, number=row.number, version=spell(row.version), set_by=row.set_by, set_at=row.set_at)
