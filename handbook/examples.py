"""The shell blocks and programs of the guides: what tests run, and what the reference shows as examples.

In a page, each line of an indented block is a command; a block fenced as ``sh`` is one script; one fenced as ``python`` whose first line is a
comment with a file's name is that file. A comment before a block says what else is true of it:

    <!-- refused -->             its command ends with an exit status that is not 0; ``<!-- refused: 10 -->``: with this one
    <!-- not run: the reason --> it needs what a test has not: systemd, another machine
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
_BLOCK: Final = re.compile(
    r"^<!--(?P<remark>[^\n]+?)-->$|^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|^(?P<indented>(?:    [^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
_PROGRAM: Final = "heliograph "


@dataclass(frozen=True, slots=True)
class Step:
    """``refused``: the exit status that is expected; ``"any"``: one that is not 0. ``not_run``: why, if it is not."""

    kind: Literal["command", "script", "file", "other"]
    text: str
    language: str = "sh"
    refused: int | Literal["any"] = 0
    not_run: str = ""

    @property
    def file(self) -> str:
        """The name on the first line of a program; empty when there is none."""
        found = re.match(r"# ([\w./-]+)\n", self.text)
        return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Example:
    """A command as a page has it. ``page`` is relative to docs."""

    command: str
    page: str
    title: str


def steps(text: str) -> Iterator[Step]:
    """In the order in which a reader meets them."""
    remark = ""
    for found in _BLOCK.finditer(text):
        if found["remark"]:
            remark = found["remark"].strip()
            continue
        refused, not_run = _told(remark)
        remark = ""
        if found["indented"]:
            for line in found["indented"].splitlines():
                yield Step("command", line.strip(), refused=refused, not_run=not_run)
        else:
            yield _fenced(found["language"], found["fenced"], refused, not_run)


def _fenced(language: str, text: str, refused: int | Literal["any"], not_run: str) -> Step:
    kind: Literal["script", "file", "other"] = (
        "script" if language == "sh" else "file" if re.match(r"# [\w./-]+\n", text) else "other"
    )
    return Step(kind, text, language, refused, not_run)


def _told(remark: str) -> tuple[int | Literal["any"], str]:
    word, _, rest = remark.partition(":")
    if word == "refused":
        return int(rest) if rest else "any", ""
    return 0, rest.strip() if word == "not run" else ""


def guides() -> list[Path]:
    """Pages that are followed with a shell at hand: the tutorial first, then the guides."""
    return [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]


def examples_of(words: str) -> list[Example]:
    """Of a command, without the ones that are refused on purpose; the same text once."""
    found = {each.command: each for each in reversed(_examples()) if f"{each.command} ".startswith(f"{_PROGRAM}{words} ")}
    return list(reversed(found.values()))


@cache
def _examples() -> tuple[Example, ...]:
    return tuple(_found())


def _found() -> Iterator[Example]:
    for path in guides():
        text = path.read_text()
        title = text.splitlines()[0].removeprefix("# ")
        for step in steps(text):
            if step.kind in {"command", "script"} and not step.refused:
                for command in _commands(step.text):
                    yield Example(command, path.relative_to(DOCS).as_posix(), title)


def _commands(text: str) -> Iterator[str]:
    """Of a script, the lines that begin with the program's name; lines that go on are joined, remarks dropped."""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if line.strip().startswith(_PROGRAM):
            yield re.sub(r"\s{2,}#.*$", "", line.strip())
