"""What is deleted, erased and purged, as PostgreSQL has it. Decides nothing; the functions in the migration hold the rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast
from uuid import UUID

from heliograph.core.names import Environment, Namespace
from heliograph.core.records import Signed
from heliograph.services.registry.database import Database
from heliograph.services.registry.heads import Place, signatures_text, signed

Deletion = Literal["deleted", "missing", "moved"]
Swept = Literal["swept", "behind", "done"]


@dataclass(frozen=True, slots=True)
class Gone:
    """Deleted, not erased yet."""

    by: str
    at: datetime
    erase_at: datetime


@dataclass(frozen=True, slots=True)
class GoneEnvironment:
    name: str
    epoch: int
    number: int
    version: bytes
    configs: int
    at_us: int
    gone: Gone


@dataclass(frozen=True, slots=True)
class GoneNamespace:
    name: str
    created_at: datetime
    gone: Gone


@dataclass(frozen=True, slots=True)
class Farewell:
    """An environment to delete, with the event that tells it."""

    place: Place
    event: bytes


@dataclass(frozen=True, slots=True)
class Marked:
    """An object that is referred to, and whose own references are not known yet. No ``kind``: it is not there."""

    digest: bytes
    kind: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class PurgeRow:
    id: int
    at: datetime
    by: str
    reason: str
    order: str
    digests: tuple[bytes, ...]
    statement: Signed


@dataclass(frozen=True, slots=True)
class PurgeOrder:
    """All that the purge function takes. ``ask``: that marked the digests. ``shards``: where it is told, ascending."""

    namespace: Namespace
    digests: tuple[bytes, ...]
    ask: UUID
    tombstone: bytes
    at: datetime
    by: str
    reason: str
    order: str
    statement: Signed
    shards: Sequence[int]
    event: bytes
    trace: str | None


class Erasure(Database):
    # --- deletion -------------------------------------------------------------------------------------------------------------------

    async def gone_environment(self, place: Place) -> GoneEnvironment | None:
        row = await self._row("deletion_of_environment", place.namespace, place.environment)
        return None if row is None else _environment(row)

    async def gone_environments(self, namespace: Namespace, after: str, limit: int) -> list[GoneEnvironment]:
        return [_environment(row) for row in await self._rows("deletions_of_environments", namespace, after, limit)]

    async def gone_namespace(self, name: Namespace) -> GoneNamespace | None:
        row = await self._row("deletion_of_namespace", name)
        return None if row is None else _namespace(row)

    async def gone_namespaces(self, after: str, limit: int) -> list[GoneNamespace]:
        return [_namespace(row) for row in await self._rows("deletions_of_namespaces", after, limit)]

    async def namespace_made(self, name: Namespace) -> datetime | None:
        row = await self._row("namespace_made", name)
        return None if row is None else row["created_at"]

    async def environments_of(self, namespace: Namespace, limit: int) -> list[Environment]:
        return [Environment(row["environment"]) for row in await self._rows("environments_of", namespace, limit)]

    async def delete(
        self,
        namespace: Namespace,
        farewells: Sequence[Farewell],
        *,
        whole: bool,
        by: str,
        at: datetime,
        erase_at: datetime,
        trace: str | None,
    ) -> Deletion:
        """``whole``: with the namespace. One transaction."""
        ordered = sorted(farewells, key=lambda each: self.shard(each.place))
        names, shards = [each.place.environment for each in ordered], [self.shard(each.place) for each in ordered]
        events = [each.event for each in ordered]
        row = await self._row("delete_environments", namespace, names, whole, shards, events, by, at, erase_at, trace)
        return cast("Deletion", row[0])

    async def restore(self, namespace: Namespace, environment: Environment | None, by: str) -> list[Environment] | None:
        """Environments that are there again; None: nothing is deleted by that name."""
        names = (await self._row("restore_environments", namespace, environment, by))[0]
        return None if names is None else [Environment(name) for name in names]

    async def untold(self, namespace: Namespace, environment: Environment | None) -> list[Environment]:
        """Environments that are there again, and whose readers were not told; None: all of the namespace."""
        return [Environment(row["environment"]) for row in await self._rows("restored_untold", namespace, environment)]

    # --- erasing, in bounded steps --------------------------------------------------------------------------------------------------

    async def erase_some(self, limit: int) -> tuple[Place, bool] | None:
        """One step: whose, and whether it was the last. None: nothing is due."""
        row = await self._row("erase_some", limit)
        return None if row is None else (Place(Namespace(row["o_namespace"]), Environment(row["o_environment"])), row["o_done"])

    async def erase_namespace(self) -> str | None:
        """The namespace whose name was erased."""
        return cast("str | None", (await self._row("erase_namespace"))[0])

    async def collection(self, without: Iterable[str]) -> tuple[Namespace, bool] | None:
        """The namespace whose objects are to be looked through, and whether marks of an earlier time are in the way."""
        row = await self._row("collection", list(without))
        return None if row is None else (Namespace(row["namespace"]), row["stale"])

    async def begin_collection(self, namespace: Namespace, limit: int) -> bool:
        return bool((await self._row("begin_collection", namespace, limit))[0])

    async def mark_versions(self, namespace: Namespace, limit: int) -> int:
        return int((await self._row("mark_versions", namespace, limit))[0])

    async def open_marks(self, namespace: Namespace, limit: int) -> list[Marked]:
        rows = await self._rows("open_marks", namespace, limit)
        return [Marked(row["digest"], row["kind"], row["body"] or b"") for row in rows]

    async def mark_objects(self, namespace: Namespace, known: list[bytes], open_: list[bytes], closed: list[bytes]) -> None:
        await self._row("mark_objects", namespace, known, open_, closed)

    async def sweep_some(self, namespace: Namespace, limit: int) -> tuple[Swept, int]:
        row = await self._row("sweep_some", namespace, limit)
        return row["outcome"], row["o_removed"]

    # --- purge ----------------------------------------------------------------------------------------------------------------------

    async def roots(self, namespace: Namespace) -> list[tuple[Environment, bytes, bool]]:
        """(environment, its head's root, whether it is there: False while it is deleted)."""
        rows = await self._rows("kept_environments", namespace)
        return [(Environment(row["environment"]), row["root"], row["live"]) for row in rows]

    async def kinds(self, namespace: Namespace, digests: Iterable[bytes]) -> dict[bytes, tuple[str, bool]]:
        """Of each object that is there: its kind, and whether it was purged."""
        rows = await self._rows("kinds", namespace, list(digests))
        return {row["digest"]: (row["kind"], row["purged"]) for row in rows}

    async def ask_purge(self, namespace: Namespace, digests: Iterable[bytes], ask: UUID) -> bool:
        """False: somebody else asked for one of them a moment ago."""
        return bool((await self._row("ask_purge", namespace, list(digests), ask))[0])

    async def cancel_purge(self, namespace: Namespace, digests: Iterable[bytes], ask: UUID) -> None:
        """What this ask still holds; what others ask for is left alone."""
        await self._row("cancel_purge", namespace, list(digests), ask)

    async def purge(self, order: PurgeOrder) -> bool:
        """False: it was asked for too long ago, or somebody else has asked since."""
        values = (
            *(order.namespace, list(order.digests), order.tombstone, order.at, order.by, order.reason, order.order),
            *(order.statement.payload, signatures_text(order.statement), list(order.shards), order.event, order.trace),
            order.ask,
        )
        return bool((await self._row("purge_objects", *values))[0])

    async def purges_before(self, namespace: Namespace, number: int, limit: int) -> list[PurgeRow]:
        """Newest first."""
        return [
            PurgeRow(
                id=row["id"],
                at=row["at"],
                by=row["purged_by"],
                reason=row["reason"],
                order=row["order_text"],
                digests=tuple(row["digests"]),
                statement=signed(row["statement"], row["signatures"]),
            )
            for row in await self._rows("purges_before", namespace, number, limit)
        ]

    async def purged_lately(self, seconds: float) -> list[bytes]:
        """Of every namespace."""
        return [row["digest"] for row in await self._rows("purged_lately", seconds)]

    async def letters_with(self, digests: Iterable[str]) -> int:
        """How many dead letters name one of them."""
        return int((await self._row("letters_with", list(digests)))[0])


def _environment(row: Any) -> GoneEnvironment:
    return GoneEnvironment(
        name=row["environment"],
        epoch=row["epoch"],
        number=row["number"],
        version=row["version"],
        configs=row["configs"],
        at_us=row["at_us"],
        gone=Gone(row["deleted_by"], row["deleted_at"], row["erase_at"]),
    )


def _namespace(row: Any) -> GoneNamespace:
    return GoneNamespace(row["name"], row["created_at"], Gone(row["deleted_by"], row["deleted_at"], row["erase_at"]))
