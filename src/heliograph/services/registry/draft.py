"""A version in the making: from new contents to the exact bytes that are signed, stored and told. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import msgspec

from heliograph.core import history, trie
from heliograph.core.digest import Digest, Kind, raw_digest, spell, unspell
from heliograph.core.errors import TooLarge
from heliograph.core.events import MAX_EVENT, MAX_EVENT_TEXT, ChangedConfig, VersionEvent
from heliograph.core.frames import Answer
from heliograph.core.records import Head, Leaf, Signed, Source, Version, VersionKind
from heliograph.core.times import to_text
from heliograph.core.trie import Node
from heliograph.services.registry.heads import HeadRow, Place

MAX_CONFIGS: Final = 100_000
"""In one environment."""
MANY: Final = 200
"""Changes from which on putting a version together is for a thread: above, it takes longer than a request may make others wait."""
_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Stored:
    """An object to store."""

    kind: Kind
    digest: bytes
    body: bytes


def stored(kind: Kind, body: bytes) -> Stored:
    return Stored(kind, raw_digest(kind, body), body)


class Lineage(NamedTuple):
    """Which version this one's content came from, and of which configs. ``selectors`` None: of all."""

    kind: Literal["branch", "promote", "rollback"]
    environment: str
    number: int
    selectors: list[str] | None = None


class Rebased(msgspec.Struct, frozen=True):
    """The version that the author had looked at; nothing that came after it overlaps with what the author did."""

    number: int
    version: str


@dataclass(frozen=True, slots=True)
class Content:
    """What the next version holds.

    ``leaves``: changed config -> its new leaf, None where it leaves; ``texts``: documents among them that are at hand, by digest.
    ``objects``: those that may be new. ``configs``: how many there are then. A ``branch`` lists no leaves: it has all of its source's.
    """

    kind: VersionKind
    root: Node
    leaves: dict[str, Leaf | None]
    texts: dict[str, bytes]
    objects: tuple[Stored, ...]
    configs: int
    source: Source | None = None
    lineage: Lineage | None = None
    rebased: Rebased | None = None


EMPTY: Final = Content("create", trie.EMPTY, {}, {}, (stored("node", trie.EMPTY.encode()),), 0)


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that follows ``base`` (None: the first), its head, and their exact texts, not signed yet."""

    place: Place
    base: HeadRow | None
    content: Content
    message: Stored | None
    version: Version
    text: bytes
    id: Digest
    head: Head
    head_text: bytes
    head_times_us: tuple[int, int]
    at_us: int
    peaks: tuple[bytes, ...]


def draft(
    place: Place,
    base: HeadRow | None,
    content: Content,
    *,
    author: str,
    message: str | None,
    now_us: int,
    life_us: int,
    first_epoch: int = 1,
) -> Draft:
    """Times never go back: ``at`` is not before the parent's, ``issued_at`` is after the last head's. Raises TooLarge.

    ``first_epoch``: of a version without a parent.
    """
    if content.configs > MAX_CONFIGS:
        raise TooLarge(f"{place} would have {content.configs:,} configs; the limit is {MAX_CONFIGS:,}")
    note = stored("message", message.encode()) if message else None
    at_us = max(now_us, base.at_us if base else 0)
    version = Version(
        namespace=place.namespace,
        environment=place.environment,
        epoch=base.epoch if base else first_epoch,
        number=base.number + 1 if base else 1,
        parent=base.id if base else None,
        root=spell(content.root.digest),
        history=spell(history.fold(base.peaks if base else ())),
        kind=content.kind,
        author=author,
        at=to_text(at_us),
        message=spell(note.digest) if note else None,
        source=content.source,
    )
    text = version.text()
    version_id = Version.id_of(text)
    issued_us = next_issue(base, now_us)
    head = first_head(version, version_id, issued_us, issued_us + life_us)
    peaks = history.push(list(base.peaks) if base else [], version.number - 1, unspell(version_id))
    return Draft(
        place,
        base,
        content,
        note,
        version,
        text,
        version_id,
        head,
        head.text(),
        (issued_us, issued_us + life_us),
        at_us,
        tuple(peaks),
    )


def first_head(version: Version, version_id: Digest, issued_us: int, expires_us: int) -> Head:
    """The head that a version is committed with. One server keeps one copy, so what is committed is as safe as it gets."""
    return Head(
        namespace=version.namespace,
        environment=version.environment,
        epoch=version.epoch,
        number=version.number,
        version=version_id,
        root=version.root,
        safe=version.number,
        issued_at=to_text(issued_us),
        expires_at=to_text(expires_us),
    )


def next_issue(base: HeadRow | None, now_us: int) -> int:
    """When the next head is issued: now, but at least a millisecond after the last, whatever the clock says. Whole milliseconds."""
    return max(now_us // _MS * _MS, base.issued_at_us + _MS if base else 0)


def objects_of(made: Draft) -> list[Stored]:
    """What has to be there, each once, ascending by digest: two commits that store the same objects then lock them in the same order."""
    every = {each.digest: each for each in made.content.objects}
    if made.message:
        every[made.message.digest] = made.message
    return [every[key] for key in sorted(every)]


def event_body(
    made: Draft, record: Signed, head: Signed, *, received_at_us: int, trace: str | None = None, answer: Answer = "soon"
) -> bytes:
    """The version's event: with its documents while they are small, else with digests, and if even those are too many without changes."""
    event = VersionEvent(
        namespace=made.place.namespace,
        environment=made.place.environment,
        epoch=made.version.epoch,
        number=made.version.number,
        version=record,
        head=head,
        changes=changed_configs(made.content.leaves, made.content.texts, MAX_EVENT_TEXT),
        received_at_us=received_at_us,
        trace=trace,
        answer=answer,
        partial=made.content.kind == "branch",
    )
    body = msgspec.json.encode(event)
    if len(body) > MAX_EVENT:
        body = msgspec.json.encode(msgspec.structs.replace(event, changes=(), partial=True))
    return body


def changed_configs(leaves: dict[str, Leaf | None], texts: dict[str, bytes], room: int) -> tuple[ChangedConfig, ...]:
    """By name. Documents are told only if all of them fit into ``room`` bytes."""
    wanted = {leaf.document for leaf in leaves.values() if leaf}
    fits = sum(len(texts.get(each, b"")) for each in wanted) <= room
    return tuple(_changed(name, leaves[name], texts if fits else {}) for name in sorted(leaves))


def _changed(name: str, leaf: Leaf | None, texts: dict[str, bytes]) -> ChangedConfig:
    if leaf is None:
        return ChangedConfig(name=name, leaf=None)
    text = texts.get(leaf.document)
    return ChangedConfig(
        name=name, leaf=leaf.text().decode(), document_digest=leaf.document, document=None if text is None else text.decode()
    )
