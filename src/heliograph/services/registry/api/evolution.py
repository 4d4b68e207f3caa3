"""What a change would break, before it is published, and what the environment does about it."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from heliograph.access.permissions import Action
from heliograph.core.errors import InvalidRequest
from heliograph.runtime.http import Json
from heliograph.services.registry.answers import Compatibility, Policy
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import gives, takes
from heliograph.services.registry.api.versions import CHANGES
from heliograph.services.registry.changes import read_many


class Evolving:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}/environments/{environment}", tags=["evolution"])
        router.post("/schemas-check", responses=gives(200, Compatibility), openapi_extra=takes(CHANGES))(self.check)
        router.get("/policy", responses=gives(200, Policy))(self.policy)
        router.put("/policy", responses=gives(200, Policy), openapi_extra=takes(Policy))(self.set_policy)
        return router

    async def check(self, request: Request, namespace: str, environment: str) -> Response:
        """Takes what `POST …/versions` takes and publishes nothing: says which values of this environment, of the namespace's other environments, and
        which connected instances (by the types they declare) the changes would break."""
        _, place = await self._context.permitted(request, Action.WRITE, namespace, environment)
        changes, _ = await inputs.read(await request.body(), read_many)
        return Json(await self._context.evolution.rehearse(place, changes))

    async def policy(self, request: Request, namespace: str, environment: str) -> Response:
        """What this environment does when a change would break somebody; `warn` unless it was changed."""
        _, place = await self._context.permitted(request, Action.READ, namespace, environment)
        return Json(await self._context.evolution.policy(place))

    async def set_policy(self, request: Request, namespace: str, environment: str) -> Response:
        """`off`: nothing is looked at; `warn`: answers say what breaks; `refuse`: 409 with the same report, and nothing is committed.

        Counts at once in the registry that answers, in all others within a second.
        """
        principal, place = await self._context.permitted(request, Action.ADMIN, namespace, environment)
        try:
            policy = msgspec.json.decode(await request.body(), type=Policy)
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest('expected {"compatibility": "off" | "warn" | "refuse"}') from None
        await self._context.evolution.set_policy(place, policy, principal.id)
        return Json(policy)
