"""Names versions: ``release-7`` is version 42. A label names one version at a time, and moving it is never an accident."""

from __future__ import annotations

from typing import Final

from heliograph.core.digest import spell
from heliograph.core.errors import Conflict, StaleBase
from heliograph.core.names import LabelName
from heliograph.core.which import Which
from heliograph.services.registry.heads import Place
from heliograph.services.registry.lookback import LabelRow, Lookback
from heliograph.services.registry.store import Store

MAX_LABELS: Final = 10_000
"""Of one environment."""


class Labels:
    def __init__(self, store: Store, lookback: Lookback) -> None:
        self._store = store
        self._lookback = lookback

    async def set(
        self, place: Place, name: LabelName, to: Which, *, expected: bytes | None, move: bool, by: str
    ) -> tuple[LabelRow, bool]:
        """The label, and whether it is new. ``expected``: the version id that it must name now; then it may be moved.

        Raises NotFound (no such version), Conflict (it names another version, and nobody said to move it; too many), StaleBase.
        """
        version = await self._store.version(place, to)
        outcome, row = await self._lookback.set_label(
            place, name, version.number, version.id, expected=expected, move=move, by=by, limit=MAX_LABELS
        )
        match outcome:
            case "missing":
                raise await self._store.missing(place)
            case "full":
                raise Conflict(f"{place} has {MAX_LABELS:,} labels, which is the limit; remove some")
            case "stale":
                raise await self._stale(place, name, row.version if row else None, row.number if row else 0)
            case "taken":
                assert row is not None, "it names something"
                raise Conflict(
                    f'label {name} names version {row.number}; to move it to {version.number}, say so: "move": true, or If-Match '
                    f'"{spell(row.version)}"'
                )
        assert row is not None, "it is set"
        return row, outcome == "set"

    async def remove(self, place: Place, name: LabelName, *, expected: bytes | None, by: str) -> None:
        """Raises NotFound, StaleBase."""
        outcome, number, version = await self._lookback.remove_label(place, name, expected=expected, by=by)
        if outcome == "missing":
            await self._store.head(place)
            await self._lookback.label(place, name)  # raises
        if outcome == "stale":
            raise await self._stale(place, name, version, number or 0)

    async def _stale(self, place: Place, name: LabelName, version: bytes | None, number: int) -> StaleBase:
        if version is None:
            head = await self._store.head(place)
            return StaleBase(f"{place} has no label {name}: leave If-Match out to set it", head=head.id, number=head.number)
        return StaleBase(
            f"label {name} names version {number} now, not the one in If-Match", head=spell(version), number=number
        )
