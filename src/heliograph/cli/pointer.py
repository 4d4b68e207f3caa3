"""Setting one value by JSON Pointer (RFC 6901) in a document."""

from __future__ import annotations

import copy
from typing import Any

from heliograph.core.errors import InvalidRequest


def set_value(document: Any, pointer: str, value: Any) -> Any:
    """The document with `value` at `pointer`; missing objects on the way are made. Raises InvalidRequest."""
    parts = _parts(pointer)
    if not parts:
        return value
    changed = copy.deepcopy(document) if document is not None else {}
    at = changed
    for part in parts[:-1]:
        at = _step(at, part, pointer)
    _put(at, parts[-1], value, pointer)
    return changed


def get_value(document: Any, pointer: str) -> Any:
    """Raises InvalidRequest when nothing is there."""
    at = document
    for part in _parts(pointer):
        if isinstance(at, dict) and part in at:
            at = at[part]
        elif isinstance(at, list) and _is_index(part) and int(part) < len(at):
            at = at[int(part)]
        else:
            raise InvalidRequest(f"there is nothing at {pointer}")
    return at


def _parts(pointer: str) -> list[str]:
    if not pointer:
        return []
    if not pointer.startswith("/"):
        raise InvalidRequest(f"{pointer!r} is not a JSON Pointer; it begins with /, as in /max_items")
    return [each.replace("~1", "/").replace("~0", "~") for each in pointer[1:].split("/")]


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and (part == "0" or part[0] != "0")


def _step(at: Any, part: str, pointer: str) -> Any:
    if isinstance(at, dict):
        return at.setdefault(part, {})
    if isinstance(at, list) and _is_index(part) and int(part) < len(at):
        return at[int(part)]
    raise InvalidRequest(f"{pointer} leads through a place that is not there, or is no object")


def _put(at: Any, part: str, value: Any, pointer: str) -> None:
    if isinstance(at, dict):
        at[part] = value
    elif isinstance(at, list) and part == "-":
        at.append(value)
    elif isinstance(at, list) and _is_index(part) and int(part) < len(at):
        at[int(part)] = value
    else:
        raise InvalidRequest(f"{pointer} is not a place in this document")
