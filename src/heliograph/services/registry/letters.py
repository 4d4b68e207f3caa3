"""Has dead letters told again, or discards them: in transactions that say so in the audit trail.

How a letter is told again depends on who set it aside:

- a reader of versions (sync): the environment's head is signed anew and told, so whoever is behind it reads from here what it missed;
- an instance that refuses a version: the same, and every sync node sends the state anew to the instances that do not run it;
- the ledger: it takes in again what it set aside itself, within seconds (the letter is `replaying` until it has);
- a revocation: told again as it was.

What fails again finds its letter: the event says which letters it tells again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, Literal

import msgspec
from prometheus_client import Counter

from heliograph.core import names
from heliograph.core.errors import Conflict, HeliographError, InvalidName
from heliograph.core.events import FromRegistry, Replay, RevokedEvent
from heliograph.eventlog import dead_letters
from heliograph.eventlog.dead_letters import DeadLetter
from heliograph.eventlog.ports import Stream
from heliograph.eventlog.wake import Bell
from heliograph.runtime.postgres import Connection, Pool
from heliograph.services.registry.heads import Place
from heliograph.services.registry.renew import Renewal
from heliograph.services.registry.store import Store
from heliograph.telemetry.metrics import Metrics

Way = Literal["head", "push", "ledger", "event", "none"]
BY_THEMSELVES: Final = "ledger"
INSTANCES: Final = "instances"
_EVENT: Final[msgspec.json.Decoder[FromRegistry]] = msgspec.json.Decoder(FromRegistry)


@dataclass(slots=True)
class Settled:
    """What became of some letters. ``skipped``: not waiting any more. ``failed``: could not even be told again, and why; they wait on."""

    done: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    failed: list[tuple[int, HeliographError]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Group:
    """Letters that are told again by one event."""

    way: Way
    place: Place | None
    letters: tuple[DeadLetter, ...]

    @property
    def ids(self) -> list[int]:
        return [each.id for each in self.letters]


class Letters:
    def __init__(self, pool: Pool, store: Store, renewal: Renewal, bell: Bell, metrics: Metrics) -> None:
        self._pool = pool
        self._store = store
        self._renewal = renewal
        self._bell = bell
        self._metrics = metrics

    async def replay(self, letters: Iterable[DeadLetter], *, by: str, trace: str | None) -> Settled:
        """Each group in a transaction of its own, so that one that cannot be told again holds up no other. Letters come with their bodies."""
        settled = Settled()
        for group in _groups(letters):
            try:
                done = await self._replay(group, by, trace)
            except HeliographError as error:
                settled.failed += [(number, error) for number in group.ids]
                continue
            settled.done += done
            settled.skipped += sorted(set(group.ids) - set(done))
        self._bell.ring()
        return settled

    async def discard(self, letters: Iterable[DeadLetter], *, by: str, note: str) -> Settled:
        """Discards dead letters that wait, with the reason: each group in a transaction of its own."""
        settled = Settled()
        for group in _groups(letters):
            async with self._store.transaction() as connection:
                done = await dead_letters.discard(connection, group.ids, by=by, note=note)
                await self._note(connection, group, by, "dead_letter.discard", done, reason=note)
            settled.done += done
            settled.skipped += sorted(set(group.ids) - set(done))
            self._count(self._metrics.dead_letters_discarded, group, done)
        return settled

    async def _replay(self, group: _Group, by: str, trace: str | None) -> list[int]:
        """Has the letters of one group told again. Raises Conflict for what cannot be, NotFound for an environment that is gone, Contended."""
        if group.way == "none":
            raise Conflict("the dead letter does not say which environment it is about; discard it")
        state = "replaying" if group.way == "ledger" else "replayed"
        async with self._store.transaction() as connection:
            done = await dead_letters.replay(connection, group.ids, state=state, by=by, trace=trace)
            await self._note(connection, group, by, "dead_letter.replay", done)
            if done:
                await self._tell_again(connection, group, done, trace)
        self._count(self._metrics.dead_letters_replayed, group, done)
        return done

    async def _tell_again(self, connection: Connection, group: _Group, done: list[int], trace: str | None) -> None:
        """Last in its transaction: it takes the shard's lock."""
        if group.way in ("head", "push") and group.place:
            replay = Replay(letters=tuple(done), push=group.way == "push")
            await self._renewal.insist(group.place, within=connection, replay=replay, trace=trace)
        elif group.way == "event":
            (letter,) = group.letters
            await self._store.append_event(connection, letter.shard or 0, letter.key, letter.body or b"", trace)

    async def _note(self, connection: Connection, group: _Group, by: str, action: str, done: list[int], **more: object) -> None:
        if done:
            namespace, environment = (group.place.namespace, group.place.environment) if group.place else (None, None)
            detail = {"letters": done, "stream": group.letters[0].stream, "consumer": group.letters[0].consumer} | more
            await self._store.note(namespace, environment, by, action, detail, within=connection)

    @staticmethod
    def _count(counter: Counter, group: _Group, done: list[int]) -> None:
        counter.labels(group.letters[0].stream).inc(len(done))


def _groups(letters: Iterable[DeadLetter]) -> list[_Group]:
    """Those that one event can tell again together: of one environment, set aside by the same consumer for the same stream."""
    known = [(_way(each), _place(each), each) for each in letters]

    def key(item: tuple[Way, Place | None, DeadLetter]) -> tuple[str, str, str, str, int]:
        way, place, letter = item
        return letter.stream, letter.consumer, way, str(place), letter.id if way == "event" else 0

    found = (list(members) for _, members in groupby(sorted(known, key=key), key))
    return [_Group(each[0][0], each[0][1], tuple(letter for _, _, letter in each)) for each in found]


def _way(letter: DeadLetter) -> Way:
    if letter.consumer == BY_THEMSELVES:
        return "ledger"
    if letter.consumer == INSTANCES and _place(letter):
        return "push"
    if letter.stream == Stream.VERSIONS and letter.shard is not None and isinstance(_event(letter), RevokedEvent):
        return "event"
    return "head" if letter.stream == Stream.VERSIONS and _place(letter) else "none"


def _place(letter: DeadLetter) -> Place | None:
    """The environment that it is about; of letters that do not say so, the one that their key names."""
    namespace, _, environment = letter.key.partition("/")
    try:
        return Place(names.namespace(letter.namespace or namespace), names.environment(letter.environment or environment))
    except InvalidName:
        return None


def _event(letter: DeadLetter) -> FromRegistry | None:
    try:
        return _EVENT.decode(letter.body or b"")
    except (msgspec.DecodeError, RecursionError):
        return None
