"""Erases for good what was deleted and whose time is over: one registry of the fleet does it, in steps that each hold their locks for a moment.

First an environment's versions go, then the objects that nothing in its namespace refers to any more. Environments of a namespace share objects,
so that is found out by marking all that the other versions refer to, deleted ones that can still be restored included, and looking for what has
no mark. Progress is in tables; whoever goes on after a crash goes on from there.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import msgspec
import structlog

from heliograph.core import trie
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Corrupt, HeliographError
from heliograph.core.names import Namespace
from heliograph.core.records import Leaf
from heliograph.core.trie import Branch, Bucket
from heliograph.runtime.postgres import connect, disconnect, translating
from heliograph.services.registry.erasure import Erasure, Marked
from heliograph.services.registry.statements import SQL
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

STEP: Final = 500
"""Rows a step changes: some ten milliseconds, and as long commits of that namespace wait for a sweep."""
TICK_S: Final = 30.0
PAUSE_S: Final = 0.005
"""Between steps, so that erasing takes its turns with everything else."""
_LEAF: Final = msgspec.json.Decoder(Leaf)


class Eraser:
    """``url``: of the database, for the connection that holds the lock."""

    def __init__(self, erasure: Erasure, url: str, metrics: Metrics, *, tick_s: float = TICK_S) -> None:
        self._erasure = erasure
        self._metrics = metrics
        self._url = url
        self._tick_s = tick_s
        self._broken: set[str] = set()

    async def run(self) -> None:
        """Until cancelled. While another registry holds the lock, asks again at every tick."""
        while True:
            try:
                await self._lead()
            except (HeliographError, asyncpg.PostgresError) as error:
                log.warning("erasing_interrupted", error=type(error).__name__)
            await asyncio.sleep(self._tick_s)

    async def _lead(self) -> None:
        connection = await connect(self._url, "heliograph registry erasing", timeout_s=5)
        try:
            with translating():
                while await connection.fetchval(SQL["lead_erasing"]):
                    await self.work()
                    await asyncio.sleep(self._tick_s)
        finally:
            await disconnect(connection)

    async def work(self) -> None:
        """All that is due."""
        while step := await self._erasure.erase_some(STEP):
            place, done = step
            if done:
                self._metrics.erased.labels("environment").inc()
                log.info("environment_erased", namespace=place.namespace, environment=place.environment)
            await asyncio.sleep(PAUSE_S)
        while found := await self._erasure.collection(self._broken):
            try:
                await self._collect(*found)
            except Corrupt as error:  # nothing may be removed that might be referred to
                self._broken.add(found[0])
                log.error("collection_given_up", namespace=found[0], detail=error.detail)
        while name := await self._erasure.erase_namespace():
            self._metrics.erased.labels("namespace").inc()
            log.info("namespace_erased", namespace=name)

    async def _collect(self, namespace: Namespace, stale: bool) -> None:
        """One step: the first of these that has something to do. Raises Corrupt."""
        await asyncio.sleep(PAUSE_S)
        if stale:
            await self._erasure.begin_collection(namespace, STEP)
            return
        if await self._erasure.mark_versions(namespace, STEP):
            return
        if marked := await self._erasure.open_marks(namespace, STEP):
            open_, closed = await asyncio.to_thread(_references, namespace, marked)
            await self._erasure.mark_objects(namespace, [each.digest for each in marked], open_, closed)
            return
        outcome, removed = await self._erasure.sweep_some(namespace, STEP)
        if outcome == "swept":
            self._metrics.erased.labels("object").inc(removed)
        if outcome == "done":
            log.info("objects_collected", namespace=namespace, removed=removed)


def _references(namespace: Namespace, marked: list[Marked]) -> tuple[list[bytes], list[bytes]]:
    """(what may refer to more, what does not). Raises Corrupt."""
    open_: list[bytes] = []
    closed: list[bytes] = []
    for each in marked:
        match each.kind:
            case "node":
                open_ += _below(trie.decode(each.body))
            case "leaf":
                leaf = _LEAF.decode(each.body)
                closed += [unspell(digest) for digest in (leaf.document, leaf.schema, leaf.statement) if digest]
            case None:
                raise Corrupt(f"{namespace}: object {spell(each.digest)} is missing")
    return open_, closed


def _below(node: Bucket | Branch) -> list[bytes]:
    if isinstance(node, Branch):
        return [child.digest for child in node.children.values()]
    return [entry if isinstance(entry, bytes) else entry.digest for entry in node.entries.values()]
