"""What anybody may ask: where things are, and whose signatures count. Both are meant for clients that know nothing yet; the second is signed."""

from __future__ import annotations

from fastapi import APIRouter, Response

from heliograph.core.records import ROOT_TYPE
from heliograph.runtime.http import Json
from heliograph.services.registry import answers
from heliograph.services.registry.answers import Endpoints, Envelope
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import gives


class Public:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1", tags=["clients"])
        router.get("/endpoints", responses=gives(200, Endpoints))(self.endpoints)
        router.get("/trust", responses=gives(200, Envelope))(self.trust)
        return router

    async def endpoints(self) -> Response:
        """Where the services are."""
        return Json(self._context.endpoints)

    async def trust(self) -> Response:
        """The trust root: keys, and which of them may sign versions, heads and the next root.

        Signed by the root key, whose fingerprint is the anchor in every client token.
        """
        return Json(answers.envelope(self._context.keys.now.statement, ROOT_TYPE))
