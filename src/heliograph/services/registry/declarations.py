"""Asks the ledger what connected instances declare that they can read."""

from __future__ import annotations

import time
from typing import Final

import httpx
import msgspec
import structlog

from heliograph.core.errors import Unavailable
from heliograph.services.registry.heads import Place

log = structlog.get_logger()

MAX_CONFIGS: Final = 100
"""Configs in one question."""
ASK_S: Final = 1.0
REST_S: Final = 5.0
"""After a failure nobody waits for the ledger for so long: publishes go on as quickly as ever."""


class Declared(msgspec.Struct, frozen=True):
    """One schema that ``instances`` live instances declare for a config; ``sample`` and ``apps`` name some."""

    config: str
    schema: str
    instances: int
    sample: list[str]
    apps: list[str | None]


class _Answer(msgspec.Struct, frozen=True):
    items: list[Declared]
    all: bool = True


class Declarations:
    """``client``: with the ledger's base URL and a service token in its headers; owned by somebody else."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._rests_until = 0.0

    async def of(self, place: Place, configs: list[str]) -> tuple[list[Declared], bool]:
        """What is declared for the configs (at most `MAX_CONFIGS`), and whether that is all. Raises Unavailable."""
        if time.monotonic() < self._rests_until:
            raise Unavailable("the ledger did not answer a moment ago")
        try:
            path = f"/v1/internal/declared/{place.namespace}/{place.environment}"
            answer = await self._client.get(path, params={"config": configs}, timeout=ASK_S)
            answer.raise_for_status()
            found = msgspec.json.decode(answer.content, type=_Answer)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self._rests_until = time.monotonic() + REST_S
            log.warning("declarations_unknown", error=type(error).__name__)
            raise Unavailable(f"the ledger does not say what instances declare ({type(error).__name__})") from None
        return found.items, found.all
