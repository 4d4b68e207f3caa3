"""One run of one command: whom it speaks to, how it shows results, and how errors end it.

A command is a function whose first parameter is the `Session`; `spoken` gives it the options that every command has.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec, get_type_hints

import typer

from heliograph.cli import connection, show
from heliograph.cli.exits import Exit, exit_of
from heliograph.core.errors import HeliographError

if TYPE_CHECKING:
    from heliograph.cli.api import Api

P = ParamSpec("P")
_PANEL: Final = "Server and output"
_OF_SERVER: Final = ("url", "token", "token_file", "ca_file")
_EVERYWHERE: Final[dict[str, tuple[Any, Any]]] = {
    "url": (
        Annotated[
            str | None, typer.Option("--url", envvar="HELIOGRAPH_URL", help="Address of the API.", rich_help_panel=_PANEL)
        ],
        None,
    ),
    "token_file": (
        Annotated[
            Path | None,
            typer.Option(
                "--token-file", envvar="HELIOGRAPH_TOKEN_FILE", help="File that holds the token.", rich_help_panel=_PANEL
            ),
        ],
        None,
    ),
    "token": (
        Annotated[
            str | None,
            typer.Option(
                "--token",
                envvar="HELIOGRAPH_TOKEN",
                show_envvar=True,
                help="The token itself; better in a file or the environment than in a shell's history.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "ca_file": (
        Annotated[
            Path | None,
            typer.Option(
                "--ca-file",
                envvar="HELIOGRAPH_CA_FILE",
                help="Certificates of the authorities to trust for https, in PEM, instead of the system's.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "data_dir": (
        Annotated[
            Path,
            typer.Option(
                "--data-dir", envvar="HELIOGRAPH_DATA_DIR", help="Folder of `heliograph dev`.", rich_help_panel=_PANEL
            ),
        ],
        connection.DATA_DIR,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=_PANEL)], False),
}


class Session:
    def __init__(
        self,
        *,
        url: str | None,
        token: str | None,
        token_file: Path | None,
        ca_file: Path | None,
        data_dir: Path,
        as_json: bool,
    ) -> None:
        self.url = url
        self._token = token
        self.token_file = token_file
        self.ca_file = ca_file
        self.data_dir = data_dir
        self.as_json = as_json

    @cached_property
    def connection(self) -> connection.Connection:
        """Raises InvalidRequest, Unauthenticated."""
        return connection.find(url=self.url, token=self._token, token_file=self.token_file, data_dir=self.data_dir)

    @cached_property
    def api(self) -> Api:
        from heliograph.cli.api import Api  # noqa: PLC0415  # httpx takes longer to load than most commands to run

        return Api(self.connection.url, self.connection.token, self.ca_file)

    def close(self) -> None:
        if "api" in self.__dict__:
            self.api.close()

    def tell(self, value: Any, shown: Callable[[], None]) -> None:
        """The result: as JSON where that was asked for, otherwise as a person likes it."""
        if self.as_json:
            show.as_json(value)
        else:
            shown()

    def fail(self, error: HeliographError) -> None:
        """To standard error."""
        from heliograph.runtime.problems import problem  # noqa: PLC0415

        if self.as_json:
            sys.stderr.write(json.dumps(problem(error), ensure_ascii=False) + "\n")
        else:
            show.problem(error)


def spoken(command: Callable[Concatenate[Session, P], None], *, asks_server: bool = True) -> Callable[..., None]:
    """The command as typer takes it: its own parameters, then those that every command has (``asks_server``: or every one that asks a server)."""
    own = list(inspect.signature(command).parameters.values())[1:]
    hints = get_type_hints(command, include_extras=True)
    parameters = [each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    shared = {name: told for name, told in _EVERYWHERE.items() if asks_server or name not in _OF_SERVER}
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in shared.items()
    ]

    def run(**given: Any) -> None:
        session = Session(**{name: given.pop(name, None) for name in _EVERYWHERE})
        with _ending(session):
            command(session, **given)  # type: ignore[call-arg]  # typer fills in what the signature says

    functools.update_wrapper(run, command)
    del run.__wrapped__  # type: ignore[attr-defined]  # typer would look through it, at the wrong signature
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@contextmanager
def _ending(session: Session) -> Iterator[None]:
    """Errors as sentences, with an exit status of their kind."""
    try:
        yield
    except HeliographError as error:
        session.fail(error)
        raise typer.Exit(exit_of(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except BrokenPipeError:  # whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.OK) from None
    finally:
        session.close()
