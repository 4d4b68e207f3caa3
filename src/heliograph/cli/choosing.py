"""Settling conflicts one by one, with a person at a terminal."""

from __future__ import annotations

import sys
from typing import Any, Literal

import typer

from heliograph.cli import show
from heliograph.core.canonical import parse
from heliograph.core.errors import HeliographError

Settled = Literal["ours", "theirs"] | dict[str, Any]
"""As the API takes it: a side, or {"value": …}."""


def somebody_there() -> bool:
    """Whether there is anybody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def settle(told: dict[str, Any], names: tuple[str, str]) -> Settled:
    """What a person takes for one conflict. ``names``: what ours and theirs are called. Raises Abort."""
    show.conflict(told, names=names)
    words = {names[0][0]: "ours", names[0]: "ours", names[1][0]: "theirs", names[1]: "theirs"}
    question = f"    take ({names[0][0]}) {names[0]}, ({names[1][0]}) {names[1]}, or (v) another value? q to stop"
    while True:
        answer = str(typer.prompt(question, err=True)).strip().lower()
        if answer in words:
            return words[answer]  # type: ignore[return-value]  # one of the two
        if answer in ("q", "quit"):
            raise typer.Abort
        if answer in ("v", "value"):
            try:
                return {"value": parse(str(typer.prompt("    the value, as JSON", err=True)))}
            except HeliographError as error:
                show.note(f"    {error.detail}", "red")
