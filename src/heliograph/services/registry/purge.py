"""Purges texts that must not stay: their bytes go, their digests stay, so that every root, id, signature and proof verifies as before.

The order of things makes sure that no head ever names a purged text, whoever writes at the same time:

1. from now on the texts count as purged for whoever makes a version, and cannot be stored;
2. every head of the namespace is signed anew, so that a version that was being made before that has to be made again, and sees it;
3. whether a head names one of them cannot change any more: if one does, nothing is purged, and 1 is taken back;
4. the bytes are replaced by a tombstone, in one transaction with the signed statement, the audit row and the events.

What 3 found holds only while 1 does. So each purge marks the texts as its own: it takes back no other's mark, and goes by no other's in 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import msgspec

from heliograph.core import dsse, trie
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Contended, HeliographError, InvalidRequest, NotFound, StillNamed
from heliograph.core.events import PurgeEvent, shard_of
from heliograph.core.names import ConfigName, Namespace
from heliograph.core.records import PURGE_TYPE, Leaf, Purge
from heliograph.core.times import to_text
from heliograph.core.which import Which
from heliograph.eventlog.wake import Bell
from heliograph.keys.ports import Signer
from heliograph.runtime.clock import now_us
from heliograph.services.registry.erasure import Erasure, PurgeOrder, PurgeRow
from heliograph.services.registry.heads import Place
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.renew import Renewal
from heliograph.services.registry.store import Store
from heliograph.telemetry.metrics import Metrics

MAX_DIGESTS: Final = 1_000
"""In one purge."""
PURGEABLE: Final = ("document", "schema", "message")
"""Never leaf, node or statement: those hold digests and ids only."""
ATTEMPTS: Final = 8
LEAVES_AT_ONCE: Final = 5_000
SHOWN: Final = 100
OVERLAP_S: Final = 60.0
_MS: Final = 1_000
Forget = Callable[[Collection[bytes]], None]
"""Drops what this process's caches have under some digests."""


@dataclass(frozen=True, slots=True)
class Purging:
    """Who asks, why, and on whose order."""

    by: str
    reason: str
    order: str
    trace: str | None


@dataclass(frozen=True, slots=True)
class Purged:
    """``row``: what was purged now, None if all of it was ``already``."""

    row: PurgeRow | None
    already: list[bytes]
    messages: bool


