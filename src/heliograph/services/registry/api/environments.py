"""Namespaces and environments, and what an environment is at."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from heliograph.access.permissions import Action, allow, permits
from heliograph.access.principal import Principal
from heliograph.core import names
from heliograph.core.digest import spell
from heliograph.core.errors import Forbidden, InvalidRequest, NotFound
from heliograph.core.names import Namespace
from heliograph.core.times import to_text
from heliograph.runtime.http import Json
from heliograph.services.registry import answers
from heliograph.services.registry.answers import (
    AuditEntry,
    AuditList,
    EnvironmentAnswer,
    EnvironmentList,
    HeadAnswer,
    NamespaceAnswer,
    NamespaceList,
    VersionAnswer,
)
from heliograph.services.registry.api import inputs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.deletion import gone_environment, gone_namespace
from heliograph.services.registry.api.openapi import IDEMPOTENCY_KEY, VERSION, gives, takes
from heliograph.services.registry.api.writing import answer, order
from heliograph.services.registry.environments import create_environment, create_namespace
from heliograph.services.registry.heads import Place
from heliograph.services.registry.store import AuditRow

_NAME: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string", "pattern": f"^{names.SEGMENT}$"}},
}


_ENVIRONMENT: Final[dict[str, Any]] = {
    **_NAME,
    "properties": {
        **_NAME["properties"],
        "from": {
            "description": "begin with the content of this environment, at a version (by default its head's)",
            "type": ["object", "null"],
            "required": ["environment"],
            "additionalProperties": False,
            "properties": {"environment": {"type": "string", "pattern": f"^{names.SEGMENT}$"}, "version": VERSION},
        },
    },
}


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class _From(msgspec.Struct, forbid_unknown_fields=True):
    environment: str
    version: int | str | None = None


class _Environment(msgspec.Struct, forbid_unknown_fields=True, rename={"origin": "from"}):
    name: str
    origin: _From | None = None


class Environments:
    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1", tags=["environments"])
        router.post("/namespaces", status_code=201, responses=gives(201, NamespaceAnswer), openapi_extra=takes(_NAME))(
            self.add_namespace
        )
        router.get("/namespaces", responses=gives(200, NamespaceList))(self.namespaces)
        add = router.post(
            "/namespaces/{namespace}/environments",
            status_code=201,
            responses=gives(201, VersionAnswer, "version 1: empty, or with the content of the version it was branched from"),
            openapi_extra=takes(_ENVIRONMENT, [IDEMPOTENCY_KEY]),
        )
        add(self.add_environment)
        router.get("/namespaces/{namespace}/environments", responses=gives(200, EnvironmentList))(self.environments)
        router.get("/heads/{namespace}/{environment}", responses=gives(200, HeadAnswer) | gives(304, None))(self.head)
        router.get("/audit/{namespace}/{environment}", responses=gives(200, AuditList))(self.audit)
        router.get("/audit/{namespace}", responses=gives(200, AuditList))(self.audit_of_namespace)
        return router

    async def add_namespace(self, request: Request) -> Response:
        """Makes a namespace: what one team owns."""
        principal = await self._context.principal(request)
        name = names.namespace(_named(await request.body()))
        allow(principal, Action.CREATE, name, None)
        made = await create_namespace(self._context.store, name, principal.id)
        return Json(NamespaceAnswer(name, made), status_code=201)

    async def namespaces(
        self, request: Request, cursor: inputs.Cursor = "", limit: inputs.Limit = 100, deleted: inputs.Deleted = False
    ) -> Response:
        """Namespaces by name, as far as the token reaches. A page may be shorter than asked for. `deleted`: those that can be restored."""
        principal = await self._context.principal(request)
        if deleted:
            allow(principal, Action.ADMIN)
            gone = await self._context.erasure.gone_namespaces(inputs.keys_of(cursor)[0], limit)
            after = inputs.cursor_of(gone[-1].name) if len(gone) == limit else None
            return Json(NamespaceList([gone_namespace(row) for row in gone], after))
        rows = await self._context.store.namespaces(inputs.keys_of(cursor)[0], limit)
        after = inputs.cursor_of(rows[-1][0]) if len(rows) == limit else None
        return Json(NamespaceList([NamespaceAnswer(name, at) for name, at in rows if _reaches(principal, name)], after))

    async def add_environment(self, request: Request, namespace: str) -> Response:
        """Makes an environment: a history of its own, which begins with an empty version 1.

        `from` branches it off another environment of the namespace instead: version 1 has the content of that version, and shares all of it.
        """
        principal = await self._context.principal(request)
        body = await request.body()
        wanted = _environment(body)
        place = Place(names.namespace(namespace), names.environment(wanted.name))
        allow(principal, Action.CREATE, place.namespace, place.environment)
        if wanted.origin is None:
            asked = order(request, principal, place, body, action="environment.create")
            made = await create_environment(self._context.store, self._context.commits, asked)
            return await answer(self._context, request, place, made)
        source = Place(place.namespace, names.environment(wanted.origin.environment))
        allow(principal, Action.READ, source.namespace, source.environment)
        at = None if wanted.origin.version is None else inputs.which_version(str(wanted.origin.version))
        asked = order(request, principal, place, body, action="environment.branch")
        return await answer(self._context, request, place, await self._context.branch(asked, source, at))

    async def environments(
        self,
        request: Request,
        namespace: str,
        cursor: inputs.Cursor = "",
        limit: inputs.Limit = 100,
        deleted: inputs.Deleted = False,
    ) -> Response:
        """A namespace's environments by name, as far as the token reaches. `deleted`: those that can be restored, for administrators."""
        principal = await self._context.principal(request)
        owner = names.namespace(namespace)
        if deleted:
            allow(principal, Action.ADMIN, owner, None)
            gone = await self._context.erasure.gone_environments(owner, inputs.keys_of(cursor)[0], limit)
            after = inputs.cursor_of(gone[-1].name) if len(gone) == limit else None
            return Json(EnvironmentList([gone_environment(owner, row) for row in gone], after))
        if not _reaches(principal, owner):
            raise Forbidden(f"this {principal.kind} token does not permit read on {owner}")
        rows = await self._context.store.environments(owner, inputs.keys_of(cursor)[0], limit)
        if not rows and not await self._context.store.namespace_exists(owner):
            raise NotFound(f"no namespace {owner}")
        items = [
            EnvironmentAnswer(
                namespace=owner,
                name=row.name,
                number=row.number,
                epoch=row.epoch,
                version=spell(row.version),
                configs=row.configs,
                at=to_text(row.at_us),
            )
            for row in rows
            if permits(principal, Action.HEAD, owner, row.name)
        ]
        return Json(EnvironmentList(items, inputs.cursor_of(rows[-1].name) if len(rows) == limit else None))

    async def head(self, request: Request, namespace: str, environment: str) -> Response:
        """The signed head and the signed version it names."""
        _, place = await self._context.permitted(request, Action.HEAD, namespace, environment)
        head = await self._context.store.head(place)
        etag = f'"{head.epoch}.{head.number}.{head.issued_at_us}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        row = await self._context.store.version(place, head.version)
        return Json(answers.of_head(head, row.record), headers=headers)

    async def audit(
        self, request: Request, namespace: str, environment: str, cursor: inputs.Cursor = "", limit: inputs.Limit = 100
    ) -> Response:
        """Who did what to an environment, newest first. The rows were written by the transactions they describe."""
        _, place = await self._context.permitted(request, Action.ADMIN, namespace, environment)
        rows = await self._context.store.audit_before(place, inputs.number_of(cursor, inputs.MAX_NUMBER), limit)
        return Json(_audited(rows, limit))

    async def audit_of_namespace(
        self, request: Request, namespace: str, cursor: inputs.Cursor = "", limit: inputs.Limit = 100
    ) -> Response:
        """Who did what to a namespace itself, newest first: made, deleted, restored, erased it, or purged texts in it."""
        principal = await self._context.principal(request)
        owner = names.namespace(namespace)
        allow(principal, Action.ADMIN, owner, None)
        before = inputs.number_of(cursor, inputs.MAX_NUMBER)
        return Json(_audited(await self._context.store.audit_of_namespace_before(owner, before, limit), limit))


def _audited(rows: list[AuditRow], limit: int) -> AuditList:
    items = [
        AuditEntry(
            id=row.id,
            at=row.at,
            namespace=row.namespace,
            environment=row.environment,
            actor=row.actor,
            action=row.action,
            detail=msgspec.json.decode(row.detail),
        )
        for row in rows
    ]
    return AuditList(items, inputs.cursor_of(str(rows[-1].id)) if len(rows) == limit else None)


def _named(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Named).name
    except msgspec.DecodeError as error:
        raise InvalidRequest(f'expected {{"name": "…"}}: {error}') from None


def _environment(body: bytes) -> _Environment:
    try:
        return msgspec.json.decode(body, type=_Environment)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f'expected {{"name": "…", "from"?: {{"environment", "version"?}}}}: {error}') from None


def _reaches(principal: Principal, namespace: Namespace | str) -> bool:
    return any(scope.namespace in ("*", namespace) for scope in principal.scopes)
