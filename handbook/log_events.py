"""Log events: from the calls that write them."""

from __future__ import annotations

import ast
import re
from typing import Final, NamedTuple

from handbook.markdown import code, codes, join, table
from handbook.source import modules, nodes

LEVELS: Final = {"exception": "error", "error": "error", "warning": "warning", "info": "info", "debug": "debug"}
_EVENT: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_PARTS: Final = {"eventlog": "readers and writers of the log", "runtime": "every process", "allinone": "dev"}
_NOT_FIELDS: Final = {"exc_info"}


class Event(NamedTuple):
    level: str
    name: str
    part: str
    fields: tuple[str, ...]


def page() -> str:
    return join(
        "# Log events",
        "Services write one JSON object per line to standard error: `at`, `level`, `service`, `event`, then fields. The event is a constant name, "
        "so it can be counted and alerted on. Lines of libraries come as `library_message`. Whatever looks like a token of ours is masked.",
        *(_section(level) for level in ("error", "warning", "info", "debug")),
    )


_MEANS: Final = {
    "error": "Somebody must act.",
    "warning": "Something went wrong and is being dealt with.",
    "info": "Something happened.",
}


def _section(level: str) -> str:
    rows = [(code(each.name), each.part, codes(each.fields)) for each in events() if each.level == level]
    return (
        join(f"## {level.capitalize()}", _MEANS.get(level, ""), table(("event", "written by", "fields"), rows)) if rows else ""
    )


def events() -> list[Event]:
    """By name. An event that several places write is listed once for each part, with all fields that it can have."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for module in modules():
        for call, _ in nodes(module.tree):
            if isinstance(call, ast.Call) and (written := _written(call)):
                level, name = written
                part = _PARTS.get(module.part, module.part)
                fields = found.setdefault((name, level, part), {})
                fields |= {each.arg: None for each in call.keywords if each.arg and each.arg not in _NOT_FIELDS}
    return [Event(level, name, part, tuple(fields)) for (name, level, part), fields in sorted(found.items())]


def _written(call: ast.Call) -> tuple[str, str] | None:
    """(level, event) of ``log.warning("an_event", …)``; None for any other call, also for the SDK's sentences."""
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=method), args=[ast.Constant(value=str(name)), *_]):
            return (LEVELS[method], name) if method in LEVELS and _EVENT.fullmatch(name) else None
    return None
