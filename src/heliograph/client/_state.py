"""What an application reads of one version, and what it is told when the next one comes. Immutable; swapped by one reference.

Read from any thread, while the client's own thread makes the next one: documents that were parsed meanwhile never disturb it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from heliograph.client._values import ABSENT, read, resolve, same
from heliograph.core.records import Cursor


class State:
    """The configs of one version in one view. Documents are parsed when somebody first reads them."""

    __slots__ = ("_texts", "_values", "bound", "cursor")

    def __init__(self, cursor: Cursor, texts: Mapping[str, bytes], *, values: dict[str, Any] | None = None) -> None:
        self.cursor = cursor
        self.bound: dict[object, Any] = {}
        self._texts = texts
        self._values = {} if values is None else values

    def after(self, cursor: Cursor, texts: Mapping[str, bytes], changed: frozenset[str]) -> State:
        """The next version; values that did not change stay the very same objects."""
        values = self._values.copy()  # in one step: readers in other threads go on parsing into it
        kept = {name: value for name, value in values.items() if name not in changed}
        return State(cursor, texts, values=kept)

    def text(self, name: str) -> bytes | None:
        return self._texts.get(name)

    def value(self, name: str) -> Any:
        """Deeply immutable, or ABSENT."""
        found = self._values.get(name)
        if found is None and name not in self._values:
            text = self._texts.get(name)
            return self._values.setdefault(name, ABSENT if text is None else read(text))
        return found

    def names(self) -> frozenset[str]:
        return frozenset(self._texts)


@dataclass(frozen=True, slots=True)
class Update:
    """A version that the client now runs on (or, for a validator, is asked to).

    Attributes:
        previous: the version before, None at first.
        cursor: the version now: ``cursor.epoch``, ``cursor.number``, ``cursor.version``.
        changed: names in the view whose document or schema changed, in order; empty when the version changed nothing there.
        conflated: how many earlier updates are merged into this one because its reader was slow.
        restarted: the history was restarted by a signed recovery; ``cursor.number`` may be lower than before, its epoch is higher.
    """

    namespace: str
    environment: str
    previous: Cursor | None
    cursor: Cursor
    changed: tuple[str, ...]
    conflated: int = 0
    restarted: bool = False
    _before: State | None = field(default=None, repr=False)
    _after: State | None = field(default=None, repr=False)

    def value(self, name: str) -> Any:
        """The document now, deeply immutable; ABSENT when there is none."""
        return ABSENT if self._after is None else self._after.value(name)

    def before(self, name: str) -> Any:
        """The document in the previous version; ABSENT when there was none."""
        return ABSENT if self._before is None else self._before.value(name)

    def merged(self, later: Self) -> Update:
        return Update(
            namespace=self.namespace,
            environment=self.environment,
            previous=self.previous,
            cursor=later.cursor,
            changed=tuple(sorted({*self.changed, *later.changed})),
            conflated=self.conflated + later.conflated + 1,
            restarted=self.restarted or later.restarted,
            _before=self._before,
            _after=later._after,
        )

    def change(self, name: str, tokens: tuple[str, ...] = (), pointer: str = "") -> Change | None:
        """What it means for one place in one config; None when nothing changed there."""
        if name not in self.changed:
            return None
        before, value = resolve(self.before(name), tokens), resolve(self.value(name), tokens)
        return None if same(before, value) else self._changed(name, pointer, before, value)

    def bound_change(self, name: str, key: object) -> Change | None:
        """The same for an object that a config is bound to."""
        if name not in self.changed or self._after is None:
            return None
        before = ABSENT if self._before is None else self._before.bound.get(key, ABSENT)
        return self._changed(name, "", before, self._after.bound.get(key, ABSENT))

    def _changed(self, name: str, pointer: str, before: Any, value: Any) -> Change:
        return Change(
            name=name,
            pointer=pointer,
            before=before,
            value=value,
            previous=self.previous,
            cursor=self.cursor,
            conflated=self.conflated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One place in one config has another value.

    ``before`` and ``value`` are deeply immutable (or objects of the bound type), ABSENT where there is nothing, and never in the repr.
    """

    name: str
    pointer: str
    before: Any = field(repr=False)
    value: Any = field(repr=False)
    previous: Cursor | None
    cursor: Cursor
    conflated: int = 0
