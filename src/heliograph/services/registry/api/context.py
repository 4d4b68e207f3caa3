"""What every handler works with, and the questions every request is asked first."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Principal
from heliograph.access.store import TokenStore
from heliograph.core import names
from heliograph.core.errors import Unauthenticated
from heliograph.core.which import which
from heliograph.keys.live import LiveKeys
from heliograph.runtime.http import bearer_token
from heliograph.runtime.postgres import Pool
from heliograph.services.registry.answers import Endpoints
from heliograph.services.registry.branch import Branch
from heliograph.services.registry.commit import Commits
from heliograph.services.registry.deletion import Deletion
from heliograph.services.registry.erasure import Erasure
from heliograph.services.registry.evolution import Evolution
from heliograph.services.registry.heads import Place, VersionRow
from heliograph.services.registry.labels import Labels
from heliograph.services.registry.letters import Letters
from heliograph.services.registry.lookback import Lookback
from heliograph.services.registry.past import Past
from heliograph.services.registry.patching import Patching
from heliograph.services.registry.promote import Promote
from heliograph.services.registry.propagations import Propagations
from heliograph.services.registry.publish import Publish
from heliograph.services.registry.purge import Forgetting, Purges
from heliograph.services.registry.reading import Reading
from heliograph.services.registry.remains import Keeping
from heliograph.services.registry.rollback import Rollback
from heliograph.services.registry.store import Store
from heliograph.services.registry.tokens import TokenDesk
from heliograph.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Context:
    pool: Pool
    store: Store
    commits: Commits
    publish: Publish
    patching: Patching
    branch: Branch
    promote: Promote
    rollback: Rollback
    reading: Reading
    evolution: Evolution
    letters: Letters
    lookback: Lookback
    labels: Labels
    past: Past
    erasure: Erasure
    deletion: Deletion
    purge: Purges
    forgetting: Forgetting
    keeping: Keeping
    tokens: TokenStore
    token_desk: TokenDesk
    propagations: Propagations
    metrics: Metrics
    keys: LiveKeys
    endpoints: Endpoints
    wait_max_s: float

    async def principal(self, request: Request) -> Principal:
        """Raises Unauthenticated, Unavailable."""
        try:
            found = await self.tokens.principal(bearer_token(request))
        except Unauthenticated:
            self.metrics.authentications.labels("refused").inc()
            raise
        self.metrics.authentications.labels("accepted").inc()
        return found

    async def version(self, place: Place, named: str) -> VersionRow:
        """The version that is meant by number, id, label or time; empty: the head's. Raises InvalidRequest, NotFound."""
        if named:
            return await self.store.version(place, which(named))
        return await self.store.version(place, (await self.store.head(place)).version)

    async def permitted(self, request: Request, action: Action, namespace: str, environment: str) -> tuple[Principal, Place]:
        """Who asks, and about what. Raises Unauthenticated, InvalidName, Forbidden."""
        principal = await self.principal(request)
        place = Place(names.namespace(namespace), names.environment(environment))
        allow(principal, action, place.namespace, place.environment)
        return principal, place
