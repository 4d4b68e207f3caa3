"""The registry's PostgreSQL: one method for each statement, in the registry's own types. Decides nothing.

Failures of the server come out as Unavailable or TimedOut; then nothing was acknowledged, and of a commit it is not known whether it happened:
the same request with the same idempotency key finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import asyncpg
import msgspec

from heliograph.core.digest import unspell
from heliograph.core.errors import Conflict, NotFound
from heliograph.core.names import Environment, Namespace
from heliograph.core.records import Signed
from heliograph.core.times import to_text
from heliograph.core.which import AsOf, Label, Which, said
from heliograph.runtime.postgres import Connection
from heliograph.services.registry.database import Database
from heliograph.services.registry.draft import Draft, Lineage, objects_of
from heliograph.services.registry.heads import HeadRow, Place, VersionRow, signatures_text, signed
from heliograph.services.registry.statements import SQL

Swapped = Literal["committed", "moved", "replayed", "reused", "missing", "exists"]
Compatibility = Literal["off", "warn", "refuse"]
MAX_NUMBER = 2**53
SHOWN_NAMES = 20  # in a list of versions


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request with an idempotency key was answered first. ``request``: digest of that request."""

    request: bytes
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Keyed:
    """The idempotency row that a commit writes along."""

    principal: str
    key: str
    answered: Answered


@dataclass(frozen=True, slots=True)
class Commit:
    """All that the commit function takes."""

    draft: Draft
    record: Signed
    head: Signed
    event: bytes
    received_at_us: int
    trace: str | None
    actor: str
    action: str
    keyed: Keyed | None


@dataclass(frozen=True, slots=True)
class Weight:
    bytes: int
    found: int
    purged: bool


@dataclass(frozen=True, slots=True)
class EnvironmentRow:
    name: str
    epoch: int
    number: int
    version: bytes
    configs: int
    at_us: int


@dataclass(frozen=True, slots=True)
class FlowRow:
    """A version that another's content came from. ``selectors`` None: all of it."""

    environment: str
    number: int
    at: datetime
    selectors: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class PointRow:
    """A version of any environment: its content, and when PostgreSQL committed it."""

    environment: str
    number: int
    root: bytes
    committed_at: datetime


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """``detail`` is JSON."""

    id: int
    at: datetime
    namespace: str | None
    environment: str | None
    actor: str
    action: str
    detail: msgspec.Raw


