"""All routes, in one place."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI

from heliograph.services.registry.api.configs import Configs
from heliograph.services.registry.api.context import Context
from heliograph.services.registry.api.deletion import Deletion
from heliograph.services.registry.api.environments import Environments
from heliograph.services.registry.api.evolution import Evolving
from heliograph.services.registry.api.internal import Internal
from heliograph.services.registry.api.labels import Labels
from heliograph.services.registry.api.letters import Letters
from heliograph.services.registry.api.past import Past
from heliograph.services.registry.api.promotions import Promotions
from heliograph.services.registry.api.public import Public
from heliograph.services.registry.api.purges import Purges
from heliograph.services.registry.api.tokens import Tokens
from heliograph.services.registry.api.versions import Versions

SUBJECTS = (
    Public,
    Environments,
    Deletion,
    Configs,
    Versions,
    Promotions,
    Evolving,
    Labels,
    Past,
    Purges,
    Tokens,
    Letters,
    Internal,
)


def add_routes(app: FastAPI, context: Context) -> None:
    for subject in SUBJECTS:
        app.include_router(subject(context).router())


def described() -> FastAPI:
    """The routes without anything behind them, to be described."""
    app = FastAPI()
    add_routes(app, cast("Context", None))
    return app
