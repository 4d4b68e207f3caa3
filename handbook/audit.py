"""Audit actions: from the calls that note them, and from the SQL that does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from handbook.markdown import code, join, plain, table
from handbook.source import PACKAGE, modules, nodes, texts

_ACTION: Final = re.compile(r"[a-z]+(?:_[a-z]+)*\.[a-z]+(?:_[a-z]+)*")
_NOTES: Final = re.compile(r"insert into registry\.audit\b.*?;", re.DOTALL)
_TAKE_ACTIONS: Final = frozenset({"note", "note_once", "remove"})
_WRITERS: Final = ("services/", "access/", "keys/")


def page() -> str:
    rows = [(code(action), said) for action, said in sorted(actions().items())]
    return join(
        "# Audit actions",
        "Every change to what Heliograph keeps leaves one row in the audit trail, written by the transaction that made the change: "
        "who (the token's id), when, what. Read it with"
        " `GET /v1/audit/{namespace}/{environment}`. Rows are never changed or deleted.",
        table(("action", "written when"), rows),
    )


def actions() -> dict[str, str]:
    """Action -> what the code that notes it says of itself. The first place wins that says something."""
    found: dict[str, str] = {}
    for action, docstring in [*_noted(), *_in_sql()]:
        found[action] = found.get(action) or plain(docstring).split("\n\n")[0].split(". ")[0].rstrip(".")
    return found


def _noted() -> Iterator[tuple[str, str]]:
    """Texts in the form of an action that are given as ``action``, or to a call that notes or removes something."""
    for module in modules():
        if module.place.startswith(_WRITERS):
            for node, docstring in nodes(module.tree):
                yield from ((text, docstring) for each in _given(node) for text in texts(each) if _ACTION.fullmatch(text))


def _given(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Call(func=ast.Attribute(attr=called) | ast.Name(id=called)):
            yield from (each.value for each in node.keywords if each.arg == "action")
            yield from node.args if called.lstrip("_") in _TAKE_ACTIONS else ()
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            yield from (value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "action")


def _in_sql() -> Iterator[tuple[str, str]]:
    """With the remark of the named statement that the row is noted in."""
    for file in sorted(PACKAGE.rglob("*.sql")):
        for named in re.split(r"^-- name: .*$", file.read_text(), flags=re.MULTILINE):
            remark = " ".join(re.findall(r"^-- (.*)$", named, re.MULTILINE))
            yield from (
                (text, remark) for noted in _NOTES.findall(named) for text in re.findall(rf"'({_ACTION.pattern})'", noted)
            )
