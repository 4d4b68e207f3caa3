"""Replays dead letters of the stream of versions: whoever set one aside is told again where the environment is, and reads what it missed."""

from __future__ import annotations

from typing import Final

import msgspec

from heliograph.core import names
from heliograph.core.errors import Conflict, InvalidName
from heliograph.core.events import FromRegistry, RevokedEvent
from heliograph.eventlog import dead_letters
from heliograph.eventlog.dead_letters import DeadLetter
from heliograph.eventlog.ports import Stream
from heliograph.eventlog.wake import Bell
from heliograph.runtime.postgres import Connection, Pool
from heliograph.services.registry.heads import Place
from heliograph.services.registry.renew import Renewal
from heliograph.services.registry.store import Store

_EVENT: Final[msgspec.json.Decoder[FromRegistry]] = msgspec.json.Decoder(FromRegistry)


class Replay:
    def __init__(self, pool: Pool, store: Store, renewal: Renewal, bell: Bell) -> None:
        self._pool = pool
        self._store = store
        self._renewal = renewal
        self._bell = bell

    async def __call__(self, number: int, *, by: str, trace: str | None) -> DeadLetter:
        """Tells a consumer again. A version or head: the environment's head is signed anew and told, which makes every reader that is behind read
        the registry. A revocation is told again as it was. Raises NotFound, Conflict (settled already, or of another stream)."""
        letter = await dead_letters.one(self._pool, number)
        if letter.stream != Stream.VERSIONS:
            raise Conflict(f"dead letter {number} is of the stream {letter.stream}; only versions are replayed here")
        async with self._store.transaction() as connection:
            if not await self._store.settle_letter(connection, number, "replayed", by):
                raise Conflict(f"dead letter {number} is {letter.state} already")
            place = _place(letter)
            detail = {"letter": number, "consumer": letter.consumer}
            await self._store.note(
                place.namespace if place else None,
                place.environment if place else None,
                by,
                "dead_letter.replay",
                detail,
                within=connection,
            )
            await self._tell_again(letter, place, connection, trace)
        self._bell.ring()
        return msgspec.structs.replace(letter, state="replayed")

    async def _tell_again(self, letter: DeadLetter, place: Place | None, connection: Connection, trace: str | None) -> None:
        if place:
            await self._renewal.insist(place, within=connection)
        elif letter.shard is not None and letter.body is not None and isinstance(_event(letter), RevokedEvent):
            await self._store.append_event(connection, letter.shard, letter.key, letter.body, trace)
        else:
            raise Conflict(f"dead letter {letter.id} does not say which environment it is about")


def _place(letter: DeadLetter) -> Place | None:
    """The environment that its key names."""
    namespace, _, environment = letter.key.partition("/")
    try:
        return Place(names.namespace(namespace), names.environment(environment))
    except InvalidName:
        return None


def _event(letter: DeadLetter) -> FromRegistry | None:
    try:
        return _EVENT.decode(letter.body or b"")
    except msgspec.DecodeError:
        return None
