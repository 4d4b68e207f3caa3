"""The command line: from typer's commands, the exit statuses, and the shell examples of the prose pages, which tests run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from handbook.examples import Example, examples_of
from handbook.markdown import code, codes, from_rich, join, table
from heliograph.cli.commands import app
from heliograph.cli.exits import Exit
from heliograph.cli.session import _EVERYWHERE
from heliograph.runtime import process

PROGRAM: Final = "heliograph"
MOST_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Command:
    """``words``: what is written after the program's name."""

    words: str
    typer: TyperCommand | TyperGroup

    @property
    def title(self) -> str:
        return f"{PROGRAM} {self.words}"

    @property
    def panel(self) -> str:
        return str(getattr(self.typer, "rich_help_panel", None) or "")


def page() -> str:
    found = commands()
    return join(
        "# Command line",
        "`heliograph` publishes, looks, proves, and runs the services. `heliograph COMMAND --help` says the same as this page. "
        "Examples are taken from the guides, which the tests run.",
        _overview(found),
        "## Exit status",
        "Scripts may rely on every one of these.",
        table(("status", "name", "meaning"), exits(Exit)),
        "A service that was started with `heliograph serve` or `heliograph dev` ends with one of these, for whoever starts it again.",
        table(("status", "name", "meaning"), exits(process.Exit)),
        "## Options of every command",
        "The first three are for commands that ask a server.",
        _options([each for each in found[0].typer.params if each.name in _EVERYWHERE]),
        *(_section(each) for each in found),
    )


def commands() -> list[Command]:
    """Every command that is not hidden, in the order of the program's help."""
    return list(_below(typer.main.get_command(app), ""))


def _below(group: object, words: str) -> Iterator[Command]:
    for name, command in getattr(group, "commands", {}).items():
        said = f"{words} {name}".strip()
        if isinstance(command, TyperGroup):
            if command.invoke_without_command:  # it does something by itself
                yield Command(said, command)
            yield from _below(command, said)
        elif not command.hidden:
            yield Command(said, command)


def _overview(found: list[Command]) -> str:
    rows = [(f"[`{each.title}`](#{_anchor(each)})", from_rich(_first_line(each))) for each in found]
    return table(("command", "does"), rows)


def _anchor(command: Command) -> str:
    return command.title.replace(" ", "-")


def _first_line(command: Command) -> str:
    return inspect.cleandoc(command.typer.help or "").split("\n\n", maxsplit=1)[0]


def exits(kind: type[IntEnum]) -> list[tuple[object, ...]]:
    """Number, name, and the remark beside each."""
    lines = re.findall(r"^    ([A-Z_]+) = (\d+)(?:  # (.*))?$", inspect.getsource(kind), re.MULTILINE)
    return [(number, code(name), meaning) for name, number, meaning in lines]


def variables() -> list[tuple[str, ...]]:
    """Environment variables that options are taken from: name, option, description."""
    found: dict[str, tuple[str, ...]] = {}
    for command in commands():
        for option in command.typer.params:
            if isinstance(option, TyperOption) and isinstance(option.envvar, str):
                found.setdefault(option.envvar, (code(option.envvar), code(option.opts[0]), from_rich(option.help or "")))
    return list(found.values())


# --- one command ------------------------------------------------------------------------------------------------------------------


def _section(command: Command) -> str:
    own = [each for each in command.typer.params if each.name not in _EVERYWHERE]
    arguments = [each for each in own if isinstance(each, TyperArgument)]
    return join(
        f"## {command.title}",
        from_rich(inspect.cleandoc(command.typer.help or "")),
        "```text\n" + _usage(command, arguments) + "\n```",
        table(("argument", "meaning"), map(_argument, arguments)),
        _options([each for each in own if isinstance(each, TyperOption) and not each.hidden]),
        _examples(examples_of(command.words)),
    )


def _usage(command: Command, arguments: list[TyperArgument]) -> str:
    names = (_name(each) if each.required else f"[{_name(each)}]" for each in arguments)
    return " ".join([command.title, *names, "[OPTIONS]"])


def _name(argument: TyperArgument) -> str:
    return (argument.metavar or str(argument.name)).upper()


def _argument(argument: TyperArgument) -> tuple[str, str]:
    return code(_name(argument)), from_rich(getattr(argument, "help", "") or "")


def _options(options: list[Any]) -> str:
    return table(("option", "default", "meaning"), map(_option, options))


def _option(option: TyperOption) -> tuple[str, ...]:
    names = codes(option.opts) + (f" {code(value)}" if (value := _value(option)) else "")
    help_text = from_rich(option.help or "")
    told = f"{help_text} Environment: {code(option.envvar)}." if isinstance(option.envvar, str) else help_text
    repeated = " May be repeated." if option.multiple and "repeated" not in told else ""
    return names, _default(option), f"{'Required. ' if option.required else ''}{told}{repeated}"


def _value(option: TyperOption) -> str:
    """What stands for its value; empty for a flag."""
    kind = option.type_descriptor.annotation
    return "" if kind is bool else option.metavar or {Path: "FILE", int: "NUMBER", float: "NUMBER"}.get(kind, "TEXT")


def _default(option: TyperOption) -> str:
    value = option.default
    return "" if value is None or value is False or callable(value) or option.required else code(value)


def _examples(found: list[Example]) -> str:
    if not found:
        return ""
    shown = found[:MOST_EXAMPLES]
    lines = "\n".join(each.command for each in shown)
    pages = ", ".join(dict.fromkeys(f"[{each.title}](../{each.page})" for each in shown))
    return join(f"```sh\n{lines}\n```", f"From {pages}.")
