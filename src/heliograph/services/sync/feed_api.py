"""What edges ask over HTTP: whose a token is, which versions came before the one they were sent, and how their history began anew."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import DigestAuthenticator, Principal, narrowed
from heliograph.core import feed, names
from heliograph.core.errors import InvalidRequest, NotFound, Unauthenticated
from heliograph.runtime.http import Json, bearer_token
from heliograph.services.sync.hub import Hub

Number = Annotated[int, Query(ge=0, le=2**53 - 1)]


class _Digested(msgspec.Struct):
    sha256: str


def make_router(hub: Hub, authenticator: DigestAuthenticator) -> APIRouter:
    router = APIRouter(prefix="/v1/internal", include_in_schema=False)

    async def edge(request: Request) -> Principal:
        asking = await authenticator.principal(bearer_token(request))
        scope = asking.scopes[0]
        allow(asking, Action.RELAY, scope.namespace, scope.environment)
        return asking

    @router.post("/introspect")
    async def introspect(request: Request) -> Response:
        """The principal of a token by its text's SHA-256, as far as the edge's own scope goes. 404: nobody's that the edge may serve."""
        asking = await edge(request)
        found = narrowed(await _known(authenticator, await request.body()), asking.scopes)
        if found is None:
            raise NotFound("the token reaches nothing that this edge may relay")
        return Json(found)

    @router.get("/history/{namespace}/{environment}")
    async def leaves(request: Request, namespace: str, environment: str, upto: Number, after: Number = 0) -> Response:
        """Leaves of the history's tree, of versions ``after`` + 1 to ``upto``, 32 bytes each. Whoever has the signed version ``upto`` + 1 can
        check them."""
        allow(await edge(request), Action.RELAY, namespace, environment)
        found = await hub.find(names.namespace(namespace), names.environment(environment))
        body = feed.join_leaves(found.history.levels[0][after:upto])
        return Response(body, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})

    @router.get("/recoveries/{namespace}/{environment}")
    async def recoveries(request: Request, namespace: str, environment: str) -> Response:
        """The signed recover versions that are known, for readers that run on what one of them dropped. Whoever has the history can check them."""
        allow(await edge(request), Action.RELAY, namespace, environment)
        found = await hub.find(names.namespace(namespace), names.environment(environment))
        return Json(found.recoveries)

    return router


async def _known(authenticator: DigestAuthenticator, body: bytes) -> Principal:
    try:
        digest = bytes.fromhex(msgspec.json.decode(body, type=_Digested).sha256)
    except (msgspec.DecodeError, ValueError):
        raise InvalidRequest('expected {"sha256": 64 hex digits}') from None
    try:
        return await authenticator.by_digest(digest)
    except Unauthenticated as error:
        raise NotFound(error.detail) from None