class Store(Database):
    """The registry's own tables, but for what `Lookback` and `Erasure` see of them."""

    # --- heads and versions -------------------------------------------------------------------------------------------------------

    async def head(self, place: Place) -> HeadRow:
        """Raises NotFound."""
        row = await self._row("head", place.namespace, place.environment)
        if row is None:
            raise await self.missing(place)
        return _head(row)

    async def missing(self, place: Place) -> NotFound:
        """Why there is no such environment."""
        return NotFound(await self.epitaph(place) or f"no environment {place}")

    async def was_erased(self, place: Place) -> bool:
        """Whether there was an environment of that name before, of which only the audit trail knows."""
        return bool((await self._row("was_erased", place.namespace, place.environment))[0])

    async def epitaph(self, place: Place) -> str | None:
        """What to say of an environment that was deleted and can be restored."""
        row = await self._row("deleted_environment", place.namespace, place.environment)
        if row is None:
            return None
        until = f"{row['erase_at']:%Y-%m-%d %H:%M} UTC"
        return f"{place} was deleted on {row['deleted_at']:%Y-%m-%d}; until {until} it can be restored"

    async def heads(self, after: tuple[str, str], limit: int) -> list[tuple[Place, Signed, Signed]]:
        """(place, head, version) by name."""
        return [
            (_place(row), signed(row["payload"], row["signatures"]), signed(row["record"], row["record_signatures"]))
            for row in await self._rows("heads", *after, limit)
        ]

    async def heads_to_renew(self, issued_before_us: int, limit: int) -> list[tuple[Place, HeadRow]]:
        return [(_place(row), _head(row)) for row in await self._rows("heads_to_renew", issued_before_us, limit)]

    async def oldest_head_us(self) -> int | None:
        row = await self._row("oldest_head")
        return None if row is None else row[0]

    async def history_exists(self) -> bool:
        return bool((await self._row("history_exists"))[0])

    async def version(self, place: Place, which: Which) -> VersionRow:
        """The version that is meant. Raises NotFound."""
        match which:
            case int():
                row = await self._row("version_by_number", place.namespace, place.environment, which)
            case bytes():
                row = await self._row("version_by_id", place.namespace, place.environment, which)
            case Label(name):
                row = await self._row("version_by_label", place.namespace, place.environment, name)
            case AsOf(us):
                row = await self._row("version_at", place.namespace, place.environment, to_text(us))
        if row is None:
            await self.head(place)
            raise NotFound(f"{place} has no {said(which)}")
        return _version(row, len(row["names"]))

    async def versions_before(self, place: Place, number: int, limit: int) -> list[VersionRow]:
        """Newest first."""
        rows = await self._rows("versions_before", place.namespace, place.environment, number, limit, SHOWN_NAMES)
        return [_version(row, row["changed"]) for row in rows]

    async def records_after(self, place: Place, number: int, limit: int) -> list[tuple[int, Signed]]:
        rows = await self._rows("records_after", place.namespace, place.environment, number, limit)
        return [(row["number"], signed(row["record"], row["record_signatures"])) for row in rows]

    async def ids_after(self, place: Place, number: int, limit: int) -> list[tuple[int, bytes]]:
        return [
            (row["number"], row["id"])
            for row in await self._rows("ids_after", place.namespace, place.environment, number, limit)
        ]

    # --- writing ------------------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def holding(self, place: Place) -> AsyncIterator[tuple[Connection, HeadRow]]:
        """A transaction in which nobody else moves the head; others wait for its end. Raises NotFound."""
        async with self.transaction() as connection:
            row = await self._row("held_head", place.namespace, place.environment, within=connection)
            if row is None:
                raise await self.missing(place)
            yield connection, _head(row)

    async def commit(self, commit: Commit, *, within: Connection | None = None) -> tuple[Swapped, Answered | None]:
        """One round trip; see the function in the migration. ``within``: in that transaction."""
        try:
            arguments = _arguments(commit, self.shard(commit.draft.place))
            if lineage := commit.draft.content.lineage:
                row = await self._row("commit_with_lineage", *arguments, *lineage, within=within)
            else:
                row = await self._row("commit", *arguments, within=within)
        except asyncpg.RestrictViolationError as error:
            if "purged" not in str(error):
                raise
            raise Conflict(str(error.args[0])) from None
        answered = None if row["answer"] is None else Answered(b"", row["status"], row["answer"])
        return row["outcome"], answered

    async def rehearse(self, connections: int) -> None:
        """Asks to commit to a place that cannot be, on so many connections at once: opens and keeps them, and has the statement prepared there.

        So a publish after a quiet hour is as quick as any. Raises a group of Unavailable, also for a server that is read-only.
        """
        async with asyncio.TaskGroup() as tasks:
            for _ in range(connections):
                tasks.create_task(self._row("commit", *_NOWHERE))

    async def renew(
        self,
        place: Place,
        base: HeadRow,
        head: Signed,
        times_us: tuple[int, int],
        event: bytes,
        *,
        within: Connection | None = None,
    ) -> bool:
        """False: the head has moved. ``times_us``: issued, expires. ``within``: in that transaction."""
        values = (
            *(place.namespace, place.environment, base.version, base.issued_at_us, *times_us),
            *(head.payload, signatures_text(head), self.shard(place), event),
        )
        return bool(await self._value("renew", within, *values))

    async def answered(self, principal: str, key: str) -> Answered | None:
        row = await self._row("answered", principal, key)
        return None if row is None else Answered(row["request"], row["status"], row["answer"])

    @staticmethod
    async def remember(connection: Connection, principal: str, key: str, answered: Answered) -> bool:
        """In the caller's transaction. False: the key was used before."""
        values = (principal, key, answered.request, answered.status, answered.body)
        return (await connection.execute(SQL["remember"], *values)).endswith(" 1")

    async def forget_answers(self, older_than_s: float, limit: int) -> int:
        return len(await self._rows("forget_answers", older_than_s, limit))

    # --- lineage ------------------------------------------------------------------------------------------------------------------

    async def sources_of(self, namespace: Namespace, environment: str, number: int) -> list[FlowRow]:
        """What flowed into a version directly; see the function in the migration."""
        return [
            FlowRow(
                row["source_environment"],
                row["source_number"],
                row["source_at"],
                None if row["selectors"] is None else tuple(row["selectors"]),
            )
            for row in await self._rows("sources_of", namespace, environment, number)
        ]

    async def points(self, namespace: Namespace, wanted: Collection[tuple[str, int]]) -> dict[tuple[str, int], PointRow]:
        """Those that are there, by (environment, number)."""
        rows = await self._rows("points", namespace, [each[0] for each in wanted], [each[1] for each in wanted])
        found = (PointRow(row["environment"], row["number"], row["root"], row["committed_at"]) for row in rows)
        return {(row.environment, row.number): row for row in found}

    async def note_lineage(
        self, place: Place, number: int, lineage: Lineage, *, actor: str, action: str, detail: object
    ) -> bool:
        """A promotion that found nothing to change at version ``number``, with its audit row. False: that was known."""
        told = msgspec.json.encode(detail).decode()
        values = (*(place.namespace, place.environment, number, *lineage[1:]), *(actor, action, told))
        return bool((await self._row("note_lineage", *values))[0])

    # --- objects ------------------------------------------------------------------------------------------------------------------

    async def objects(self, namespace: Namespace, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those that are there and not purged."""
        return {row["digest"]: row["body"] for row in await self._rows("objects", namespace, list(digests))}

    async def purged_any(self, namespace: Namespace) -> bool:
        return bool((await self._row("purged_any", namespace))[0])

    async def weigh(self, namespace: Namespace, digests: Iterable[bytes]) -> Weight:
        row = await self._row("weigh", namespace, list(digests))
        return Weight(row["bytes"], row["found"], row["purged"])

    # --- names --------------------------------------------------------------------------------------------------------------------

    async def create_namespace(self, name: Namespace, by: str) -> datetime | None:
        """When; None if it is there already."""
        row = await self._row("create_namespace", name, by)
        return None if row is None else row["created_at"]

    async def namespaces(self, after: str, limit: int) -> list[tuple[str, datetime]]:
        return [(row["name"], row["created_at"]) for row in await self._rows("namespaces", after, limit)]

    async def namespace_exists(self, name: Namespace) -> bool:
        return bool((await self._row("namespace_exists", name))[0])

    async def environments(self, namespace: Namespace, after: str, limit: int) -> list[EnvironmentRow]:
        return [
            EnvironmentRow(row["environment"], row["epoch"], row["number"], row["version"], row["configs"], row["at_us"])
            for row in await self._rows("environments", namespace, after, limit)
        ]

    # --- policies -----------------------------------------------------------------------------------------------------------------

    async def policy(self, place: Place) -> Compatibility | None:
        row = await self._row("policy", place.namespace, place.environment)
        return None if row is None else row["compatibility"]

    @staticmethod
    async def set_policy(connection: Connection, place: Place, policy: Compatibility, by: str) -> Compatibility | None:
        """In the caller's transaction. What it was before; None: it was never set."""
        before: Compatibility | None = await connection.fetchval(SQL["policy"], place.namespace, place.environment)
        await connection.execute(SQL["set_policy"], place.namespace, place.environment, policy, by)
        return before

    # --- audit, events ------------------------------------------------------------------------------------------------------------

    async def note(
        self,
        namespace: str | None,
        environment: str | None,
        actor: str,
        action: str,
        detail: object,
        *,
        within: Connection | None = None,
    ) -> int:
        """An audit row; ``within`` the transaction it describes."""
        values = (namespace, environment, actor, action, msgspec.json.encode(detail).decode())
        return int(await self._value("note", within, *values))

    async def audit_before(self, place: Place, number: int, limit: int) -> list[AuditRow]:
        return list(map(_audit, await self._rows("audit_before", place.namespace, place.environment, number, limit)))

    async def audit_of_namespace_before(self, namespace: Namespace, number: int, limit: int) -> list[AuditRow]:
        return list(map(_audit, await self._rows("audit_of_namespace_before", namespace, number, limit)))

    @staticmethod
    async def append_event(connection: Connection, shard: int, key: str, body: bytes, trace: str | None) -> None:
        await connection.execute(SQL["append_event"], shard, key, body, trace)

    async def keep_partitions(self, *, days_ahead: int, keep_days: int, relayed: bool) -> int:
        """Makes the log's next days and drops old ones; how many were dropped."""
        await self._row("make_partitions", days_ahead)
        return int((await self._row("drop_partitions", keep_days, relayed))[0])


def _arguments(commit: Commit, shard: int) -> tuple[Any, ...]:
    """In the order of the function's parameters."""
    made, keyed = commit.draft, commit.keyed
    objects = objects_of(made)
    names = sorted(made.content.leaves)
    detail = {"number": made.version.number, "version": made.id, "changed": len(names), "names": names[:100]}
    if made.version.source:
        detail["source"] = msgspec.to_builtins(made.version.source)
    return (
        *(made.place.namespace, made.place.environment),
        *((made.base.version, made.base.issued_at_us) if made.base else (None, None)),
        *([each.digest for each in objects], [each.kind for each in objects], [each.body for each in objects]),
        *(
            made.version.epoch,
            made.version.number,
            unspell(made.id),
            unspell(made.version.root),
            b"".join(made.peaks),
            made.at_us,
        ),
        *(made.message.digest if made.message else None, names, made.content.configs),
        *(commit.record.payload, signatures_text(commit.record)),
        *(made.head.safe, *made.head_times_us, commit.head.payload, signatures_text(commit.head)),
        *(commit.received_at_us, commit.trace, shard, commit.event),
        *(commit.actor, commit.action, msgspec.json.encode(detail).decode()),
        *(keyed.principal if keyed else None, keyed.key if keyed else None),
        *((keyed.answered.request, keyed.answered.status, keyed.answered.body) if keyed else (None, None, None)),
    )


_NOWHERE: Final[tuple[Any, ...]] = (
    *("", "", bytes(32), 0),
    *([], [], []),
    *(1, 1, b"", b"", b"", 0, None, [], 0),
    *("", "", 0, 0, 0, "", "", 0, None, 0, b""),
    *("", "", "{}", None, None, None, None, None),
)


def _audit(row: Any) -> AuditRow:
    return AuditRow(
        id=row["id"],
        at=row["at"],
        namespace=row["namespace"],
        environment=row["environment"],
        actor=row["actor"],
        action=row["action"],
        detail=msgspec.Raw(row["detail"].encode()),
    )


def _place(row: Any) -> Place:
    return Place(Namespace(row["namespace"]), Environment(row["environment"]))


def _head(row: Any) -> HeadRow:
    peaks = row["peaks"]
    return HeadRow(
        epoch=row["epoch"],
        number=row["number"],
        version=row["version"],
        root=row["root"],
        peaks=tuple(peaks[at : at + 32] for at in range(0, len(peaks), 32)),
        at_us=row["at_us"],
        configs=row["configs"],
        safe=row["safe"],
        issued_at_us=row["issued_at_us"],
        expires_at_us=row["expires_at_us"],
        signed=signed(row["payload"], row["signatures"]),
    )


def head_after(made: Draft, head: Signed) -> HeadRow:
    """The head's row once a draft is committed."""
    return HeadRow(
        epoch=made.version.epoch,
        number=made.version.number,
        version=unspell(made.id),
        root=unspell(made.version.root),
        peaks=made.peaks,
        at_us=made.at_us,
        configs=made.content.configs,
        safe=made.head.safe,
        issued_at_us=made.head_times_us[0],
        expires_at_us=made.head_times_us[1],
        signed=head,
    )


def _version(row: Any, changed: int) -> VersionRow:
    return VersionRow(
        number=row["number"],
        id=row["id"],
        epoch=row["epoch"],
        root=row["root"],
        record=signed(row["record"], row["record_signatures"]),
        head=signed(row["head"], row["head_signatures"]),
        message=None if row["message_text"] is None else row["message_text"].decode(),
        names=tuple(row["names"]),
        changed=changed,
        configs=row["configs"],
        received_at_us=row["received_at_us"],
        trace=row["trace"],
    )
