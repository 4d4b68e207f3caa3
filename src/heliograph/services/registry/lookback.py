"""Labels and the past of one config, as PostgreSQL has them. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from heliograph.core.errors import NotFound
from heliograph.core.names import ConfigName, LabelName, Namespace
from heliograph.services.registry.database import Database
from heliograph.services.registry.heads import Place

LabelOutcome = Literal["set", "moved", "same", "taken", "stale", "missing", "full"]


@dataclass(frozen=True, slots=True)
class LabelRow:
    name: str
    number: int
    version: bytes
    set_by: str
    set_at: datetime


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A version that changed a config. ``record``: its exact text."""

    number: int
    id: bytes
    epoch: int
    root: bytes
    record: str
    message: str | None


class Lookback(Database):
    """Reads ask nothing about the head: callers make sure that the environment is there."""

    async def set_label(
        self,
        place: Place,
        name: LabelName,
        number: int,
        version: bytes,
        *,
        expected: bytes | None,
        move: bool,
        by: str,
        limit: int,
    ) -> tuple[LabelOutcome, LabelRow | None]:
        """The label as it is then, None if there is none. See the function in the migration."""
        row = await self._row("set_label", place.namespace, place.environment, name, number, version, expected, move, by, limit)
        if row["o_version"] is None:
            return row["outcome"], None
        return row["outcome"], LabelRow(name, row["o_number"], row["o_version"], row["o_set_by"], row["o_set_at"])

    async def remove_label(
        self, place: Place, name: LabelName, *, expected: bytes | None, by: str
    ) -> tuple[Literal["removed", "stale", "missing"], int | None, bytes | None]:
        """(outcome, number, version): what it named."""
        row = await self._row("remove_label", place.namespace, place.environment, name, expected, by)
        return row["outcome"], row["o_number"], row["o_version"]

    async def label(self, place: Place, name: LabelName) -> LabelRow:
        """Raises NotFound."""
        row = await self._row("label", place.namespace, place.environment, name)
        if row is None:
            raise NotFound(f"{place} has no label {name}")
        return LabelRow(**row)

    async def labels(self, place: Place, after: str, limit: int) -> list[LabelRow]:
        return [LabelRow(**row) for row in await self._rows("labels", place.namespace, place.environment, after, limit)]

    async def labels_of(self, place: Place, numbers: Iterable[int]) -> dict[int, list[str]]:
        """Labels by the number of the version they name."""
        found: dict[int, list[str]] = {}
        for row in await self._rows("labels_of", place.namespace, place.environment, list(numbers)):
            found.setdefault(row["number"], []).append(row["name"])
        return found

    async def changes(self, place: Place, name: ConfigName, before: int, limit: int) -> list[ChangeRow]:
        """Versions that changed the config, newest first, from the one before a number on."""
        rows = await self._rows("changes_of", place.namespace, place.environment, name, before, limit)
        return [
            ChangeRow(
                number=row["number"],
                id=row["id"],
                epoch=row["epoch"],
                root=row["root"],
                record=row["record"],
                message=None if row["message_text"] is None else row["message_text"].decode(),
            )
            for row in rows
        ]

    async def which_purged(self, namespace: Namespace, digests: Iterable[bytes]) -> set[bytes]:
        return {row["digest"] for row in await self._rows("which_purged", namespace, list(digests))}
