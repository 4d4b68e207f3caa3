"""The little Markdown that reference pages are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from rich.text import Text

NOTHING: Final = ""


def join(*blocks: str) -> str:
    """Blocks with an empty line between them; empty ones are left out."""
    return "\n\n".join(each.strip("\n") for each in blocks if each.strip())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Empty when there are no rows."""
    lines = [_row(each) for each in rows]
    return "\n".join([_row(columns), _row(["---"] * len(columns)), *lines]) if lines else NOTHING


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(each).split()).replace("|", "\\|") for each in cells) + " |"


def code(text: object) -> str:
    """As code; an empty text stays empty."""
    return f"`{text}`" if str(text) else NOTHING


def codes(found: Iterable[object]) -> str:
    return ", ".join(code(each) for each in found)


def plain(text: str) -> str:
    """Reflows a docstring: paragraphs stay, lines within them join, and reST's double back-ticks become single ones."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(each.split()) for each in paragraphs).replace("``", "`")


def from_rich(text: str) -> str:
    """A help text with rich's markup: whatever it sets off becomes code."""
    parsed = Text.from_markup(text)
    out, at = [], 0
    for span in sorted(parsed.spans):
        if span.start >= at:
            out += [parsed.plain[at : span.start], code(parsed.plain[span.start : span.end])]
            at = span.end
    return plain("".join([*out, parsed.plain[at:]]))
