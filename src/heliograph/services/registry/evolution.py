"""What a change would break: current values here and in the namespace's other environments, and connected instances by the types they declare.

An environment's policy says what follows. ``off``: nothing is looked at. ``warn`` (the default): the version is committed and the answer says what
breaks. ``refuse``: nothing is committed while somebody would break; looked at once more on the very head that is built upon.

Looking is bounded in number and in time, and never in the way of a publish that breaks nobody: what could not be looked at is said as
``unchecked``, and does not refuse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, cast

import msgspec
import structlog

from heliograph.core.canonical import parse
from heliograph.core.digest import raw_digest, unspell
from heliograph.core.errors import (
    Corrupt,
    Fault,
    HeliographError,
    Incompatible,
    InvalidSchema,
    NotFound,
    SchemaViolation,
    Unavailable,
)
from heliograph.core.names import Environment
from heliograph.runtime.clock import now_us
from heliograph.services.registry.answers import BrokenInstances, BrokenValue, Compatibility, Policy, ProblemFault
from heliograph.services.registry.cache import ByteCache
from heliograph.services.registry.changes import Change, Text
from heliograph.services.registry.commit import Committed, Unchanged
from heliograph.services.registry.declarations import MAX_CONFIGS, Declarations, Declared
from heliograph.services.registry.heads import Place
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.store import Store
from heliograph.services.registry.validation import Validation

log = structlog.get_logger()

Which = Literal["off", "warn", "refuse"]
DEFAULT: Final[Which] = "warn"
POLICY_US: Final = 1_000_000
"""A policy that another process changed counts here within so long."""
LOOK_S: Final = 3.0
"""More than one validation may take: a declared schema that is too costly is found to be so, once."""
MAX_ENVIRONMENTS: Final = 50
MAX_SCHEMAS: Final = 20
MAX_FAULTS: Final = 5


@dataclass(slots=True)
class Findings:
    values: list[BrokenValue] = field(default_factory=list)
    downstream: list[BrokenValue] = field(default_factory=list)
    instances: list[BrokenInstances] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def report(self, policy: Which) -> Compatibility:
        return Compatibility(
            policy=policy,
            compatible=not (self.values or self.downstream or self.instances),
            values=self.values,
            downstream=self.downstream,
            instances=self.instances,
            unchecked=self.unchecked,
        )


class Evolution:
    def __init__(self, store: Store, objects: Objects, validation: Validation, declarations: Declarations) -> None:
        self._store = store
        self._objects = objects
        self._validation = validation
        self._declarations = declarations
        self._policies: ByteCache[Place, tuple[Which, int]] = ByteCache(4 << 20)
        self._unusable: ByteCache[bytes, bool] = ByteCache(
            1 << 20
        )  # declared schemas: clients are not trusted to declare good ones

    async def close(self) -> None:
        """Ends what is being asked."""
        await self._declarations.close()

    # --- policies -----------------------------------------------------------------------------------------------------------------

    async def policy(self, place: Place) -> Policy:
        """Raises NotFound."""
        await self._store.head(place)
        return Policy(await self._store.policy(place) or DEFAULT)

    async def set_policy(self, place: Place, policy: Policy, by: str) -> None:
        """Audited in its transaction. Raises NotFound."""
        await self._store.head(place)
        async with self._store.transaction() as connection:
            before = await self._store.set_policy(connection, place, policy.compatibility, by)
            detail = {"compatibility": policy.compatibility, "before": before or DEFAULT}
            await self._store.note(place.namespace, place.environment, by, "policy.change", detail, within=connection)
        self._remember(place, policy.compatibility)

    def _remember(self, place: Place, which: Which) -> None:
        self._policies.put(place, (which, now_us() + POLICY_US), 256)

    async def _policy(self, place: Place) -> Which:
        which, until_us = self._policies.get(place) or (DEFAULT, 0)
        if until_us < now_us():
            which = await self._store.policy(place) or DEFAULT
            self._remember(place, which)
        return which

    # --- around a publish ---------------------------------------------------------------------------------------------------------

    async def guard(self, place: Place, changes: Sequence[Change]) -> None:
        """Before the commit, on top of the head. Raises Incompatible where the policy refuses."""
        policy = await self._policy(place)
        if policy == "warn" and any(change.document for change in changes):
            self._declarations.expect(place)  # answered while the version is committed
        if policy != "refuse":
            return
        report = await self._report("refuse", place, changes)
        if not report.compatible:
            raise Incompatible(_sentence(place, report), more={"compatibility": msgspec.to_builtins(report)})

    async def told(self, place: Place, changes: Sequence[Change], done: Committed | Unchanged) -> Committed | Unchanged:
        """After the commit: the same, and where the policy warns, with what breaks, if something does. Never raises: the version stands."""
        try:
            if isinstance(done, Unchanged) or await self._policy(place) != "warn":
                return done
            report = await self._report("warn", place, changes)
        except HeliographError as error:
            log.warning("compatibility_unknown", error=error.code)
            return done
        return done if report.compatible else replace(done, compatibility=report)

    async def rehearse(self, place: Place, changes: Sequence[Change]) -> Compatibility:
        """The whole report for changes that are not published. Raises NotFound, InvalidSchema, Unavailable."""
        findings = Findings()
        root = (await self._store.head(place)).root
        for change in changes:
            await self._value(findings, place, root, change)
        await self._look(findings, place, changes)
        return findings.report(await self._policy(place))

    async def _report(self, policy: Which, place: Place, changes: Sequence[Change]) -> Compatibility:
        findings = Findings()
        try:
            await self._look(findings, place, changes, lately=policy == "warn")
        except (Unavailable, Corrupt, NotFound) as error:
            findings.unchecked.append(f"not everything could be looked at: {error.title.lower()}")
        return findings.report(policy)

    async def _look(self, findings: Findings, place: Place, changes: Sequence[Change], *, lately: bool = False) -> None:
        """``lately``: what was declared a moment ago will do."""
        try:
            async with asyncio.timeout(LOOK_S):
                await self._instances(findings, place, changes, lately=lately)
                await self._downstream(findings, place, changes)
        except TimeoutError:
            findings.unchecked.append(f"looking took longer than {LOOK_S:g} s; the rest was not looked at")

    # --- values -------------------------------------------------------------------------------------------------------------------

    async def _value(self, findings: Findings, place: Place, root: bytes, change: Change) -> None:
        """What one config of this environment would hold, against the schema that it would have."""
        leaf = await self._objects.leaf_of(place.namespace, root, change.name)
        if leaf is None and (change.document is None or change.delete):
            raise NotFound(f"no config {change.name}")
        if change.delete or change.schema is False:
            return
        schema = await self._schema(place, change, leaf.schema if leaf else None)
        if schema is None:
            return
        document = change.document.text if change.document else await self._text(place, leaf.document if leaf else "")
        if document is None:
            findings.unchecked.append(f"{place}/{change.name}: its document was purged")
        elif faults := await self._faults(*schema, document):
            findings.values.append(BrokenValue(place.environment, change.name, faults))

    async def _schema(self, place: Place, change: Change, current: str | None) -> tuple[bytes, bytes] | None:
        if isinstance(change.schema, Text):
            await self._validation.schema(change.schema.digest, change.schema.text)
            return change.schema.digest, change.schema.text
        text = await self._text(place, current) if current else None
        return (unspell(current), text) if current and text is not None else None

    async def _downstream(self, findings: Findings, place: Place, changes: Sequence[Change]) -> None:
        """Current values of the same config elsewhere in the namespace, against the new schema: what a promotion would meet."""
        evolving = [change for change in changes if isinstance(change.schema, Text)]
        if not evolving:
            return
        rows = await self._store.environments(place.namespace, "", MAX_ENVIRONMENTS + 2)
        others = [Place(place.namespace, Environment(row.name)) for row in rows if row.name != place.environment]
        if len(others) > MAX_ENVIRONMENTS:
            findings.unchecked.append(f"only {MAX_ENVIRONMENTS} environments of {place.namespace} were looked at")
        if len(evolving) > MAX_SCHEMAS:
            findings.unchecked.append(f"only {MAX_SCHEMAS} of {len(evolving)} schemas were compared with other environments")
        for other in others[:MAX_ENVIRONMENTS]:
            root = (await self._store.head(other)).root
            for change in evolving[:MAX_SCHEMAS]:
                await self._elsewhere(findings, other, root, change)

    async def _elsewhere(self, findings: Findings, other: Place, root: bytes, change: Change) -> None:
        leaf = await self._objects.leaf_of(other.namespace, root, change.name)
        document = await self._text(other, leaf.document) if leaf else None
        if document is None:
            return
        schema = cast("Text", change.schema)
        if faults := await self._faults(schema.digest, schema.text, document):
            findings.downstream.append(BrokenValue(other.environment, change.name, faults))

    async def _text(self, place: Place, digest: str | None) -> bytes | None:
        """None when it was purged."""
        found = await self._objects.texts(place.namespace, [unspell(digest)], keep=False) if digest else {}
        return next(iter(found.values()), None)

    # --- instances ----------------------------------------------------------------------------------------------------------------

    async def _instances(self, findings: Findings, place: Place, changes: Sequence[Change], *, lately: bool) -> None:
        """New documents against the types that connected applications bind them to."""
        changed = {str(change.name): change.document for change in changes if change.document}
        if not changed:
            return
        try:
            wanted = await self._declarations.concerned(place, changed) if lately else list(changed)
            if not wanted:
                return
            if len(wanted) > MAX_CONFIGS:
                findings.unchecked.append(
                    f"only {MAX_CONFIGS} of {len(wanted)} configs were compared with what instances declare"
                )
            declared, complete = await self._declarations.of(place, wanted[:MAX_CONFIGS])
        except Unavailable as error:
            findings.unchecked.append(error.detail)
            return
        if not complete:
            findings.unchecked.append("instances declare more schemas than were compared")
        for each in declared:
            await self._instance(findings, each, changed[each.config])

    async def _instance(self, findings: Findings, declared: Declared, document: Text) -> None:
        text = declared.schema.encode()
        digest = raw_digest("schema", text)
        try:
            if self._unusable.get(digest):
                raise InvalidSchema
            faults = await self._faults(digest, text, document.text, document.value)
        except (InvalidSchema, Unavailable) as error:
            if isinstance(error, InvalidSchema):
                self._unusable.put(digest, True, 128)
            findings.unchecked.append(f"{declared.config}: what {declared.instances} instances declare cannot be compared with")
            return
        if faults:
            apps = [each for each in declared.apps if each]
            findings.instances.append(BrokenInstances(declared.config, declared.instances, declared.sample, apps, faults))

    async def _faults(self, digest: bytes, schema: bytes, document: bytes, value: Any = ...) -> list[ProblemFault]:
        """The first faults; none when it fits. Raises InvalidSchema, Overloaded."""
        try:
            await self._validation.document(digest, schema, document, parse(document) if value is ... else value)
        except SchemaViolation as error:
            return [_told(fault) for fault in error.faults[:MAX_FAULTS]]
        return []


def _told(fault: Fault) -> ProblemFault:
    return ProblemFault(fault.pointer, fault.rule, fault.message, fault.schema_pointer)


def _sentence(place: Place, report: Compatibility) -> str:
    instances = sum(each.instances for each in report.instances)
    told = [
        f"{instances} connected instance{'s' if instances > 1 else ''}" if instances else "",
        f"values in {', '.join(sorted({each.environment for each in report.downstream}))}" if report.downstream else "",
    ]
    return f"{place} refuses what would break {' and '.join(filter(None, told))}; nothing was changed"
