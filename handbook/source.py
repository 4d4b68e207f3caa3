"""The package's source as syntax trees: for what is declared where it happens, as log events are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import heliograph

PACKAGE: Final = Path(heliograph.__file__).parent


@dataclass(frozen=True, slots=True)
class Module:
    """``place``: its path within the package, without suffix."""

    place: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """What a reader knows it by: the service, or the folder."""
        first, *rest = self.place.split("/")
        return rest[0] if first == "services" else first


@cache
def modules() -> tuple[Module, ...]:
    files = sorted(PACKAGE.rglob("*.py"))
    return tuple(Module(each.relative_to(PACKAGE).with_suffix("").as_posix(), ast.parse(each.read_text())) for each in files)


def nodes(node: ast.AST, docstring: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Everything below, with the docstring of the function it stands in."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node) or docstring
    yield node, docstring
    for child in ast.iter_child_nodes(node):
        yield from nodes(child, docstring)


def texts(node: ast.AST | None) -> list[str]:
    """The texts that an expression can be: a literal, a choice of literals, or an f-string of such."""
    match node:
        case ast.Constant(value=str(value)):
            return [value]
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body) + texts(orelse)
        case ast.FormattedValue(value=value):
            return texts(value)
        case ast.JoinedStr(values=values):
            made = [""]
            for each in values:
                made = [before + after for before in made for after in texts(each)]
            return made
        case _:
            return []
