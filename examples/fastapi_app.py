"""FastAPI: the client lives as long as the application, and handlers read what it holds."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel

from heliograph import Heliograph


class Limits(BaseModel):
    max_items: int


def open_client() -> Heliograph:
    token = Path(os.environ["HELIOGRAPH_TOKEN_FILE"]).read_text().strip()
    return Heliograph(os.environ["HELIOGRAPH_URL"], token=token, namespace="shop", environment="production", app="fastapi")


def current_limits(request: Request) -> Limits:
    """Of one version for the whole request, however often the configuration changes meanwhile."""
    limits: Limits = request.state.limits.value
    return limits


def create_app(open_client: Callable[[], Heliograph] = open_client) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with open_client() as client:
            yield {"client": client, "limits": client.bind("checkout/limits", Limits)}

    app = FastAPI(lifespan=lifespan)

    @app.get("/limits")
    async def limits(limits: Annotated[Limits, Depends(current_limits)]) -> dict[str, int]:
        return {"max_items": limits.max_items, "pid": os.getpid()}

    @app.get("/status")
    async def status(request: Request) -> dict[str, Any]:
        now = request.state.client.status
        return {"connected": now.connected, "version": now.cursor.number, "stale": now.stale}

    return app


app = create_app()
