"""What clients ask an edge beside bundles and receipts: where it is, whose signatures count, and how far behind it may be."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from heliograph.access.permissions import Action, allow, permits
from heliograph.access.principal import Authenticator
from heliograph.core.dsse import to_envelope
from heliograph.core.errors import NotReady
from heliograph.core.records import ROOT_TYPE
from heliograph.runtime.http import Json, bearer_token
from heliograph.services.sync.edge.parent import Endpoints, Parent
from heliograph.services.sync.edge.settings import EdgeSettings
from heliograph.services.sync.edge.uplink import Uplink
from heliograph.services.sync.edge.upstream import EnvironmentStatus, Upstream


class Status(msgspec.Struct, frozen=True):
    """``away_s``: since when the parent is away; ``environments``: those in the token's scope."""

    node: str
    parent: str
    connected: bool
    away_s: float
    environments: tuple[EnvironmentStatus, ...]


def make_router(
    settings: EdgeSettings, node: str, parent: Parent, uplink: Uplink, upstream: Upstream, authenticator: Authenticator
) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/endpoints")
    async def endpoints() -> Response:
        """Where the services are: stream and bundles of this edge, the rest where the parent says."""
        if parent.endpoints is None:
            raise NotReady("this edge has not met its parent yet", retry_after=1)
        own = Endpoints(parent.endpoints.api, settings.stream_url, settings.bundles_url, parent.endpoints.ledger)
        return Json(own)

    @router.get("/trust")
    async def trust() -> Response:
        """The trust root as the parent last showed it. Clients verify it with the anchor in their own token."""
        if parent.trust is None:
            raise NotReady("this edge has not met its parent yet", retry_after=1)
        return Json(to_envelope(parent.trust.signed, ROOT_TYPE))

    @router.get("/edge")
    async def status(request: Request) -> Response:
        """Whether the parent is there, since when it is not, and what is served meanwhile."""
        asking = await authenticator.principal(bearer_token(request))
        scope = asking.scopes[0]
        allow(asking, Action.HEAD, scope.namespace, scope.environment)
        shown = tuple(each for each in upstream.status() if permits(asking, Action.HEAD, each.namespace, each.environment))
        return Json(Status(node, settings.parent_url, uplink.connected, round(uplink.away_s(), 1), shown))

    return router
