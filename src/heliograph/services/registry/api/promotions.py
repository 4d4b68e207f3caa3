"""Promotions: bringing what changed in one environment to another."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from heliograph.access.permissions import Action, allow, permits
from heliograph.core import names
from heliograph.runtime.http import Json
from heliograph.services.registry.answers import PromotionAnswer, VersionAnswer
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import CONFIG_NAME, VERSION, WRITE_HEADERS, gives, takes
from heliograph.services.registry.api.writing import answer, order
from heliograph.services.registry.promotion import MAX_SELECTORS, read_promotion

_PROMOTION: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["from"],
    "additionalProperties": False,
    "properties": {
        "from": {"description": "the source environment", "type": "string", "pattern": f"^{names.SEGMENT}$"},
        "version": {**VERSION, "description": "of the source: number, id, label:release-7, or a time; its head by default"},
        "change": {
            "description": "only what this one version of the source changed, by its number: a cherry-pick",
            "type": ["integer", "null"],
            "minimum": 2,
        },
        "configs": {
            "description": "only these configs, and folders (ending in `/`) with all below them",
            "type": ["array", "null"],
            "minItems": 1,
            "maxItems": MAX_SELECTORS,
            "items": {"type": "string", "maxLength": names.MAX_CONFIG_NAME},
        },
        "resolve": {
            "description": "what to take where both sides changed the same place: by config and pointer (`schema`: the config's schema)",
            "type": "object",
            "propertyNames": CONFIG_NAME,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": {
                    "anyOf": [
                        {"enum": ["ours", "theirs"]},
                        {"type": "object", "required": ["value"], "additionalProperties": False, "properties": {"value": {}}},
                    ]
                },
            },
        },
        "message": {"type": ["string", "null"], "maxLength": 1000},
    },
}


class Promotions:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}/environments/{environment}", tags=["promotions"])
        written = gives(201, VersionAnswer) | gives(
            200, (VersionAnswer, PromotionAnswer), "nothing to change: the current version; or the preview that was asked for"
        )
        router.post("/promote", status_code=201, responses=written, openapi_extra=takes(_PROMOTION, WRITE_HEADERS))(
            self.promote
        )
        return router

    async def promote(
        self,
        request: Request,
        namespace: str,
        environment: str,
        preview: Annotated[bool, Query(description="say what it would do, with every conflict, and change nothing")] = False,
    ) -> Response:
        """Brings to this environment what changed in another since their last common point, as one version.

        Each config is merged three-way: documents member by member, schemas as a whole. Where both changed the same place it is 409 with every such
        place, the value both had, ours (this environment) and theirs; send it again with `resolve`. A promotion that finds nothing to change
        commits nothing (200 with `unchanged: true`), and counts as a common point from then on.
        """
        principal, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        body = await request.body()
        asked = await inputs.read(body, read_promotion)
        allow(principal, Action.READ, place.namespace, asked.source)
        at = None if asked.at is None else inputs.which_version(str(asked.at))

        def readable(name: str) -> bool:
            return permits(principal, Action.READ, place.namespace, name)

        if preview:
            allow(principal, Action.READ, place.namespace, place.environment)
            return Json(await self._context.promote.preview(place, asked, at, readable))
        asked_for = order(request, principal, place, body, action="environment.promote", message=asked.message)
        return await answer(self._context, request, place, await self._context.promote(asked_for, asked, at, readable))
