"""Deleting environments and namespaces, and restoring them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Principal
from heliograph.core import names
from heliograph.core.digest import spell
from heliograph.core.names import Namespace
from heliograph.core.times import to_text
from heliograph.runtime.http import Json
from heliograph.services.registry.answers import Deleted, EnvironmentAnswer, NamespaceAnswer
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.openapi import gives
from heliograph.services.registry.erasure import Gone, GoneEnvironment, GoneNamespace

Retain = Annotated[
    int | None,
    Query(
        ge=3600, le=10 * 365 * 86400, description="seconds for which it can be restored; less than usual needs an administrator"
    ),
]


class Deletion:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/namespaces/{namespace}", tags=["deletion"])
        environment = "/environments/{environment}"
        router.delete(environment, responses=gives(200, EnvironmentAnswer, "deleted"))(self.delete_environment)
        router.post(f"{environment}/restore", responses=gives(200, EnvironmentAnswer, "there again"))(self.restore_environment)
        router.delete("", responses=gives(200, NamespaceAnswer, "deleted, with all environments"))(self.delete_namespace)
        router.post("/restore", responses=gives(200, NamespaceAnswer, "there again"))(self.restore_namespace)
        return router

    async def delete_environment(self, request: Request, namespace: str, environment: str, retain_s: Retain = None) -> Response:
        """Deletes an environment: it can be neither read nor written, its clients keep what they run on, nobody can take its name.

        Until `erase_at` it can be restored; then it is erased for good. Deleting it again changes nothing.
        """
        principal, place = await self._context.permitted(request, Action.DELETE, namespace, environment)
        seconds = self._retention(principal, retain_s, place.namespace, place.environment)
        trace = str(request.state.trace)
        return Json(
            gone_environment(
                place.namespace, await self._context.deletion.environment(place, retain_s=seconds, by=principal.id, trace=trace)
            )
        )

    async def restore_environment(self, request: Request, namespace: str, environment: str) -> Response:
        """Brings a deleted environment back as it was."""
        principal, place = await self._context.permitted(request, Action.DELETE, namespace, environment)
        await self._context.deletion.restore_environment(place, by=principal.id)
        head = await self._context.store.head(place)
        return Json(
            EnvironmentAnswer(
                namespace=place.namespace,
                name=place.environment,
                number=head.number,
                epoch=head.epoch,
                version=head.id,
                configs=head.configs,
                at=to_text(head.at_us),
            )
        )

    async def delete_namespace(self, request: Request, namespace: str, retain_s: Retain = None) -> Response:
        """Deletes a namespace with all its environments, all at once. Until `erase_at` it can be restored."""
        principal = await self._context.principal(request)
        name = names.namespace(namespace)
        allow(principal, Action.ADMIN, name, None)
        seconds = self._retention(principal, retain_s, name, None)
        gone = await self._context.deletion.namespace(name, retain_s=seconds, by=principal.id, trace=str(request.state.trace))
        return Json(gone_namespace(gone))

    async def restore_namespace(self, request: Request, namespace: str) -> Response:
        """Brings a deleted namespace back, with the environments that went with it."""
        principal = await self._context.principal(request)
        name = names.namespace(namespace)
        allow(principal, Action.ADMIN, name, None)
        await self._context.deletion.restore_namespace(name, by=principal.id)
        return Json(NamespaceAnswer(name, await self._context.erasure.namespace_made(name)))

    def _retention(self, principal: Principal, asked_s: int | None, namespace: Namespace, environment: str | None) -> float:
        seconds = self._context.deletion.retention(asked_s)
        if seconds < self._context.deletion.retain_s:
            allow(principal, Action.ADMIN, namespace, environment)
        return seconds


def gone_environment(namespace: Namespace, row: GoneEnvironment) -> EnvironmentAnswer:
    return EnvironmentAnswer(
        namespace=namespace,
        name=row.name,
        number=row.number,
        epoch=row.epoch,
        version=spell(row.version),
        configs=row.configs,
        at=to_text(row.at_us),
        deleted=_deleted(row.gone),
    )


def gone_namespace(row: GoneNamespace) -> NamespaceAnswer:
    return NamespaceAnswer(row.name, row.created_at, _deleted(row.gone))


def _deleted(gone: Gone) -> Deleted:
    return Deleted(gone.by, gone.at, gone.erase_at)
