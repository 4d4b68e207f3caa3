"""The past of one config. A config's name is the rest of a path, so what is asked about it comes before the name: history/…, blame/…"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from heliograph.access.permissions import Action
from heliograph.core import names
from heliograph.runtime.http import Json
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import gives
from heliograph.services.registry.history_answers import Blame, ConfigHistory

Versions = Annotated[int, Query(ge=1, le=500, description="how many versions of the config to look at")]


class Past:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}/environments/{environment}", tags=["past"])
        router.get("/history/{name:path}", responses=gives(200, ConfigHistory))(self.history_of)
        router.get("/blame/{name:path}", responses=gives(200, Blame))(self.blame)
        return router

    async def history_of(
        self,
        request: Request,
        namespace: str,
        environment: str,
        name: str,
        cursor: inputs.Cursor = "",
        limit: inputs.Limit = 50,
    ) -> Response:
        """The versions that changed one config, newest first. A config that was deleted has a history too."""
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        config = names.config(name)
        await self._context.store.head(place)
        before = inputs.number_of(cursor, inputs.MAX_NUMBER)
        items, more = await self._context.past.changes(place, config, before, limit)
        return Json(ConfigHistory(items, inputs.cursor_of(str(items[-1].number)) if more else None))

    async def blame(
        self,
        request: Request,
        namespace: str,
        environment: str,
        name: str,
        at: inputs.At = "",
        cursor: inputs.Cursor = "",
        limit: Versions = 100,
    ) -> Response:
        """Who last changed each value of a document, when, and in which version. For documents of up to 10,000 values.

        Looks back through a bounded number of versions; `next` goes on from there. A later page needs the same `at`: give the version's number.
        """
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        config = names.config(name)
        row = await self._context.version(place, at)
        start = inputs.number_of(cursor, 0) or None
        told = await self._context.past.blame(place, config, row, start, limit)
        return Json(msgspec.structs.replace(told, next=inputs.cursor_of(told.next)) if told.next else told)
