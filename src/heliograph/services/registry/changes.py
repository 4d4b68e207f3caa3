"""What an author asks for: changes to configs, read from requests and checked as far as that goes without the head. Pure."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import msgspec

from heliograph.core import names
from heliograph.core.canonical import MAX_DOCUMENT, Json, canonical, parse
from heliograph.core.digest import Kind, raw_digest
from heliograph.core.errors import Fault, Invalid, InvalidDocument, InvalidRequest, TooLarge
from heliograph.core.names import ConfigName

MAX_CHANGES: Final = 5_000
MAX_TEXT: Final = 16 << 20
"""Bytes of canonical text in one version."""
MAX_VERSION_BODY: Final = 24 << 20
"""Bytes of a request that publishes several: its texts, their names, and white space that the canonical text will not have."""
MAX_MESSAGE: Final = 1_000

E = TypeVar("E", bound=Invalid)


@dataclass(frozen=True, slots=True)
class Text:
    """A document or schema as the author sent it: its canonical text, what that says, and where it stands in the request."""

    text: bytes
    value: Json
    digest: bytes
    at: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One config's next state. ``document`` None: stays as it is; ``schema`` None: stays, False: none from now on."""

    name: ConfigName
    document: Text | None = None
    schema: Text | bool | None = None
    delete: bool = False


def set_document(name: ConfigName, body: bytes) -> Change:
    return Change(name, document=read_text("document", body))


def set_schema(name: ConfigName, body: bytes) -> Change:
    return Change(name, schema=read_text("schema", body))


def read_text(kind: Kind, body: bytes | msgspec.Raw, at: str = "") -> Text:
    """Raises InvalidDocument with pointers below ``at``, TooLarge."""
    try:
        value = parse(bytes(body))
        text = canonical(value)
    except InvalidDocument as error:
        raise below(error, at) from None
    if len(text) > MAX_DOCUMENT:
        raise TooLarge(f"the {kind} has {len(text):,} bytes as canonical text; the limit is {MAX_DOCUMENT:,}")
    return Text(text, value, raw_digest(kind, text), at)


def below(error: E, at: str) -> E:
    """The same error with its faults' pointers below ``at``."""
    return type(error)(error.detail, [replace(each, pointer=at + each.pointer) for each in error.faults])


# --- several at once --------------------------------------------------------------------------------------------------------------


class _OneOfMany(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    document: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    schema: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    delete: bool = False


class _Many(msgspec.Struct, forbid_unknown_fields=True):
    changes: list[_OneOfMany]
    message: str | None = None


def read_many(body: bytes) -> tuple[tuple[Change, ...], str | None]:
    """The changes of ``{"changes": [{"name", "document"?, "schema"?: object | null, "delete"?: true}], "message"?}``, and the message.

    Raises InvalidRequest, InvalidName, InvalidDocument, TooLarge.
    """
    try:
        asked = msgspec.json.decode(body, type=_Many)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(
            f'expected {{"changes": [{{"name", "document" | "schema" | "delete"}}]}}: {_said(error)}'
        ) from None
    if not asked.changes:
        raise InvalidRequest("a version needs at least one change")
    if len(asked.changes) > MAX_CHANGES:
        raise TooLarge(f"{len(asked.changes):,} changes in one version; the limit is {MAX_CHANGES:,}")
    changes = tuple(_change(each, f"/changes/{index}") for index, each in enumerate(asked.changes))
    _refuse_repeated(changes)
    json.loads(body, object_pairs_hook=_each_key_once)
    size = sum(len(each.text) for change in changes for each in (change.document, change.schema) if isinstance(each, Text))
    if size > MAX_TEXT:
        raise TooLarge(f"the version has {size:,} bytes of text; the limit is {MAX_TEXT:,}")
    return changes, message(asked.message)


def _said(error: Exception) -> str:
    """msgspec's messages name members and types, never values; a recursion error has nothing to say."""
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _change(asked: _OneOfMany, at: str) -> Change:
    name = names.config(asked.name)
    if asked.delete:
        if asked.document is not msgspec.UNSET or asked.schema is not msgspec.UNSET:
            raise InvalidRequest(f"{name} cannot be deleted and given a document or schema in one version", [_fault(at)])
        return Change(name, delete=True)
    document = None if asked.document is msgspec.UNSET else read_text("document", asked.document, f"{at}/document")
    schema: Text | bool | None = None
    if asked.schema is not msgspec.UNSET:
        schema = False if bytes(asked.schema).strip() == b"null" else read_text("schema", asked.schema, f"{at}/schema")
    if document is None and schema is None:
        raise InvalidRequest(f"{name}: give a document, a schema or delete: true", [_fault(at)])
    return Change(name, document, schema)


def _fault(at: str) -> Fault:
    return Fault(at, "change", "each change gives a document, a schema (null: none), both, or delete: true")


def _each_key_once(pairs: list[tuple[str, None]]) -> None:
    """The documents are strict already; this is for the members around them, of which a lenient reader takes the last."""
    if len(dict(pairs)) != len(pairs):
        raise InvalidRequest("a key stands twice in one of the changes")


def _refuse_repeated(changes: tuple[Change, ...]) -> None:
    twice = [name for name, count in Counter(each.name for each in changes).items() if count > 1]
    if twice:
        raise InvalidRequest(f"{min(twice)} is changed twice in one version")


def message(text: str | None) -> str | None:
    """An author's message. Raises InvalidRequest."""
    if not text:
        return None
    if len(text) > MAX_MESSAGE:
        raise InvalidRequest(f"the message has {len(text):,} characters; the limit is {MAX_MESSAGE:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the message is not valid Unicode") from None
    return text
