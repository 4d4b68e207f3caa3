"""Reading and setting one value of a document by JSON Pointer."""

from __future__ import annotations

import copy
from typing import Any

from heliograph.core.errors import InvalidRequest, NotFound
from heliograph.core.pointer import pointer_tokens


def set_value(document: Any, pointer: str, value: Any) -> Any:
    """A copy of the document with `value` at `pointer`. Missing objects on the way are made; ``-`` appends to a list. Raises InvalidRequest."""
    tokens = pointer_tokens(pointer)
    if not tokens:
        return value
    changed = copy.deepcopy(document) if document is not None else {}
    at = changed
    for token in tokens[:-1]:
        at = _step(at, token, pointer)
    _put(at, tokens[-1], value, pointer)
    return changed


def get_value(document: Any, pointer: str) -> Any:
    """Raises NotFound when nothing is there."""
    at = document
    for token in pointer_tokens(pointer):
        if isinstance(at, dict) and token in at:
            at = at[token]
        elif isinstance(at, list) and _is_place(at, token):
            at = at[int(token)]
        else:
            raise NotFound(f"there is nothing at {pointer}")
    return at


def _is_place(items: list[Any], token: str) -> bool:
    return token.isascii() and token.isdigit() and str(int(token)) == token and int(token) < len(items)


def _step(at: Any, token: str, pointer: str) -> Any:
    if isinstance(at, dict):
        return at.setdefault(token, {})
    if isinstance(at, list) and _is_place(at, token):
        return at[int(token)]
    raise InvalidRequest(f"{pointer} leads through a place that is not there, or is no object")


def _put(at: Any, step: str, value: Any, pointer: str) -> None:
    if isinstance(at, dict):
        at[step] = value
    elif isinstance(at, list) and step == "-":
        at.append(value)
    elif isinstance(at, list) and _is_place(at, step):
        at[int(step)] = value
    else:
        raise InvalidRequest(f"{pointer} is not a place in this document")
