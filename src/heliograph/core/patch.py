"""JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7396): from one JSON value to the next. Pure.

The value that is patched is never changed: what an operation touches is copied once, everything else is shared with the old value. A patch is applied
as a whole or not at all. Errors name the operation by its index, and a pointer; never a value.

What an application may cost is bounded by the sizes of the two texts: a patch has at most 1,000 operations, and its ``copy`` operations copy no more
than a document may hold. Whether the result is a document at all (its size, its depth) is for the caller to check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from heliograph.core.canonical import MAX_DEPTH, MAX_DOCUMENT, Json
from heliograph.core.errors import Fault, InvalidPatch, InvalidRequest, PatchFailed, TooLarge
from heliograph.core.jsondiff import same
from heliograph.core.pointer import pointer_text, pointer_tokens

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
MAX_OPERATIONS: Final = 1_000
SHOWN_POINTER: Final = 120

_PLACE: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_WITH_VALUE: Final = ("add", "replace", "test")
_WITH_SOURCE: Final = ("move", "copy")
_EVERY: Final = (*_WITH_VALUE, "remove", *_WITH_SOURCE)

Path: TypeAlias = tuple[str, ...]
Container: TypeAlias = dict[str, Json] | list[Json]


@dataclass(frozen=True, slots=True)
class Operation:
    """``source``: the place that ``move`` and ``copy`` take from."""

    op: str
    path: Path
    value: Json = None
    source: Path = ()


def merge_patch(target: Json, patch: Json) -> Json:
    """RFC 7396. A null in the patch takes a member away, so no null can be set inside an object; lists are replaced as a whole."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


# --- reading a JSON Patch ---------------------------------------------------------------------------------------------------------


def read_operations(patch: Json) -> tuple[Operation, ...]:
    """Members that RFC 6902 does not define are ignored, as it says. Raises InvalidPatch with a fault for each bad operation, TooLarge."""
    if not isinstance(patch, list):
        raise InvalidPatch('a JSON Patch is a list of operations: [{"op": "replace", "path": "/max_items", "value": 20}]')
    if len(patch) > MAX_OPERATIONS:
        raise TooLarge(f"the patch has {len(patch):,} operations; the limit is {MAX_OPERATIONS:,}")
    operations: list[Operation] = []
    faults: list[Fault] = []
    for index, told in enumerate(patch):
        try:
            operations.append(_operation(told))
        except _Wrong as wrong:
            faults.append(Fault(f"/{index}{wrong.member}", "patch", wrong.why))
    if faults:
        raise InvalidPatch(f"{faults[0].message} (operation {faults[0].pointer.split('/')[1]})", faults[:100])
    return tuple(operations)


class _Wrong(Exception):
    def __init__(self, member: str, why: str) -> None:
        self.member = member
        self.why = why


def _operation(told: Json) -> Operation:
    if not isinstance(told, dict):
        raise _Wrong("", "an operation is an object with op and path")
    op = told.get("op")
    if not isinstance(op, str) or op not in _EVERY:
        raise _Wrong("/op", f"op is one of {', '.join(_EVERY)}")
    path = _path(told, "path")
    if op in _WITH_VALUE:
        if "value" not in told:
            raise _Wrong("", f"{op} needs a value")
        return Operation(op, path, told["value"])
    if op in _WITH_SOURCE:
        source = _path(told, "from")
        if op == "move" and len(source) < len(path) and path[: len(source)] == source:
            raise _Wrong("/from", "a value cannot be moved into itself")
        return Operation(op, path, source=source)
    if not path:
        raise _Wrong("/path", "the whole document cannot be removed by a patch; delete the config instead")
    return Operation(op, path)


def _path(told: dict[str, Json], member: str) -> Path:
    given = told.get(member)
    if not isinstance(given, str):
        raise _Wrong("", f"{told['op']} needs a {member}, which is a JSON Pointer")
    try:
        tokens = pointer_tokens(given)
    except InvalidRequest:
        raise _Wrong(f"/{member}", f"{member} is not a JSON Pointer (RFC 6901)") from None
    if len(tokens) > MAX_DEPTH:
        raise _Wrong(f"/{member}", f"no document is nested deeper than {MAX_DEPTH} levels")
    return tokens


# --- applying it ------------------------------------------------------------------------------------------------------------------


