"""The command's table of contents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heliograph import __version__
from heliograph.cli import looking, running, writing
from heliograph.cli.context import JSON, TOKEN, TOKEN_FILE, URL, Surroundings, remember

app = typer.Typer(
    name="heliograph",
    help="Publish configuration, see it reach every client, and prove it.\n\n"
    "A TARGET is written namespace/environment\\[/config], as in [bold]shop/production/checkout/limits[/].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heliograph {__version__}")
        raise typer.Exit


@app.callback()
def options(
    url: URL = None,
    token: TOKEN = None,
    token_file: TOKEN_FILE = None,
    json: JSON = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    remember(Surroundings(url, token, Path(token_file) if token_file else None, json))


CHANGE, LOOK, PROVE, RUN = "Change", "Look", "Prove", "Run"

for name, command, panel in (
    ("apply", writing.apply, CHANGE),
    ("set", writing.set_, CHANGE),
    ("delete", writing.delete, CHANGE),
    ("publish", writing.publish, CHANGE),
    ("rollback", writing.rollback, CHANGE),
    ("create", writing.create, CHANGE),
    ("get", looking.get, LOOK),
    ("diff", looking.diff, LOOK),
    ("log", looking.log, LOOK),
    ("show", looking.show_version, LOOK),
    ("watch", looking.watch, LOOK),
    ("receipts", looking.receipts, PROVE),
    ("instances", looking.instances, PROVE),
    ("drift", looking.drift, PROVE),
    ("verify", looking.verify, PROVE),
    ("demo", running.demo, RUN),
    ("dev", running.dev, RUN),
    ("serve", running.serve, RUN),
    ("migrate", running.migrate, RUN),
    ("health", looking.health, RUN),
):
    app.command(name, rich_help_panel=panel)(command)
app.add_typer(writing.token, name="token", rich_help_panel=CHANGE)
