"""Strict I-JSON in (RFC 7493), canonical text out (RFC 8785).

Documents are kept, shipped and hashed as their canonical text; nothing else in the system re-encodes them. What `parse` accepts, every JSON
reader in every language reads alike, and reading its canonical text gives the same canonical text again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
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

_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DOUBTFUL_NUMBER = re.compile(rb"[0-9]{16}|[0-9][eE]\+?[0-9]")  # without either, no number exceeds 2^53 - 1


def canonical(value: Json) -> bytes:
    """RFC 8785 text. Raises InvalidDocument for what strict I-JSON cannot say (NaN, lone surrogates, integers beyond 2^53 - 1)."""
    try:
        return _sorted_text(value) if _is_plain(value) else rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidDocument("the value has no canonical text: " + type(error).__name__) from None


def canonical_text(data: bytes | str) -> bytes:
    """The canonical text of strict I-JSON text. Raises as `parse` does, and TooLarge when the canonical text is."""
    text = canonical(parse(data))
    if len(text) > MAX_DOCUMENT:
        raise TooLarge(f"the document has {len(text):,} bytes as canonical text; the limit is {MAX_DOCUMENT:,}")
    return text


def parse(data: bytes | str, *, limit: int = MAX_DOCUMENT) -> Json:
    """Reads strict I-JSON. Raises TooLarge, or InvalidDocument with a fault for each thing wrong (syntax errors stop at the first).

    The time is linear in the size, whatever the text: about 1.5 ms for 100 KB.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > limit:
        raise TooLarge(f"the document has {len(raw):,} bytes; the limit is {limit:,}")
    text = _decode(raw)
    _check_depth(raw)
    doubts = _Doubts()
    value = doubts.load(text, numbers=_DOUBTFUL_NUMBER.search(raw) is not None)
    if doubts.any:
        _refuse(doubts.faults(value))
    if _SURROGATE.search(raw):
        _refuse(_lone_surrogates(value))
    return value


def _refuse(found: Iterator[Fault]) -> None:
    """Raises InvalidDocument for the first faults, if there are any."""
    faults = tuple(islice(found, MAX_FAULTS))
    if faults:
        where = f" at {faults[0].pointer}" if faults[0].pointer else ""
        more = f" (the first of {len(faults)} faults)" if len(faults) > 1 else ""
        raise InvalidDocument(f"{faults[0].message}{where}{more}", faults)


def _refuse_all(rule: str, message: str) -> NoReturn:
    raise InvalidDocument(message, (Fault("", rule, message),))


def _decode(raw: bytes) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        _refuse_all("encoding", "a byte order mark is not allowed; send plain UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse_all("encoding", f"not valid UTF-8 at byte {error.start}")


def _check_depth(raw: bytes) -> None:
    """Before the parser recurses. Right for as much of the text as is JSON, which is as far as the parser gets."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside_strings = b"".join(raw.translate(None, _NOT_STRUCTURE).split(b'"')[::2])
    depth = 0
    for byte in outside_strings:
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            _refuse_all("depth", f"nested deeper than {MAX_DEPTH} levels")


def _lone_surrogates(value: Json) -> Iterator[Fault]:
    for pointer, each in _strings(value, ""):
        if any("\ud800" <= character <= "\udfff" for character in each):
            yield Fault(pointer.encode("utf-8", "replace").decode(), "unicode", "a lone surrogate is not a character")


def _strings(value: Json, pointer: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield pointer, value
    for key, below, each in _children(value, pointer):
        if key is not None:
            yield pointer, key
        yield from _strings(each, below)


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

    def load(self, text: str, *, numbers: bool) -> Json:
        """``numbers``: whether any could be too large. Hooks cost a call for each, so they are set only then."""
        try:
            value: Json = json.loads(
                text,
                object_pairs_hook=self._object,
                parse_int=self._integer if numbers else None,
                parse_float=self._double if numbers else None,
                parse_constant=self._constant,
            )
        except json.JSONDecodeError as error:
            _refuse_all("syntax", f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})")
        except RecursionError:
            _refuse_all("depth", f"nested deeper than {MAX_DEPTH} levels")
        return value

    def faults(self, value: Json, pointer: str = "") -> Iterator[Fault]:
        if isinstance(value, _Doubt):
            yield Fault(pointer, value.rule, value.message)
        for key in self._repeated[id(value)][1] if id(value) in self._repeated else ():
            yield Fault(pointer, "duplicate-key", f"the key {key!r} stands twice")
        for _, below, each in _children(value, pointer):
            yield from self.faults(each, below)

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


# --- the short way to canonical text ----------------------------------------------------------------------------------------------


def _sorted_text(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _is_plain(value: Json) -> bool:
    """Whether the standard library prints this value exactly as RFC 8785 does, five times faster than `rfc8785`.

    Both escape strings alike. They differ in the order of keys only when one has a character beyond the BMP (UTF-16 units against code points), and
    in numbers only for doubles that are whole or that Python prints with an exponent.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Json] = []
        for each in level:
            kind = type(each)
            if kind is dict:
                if not _is_plain_keys(each):  # type: ignore[arg-type]
                    return False
                below.extend(each.values())  # type: ignore[union-attr]
            elif kind is list:
                below.extend(each)  # type: ignore[arg-type]
            elif not (kind is str or each is None or kind is bool or _is_plain_number(each)):
                return False
        if not below:
            return True
        level = below
    return False


def _is_plain_keys(keys: Iterable[str]) -> bool:
    try:
        return "".join(keys).isascii()
    except TypeError:  # the standard library would print other keys, too
        return False


def _is_plain_number(value: object) -> bool:
    if type(value) is int:
        return -MAX_INTEGER <= value <= MAX_INTEGER
    return type(value) is float and 1e-4 <= abs(value) < 1e16 and not value.is_integer()
