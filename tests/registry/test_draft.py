"""A version in the making, without a database: numbers, times, history, limits."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from heliograph.core import history, names, trie
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.errors import TooLarge
from heliograph.core.events import MAX_EVENT, VersionEvent
from heliograph.core.records import Leaf, Signed, Version
from heliograph.core.times import to_text, to_us
from heliograph.services.registry.draft import EMPTY, MAX_CONFIGS, Content, Draft, draft, event_body, objects_of, stored
from heliograph.services.registry.heads import HeadRow, Place
from heliograph.services.registry.store import head_after

PLACE = Place(names.namespace("shop"), names.environment("production"))
NOW = to_us("2026-08-01T12:00:00.000Z")
LIFE = 600_000_000
NOTHING_SIGNED = Signed("{}", ())


def content(count: int = 1, **more: object) -> Content:
    leaves = {f"c{i}": Leaf(digest("document", b"%d" % i)) for i in range(count)}
    texts = {leaf.document: b"%d" % i for i, leaf in enumerate(leaves.values())}
    made = Content("publish", trie.EMPTY, dict(leaves), texts, (), count)
    return replace(made, **more)


def after(base: HeadRow | None, made: Content = EMPTY, *, now_us: int = NOW, message: str | None = None) -> Draft:
    return draft(PLACE, base, made, author="tok_1", message=message, now_us=now_us, life_us=LIFE)


def head_of(made: Draft) -> HeadRow:
    return head_after(made, Signed(made.head_text.decode(), ()))


def test_versions_follow_each_other() -> None:
    ids: list[bytes] = []
    base = None
    for number in range(1, 20):
        made = after(base, EMPTY if base is None else content())
        assert (made.version.number, made.version.parent) == (number, spell(ids[-1]) if ids else None)
        assert made.version.history == spell(history.History(ids).root())
        assert made.id == Version.id_of(made.text)
        ids.append(unspell(made.id))
        base = head_of(made)
        assert history.fold(base.peaks) == history.History(ids).root()


def test_times_never_go_back() -> None:
    """The clock of another machine, or of this one after a correction, may be behind."""
    first = after(None)
    assert (first.version.at, first.head.issued_at) == (to_text(NOW), to_text(NOW))
    behind = after(head_of(first), content(), now_us=NOW - 5_000_000)
    assert behind.version.at == first.version.at
    assert to_us(behind.head.issued_at) == NOW + 1_000
    assert to_us(behind.head.expires_at) == NOW + 1_000 + LIFE
    same_millisecond = after(head_of(behind), content(), now_us=NOW + 1_999)
    assert to_us(same_millisecond.head.issued_at) == NOW + 2_000


def test_objects_are_stored_in_one_order() -> None:
    objects = tuple(stored("document", b"%d" % i) for i in range(50))
    made = after(None, content(objects=objects + objects[:10]), message="why")
    digests = [each.digest for each in objects_of(made)]
    assert digests == sorted(set(digests))
    assert len(digests) == 51


def test_environment_is_bounded() -> None:
    after(None, content(configs=MAX_CONFIGS))
    with pytest.raises(TooLarge, match="100,001"):
        after(None, content(configs=MAX_CONFIGS + 1))


def test_event_grows_no_larger_than_a_broker_takes() -> None:
    small, large = (after(None, content(count)) for count in (3, 6_000))
    told = msgspec.json.decode(event_body(small, NOTHING_SIGNED, NOTHING_SIGNED, received_at_us=1), type=VersionEvent)
    assert ([each.document for each in told.changes], told.partial) == (["0", "1", "2"], False)
    body = event_body(large, NOTHING_SIGNED, NOTHING_SIGNED, received_at_us=1)
    told = msgspec.json.decode(body, type=VersionEvent)
    assert (told.changes, told.partial, len(body) < MAX_EVENT) == ((), True, True)
