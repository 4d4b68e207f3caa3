"""Deletes environments and namespaces, and brings them back.

What is deleted is out of everybody's sight at once, and nobody can take its name. It is all still there until its time is over; then `Eraser`
removes it for good. Readers of the log are told by an event for each environment.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from heliograph.core.errors import Conflict, Contended, InvalidRequest, NotFound
from heliograph.core.events import DeletedEvent
from heliograph.core.names import Environment, Namespace
from heliograph.eventlog.wake import Bell
from heliograph.runtime.clock import now_us
from heliograph.services.registry.erasure import Erasure, Farewell, GoneEnvironment, GoneNamespace
from heliograph.services.registry.heads import Place
from heliograph.services.registry.renew import Renewal
from heliograph.services.registry.store import Store

MIN_RETAIN_S: Final = 3600
MAX_ENVIRONMENTS: Final = 1_000
"""That go with their namespace in one transaction."""
ATTEMPTS: Final = 8
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Deletion:
    """``retain_s``: how long what was deleted can be restored, unless less was asked for."""

    def __init__(self, erasure: Erasure, store: Store, renewal: Renewal, bell: Bell, *, retain_s: float) -> None:
        self._erasure = erasure
        self._store = store
        self._renewal = renewal
        self._bell = bell
        self.retain_s = retain_s

    def retention(self, asked_s: float | None) -> float:
        """Raises InvalidRequest."""
        if asked_s is None:
            return self.retain_s
        if not MIN_RETAIN_S <= asked_s <= self.retain_s:
            raise InvalidRequest(
                f"retain_s is between {MIN_RETAIN_S} (an hour) and {self.retain_s:.0f}, which is what applies without it"
            )
        return asked_s

    async def environment(self, place: Place, *, retain_s: float, by: str, trace: str | None) -> GoneEnvironment:
        """Once more is the same: what was deleted before stays as it is. Raises NotFound."""
        at_us, erase_us = _times(retain_s)
        told = [_farewell(place, at_us, erase_us)]
        await self._erasure.delete(
            place.namespace, told, whole=False, by=by, at=_time(at_us), erase_at=_time(erase_us), trace=trace
        )
        gone = await self._erasure.gone_environment(place)
        if gone is None:
            raise NotFound(f"no environment {place}")
        self._bell.ring()
        return gone

    async def namespace(self, name: Namespace, *, retain_s: float, by: str, trace: str | None) -> GoneNamespace:
        """With all its environments. Once more is the same. Raises NotFound, Conflict (too many), Contended."""
        for _ in range(ATTEMPTS):
            at_us, erase_us = _times(retain_s)
            environments = await self._erasure.environments_of(name, MAX_ENVIRONMENTS + 1)
            if len(environments) > MAX_ENVIRONMENTS:
                raise Conflict(f"{name} has more than {MAX_ENVIRONMENTS:,} environments; delete some of them first")
            told = [_farewell(Place(name, each), at_us, erase_us) for each in environments]
            outcome = await self._erasure.delete(
                name, told, whole=True, by=by, at=_time(at_us), erase_at=_time(erase_us), trace=trace
            )
            if outcome == "moved":
                continue
            gone = await self._erasure.gone_namespace(name)
            if gone is None:
                raise NotFound(f"no namespace {name}")
            self._bell.ring()
            return gone
        raise Contended(f"environments of {name} come and go too fast; nothing was deleted, try again")

    async def restore_environment(self, place: Place, *, by: str) -> None:
        """One that is there already stays as it is, and is told if that failed before. Raises NotFound, Conflict when its namespace is deleted."""
        back = await self._erasure.restore(place.namespace, place.environment, by)
        if back is None:
            if await self._erasure.gone_namespace(place.namespace):
                raise Conflict(f"namespace {place.namespace} is deleted; restore it first")
            await self._store.head(place)
        await self._tell(place.namespace, place.environment)

    async def restore_namespace(self, name: Namespace, *, by: str) -> None:
        """With the environments that were deleted with it. Once more is the same, as for an environment. Raises NotFound."""
        back = await self._erasure.restore(name, None, by)
        if back is None and (await self._erasure.gone_namespace(name) or not await self._store.namespace_exists(name)):
            raise NotFound(f"no namespace {name}, and none that could be restored")
        await self._tell(name, None)

    async def _tell(self, namespace: Namespace, environment: Environment | None) -> None:
        """A fresh head for each that came back and has none yet. Should this end half way, whoever asks again goes on; the upkeep does in any case,
        once their heads are old."""
        for each in await self._erasure.untold(namespace, environment):
            place = Place(namespace, each)
            await self._renewal(place, await self._store.head(place))


def _times(retain_s: float) -> tuple[int, int]:
    at_us = now_us()
    return at_us, at_us + int(retain_s * 1e6)


def _time(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def _farewell(place: Place, at_us: int, erase_us: int) -> Farewell:
    event = DeletedEvent(namespace=place.namespace, environment=place.environment, at_us=at_us, erase_at_us=erase_us)
    return Farewell(place, msgspec.json.encode(event))
