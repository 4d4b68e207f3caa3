"""Asks the ledger what connected instances declare that they can read.

Most configs are declared by nobody. Which ones are is asked once in a while and kept for `KNOWN_S`, and asked while the version is being committed,
so that a publish that only warns does not wait for it: it may miss a declaration that is younger than that. One that refuses asks each time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, TypeVar

import httpx
import msgspec
import structlog

from heliograph.core.errors import Unavailable
from heliograph.runtime.unanswered import UNANSWERED
from heliograph.services.registry.cache import ByteCache
from heliograph.services.registry.heads import Place

log = structlog.get_logger()

MAX_CONFIGS: Final = 100
"""Configs in one question."""
ASK_S: Final = 1.0
REST_S: Final = 5.0
"""After a failure nobody waits for the ledger for so long: publishes go on as quickly as ever."""
KNOWN_S: Final = 3.0
"""How old the names may be that a warning goes by."""


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


class _Names(msgspec.Struct, frozen=True):
    """``all`` False: there are more than were told, so each config has to be asked about."""

    items: frozenset[str]
    all: bool = True


@dataclass(frozen=True, slots=True)
class _Asked:
    at_s: float
    names: asyncio.Task[_Names]


T = TypeVar("T", _Answer, _Names)


class Declarations:
    """``client``: with the ledger's base URL and a service token in its headers; owned by somebody else."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._rests_until = 0.0
        self._known: ByteCache[Place, _Asked] = ByteCache(8 << 20)
        self._asking: set[asyncio.Task[_Names]] = set()

    async def close(self) -> None:
        """Ends questions that are under way."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def of(self, place: Place, configs: list[str]) -> tuple[list[Declared], bool]:
        """What is declared for the configs (at most `MAX_CONFIGS`), and whether that is all. Raises Unavailable."""
        found = await self._ask(f"/v1/internal/declared/{place.namespace}/{place.environment}", _Answer, configs)
        return found.items, found.all

    def expect(self, place: Place) -> None:
        """`concerned` will be asked: begins to find out, unless that is known."""
        self._names(place)

    async def concerned(self, place: Place, configs: Collection[str]) -> list[str]:
        """Those among the configs for which an instance declares a schema, or did less than `KNOWN_S` ago. Raises Unavailable."""
        names = await asyncio.shield(self._names(place))
        return [each for each in configs if not names.all or each in names.items]

    def _names(self, place: Place) -> asyncio.Task[_Names]:
        held, now = self._known.get(place), time.monotonic()
        if held and now - held.at_s < KNOWN_S:
            return held.names
        path = f"/v1/internal/declared-names/{place.namespace}/{place.environment}"
        task = asyncio.create_task(self._ask(path, _Names), name="declared names")
        self._asking.add(task)
        task.add_done_callback(self._asked)
        self._known.put(place, _Asked(now, task), 4096)
        return task

    def _asked(self, task: asyncio.Task[_Names]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits; a publish that failed meanwhile does not

    async def _ask(self, path: str, kind: type[T], configs: Collection[str] = ()) -> T:
        if time.monotonic() < self._rests_until:
            raise Unavailable("the ledger did not answer a moment ago")
        try:
            answer = await self._client.get(path, params={"config": list(configs)}, timeout=ASK_S)
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=kind)
        except (*UNANSWERED, msgspec.DecodeError) as error:
            self._rests_until = time.monotonic() + REST_S
            log.warning("declarations_unknown", error=type(error).__name__)
            raise Unavailable(f"the ledger does not say what instances declare ({type(error).__name__})") from None
