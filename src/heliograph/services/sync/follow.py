"""Follows the log: what the registry commits becomes what this node serves.

Start: note the end of the log, load every environment from the registry, then consume from there. Per environment, version last + 1 is applied,
what is there already is dropped, and on a gap (or anything that does not add up) the environment is read from the registry again. An environment
that cannot be brought forward is quarantined: its event goes to the dead letters, it is tried again with backoff, and all others go on. An operator's
replay of such a letter is one more try; when that fails too, the letter is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import structlog

from heliograph.core.delta import Entry, read_leaf
from heliograph.core.errors import HeliographError, NotFound, Unavailable
from heliograph.core.events import (
    SHARDS,
    ChangedConfig,
    DeletedEvent,
    FromRegistry,
    HeadEvent,
    PurgeEvent,
    RevokedEvent,
    VersionEvent,
    shard_of,
)
from heliograph.core.records import Head
from heliograph.core.times import to_text
from heliograph.eventlog.ports import Gap, Marks, Reader, Record
from heliograph.runtime.clock import now_us
from heliograph.runtime.retry import attempts, until_available
from heliograph.services.sync.environment import Environment, is_beyond
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.registry import Registry, State
from heliograph.services.sync.settings import SyncSettings
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

LOADS_AT_ONCE: Final = 4
_decode = msgspec.json.Decoder(FromRegistry).decode
Revoked = Callable[[tuple[str, ...]], None]
_POISON: Final = (HeliographError, msgspec.DecodeError, KeyError, ValueError, OverflowError, RecursionError)
"""What a record or a state can make our own code raise. It costs its environment, never the node."""


class Letters(Protocol):
    """Where what cannot be brought forward goes. Never raises."""

    async def set_aside(self, record: Record, reason: str, attempts: int) -> None: ...

    async def failed_again(self, letters: tuple[int, ...], reason: str) -> None:
        """These were told again, and it does not work."""
        ...


@dataclass(slots=True)
class Mend:
    """An environment that is being read again. ``record``: the newest that asked for it; ``again``: once more, from the beginning;
    ``replays``: letters that wait for how it goes."""

    record: Record | None
    again: bool = False
    replays: set[int] = field(default_factory=set)
    failures: int = 0
    set_aside: bool = False
    task: asyncio.Task[None] | None = None


class Follower:
    def __init__(
        self,
        reader: Reader,
        registry: Registry,
        hub: Hub,
        settings: SyncSettings,
        metrics: Metrics,
        *,
        letters: Letters,
        revoked: Revoked,
    ) -> None:
        self._reader = reader
        self._registry = registry
        self._hub = hub
        self._settings = settings
        self._metrics = metrics
        self._letters = letters
        self._revoked = revoked
        self._shards = SHARDS
        self._mending: dict[tuple[str, str], Mend] = {}
        self._moved: dict[Environment, None] = {}  # by the batch in hand
        hub.look_for = self._seek

    async def load(self) -> Marks:
        """Everything there is; the marks to follow from. Waits for a registry and a log that are away."""
        marks = await until_available(self._reader.end)
        self._shards = len(marks)
        await until_available(self._load_all)
        return marks

    async def run(self, marks: Marks) -> None:
        """Until cancelled."""
        try:
            async for batch in self._reader.read(marks):
                read_us = now_us()
                for item in batch:
                    if isinstance(item, Gap):
                        self._metrics.log_gaps.labels("versions").inc()
                        self._mend_shard(item.shard)
                    else:
                        await self._take(item)
                self._send_moved(read_us)
                self._metrics.log_records_read.labels("versions").inc(len(batch))
        finally:
            await self.close()

    async def close(self) -> None:
        """Ends what is still being mended."""
        mending = [each.task for each in self._mending.values() if each.task]
        for task in mending:
            task.cancel()
        await asyncio.gather(*mending, return_exceptions=True)

    # --- records ---

    def _send_moved(self, read_us: int) -> None:
        """After an outage of the log many versions come at once: clients get one frame from where they are to the last of them."""
        moved, self._moved = self._moved, {}
        for environment in moved:
            if (room := self._hub.room(environment.namespace, environment.environment)) and room.environment is environment:
                self._hub.moved(environment, read_us)

    async def _take(self, record: Record) -> None:
        try:
            event = _decode(record.body)
        except (msgspec.DecodeError, RecursionError):
            await self._letters.set_aside(record, "the event cannot be read", 1)
            return
        try:
            await self._apply(record, event)
        except _POISON as error:
            self._misfit(record, event, error)

    async def _apply(self, record: Record, event: FromRegistry) -> None:
        match event:
            case RevokedEvent(tokens=tokens):
                self._revoked(tokens)
            case HeadEvent():
                self._renew(event)
            case VersionEvent():
                await self._advance(record, event)
            case DeletedEvent():
                self._remove(event)
            case PurgeEvent(namespace=namespace):
                self._hub.forget_past(namespace)

    def _misfit(self, record: Record, event: FromRegistry, error: Exception) -> None:
        """Every node reads this record: it must not end one. The registry says what is true of its environment."""
        kind, reason = type(event).__name__, type(error).__name__
        if isinstance(event, RevokedEvent | PurgeEvent):
            log.error("event_does_not_fit", kind=kind, error=reason)
            return
        where = event.namespace, event.environment
        log.warning("event_does_not_fit", kind=kind, namespace=where[0], environment=where[1], error=reason)
        self._mend(*where, record)

    def _remove(self, event: DeletedEvent) -> None:
        """What is being read of it was read before this. Should it have been restored since, its next head brings it back."""
        key = (event.namespace, event.environment)
        if (mend := self._mending.pop(key, None)) and mend.task:
            mend.task.cancel()
        where, until = f"{event.namespace}/{event.environment}", to_text(event.erase_at_us)
        self._hub.no_environment(
            event.namespace, event.environment, f"the environment {where} was deleted; it can be restored until {until}"
        )

    def _renew(self, event: HeadEvent) -> None:
        key = (event.namespace, event.environment)
        room = self._hub.room(*key)
        behind = room is None or is_beyond(Head.read(event.head.payload).cursor, room.environment.cursor)
        if behind:
            self._mend(*key, None)
        if event.replay and (mend := self._being_mended(key)):
            mend.replays.update(event.replay.letters)
        if not behind and room and room.environment.renew(event.head):
            self._hub.renewed(room.environment)
        if room and event.replay and event.replay.push:
            self._hub.push_again(room.environment, event.trace)

    async def _advance(self, record: Record, event: VersionEvent) -> None:
        room = self._hub.room(event.namespace, event.environment)
        if room is None:
            self._mend(event.namespace, event.environment, record)
            return
        environment = room.environment
        if event.number != environment.cursor.number + 1:  # the state that is read, or was, may be of a later version
            environment.note_recovery(event.version)
        if (event.epoch, event.number) <= (environment.cursor.epoch, environment.cursor.number):
            return
        if (
            event.number != environment.cursor.number + 1
            or event.partial
            or self._being_mended((event.namespace, event.environment))
        ):
            self._mend(event.namespace, event.environment, record)
            return
        await self._commit(environment, event)
        self._moved[environment] = None

    async def _commit(self, environment: Environment, event: VersionEvent) -> None:
        changes = {each.name: await self._entry(event.namespace, each) for each in event.changes}
        environment.commit(event.head, event.version, changes, answer=event.answer, trace=event.trace)

    async def _entry(self, namespace: str, change: ChangedConfig) -> Entry | None:
        if change.leaf is None:
            return None
        document = change.document
        if document is None:
            wanted = read_leaf(change.leaf).document
            return Entry(change.leaf, await self._registry.document(namespace, wanted))
        return Entry(change.leaf, document.encode())

    # --- mending ---

    def _mend_shard(self, shard: int) -> None:
        """Records of this shard are missing: read all its environments again, and look for new ones."""
        for environment in list(self._hub.environments()):
            if self._shard(environment.namespace, environment.environment) == shard:
                self._mend(environment.namespace, environment.environment, None)
        self._start(("", str(shard)), Mend(None), lambda _: self._find_new(shard))

    def _shard(self, namespace: str, environment: str) -> int:
        return shard_of(namespace, environment, shards=self._shards)

    def _seek(self, namespace: str, environment: str) -> None:
        """Somebody asks for an environment that is not here."""
        self._start((namespace, environment), Mend(None), partial(self._reload_until_right, namespace, environment))

    def _mend(self, namespace: str, environment: str, record: Record | None) -> None:
        """One at a time for each environment; what is being read may have been read before this was committed, so it is read again then."""
        if mend := self._being_mended((namespace, environment)):
            mend.record = record or mend.record
            mend.again = True
        else:
            self._start((namespace, environment), Mend(record), partial(self._reload_until_right, namespace, environment))

    def _start(self, key: tuple[str, str], mend: Mend, work: Callable[[Mend], Coroutine[Any, Any, None]]) -> None:
        if self._being_mended(key) is None:
            self._mending[key] = mend
            mend.task = asyncio.create_task(work(mend))
            mend.task.add_done_callback(partial(self._mended, key, mend))

    def _being_mended(self, key: tuple[str, str]) -> Mend | None:
        """One whose task has ended, and is cleared away later in this turn of the loop, will not look again: whoever comes now needs another."""
        mend = self._mending.get(key)
        return None if mend is None or (mend.task and mend.task.done()) else mend

    def _mended(self, key: tuple[str, str], mend: Mend, task: asyncio.Task[None]) -> None:
        if self._mending.get(key) is mend:
            del self._mending[key]
            if mend.again and not task.cancelled():  # asked for between its last look and now
                self._mend(*key, mend.record)
        self._count_quarantined()
        if not task.cancelled() and (error := task.exception()):
            log.error("mending_failed", exc_info=error)  # the next record of it tries again

    async def _reload_until_right(self, namespace: str, name: str, mend: Mend) -> None:
        async for _ in attempts(base_s=self._settings.reload_backoff_s):
            mend.again = False
            try:
                await self._load(namespace, name)
            except NotFound as missing:
                if mend.again:  # it may have been restored since
                    continue
                self._hub.no_environment(namespace, name, missing.detail)
                return
            except Unavailable:
                continue
            except _POISON as error:
                await self._quarantine(namespace, name, mend, error)
                continue
            if not mend.again and not self._behind(namespace, name, mend.record):
                return

    async def _quarantine(self, namespace: str, name: str, mend: Mend, error: Exception) -> None:
        log.error("environment_quarantined", namespace=namespace, environment=name, error=type(error).__name__)
        mend.failures += 1
        self._count_quarantined()
        reason = f"{namespace}/{name} cannot be brought forward: {type(error).__name__}"
        if mend.replays:
            replayed, mend.replays = tuple(sorted(mend.replays)), set()
            await self._letters.failed_again(replayed, reason)
        if mend.record and mend.failures >= self._settings.reload_attempts and not mend.set_aside:
            mend.set_aside = True
            await self._letters.set_aside(mend.record, reason, mend.failures)

    def _count_quarantined(self) -> None:
        self._metrics.quarantined_environments.set(sum(1 for each in self._mending.values() if each.failures))

    def _behind(self, namespace: str, name: str, record: Record | None) -> bool:
        """Whether the registry's answer was older than the event that asked for it."""
        room = self._hub.room(namespace, name)
        if record is None or room is None:
            return False
        event, at = _decode(record.body), room.environment.cursor
        return isinstance(event, VersionEvent) and (event.epoch, event.number) > (at.epoch, at.number)

    async def _find_new(self, shard: int) -> None:
        async for each in self._registry.heads():
            known = self._hub.room(each.namespace, each.environment)
            if known is None and self._shard(each.namespace, each.environment) == shard:
                self._mend(each.namespace, each.environment, None)

    async def _load_all(self) -> None:
        gate = asyncio.Semaphore(LOADS_AT_ONCE)

        async def load(namespace: str, environment: str) -> None:
            async with gate:
                await self._load_or_mend(namespace, environment)

        heads = [each async for each in self._registry.heads()]
        try:
            async with asyncio.TaskGroup() as group:
                for each in heads:
                    group.create_task(load(each.namespace, each.environment))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _load_or_mend(self, namespace: str, name: str) -> None:
        """An environment that is broken does not keep the node from serving all others. Raises Unavailable."""
        try:
            await self._load(namespace, name)
        except Unavailable:
            raise
        except _POISON as error:
            log.error("environment_quarantined", namespace=namespace, environment=name, error=type(error).__name__)
            self._mend(namespace, name, None)

    async def _load(self, namespace: str, name: str) -> None:
        state = await self._registry.state(namespace, name)
        room = self._hub.room(namespace, name)
        if room is None:
            environment = Environment(
                namespace, name, past_versions=self._settings.past_versions, frame_cache_bytes=self._settings.frame_cache_bytes
            )
            _note_recoveries(environment, state)
            environment.replace(state.head, state.version, state.entries, state.ids)
            self._hub.add_environment(environment)
            return
        _note_recoveries(room.environment, state)
        head = Head.read(state.head.payload)
        if (head.epoch, head.number) > (room.environment.cursor.epoch, room.environment.cursor.number):
            room.environment.replace(state.head, state.version, state.entries, state.ids)
            self._hub.moved(room.environment, now_us())


def _note_recoveries(environment: Environment, state: State) -> None:
    for each in state.recoveries:
        environment.note_recovery(each)
