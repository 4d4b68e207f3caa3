"""Signs heads anew before they expire, and keeps house: one registry of the fleet does it, the one that holds the lock."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import msgspec
import structlog

from heliograph.core.errors import Contended, Corrupt, HeliographError
from heliograph.core.events import HeadEvent, Replay
from heliograph.core.records import Head, Signed
from heliograph.core.times import to_text
from heliograph.eventlog import dead_letters
from heliograph.eventlog.wake import Bell
from heliograph.keys.live import LiveKeys
from heliograph.runtime import retry
from heliograph.runtime.clock import now_us
from heliograph.runtime.postgres import Connection, Pool, translating
from heliograph.services.registry.commit import Commits
from heliograph.services.registry.draft import next_issue
from heliograph.services.registry.heads import HeadRow, Place
from heliograph.services.registry.settings import RegistrySettings
from heliograph.services.registry.statements import SQL
from heliograph.services.registry.store import Store
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

BATCH: Final = 200
TICK_S: Final = 30.0
KEEP_HOUSE_S: Final = 3600.0
DAYS_AHEAD: Final = 7
FORGET_BATCH: Final = 1_000
ATTEMPTS: Final = 8


class Renewal:
    """A fresh head for an unchanged version: the same swap as a commit's, and an event."""

    def __init__(self, store: Store, commits: Commits, bell: Bell, *, head_life_us: int) -> None:
        self._store = store
        self._commits = commits
        self._bell = bell
        self._head_life_us = head_life_us

    async def __call__(
        self,
        place: Place,
        base: HeadRow,
        *,
        within: Connection | None = None,
        replay: Replay | None = None,
        trace: str | None = None,
    ) -> bool:
        """False: the head has moved meanwhile, which renewed it. ``within`` a transaction, whose owner rings the bell after it."""
        issued_us = next_issue(base, now_us())
        times_us = issued_us, issued_us + self._head_life_us
        said = Head.read(base.signed.payload)
        head = msgspec.structs.replace(said, issued_at=to_text(times_us[0]), expires_at=to_text(times_us[1]))
        signed = await self._commits.signed_head(head.text())
        told = HeadEvent(namespace=place.namespace, environment=place.environment, head=signed, trace=trace, replay=replay)
        event = msgspec.json.encode(told)
        renewed = await self._store.renew(place, base, signed, times_us, event, within=within)
        if renewed and within is None:
            self._commits.remember(place, _renewed(base, signed, times_us))
            self._bell.ring()
        return renewed

    async def insist(self, place: Place, *, within: Connection, replay: Replay, trace: str | None) -> None:
        """Whatever the head is, and says what is told again by it. Raises NotFound, Contended."""
        for attempt in range(ATTEMPTS):
            if await self(place, await self._store.head(place), within=within, replay=replay, trace=trace):
                return
            await asyncio.sleep(retry.delay(attempt, base_s=0.005, cap_s=0.1))
        raise Contended(f"{place} moves too fast to renew its head now; try again")


def _renewed(base: HeadRow, signed: Signed, times_us: tuple[int, int]) -> HeadRow:
    return HeadRow(
        epoch=base.epoch,
        number=base.number,
        version=base.version,
        root=base.root,
        peaks=base.peaks,
        at_us=base.at_us,
        configs=base.configs,
        safe=base.safe,
        issued_at_us=times_us[0],
        expires_at_us=times_us[1],
        signed=signed,
    )


class Upkeep:
    def __init__(
        self, settings: RegistrySettings, pool: Pool, store: Store, renewal: Renewal, keys: LiveKeys, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._store = store
        self._renewal = renewal
        self._keys = keys
        self._metrics = metrics
        self._tick_s = min(TICK_S, settings.head_renew_s / 10)

    async def run(self) -> None:
        """Until cancelled. While another registry holds the lock, asks again at every tick."""
        while True:
            try:
                await self._lead()
            except (HeliographError, asyncpg.PostgresError) as error:
                log.warning("upkeep_interrupted", error=type(error).__name__)
            await asyncio.sleep(self._tick_s)

    async def _lead(self) -> None:
        """Works while the lock is held; it lives with this very connection."""
        url = self._settings.database_url.get_secret_value()
        with translating():
            connection = await asyncpg.connect(
                url, timeout=5, server_settings={"application_name": "heliograph registry upkeep"}
            )
        try:
            kept_house_at = -KEEP_HOUSE_S
            while await self._holds(connection):
                await self._renew_due()
                await self._count_letters()
                now = asyncio.get_running_loop().time()
                if now - kept_house_at >= KEEP_HOUSE_S:
                    await self._keep_house()
                    kept_house_at = now
                await asyncio.sleep(self._tick_s)
        finally:
            connection.terminate()

    async def _holds(self, connection: Connection) -> bool:
        with translating():
            return bool(await connection.fetchval(SQL["lead_upkeep"], timeout=5))

    async def renew_all(self) -> None:
        """After another key has come: what the one before signed, nobody may believe any more. What fails here is due soon enough anyway."""
        self._metrics.trust_expires_at_seconds.set(self._keys.now.expires_at_us / 1e6)
        try:
            await self._renew_issued_before(now_us())
        except (HeliographError, asyncpg.PostgresError) as error:
            log.warning("upkeep_interrupted", error=type(error).__name__)

    async def _renew_due(self) -> None:
        await self._renew_issued_before(now_us() - int((self._settings.head_renew_s - self._tick_s) * 1e6))
        oldest = await self._store.oldest_head_us()
        self._metrics.head_age_seconds.set(0 if oldest is None else (now_us() - oldest) / 1e6)

    async def _renew_issued_before(self, due_us: int) -> None:
        renewed = 1
        while renewed and (due := await self._store.heads_to_renew(due_us, BATCH)):
            renewed = 0
            for place, base in due:
                renewed += await self._renewed(place, base)

    async def _renewed(self, place: Place, base: HeadRow) -> bool:
        """A head that cannot be read costs its own environment its freshness, and no other."""
        try:
            if await self._renewal(place, base):
                self._metrics.heads_renewed.inc()
        except (msgspec.DecodeError, Corrupt) as error:
            log.error("head_not_renewed", namespace=place.namespace, environment=place.environment, error=type(error).__name__)
            return False
        return True

    async def _count_letters(self) -> None:
        for stream, (waiting, oldest_s) in (await dead_letters.waiting(self._pool)).items():
            self._metrics.dead_letters_waiting.labels(stream).set(waiting)
            self._metrics.dead_letter_oldest_seconds.labels(stream).set(oldest_s)

    async def _keep_house(self) -> None:
        dropped = await self._store.keep_partitions(
            days_ahead=DAYS_AHEAD, keep_days=self._settings.event_keep_days, relayed=bool(self._settings.kafka_bootstrap)
        )
        forgotten = 0
        while count := await self._store.forget_answers(self._settings.idempotency_keep_s, FORGET_BATCH):
            forgotten += count
        letters = 0
        while count := await dead_letters.forget_settled(self._pool, self._settings.letter_keep_s, FORGET_BATCH):
            letters += count
        log.info("house_kept", partitions_dropped=dropped, answers_forgotten=forgotten, letters_forgotten=letters)
