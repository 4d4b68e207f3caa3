"""Settings of every process: from the pydantic classes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

import heliograph
from handbook import command_line
from handbook.markdown import code, codes, join, plain, table

UNITS: Final = {"s": "seconds", "ms": "milliseconds", "days": "days", "bytes": "bytes", "port": "port", "share": "share"}
_BOUNDS: Final = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_KINDS: Final = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    SecretStr: "secret text",
    dict: "JSON object",
}


def page() -> str:
    sections = [_section(each) for each in declaring()]
    return join(
        "# Settings",
        "Every process reads its settings from environment variables, once, at its start. An empty variable counts as not set; an unknown one is "
        "ignored; a value that does not fit ends the start with exit status 2 and a sentence that names the variable.",
        *sections,
        "## The command line",
        "Each option of `heliograph` that can be given in the environment; the option wins.",
        table(("variable", "option", "description"), command_line.variables()),
    )


def _section(kind: type[BaseSettings]) -> str:
    return join(
        f"## {_title(kind)}",
        f"Read by {codes(sorted(_process(each) for each in processes() if issubclass(each, kind)))}. {plain(_own_docstring(kind))}",
        table(
            ("variable", "type", "default", "description"), map(_row, own_fields(kind).items(), [kind] * len(own_fields(kind)))
        ),
    )


def _own_docstring(kind: type[BaseSettings]) -> str:
    return kind.__dict__.get("__doc__") or ""


def _title(kind: type[BaseSettings]) -> str:
    if kind in processes():
        return f"`{_process(kind)}`"
    return {"ServiceSettings": "Every process"}.get(kind.__name__, kind.__name__.removesuffix("Settings") + " settings")


# --- which classes there are ------------------------------------------------------------------------------------------------------


def declaring() -> list[type[BaseSettings]]:
    """Classes that declare settings: shared ones first, from the general to the special, then each process's."""
    _import_everything()
    found = [each for each in _below(BaseSettings) if each.__module__.startswith("heliograph.") and own_fields(each)]
    leaves = processes()
    return sorted(found, key=lambda each: (each in leaves, 0 if each in leaves else len(each.__mro__), _process(each)))


def processes() -> list[type[BaseSettings]]:
    """Classes that some process is started with: those that nothing is derived from."""
    _import_everything()
    return [each for each in _below(BaseSettings) if each.__module__.startswith("heliograph.") and not each.__subclasses__()]


def _process(kind: type[BaseSettings]) -> str:
    name = kind.__name__.removesuffix("Settings")
    return {"AllInOne": "dev"}.get(name, name.lower())


def _import_everything() -> None:
    for module in pkgutil.walk_packages(heliograph.__path__, "heliograph."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _below(kind: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
    seen: dict[type[BaseSettings], None] = {}
    for each in kind.__subclasses__():
        seen |= {each: None} | dict.fromkeys(_below(each))
    yield from seen


def own_fields(kind: type[BaseSettings]) -> dict[str, FieldInfo]:
    """Without those of its ancestors."""
    return {name: field for name, field in kind.model_fields.items() if name in kind.__annotations__}


# --- one setting ------------------------------------------------------------------------------------------------------------------


def variable(kind: type[BaseSettings], name: str, field: FieldInfo) -> str:
    alias = field.validation_alias if isinstance(field.validation_alias, str) else None
    return (alias or f"{kind.model_config.get('env_prefix', '')}{name}").upper()


def _row(named: tuple[str, FieldInfo], kind: type[BaseSettings]) -> tuple[str, ...]:
    name, field = named
    return code(variable(kind, name, field)), type_of(name, field), default_of(field), field.description or ""


def type_of(name: str, field: FieldInfo) -> str:
    """Kind, unit, bounds: ``number of seconds > 0``."""
    unit = UNITS.get(name.rpartition("_")[2], "")
    said = _kind(field.annotation)
    if unit and said in {"number", "whole number"}:
        said = unit if unit in {"port", "share"} else f"{said} of {unit}"
    bounds = [
        f"{_BOUNDS[key]} {_number(getattr(rule, key))}" for rule in field.metadata for key in _BOUNDS if hasattr(rule, key)
    ]
    return " ".join([said, ", ".join(bounds)]).strip()


def _kind(annotation: Any) -> str:
    if get_origin(annotation) in {Union, UnionType}:
        return " or ".join(_kind(each) for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is Literal:
        return "one of " + codes(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + codes(each.value for each in annotation)
    known = _KINDS.get(get_origin(annotation) or annotation)
    return known or str(getattr(annotation, "__name__", annotation))


def default_of(field: FieldInfo) -> str:
    """Empty when there is none; of what is made at the start, by what."""
    if field.default_factory is not None:
        return f"{field.default_factory.__name__} of this machine".replace("gethostname", "the host name")
    value = field.default
    if value is PydanticUndefined:
        return "must be set"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return "" if value is None or value in ("", {}) else code(_number(value))


def _number(value: object) -> str:
    """Without a fraction that is none, with thousands that can be counted."""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return str(value)
    return str(int(value)) if value == int(value) else str(value)
