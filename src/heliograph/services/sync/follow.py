"""Follows the log: what the registry commits becomes what this node serves.

Start: note the end of the log, load every environment from the registry, then consume from there. Per environment, version last + 1 is applied,
what is there already is dropped, and on a gap (or anything that does not add up) the environment is read from the registry again. An environment
that cannot be brought forward is quarantined: its event goes to the dead letters, it is tried again with backoff, and all others go on. An operator's
replay of such a letter is one more try; when that fails too, the letter is told so.

A version that is large is in the log without its documents. While they are fetched, what the log tells of that environment waits, in order; nothing
else does, and neither does its deletion.
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
MAX_WAITING: Final = 16 * 1024 * 1024
"""Bytes of records that wait for documents, of all environments. An environment for which there is no room is read whole instead."""
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


@dataclass(slots=True)
class Line:
    """The records of an environment that wait, in the order of the log: the first one's documents are being fetched. ``read_us``: when the last of
    them came."""

    task: asyncio.Task[VersionEvent]
    records: list[tuple[Record, FromRegistry]] = field(default_factory=list)
    read_us: int = 0


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
        self._lines: dict[tuple[str, str], Line] = {}  # of environments that are not being mended
        self._waiting = 0  # bytes of their records
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
        """Ends what is still being mended or fetched."""
        tasks: list[asyncio.Task[Any]] = [each.task for each in self._mending.values() if each.task]
        for task in tasks:
            task.cancel()
        for key, line in list(self._lines.items()):
            tasks.append(line.task)
            self._leave_line(key)
        await asyncio.gather(*tasks, return_exceptions=True)

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
        lines = self._lines_of(event)
        if not lines or isinstance(event, PurgeEvent):
            self._hear(record, event)
        for key in lines:
            self._wait(key, record, event)

    def _hear(self, record: Record, event: FromRegistry) -> None:
        try:
            self._apply(record, event)
        except _POISON as error:
            self._misfit(record, event, error)

    def _apply(self, record: Record, event: FromRegistry) -> None:
        match event:
            case RevokedEvent(tokens=tokens):
                self._revoked(tokens)
            case HeadEvent():
                self._renew(event)
            case VersionEvent():
                self._advance(record, event)
            case DeletedEvent():
                self._remove(event)
            case PurgeEvent(namespace=namespace):
                self._hub.forget_past(namespace)

    def _misfit(self, record: Record, event: FromRegistry, error: BaseException) -> None:
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
        self._leave_line(key)
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

    def _advance(self, record: Record, event: VersionEvent) -> None:
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
        if any(_lacks_document(each) for each in event.changes):
            self._open_line(record, event)
            return
        changes = {each.name: _entry(each) for each in event.changes}
        environment.commit(event.head, event.version, changes, answer=event.answer, trace=event.trace)
        self._moved[environment] = None

    # --- versions without their documents ---

    def _lines_of(self, event: FromRegistry) -> list[tuple[str, str]]:
        """Where it has to wait. A purge need not, and is told again in its turn: what is being fetched may be what it purges."""
        match event:
            case VersionEvent(namespace=namespace, environment=name) | HeadEvent(namespace=namespace, environment=name):
                return [(namespace, name)] if (namespace, name) in self._lines else []
            case PurgeEvent(namespace=namespace):
                return [key for key in self._lines if key[0] == namespace]
            case _:
                return []

    def _open_line(self, record: Record, event: VersionEvent) -> None:
        key = (event.namespace, event.environment)
        line = self._lines[key] = Line(asyncio.create_task(self._fetch(event)))
        line.task.add_done_callback(partial(self._fetched, key, line))
        self._wait(key, record, event)

    def _wait(self, key: tuple[str, str], record: Record, event: FromRegistry) -> None:
        line = self._lines[key]
        line.records.append((record, event))
        line.read_us = now_us()
        self._waiting += len(record.body)
        if self._waiting > MAX_WAITING:
            self._mend(*key, None)

    def _leave_line(self, key: tuple[str, str]) -> list[tuple[Record, FromRegistry]]:
        """Those who waited, in order. What was being fetched is not wanted any more."""
        line = self._lines.pop(key, None)
        if line is None:
            return []
        line.task.cancel()
        self._waiting -= sum(len(record.body) for record, _ in line.records)
        return line.records

    async def _fetch(self, event: VersionEvent) -> VersionEvent:
        """The same with all of its documents."""
        changes = [await self._whole(event.namespace, each) for each in event.changes]
        return msgspec.structs.replace(event, changes=tuple(changes))

    async def _whole(self, namespace: str, change: ChangedConfig) -> ChangedConfig:
        if change.leaf is None or change.document is not None:
            return change
        document = await self._registry.document(namespace, read_leaf(change.leaf).document)
        return msgspec.structs.replace(change, document=document.decode())

    def _fetched(self, key: tuple[str, str], line: Line, task: asyncio.Task[VersionEvent]) -> None:
        """It is applied, and so are those behind it, up to the next one that lacks documents. When they cannot be had, the environment is read."""
        if task.cancelled():
            return
        error = task.exception()  # whatever it is: asked for, so that the loop does not complain of it
        if self._lines.get(key) is not line:
            return
        (record, event), *waiting = self._leave_line(key)
        if error:
            self._misfit(record, event, error)
        else:
            self._hear(record, task.result())
        for each in waiting:
            if key in self._lines:
                self._wait(key, *each)
            else:
                self._hear(*each)
        self._send_moved(line.read_us)

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
        """One at a time for each environment; what is being read may have been read before this was committed, so it is read again then. Who waits
        for documents there waits no longer: they are part of what is read."""
        waiting = self._leave_line((namespace, environment))
        if mend := self._being_mended((namespace, environment)):
            mend.record = record or mend.record
            mend.again = True
        else:
            self._start((namespace, environment), Mend(record), partial(self._reload_until_right, namespace, environment))
        for each in waiting:
            self._hear(*each)

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


def _lacks_document(change: ChangedConfig) -> bool:
    return change.leaf is not None and change.document is None


def _entry(change: ChangedConfig) -> Entry | None:
    """Of a change that lacks nothing; None where a config was deleted."""
    if change.leaf is None or change.document is None:
        return None
    return Entry(change.leaf, change.document.encode())
