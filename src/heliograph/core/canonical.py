"""Strict I-JSON in (RFC 7493), canonical text out (RFC 8785).

Documents are kept, shipped and hashed as their canonical text; nothing else in the system re-encodes them. What `parse` accepts, every JSON
reader in every language reads alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import rfc8785

from heliograph.core.errors import Fault, InvalidDocument, TooLarge

Json = str | int | float | bool | None | dict[str, "Json"] | list["Json"]

MAX_DOCUMENT = 1024 * 1024
"""Bytes of UTF-8, as sent and as canonical text."""
MAX_DEPTH = 64
MAX_INTEGER = 2**53 - 1
MAX_FAULTS = 100
_EXPONENTIAL = 1e21  # from here on RFC 8785 prints an exponent, which every reader reads back as a double

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def canonical(value: Json) -> bytes:
    """RFC 8785 text. Raises InvalidDocument for what strict I-JSON cannot say (NaN, lone surrogates, integers beyond 2^53 - 1)."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidDocument("the value has no canonical text: " + type(error).__name__) from None


def canonical_text(data: bytes | str) -> bytes:
    """The canonical text of strict I-JSON text."""
    text = canonical(parse(data))
    if len(text) > MAX_DOCUMENT:
        raise TooLarge(f"the document has {len(text):,} bytes as canonical text; the limit is {MAX_DOCUMENT:,}")
    return text


def parse(data: bytes | str, *, limit: int = MAX_DOCUMENT) -> Json:
    """Reads strict I-JSON. Raises TooLarge, or InvalidDocument with a fault for each thing wrong (syntax errors stop at the first)."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > limit:
        raise TooLarge(f"the document has {len(raw):,} bytes; the limit is {limit:,}")
    text = _decode(raw)
    _check_depth(raw)
    doubts = _Doubts()
    value = doubts.load(text)
    if doubts.any:
        _refuse(*doubts.faults(value))
    if _SURROGATE.search(raw):
        _check_surrogates(value)
    return value


def _refuse(*faults: Fault) -> NoReturn:
    first = faults[0]
    where = f" at {first.pointer}" if first.pointer else ""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise InvalidDocument(f"{first.message}{where}{more}", faults[:MAX_FAULTS])


def _decode(raw: bytes) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        _refuse(Fault("", "encoding", "a byte order mark is not allowed; send plain UTF-8"))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(Fault("", "encoding", f"not valid UTF-8 at byte {error.start}"))


def _check_depth(raw: bytes) -> None:
    """Before the parser recurses. Counts brackets outside strings; cheap when there are few."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = deepest = 0
    for byte in _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        _refuse(Fault("", "depth", f"nested {deepest:,} levels deep; the limit is {MAX_DEPTH}"))


def _check_surrogates(value: Json) -> None:
    faults = []
    for pointer, each in _strings(value, ""):
        try:
            each.encode()
        except UnicodeEncodeError:
            faults.append(Fault(pointer.encode("utf-8", "replace").decode(), "unicode", "a lone surrogate is not a character"))
    if faults:
        _refuse(*faults)


def _strings(value: Json, pointer: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield pointer, value
    for key, pointer_, each in _children(value, pointer):
        if key is not None:
            yield pointer, key
        yield from _strings(each, pointer_)


def _children(value: Json, pointer: str) -> Iterator[tuple[str | None, str, Json]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", each
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield None, f"{pointer}/{index}", each


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Stands in the parsed value for what is not I-JSON, so that a walk can say where it is."""

    rule: str
    message: str


class _Doubts:
    """One reading of one text, with the hooks that notice what the grammar of JSON allows and I-JSON does not."""

    def __init__(self) -> None:
        self.any = False
        self._repeated: dict[int, tuple[dict[str, Json], list[str]]] = {}

    def load(self, text: str) -> Json:
        try:
            value: Json = json.loads(
                text,
                object_pairs_hook=self._object,
                parse_int=self._integer,
                parse_float=self._double,
                parse_constant=self._constant,
            )
        except json.JSONDecodeError as error:
            _refuse(Fault("", "syntax", f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"))
        except RecursionError:
            _refuse(Fault("", "depth", f"nested too deep; the limit is {MAX_DEPTH}"))
        return value

    def faults(self, value: Json, pointer: str = "") -> list[Fault]:
        if isinstance(value, _Doubt):
            return [Fault(pointer, value.rule, value.message)]
        found = []
        if id(value) in self._repeated:
            found += [Fault(pointer, "duplicate-key", f"the key {key!r} stands twice") for key in self._repeated[id(value)][1]]
        for _, below, each in _children(value, pointer):
            found += self.faults(each, below)
        return found

    def _doubt(self, rule: str, message: str) -> Json:
        self.any = True
        return _Doubt(rule, message)  # type: ignore[return-value]  # never leaves this module

    def _object(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        value = dict(pairs)
        if len(value) != len(pairs):
            self.any = True
            seen: set[str] = set()
            repeated = sorted({key for key, _ in pairs if key in seen or seen.add(key)})  # type: ignore[func-returns-value]
            self._repeated[id(value)] = (value, repeated)
        return value

    def _integer(self, digits: str) -> Json:
        if len(digits) > 17 or abs(number := int(digits)) > MAX_INTEGER:
            return self._doubt("number", "an integer beyond 2^53 - 1 is not the same in every language; send it as a string")
        return number

    def _double(self, digits: str) -> Json:
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            return self._doubt("number", "a number too large for a double")
        if MAX_INTEGER < abs(number) < _EXPONENTIAL:
            return self._doubt("number", "a number that prints as an integer beyond 2^53 - 1; send it as a string")
        return number

    def _constant(self, name: str) -> Json:
        return self._doubt("number", f"{name} is not a JSON number")
