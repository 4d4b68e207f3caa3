"""The command's table of contents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import typer

from heliograph import __version__
from heliograph.cli import (
    editing,
    erasing,
    evolving,
    letters,
    looking,
    naming,
    past,
    promoting,
    proving,
    running,
    tokens,
    writing,
)
from heliograph.cli.session import Session, spoken

app = typer.Typer(
    name="heliograph",
    help="Publish configuration, see it reach every client, and prove it.\n\n"
    "A TARGET is written namespace/environment\\[/config], as in [bold]shop/production/checkout/limits[/].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # a traceback with local variables would show tokens
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(session: Session) -> None:
    """Print the version of this program."""
    session.tell({"version": __version__}, lambda: typer.echo(f"heliograph {__version__}"))


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heliograph {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version of this program.")
    ] = False,
) -> None:
    pass


CHANGE: Final = "Change"
LOOK: Final = "Look"
PROVE: Final = "Prove"
RUN: Final = "Run"
LOCAL: Final = (running.dev, running.serve, running.edge, running.migrate, version)

_COMMANDS: Final[tuple[tuple[str, Callable[..., None], str], ...]] = (
    ("apply", writing.apply, CHANGE),
    ("set", writing.set_, CHANGE),
    ("delete", erasing.delete, CHANGE),
    ("restore", erasing.restore, CHANGE),
    ("purge", erasing.purge, CHANGE),
    ("publish", writing.publish, CHANGE),
    ("rollback", writing.rollback, CHANGE),
    ("edit", editing.edit, CHANGE),
    ("create", writing.create, CHANGE),
    ("branch", promoting.branch, CHANGE),
    ("promote", promoting.promote, CHANGE),
    ("policy", evolving.policy, CHANGE),
    ("get", looking.get, LOOK),
    ("diff", looking.diff, LOOK),
    ("log", looking.log, LOOK),
    ("blame", past.blame, LOOK),
    ("show", looking.show_version, LOOK),
    ("purges", erasing.purges, LOOK),
    ("watch", looking.watch, LOOK),
    ("receipts", proving.receipts, PROVE),
    ("instances", proving.instances, PROVE),
    ("drift", proving.drift, PROVE),
    ("verify", proving.verify, PROVE),
    ("demo", running.demo, RUN),
    ("dev", running.dev, RUN),
    ("serve", running.serve, RUN),
    ("edge", running.edge, RUN),
    ("migrate", running.migrate, RUN),
    ("health", proving.health, RUN),
    ("version", version, RUN),
)
for name, command, panel in _COMMANDS:
    settings = {"ignore_unknown_options": True} if name == "set" else None  # -5 is a value
    app.command(name, rich_help_panel=panel, context_settings=settings)(spoken(command, asks_server=command not in LOCAL))

token = typer.Typer(help="Create, list and revoke tokens.", no_args_is_help=True)
token.command("create")(spoken(tokens.create))
token.command("list")(spoken(tokens.list_))
token.command("revoke")(spoken(tokens.revoke))
app.add_typer(token, name="token", rich_help_panel=CHANGE)

trust = typer.Typer(invoke_without_command=True)
trust.callback()(spoken(proving.trust))
trust.command("next")(spoken(proving.next_trust, asks_server=False))
app.add_typer(trust, name="trust", rich_help_panel=PROVE)

label = typer.Typer(help="Name versions: set, list and remove labels.", no_args_is_help=True)
label.command("set")(spoken(naming.set_))
label.command("list")(spoken(naming.list_))
label.command("remove")(spoken(naming.remove))
app.add_typer(label, name="label", rich_help_panel=CHANGE)

schema = typer.Typer(help="Check schemas before they are published.", no_args_is_help=True)
schema.command("check")(spoken(evolving.check))
app.add_typer(schema, name="schema", rich_help_panel=CHANGE)

dead_letters = typer.Typer(help="List, show, replay and discard what could not be handled.", no_args_is_help=True)
dead_letters.command("list")(spoken(letters.list_))
dead_letters.command("show")(spoken(letters.show_letter))
dead_letters.command("replay")(spoken(letters.replay))
dead_letters.command("discard")(spoken(letters.discard))
app.add_typer(dead_letters, name="dead-letters", rich_help_panel=RUN)