class Purges:
    def __init__(
        self,
        erasure: Erasure,
        store: Store,
        objects: Objects,
        renewal: Renewal,
        signer: Signer,
        bell: Bell,
        metrics: Metrics,
        forget: Forget,
    ) -> None:
        self._erasure = erasure
        self._store = store
        self._objects = objects
        self._renewal = renewal
        self._signer = signer
        self._bell = bell
        self._metrics = metrics
        self._forget = forget

    async def documents_of(self, place: Place, name: ConfigName, versions: Iterable[Which]) -> list[bytes]:
        """Digests of the documents that a config had in some versions. Raises NotFound."""
        rows = [await self._store.version(place, each) for each in versions]
        leaves = await self._objects.leaves_at(place.namespace, [row.root for row in rows], name)
        if missing := [row.number for row, leaf in zip(rows, leaves, strict=True) if leaf is None]:
            raise NotFound(f"{place} has no config {name} in version {missing[0]}")
        return sorted({unspell(leaf.document) for leaf in leaves if leaf})

    async def __call__(self, namespace: Namespace, digests: Iterable[bytes], asked: Purging) -> Purged:
        """Raises NotFound, InvalidRequest (not of a kind that is purged), StillNamed (by a head: nothing was purged), Contended."""
        kinds = await self._kinds(namespace, set(digests))
        already = sorted(digest for digest, (_, purged) in kinds.items() if purged)
        wanted = tuple(sorted(kinds.keys() - set(already)))
        messages = any(kinds[each][0] == "message" for each in wanted)
        if not wanted:
            return Purged(None, already, messages)
        ask = uuid4()
        try:
            if not await self._erasure.ask_purge(namespace, wanted, ask):
                raise Contended("somebody else purges the same text at this moment; nothing was purged, try again in a minute")
            await self._renew_heads(namespace)
            await self._refuse_held(namespace, wanted)
            row = await self._purge(namespace, wanted, ask, asked)
        except BaseException:
            await asyncio.shield(self._erasure.cancel_purge(namespace, wanted, ask))
            raise
        self._forget(wanted)
        self._metrics.purged.inc(len(wanted))
        self._bell.ring()
        return Purged(row, already, messages)

    async def _kinds(self, namespace: Namespace, digests: set[bytes]) -> dict[bytes, tuple[str, bool]]:
        if not 1 <= len(digests) <= MAX_DIGESTS:
            raise InvalidRequest(f"a purge is of 1 to {MAX_DIGESTS:,} texts; this is of {len(digests):,}")
        kinds = await self._erasure.kinds(namespace, digests)
        if missing := digests - kinds.keys():
            raise NotFound(f"{namespace} has no object {spell(min(missing))}")
        for digest, (kind, _) in kinds.items():
            if kind not in PURGEABLE:
                raise InvalidRequest(
                    f"{spell(digest)} is a {kind}, which holds digests only; documents, schemas and messages are purged"
                )
        return kinds

    async def _renew_heads(self, namespace: Namespace) -> None:
        """Versions that were made before this do not fit on any head after it."""
        for environment, _, live in await self._erasure.roots(namespace):
            if live:
                await self._renew(Place(namespace, environment))

    async def _renew(self, place: Place) -> None:
        for _ in range(ATTEMPTS):
            try:
                if await self._renewal(place, await self._store.head(place)):
                    return
            except NotFound:  # deleted meanwhile: nobody writes there
                return
        raise Contended(f"{place} moves too fast to purge something beside it; nothing was purged, try again")

    async def _refuse_held(self, namespace: Namespace, digests: tuple[bytes, ...]) -> None:
        """Raises StillNamed with each environment whose head holds one, with a config."""
        holders = await self._holders(namespace, frozenset(map(spell, digests)))
        if holders:
            told = "; ".join(f"{environment}: {', '.join(sorted(names)[:5])}" for environment, names in sorted(holders.items()))
            raise StillNamed(
                f"heads name what would be purged ({told}); publish other content there first. Nothing was purged",
                holders={environment: sorted(names)[:SHOWN] for environment, names in holders.items()},
            )

    async def _holders(self, namespace: Namespace, digests: frozenset[str]) -> dict[str, set[str]]:
        """Environment -> configs of its head that have one of them. Each leaf is read once, however many environments share it."""
        guilty: dict[bytes, bool] = {}
        found: dict[str, set[str]] = {}
        for environment, root, _ in await self._erasure.roots(namespace):
            node = await self._objects.whole(namespace, root)
            entries = await asyncio.to_thread(lambda node=node: list(trie.leaves(node)))  # type: ignore[misc]
            await self._judge(namespace, [digest for _, digest in entries if digest not in guilty], digests, guilty)
            if names := {name for name, digest in entries if guilty[digest]}:
                found[environment] = names
        return found

    async def _judge(
        self, namespace: Namespace, unknown: list[bytes], digests: frozenset[str], guilty: dict[bytes, bool]
    ) -> None:
        for at in range(0, len(unknown), LEAVES_AT_ONCE):
            leaves = await self._objects.leaves(namespace, set(unknown[at : at + LEAVES_AT_ONCE]), keep=False)
            guilty |= {digest: _names_one(leaf, digests) for digest, leaf in leaves.items()}

    async def _purge(self, namespace: Namespace, digests: tuple[bytes, ...], ask: UUID, asked: Purging) -> PurgeRow:
        at_us = now_us() // _MS * _MS
        statement = Purge(namespace=namespace, digests=tuple(map(spell, digests)), order=asked.order, at=to_text(at_us))
        text = statement.text()
        signed = dsse.attach(text, [(self._signer.keyid, await self._signer.sign(dsse.pae(PURGE_TYPE, text)))])
        tomb = {"purged": {"at": statement.at, "by": asked.by, "reason": asked.reason, "order": asked.order}}
        event = PurgeEvent(namespace=namespace, digests=statement.digests, at_us=at_us)
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
        order = PurgeOrder(
            namespace=namespace,
            digests=digests,
            ask=ask,
            tombstone=msgspec.json.encode(tomb),
            at=at,
            by=asked.by,
            reason=asked.reason,
            order=asked.order,
            statement=signed,
            shards=await self._shards(namespace),
            event=msgspec.json.encode(event),
            trace=asked.trace,
        )
        if not await self._erasure.purge(order):
            raise Contended("somebody else purges the same text, or this took too long; nothing was purged, try again")
        return PurgeRow(0, at, asked.by, asked.reason, asked.order, digests, signed)

    async def _shards(self, namespace: Namespace) -> list[int]:
        """Where events of the namespace's environments go; that of the namespace itself when it has none."""
        environments = [environment for environment, _, _ in await self._erasure.roots(namespace)]
        return sorted({self._store.shard(Place(namespace, each)) for each in environments}) or [
            shard_of(namespace, shards=self._store.shards)
        ]


def _names_one(leaf: Leaf, digests: frozenset[str]) -> bool:
    return leaf.document in digests or leaf.schema in digests


class Forgetting:
    """Tells this process's caches what any registry has purged: a purge is known within seconds, without a reader of the log."""

    def __init__(self, erasure: Erasure, forget: Forget, *, every_s: float = 2.0) -> None:
        self._erasure = erasure
        self._forget = forget
        self._every_s = every_s

    async def run(self) -> None:
        """Until cancelled. Looks back over the time since the last look, and a minute more for transactions that took long to commit."""
        now = asyncio.get_running_loop().time
        looked_at = now()
        while True:
            started_at = now()
            with suppress(HeliographError, asyncpg.PostgresError):
                self._forget(await self._erasure.purged_lately(started_at - looked_at + OVERLAP_S))
                looked_at = started_at
            await asyncio.sleep(self._every_s)
