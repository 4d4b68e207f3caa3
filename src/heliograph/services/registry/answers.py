"""What the REST surface says, as types: the OpenAPI document is made from them.

A statement (version, head, trust root) is a standard DSSE envelope with its payload in base64. Lists are ``{"items": […], "next": cursor | null}``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from heliograph.core import dsse
from heliograph.core.digest import Digest, spell
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Head, Signed, Source, Version, VersionKind
from heliograph.services.registry.draft import Draft, Rebased
from heliograph.services.registry.heads import HeadRow, VersionRow

COPIES = 1
DURABILITY: Literal["local"] = "local"
"""One server keeps one copy; with standbys the answer will say how many were reached."""
MAX_NAMES = 5_000
Left = msgspec.UnsetType


class DsseSignature(msgspec.Struct, frozen=True):
    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """A DSSE envelope: ``payload`` and ``sig`` in base64, signed over DSSE's pre-authentication encoding."""

    payload_type: str
    payload: str
    signatures: tuple[DsseSignature, ...]


class Waited(msgspec.Struct, frozen=True, kw_only=True):
    """``reached``: the wanted share of instances has applied it. ``problem``: why that is not known; the version stands all the same."""

    share: float
    seconds: float
    reached: bool
    problem: str | None = None


class ProblemFault(msgspec.Struct, frozen=True):
    pointer: str
    rule: str
    message: str
    schema_pointer: str


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an environment does when a change would break somebody: nothing, say so, or refuse it."""

    compatibility: Literal["off", "warn", "refuse"]


class BrokenValue(msgspec.Struct, frozen=True):
    """A config whose value does not fit the schema. Faults never hold a value."""

    environment: str
    config: str
    faults: list[ProblemFault]


class BrokenInstances(msgspec.Struct, frozen=True):
    """Connected instances that declare a type which the new document does not fit; ``sample`` and ``apps`` name some of them."""

    config: str
    instances: int
    sample: list[str]
    apps: list[str]
    faults: list[ProblemFault]


class Compatibility(msgspec.Struct, frozen=True, kw_only=True):
    """What a change breaks: ``values`` of its own environment, values ``downstream`` (the namespace's other environments), connected ``instances``.

    ``unchecked``: what could not be looked at, and why.
    """

    policy: Literal["off", "warn", "refuse"]
    compatible: bool
    values: list[BrokenValue]
    downstream: list[BrokenValue]
    instances: list[BrokenInstances]
    unchecked: list[str]


class VersionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A version. ``version`` is its id. ``safe``: its durability is certain; ``copies``: servers that have it.

    ``changes``: the configs it changed, as far as they are listed here, ``change_count`` how many. ``unchanged``: the request asked for what is there
    already, so nothing was committed. ``rebased``: the head was not the version in If-Match any more, but what came after it does not overlap.
    ``labels``: those that name it now. ``compatibility``: only when it breaks somebody and the environment's
    policy is to warn.
    """

    namespace: str
    environment: str
    number: int
    epoch: int
    version: str
    parent: str | None
    root: str
    kind: VersionKind
    author: str
    at: str
    message: str | None
    source: Source | None
    safe: bool
    copies: int
    durability: Literal["local"]
    configs: int
    change_count: int
    changes: tuple[str, ...] | Left = msgspec.UNSET
    unchanged: bool | Left = msgspec.UNSET
    rebased: Rebased | Left = msgspec.UNSET
    envelope: Envelope | Left = msgspec.UNSET
    head: Envelope | Left = msgspec.UNSET
    labels: list[str] | Left = msgspec.UNSET
    wait: Waited | Left = msgspec.UNSET
    propagation: dict[str, Any] | Left = msgspec.UNSET
    compatibility: Compatibility | Left = msgspec.UNSET


class VersionList(msgspec.Struct, frozen=True):
    items: list[VersionAnswer]
    next: str | None


class HeadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment is at. ``envelope`` is the version's."""

    namespace: str
    environment: str
    number: int
    epoch: int
    version: str
    root: str
    safe: int
    issued_at: str
    expires_at: str
    configs: int
    head: Envelope
    envelope: Envelope


class Deleted(msgspec.Struct, frozen=True):
    """It can be restored until ``erase_at``, when it is erased for good."""

    by: str
    at: datetime
    erase_at: datetime


class NamespaceAnswer(msgspec.Struct, frozen=True):
    name: str
    created_at: datetime | None = None
    deleted: Deleted | Left = msgspec.UNSET


class NamespaceList(msgspec.Struct, frozen=True):
    items: list[NamespaceAnswer]
    next: str | None


class EnvironmentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    name: str
    number: int
    epoch: int
    version: str
    configs: int
    at: str
    deleted: Deleted | Left = msgspec.UNSET


class EnvironmentList(msgspec.Struct, frozen=True):
    items: list[EnvironmentAnswer]
    next: str | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A config, or a folder (its name ends in ``/``, its digest stands for all in it)."""

    name: str
    kind: Literal["config", "folder"]
    digest: str
    document: str | None = None
    schema: str | None = None


class EntryList(msgspec.Struct, frozen=True):
    """``version``, ``number``: what the list was read at. Later pages may be of a later version."""

    items: list[Entry]
    next: str | None
    number: int
    version: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One config between two versions. ``operations`` (RFC 6902) turn the old document into the new one."""

    name: str
    change: Literal["added", "removed", "changed"]
    operations: list[dict[str, Any]]
    schema_changed: bool


class DiffEnd(msgspec.Struct, frozen=True):
    number: int
    version: str


class DiffAnswer(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: DiffEnd
    to: DiffEnd
    items: list[Difference]
    next: str | None


class PromotionPoint(msgspec.Struct, frozen=True):
    """A version of an environment, by number and id."""

    environment: str
    number: int
    version: str | Left = msgspec.UNSET


SideName = Literal["base", "ours", "theirs"]


class ConflictAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A place that both sides changed differently. ``pointer``: into the config's document; ``schema`` is its schema, empty its whole document.

    ``ours`` is the target's value, ``theirs`` the source's, ``base`` the one at ``common``, the last common point; sides that have nothing there
    are ``absent``. ``truncated``: the values are left out, the answer would be too large. So is a base in an environment that the token may not read.
    """

    config: str
    pointer: str
    absent: list[SideName] = []
    base: Any = msgspec.UNSET
    ours: Any = msgspec.UNSET
    theirs: Any = msgspec.UNSET
    common: PromotionPoint | None = None
    truncated: bool | Left = msgspec.UNSET


class PromotionItem(msgspec.Struct, frozen=True, kw_only=True):
    """What a promotion does to one config: RFC 6902 operations on the target's document, with the target's value wherever there is a conflict."""

    name: str
    change: Literal["added", "removed", "changed"]
    operations: list[dict[str, Any]]
    schema_changed: bool
    common: PromotionPoint | None
    conflicts: list[ConflictAnswer]
    truncated: bool | Left = msgspec.UNSET


class PromotionAnswer(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """A preview. ``items``: the first 500 configs that it changes, or would but for a conflict; ``change_count``: how many there are."""

    from_: PromotionPoint
    to: PromotionPoint
    items: list[PromotionItem]
    change_count: int
    conflict_count: int


class ConfigDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One config of a stale request: RFC 6902 from the base to the head, from the base to what was sent, and where the two conflict."""

    name: str
    since: list[dict[str, Any]]
    yours: list[dict[str, Any]]
    conflicts: list[str]
    truncated: bool | Left = msgspec.UNSET


class TokenScope(msgspec.Struct, frozen=True):
    namespace: str = "*"
    environment: str = "*"


class TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``token`` is told once, when it is made. ``last_used_at``: to the hour."""

    id: str
    kind: Literal["admin", "author", "client", "service", "edge"]
    name: str
    scopes: tuple[TokenScope, ...]
    created_by: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    token: str | Left = msgspec.UNSET


class TokenList(msgspec.Struct, frozen=True):
    items: list[TokenAnswer]
    next: str | None


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter. ``attempts``: how often it was tried in all; ``replays``: how often an operator had it told again.

    ``state``: waiting; replaying (its consumer has it in hand); replayed (told again, and not refused since); discarded (``note`` says why).
    ``instances``: of a rejected version, how many refuse it for this reason; ``sample`` names some of them. ``event`` only when one is read: what
    could not be handled, without its documents unless they were asked for.
    """

    id: int
    stream: str
    consumer: str
    shard: int | None
    position: int | None
    key: str
    namespace: str | None
    environment: str | None
    number: int | None
    version: str | None
    reason: str
    attempts: int
    replays: int
    instances: int
    sample: list[str]
    trace: str | None
    created_at: datetime
    failed_at: datetime
    state: Literal["waiting", "replaying", "replayed", "discarded"]
    settled_at: datetime | None
    settled_by: str | None
    note: str | None
    event: dict[str, Any] | Left = msgspec.UNSET


class LetterList(msgspec.Struct, frozen=True):
    items: list[Letter]
    next: str | None


class LetterFailure(msgspec.Struct, frozen=True):
    """A letter that could not be told again now; it waits on."""

    id: int
    code: str
    detail: str


class LettersSettled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of many letters. ``matched``: how many waiting letters the request meant, from ``after`` on; ``skipped``: no longer waiting.

    ``next``: give it as ``after`` to go on; null when that was all.
    """

    dry_run: bool
    matched: int
    done: list[int]
    skipped: list[int]
    failed: list[LetterFailure]
    next: int | None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    at: datetime
    namespace: str | None
    environment: str | None
    actor: str
    action: str
    detail: dict[str, Any]


class AuditList(msgspec.Struct, frozen=True):
    items: list[AuditEntry]
    next: str | None


class Endpoints(msgspec.Struct, frozen=True):
    """Where a client finds what: this API, the stream of changes, bundles over HTTP, the ledger."""

    api: str
    stream: str
    bundles: str
    ledger: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. ``code`` is stable. ``head``, ``number``: what the environment is at now.

    ``changed``, ``yours``, ``overlap``: the three-way summary of a stale base: configs changed since, configs of this request, and those in both;
    ``differences``: of the first 100 of these, what each side did. ``operation``, ``pointer``: where a patch does not fit. ``conflicts``: of a
    promotion, the first 1,000 of ``conflict_count``.
    ``held_by``: environments whose heads name what was to be purged, with configs.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    faults: list[ProblemFault] | Left = msgspec.UNSET
    head: str | Left = msgspec.UNSET
    number: int | Left = msgspec.UNSET
    changed: list[str] | Left = msgspec.UNSET
    yours: list[str] | Left = msgspec.UNSET
    overlap: list[str] | Left = msgspec.UNSET
    base_number: int | Left = msgspec.UNSET
    differences: list[ConfigDifference] | Left = msgspec.UNSET
    operation: int | Left = msgspec.UNSET
    pointer: str | Left = msgspec.UNSET
    conflicts: list[ConflictAnswer] | Left = msgspec.UNSET
    conflict_count: int | Left = msgspec.UNSET
    source: Source | Left = msgspec.UNSET
    held_by: dict[str, list[str]] | Left = msgspec.UNSET
    compatibility: Compatibility | Left = msgspec.UNSET
    incident: str | Left = msgspec.UNSET


# --- making them ------------------------------------------------------------------------------------------------------------------


def envelope(statement: Signed, payload_type: str) -> Envelope:
    return msgspec.convert(dsse.to_envelope(statement, payload_type), Envelope)


def of_draft(made: Draft, record: Signed, head: Signed) -> bytes:
    """The answer to a publish, as it is stored for replays: made before the commit, true after it."""
    return msgspec.json.encode(
        _answer(
            made.version,
            made.id,
            record,
            safe=made.head.safe,
            configs=made.content.configs,
            message=made.message.body.decode() if made.message else None,
            names=tuple(sorted(made.content.leaves)),
            changed=len(made.content.leaves),
            head=head,
            rebased=made.content.rebased,
        )
    )


def of_row(
    row: VersionRow,
    current: HeadRow | None,
    *,
    with_envelope: bool = True,
    unchanged: bool = False,
    labels: list[str] | None = None,
) -> VersionAnswer:
    """A committed version. ``current``: the head now; given with its own version, the answer carries it."""
    told = _answer(
        Version.read(row.record.payload),
        spell(row.id),
        row.record if with_envelope else None,
        safe=current.safe if current else 0,
        configs=row.configs,
        message=row.message,
        names=row.names,
        changed=row.changed,
        head=current.signed if with_envelope and current and current.version == row.id else None,
        unchanged=unchanged,
    )
    return msgspec.structs.replace(told, labels=labels) if labels else told


def _answer(
    version: Version,
    version_id: Digest,
    record: Signed | None,
    *,
    safe: int,
    configs: int,
    message: str | None,
    names: tuple[str, ...],
    changed: int,
    head: Signed | None,
    unchanged: bool = False,
    rebased: Rebased | None = None,
) -> VersionAnswer:
    return VersionAnswer(
        namespace=version.namespace,
        environment=version.environment,
        number=version.number,
        epoch=version.epoch,
        version=version_id,
        parent=version.parent,
        root=version.root,
        kind=version.kind,  # type: ignore[arg-type]  # an unknown kind of a newer release is passed on
        author=version.author,
        at=version.at,
        message=message,
        source=version.source,
        safe=version.number <= safe,
        copies=COPIES,
        durability=DURABILITY,
        configs=configs,
        change_count=changed,
        changes=names[:MAX_NAMES],
        unchanged=True if unchanged else msgspec.UNSET,
        rebased=rebased or msgspec.UNSET,
        envelope=envelope(record, VERSION_TYPE) if record else msgspec.UNSET,
        head=envelope(head, HEAD_TYPE) if head else msgspec.UNSET,
    )


def of_head(current: HeadRow, record: Signed) -> HeadAnswer:
    said = Head.read(current.signed.payload)
    return HeadAnswer(
        namespace=said.namespace,
        environment=said.environment,
        number=said.number,
        epoch=said.epoch,
        version=said.version,
        root=said.root,
        safe=said.safe,
        issued_at=said.issued_at,
        expires_at=said.expires_at,
        configs=current.configs,
        head=envelope(current.signed, HEAD_TYPE),
        envelope=envelope(record, VERSION_TYPE),
    )