def apply(document: Json, operations: Iterable[Operation]) -> Json:
    """What the document is after all operations, one after the other. Raises PatchFailed for the first that does not fit, TooLarge."""
    working = _Working(document)
    for index, operation in enumerate(operations):
        try:
            working.do(operation)
        except _Unfit as unfit:
            raise PatchFailed(
                f"operation {index} ({operation.op}) does not fit: {unfit.why} {_shown(unfit.path)}",
                operation=index,
                pointer=pointer_text(unfit.path),
            ) from None
    return working.document


class _Unfit(Exception):
    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        self.why = why


def _shown(path: Path) -> str:
    text = pointer_text(path)
    return f'"{text}"' if len(text) <= SHOWN_POINTER else f'"{text[: SHOWN_POINTER - 1]}…"'


class _Working:
    """A document on its way. Containers that were copied for it are its own: the next operation changes them in place."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self._own: dict[int, Container] = {}  # by id; holding them keeps their ids from being given to others
        self._copied = 0

    def do(self, operation: Operation) -> None:
        match operation.op:
            case "add":
                self._add(operation.path, operation.value)
            case "replace":
                self._replace(operation.path, operation.value)
            case "remove":
                self._take(operation.path)
            case "move":
                if operation.source != operation.path:
                    self._add(operation.path, self._take(operation.source))
                else:
                    self._at(operation.path)
            case "copy":
                self._add(operation.path, self._copy(operation.source))
            case _:
                if not same(self._at(operation.path), operation.value):
                    raise _Unfit(operation.path, "another value is at")

    def _at(self, path: Path) -> Json:
        at = self.document
        for depth in range(len(path)):
            at = _get(at, path, depth)
        return at

    def _parent(self, path: Path) -> Container:
        """What the last step of a path leads out of; its own, so that it may be changed."""
        at = self._mine(self.document, path, 0)
        self.document = at
        for depth in range(len(path) - 1):
            below = self._mine(_get(at, path, depth), path, depth + 1)
            _set(at, path[depth], below)
            at = below
        return at

    def _mine(self, value: Json, path: Path, depth: int) -> Container:
        if not isinstance(value, dict | list):
            raise _Unfit(path[:depth], "neither an object nor a list is at")
        if id(value) in self._own:
            return value
        made = value.copy()
        self._own[id(made)] = made
        return made

    def _add(self, path: Path, value: Json) -> None:
        if not path:
            self.document = value
            return
        at, last = self._parent(path), path[-1]
        if isinstance(at, dict):
            at[last] = value
        elif last == "-":
            at.append(value)
        elif _PLACE.fullmatch(last) and int(last) <= len(at):
            at.insert(int(last), value)
        else:
            raise _Unfit(path, "the list has no place for")

    def _replace(self, path: Path, value: Json) -> None:
        if not path:
            self.document = value
            return
        at = self._parent(path)
        _get(at, path, len(path) - 1)
        _set(at, path[-1], value)

    def _take(self, path: Path) -> Json:
        if not path:
            return self.document
        at = self._parent(path)
        taken = _get(at, path, len(path) - 1)
        if isinstance(at, dict):
            del at[path[-1]]
        else:
            del at[int(path[-1])]
        return taken

    def _copy(self, path: Path) -> Json:
        """Shared from now on, so nothing in it may be changed in place."""
        value = self._at(path)
        self._copied += _weight(value, MAX_DOCUMENT)
        if self._copied > MAX_DOCUMENT:
            raise TooLarge(f"the patch copies more than the {MAX_DOCUMENT:,} bytes that a document may have")
        self._own.clear()
        return value


def _get(at: Json, path: Path, depth: int) -> Json:
    step = path[depth]
    if isinstance(at, dict) and step in at:
        return at[step]
    if isinstance(at, list) and _PLACE.fullmatch(step) and int(step) < len(at):
        return at[int(step)]
    raise _Unfit(path[: depth + 1], "there is nothing at")


def _set(at: Container, step: str, value: Json) -> None:
    if isinstance(at, dict):
        at[step] = value
    else:
        at[int(step)] = value


def _weight(value: Json, enough: int) -> int:
    """About how many bytes it has as text, never more; counting ends at ``enough``."""
    total, left = 0, [value]
    while left and total <= enough:
        each = left.pop()
        total += 1
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, dict):
            total += sum(map(len, each))
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)
    return total
