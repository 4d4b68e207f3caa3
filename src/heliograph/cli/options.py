"""Options and arguments that several commands have, and how their values are read."""

from __future__ import annotations

from typing import Annotated, Final

import typer

TARGET = Annotated[
    str, typer.Argument(help="namespace/environment\\[/config], as in shop/production/checkout/limits", show_default=False)
]
ENVIRONMENT = Annotated[str, typer.Argument(help="namespace/environment, as in shop/production", show_default=False)]
MESSAGE = Annotated[str | None, typer.Option("--message", "-m", help="Why; kept with the version.")]
WAIT = Annotated[
    str | None, typer.Option("--wait", metavar="SHARE", help="Hold until this share of instances has applied it: 95%, or 0.95.")
]
TIMEOUT = Annotated[str, typer.Option("--timeout", metavar="TIME", help="How long --wait holds at most: 2s, 500ms; up to 30s.")]
BASE = Annotated[str | None, typer.Option("--if-match", metavar="ID", help="Only on top of this version id.")]
REBASE = Annotated[
    bool, typer.Option("--rebase", help="With --if-match: also on top of later versions that changed nothing of the same.")
]
AT = Annotated[
    str | None,
    typer.Option(
        "--at", metavar="VERSION", help="As of this version: number, id, label:NAME, or a time (2026-11-01T12:00:00Z)."
    ),
]
TRUST = Annotated[
    str | None,
    typer.Option("--trust", envvar="HELIOGRAPH_TRUST", metavar="ANCHOR", help="Trust anchor, sha256:…, or a client token."),
]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_S: Final = 10 * 365 * 86400.0


def share(text: str) -> float:
    """``95%`` or ``0.95``. Raises BadParameter."""
    try:
        found = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        found = -1
    if not 0 < found <= 1:
        raise typer.BadParameter(f"{text!r} is not a share; write 95% or 0.95")
    return found


def seconds(text: str) -> float:
    """``2s``, ``500ms``, ``1m``, ``12h``, ``30d``, or a plain number of seconds. Raises BadParameter."""
    digits = text.rstrip("smhd")
    try:
        found = float(digits) * _UNITS[text[len(digits) :]]
    except (ValueError, KeyError):
        raise typer.BadParameter(f"{text!r} is not a duration; write 2s, 500ms or 1m") from None
    if not 0 < found < _LONGEST_S:
        raise typer.BadParameter(f"{text!r} is no duration that makes sense here")
    return found
