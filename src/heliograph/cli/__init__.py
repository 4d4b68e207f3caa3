"""The heliograph command."""

from __future__ import annotations

import sys

GLOBAL = {"--json": 0, "--url": 1, "--token": 1, "--token-file": 1}
"""Options of the whole command, with how many values they take; they may stand anywhere."""


def main() -> None:
    """Entry point. Imports what a command needs only when it runs, so that help and completion are quick."""
    from heliograph.cli.commands import app  # noqa: PLC0415

    sys.exit(app(hoisted(sys.argv[1:])))


def hoisted(arguments: list[str]) -> list[str]:
    """``get shop/dev --json`` as ``--json get shop/dev``. Nothing after ``--`` is moved."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        each = waiting.pop(0)
        if each == "--":
            return [*front, *rest, each, *waiting]
        if each.partition("=")[0] not in GLOBAL:
            rest.append(each)
            continue
        takes = 0 if "=" in each else GLOBAL[each]
        front += [each, *waiting[:takes]]
        del waiting[:takes]
    return [*front, *rest]
