"""What every command begins with: options from anywhere, and one place where errors become words and exit codes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from heliograph.cli import show
from heliograph.cli.api import Api, Problem, Wait, from_surroundings
from heliograph.cli.exits import Exit, exit_for
from heliograph.core.errors import HeliographError, Invalid

F = TypeVar("F", bound=Callable[..., Any])

URL = Annotated[str | None, typer.Option("--url", envvar="HELIOGRAPH_URL", help="Address of the API.")]
TOKEN = Annotated[
    str | None,
    typer.Option("--token", envvar="HELIOGRAPH_TOKEN", help="Token; better in the environment than in a shell's history."),
]
TOKEN_FILE = Annotated[
    Path | None, typer.Option("--token-file", envvar="HELIOGRAPH_TOKEN_FILE", help="File that holds the token.")
]
JSON = Annotated[bool, typer.Option("--json", help="Print the service's own answer as JSON.")]
TARGET = Annotated[
    str, typer.Argument(help="namespace/environment\\[/config], as in shop/production/checkout/limits", show_default=False)
]
MESSAGE = Annotated[str | None, typer.Option("--message", "-m", help="Why; kept with the version.")]
WAIT = Annotated[str | None, typer.Option("--wait", help="Hold until this share of instances has applied it: 95%, or 0.95.")]
TIMEOUT = Annotated[str, typer.Option("--timeout", help="How long --wait holds at most: 2s, 500ms.")]


@dataclass
class Surroundings:
    """Options that may stand before the command, or after it."""

    url: str | None = None
    token: str | None = None
    token_file: Path | None = None
    json: bool = False

    def api(self) -> Api:
        return from_surroundings(self.url, self.token, self.token_file)


_current: ContextVar[Surroundings] = ContextVar("surroundings", default=Surroundings())  # noqa: B039  # replaced before it is used


def remember(told: Surroundings) -> None:
    _current.set(told)


def surroundings() -> Surroundings:
    return _current.get()


def speaking(command: F) -> F:
    """Errors as sentences on standard error, and exit codes that mean something."""

    @functools.wraps(command)
    def spoken(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except Problem as problem:
            _say(problem.document)
            raise typer.Exit(exit_for(problem.code)) from None
        except HeliographError as error:
            _say(_document(error))
            raise typer.Exit(exit_for(error.code)) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(Exit.OK) from None

    return spoken  # type: ignore[return-value]  # the same signature


def parse_wait(share: str | None, timeout: str) -> Wait | None:
    """Raises BadParameter."""
    if share is None:
        return None
    return Wait(parse_share(share), parse_seconds(timeout))


def parse_share(text: str) -> float:
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1
    if not 0 < share <= 1:
        raise typer.BadParameter(f"{text!r} is not a share; write 95% or 0.95")
    return share


def parse_seconds(text: str) -> float:
    """``2s``, ``500ms``, ``1m``, or a plain number of seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
    digits = text.rstrip("smhd")
    try:
        seconds = float(digits) * units[text[len(digits) :]]
    except (ValueError, KeyError):
        raise typer.BadParameter(f"{text!r} is not a duration; write 2s, 500ms or 1m") from None
    if not 0 < seconds < 10 * 365 * 86400:
        raise typer.BadParameter(f"{text!r} is out of range")
    return seconds


def _say(document: dict[str, Any]) -> None:
    if surroundings().json:
        show.as_json(document)
    else:
        show.problem(document)


def _document(error: HeliographError) -> dict[str, Any]:
    faults = [
        {"pointer": each.pointer, "rule": each.rule, "message": each.message, "schema_pointer": each.schema_pointer}
        for each in (error.faults if isinstance(error, Invalid) else ())
    ]
    return {"code": error.code, "title": error.title, "detail": error.detail, **({"faults": faults} if faults else {})}
