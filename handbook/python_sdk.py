"""The Python SDK: from the names that its packages export, and their docstrings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import heliograph.client
from handbook.markdown import join

NEVER = "heliograph.client._"
"""Private modules: what they hold is exported by a public one, or is nobody's business."""


def page() -> str:
    return join(
        "# Python SDK",
        "What an application imports. Everything that is not on this page may change without notice. How it is used: [Tutorial](../tutorial.md).",
        *(part for module in modules() for part in _module(module)),
    )


def modules() -> list[ModuleType]:
    """`heliograph.client` and its public modules that say what they export."""
    below = pkgutil.walk_packages(heliograph.client.__path__, "heliograph.client.")
    found = [importlib.import_module(each.name) for each in below if not each.name.startswith(NEVER)]
    return [heliograph.client, *(each for each in found if hasattr(each, "__all__"))]


def _module(module: ModuleType) -> Iterator[str]:
    yield f"## `{module.__name__}`"
    yield _docstring(module)
    for name in module.__all__:
        member = getattr(module, name)
        if inspect.isclass(member):
            yield from _class(name, member)
        elif inspect.isfunction(member):
            yield join(f"### {name}", _signature(name, member), _docstring(member))


def _class(name: str, kind: type) -> Iterator[str]:
    """With how it is made, if applications make it: of a dataclass, or where its arguments are explained."""
    made = dataclasses.is_dataclass(kind) or "Args:" in (kind.__doc__ or "")
    yield join(f"### {name}", _signature(name, kind) if made else "", _docstring(kind))
    for member, value in vars(kind).items():
        if not member.startswith("_") and (told := _member(member, value)):
            yield told


def _member(name: str, value: object) -> str:
    """A method or a property; empty for anything else, and for what says nothing."""
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if not inspect.isfunction(function) or not function.__doc__:
        return ""
    return join(f"#### {name}", "" if isinstance(value, property) else _signature(name, function), _docstring(function))


def _signature(name: str, called: object) -> str:
    """On one line, or a line for each parameter. Annotations as they are written."""
    try:
        signature = inspect.signature(called)  # type: ignore[arg-type]  # whatever can be called
    except (TypeError, ValueError):
        return ""
    parameters = [
        each.replace(annotation=_AsWritten(each.annotation))
        for each in signature.parameters.values()
        if each.name not in {"self", "cls"}
    ]
    told = str(signature.replace(parameters=parameters, return_annotation=_AsWritten(signature.return_annotation)))
    waits = "async " if inspect.iscoroutinefunction(called) else ""
    return f"```python\n{_wrapped(re.sub(r' -> None$', '', f'{waits}{name}{told}'))}\n```"


class _AsWritten(str):
    """An annotation that is shown without the quotes of a string."""

    __slots__ = ()

    def __new__(cls, annotation: object) -> Any:
        return annotation if annotation is inspect.Signature.empty else super().__new__(cls, annotation)

    __repr__ = str.__str__


def _wrapped(text: str, width: int = 110) -> str:
    """A long one with a line for each parameter."""
    text = text.replace("PosixPath(", "Path(")
    if len(text) <= width:
        return text
    name, _, rest = text.partition("(")
    parameters, after = _divided(rest)
    return "\n".join([f"{name}(", *(f"    {each}," for each in parameters), f"){after}"])


def _divided(text: str) -> tuple[list[str], str]:
    """Parameters up to the bracket that closes them, and what follows it."""
    parts, depth = [""], 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return [each.strip() for each in parts], text[at + 1 :]
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts, ""


def _docstring(of: object) -> str:
    """Markdown already, but for double back-ticks, and for indented blocks, which are code."""
    text = inspect.cleandoc(getattr(of, "__doc__", None) or "").replace("``", "`")
    return re.sub(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", _arguments, text, flags=re.MULTILINE)


def _arguments(found: re.Match[str]) -> str:
    """A list, an item for each."""
    lines = re.sub(r"\n\s{8,}", " ", textwrap.dedent(found[1])).strip().splitlines()
    pairs = (each.partition(":") for each in lines if each)
    return "\n".join(f"- `{name.strip()}`: {meaning.strip()}" for name, _, meaning in pairs) + "\n\n"
